"""Read the annotation files that the data sets' pages offer: class names, and the videos of each list."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from datasets_video import TRAIN_LISTS, VAL_LISTS
from utils.cli import UserError
from utils.files import read_text

TRAIN_LIST, VAL_LIST, TEST_LIST = TRAIN_LISTS[0], VAL_LISTS[0], "test_videofolder.txt"

# Where the annotations of each release are, below the folder of the annotations.
_V1_NAMES = ("something-something-v1-{}.csv",)
_V2_NAMES = ("something-something-v2-{}.json", "labels/{}.json", "{}.json")
_DIVING_NAMES = ("Diving48_V2_{}.json",)
_DIVING_VOCABULARY = "Diving48_vocab.json"


class Video(NamedTuple):
    """A video as an annotation or a list has it.

    Attributes:
        folder: name of its frame folder.
        label: None in a test list.
        frames: how many the list gives; None in an annotation.
        start: first frame (from 0) that the annotation gives.
        end: the frame after the last, likewise.
    """

    folder: str
    label: int | None
    frames: int | None = None
    start: int = 0
    end: int | None = None


# List name -> its videos.
Lists = dict[str, list[Video]]


def read_annotations(dataset: str, folder: Path) -> tuple[list[str], Lists]:
    """Read a data set's annotation files, as its page offers them.

    Args:
        dataset: a key of `datasets_video.LAYOUTS`.
        folder: it holds the files, under their own names.

    Returns:
        The class names in the order of their labels, and the annotated videos for each list.

    Raises:
        UserError: a file is missing, cannot be read, or does not fit the others.
    """
    return {"somethingv1": _read_v1, "somethingv2": _read_v2, "diving48": _read_diving48}[dataset](folder)


def read_test_list(path: Path) -> list[Video]:
    """Read a list of `folder frames`, without labels, as tools/process_dataset.py writes it.

    Raises:
        UserError: it cannot be read, or a line is something else.
    """
    videos = []
    for number, line in enumerate(_lines(path), start=1):
        folder, _, frames = line.strip().rpartition(" ")
        if not folder or not frames.isdecimal():
            raise UserError(f"{path}, line {number}: '{line.strip()}' is not 'folder frames'")
        videos.append(Video(folder, None, int(frames)))
    return videos


def _read_v1(folder: Path) -> tuple[list[str], Lists]:
    pattern = _find_release(folder, _V1_NAMES, "labels")
    labels = folder / pattern.format("labels")
    categories = sorted(line.strip() for line in _lines(labels))
    label_of = {name: label for label, name in enumerate(categories)}
    lists: Lists = {}
    for name, part in ((TRAIN_LIST, "train"), (VAL_LIST, "validation")):
        path = folder / pattern.format(part)
        lists[name] = []
        for number, line in enumerate(_lines(path), start=1):
            video, _, label = line.partition(";")
            if label.strip() not in label_of:
                raise UserError(f"{path}, line {number}: '{label.strip()}' is not in {labels.name}")
            lists[name].append(Video(video.strip(), label_of[label.strip()]))
    test = folder / pattern.format("test")
    if test.is_file():
        lists[TEST_LIST] = [Video(line.partition(";")[0].strip(), None) for line in _lines(test)]
    return categories, lists


def _read_v2(folder: Path) -> tuple[list[str], Lists]:
    pattern = _find_release(folder, _V2_NAMES, "labels")
    labels = folder / pattern.format("labels")
    label_of = _read_json(labels, lambda names: {name: int(label) for name, label in names.items()})
    categories = sorted(label_of, key=label_of.__getitem__)
    if [label_of[name] for name in categories] != list(range(len(categories))):
        raise UserError(f"{labels}: its numbers are not 0 to {len(categories) - 1}, each once")

    def video(entry: dict) -> Video:
        name = entry["template"].replace("[", "").replace("]", "")
        if name not in label_of:
            raise UserError(f"{path}: video {entry['id']}: '{name}' is not in {labels.name}")
        return Video(str(entry["id"]), label_of[name])

    lists: Lists = {}
    for name, part in ((TRAIN_LIST, "train"), (VAL_LIST, "validation")):
        path = folder / pattern.format(part)
        lists[name] = _read_json(path, lambda entries: [video(entry) for entry in entries])
    test = folder / pattern.format("test")
    if test.is_file():
        lists[TEST_LIST] = _read_json(test, lambda entries: [Video(str(e["id"]), None) for e in entries])
    return categories, lists


def _read_diving48(folder: Path) -> tuple[list[str], Lists]:
    pattern = _find_release(folder, _DIVING_NAMES, "train")
    vocabulary = folder / _DIVING_VOCABULARY
    categories = _read_json(vocabulary, lambda classes: ["_".join(parts) for parts in classes])

    def video(entry: dict) -> Video:
        label = int(entry["label"])
        if not 0 <= label < len(categories):
            raise UserError(f"{path}: video {entry['vid_name']}: {vocabulary.name} has no label {label}")
        return Video(entry["vid_name"], label, start=int(entry["start_frame"]), end=int(entry["end_frame"]))

    lists: Lists = {}
    for name, part in ((TRAIN_LIST, "train"), (VAL_LIST, "test")):
        path = folder / pattern.format(part)
        lists[name] = _read_json(path, lambda entries: [video(entry) for entry in entries])
    return categories, lists


def _find_release(folder: Path, patterns: Iterable[str], part: str) -> str:
    names = [pattern.format(part) for pattern in patterns]
    for pattern, name in zip(patterns, names, strict=True):
        if (folder / name).is_file():
            return pattern
    raise UserError(f"--annotations {folder}: has no {' nor '.join(names)}")


def _read_json(path: Path, convert: Callable[[Any], Any]) -> Any:
    try:
        return convert(json.loads(_text(path)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is not what the data set's page offers ({error!r})") from None


def _lines(path: Path) -> list[str]:
    return [line for line in _text(path).split("\n") if line.strip()]


def _text(path: Path) -> str:
    return read_text(path, "it belongs to the annotations")
