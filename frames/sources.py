"""What a clip's frames are read from: folders of images, or video files."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from fractions import Fraction
from functools import cache
from pathlib import Path

from av.video.reformatter import VideoReformatter
from PIL import Image

from datasets_video import VIDEO_SUFFIXES
from frames.images import DecodedFrame, SourceFrame, read_frame
from frames.video import VideoError, decode, decode_frames, index_frames, is_video, to_image
from utils.cli import UserError, printable

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

    def read(self, name: str, numbers: Collection[int]) -> dict[int, SourceFrame]:
        """Read frames of a video.

        Args:
            name: of the video.
            numbers: of the frames, from 1.

        Raises:
            UserError: one cannot be read, or differs in size from the others.
        """
        frames: dict[int, SourceFrame] = {}
        for number in numbers:
            frames[number] = read_frame(self.path(name, number))
            size, first = frames[number].size, next(iter(frames.values())).size
            if size != first:
                path = self.path(printable(name), number)
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
                return missing.replace(name, printable(name))
        return None


class VideoFiles:
    """Videos that are files; a list names them without the suffix.

    Args:
        root: the folder of the files.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def read(self, name: str, numbers: Collection[int]) -> dict[int, SourceFrame]:
        """Decode frames of a video as RGB, as `tools/extract_frames.py --native` does before it makes JPEGs.

        Args:
            name: of the video.
            numbers: of the frames in the order of display, from 1. Nothing after the last is decoded.

        Raises:
            UserError: it is not there, cannot be decoded, or has fewer frames.
        """
        path = f"{self.root}/{self._file(name)}"
        wanted, last = set(numbers), max(numbers)
        frames: dict[int, SourceFrame] = {}
        scaler, size, number = VideoReformatter(), None, 0
        try:
            with closing(decode(path)) as decoded:
                for number, frame in enumerate(decoded, start=1):
                    # A video whose size changes midway keeps the first frame's.
                    size = size or (frame.width, frame.height)
                    if number in wanted:
                        frames[number] = DecodedFrame(to_image(frame, *size, scaler).convert("RGB"))
                    if number == last:
                        return frames
        except VideoError as error:
            raise UserError(f"{printable(path)}: {error}") from None
        raise UserError(f"{printable(path)}: has only {number} frames; by the list it has frame {last}")

    def _file(self, name: str) -> str:
        for suffix in _SUFFIXES:
            if os.path.exists(f"{self.root}/{name}{suffix}"):  # noqa: PTH110 - for every clip
                return name + suffix
        raise UserError(f"{self.root}/{printable(name)}: no such video ({', '.join(VIDEO_SUFFIXES)})")

    def checker(self) -> Check:
        """Make a function that looks for a video's file; it reads each folder once, not for each video."""
        names_in = cache(_names_in)

        def check(name: str, num_frames: int) -> str | None:
            folder, _, stem = f"{self.root}/{name}".rpartition("/")
            there = names_in(folder)
            files = [stem + suffix for suffix in _SUFFIXES if stem + suffix in there]
            if not files:
                return (
                    f"{self.root}/{printable(name)}{VIDEO_SUFFIXES[0]} (or {', '.join(VIDEO_SUFFIXES[1:])})"
                )
            if len(files) > 1:
                return f"{self.root}/{printable(name)} ({' and '.join(map(printable, files))}: which?)"
            return None

        return check


# Cameras write them in capitals.
_SUFFIXES = [*VIDEO_SUFFIXES, *map(str.upper, VIDEO_SUFFIXES)]


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names, of a folder with 220,000
    except OSError:
        return frozenset()


# A frame of a folder that has no list: a name of any kind, its number, and the suffix of an image.
_NUMBERED = re.compile(r"(.*?)([0-9]+)(\.(?:jpe?g|png|webp|bmp))", re.IGNORECASE | re.DOTALL)
# Frames do not tell how fast they follow each other; Something-Something's do so.
_FRAMES_PER_SECOND = 12


class FrameFolder:
    """One folder of numbered images.

    Args:
        path: the folder.

    Raises:
        UserError: it cannot be read, has no numbered images, several kinds of them, or one is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            matches = [match for name in os.listdir(path) if (match := _frame_name(name))]  # noqa: PTH208
        except OSError as error:
            raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
        if len({match.group(1, 3) for match in matches}) != 1:
            raise UserError(f"{printable(path)}: must hold images of one name and suffix, such as 00001.jpg")
        numbers = sorted(int(match[2]) for match in matches)
        first = min(matches, key=lambda match: int(match[2]))
        width = len(first[2])
        prefix = first[1].replace("{", "{{").replace("}", "}}")
        self._frames = FrameFolders(str(path.parent), f"{prefix}{{:0{width}d}}{first[3]}")
        self._first = numbers[0]
        self.num_frames = len(numbers)
        names = {match[0] for match in matches}
        for number in range(numbers[0], numbers[0] + len(numbers)):
            if (name := self._frames.template.format(number)) not in names:
                raise UserError(f"{printable(path)}: {printable(name)} is missing")

    def read(self, numbers: Collection[int]) -> dict[int, Image.Image]:
        """Read frames as RGB.

        Args:
            numbers: of the frames in the order of their names, from 1.

        Raises:
            UserError: see `FrameFolders.read`.
        """
        offset = self._first - 1
        frames = self._frames.read(self.path.name, [number + offset for number in numbers])
        return {number - offset: frame.image() for number, frame in frames.items()}

    def play(self) -> Iterator[tuple[Image.Image, Fraction]]:
        """Yield every frame as RGB with the time, in seconds, at which it is shown.

        Raises:
            UserError: one cannot be read.
        """
        for number in range(1, self.num_frames + 1):
            yield self.read([number])[number], Fraction(number - 1, _FRAMES_PER_SECOND)


class VideoFile:
    """One video file.

    Args:
        path: the file.

    Raises:
        UserError: it is not a video, or damaged as far as its packets tell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._index = index_frames(path)
        except VideoError as error:
            raise UserError(f"{printable(path)}: {error}") from None
        self.num_frames = self._index.count

    def read(self, numbers: Collection[int]) -> dict[int, Image.Image]:
        """Decode frames as RGB: the pixels of `VideoFiles.read`, without decoding what is far from them.

        Args:
            numbers: of the frames in the order of display, from 1.

        Raises:
            UserError: they cannot be decoded.
        """
        scaler = VideoReformatter()
        try:
            with closing(decode_frames(self.path, self._index, numbers)) as frames:
                return {
                    number: to_image(frame, *self._index.size, scaler).convert("RGB")
                    for number, frame in frames
                }
        except VideoError as error:
            raise UserError(f"{printable(self.path)}: {error}") from None

    def play(self) -> Iterator[tuple[Image.Image, Fraction]]:
        """Yield every frame as RGB with the time, in seconds, at which it is shown.

        Raises:
            UserError: one cannot be decoded.
        """
        scaler, index = VideoReformatter(), self._index
        try:
            with closing(decode(self.path)) as frames:
                for number, frame in enumerate(frames):
                    if index.times is None or number >= index.count:
                        time = number / index.rate
                    else:
                        time = int(index.times[number] - index.times[0]) * index.time_base
                    yield to_image(frame, *index.size, scaler).convert("RGB"), time
        except VideoError as error:
            raise UserError(f"{printable(self.path)}: {error}") from None


def open_video(path: Path) -> FrameFolder | VideoFile:
    """Open one video, whichever it is.

    Raises:
        UserError: see `FrameFolder` and `VideoFile`.
    """
    return FrameFolder(path) if path.is_dir() else VideoFile(path)


def find_videos(path: Path) -> list[Path]:
    """Find the videos that a path names.

    Args:
        path: a video file, a folder of numbered images, or a folder that holds some of them at any depth.
            What is hidden is left out; each folder is looked into once, however many links lead there.

    Returns:
        The path itself, or the videos in the folder, sorted. Whether they can be read is not known then.

    Raises:
        UserError: the folder or one in it cannot be read, or there is no video in it.
    """
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{printable(error.filename)}: cannot be read ({error.strerror})")

    for place, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = [name for name in files if _frame_name(name)]
        others = [Path(place, name) for name in set(files).difference(images) if not name.startswith(".")]
        videos = [file for file in others if is_video(file)]
        if images and not videos:
            found.append(Path(place))
            folders.clear()
        found += videos
    if not found:
        raise UserError(f"{printable(path)}: has no videos and no numbered images in it")
    return sorted(found)


def _frame_name(name: str) -> re.Match[str] | None:
    return None if name.startswith(".") else _NUMBERED.fullmatch(name)
