"""Where lists, frames and categories are found, and which labels mirroring exchanges."""

import itertools
import random

import pytest
from synthetic import CATEGORIES, make_dataset

from classes import CATEGORIES as CATEGORY_FILES
from classes import (
    NEVER,
    describe_flips,
    describe_order,
    match_categories,
    mirrored_labels,
    read_categories,
    read_flip_pairs,
    released_categories,
)
from datasets_video import check_template, return_dataset
from utils.cli import UserError

# Names of Something-Something-v1 and -v2.
PAIRS = [
    ("Pulling something from left to right", "Pulling something from right to left"),
    ("Pushing something from left to right", "Pushing something from right to left"),
    ("Moving something from left to right", "Moving something from right to left"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
]
OTHERS = [
    "Plugging something into something but pulling it right out as you remove your hand",
    "Approaching something with your camera",
    "Attaching something to something",
    "Bending something so that it deforms",
    "Dropping something behind something",
    "Holding something next to something",
    "Letting something roll down a slanted surface",
    "Moving something and something closer to each other",
    "Moving something up",
    "Moving something down",
    "Opening something",
    "Pretending to be tearing something that is not tearable",
    "Pushing something so that it falls off the table",
    "Showing something to the camera",
    "Throwing something in the air and letting it fall",
    "Unfolding something",
]
NAMES = [name for pair in PAIRS for name in pair] + OTHERS


def swaps(names: list[str]) -> dict[int, int]:
    """The labels that mirroring changes, and what into."""
    mirrored = enumerate(mirrored_labels(names))
    return {label: partner for label, partner in mirrored if partner not in (label, NEVER)}


def never(names: list[str]) -> list[int]:
    """The labels whose clips are not mirrored."""
    return [label for label, partner in enumerate(mirrored_labels(names)) if partner == NEVER]


@pytest.mark.parametrize("seed", range(5))
def test_mirrored_classes_follow_the_names_in_any_order(seed):
    names = random.Random(seed).sample(NAMES, len(NAMES))
    found = swaps(names)
    assert {names[a]: names[b] for a, b in found.items()} == dict(PAIRS) | {b: a for a, b in PAIRS}
    assert never(names) == []


def test_adverb_right_is_no_direction():
    """'Pulling it right out' is what it is in a mirror, too: flipped, with its label."""
    name = "Plugging something into something but pulling it right out as you remove your hand"
    assert swaps([name, *CATEGORIES]) == {1: 3, 3: 1}
    assert never([name, *CATEGORIES]) == []


@pytest.mark.parametrize(
    ("name", "partner"),
    [
        ("Moving something LEFT", "Moving something RIGHT"),
        ("Left hand up", "Right hand up"),
        ("turn-left", "turn-right"),
        ("moving_left", "moving_right"),
        ("Swiping Left", "Swiping Right"),  # this and the next two: Jester
        ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
        ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
        ("Turning Hand Clockwise", "Turning Hand CounterClockwise"),
        ("turning clockwise", "turning anticlockwise"),
        ("turn clockwise twice", "turn counter-clockwise twice"),
        ("Clockwise turn", "Anti-Clockwise turn"),
        ("Clockwise turn", "Counter clockwise turn"),
        ("TURN CLOCKWISE", "TURN ANTI-CLOCKWISE"),
        ("turn_clockwise_left", "turn_counterclockwise_right"),
        ("hand_clockwise", "hand_anti_clockwise"),
        ("Screwing it clockwise out", "Screwing it anticlockwise out"),
    ],
)
def test_ways_to_write_a_direction(name, partner):
    assert swaps([name, partner]) == {0: 1, 1: 0}


@pytest.mark.parametrize(
    "name",
    [
        "Using leftovers",
        "Brightening something",
        "Uprighting something",
        "Anticlockwisely",
        "R\u0131ght",  # without a dot: the same as i where case is ignored, but not a letter of the word
        "clockwi\u017fe",
    ],
)
def test_words_that_contain_a_direction_are_none(name):
    assert swaps([name, "Opening something"]) == {}
    assert never([name, "Opening something"]) == []


def test_direction_without_partner_is_never_flipped():
    names = ["Opening something", "Pushing something from left to right", "Turning something"]
    assert swaps(names) == {}
    assert never(names) == [1]


@pytest.mark.parametrize(
    "names",
    [
        ["Turn clockwise", "Turn counterclockwise", "Turn anticlockwise", "Stop"],  # which of the two?
        ["Turn counterclockwise", "Turn anti-clockwise", "Turn counter-clockwise", "Stop"],
        ["Turn clockwise", "turn counterclockwise", "TURN Clockwise", "Stop"],
    ],
)
def test_without_one_clear_partner_nothing_is_mirrored(names):
    assert mirrored_labels(names) == [NEVER, NEVER, NEVER, 3]


@pytest.mark.parametrize("names", [["0", "1", "2"], ["0 1", "1 0"], ["07", "-"]])
def test_names_without_letters_say_nothing_so_nothing_is_flipped(names):
    assert swaps(names) == {}
    assert never(names) == list(range(len(names)))


def test_one_name_with_letters_is_no_list_of_numbers():
    assert never(["1", "Opening something"]) == []


# Which classes are mirrored, from a file.

DIRECTIONS = [
    "Nach links",
    "Nach rechts",
    "Turn left",
    "Turn right",
    "moveLeft",
    "Wave",
    "Wave twice",
    "twice",
]


def flip_pairs(tmp_path, text, categories=DIRECTIONS):
    path = tmp_path / "pairs.txt"
    path.write_bytes(text.encode())
    return mirrored_labels(categories, read_flip_pairs(path, categories))


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Nach links Nach rechts\n", [1, 0, 3, 2, 4, 5, 6, 7]),
        ("\n  Nach rechts   Nach links \r\n\n", [1, 0, 3, 2, 4, 5, 6, 7]),
        ("Nach links\tNach rechts\nmoveLeft\n", [1, 0, 3, 2, NEVER, 5, 6, 7]),
        ("moveLeft\t\tTurn left", [0, 1, 4, NEVER, 2, 5, 6, 7]),  # 'Turn right' has lost its partner
        ("Turn left Turn left", [0, 1, 2, NEVER, 4, 5, 6, 7]),
        ("Turn left\tTurn left\nTurn right Turn right", list(range(8))),
        ("Turn left\nWave\t", [0, 1, NEVER, NEVER, 4, NEVER, 6, 7]),
        ("Wave\ttwice", [0, 1, 3, 2, 4, 7, 6, 5]),
        ("Wave twice\t", [0, 1, 3, 2, 4, 5, NEVER, 7]),
    ],
)
def test_the_file_decides_for_its_classes_and_the_names_for_the_others(tmp_path, text, mirrored):
    assert flip_pairs(tmp_path, text) == mirrored


def test_a_file_makes_names_without_letters_usable(tmp_path):
    assert flip_pairs(tmp_path, "0 1\n", ["0", "1", "2"]) == [1, 0, NEVER]


def test_a_class_in_the_file_leaves_the_others_one_clear_partner(tmp_path):
    names = ["Turn clockwise", "Turn counterclockwise", "Turn anticlockwise"]
    assert flip_pairs(tmp_path, "Turn anticlockwise\n", names) == [1, 0, NEVER]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Wave\n\nNach lnks\tNach rechts\n", ["line 3", "'Nach lnks'", "category.txt"]),
        ("Wave\nNach links Nach rects", ["line 2", "'Nach links Nach rects'", "category.txt", "tab"]),
        ("jump", ["line 1", "'jump'", "category.txt"]),
        ("Wave twice", ["line 1", "'Wave twice'", "2 ways", "tab"]),
        ("Wave twice twice", ["line 1", "'Wave twice twice'", "category.txt"]),
        ("Wave\ttwice\tmoveLeft", ["line 1", "3 names"]),
        ("Turn left\tTurn right\nWave\tTurn left", ["line 2", "'Turn left'", "on line 1"]),
        ("Wave\nmoveLeft\nWave\n", ["line 3", "'Wave'", "on line 1"]),
        (" \n\n", ["empty"]),
        ("a" * 500, ["line 1", "a…'"]),
    ],
)
def test_a_file_of_pairs_that_cannot_be_right_is_refused(tmp_path, text, words):
    categories = DIRECTIONS if text != "Wave twice twice" else DIRECTIONS[:6]
    with pytest.raises(UserError) as error:
        flip_pairs(tmp_path, text, categories)
    assert "\n" not in str(error.value)
    for word in ("pairs.txt", *words):
        assert word in str(error.value)


def test_two_pairs_in_one_line_of_blanks_are_two_ways_to_read_it(tmp_path):
    with pytest.raises(UserError, match=r"line 1: 'a a a' can be read in 2 ways; a tab"):
        flip_pairs(tmp_path, "a a a", ["a", "a a"])


def test_a_file_of_pairs_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"pairs\.txt: no such file"):
        read_flip_pairs(tmp_path / "pairs.txt", DIRECTIONS)


def test_the_log_names_at_most_ten_pairs_and_ten_classes():
    names = [f"{n} {side}" for n in range(13) for side in ("left", "right")]
    names += [f"{n} clockwise\x07" for n in range(11)] + ["wave"]
    swaps, never, others = describe_flips(names, mirrored_labels(names))
    assert swaps.startswith("horizontal flip: swaps '0 left' <-> '0 right', '1 left' <-> '1 right', ")
    assert swaps.endswith("'9 left' <-> '9 right', and 3 more")
    assert never.startswith(r"horizontal flip: never mirrors '0 clockwise\x07', '1 clockwise\x07', ")
    assert never.endswith(r"'9 clockwise\x07', and 1 more")
    assert "--flip_pairs FILE" in others
    assert "--no_flip" in others


# Files.


@pytest.mark.parametrize("dataset", ["somethingv1", "somethingv2", "diving48"])
@pytest.mark.parametrize("convention", ["trn", "authors"])
def test_both_conventions_are_found_for_every_data_set(tmp_path, dataset, convention):
    make_dataset(tmp_path, dataset, convention, train=2, val=1, frames=3)
    paths = return_dataset(dataset, str(tmp_path))
    home = tmp_path / dataset
    names = {"trn": ("train_videofolder.txt", "val_videofolder.txt"), "authors": ("train.txt", "valid.txt")}
    assert (paths.train_list, paths.val_list) == tuple(home / name for name in names[convention])
    assert paths.categories == list(CATEGORIES)
    assert (paths.root_data / "1" / paths.prefix.format(1)).is_file()
    # Tuples as TRN-pytorch returns them: categories, lists, folder of the frames, name of a frame.
    assert tuple(paths)[3:] == (paths.root_data, paths.prefix)


def test_names_of_frames_and_folders_are_the_published_ones(tmp_path):
    found = {}
    for dataset in ("somethingv1", "somethingv2"):
        make_dataset(tmp_path, dataset, train=1, val=1, frames=1)
        paths = return_dataset(dataset, tmp_path)
        found[dataset] = (paths.root_data.name, paths.prefix.format(1))
    assert found == {
        "somethingv1": ("20bn-something-something-v1", "00001.jpg"),
        "somethingv2": ("20bn-something-something-v2-frames", "000001.jpg"),
    }


def test_lists_and_template_can_be_given(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    paths = return_dataset("somethingv1", tmp_path, "a.txt", "b.txt", "img_{:04d}.png")
    assert (str(paths.train_list), str(paths.val_list)) == ("a.txt", "b.txt")
    assert paths.prefix == "img_{:04d}.png"


def test_evaluation_needs_no_training_list(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    (tmp_path / "somethingv1" / "train_videofolder.txt").unlink()
    assert return_dataset("somethingv1", tmp_path, for_training=False).train_list is None
    with pytest.raises(UserError, match="--train_list"):
        return_dataset("somethingv1", tmp_path)


@pytest.mark.parametrize(
    ("name", "option"), [("train_videofolder.txt", "--train_list"), ("val_videofolder.txt", "--val_list")]
)
def test_missing_list_is_named_with_both_conventions_and_the_option(tmp_path, name, option):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    (tmp_path / "somethingv1" / name).unlink()
    other = {"train_videofolder.txt": "train.txt", "val_videofolder.txt": "valid.txt"}[name]
    with pytest.raises(UserError) as caught:
        return_dataset("somethingv1", tmp_path)
    assert all(word in str(caught.value) for word in (str(tmp_path / "somethingv1"), name, other, option))


def test_both_conventions_at_once_are_ambiguous(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    (tmp_path / "somethingv1" / "valid.txt").write_text("1\t1\t0\n")
    with pytest.raises(UserError, match="val_videofolder.txt and valid.txt.*--val_list"):
        return_dataset("somethingv1", tmp_path)
    given = tmp_path / "somethingv1" / "valid.txt"
    assert return_dataset("somethingv1", tmp_path, val_list=str(given)).val_list == given


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="somethingv1: no such folder; --root_path"):
        return_dataset("somethingv1", tmp_path)
    (tmp_path / "somethingv1").mkdir()
    with pytest.raises(UserError, match="somethingv1/20bn-something-something-v1: no such folder"):
        return_dataset("somethingv1", tmp_path)
    (tmp_path / "somethingv1" / "20bn-something-something-v1").mkdir()
    with pytest.raises(UserError, match=r"category\.txt: no such file"):
        return_dataset("somethingv1", tmp_path)


@pytest.mark.parametrize(
    "template", ["{:05d}.jpg", "img_{:04d}.png", "{}.jpg", "{0:d}.jpeg", "{{{:06}}}", "a b{:03d}"]
)
def test_templates(template):
    assert check_template(template) == template
    names = [template.format(number) for number in range(1, 1200)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "template",
    [
        *(
            "frame.jpg",
            "",
            "{:05d}{:05d}.jpg",
            "{0}{0}.jpg",
            "{name}.jpg",
            "{1}.jpg",
            "{0.real}.jpg",
            "{!r}.jpg",
        ),
        *(
            "{:05d.jpg",
            "05d}.jpg",
            "{:05q}.jpg",
            "{:.1g}.jpg",
            "{:c}.jpg",
            "{:x}.jpg",
            "{:5d}.jpg",
            "{:{}}.jpg",
        ),
        *("/{:05d}.jpg", "rgb/{:05d}.jpg", "../{:05d}.jpg", "{:05d}.jpg/", ".{:05d}.jpg"),
    ],
)
def test_a_template_that_is_not_a_name_with_one_number_is_refused(tmp_path, template):
    with pytest.raises(UserError) as caught:
        check_template(template)
    message = "must be a file name that holds one number, as '{:05d}.jpg' does"
    assert str(caught.value) == f"--image_tmpl {template}: {message}"


def test_the_template_is_checked_where_the_files_are_looked_for(tmp_path):
    make_dataset(tmp_path, train=1, val=1, frames=1)
    with pytest.raises(UserError, match="--image_tmpl frame.jpg: "):
        return_dataset("somethingv1", tmp_path, image_tmpl="frame.jpg")


def test_a_template_must_end_as_the_format_asks():
    assert check_template("{:05d}.jpeg", (".jpg", ".jpeg")) == "{:05d}.jpeg"
    with pytest.raises(UserError, match=r"must end in \.jpg or \.jpeg"):
        check_template("{:05d}.png", (".jpg", ".jpeg"))


# Categories.


def bracketed(names):
    return [name.replace("something", "[something]") for name in names]


def test_the_same_classes_are_found_in_any_order_with_or_without_brackets():
    others = random.Random(0).sample(NAMES, len(NAMES))
    for names, known in itertools.product((NAMES, bracketed(NAMES)), (others, bracketed(others))):
        places = match_categories(names, known)
        assert [others[place] for place in places] == NAMES
    assert match_categories(NAMES, NAMES) == list(range(len(NAMES)))
    for names in (NAMES[1:], [*NAMES, "more"], [*NAMES[1:], "other"], [*NAMES[1:], NAMES[1]], []):
        assert match_categories(names, NAMES) is None
        assert match_categories(NAMES, names) is None
    # Where brackets alone tell two classes apart, nothing says which is which.
    assert match_categories(["a", "[a]"], ["a", "[a]"]) == [0, 1]
    assert match_categories(["[a]", "a"], ["a", "[a]"]) is None


@pytest.mark.parametrize(("file", "count"), [("something.txt", 174), ("diving48.txt", 48)])
def test_the_well_known_classes_are_all_there(file, count):
    names = read_categories(CATEGORY_FILES / file)
    assert len(names) == len(set(names)) == count
    assert names == sorted(names)
    parts = [name.split("_") for name in names]
    assert file == "something.txt" or {len(part) for part in parts} == {4}


def test_well_known_classes_in_an_order_of_their_own_are_reported():
    something, dives = (read_categories(CATEGORY_FILES / f"{name}.txt") for name in ("something", "diving48"))
    assert something == released_categories()
    for names in (something, bracketed(something), dives, something[1:], NAMES, ["Up", "Down"]):
        assert describe_order(names) == ""
    sorted_with_brackets = sorted(bracketed(something))
    assert describe_order(sorted_with_brackets) == (
        "the classes are Something-Something's, but not in the released checkpoints' order "
        "(sorted with brackets, 120 of 174 in the same place)"
    )
    third = [*something[1:], something[0]]
    assert describe_order(third).endswith("order (0 of 174 in the same place)")
    assert "Diving48's, but not in its vocabulary's order (46 of 48" in describe_order(
        [dives[1], dives[0], *dives[2:]]
    )


def test_categories_keep_their_order(tmp_path):
    path = tmp_path / "category.txt"
    path.write_text("  Zipping something \nÄpfel schälen\nOpening something\r\n\n\n", encoding="utf-8")
    assert read_categories(path) == ["Zipping something", "Äpfel schälen", "Opening something"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "category.txt: is empty"),
        (b"\n \n", "category.txt: is empty"),
        (b"one\n\ntwo\n", "category.txt, line 2: blank"),
        (b"one\ntwo\nthree\ntwo\n", "category.txt, line 4: 'two' is already on line 2"),
        (b"one\n\xff\xfe\n", "category.txt, line 2: cannot be read"),
    ],
)
def test_bad_categories_are_refused(tmp_path, content, message):
    path = tmp_path / "category.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_categories(path)
    assert str(caught.value).startswith(str(tmp_path))
    assert message in str(caught.value)
