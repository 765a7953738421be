"""Class names: their order, and which classes mirror each other."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.cli import UserError, first_ten, printable
from utils.files import read_text

# Class names: Something-Something's in the order of the released checkpoints, Diving48's in the order of its
# vocabulary.
CATEGORIES = Path(__file__).resolve().parent / "categories"
# Whole words, also in names_joined_by_underscores. "right" in "pulling it right out" is not a direction.
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
NEVER = -1  # mirrored label of a class whose clips are never mirrored


def read_categories(path: Path) -> list[str]:
    """Read class names, one per line. The first line is label 0."""
    text = read_text(path, "expected class names, one per line").rstrip()
    names = [line.strip() for line in text.split("\n")]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            what = f"'{printable(name)}' is repeated" if name else "blank"
            raise UserError(f"{path}, line {number}: {what}; each line must be a different class name")
    return names


def released_categories() -> list[str]:
    """Something-Something's class names, in the order of the checkpoints that the authors released."""
    return read_categories(CATEGORIES / "something.txt")


def match_categories(names: list[str], others: list[str]) -> list[int] | None:
    """Match two lists of the same classes in different orders.

    Brackets are ignored, because some lists of Something-Something have `[something]` for `something`.

    Returns:
        For each of `names`, its index in `others`; None if the classes differ.
    """
    if names == others:
        return list(range(len(names)))
    index_of = {without_brackets(name): index for index, name in enumerate(others)}
    plain = [without_brackets(name) for name in names]
    if len(plain) != len(others) or sorted(plain) != sorted(index_of):
        return None
    return [index_of[name] for name in plain]


def without_brackets(name: str) -> str:
    """Remove square brackets from a class name."""
    return name.replace("[", "").replace("]", "")


def describe_order(categories: list[str]) -> str:
    """Describe Something-Something's or Diving48's classes in an unusual order; empty otherwise."""
    orders = {
        "something.txt": "Something-Something's, but not in the order of the released checkpoints",
        "diving48.txt": "Diving48's, but not in the order of its vocabulary",
    }
    for file, order in orders.items():
        permutation = match_categories(categories, read_categories(CATEGORIES / file))
        if permutation is None or permutation == sorted(permutation):
            continue
        same = sum(index == label for label, index in enumerate(permutation))
        return f"the classes are {order} ({same} of {len(categories)} in the same place)"
    return ""


def check_name(name: str) -> str:
    """Check that the name of a class or video is unchanged after it is written as a line and read back.

    Otherwise raise a ValueError with the reason.
    """
    has_odd = any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
    if not name or name != name.strip() or has_odd or name.startswith("\ufeff"):
        raise ValueError("the name is blank, begins or ends with whitespace, or has a control character")
    return name


def mirrored_labels(categories: list[str], flip_pairs: Mapping[int, int] | None = None) -> list[int]:
    """Find the label of each class's mirror image from the class names.

    Swapping left and right in a name, or clockwise and counterclockwise (anticlockwise), gives the mirrored
    class. Published code lists label numbers instead (86/87, 93/94 and 166/167 for Something-v1), which are
    wrong for any other order of the classes.

    Args:
        categories: class names.
        flip_pairs: `{label: mirrored label or NEVER}` from `read_flip_pairs`; overrides the names.

    Returns:
        The mirrored label of each label. It is the same label if the name has no direction, and `NEVER` if
        no class or more than one class has the mirrored name. If no name contains a letter (a list of
        numbers), it is `NEVER` for all labels that are not in `flip_pairs`.
    """
    flip_pairs = flip_pairs or {}
    if not any(character.isalpha() for name in categories for character in name):
        flip_pairs = dict.fromkeys(range(len(categories)), NEVER) | flip_pairs
    labels_of: dict[str, list[int]] = {}
    for label, name in enumerate(categories):
        if label not in flip_pairs:
            labels_of.setdefault(_with_directions(name), []).append(label)
    mirrored = []
    for label, name in enumerate(categories):
        same = labels_of.get(_with_directions(name), [])
        partners = labels_of.get(_with_directions(name, mirrored=True), [])
        is_unique = len(same) == len(partners) == 1
        mirrored.append(flip_pairs.get(label, partners[0] if is_unique else NEVER))
    return mirrored


def read_flip_pairs(path: str | Path, categories: list[str]) -> dict[int, int]:
    """Read classes that mirror each other but do not have left and right in their names.

    Args:
        path: file with two names per line, separated by a tab. The same name twice: mirroring does not change
            the class. A single name: the class is never mirrored.
        categories: class names.

    Returns:
        `{label: mirrored label or NEVER}` for the classes in the file.
    """
    label_of = {name: label for label, name in enumerate(categories)}
    pairs: dict[int, int] = {}
    text = read_text(path, "expected the names of two mirrored classes per line")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        names = [name.strip() for name in line.split("\t") if name.strip()]
        if unknown := [name for name in names if name not in label_of]:
            raise UserError(f"{place}: '{printable(unknown[0])}' is not a class (a tab separates two names)")
        labels = [label_of[name] for name in names]
        if len(labels) > 2 or not pairs.keys().isdisjoint(labels):
            raise UserError(f"{place}: has more than two names, or one from an earlier line")
        pairs |= {labels[0]: labels[1], labels[1]: labels[0]} if len(labels) == 2 else {labels[0]: NEVER}
    return pairs


def describe_flips(categories: list[str], mirrored: list[int]) -> list[str]:
    """Describe for the log how mirroring a clip changes its label."""
    names = [f"'{printable(name)}'" for name in categories]
    pairs = [f"{names[a]} <-> {names[b]}" for a, b in enumerate(mirrored) if a < b]
    never = [names[label] for label, partner in enumerate(mirrored) if partner == NEVER]
    if len(never) == len(names):
        return ["horizontal flip: off for all classes; --flip_pairs FILE can enable it"]
    lines = [f"horizontal flip: swaps {first_ten(pairs)}" if pairs else "horizontal flip: swaps no classes"]
    if never:
        lines.append(f"horizontal flip: never mirrors {first_ten(never)}")
    change = "--flip_pairs FILE or --no_flip changes this"
    return [*lines, f"horizontal flip: all other classes keep their labels; {change}"]


def describe_balance(categories: list[str], labels: np.ndarray, val_labels: np.ndarray) -> tuple[str, str]:
    """Describe how many clips the classes have, from the labels of the training and validation clips.

    Returns:
        A line for the log with the share of the largest class, and a warning if there is only one class or a
        class has no training clips (empty otherwise).
    """
    names = [f"'{printable(name)}'" for name in categories]
    counts = np.bincount(labels, minlength=len(names))
    largest = int(counts.argmax())
    share, val_share = (f"{100 * np.mean(values == largest):.1f} %" for values in (labels, val_labels))
    line = f"largest class: {names[largest]}, {share} of the training and {val_share} of the validation clips"
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if len(names) - len(missing) == 1:
        return line, f"warning: all training clips have the same class, {names[largest]}"
    return line, f"warning: no training clips of {first_ten(missing)}" if missing else ""


def _with_directions(name: str, mirrored: bool = False) -> str:
    """Normalise the spelling of the directions in a name; with `mirrored`, replace them by the opposites."""

    def spell(match: re.Match) -> str:
        word = match.group()
        direction = re.sub("^(counter|anti)[-_ ]?", "counter", word.lower())
        direction = _OPPOSITE[direction] if mirrored else direction
        if word.isupper():
            return direction.upper()
        return direction.capitalize() if word[0].isupper() else direction

    return _DIRECTION.sub(spell, name)


def remap_labels(labels: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """Map each label to `permutation[label]`, for example a checkpoint's class order; -1 does not change.

    Changing the labels instead of the model keeps the scores of the model bit for bit.
    """
    return np.where(labels < 0, labels, permutation[labels])
