"""annotations.py: small annotations of each data set. Whole runs are in test_process_dataset.py."""

import json
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dataset
from annotations import OwnVideo, Video, make_lists, read_annotations, read_test_list
from classes import check_name, read_categories
from datasets_video import check_folder
from utils.cli import UserError


def test_v1_sorts_its_classes(tmp_path):
    texts = {"labels": "Up\nDown\n", "train": "7;Up\n", "validation": "8;Down\n", "test": "9\n"}
    for part, text in texts.items():
        (tmp_path / f"something-something-v1-{part}.csv").write_text(text)
    categories, lists = read_annotations("somethingv1", tmp_path)
    assert categories == ["Down", "Up"]
    assert lists == {
        "train_videofolder.txt": [Video("7", 1)],
        "val_videofolder.txt": [Video("8", 0)],
        "test_videofolder.txt": [Video("9", None)],
    }


def test_jester_is_read_like_v1(tmp_path):
    texts = {"labels": "Thumb Up\nNo gesture\n", "train": "7;Thumb Up\n", "validation": "8;No gesture\n"}
    for part, text in texts.items():
        (tmp_path / f"jester-v1-{part}.csv").write_text(text)
    categories, lists = read_annotations("jester", tmp_path)
    assert categories == ["No gesture", "Thumb Up"]
    assert lists == {"train_videofolder.txt": [Video("7", 1)], "val_videofolder.txt": [Video("8", 0)]}


def test_the_draw_depends_on_seed_and_names_alone(tmp_path):
    def draw(names, seed=0, fraction=0.25):
        videos = [OwnVideo(name, name[0], "a file") for name in names]
        _, lists = make_lists(videos, None, tmp_path, fraction, seed)
        return {video.folder for video in lists["val_videofolder.txt"]}

    names = [f"{letter}/{number}" for letter in "ab" for number in range(40)]
    drawn = draw(names)
    assert [sum(name[0] == letter for name in drawn) for letter in "ab"] == [10, 10]
    assert draw(names[::-1]) == drawn
    assert draw([name for name in names if name[0] == "b"]) == {name for name in drawn if name[0] == "b"}
    assert draw(names, seed=1) != drawn
    assert drawn < draw(names, fraction=0.5)
    assert len(draw(names, fraction=0.999)) == 78
    assert len(draw(names, fraction=0.001)) == 2
    # What a seed draws must stay the same from version to version.
    assert draw([f"a/{number}" for number in range(8)]) == {"a/2", "a/7"}


def test_v2_keeps_its_numbers_and_needs_no_test_list(tmp_path):
    entry = {"id": "7", "template": "Moving [something] up"}
    texts = {"labels": {"Moving something up": "1", "Down": "0"}, "train": [entry], "validation": [entry]}
    for part, content in texts.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    categories, lists = read_annotations("somethingv2", tmp_path)
    assert categories == ["Down", "Moving something up"]
    assert lists == {"train_videofolder.txt": [Video("7", 1)], "val_videofolder.txt": [Video("7", 1)]}


def test_diving48_has_ranges(tmp_path):
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps([["Back", "PIKE"]]))
    entry = {"vid_name": "a", "label": 0, "start_frame": 2, "end_frame": 9}
    for part in ("train", "test"):
        (tmp_path / f"Diving48_V2_{part}.json").write_text(json.dumps([entry]))
    categories, lists = read_annotations("diving48", tmp_path)
    assert categories == ["Back_PIKE"]
    assert lists["val_videofolder.txt"] == [Video("a", 0, start=2, end=9)]


def test_a_test_list_is_folders_and_numbers(tmp_path):
    path = tmp_path / "test_videofolder.txt"
    path.write_text("a b 12\n\nc 3\n")
    assert read_test_list(path) == [Video("a b", None, 12), Video("c", None, 3)]
    path.write_text("a b 12\nc\n")
    with pytest.raises(UserError, match=r"test_videofolder\.txt, line 2: 'c' is not"):
        read_test_list(path)


V1 = {"labels": "Up\nDown\n", "train": "7;Up\n", "validation": "8;Down\n", "test": "9\n"}
V2 = {
    "labels": {"Up": "0", "Moving it": 1},
    "train": [{"id": "7", "template": "Moving [it]", "placeholders": ["it"]}, {"id": 8, "template": "Up"}],
    "validation": [{"id": "9", "template": "Up"}],
    "test": [{"id": "10"}],
}
DIVE = {"vid_name": "a", "label": 0, "start_frame": 0, "end_frame": 9}
DIVING = {"vocab": [["Back", "PIKE"], ["Front"]], "V2_train": [DIVE], "V2_test": [DIVE | {"vid_name": "b"}]}


def refusal(folder, kind, part, content):
    """The message with which an annotation is refused, after its folder.

    Args:
        folder: an empty one.
        kind: key of `LAYOUTS`.
        part: of the annotations, which are right apart from it.
        content: of that part: text, or what becomes JSON.
    """
    parts, pattern = {
        "somethingv1": (V1, "something-something-v1-{}.csv"),
        "somethingv2": (V2, "{}.json"),
        "diving48": (DIVING, "Diving48_{}.json"),
    }[kind]
    for name, right in (parts | {part: content}).items():
        text = right if isinstance(right, str) else json.dumps(right)
        (folder / pattern.format(name)).write_text(text)
    with pytest.raises(UserError) as caught:
        read_annotations(kind, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert message.startswith(str(folder / pattern.format(part)))
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("labels", "", "labels.csv: is empty"),
        ("labels", "\n \n", "labels.csv: is empty"),
        ("labels", "Up\n\nDown\n", "labels.csv, line 2: the name is blank ('')"),
        ("labels", "Up\nDown\nUp\n", "labels.csv, line 3: 'Up' is already in line 1"),
        ("labels", "Up\n Down\n", "labels.csv, line 2: the name begins or ends with a blank (' Down')"),
        ("labels", "Up\nDo\x1bwn\n", "line 2: the name holds a control character"),
        ("labels", "Up\nDown\u2028\n", "line 2: the name begins or ends with a blank ('Down\\u2028')"),
        ("labels", "Up\nDo\u2028wn\n", "line 2: the name holds a control character, a line break"),
        ("labels", "Up\n\ufeffDown\n", "line 2: the name begins with a byte order mark"),
        ("train", "", "train.csv: is empty"),
        ("train", "7;Up\n7;Down\n", "train.csv, line 2: '7' is already in line 1"),
        ("train", "7;Up\n8\n", "train.csv, line 2: '' is not in something-something-v1-labels.csv"),
        ("train", "7;Up\n8;up\n", "line 2: 'up' is not in something-something-v1-labels.csv"),
        ("train", "7;Up\n\n8;Up\n", "train.csv, line 2: the name is blank ('')"),
        ("train", "7;Up\n8 ;Up\n", "line 2: the name begins or ends with a blank ('8 ')"),
        ("train", "../x;Up\n", "line 1: the name is not that of a folder inside"),
        ("validation", "7;Up\n/tmp;Up\n", "validation.csv, line 2: the name is not that of a folder inside"),
        ("validation", f"{'x' * 4097};Up\n", "line 1: the name is longer than 4096 bytes ('xxx"),
        ("test", "", "test.csv: is empty"),
        ("test", "9\n9\n", "test.csv, line 2: '9' is already in line 1"),
        ("test", "9\n.\n", "test.csv, line 2: the name is not that of a folder inside"),
    ],
)
def test_v1_is_refused_by_line(tmp_path, part, content, words):
    assert words in refusal(tmp_path, "somethingv1", part, content)


UP = {"id": "7", "template": "Up"}


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("labels", "", "labels.json, line 1: is not JSON"),
        ("labels", {}, "labels.json: is empty"),
        ("labels", [], "labels.json: must be an object"),
        ("labels", {"Up": "0", "Moving it": "2"}, "labels.json, 'Moving it': its number is 2, but"),
        (
            "labels",
            {"Up": "0", "Moving it": "0"},
            "'Moving it': its number is 0, but the numbers must be 0 to 1",
        ),
        (
            "labels",
            {"Up": "0", "Moving it": "-1"},
            "labels.json, 'Moving it': must be a valid integer ('-1')",
        ),
        ("labels", {"Up": 0, "Moving it": -1}, "'Moving it': must be greater than or equal to 0 ('-1')"),
        ("labels", {"Up": "0", "Moving it": True}, "'Moving it': must be a valid integer ('True')"),
        ("labels", {"Up": "0", "Moving it": 1.0}, "'Moving it': must be a valid integer ('1.0')"),
        ("labels", {"Up": "0", "Moving it": "\u0661"}, "'Moving it': must be a valid integer"),
        ("labels", {"Up": "0", "Moving it": 10**9}, "'Moving it': must be less than 1000000000"),
        (
            "labels",
            '{"Up": "0", "Moving it": 1' + "0" * 5000 + "}",
            "'Moving it': must be a valid integer ('1000",
        ),
        ("labels", {"Up": "0", "Moving it": float("nan")}, "'Moving it': must be a valid integer ('NaN')"),
        ("labels", '{"Up": 0, "Up": 1}', "labels.json: has the key 'Up' twice"),
        ("labels", {"Up": "0", " Moving it": "1"}, "' Moving it': the name begins or ends with a blank"),
        ("labels", {"Up": "0", "Moving\nit": "1"}, "the name holds a control character"),
        ("labels", '{"Up": "0", "\\ud800": "1"}', "half a character ('\\ud800')"),
        ("train", [], "train.json: is empty"),
        ("train", "[" * 100_000, "train.json: cannot be read (it is nested too deeply)"),
        ("train", [UP, 3], "train.json, entry 2: must be an object ('3')"),
        ("train", [UP, {"id": "8"}], "train.json, entry 2: template: is missing"),
        ("train", [UP, UP | {"id": None}], "entry 2: id: must be a valid string ('None')"),
        ("train", [UP, UP | {"id": 1.5}], "entry 2: id: must be a valid string ('1.5')"),
        ("train", [UP, UP | {"id": True}], "entry 2: id: must be a valid string ('True')"),
        ("train", [UP, UP | {"id": ["8"]}], "entry 2: id: must be a valid string"),
        ("train", [UP, UP | {"id": ""}], "entry 2: id: the name is blank ('')"),
        ("train", [UP, UP | {"id": "8\n9"}], "entry 2: id: the name holds a control character"),
        ("train", [UP, UP | {"id": "8\0"}], "entry 2: id: the name holds a control character"),
        ("train", [UP, UP | {"id": "\u00a08"}], "entry 2: id: the name begins or ends with a blank"),
        ("train", [UP, UP | {"id": "a/../../8"}], "entry 2: id: the name is not that of a folder inside"),
        ("train", [UP, UP | {"id": 7}], "train.json, entry 2: '7' is already in entry 1"),
        (
            "train",
            [UP, UP | {"id": "8", "template": "[Down]"}],
            "entry 2: video '8': 'Down' is not in labels.json",
        ),
        ("train", [UP, UP | {"template": 8}], "entry 2: template: must be a valid string ('8')"),
        (
            "train",
            '[{"id": "7", "id": "8", "template": "Up"}]',
            "entry 1: has the key 'id' twice",
        ),
        (
            "train",
            '[{"id": "7", "template": "Up", "x": [{"y": 1, "y": 2}]}]',
            "entry 1: x: has the key 'y' twice",
        ),
        (
            "train",
            '[{"id": "7", "template": "Up", "x": [Infinity]}]',
            "entry 1: x: input was not a valid JSON value ('Infinity')",
        ),
        ("train", '[{"id": "7", "template": "Up", "x": 1e999}]', "entry 1: x: must be a finite number"),
        ("train", '[{"id": "7"},\n{', "train.json, line 2: is not JSON"),
        ("test", [], "test.json: is empty"),
        ("test", [{"id": "7"}, {"id": "7"}], "test.json, entry 2: '7' is already in entry 1"),
        ("test", [{"vid": "7"}], "test.json, entry 1: id: is missing"),
    ],
)
def test_v2_is_refused_by_entry(tmp_path, part, content, words):
    assert words in refusal(tmp_path, "somethingv2", part, content)


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("vocab", [], "vocab.json: is empty"),
        ("vocab", {"a": 1}, "vocab.json: must be a valid list"),
        ("vocab", [["Back"], []], "vocab.json, entry 2: is empty"),
        ("vocab", [["Back"], "Front"], "vocab.json, entry 2: must be a valid list ('Front')"),
        ("vocab", [["Back"], ["Front", 3]], "vocab.json, entry 2: must be a valid string ('3')"),
        ("vocab", [["a", "b_c"], ["a_b", "c"]], "vocab.json, entry 2: 'a_b_c' is already in entry 1"),
        ("vocab", [["a\tb"]], "vocab.json, entry 1: the name holds a control character"),
        ("V2_train", [DIVE | {"label": 2}], "entry 1: video 'a': Diving48_vocab.json has no label 2"),
        ("V2_train", [DIVE | {"label": -1}], "entry 1: label: must be greater than or equal to 0 ('-1')"),
        ("V2_train", [DIVE | {"label": "0"}], "entry 1: label: must be a valid integer ('0')"),
        (
            "V2_train",
            [DIVE | {"start_frame": -1}],
            "entry 1: start_frame: must be greater than or equal to 0",
        ),
        ("V2_train", [DIVE | {"start_frame": 9}], "entry 1: start_frame 9 must be less than end_frame 9"),
        ("V2_train", [DIVE | {"end_frame": 0}], "entry 1: start_frame 0 must be less than end_frame 0"),
        ("V2_train", [DIVE | {"end_frame": 10**9}], "entry 1: end_frame: must be less than 1000000000"),
        (
            "V2_train",
            [DIVE | {"end_frame": float("inf")}],
            "entry 1: end_frame: must be a valid integer ('Infinity')",
        ),
        ("V2_train", [DIVE | {"end_frame": 9.0}], "entry 1: end_frame: must be a valid integer ('9.0')"),
        ("V2_test", [DIVE, DIVE], "V2_test.json, entry 2: 'a' is already in entry 1"),
    ],
)
def test_diving48_is_refused_by_entry(tmp_path, part, content, words):
    assert words in refusal(tmp_path, "diving48", part, content)


@pytest.mark.parametrize("depth", [100, 250, 900, 980, 5000])
def test_any_depth_is_one_line_or_fine(tmp_path, depth):
    deep = "[" * depth + "]" * depth
    for template in ('[{{"id": {}, "template": "Up"}}]', '[{{"id": "7", "template": "Up", "x": {}}}]'):
        (tmp_path / "labels.json").write_text('{"Up": 0}')
        (tmp_path / "validation.json").write_text(json.dumps([UP]))
        (tmp_path / "train.json").write_text(template.format(deep))
        try:
            read_annotations("somethingv2", tmp_path)
        except UserError as error:
            assert "train.json" in str(error)
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("part", ["labels", "train", "test"])
def test_a_pipe_among_the_annotations_is_refused_at_once(tmp_path, part):
    for name, content in V2.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / f"{part}.json").unlink()
    os.mkfifo(tmp_path / f"{part}.json")
    with pytest.raises(UserError, match=f"{part}.json: cannot be read .is a named pipe, not a file"):
        read_annotations("somethingv2", tmp_path)
    (tmp_path / f"{part}.json").unlink()
    (tmp_path / f"{part}.json").mkdir()
    with pytest.raises(UserError, match=f"{part}.json: cannot be read .is a folder, not a file"):
        read_annotations("somethingv2", tmp_path)


def test_a_pipe_instead_of_v1s_test_list_is_not_skipped(tmp_path):
    for part, text in V1.items():
        if part != "test":
            (tmp_path / f"something-something-v1-{part}.csv").write_text(text)
    os.mkfifo(tmp_path / "something-something-v1-test.csv")
    with pytest.raises(UserError, match="v1-test.csv: cannot be read .is a named pipe, not a file"):
        read_annotations("somethingv1", tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c", "line 2: 'c' is not 'name frames'"),
        ("c 1.5", "line 2: 'c 1.5' is not"),
        ("c \u0663", "is not 'name frames'"),
        ("c 1234567890", "is not 'name frames'"),
        ("c\0 3", "cannot be a video's name"),
        ("x" * 4097 + " 3", "cannot be a video's name"),
    ],
)
def test_lines_of_a_test_list_that_are_refused(tmp_path, line, words):
    path = tmp_path / "test_videofolder.txt"
    path.write_text(f"a 3\n{line}\n")
    with pytest.raises(UserError, match=r"test_videofolder\.txt, line 2: ") as caught:
        read_test_list(path)
    assert words in str(caught.value)
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_test_list(path)


# Characters at which some readers break or strip lines, and some that only look so.
_ODD = st.text(
    st.sampled_from("a7 /.;\t\n\r\v\f\x1c\x1f\x85\xa0\u2028\u2029\u3000\ufeff\u200bé\0"), min_size=1
)


@settings(max_examples=300, deadline=None)
@given(name=_ODD | st.text(min_size=1))
@example(name="\ufeffa")
@example(name="12 3 4")
@example(name="a\xa0b")
def test_a_name_that_is_taken_is_read_back(name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    try:
        check_name(name)
    except ValueError:
        return
    (folder / "category.txt").write_text(f"{name}\nother name\n", encoding="utf-8", newline="")
    assert read_categories(folder / "category.txt") == [name, "other name"]
    try:
        check_folder(name)
    except ValueError:
        return
    (folder / "list.txt").write_text(f"{name} 5 1\nb 6 0\n", encoding="utf-8", newline="")
    assert dataset.read_list(folder / "list.txt", 2) == [(name, 5, 1), ("b", 6, 0)]
    (folder / "list.txt").write_text(f"{name} 5\n", encoding="utf-8", newline="")
    assert read_test_list(folder / "list.txt") == [Video(name, None, 5)]
