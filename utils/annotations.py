"""Read annotations: the files that the data sets' pages offer; for own data class folders or a CSV."""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from classes import MAX_NAME, check_name
from datasets_video import MAX_DIGITS, TRAIN_LISTS, VAL_LISTS, check_folder
from frames.video import SUFFIXES, is_video
from utils.cli import UserError, printable
from utils.files import read_text

TRAIN_LIST, VAL_LIST, TEST_LIST = TRAIN_LISTS[0], VAL_LISTS[0], "test_videofolder.txt"

# Where the annotations of each release are, below the folder of the annotations.
_V1_NAMES = ("something-something-v1-{}.csv",)
_JESTER_NAMES = ("jester-v1-{}.csv",)
_V2_NAMES = ("something-something-v2-{}.json", "labels/{}.json", "{}.json")
_DIVING_NAMES = ("Diving48_V2_{}.json",)
_DIVING_VOCABULARY = "Diving48_vocab.json"


class Video(NamedTuple):
    """A video as an annotation or a list has it.

    Attributes:
        folder: name of its frame folder, or of its file without the suffix.
        label: None if it is not known, as in a test list.
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

_SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN_LIST),
    **dict.fromkeys(("val", "valid", "validation"), VAL_LIST),
    "test": TEST_LIST,
}


class OwnVideo(NamedTuple):
    """A video of own data.

    Attributes:
        name: as in `Video.folder`.
        category: name of its class; empty if it is not known.
        where: where that is said, for messages.
        list_name: None if the lists are to be drawn.
    """

    name: str
    category: str
    where: str
    list_name: str | None = None


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _text_as_number(value: Any) -> Any:
    is_number = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= MAX_DIGITS
    return int(value) if is_number else value


_Name = Annotated[str, AfterValidator(check_name)]
# Most files have these as text, some as numbers.
_Folder = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(check_folder)]
_Number = Annotated[int, Field(ge=0, lt=10**MAX_DIGITS)]
_NumberOrText = Annotated[_Number, BeforeValidator(_text_as_number)]


class _Entry(BaseModel):
    # What is not used here, such as the placeholders of v2, only has to be JSON.
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]


class _V2TestVideo(_Entry):
    id: _Folder


class _V2Video(_V2TestVideo):
    template: str


class _Dive(_Entry):
    vid_name: _Folder
    label: _Number
    start_frame: _Number
    end_frame: _Number

    @model_validator(mode="after")
    def _has_frames(self) -> "_Dive":
        if self.start_frame >= self.end_frame:
            raise ValueError(
                f"start_frame {self.start_frame} must be less than end_frame {self.end_frame} "
                f"(video '{printable(self.vid_name)}')"
            )
        return self


_STRICT = ConfigDict(strict=True)
_V2_LABELS = TypeAdapter(dict[_Name, _NumberOrText], config=_STRICT)
_V2_VIDEOS = TypeAdapter(list[_V2Video], config=_STRICT)
_V2_TEST_VIDEOS = TypeAdapter(list[_V2TestVideo], config=_STRICT)
_VOCABULARY = TypeAdapter(
    list[Annotated[list[_Name], Field(min_length=1), AfterValidator("_".join), AfterValidator(check_name)]],
    config=_STRICT,
)
_DIVES = TypeAdapter(list[_Dive], config=_STRICT)


def read_annotations(dataset: str, folder: Path) -> tuple[list[str], Lists]:
    """Read a data set's annotation files, as its page offers them.

    Args:
        dataset: a key of `datasets_video.LAYOUTS`.
        folder: it holds the files, under their own names.

    Returns:
        The class names in the order of their labels, and the annotated videos for each list. No name stands
        twice in a file, and all can be written to lists and read from them.

    Raises:
        UserError: a file is missing, cannot be read, or does not fit the others.
    """
    readers = {
        "somethingv1": partial(_read_v1, _V1_NAMES),
        "somethingv2": _read_v2,
        "diving48": _read_diving48,
        "jester": partial(_read_v1, _JESTER_NAMES),
    }
    return readers[dataset](folder)


def read_class_folders(top: Path, source: str) -> tuple[list[OwnVideo], list[str]]:
    """Look for the videos in a folder for each class, the convention of UCF101 and torchvision.

    Args:
        top: holds `<class>/<video>`; what is hidden does not count.
        source: one of `datasets_video.SOURCES`: whether a video is a file or a frame folder.

    Returns:
        The videos, and the names of what lies among them but is none.

    Raises:
        UserError: there are no class folders, one has no videos, or a name cannot stand in a list.
    """
    videos, others = [], []
    folders = [path for path in _visible(top) if path.is_dir()]
    for folder in folders:
        _check_path(folder, check_name, folder.name)
        names: dict[
            str, None
        ] = {}  # two files of one name are one video, which whoever looks into it refuses
        below = []
        for path in _visible(folder):
            is_folder = path.is_dir()
            if is_folder:
                below.append(path.name)
            if is_folder if source == "frames" else not is_folder and is_video(path):
                stem = path.name if is_folder else path.stem
                names[_check_path(path, check_folder, f"{folder.name}/{stem}")] = None
            else:
                others.append(f"{folder.name}/{path.name}")
        if not names:
            what = "frame folders" if source == "frames" else "videos"
            levels = f" but folders such as '{printable(below[0])}'" if below else ""
            raise UserError(
                f"{printable(folder)}: has no {what}{levels}; expected is {printable(top)}/CLASS/VIDEO, without a "
                "level such as train or val in between (a split of your own: --annotations FILE.csv)"
            )
        videos += [OwnVideo(name, folder.name, printable(folder)) for name in names]
    if not folders:
        raise UserError(
            f"{top}: has no folders of classes; expected is {top}/CLASS/VIDEO, or give --annotations FILE.csv"
        )
    return videos, others


def read_csv(path: Path) -> list[OwnVideo]:
    """Read a CSV with the header `video,label` or `video,label,split`.

    Raises:
        UserError: it cannot be read, or a line is something else.
    """
    reader = csv.reader(io.StringIO(_text(path)), strict=True)
    videos: list[OwnVideo] = []
    seen: dict[str, int] = {}
    header: list[str] = []
    try:
        for row in reader:
            fields, where = [field.strip() for field in row], f"{path}, line {reader.line_num}"
            if not any(fields):
                continue
            if not header:
                if fields not in (["video", "label"], ["video", "label", "split"]):
                    raise UserError(
                        f"{where}: the header must be 'video,label' or 'video,label,split', "
                        f"not '{printable(','.join(row))}'"
                    )
                header = fields
                continue
            if len(fields) != len(header):
                raise UserError(f"{where}: has {len(fields)} fields, not {len(header)} like the header")
            name, label, *split = fields
            if split and split[0] not in _SPLITS:
                raise UserError(f"{where}: '{printable(split[0])}' is not a split ({', '.join(_SPLITS)})")
            list_name = _SPLITS[split[0]] if split else None
            name = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name
            _check_field(path, reader.line_num, check_folder, name)
            if label or list_name != TEST_LIST:
                _check_field(path, reader.line_num, check_name, label)
            if name in seen:
                raise UserError(f"{where}: '{printable(name)}' is already in line {seen[name]}")
            seen[name] = reader.line_num
            videos.append(OwnVideo(name, label, where, list_name))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
    if not videos:
        raise UserError(f"{path}: is empty; it holds a line 'video,label' for each video, below that header")
    lists = {video.list_name for video in videos}
    for name, word, other in ((TRAIN_LIST, "train", VAL_LIST), (VAL_LIST, "val", TRAIN_LIST)):
        if name not in lists and other in lists:
            raise UserError(f"{path}: no line has the split '{word}'; without that column the split is drawn")
    return videos


def make_lists(
    videos: list[OwnVideo], categories: list[str] | None, file: Path, val_fraction: float, seed: int
) -> tuple[list[str], Lists]:
    """Label the videos of own data, and distribute them to lists.

    Args:
        videos: of `read_class_folders` or `read_csv`.
        categories: those in place, whose order is kept; None to sort those of the videos.
        file: that they are in, for the message.
        val_fraction: share of each class that is drawn for validation, where the videos are in no list.
        seed: of the draw, which depends on it and the names of the class's videos only.

    Raises:
        UserError: a class is not among the categories, or has a single video to be drawn from.
    """
    if categories is None:
        categories = sorted({video.category for video in videos if video.category})
        if not categories:
            raise UserError(
                f"{file}: no such file; videos without labels need one with the checkpoint's classes"
            )
    label_of = {name: label for label, name in enumerate(categories)}
    for video in videos:
        if video.category and video.category not in label_of:
            raise UserError(
                f"{video.where}: the class '{printable(video.category)}' is not in {file}, whose order is kept; "
                "add it there, or move that file away"
            )
    if videos[0].list_name is None:
        videos = _draw(videos, val_fraction, seed)
    lists: Lists = {}
    for name in (TRAIN_LIST, VAL_LIST, TEST_LIST):
        chosen = [video for video in videos if video.list_name == name]
        # A list has labels or not.
        is_labelled = all(video.category for video in chosen)
        for video in chosen:
            if not is_labelled and re.search(r"\s[0-9]+$", video.name):
                raise UserError(
                    f"{video.where}: '{printable(video.name)}' ends in a number, which a list without labels "
                    "cannot tell from the number of frames; rename the video, or label all test videos"
                )
            label = label_of[video.category] if is_labelled else None
            lists.setdefault(name, []).append(Video(video.name, label))
    return categories, lists


def _draw(videos: list[OwnVideo], val_fraction: float, seed: int) -> list[OwnVideo]:
    """Put a share of each class into the validation list, but at least one video into each of the two."""
    classes: dict[str, list[OwnVideo]] = {}
    for video in videos:
        classes.setdefault(video.category, []).append(video)
    list_of = {}
    for category, members in classes.items():
        if len(members) == 1:
            raise UserError(
                f"{members[0].where}: the class '{printable(category)}' has a single video, "
                f"'{printable(members[0].name)}', but training and validation need one each; add videos, leave "
                "the class out, or give the split in a CSV (--annotations)"
            )
        # By hashes, not by a generator's numbers: a new video leaves almost all others where they are.
        order = sorted(members, key=lambda video: hashlib.sha256(f"{seed} {video.name}".encode()).digest())
        count = min(max(round(len(order) * val_fraction), 1), len(order) - 1)
        for number, video in enumerate(order):
            list_of[video.name] = VAL_LIST if number < count else TRAIN_LIST
    return [video._replace(list_name=list_of[video.name]) for video in videos]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be read ({error.strerror})") from None


def _check_path(path: Path, check: Callable[[str], str], name: str) -> str:
    try:
        return check(name)
    except ValueError as error:
        raise UserError(f"{printable(path)}: {error}; rename it") from None


def read_test_list(path: Path) -> list[Video]:
    """Read a list of `folder frames`, without labels, as tools/process_dataset.py writes it.

    Raises:
        UserError: it cannot be read, is empty, or a line is something else.
    """
    videos = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        folder, *frames = line.strip().rsplit(None, 1)
        if not frames or not isinstance(_text_as_number(frames[0]), int):
            raise UserError(f"{path}, line {number}: '{printable(line.strip())}' is not 'name frames'")
        if len(folder.encode()) > MAX_NAME or "\0" in folder:
            raise UserError(f"{path}, line {number}: '{printable(folder)}' cannot be a video's name")
        videos.append(Video(folder, None, int(frames[0])))
    if not videos:
        raise UserError(f"{path}: is empty; it holds a line 'name frames' for each video")
    return videos


def _read_v1(names: tuple[str, ...], folder: Path) -> tuple[list[str], Lists]:
    pattern = _find_release(folder, names, "labels")
    labels = folder / pattern.format("labels")
    lines = _lines(labels)
    for number, line in enumerate(lines, start=1):
        _check_field(labels, number, check_name, line)
    _check_unique(labels, "line", lines)
    categories = sorted(lines)
    label_of = {name: label for label, name in enumerate(categories)}

    def video(path: Path, number: int, line: str) -> Video:
        name, _, label = line.partition(";")
        _check_field(path, number, check_folder, name)
        if label not in label_of:
            raise UserError(f"{path}, line {number}: '{printable(label)}' is not in {labels.name}")
        return Video(name, label_of[label])

    def test_video(path: Path, number: int, line: str) -> Video:
        return Video(_check_field(path, number, check_folder, line.partition(";")[0]), None)

    def read(part: str, make: Callable[[Path, int, str], Video]) -> list[Video]:
        path = folder / pattern.format(part)
        videos = [make(path, number, line) for number, line in enumerate(_lines(path), start=1)]
        _check_unique(path, "line", [video.folder for video in videos])
        return videos

    lists = {TRAIN_LIST: read("train", video), VAL_LIST: read("validation", video)}
    if os.path.lexists(folder / pattern.format("test")):
        lists[TEST_LIST] = read("test", test_video)
    return categories, lists


def _read_v2(folder: Path) -> tuple[list[str], Lists]:
    pattern = _find_release(folder, _V2_NAMES, "labels")
    labels = folder / pattern.format("labels")
    label_of = _read_json(labels, _V2_LABELS)
    names: dict[int, str] = {}
    for name, label in label_of.items():
        if label >= len(label_of) or label in names:
            raise UserError(
                f"{labels}, '{printable(name)}': its number is {label}, but the numbers must be "
                f"0 to {len(label_of) - 1}, each once"
            )
        names[label] = name

    def video(path: Path, number: int, entry: _V2Video) -> Video:
        name = entry.template.replace("[", "").replace("]", "")
        if name not in label_of:
            where = f"{path}, entry {number}: video '{printable(entry.id)}'"
            raise UserError(f"{where}: '{printable(name)}' is not in {labels.name}")
        return Video(entry.id, label_of[name])

    def test_video(path: Path, number: int, entry: _V2TestVideo) -> Video:
        return Video(entry.id, None)

    def read(part: str, schema: TypeAdapter, make: Callable[[Path, int, Any], Video]) -> list[Video]:
        return _read_videos(folder / pattern.format(part), schema, make)

    lists = {
        TRAIN_LIST: read("train", _V2_VIDEOS, video),
        VAL_LIST: read("validation", _V2_VIDEOS, video),
    }
    if os.path.lexists(folder / pattern.format("test")):
        lists[TEST_LIST] = read("test", _V2_TEST_VIDEOS, test_video)
    return [names[label] for label in range(len(names))], lists


def _read_diving48(folder: Path) -> tuple[list[str], Lists]:
    pattern = _find_release(folder, _DIVING_NAMES, "train")
    vocabulary = folder / _DIVING_VOCABULARY
    categories = _read_json(vocabulary, _VOCABULARY)
    _check_unique(vocabulary, "entry", categories)

    def video(path: Path, number: int, entry: _Dive) -> Video:
        if entry.label >= len(categories):
            where = f"{path}, entry {number}: video '{printable(entry.vid_name)}'"
            raise UserError(f"{where}: {vocabulary.name} has no label {entry.label}")
        return Video(entry.vid_name, entry.label, start=entry.start_frame, end=entry.end_frame)

    parts = {TRAIN_LIST: "train", VAL_LIST: "test"}
    lists = {name: _read_videos(folder / pattern.format(part), _DIVES, video) for name, part in parts.items()}
    return categories, lists


def _find_release(folder: Path, patterns: Iterable[str], part: str) -> str:
    names = [pattern.format(part) for pattern in patterns]
    for pattern, name in zip(patterns, names, strict=True):
        if os.path.lexists(folder / name):  # if it is not a file, whoever reads it says so
            return pattern
    raise UserError(f"--annotations {folder}: has no {' nor '.join(names)}")


def _lines(path: Path) -> list[str]:
    """The lines of a CSV file, without blanks at their ends, which TRN-pytorch's script cuts off too."""
    text = _text(path).rstrip(" \t\n")
    if not text:
        raise UserError(f"{path}: is empty")
    return [line.rstrip(" \t") for line in text.split("\n")]


def _check_field(path: Path, number: int, check: Callable[[str], str], name: str) -> str:
    try:
        return check(name)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error} ('{printable(name)}')") from None


def _check_unique(path: Path, unit: str, names: list[str]) -> None:
    first_seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        first = first_seen.setdefault(name, number)
        if first != number:
            raise UserError(f"{path}, {unit} {number}: '{printable(name)}' is already in {unit} {first}")


def _read_videos(path: Path, schema: TypeAdapter, make: Callable[[Path, int, Any], Video]) -> list[Video]:
    entries = _read_json(path, schema)
    videos = [make(path, number, entry) for number, entry in enumerate(entries, start=1)]
    _check_unique(path, "entry", [video.folder for video in videos])
    return videos


class _Unusable:
    """In the place of a value that no schema takes, so that it is refused by the name of its entry."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


class _Twice(_Unusable):
    """In the place of an object that has the key `text` twice."""


def _whole_number(digits: str) -> int | _Unusable:
    # Python refuses to convert thousands of digits.
    return int(digits) if len(digits) <= 18 else _Unusable(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Unusable:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
    return _Twice(key)


def _read_json(path: Path, schema: TypeAdapter) -> Any:
    try:
        content = json.loads(
            _text(path), parse_int=_whole_number, parse_constant=_Unusable, object_pairs_hook=_object
        )
        content = schema.validate_python(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: cannot be read (it is nested too deeply)") from None
    except ValidationError as error:
        raise UserError(f"{path}{_first_complaint(error)}") from None
    if not content:
        raise UserError(f"{path}: is empty")
    return content


def _first_complaint(error: ValidationError) -> str:
    """Where the first value is that does not fit its schema, what is wrong with it, and the value."""
    first = error.errors(include_url=False, include_context=False)[0]
    entry, field, *_ = (*first["loc"], None, None)
    where = (
        ""
        if entry is None
        else f", entry {entry + 1}"
        if isinstance(entry, int)
        else f", '{printable(entry)}'"
    )
    if isinstance(field, str) and field != "[key]":
        where += f": {printable(field)}"
    words = {
        "missing": "is missing",
        "too_short": "is empty",
        "model_type": "must be an object",
        "dict_type": "must be an object",
    }
    what = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    value = first["input"]
    if isinstance(value, _Twice):
        return f"{where}: has the key '{printable(value)}' twice"
    is_short = value is None or isinstance(value, str | int | float | _Unusable)
    return f"{where}: {words.get(first['type'], what)}" + (f" ('{printable(value)}')" if is_short else "")


def _text(path: Path) -> str:
    return read_text(path, "it belongs to the annotations")
