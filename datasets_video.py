"""Find the categories, lists, frames and videos of a data set.

The layout is that of TRN-pytorch and of the GST authors' code. A data set may have videos instead of frames:

    <root_path>/<dataset>/category.txt                  a class name per line; the first line is label 0
    <root_path>/<dataset>/train_videofolder.txt         name  frames  label
    <root_path>/<dataset>/val_videofolder.txt
    <root_path>/<dataset>/<frames>/<name>/00001.jpg     frames are numbered from 1
    <root_path>/<dataset>/<videos>/<name>.webm          or another suffix in `VIDEO_SUFFIXES`
    <root_path>/<dataset>/dataset.json                  if the frames have other names: see `read_frame_names`
"""

import json
import os
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import NamedTuple

from classes import check_name, read_categories
from utils.cli import UserError, printable
from utils.files import read_text


class VideoRecord(NamedTuple):
    """A video of a list or an annotation."""

    path: str  # name of the frame folder, or of the video file without its suffix; may contain folders
    num_frames: int = 0  # 0 if unknown
    label: int = -1  # -1 if unknown


class Layout(NamedTuple):
    """Names of a data set's files: the folder of the frame folders, a frame, and the folder of the videos."""

    frames: str = "frames"
    template: str = "{:05d}.jpg"
    videos: str = "videos"


# All other data sets have the default names of `Layout`.
LAYOUTS = {
    "somethingv1": Layout("20bn-something-something-v1"),
    "somethingv2": Layout("20bn-something-something-v2-frames", "{:06d}.jpg", "20bn-something-something-v2"),
    "diving48": Layout(videos="rgb"),
    "jester": Layout("20bn-jester-v1"),
}

# A clip is read from a folder of images or from a video file.
SOURCES = ("frames", "videos")
# Video files in a data set; a list names them without the suffix.
VIDEO_SUFFIXES = (".webm", ".mp4", ".mkv", ".avi", ".mov")

# TRN-pytorch's file names, then the GST authors'. Fields may be separated by spaces or tabs in both.
TRAIN_LISTS = ("train_videofolder.txt", "train.txt")
VAL_LISTS = ("val_videofolder.txt", "valid.txt")

# A file next to the lists with the names of the frames, if they are not those of `Layout`.
FRAME_NAMES = "dataset.json"

# Written by tools/make_motion_dataset.py: the settings of the data set, and which classes are pairs.
MOTION_SETTINGS = "motion_dataset.json"

# Shorter videos are left out, as in the published code.
MIN_FRAMES = 3


class DatasetPaths(NamedTuple):
    """The files of a data set, in the order of TRN-pytorch's tuple."""

    categories: list[str]
    train_list: Path | None
    val_list: Path
    root_data: Path  # the folder of the frame folders, or of the videos
    prefix: str | None  # file name of a frame; None for videos
    first_frame: int = 1  # number in the file name of a video's first frame

    @property
    def source(self) -> str:
        """What the clips are read from: 'frames' or 'videos'."""
        return "frames" if self.prefix else "videos"


def layout(dataset: str) -> Layout:
    """The names of a data set's files."""
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
        root_path: the folder that contains the data sets.
        train_list: path of the training list (default: in the data set's folder).
        val_list: path of the validation list (default: in the data set's folder).
        image_tmpl: file name of a frame, such as `{:05d}.jpg` (default: see `read_frame_names`).
        for_training: whether the training list is needed.
        source: one of `SOURCES`; None for the one that exists.
        preferred: the source to use if both exist.
    """
    folder = find_dataset(dataset, root_path)
    source, root_data = find_source(folder, source, preferred)
    template, first_frame = read_frame_names(folder)
    template = check_template(image_tmpl) if image_tmpl else template
    return DatasetPaths(
        categories=read_categories(folder / "category.txt"),
        train_list=_find_list(folder, TRAIN_LISTS, "--train_list", train_list) if for_training else None,
        val_list=_find_list(folder, VAL_LISTS, "--val_list", val_list),
        root_data=root_data,
        prefix=template if source == "frames" else None,
        first_frame=first_frame,
    )


def read_frame_names(folder: Path) -> tuple[str, int]:
    """Read the file name of a frame, such as `img_{:05d}.jpg`, and the number of the first frame.

    Without the file `FRAME_NAMES`, they are the defaults of `Layout`.
    """
    path = folder / FRAME_NAMES
    if not path.exists():
        return layout(folder.name).template, 1
    try:
        content = json.loads(read_text(path))
        return check_template(content["image_tmpl"]), int(content["first_frame"])
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: must contain image_tmpl and first_frame ({printable(error)})") from None


def dataset_name(text: str) -> str:
    """Check the name of a data set, for argparse: a folder name, which is also part of a run's name."""
    try:
        if "/" in check_folder(text) or text.startswith(".") or len(text.encode()) > 100:
            raise ValueError("no '/', no leading '.', at most 100 bytes")
    except ValueError as error:
        raise ArgumentTypeError(f"'{printable(text)}' must be a folder's name ({error})") from None
    return text


def find_dataset(dataset: str, root_path: str | Path) -> Path:
    """Find the folder of a data set."""
    folder = Path(root_path) / dataset
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --root_path must be the folder that contains '{dataset}'")
    return folder


def find_source(folder: Path, source: str | None = None, preferred: str = "frames") -> tuple[str, Path]:
    """Find the frames or videos of a data set: one of `SOURCES`, and its folder."""
    names = layout(folder.name)
    folders = {"frames": folder / names.frames, "videos": folder / names.videos}
    candidates = [source] if source else sorted(SOURCES, key=lambda name: name != preferred)
    for name in candidates:
        if folders[name].is_dir():
            return name, folders[name]
    raise UserError(" or ".join(str(folders[name]) for name in candidates) + ": no such folder")


def link_videos(videos: Path, folder: Path) -> None:
    """Link the data set's video folder to `videos`."""
    link = folder / layout(folder.name).videos
    if not os.path.lexists(link):
        folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(videos.resolve())
    if link.resolve() != videos.resolve():
        raise UserError(f"{link}: is not a link to {videos}; move it, or omit --videos")


def check_folder(name: str) -> str:
    """Check that a list can contain the name of a video, and that it is a path inside the data set's folder.

    Otherwise raise a ValueError with the reason.
    """
    if any(part in ("", ".", "..") for part in check_name(name).split("/")):
        raise ValueError("the name points outside the data set's folder, or has an empty component")
    return name


def check_template(template: str) -> str:
    """Check the file name of a frame, which has one field for the number: `{}`, `{:d}` or `{:05d}`."""
    # Other formats are ambiguous: {:.1g} writes 10 and 11 alike.
    if not re.fullmatch(r"(?!\.)[^/{}]*\{(:(0[1-9][0-9]?)?d?)?\}[^/{}]*", template):
        raise UserError(f"--image_tmpl {template}: must be a file name with one number, such as {{:05d}}.jpg")
    return template


def _find_list(folder: Path, names: tuple[str, ...], option: str, path: str | None) -> Path:
    if path:
        return Path(path)
    existing = [folder / name for name in names if (folder / name).is_file()]
    if not existing:
        raise UserError(f"{folder}: has neither {' nor '.join(names)}; use {option} FILE")
    if len(existing) > 1:
        raise UserError(f"{folder}: has both {' and '.join(names)}; choose one with {option} FILE")
    return existing[0]
