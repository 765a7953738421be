"""Where each data set's categories, lists, frames and videos lie below `--root_path`.

The layout is that of TRN-pytorch and of the GST authors' code, and may have videos instead of frames:

    <root_path>/<dataset>/category.txt                  one class name a line; its line is its label
    <root_path>/<dataset>/train_videofolder.txt         name  frames  label
    <root_path>/<dataset>/val_videofolder.txt
    <root_path>/<dataset>/<frames>/<name>/00001.jpg     frames are numbered from 1
    <root_path>/<dataset>/<videos>/<name>.webm          or another of `VIDEO_SUFFIXES`
"""

import re
from argparse import ArgumentTypeError
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from classes import check_name, read_categories
from utils.cli import UserError, printable


class VideoRecord(NamedTuple):
    """A video of a list or an annotation.

    Attributes:
        path: name of the frame folder, or of the video file without its suffix; may contain folders.
        num_frames: number of frames; 0 if unknown.
        label: number of the class; -1 if unknown.
    """

    path: str
    num_frames: int = 0
    label: int = -1


class Layout(NamedTuple):
    """How a data set's files are named.

    Attributes:
        frames: folder of the frame folders.
        template: file name of a frame.
        videos: folder of the videos.
    """

    frames: str = "frames"
    template: str = "{:05d}.jpg"
    videos: str = "videos"


# The data sets whose files have names of their own; all others have those of `Layout`.
LAYOUTS = {
    "somethingv1": Layout("20bn-something-something-v1"),
    "somethingv2": Layout("20bn-something-something-v2-frames", "{:06d}.jpg", "20bn-something-something-v2"),
    "diving48": Layout(videos="rgb"),
    "jester": Layout("20bn-jester-v1"),
}

# What a clip's frames are read from: the images of a folder, or a video file.
SOURCES = ("frames", "videos")
# Of the video files that a list can name.
VIDEO_SUFFIXES = (".webm", ".mp4", ".mkv", ".avi", ".mov")

# TRN-pytorch's file names, then the GST authors'. Fields may be separated by spaces or tabs in both.
TRAIN_LISTS = ("train_videofolder.txt", "train.txt")
VAL_LISTS = ("val_videofolder.txt", "valid.txt")


# In the folder of a data set of tools/make_motion_dataset.py: how it was made, and which classes are pairs.
MOTION_SETTINGS = "motion_dataset.json"

# As published: in a shorter video nothing moves.
MIN_FRAMES = 3
MAX_DIGITS = 9


class DatasetPaths(NamedTuple):
    """What `return_dataset` finds, in the order of TRN-pytorch's tuple.

    Attributes:
        categories: class names.
        train_list: None if it is not needed.
        val_list: the validation list.
        root_data: the folder of the frame folders, or of the videos.
        prefix: file name of a frame; None where `root_data` holds videos.
    """

    categories: list[str]
    train_list: Path | None
    val_list: Path
    root_data: Path
    prefix: str | None

    @property
    def source(self) -> str:
        """Which of `SOURCES` the clips come from."""
        return "frames" if self.prefix else "videos"


def layout(dataset: str) -> Layout:
    """How the files of a data set are named."""
    return LAYOUTS.get(dataset, Layout())


def return_dataset(
    dataset: str,
    root_path: str | Path,
    train_list: str | None = None,
    val_list: str | None = None,
    image_tmpl: str | None = None,
    for_training: bool = True,
    source: str | None = None,
    preferred: str = "frames",
) -> DatasetPaths:
    """Find a data set's files.

    Args:
        dataset: the name of its folder.
        root_path: the folder that holds a folder for each data set.
        train_list: the training list, instead of the one in the data set's folder.
        val_list: the validation list, likewise.
        image_tmpl: the file name of a frame, such as `{:05d}.jpg`, instead of the data set's own.
        for_training: whether the training list is needed; it is not looked for otherwise.
        source: one of `SOURCES`; None for whichever is there.
        preferred: which to take then if both are there.

    Raises:
        UserError: something is not there, is ambiguous or cannot be read.
    """
    folder = find_dataset(dataset, root_path)
    source, root_data = find_source(folder, source, preferred)
    if source == "videos" and image_tmpl:
        raise UserError(f"--image_tmpl {image_tmpl}: is for frames, but {root_data} holds videos")
    prefix = check_template(image_tmpl) if image_tmpl else layout(dataset).template
    return DatasetPaths(
        categories=read_categories(folder / "category.txt"),
        train_list=_find_list(folder, TRAIN_LISTS, "--train_list", train_list) if for_training else None,
        val_list=_find_list(folder, VAL_LISTS, "--val_list", val_list),
        root_data=root_data,
        prefix=prefix if source == "frames" else None,
    )


def dataset_name(text: str) -> str:
    """A type for argparse: the name of a folder, which is also part of a run's name."""
    try:
        is_folder = "/" not in check_folder(text) and not text.startswith(".") and len(text.encode()) <= 100
    except ValueError:
        is_folder = False
    if not is_folder:
        raise ArgumentTypeError(
            f"'{printable(text)}' must be the name of a folder, not a path, of at most 100 bytes"
        )
    return text


def find_dataset(dataset: str, root_path: str | Path) -> Path:
    """Find the folder of a data set.

    Raises:
        UserError: there is none; it names those that are there.
    """
    folder = Path(root_path) / dataset
    if folder.is_dir():
        return folder
    try:
        there = sorted(path.parent.name for path in Path(root_path).glob("*/category.txt"))
    except OSError:
        there = []
    names = ", ".join(map(printable, there[:10])) + (", …" if len(there) > 10 else "")
    raise UserError(
        f"{folder}: no such folder; --root_path must name the folder that holds '{dataset}'"
        + (f" (there are: {names})" if there else "")
    )


def find_source(folder: Path, source: str | None = None, preferred: str = "frames") -> tuple[str, Path]:
    """Find what the clips of a data set come from.

    Args:
        folder: of the data set.
        source: see `return_dataset`.
        preferred: see `return_dataset`.

    Returns:
        One of `SOURCES`, and its folder.

    Raises:
        UserError: it is not there.
    """
    names = layout(folder.name)
    folders = {"frames": folder / names.frames, "videos": folder / names.videos}
    wanted = [source] if source else sorted(SOURCES, key=lambda name: name != preferred)
    for name in wanted:
        if folders[name].is_dir():
            return name, folders[name]
    frames = f"the frame folders of {folder.name} belong there"
    if source == "videos":
        raise UserError(f"{folders[source]}: no such folder; the videos of {folder.name} belong there")
    other = "" if source else f", or its videos into {folders['videos']}"
    raise UserError(f"{folders['frames']}: no such folder; {frames}{other}")


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


def _find_list(folder: Path, names: tuple[str, ...], option: str, given: str | None) -> Path:
    if given:
        return Path(given)
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: has neither {' nor '.join(names)}; give {option} FILE")
    if len(found) > 1:
        raise UserError(f"{folder}: has both {' and '.join(names)}; say which with {option} FILE")
    return found[0]
