"""classes.py: the order of classes, and the labels that mirroring exchanges."""

import itertools
import random

import pytest

from classes import CATEGORIES as CATEGORY_FILES
from classes import (
    NEVER,
    describe_order,
    match_categories,
    mirrored_labels,
    read_categories,
    read_flip_pairs,
    released_categories,
)
from utils.cli import UserError

PAIRS = {
    "Pulling something from left to right": "Pulling something from right to left",
    "Pushing something from left to right": "Pushing something from right to left",
    "Turning the camera left while filming something": "Turning the camera right while filming something",
}
NAMES = released_categories()


def swaps(names: list[str]) -> dict[int, int]:
    """The labels that mirroring changes, and what into."""
    mirrored = enumerate(mirrored_labels(names))
    return {label: partner for label, partner in mirrored if partner not in (label, NEVER)}


def never(names: list[str]) -> list[int]:
    """The labels whose clips are not mirrored."""
    return [label for label, partner in enumerate(mirrored_labels(names)) if partner == NEVER]


@pytest.mark.parametrize("seed", range(2))
def test_mirrored_classes_follow_the_names(seed):
    names = random.Random(seed).sample(NAMES, len(NAMES))
    found = swaps(names)
    assert {names[a]: names[b] for a, b in found.items()} == PAIRS | {b: a for a, b in PAIRS.items()}
    assert never(names) == []


@pytest.mark.parametrize(
    ("name", "partner"),
    [
        ("Moving something LEFT", "Moving something RIGHT"),
        ("Swiping Left", "Swiping Right"),
        ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
        ("Clockwise turn", "Anti-Clockwise turn"),
        ("turn_clockwise_left", "turn_counterclockwise_right"),
        ("Screwing it clockwise out", "Screwing it anticlockwise out"),
    ],
)
def test_spellings_of_directions(name, partner):
    assert swaps([name, partner]) == {0: 1, 1: 0}


@pytest.mark.parametrize(
    "name",
    [
        "Using leftovers",
        "R\u0131ght",  # without a dot: the same as i where case is ignored, but not a letter of the word
    ],
)
def test_parts_of_words_are_no_directions(name):
    assert swaps([name, "Opening something"]) == {}
    assert never([name, "Opening something"]) == []


def test_direction_without_partner_is_never_flipped():
    names = ["Opening something", "Pushing something from left to right", "Turning something"]
    assert swaps(names) == {}
    assert never(names) == [1]


def test_ambiguous_partners_are_never_flipped():
    names = ["Turn clockwise", "Turn counterclockwise", "Turn anticlockwise", "Stop"]  # which of the two?
    assert mirrored_labels(names) == [NEVER, NEVER, NEVER, 3]


@pytest.mark.parametrize("names", [["0", "1", "2"], ["0 1", "1 0"], ["07", "-"]])
def test_numbers_as_names_are_never_flipped(names):
    assert swaps(names) == {}
    assert never(names) == list(range(len(names)))


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
    path.write_text(text)
    return mirrored_labels(categories, read_flip_pairs(path, categories))


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("\n  Nach rechts \t  Nach links \r\n\n", [1, 0, 3, 2, 4, 5, 6, 7]),
        ("Nach links\tNach rechts\nmoveLeft\n", [1, 0, 3, 2, NEVER, 5, 6, 7]),
        ("moveLeft\t\tTurn left", [0, 1, 4, NEVER, 2, 5, 6, 7]),  # 'Turn right' has lost its partner
        ("Turn left\tTurn left\nTurn right\tTurn right", list(range(8))),
        ("Wave\ttwice", [0, 1, 3, 2, 4, 7, 6, 5]),
    ],
)
def test_flip_pairs_override_the_names(tmp_path, text, mirrored):
    assert flip_pairs(tmp_path, text) == mirrored


def test_flip_pairs_without_letters(tmp_path):
    assert flip_pairs(tmp_path, "0\t1\n", ["0", "1", "2"]) == [1, 0, NEVER]


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("Wave\n\nNach lnks\tNach rechts\n", ["line 3", "Nach lnks"]),
        ("Wave\nNach links Nach rects", ["line 2", "Nach links Nach rects"]),
        ("Wave\ttwice\tmoveLeft", ["line 1"]),
        ("Turn left\tTurn right\nWave\tTurn left", ["line 2"]),
    ],
)
def test_wrong_flip_pairs(tmp_path, text, culprits):
    with pytest.raises(UserError) as error:
        flip_pairs(tmp_path, text)
    assert len(str(error.value).splitlines()) == 1
    for culprit in ("pairs.txt", *culprits):
        assert culprit in str(error.value)


# Categories.


def bracketed(names):
    return [name.replace("something", "[something]") for name in names]


def test_match_categories_in_any_order():
    others = random.Random(0).sample(NAMES, len(NAMES))
    for names, known in itertools.product((NAMES, bracketed(NAMES)), (others, bracketed(others))):
        places = match_categories(names, known)
        assert [others[place] for place in places] == NAMES
    assert match_categories(NAMES, NAMES) == list(range(len(NAMES)))
    for names in (NAMES[1:], [*NAMES, "more"], [*NAMES[1:], "other"], [*NAMES[1:], NAMES[1]], []):
        assert match_categories(names, NAMES) is None
        assert match_categories(NAMES, names) is None


def test_describe_unusual_order():
    something, dives = (read_categories(CATEGORY_FILES / f"{name}.txt") for name in ("something", "diving48"))
    assert something == released_categories()
    for names in (something, bracketed(something), dives, something[1:], NAMES, ["Up", "Down"]):
        assert describe_order(names) == ""
    order = describe_order(sorted(bracketed(something)))
    assert "Something-Something" in order
    assert "120 of 174" in order
    assert "0 of 174" in describe_order([*something[1:], something[0]])
    assert "46 of 48" in describe_order([dives[1], dives[0], *dives[2:]])


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"", "category.txt, line 1"),
        (b"one\n\ntwo\n", "category.txt, line 2"),
        (b"one\ntwo\nthree\ntwo\n", "category.txt, line 4"),
        (b"one\n\xff\xfe\n", "category.txt, line 2"),
    ],
)
def test_wrong_categories(tmp_path, content, culprit):
    path = tmp_path / "category.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_categories(path)
    assert culprit in str(caught.value)
