"""Where each data set's categories, lists and frames lie below `--root_path`.

The layout is that of TRN-pytorch and of the GST authors' code:

    <root_path>/<dataset>/category.txt                  one class name a line; its line is its label
    <root_path>/<dataset>/train_videofolder.txt         folder  frames  label
    <root_path>/<dataset>/val_videofolder.txt
    <root_path>/<dataset>/<frames>/<folder>/00001.jpg   frames are numbered from 1
"""

import re
import unicodedata
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from utils.cli import UserError, shown
from utils.files import read_text

# dataset name -> (folder of the frame folders, file name of a frame)
LAYOUTS = {
    "somethingv1": ("20bn-something-something-v1", "{:05d}.jpg"),
    "somethingv2": ("20bn-something-something-v2-frames", "{:06d}.jpg"),
    "diving48": ("frames", "{:05d}.jpg"),
}

# TRN-pytorch's file names, then the GST authors'. Fields may be separated by spaces or tabs in both.
TRAIN_LISTS = ("train_videofolder.txt", "train.txt")
VAL_LISTS = ("val_videofolder.txt", "valid.txt")

# Class names whose order is known: Something-Something's as in the released checkpoints, and Diving48's
# as in its vocabulary.
CATEGORIES = Path(__file__).resolve().parent / "categories"

# As published: in a shorter video nothing moves.
MIN_FRAMES = 3
# What a line of a list may hold: bytes of a folder's path (Linux' PATH_MAX), digits of a number.
MAX_NAME = 4096
MAX_DIGITS = 9

# Words, also in names_joined_by_underscores. "Pulling it right out" says how, not where to.
_DIRECTION = re.compile(r"(?<![^\W_])(left|right)(?![^\W_])(?! out\b)", re.IGNORECASE)


class DatasetPaths(NamedTuple):
    """What `return_dataset` finds, in the order of TRN-pytorch's tuple."""

    categories: list[str]
    train_list: Path | None
    val_list: Path
    root_data: Path
    prefix: str


def return_dataset(
    dataset: str,
    root_path: str | Path,
    train_list: str | None = None,
    val_list: str | None = None,
    image_tmpl: str | None = None,
    for_training: bool = True,
) -> DatasetPaths:
    """Find a data set's files.

    Args:
        dataset: a key of `LAYOUTS`.
        root_path: the folder that holds a folder for each data set.
        train_list: the training list, instead of the one in the data set's folder.
        val_list: the validation list, likewise.
        image_tmpl: the file name of a frame, such as `{:05d}.jpg`, instead of the data set's own.
        for_training: whether the training list is needed; it is not looked for otherwise.

    Raises:
        UserError: something is not there, is ambiguous or cannot be read.
    """
    folder = Path(root_path) / dataset
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --root_path must name the folder that holds '{dataset}'")
    frames, template = LAYOUTS[dataset]
    if not (folder / frames).is_dir():
        raise UserError(f"{folder / frames}: no such folder; the frame folders of {dataset} belong there")
    return DatasetPaths(
        categories=read_categories(folder / "category.txt"),
        train_list=_find_list(folder, TRAIN_LISTS, "--train_list", train_list) if for_training else None,
        val_list=_find_list(folder, VAL_LISTS, "--val_list", val_list),
        root_data=folder / frames,
        prefix=check_template(image_tmpl) if image_tmpl else template,
    )


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
            raise UserError(f"{path}, line {number}: '{shown(name)}' is already on line {first_seen[name]}")
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


def check_folder(name: str) -> str:
    """Check that the name of a video can stand in a list, and is a folder's inside the frames' folder.

    Raises:
        ValueError: it cannot, or is not; the message says why.
    """
    if any(part in ("", ".", "..") for part in check_name(name).split("/")):
        raise ValueError("the name is not that of a folder inside the frames' folder")
    return name


def check_template(template: str, suffixes: tuple[str, ...] = ()) -> str:
    """Check the file name of a frame, such as `{:05d}.jpg`, and return it.

    Args:
        template: a name, not a path, with one field for the frame's number: `{}`, `{:d}` or, filled up with
            zeros, `{:05d}`. Not a hidden file's.
        suffixes: the name must end in one of these; empty if any ending will do.

    Raises:
        UserError: it is something else.
    """
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
        is_right = len(fields) == 1 and fields[0][1] in ("", "0") and not fields[0][3]
        # Other formats write some numbers alike, as {:.1g} does with 10 and 11.
        is_right = is_right and re.fullmatch("(0[1-9])?d?", fields[0][2], re.ASCII)
    except ValueError:  # a brace without its other half
        is_right = False
    if not is_right or template != Path(template).name or template.startswith("."):
        raise UserError(
            f"--image_tmpl {template}: must be a file name that holds one number, as '{{:05d}}.jpg' does"
        )
    if suffixes and not template.endswith(suffixes):
        raise UserError(f"--image_tmpl {template}: must end in {' or '.join(suffixes)}")
    return template


def flip_label_map(categories: list[str]) -> dict[int, int]:
    """Which labels change into which when a clip is mirrored, from the class names alone.

    Exchanging the words left and right in a name gives the mirrored class, if there is one.
    Published code wires in label numbers instead (86/87, 93/94 and 166/167 for Something-v1),
    which mislabel mirrored clips for any other order of the classes.

    Returns:
        `{label: label of the mirrored class}`, each pair in both directions; classes that
        mirroring does not change are not in it.
    """
    label_of = {name: label for label, name in enumerate(categories)}
    swaps = {label: label_of.get(_mirrored(name), label) for name, label in label_of.items()}
    return {label: partner for label, partner in swaps.items() if partner != label}


def unflippable_labels(categories: list[str]) -> list[int]:
    """The labels whose clips must never be mirrored, because no class describes the result.

    These are the classes with a direction in their name but no partner. Where no name has
    a letter in it (a list of numbers), nothing says what mirroring would do: all of them.
    """
    if not any(character.isalpha() for name in categories for character in name):
        return list(range(len(categories)))
    partners = flip_label_map(categories)
    return [
        label for label, name in enumerate(categories) if label not in partners and _mirrored(name) != name
    ]


def describe_flips(categories: list[str]) -> list[str]:
    """Lines for the log: what mirroring a clip does with its label."""
    pairs = ", ".join(f"{a} and {b}" for a, b in flip_label_map(categories).items() if a < b)
    lines = [f"horizontal flip: swaps the labels {pairs}" if pairs else "horizontal flip: swaps no labels"]
    if never := unflippable_labels(categories):
        lines.append(f"horizontal flip: not for these labels, which have no mirrored class: {never}")
    return lines


def _mirrored(name: str) -> str:
    def other(match: re.Match) -> str:
        word = match.group()
        swapped = "right" if word.lower() == "left" else "left"
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    return _DIRECTION.sub(other, name)


def _find_list(folder: Path, names: tuple[str, ...], option: str, given: str | None) -> Path:
    if given:
        return Path(given)
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: has neither {' nor '.join(names)}; give {option} FILE")
    if len(found) > 1:
        raise UserError(f"{folder}: has both {' and '.join(names)}; say which with {option} FILE")
    return found[0]
