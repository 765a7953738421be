"""What a clip's frames are read from: folders of images, or video files."""

import os
from collections.abc import Callable, Collection
from contextlib import closing
from functools import cache

from av.video.reformatter import VideoReformatter
from PIL import Image

from datasets_video import VIDEO_SUFFIXES
from utils.cli import UserError, shown
from utils.images import ImageError, read_image
from utils.video import VideoError, decode, to_image

# Says of a video, given its name and its number of frames, which of its files is not as it must be; or None.
Check = Callable[[str, int], str | None]


class FrameFolders:
    """Videos that are folders of images, numbered from 1.

    Args:
        root: the folder of the folders.
        template: file name of a frame, such as `{:05d}.jpg`.
    """

    def __init__(self, root: str, template: str) -> None:
        self.root = root
        self.template = template

    def path(self, name: str, number: int) -> str:
        """Path of a frame."""
        return f"{self.root}/{name}/{self.template.format(number)}"

    def read(self, name: str, numbers: Collection[int]) -> dict[int, Image.Image]:
        """Read frames of a video as RGB.

        Args:
            name: of the video.
            numbers: of the frames, from 1.

        Raises:
            UserError: one cannot be read, or differs in size from the others.
        """
        frames: dict[int, Image.Image] = {}
        for number in numbers:
            path = self.path(shown(name), number)  # for messages
            try:
                frames[number] = read_image(self.path(name, number))
            except ImageError as error:
                raise UserError(f"{path}: cannot be read as an image ({error.reason})") from None
            size, first = frames[number].size, next(iter(frames.values())).size
            if size != first:
                raise UserError(
                    f"{path}: is {size[0]} x {size[1]}, not {first[0]} x {first[1]} like the clip's other "
                    "frames"
                )
        return frames

    def checker(self) -> Check:
        """Make a function that looks for a video's folder, first and last frame."""
        return self._check

    def _check(self, name: str, num_frames: int) -> str | None:
        for path in (self.path(name, 1), self.path(name, num_frames)):
            if not os.path.exists(path):  # noqa: PTH110 - half a million of these
                folder = os.path.dirname(path)  # noqa: PTH120
                missing = path if os.path.isdir(folder) else folder  # noqa: PTH112
                return missing.replace(name, shown(name))
        return None


class VideoFiles:
    """Videos that are files; a list names them without the suffix.

    Args:
        root: the folder of the files.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def read(self, name: str, numbers: Collection[int]) -> dict[int, Image.Image]:
        """Decode frames of a video as RGB, as `tools/extract_frames.py --native` does before it makes JPEGs.

        Args:
            name: of the video.
            numbers: of the frames in the order of display, from 1. Nothing after the last is decoded.

        Raises:
            UserError: it is not there, cannot be decoded, or has fewer frames.
        """
        path = f"{self.root}/{self._file(name)}"
        wanted, last = set(numbers), max(numbers)
        frames: dict[int, Image.Image] = {}
        scaler, size, number = VideoReformatter(), None, 0
        try:
            with closing(decode(path)) as decoded:
                for number, frame in enumerate(decoded, start=1):
                    # A video whose size changes midway keeps the first frame's.
                    size = size or (frame.width, frame.height)
                    if number in wanted:
                        frames[number] = to_image(frame, *size, scaler).convert("RGB")
                    if number == last:
                        return frames
        except VideoError as error:
            raise UserError(f"{shown(path)}: {error}") from None
        raise UserError(f"{shown(path)}: has only {number} frames; by the list it has frame {last}")

    def _file(self, name: str) -> str:
        for suffix in _SUFFIXES:
            if os.path.exists(f"{self.root}/{name}{suffix}"):  # noqa: PTH110 - for every clip
                return name + suffix
        raise UserError(f"{self.root}/{shown(name)}: no such video ({', '.join(VIDEO_SUFFIXES)})")

    def checker(self) -> Check:
        """Make a function that looks for a video's file; it reads each folder once, not for each video."""
        names_in = cache(_names_in)

        def check(name: str, num_frames: int) -> str | None:
            folder, _, stem = f"{self.root}/{name}".rpartition("/")
            there = names_in(folder)
            files = [stem + suffix for suffix in _SUFFIXES if stem + suffix in there]
            if not files:
                return f"{self.root}/{shown(name)}{VIDEO_SUFFIXES[0]} (or {', '.join(VIDEO_SUFFIXES[1:])})"
            if len(files) > 1:
                return f"{self.root}/{shown(name)} ({' and '.join(map(shown, files))}: which?)"
            return None

        return check


# Cameras write them in capitals.
_SUFFIXES = [*VIDEO_SUFFIXES, *map(str.upper, VIDEO_SUFFIXES)]


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names, of a folder with 220,000
    except OSError:
        return frozenset()
