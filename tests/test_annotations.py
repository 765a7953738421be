"""annotations.py: small annotations of each data set. Whole runs are in test_process_dataset.py."""

import json
import re
from collections import Counter

import pytest

from annotations import OwnData, describe_split, group_by_name, make_lists, read_annotations, read_csv
from classes import check_name, read_categories
from dataset import read_list
from datasets_video import VideoRecord, check_folder
from utils.cli import UserError

UP = {"id": "7", "template": "Up"}
DIVE = {"vid_name": "a", "label": 0, "end_frame": 9}
# For each data set the pattern of the file names, and the parts.
ANNOTATIONS = {
    "somethingv1": (
        "something-something-v1-{}.csv",
        {"labels": "Up\nDown\n", "train": "7;Up\n", "validation": "8;Down\n", "test": "9\n"},
    ),
    "jester": (
        "jester-v1-{}.csv",
        {"labels": "Thumb Up\nNo gesture\n", "train": "7;Thumb Up\n", "validation": "8;No gesture\n"},
    ),
    "somethingv2": (
        "{}.json",
        {
            "labels": {"Moving it": "1", "Up": 0},
            "train": [{"id": "7", "template": "Moving [it]", "placeholders": ["it"]}],
            "validation": [{"id": 9, "template": "Up"}],
            "test": [{"id": "10"}],
        },
    ),
    "diving48": (
        "Diving48_{}.json",
        {
            "vocab": [["Back", "PIKE"], ["Front"]],
            "V2_train": [DIVE],
            "V2_test": [DIVE | {"vid_name": "b", "label": 1}],
        },
    ),
}


def annotate(folder, dataset, **changes):
    """Write annotations, with other contents for some parts (None: no file)."""
    pattern, parts = ANNOTATIONS[dataset]
    for part, content in (parts | changes).items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / pattern.format(part)).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("dataset", "categories", "train", "val", "test"),
    [
        ("somethingv1", ["Down", "Up"], VideoRecord("7", label=1), VideoRecord("8", label=0), "9"),
        ("jester", ["No gesture", "Thumb Up"], VideoRecord("7", label=1), VideoRecord("8", label=0), None),
        ("somethingv2", ["Up", "Moving it"], VideoRecord("7", label=1), VideoRecord("9", label=0), "10"),
        ("diving48", ["Back_PIKE", "Front"], VideoRecord("a", 9, 0), VideoRecord("b", 9, 1), None),
    ],
)
def test_official_annotations(tmp_path, dataset, categories, train, val, test):
    lists = {"train_videofolder.txt": [train], "val_videofolder.txt": [val]}
    if test:
        lists["test_videofolder.txt"] = [VideoRecord(test)]
    assert read_annotations(dataset, annotate(tmp_path, dataset)) == (categories, lists)


@pytest.mark.parametrize(
    ("dataset", "part", "content", "culprit"),
    [
        ("somethingv1", "labels", None, "labels.csv"),
        ("somethingv1", "labels", "Up\nDown\nUp\n", "labels.csv, line 3"),
        ("somethingv1", "train", "7;Up\n8;up\n", "train.csv, row 2"),
        ("somethingv1", "validation", "7;Up\n../x;Up\n", "validation.csv, row 2"),
        ("somethingv2", "labels", None, "labels.json"),
        ("somethingv2", "labels", {"Up": "0", "Moving it": "2"}, "labels.json"),
        ("somethingv2", "train", '[{"id": "7"},\n{', "train.json"),
        ("somethingv2", "train", [UP, UP | {"id": "8", "template": "[Down]"}], "train.json, row 2"),
        ("somethingv2", "train", [UP, UP | {"id": "8\n9"}], "train.json, row 2"),
        ("somethingv2", "test", [{"vid": "7"}], "test.json, row 1"),
        ("diving48", "vocab", None, "vocab.json"),
        ("diving48", "V2_train", [DIVE | {"label": 2}], "V2_train.json, row 1"),
    ],
)
def test_damaged_annotations(tmp_path, dataset, part, content, culprit):
    with pytest.raises(UserError) as caught:
        read_annotations(dataset, annotate(tmp_path, dataset, **{part: content}))
    assert culprit in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def own_data(names, **changes):
    """Own data of videos `CLASS/VIDEO`."""
    categories = sorted({name.partition("/")[0] for name in names})
    records = [VideoRecord(name, label=categories.index(name.partition("/")[0])) for name in names]
    return OwnData(categories, records, {}, {})._replace(**changes)


def draw(names, seed=0, fraction=0.25):
    """The validation videos that are drawn."""
    lists = make_lists(own_data(names), fraction, seed)
    assert sum(map(len, lists.values())) == len(names)
    return {record.path for record in lists["val_videofolder.txt"]}


def test_draw_depends_on_seed_and_names():
    names = [f"{letter}/{number}" for letter in "ab" for number in range(40)]
    drawn = draw(names)
    assert [sum(name[0] == letter for name in drawn) for letter in "ab"] == [10, 10]
    assert draw(names[::-1]) == drawn
    assert draw([name for name in names if name[0] == "b"]) == {name for name in drawn if name[0] == "b"}
    assert draw(names, seed=1) != drawn
    assert drawn < draw(names, fraction=0.5)
    assert len(draw(names, fraction=0.999)) == 78
    assert len(draw(names, fraction=0.001)) == 2
    # A seed draws the same videos in every version.
    assert draw([f"a/{number}" for number in range(8)]) == {"a/2", "a/7"}


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_not_divided(seed):
    # Ten people perform each of three actions three times; two more one action only.
    names = [f"{c}/p{person}_{i}" for c in ("jump", "run", "wave") for person in range(10) for i in range(3)]
    names += [f"wave/p{person}_{i}" for person in (10, 11) for i in range(4)]
    data = own_data(names)
    data = data._replace(group_of=group_by_name(data.records, re.compile(r"p(\d+)")))
    lists = make_lists(data, 0.2, seed)
    groups = [
        {data.group_of[record.path] for record in lists[f"{part}_videofolder.txt"]}
        for part in ("train", "val")
    ]
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 12
    counts = Counter(record.label for record in lists["val_videofolder.txt"])
    assert counts.keys() == {0, 1, 2}
    assert all(3 <= count <= 11 for count in counts.values())
    assert describe_split(data, lists) == []


def test_few_large_groups():
    """Each class gets validation clips if it has two groups, even if none is as small as its share."""
    data = own_data([f"{c}/{group}{i}" for c in ("jump", "run") for group in "ab" for i in range(9)])
    groups = {record.path: record.path[:-1] for record in data.records}
    lists = make_lists(data._replace(group_of=groups), 0.1, 0)
    assert [len(lists[f"{part}_videofolder.txt"]) for part in ("train", "val")] == [18, 18]
    with pytest.raises(UserError, match="two groups"):
        make_lists(data._replace(group_of=dict.fromkeys(groups, "one")), 0.1, 0)


def describe(names, **changes):
    data = own_data(names, **changes)
    return " ".join(describe_split(data, make_lists(data, 0.2, 0)))


def test_warnings_about_the_split():
    clips = [f"{c}/{c}_{i:03d}" for c in ("jump", "run") for i in range(20)]
    assert describe(clips) == ""
    assert "only one class" in describe(clips[:20])
    assert "val_videofolder.txt has no clips of: wave" in describe([*clips, "wave/1"])
    recordings = [f"{c}/{c}_g{g:02d}_c{i:02d}" for c in ("jump", "run") for g in range(4) for i in range(5)]
    assert "8 of 8 validation clips" in describe(recordings)
    groups = {name: name[:-4] for name in recordings}
    assert describe(recordings, group_of=groups) == ""


@pytest.mark.parametrize(
    "text",
    [
        "video,label\nup/1.mp4,Up\ndown/2,Down\n",
        "Label;ID;Video\nUp;7;./up/1.MP4\nDown;8;down\\2.webm\n",
        "\ufeffvideo\tlabel\nTOP/up/1.mp4\tUp\nTOP/down/2.mp4\t Down \n",
    ],
)
def test_csv_variants(tmp_path, text):
    path = tmp_path / "my.csv"
    path.write_text(text.replace("TOP", str(tmp_path / "videos")), encoding="utf-8")
    data = read_csv(path, tmp_path / "videos", (".mp4", ".webm"), tmp_path / "category.txt")
    assert data.categories == ["Down", "Up"]
    assert data.records == [VideoRecord("up/1", label=1), VideoRecord("down/2", label=0)]


def test_csv_groups(tmp_path):
    (tmp_path / "my.csv").write_text("video,label,group,Person\na,Up,1,x\nb,Up,,x\n")
    arguments = [tmp_path / "my.csv", tmp_path, (), tmp_path / "category.txt"]
    assert read_csv(*arguments).group_of == {"a": "1"}
    assert read_csv(*arguments, "person").group_of == {"a": "x", "b": "x"}
    with pytest.raises(UserError, match="--group_column take"):
        read_csv(*arguments, "take")


@pytest.mark.parametrize("name", ["a", "12 3 4", "a\xa0b", "é/b", "a\u200bb"])
def test_accepted_name_is_read_back(name, tmp_path):
    check_folder(check_name(name))
    (tmp_path / "category.txt").write_text(f"{name}\nother name\n", encoding="utf-8", newline="")
    assert read_categories(tmp_path / "category.txt") == [name, "other name"]
    (tmp_path / "list.txt").write_text(f"{name} 5 1\nb 6 0\n", encoding="utf-8", newline="")
    assert read_list(tmp_path / "list.txt", 2) == [VideoRecord(name, 5, 1), VideoRecord("b", 6, 0)]


@pytest.mark.parametrize("name", ["", "\u3000a", "a\u2028b", "a\tb", "\ufeffa", "a\0", "a/../b", "/a"])
def test_refused_name(name):
    with pytest.raises(ValueError, match="name"):
        check_folder(name)
