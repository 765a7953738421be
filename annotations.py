"""Read annotations: the official files of a data set, or class folders or a CSV for own data.

Every reader returns class names in the order of their labels, and the videos as `VideoRecord`s. Only the
annotations of Diving48 have numbers of frames.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from classes import check_name, read_categories
from datasets_video import TRAIN_LISTS, VAL_LISTS, VideoRecord, check_folder
from utils.cli import UserError, printable
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
    """Read the annotation files of a data set, under the names of its download page.

    Args:
        dataset: a key of `datasets_video.LAYOUTS`.
        folder: the folder of the files.

    Returns:
        The class names, and the videos of each list. No video appears twice in a list.

    Raises:
        UserError: a file is missing or damaged.
    """
    readers = {
        "somethingv1": partial(_read_v1, "something-something-v1"),
        "somethingv2": _read_v2,
        "diving48": _read_diving48,
        "jester": partial(_read_v1, "jester-v1"),
    }
    return readers[dataset](folder)


def _read_v1(prefix: str, folder: Path) -> tuple[list[str], Lists]:
    """Read Something-Something v1 or Jester. The classes are sorted, as in TRN-pytorch."""

    def parse(line: str) -> tuple[str, str, int]:
        name, _, category = line.rstrip().partition(";")
        return name, category, 0

    categories = sorted(read_categories(folder / f"{prefix}-labels.csv"))
    return categories, _read_lists(_part_files(folder / f"{prefix}-{{}}.csv"), categories, parse)


def _read_v2(folder: Path) -> tuple[list[str], Lists]:
    """Read Something-Something v2, whose files have been released under two kinds of names."""

    def parse(entry: Mapping[str, str]) -> tuple[str, str, int]:
        category = entry.get("template", "").replace("[", "").replace("]", "")
        return str(entry["id"]), category, 0

    names = ("something-something-v2-{}.json", "labels/{}.json", "{}.json")
    pattern = next((name for name in names if (folder / name.format("labels")).exists()), None)
    if pattern is None:
        missing = " nor ".join(name.format("labels") for name in names)
        raise UserError(f"--annotations {folder}: has no {missing}")
    labels = folder / pattern.format("labels")
    with _damage(labels):
        label_of = {name: int(label) for name, label in json.loads(_read(labels)).items()}
        categories = sorted(label_of, key=label_of.get)
        if [label_of[name] for name in categories] != list(range(len(categories))):
            raise ValueError(f"the labels must be 0 to {len(categories) - 1}, each once")
    return categories, _read_lists(_part_files(folder / pattern), categories, parse)


def _read_diving48(folder: Path) -> tuple[list[str], Lists]:
    """Read Diving48 version 2. Its 'test' part has labels and is the validation list."""

    def parse(entry: Mapping[str, Any]) -> tuple[str, str, int]:
        if entry["start_frame"] != 0:
            raise ValueError("starts later than at frame 0, which a list cannot express")
        return str(entry["vid_name"]), categories[entry["label"]], int(entry["end_frame"])

    vocabulary = folder / "Diving48_vocab.json"
    with _damage(vocabulary):
        categories = ["_".join(parts) for parts in json.loads(_read(vocabulary))]
    files = {TRAIN_LIST: folder / "Diving48_V2_train.json", VAL_LIST: folder / "Diving48_V2_test.json"}
    return categories, _read_lists(files, categories, parse)


def _part_files(pattern: Path) -> dict[str, Path]:
    parts = {TRAIN_LIST: "train", VAL_LIST: "validation", TEST_LIST: "test"}
    return {name: pattern.with_name(pattern.name.format(part)) for name, part in parts.items()}


def _read_lists(
    files: Mapping[str, Path], categories: list[str], parse: Callable[[Any], tuple[str, str, int]]
) -> Lists:
    """Read the videos of a data set.

    Args:
        files: list name -> its JSON or text file. The test list has no labels, and may be missing.
        categories: class names.
        parse: turns a row into a video's name, the name of its class and its number of frames (0 if unknown).
    """
    label_of = {name: label for label, name in enumerate(categories)}
    lists = {}
    for list_name, path in files.items():
        is_test = list_name == TEST_LIST
        if is_test and not path.exists():
            continue
        with _damage(path):
            text = _read(path)
            rows = json.loads(text) if path.suffix == ".json" else text.rstrip().split("\n")
        records: dict[str, VideoRecord] = {}
        for number, row in enumerate(rows, start=1):
            with _damage(f"{path}, row {number}"):
                name, category, num_frames = parse(row)
                label = -1 if is_test else label_of[category]
                if check_folder(name) in records:
                    raise ValueError(f"'{name}' occurs twice")
                records[name] = VideoRecord(name, num_frames, label)
        lists[list_name] = list(records.values())
    return lists


@contextmanager
def _damage(where: object) -> Iterator[None]:
    """Report the file, or its row, that is damaged or does not match the other files."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where}: unknown or missing {printable(error)}") from None
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: is damaged ({printable(error)})") from None


def _read(path: Path) -> str:
    return read_text(path, "it is part of the annotations")


class OwnData(NamedTuple):
    """The videos of own data.

    Attributes:
        categories: class names in the order of their labels.
        records: videos.
        list_of: path of a video -> name of its list; empty if the split is to be drawn.
        group_of: path of a video -> its group, which training and validation should not share.
        others: names of files and folders that are not videos.
    """

    categories: list[str]
    records: list[VideoRecord]
    list_of: dict[str, str]
    group_of: dict[str, str]
    others: list[str]


def read_class_folders(top: Path, is_clip: Callable[[Path], bool], category_file: Path) -> OwnData:
    """Find videos in one folder per class, the convention of UCF101 and torchvision.

    Args:
        top: the folder of `<class>/<video>`. Hidden files are ignored.
        is_clip: whether a path is a frame folder or a video file.
        category_file: determines the order of the classes if it exists; otherwise they are sorted.

    Raises:
        UserError: there are no class folders, one has no videos, or a name cannot be used in a list.
    """
    folders = [path for path in _visible(top) if path.is_dir()]
    if not folders:
        raise UserError(f"{top}: has no class folders (expected {top}/CLASS/VIDEO or --annotations FILE.csv)")
    categories = _order_classes((folder.name for folder in folders), category_file, top)
    records: dict[str, VideoRecord] = {}
    others = []
    for label, folder in ((categories.index(folder.name), folder) for folder in folders):
        paths = _visible(folder)
        clips = [path for path in paths if is_clip(path)]
        others += [f"{folder.name}/{path.name}" for path in paths if path not in clips]
        if not clips:
            raise UserError(
                f"{printable(folder)}: has no videos (expected {top}/CLASS/VIDEO, without train or "
                "val in between; for your own split, give --annotations FILE.csv)"
            )
        for path in clips:
            # Two files of one name become one record; counting its frames refuses it.
            name = f"{folder.name}/{path.name if path.is_dir() else path.stem}"
            _check(check_folder, name, printable(path))
            records[name] = VideoRecord(name, label=label)
    return OwnData(categories, list(records.values()), {}, {}, others)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _check(check: Callable[[str], str], name: str, where: object) -> None:
    try:
        check(name)
    except ValueError as error:
        raise UserError(f"{where}: {error} ('{printable(name)}')") from None


def read_csv(
    path: Path, top: Path, suffixes: Collection[str], category_file: Path, group_column: str | None = None
) -> OwnData:
    """Read a CSV with the columns `video` and `label`, and optionally `split` and `group`.

    Args:
        path: the CSV. Commas, semicolons or tabs separate its columns.
        top: the folder of the videos, which may precede their names.
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
    categories = _order_classes((row["label"] for _, row in rows), category_file, path)
    records, list_of, group_of = [], {}, {}
    for where, row in rows:
        name = _video_name(row["video"], top, suffixes)
        _check(check_folder, name, where)
        if name in list_of:
            raise UserError(f"{where}: '{printable(name)}' is already in another line")
        split = row.get("split", "train")
        if split not in _SPLITS:
            raise UserError(f"{where}: '{printable(split)}' is not a split ({', '.join(_SPLITS)})")
        list_of[name] = _SPLITS[split]
        if not row["label"] and list_of[name] != TEST_LIST:
            raise UserError(f"{where}: '{printable(name)}' has no label")
        if group := row.get((group_column or "group").lower()):
            group_of[name] = group
        records.append(VideoRecord(name, label=categories.index(row["label"]) if row["label"] else -1))
    if "split" not in columns:
        return OwnData(categories, records, {}, group_of, [])
    if len({TRAIN_LIST, VAL_LIST}.intersection(list_of.values())) == 1:
        raise UserError(f"{path}: needs lines with the split 'train' and lines with 'val'")
    return OwnData(categories, records, list_of, group_of, [])


def _read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV: the line for messages, and `{column in lower case: value}`."""
    text = _read(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text), delimiter=max(",;\t", key=header.count), restval="", strict=True
    )
    rows = []
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        if not {"video", "label"}.issubset(reader.fieldnames):
            raise UserError(
                f"{path}, line 1: must name the columns, such as video,label or video,label,split"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise UserError(f"{where}: has more fields than the header")
            rows.append((where, {column: value.strip() for column, value in row.items()}))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
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
    """Group videos by the part of their names that matches: the pattern's first group, or all of it.

    Raises:
        UserError: a name does not match.
    """
    group_of = {}
    for record in records:
        match = pattern.search(record.path)
        if not match:
            raise UserError(f"--group {pattern.pattern}: does not match '{printable(record.path)}'")
        group_of[record.path] = match[1 if pattern.groups else 0] or ""
    return group_of


def _order_classes(names: Iterable[str], file: Path, source: Path) -> list[str]:
    """Order the classes of own data as in `file` if it exists; otherwise sort them."""
    own_names = sorted(set(names) - {""})
    for name in own_names:
        _check(check_name, name, source)
    if own_names and not file.exists():
        return own_names
    categories = read_categories(file)
    for name in own_names:
        if name not in categories:
            raise UserError(
                f"{source}: the class '{printable(name)}' is not in {file}, whose order is kept; "
                "add it there, or move that file away"
            )
    return categories


def make_lists(data: OwnData, val_fraction: float, seed: int) -> Lists:
    """Distribute own data to lists.

    Args:
        data: the videos.
        val_fraction: share of each class to draw for validation, in whole groups, if there is no split.
        seed: seed of the draw, which otherwise depends only on the names of videos and groups.

    Raises:
        UserError: no split can be drawn, or a list without labels cannot contain a test video's name.
    """
    list_of = data.list_of or _draw(data, val_fraction, seed)
    lists: Lists = {}
    for name in (TRAIN_LIST, VAL_LIST, TEST_LIST):
        records = [record for record in data.records if list_of[record.path] == name]
        if any(record.label == -1 for record in records):  # a list has labels for all videos or for none
            records = [record._replace(label=-1) for record in records]
        for record in records:
            if record.label == -1 and re.search(r"\s[0-9]+$", record.path):
                raise UserError(
                    f"'{printable(record.path)}' ends in a number, which a list without labels would confuse "
                    "with the number of frames; rename the video, or label all test videos"
                )
        if records:
            lists[name] = records
    if not data.list_of and VAL_LIST not in lists:
        raise UserError("no class has two groups (or videos) to draw training and validation from")
    return lists


def _draw(data: OwnData, val_fraction: float, seed: int) -> dict[str, str]:
    """Draw groups for validation until each class has its share. A video without a group is a group."""
    groups: dict[str, list[str]] = {}
    for record in data.records:
        groups.setdefault(data.group_of.get(record.path, record.path), []).append(record.path)
    label_of = {record.path: record.label for record in data.records}
    counts = {name: Counter(label_of[path] for path in paths) for name, paths in groups.items()}
    total = Counter(label_of.values())
    goal = {label: min(max(round(n * val_fraction), 1), n - 1) for label, n in total.items()}
    val_counts: Counter[int] = Counter()
    val_groups = []

    def leaves_training_clips(name: str) -> bool:
        return all(val_counts[label] + n < total[label] for label, n in counts[name].items())

    def draw(name: str) -> None:
        val_groups.append(name)
        val_counts.update(counts[name])

    # Ordered by hashes instead of at random: if a video is added, almost all others stay in their lists.
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    for name in order:
        distance = sum(abs(goal[label] - val_counts[label]) for label in counts[name])
        distance_after = sum(abs(goal[label] - val_counts[label] - n) for label, n in counts[name].items())
        if distance_after < distance and leaves_training_clips(name):
            draw(name)
    # A class of a few large groups has no validation clips yet: draw the smallest one.
    for label in sorted(total):
        choices = [name for name in order if counts[name][label] and leaves_training_clips(name)]
        if not val_counts[label] and choices:
            draw(min(choices, key=lambda name: len(groups[name])))
    val = {path for name in val_groups for path in groups[name]}
    return {path: VAL_LIST if path in val else TRAIN_LIST for path in label_of}


def describe_split(data: OwnData, lists: Lists) -> list[str]:
    """Make the warnings for own data: classes without clips, and videos of one recording in both lists."""
    notes = []
    if len(data.categories) == 1:
        notes.append("there is only one class")
    for list_name in (TRAIN_LIST, VAL_LIST):
        labels = {record.label for record in lists.get(list_name, [])}
        missing = [printable(name) for label, name in enumerate(data.categories) if label not in labels]
        if missing and labels:
            notes.append(f"{list_name} has no clips of: {', '.join(missing[:10])}")
    train, val = ([record.path for record in lists.get(name, [])] for name in (TRAIN_LIST, VAL_LIST))
    if data.group_of:
        return notes
    # Names such as run_g01_c03 suggest several clips of recording g01.
    shared = {_beginning(path) for path in train} & {_beginning(path) for path in val} - {""}
    if len(shared) > len(data.categories):
        count = sum(_beginning(path) in shared for path in val)
        notes.append(
            f"{count} of {len(val)} validation clips have names that begin like those of training clips, for "
            f"example '{printable(min(shared))}'; if clips are from the same recordings, give --group REGEX"
        )
    return notes


def _beginning(path: str) -> str:
    """A name without its last number: 'run/run_g01_c' of 'run/run_g01_c03'; empty if nothing is left."""
    match = re.fullmatch(r"(.*[^/])\d+\D*", path)
    return match[1].rstrip("0123456789") if match else ""
