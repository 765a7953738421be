"""Read annotations: the official files of a data set, or class folders or a CSV for your own data.

Every reader returns class names in the order of their labels, and the videos as `VideoRecord`s. Only the
annotations of Diving48 contain frame counts.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from classes import check_name, read_categories
from datasets_video import TRAIN_LISTS, VAL_LISTS, VideoRecord, check_folder
from utils.cli import UserError, first_ten, printable
from utils.files import read_text

TRAIN_LIST, VAL_LIST, TEST_LIST = TRAIN_LISTS[0], VAL_LISTS[0], "test_videofolder.txt"

# List name -> its videos.
Lists = dict[str, list[VideoRecord]]

_SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN_LIST),
    **dict.fromkeys(("val", "valid", "validation"), VAL_LIST),
    "test": TEST_LIST,
}


def read_annotations(dataset: str, folder: Path) -> tuple[list[str], Lists]:
    """Read a data set's annotation files, named as on its download page.

    Args:
        dataset: a key of `datasets_video.LAYOUTS`.
        folder: the folder of the files.

    Returns:
        The class names, and the videos of each list.

    Raises:
        UserError: a file is missing or damaged.
    """
    if dataset == "somethingv2":
        return _read_v2(folder)
    if dataset == "diving48":
        return _read_diving48(folder)
    return _read_v1(folder, "jester-v1" if dataset == "jester" else "something-something-v1")


def _read_v1(folder: Path, prefix: str) -> tuple[list[str], Lists]:
    """Read Something-Something v1 or Jester. The classes are sorted, as in TRN-pytorch."""

    def parse(line: str) -> tuple[str, str, int]:
        name, _, category = line.rstrip().partition(";")
        return name, category, 0

    categories = sorted(read_categories(folder / f"{prefix}-labels.csv"))
    return categories, _read_lists(folder / f"{prefix}-{{}}.csv", categories, parse)


def _read_v2(folder: Path) -> tuple[list[str], Lists]:
    """Read Something-Something v2, whose files exist under three name patterns."""

    def parse(entry: dict[str, Any]) -> tuple[str, str, int]:
        return str(entry["id"]), entry.get("template", "").replace("[", "").replace("]", ""), 0

    names = ("something-something-v2-{}.json", "labels/{}.json", "{}.json")
    pattern = next((name for name in names if (folder / name.format("labels")).exists()), None)
    if pattern is None:
        missing = " nor ".join(name.format("labels") for name in names)
        raise UserError(f"--annotations {folder}: has neither {missing}")
    labels = folder / pattern.format("labels")
    with _damage(labels):
        label_of = {name: int(label) for name, label in json.loads(_read(labels)).items()}
        if sorted(label_of.values()) != list(range(len(label_of))):
            raise ValueError(f"the labels must be 0 to {len(label_of) - 1}, each once")
    categories = sorted(label_of, key=label_of.get)
    return categories, _read_lists(folder / pattern, categories, parse)


def _read_diving48(folder: Path) -> tuple[list[str], Lists]:
    """Read Diving48 version 2. Its 'test' part has labels and is the validation list."""

    def parse(entry: dict[str, Any]) -> tuple[str, str, int]:
        return entry["vid_name"], categories[entry["label"]], int(entry["end_frame"])

    vocabulary = folder / "Diving48_vocab.json"
    with _damage(vocabulary):
        categories = ["_".join(parts) for parts in json.loads(_read(vocabulary))]
    parts = {TRAIN_LIST: "train", VAL_LIST: "test"}
    return categories, _read_lists(folder / "Diving48_V2_{}.json", categories, parse, parts)


_PARTS = {TRAIN_LIST: "train", VAL_LIST: "validation", TEST_LIST: "test"}


def _read_lists(
    pattern: Path,
    categories: list[str],
    parse: Callable[[Any], tuple[str, str, int]],
    parts: dict[str, str] = _PARTS,
) -> Lists:
    """Read the videos of a data set.

    Args:
        pattern: path of the JSON or text files. The test list has no labels, and may be missing.
        categories: class names.
        parse: turns a row into a video's name, the name of its class and its number of frames (0 if unknown).
        parts: list name -> what replaces `{}` in its file name.
    """
    label_of = {name: label for label, name in enumerate(categories)}
    lists: Lists = {}
    for list_name, part in parts.items():
        path = pattern.with_name(pattern.name.format(part))
        is_test = list_name == TEST_LIST
        if is_test and not path.exists():
            continue
        with _damage(path):
            text = _read(path)
            rows = json.loads(text) if path.suffix == ".json" else text.rstrip().split("\n")
        lists[list_name] = []
        for number, row in enumerate(rows, start=1):
            with _damage(f"{path}, row {number}"):
                name, category, num_frames = parse(row)
                label = -1 if is_test else label_of[category]
                lists[list_name].append(VideoRecord(check_folder(name), num_frames, label))
    return lists


@contextmanager
def _damage(where: object) -> Iterator[None]:
    """Report the file, or its row, that is damaged or does not match the other files."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        kind = "unknown or missing" if isinstance(error, KeyError) else "is damaged:"
        raise UserError(f"{where}: {kind} {printable(error)}") from None


def _read(path: Path) -> str:
    return read_text(path, "expected an annotation file")


class OwnData(NamedTuple):
    """The videos of the user's own data.

    Attributes:
        categories: class names in the order of their labels.
        records: videos.
        list_of: path of a video -> name of its list; empty if the split is to be drawn.
        group_of: path of a video -> its group, which training and validation should not share.
    """

    categories: list[str]
    records: list[VideoRecord]
    list_of: dict[str, str]
    group_of: dict[str, str]


def read_class_folders(top: Path, is_clip: Callable[[Path], bool], category_file: Path) -> OwnData:
    """Find videos in one folder per class, the convention of UCF101 and torchvision.

    Args:
        top: the folder of `<class>/<video>`. Hidden files are ignored.
        is_clip: whether a path is a frame folder or a video file.
        category_file: determines the order of the classes if it exists; otherwise they are sorted.

    Raises:
        UserError: there are no class folders, one has no videos, or a name cannot be used in a list.
    """
    rows: dict[str, tuple[str, dict[str, str]]] = {}
    folders = [path for path in _visible(top) if path.is_dir()]
    if not folders:
        raise UserError(f"{top}: has no class folders (expected {top}/CLASS/VIDEO or --annotations FILE.csv)")
    for folder in folders:
        clips = [path for path in _visible(folder) if is_clip(path)]
        if not clips:
            raise UserError(
                f"{printable(folder)}: has no videos (expected {top}/CLASS/VIDEO, without train or "
                "val in between; for your own split, use --annotations FILE.csv)"
            )
        for path in clips:
            # a.mp4 and a.webm become one row, which `VideoFiles.path` refuses.
            name = f"{folder.name}/{path.name if path.is_dir() else path.stem}"
            rows[name] = printable(path), {"video": name, "label": folder.name}
    return _own_data(list(rows.values()), top, category_file)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_csv(
    path: Path, top: Path, suffixes: Collection[str], category_file: Path, group_column: str | None = None
) -> OwnData:
    """Read a CSV with the columns `video` and `label`, and optionally `split` and `group`.

    Args:
        path: the CSV. Commas, semicolons or tabs separate its columns.
        top: the folder of the videos; the CSV's paths may be absolute.
        suffixes: suffixes of video files, which are removed from the names.
        category_file: see `read_class_folders`.
        group_column: the column of the groups (default: `group`, if it exists).

    Raises:
        UserError: the file cannot be read, or a line is wrong.
    """
    rows = _read_rows(path)
    columns = rows[0][1]
    if group_column and group_column.lower() not in columns:
        raise UserError(f"--group_column {group_column}: {path} has only {', '.join(columns)}")
    for _, row in rows:
        row["video"] = _video_name(row["video"], top, suffixes)
        row["group"] = row.get((group_column or "group").lower(), "")
    data = _own_data(rows, path, category_file)
    if len({TRAIN_LIST, VAL_LIST}.intersection(data.list_of.values())) == 1:
        raise UserError(f"{path}: needs lines with the split 'train' and lines with 'val'")
    return data


def _own_data(rows: list[tuple[str, dict[str, str]]], source: Path, category_file: Path) -> OwnData:
    """Check rows of (where, columns): `video`, `label`, optionally `split` and `group`."""
    categories = _order_classes({row["label"] for _, row in rows} - {""}, category_file, source)
    records, list_of, group_of = [], {}, {}
    for where, row in rows:
        name, label, split = row["video"], row["label"], row.get("split", "train")
        _check(check_folder, name, where)
        if name in list_of:
            raise UserError(f"{where}: '{printable(name)}' is already on an earlier line")
        if split not in _SPLITS:
            raise UserError(f"{where}: '{printable(split)}' is not a split ({', '.join(_SPLITS)})")
        list_of[name] = _SPLITS[split]
        if not label and list_of[name] != TEST_LIST:
            raise UserError(f"{where}: '{printable(name)}' has no label")
        if group := row.get("group"):
            group_of[name] = group
        records.append(VideoRecord(name, label=categories.index(label) if label else -1))
    return OwnData(categories, records, list_of if "split" in rows[0][1] else {}, group_of)


def _check(check: Callable[[str], str], name: str, where: object) -> None:
    try:
        check(name)
    except ValueError as error:
        raise UserError(f"{where}: {error} ('{printable(name)}')") from None


def _read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Read a CSV as pairs: location (for messages) and `{lower-case column: value}`."""
    text = _read(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count), restval="")
    rows = []
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        if not {"video", "label"}.issubset(reader.fieldnames):
            raise UserError(f"{path}, line 1: must name the columns, such as video,label,split")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise UserError(f"{where}: has more fields than the header")
            rows.append((where, {column: value.strip() for column, value in row.items()}))
    except csv.Error as error:  # for example after a quote that is never closed
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path}: is empty (expected the header video,label and a line for each video)")
    return rows


def _video_name(text: str, top: Path, suffixes: Collection[str]) -> str:
    """The name of a video in the lists, from its path in a CSV: relative to `top`, without suffix."""
    path = PurePosixPath(text.replace("\\", "/"))
    for folder in (top.absolute(), top.resolve()):
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
    return str(path.with_suffix("") if path.suffix.lower() in suffixes else path)


def group_by_name(records: Iterable[VideoRecord], pattern: re.Pattern[str]) -> dict[str, str]:
    """Group videos by the part of their names that matches: the pattern's first group, or all of it."""
    group_of = {}
    for record in records:
        match = pattern.search(record.path)
        if not match:
            raise UserError(f"--group {pattern.pattern}: does not match '{printable(record.path)}'")
        group_of[record.path] = match[1 if pattern.groups else 0] or ""
    return group_of


def _order_classes(names: set[str], file: Path, source: Path) -> list[str]:
    """Order the user's own classes as in `file` if it exists; otherwise sort them."""
    for name in names:
        _check(check_name, name, source)
    if names and not file.exists():
        return sorted(names)
    categories = read_categories(file)
    if unknown := sorted(names.difference(categories)):
        raise UserError(
            f"{source}: the class '{printable(unknown[0])}' is not in {file}, which sets the order; "
            "add it there, or move that file away"
        )
    return categories


def make_lists(data: OwnData, val_fraction: float, seed: int) -> Lists:
    """Split the user's own data into lists.

    Args:
        data: the videos.
        val_fraction: share of each class to draw for validation, in whole groups, if there is no split.
        seed: seed of the draw, which otherwise depends only on the names of videos and groups.

    Raises:
        UserError: no split can be drawn.
    """
    list_of = data.list_of or _draw(data, val_fraction, seed)
    lists: Lists = {}
    for name in (TRAIN_LIST, VAL_LIST, TEST_LIST):
        records = [record for record in data.records if list_of[record.path] == name]
        if any(record.label == -1 for record in records):  # a list has labels for all videos or for none
            records = [record._replace(label=-1) for record in records]
        if records:
            lists[name] = records
    if not data.list_of and VAL_LIST not in lists:
        raise UserError("no class has two groups (or videos) to draw training and validation from")
    return lists


def _draw(data: OwnData, val_fraction: float, seed: int) -> dict[str, str]:
    """Draw groups for validation until each class has its share. A video without a group counts as one."""
    names = [data.group_of.get(record.path, record.path) for record in data.records]
    groups = {name: Counter() for name in names}  # group -> clips of each class
    for name, record in zip(names, data.records, strict=True):
        groups[name][record.label] += 1
    total = Counter(record.label for record in data.records)
    goal = {label: min(max(round(n * val_fraction), 1), n - 1) for label, n in total.items()}
    val: Counter[int] = Counter()
    val_groups = set()

    def draw(name: str) -> None:
        val_groups.add(name)
        val.update(groups[name])

    def leaves_training_clips(name: str) -> bool:
        return all(val[label] + n < total[label] for label, n in groups[name].items())

    # Ordered by hashes instead of at random: if a video is added, almost all others stay in their lists.
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    for name in order:
        distance = sum(abs(goal[label] - val[label]) for label in groups[name])
        distance_after = sum(abs(goal[label] - val[label] - n) for label, n in groups[name].items())
        if distance_after < distance and leaves_training_clips(name):
            draw(name)
    # A class with few, large groups may have no validation clips yet: draw its smallest group.
    for label in sorted(total):
        choices = [name for name in order if groups[name][label] and leaves_training_clips(name)]
        if not val[label] and choices:
            draw(min(choices, key=lambda name: groups[name].total()))
    pairs = zip(data.records, names, strict=True)
    return {record.path: VAL_LIST if name in val_groups else TRAIN_LIST for record, name in pairs}


def describe_split(data: OwnData, lists: Lists) -> list[str]:
    """Warnings for the user's own data: no clips of a class, videos of one recording in both lists."""
    notes = ["there is only one class"] if len(data.categories) == 1 else []
    train, val = (lists.get(name, []) for name in (TRAIN_LIST, VAL_LIST))
    for list_name, records in ((TRAIN_LIST, train), (VAL_LIST, val)):
        labels = {record.label for record in records}
        missing = [printable(name) for label, name in enumerate(data.categories) if label not in labels]
        if missing and labels:
            notes.append(f"{list_name} has no clips of: {first_ten(missing)}")
    if data.group_of:
        return notes
    # Names such as run_g01_c03 suggest several clips of recording g01.
    last_number = re.compile(r"\d+\D*$")
    in_train, in_val = ([last_number.sub("", record.path) for record in records] for records in (train, val))
    shared = set(in_train) & set(in_val)
    if len(shared) > len(data.categories):
        count = sum(name in shared for name in in_val)
        notes.append(
            f"{count} of {len(val)} validation clips have names that begin like those of training clips, for "
            f"example '{printable(min(shared))}'; if clips are from the same recordings, use --group REGEX"
        )
    return notes
