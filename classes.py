"""Class names: their order, and which classes are mirror images of each other."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from utils.cli import UserError, printable
from utils.files import read_text

# Class names whose order is known: Something-Something's as in the released checkpoints, and Diving48's
# as in its vocabulary.
CATEGORIES = Path(__file__).resolve().parent / "categories"
# What a line of a list may hold: bytes of a folder's path (Linux' PATH_MAX), digits of a number.
MAX_NAME = 4096
# Words, also in names_joined_by_underscores. "Pulling it right out" says how, not where to.
_DIRECTION = re.compile(
    r"(?<![^\W_])(?:(?a:left|right)(?! out\b)|(?a:(?:(?:counter|anti)[-_ ]?)?clockwise))(?![^\W_])",
    re.IGNORECASE,
)
_OPPOSITE = {
    "left": "right",
    "right": "left",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
}
NEVER = -1  # in place of a label: clips of the class are not mirrored
_MAX_NAMED = 10  # pairs, or classes, in a line of the log


def read_categories(path: Path) -> list[str]:
    """Read class names, one a line, the first line being label 0.

    Raises:
        UserError: the file is missing or empty, or a name is blank or appears twice.
    """
    text = read_text(path, "it holds the class names, one a line").rstrip()
    names = [line.strip() for line in text.split("\n")] if text else []
    if not names:
        raise UserError(f"{path}: is empty; it holds the class names, one a line")
    first_seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}, line {number}: blank; every line is the name of one class")
        if name in first_seen:
            raise UserError(
                f"{path}, line {number}: '{printable(name)}' is already on line {first_seen[name]}"
            )
        first_seen[name] = number
    return names


def released_categories() -> list[str]:
    """Something-Something's class names, in the order of the checkpoints that the authors released."""
    return read_categories(CATEGORIES / "something.txt")


def match_categories(names: list[str], others: list[str]) -> list[int] | None:
    """Find the classes of one list in another list of the same classes, in whatever order.

    Brackets do not count: some lists of Something-Something have them around each `[something]`.

    Returns:
        For each of `names` its place in `others`; None if they are not the same classes.
    """
    if names == others:
        return list(range(len(names)))
    place = {without_brackets(name): number for number, name in enumerate(others)}
    plain = [without_brackets(name) for name in names]
    if len(plain) != len(others) or len(set(plain)) != len(plain) or set(plain) != place.keys():
        return None
    return [place[name] for name in plain]


def without_brackets(name: str) -> str:
    """A class's name without square brackets."""
    return name.replace("[", "").replace("]", "")


def describe_order(categories: list[str]) -> str:
    """Say that these are well-known classes in an order of their own; empty if that is not so."""
    orders = {
        "something.txt": "Something-Something's, but not in the released checkpoints' order",
        "diving48.txt": "Diving48's, but not in its vocabulary's order",
    }
    for file, whose in orders.items():
        places = match_categories(categories, read_categories(CATEGORIES / file))
        if places is None or places == sorted(places):
            continue
        same = sum(place == label for label, place in enumerate(places))
        is_bracketed = any("[" in name for name in categories) and categories == sorted(categories)
        how = "sorted with brackets, " if is_bracketed else ""
        return f"the classes are {whose} ({how}{same} of {len(places)} in the same place)"
    return ""


def check_name(name: str) -> str:
    """Check that the name of a class or video can stand in a line and is read from it as it is.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if not name.strip():
        raise ValueError("the name is blank")
    if name != name.strip():
        raise ValueError("the name begins or ends with a blank")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError("the name holds a control character, a line break or half a character")
    if name.startswith("\ufeff"):  # as the first of a file it would be taken for the file's
        raise ValueError("the name begins with a byte order mark")
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"the name is longer than {MAX_NAME} bytes")
    return name


def mirrored_labels(categories: list[str], given: Mapping[int, int] | None = None) -> list[int]:
    """What each label becomes when a clip is mirrored, from the class names alone.

    Exchanging left and right in a name, or clockwise and counterclockwise (anticlockwise), gives the
    mirrored class. Published code wires in label numbers instead (86/87, 93/94 and 166/167 for
    Something-v1), which mislabel mirrored clips for any other order of the classes.

    Args:
        categories: class names.
        given: what `read_flip_pairs` gave; it takes the place of the names for the labels in it.

    Returns:
        For each label that of the mirrored class, which is the same one where mirroring changes nothing,
        or `NEVER`, where no class or more than one describes the mirrored clip. Where no name has a letter in
        it (a list of numbers), nothing says what mirroring would do: `NEVER` for all that are not given.
    """
    given = given or {}
    if not any(character.isalpha() for name in categories for character in name):
        given = dict.fromkeys(range(len(categories)), NEVER) | given
    named: dict[str, list[int]] = {}
    for label, name in enumerate(categories):
        if label not in given:
            named.setdefault(_with_directions(name), []).append(label)
    mirrored = []
    for label, name in enumerate(categories):
        alike = named.get(_with_directions(name), [])
        partners = named.get(_with_directions(name, mirrored=True), [])
        is_clear = len(alike) == len(partners) == 1
        mirrored.append(given.get(label, partners[0] if is_clear else NEVER))
    return mirrored


def read_flip_pairs(path: str | Path, categories: list[str]) -> dict[int, int]:
    """Read which classes are each other's mirror image, for names that do not say it.

    Args:
        path: a file with two names a line, separated by a tab, or by a blank if there is one way only to read
            the line so. The same name twice is a class that mirroring does not change; a name alone is one
            whose clips are never mirrored.
        categories: class names.

    Returns:
        `{label: label of the mirrored class, or NEVER}` for the classes in the file.

    Raises:
        UserError: it cannot be read or is empty, names something else than a class, can be read in several
            ways, or has a class on two lines.
    """
    label_of = {name: label for label, name in enumerate(categories)}
    given: dict[int, int] = {}
    line_of: dict[int, int] = {}
    text = read_text(path, "it holds the names of two mirrored classes a line")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        labels = [label_of[name] for name in _split_pair(line, label_of, place)]
        for label in labels:
            if line_of.setdefault(label, number) != number:
                raise UserError(
                    f"{place}: '{printable(categories[label])}' is already on line {line_of[label]}"
                )
        if len(labels) == 1:
            given[labels[0]] = NEVER
        else:
            given |= {labels[0]: labels[1], labels[1]: labels[0]}
    if not given:
        raise UserError(f"{path}: is empty; it holds the names of two mirrored classes a line")
    return given


def describe_flips(categories: list[str], mirrored: list[int]) -> list[str]:
    """Lines for the log: what mirroring a clip does with its label.

    Args:
        categories: class names.
        mirrored: what each label becomes, as from `mirrored_labels`.
    """
    names = [f"'{printable(name)}'" for name in categories]
    pairs = [f"{names[a]} <-> {names[b]}" for a, b in enumerate(mirrored) if a < b]
    never = [names[label] for label, partner in enumerate(mirrored) if partner == NEVER]
    if len(never) == len(names):
        return ["horizontal flip: mirrors no class; --flip_pairs FILE can name those that may be mirrored"]
    lines = [f"horizontal flip: swaps {_first(pairs)}" if pairs else "horizontal flip: swaps no classes"]
    if never:
        lines.append(f"horizontal flip: never mirrors {_first(never)}")
    change = "--flip_pairs FILE or --no_flip changes this"
    return [*lines, f"horizontal flip: all other classes keep their labels; {change}"]


def _first(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f", and {more} more" if more > 0 else "")


def _with_directions(name: str, mirrored: bool = False) -> str:
    """The name with each direction in its one spelling, or with the opposite direction instead."""

    def spell(match: re.Match) -> str:
        word = match.group()
        direction = re.sub("^(counter|anti)[-_ ]?", "counter", word.lower())
        direction = _OPPOSITE[direction] if mirrored else direction
        if word.isupper():
            return direction.upper()
        return direction.capitalize() if word[0].isupper() else direction

    return _DIRECTION.sub(spell, name)


def _split_pair(line: str, label_of: Mapping[str, int], place: str) -> list[str]:
    """The one or two class names in a line of `--flip_pairs`; `place` begins an error's message."""
    if "\t" in line:
        names = [name.strip() for name in line.split("\t") if name.strip()]
        for name in names:
            if name not in label_of:
                raise UserError(f"{place}: '{printable(name)}' is not a class in category.txt")
        if len(names) > 2:
            raise UserError(f"{place}: has {len(names)} names; one or two belong there")
        return names
    line = line.strip()
    readings = [[line]] if line in label_of else []
    for name in label_of:
        rest = line.removeprefix(name)
        if rest != line and rest[:1].isspace() and rest.strip() in label_of:
            readings.append([name, rest.strip()])
    if not readings:
        raise UserError(
            f"{place}: '{printable(line)}' is not a class in category.txt, nor two of them; a tab between two "
            "names decides where the first one ends"
        )
    if len(readings) > 1:
        raise UserError(
            f"{place}: '{printable(line)}' can be read in {len(readings)} ways; a tab between the two names "
            "decides, or one after the name if it is a single one"
        )
    return readings[0]
