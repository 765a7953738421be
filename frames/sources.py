"""Read the frames of clips from folders of images or from video files."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from datasets_video import VIDEO_SUFFIXES
from frames.images import SourceFrame, read_frame
from frames.video import (
    FrameConverter,
    VideoError,
    decode,
    decode_frames,
    display_size,
    index_frames,
    is_video,
)
from utils.cli import UserError, log, pluralize, printable
from utils.files import open_regular


class FrameFolders:
    """Videos that are folders of images.

    Args:
        root: the folder that contains the frame folders.
        template: file name of a frame, such as `{:05d}.jpg`.
        first: number in the file name of a video's first frame.
    """

    def __init__(self, root: str, template: str, first: int = 1) -> None:
        self.root = root
        self.template = template
        self.first = first

    def path(self, name: str, number: int) -> str:
        """Path of a frame."""
        return f"{self.root}/{name}/{self.template.format(number + self.first - 1)}"

    def read(self, name: str, numbers: Collection[int]) -> dict[int, SourceFrame]:
        """Read frames of a video by their numbers, from 1.

        Raises:
            UserError: a frame cannot be read, or differs in size from the first one.
        """
        frames = {number: read_frame(self.path(name, number)) for number in numbers}
        width, height = next(iter(frames.values())).size
        for number, frame in frames.items():
            if frame.size != (width, height):
                raise UserError(
                    f"{self.path(printable(name), number)}: is {frame.size[0]} x {frame.size[1]}, not "
                    f"{width} x {height} like the clip's other frames"
                )
        return frames

    def checker(self) -> Callable[[str, int], str | None]:
        """Return a function of a video's name and number of frames that returns the missing path or None."""
        return self._find_missing

    def _find_missing(self, name: str, num_frames: int) -> str | None:
        for path in (self.path(name, 1), self.path(name, num_frames)):
            if not os.path.exists(path):  # noqa: PTH110 - half a million of these
                folder = os.path.dirname(path)  # noqa: PTH120
                missing = path if os.path.isdir(folder) else folder  # noqa: PTH112
                return missing.replace(name, printable(name))
        return None


class VideoFiles:
    """Videos that are files below `root`; lists have their names without the suffix."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, name: str, exists: Callable[[str], bool] = os.path.lexists) -> str:
        """Path of a video's file.

        Raises:
            UserError: it is missing or ambiguous.
        """
        suffixes = [suffix for suffix in FILE_SUFFIXES if exists(f"{self.root}/{name}{suffix}")]
        if len({suffix.lower() for suffix in suffixes}) == 1:  # macOS ignores case
            return f"{self.root}/{name}{suffixes[0]}"
        missing = f"no such video ({', '.join(VIDEO_SUFFIXES)})"
        reason = f"ambiguous, found {' and '.join(suffixes)}" if suffixes else missing
        raise UserError(f"{self.root}/{printable(name)}: {reason}")

    def read(
        self, name: str, numbers: Collection[int], num_frames: int | None = None
    ) -> dict[int, SourceFrame]:
        """Decode frames of a video as RGB, like `tools/extract_frames.py --native` before it encodes JPEGs.

        Args:
            name: name of the video.
            numbers: frame numbers in display order, from 1. Decoding stops after the last one.
            num_frames: frames of the video in the list; None does not check it. A wrong number would
                silently change the sampled frames. The check decodes the rest of the video.

        Raises:
            UserError: the video is missing, cannot be decoded, has fewer frames, or not `num_frames`.
        """
        path = self.path(name)
        frames: dict[int, SourceFrame] = {}
        to_image, number, last = None, 0, max(numbers)
        try:
            with closing(decode(path)) as decoded:
                for number, frame in enumerate(decoded, start=1):
                    # All frames get the size of the first one, even if the video's size changes.
                    to_image = to_image or FrameConverter(display_size(frame))
                    if number in numbers:
                        image = to_image(frame).convert("RGB")
                        frames[number] = SourceFrame(image, image.size)
                    if number == (num_frames + 1 if num_frames else last):
                        break
        except VideoError as error:
            raise UserError(f"{printable(path)}: {error}") from None
        if number < last or (num_frames and number != num_frames):
            count = f"only {number} of" if number < (num_frames or last) else "more than"
            listed = num_frames or f"{last}+"  # the list may have more frames than were asked for
            raise UserError(f"{printable(path)}: has {count} the {listed} frames in the list")
        return frames

    def checker(self) -> Callable[[str, int], str | None]:
        """See `FrameFolders.checker`. Each folder is listed only once."""
        names_in = cache(_names_in)

        def exists(path: str) -> bool:
            folder, _, name = path.rpartition("/")
            return name in names_in(folder)

        def check(name: str, num_frames: int) -> str | None:
            try:
                self.path(name, exists)
            except UserError as error:
                return str(error)
            return None

        return check


# As in clip.mp4, clip.MP4 and clip.Mp4.
FILE_SUFFIXES = [spell(suffix) for suffix in VIDEO_SUFFIXES for spell in (str.lower, str.upper, str.title)]


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names only; there may be 220,000
    except OSError:
        return frozenset()


# A frame in a folder without a list: any name, a number, and the suffix of an image.
_NUMBERED = re.compile(r"([^.].*?|)([0-9]+)(\.(?:jpe?g|png|webp|bmp))", re.IGNORECASE | re.DOTALL)
_FRAMES_PER_SECOND = 12  # of frame folders, as in Something-Something


class Video:
    """A video to show to a model.

    Attributes:
        path: the file or folder.
        num_frames: number of frames.
        times: times of the frames since the first one, in seconds.
        fps: frames per second, on average.
    """

    path: Path
    num_frames: int
    times: np.ndarray
    fps: float

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
        """Yield the frames of these numbers (in display order, from 1) as RGB.

        Raises:
            UserError: a frame cannot be read.
        """
        raise NotImplementedError

    def read(self, numbers: Iterable[int]) -> dict[int, Image.Image]:
        """Read frames as RGB; see `frames`."""
        return dict(self.frames(numbers))

    def play(self) -> Iterator[tuple[Image.Image, Fraction]]:
        """Yield every frame as RGB with its time in seconds."""
        for number, image in self.frames(range(1, self.num_frames + 1)):
            yield image, Fraction(self.times[number - 1]).limit_denominator(10**6)


class FrameFolder(Video):
    """One folder of numbered images, with any names and any first number.

    Raises:
        UserError: it cannot be read, has no numbered images, several kinds of them, or a number is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            matches = [match for file in path.iterdir() if (match := _NUMBERED.fullmatch(file.name))]
        except OSError as error:
            raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
        if len({match.group(1, 3) for match in matches}) != 1:
            raise UserError(f"{printable(path)}: must contain one numbered sequence, such as img_00001.jpg")
        first = min(matches, key=lambda match: int(match[2]))
        prefix = first[1].replace("{", "{{").replace("}", "}}")
        self.template = f"{prefix}{{:0{len(first[2])}d}}{first[3]}"
        self.first = int(first[2])
        self.num_frames = len(matches)
        names = [self.template.format(self.first + index) for index in range(self.num_frames)]
        if missing := sorted(set(names).difference(match[0] for match in matches)):
            raise UserError(f"{printable(path)}: {printable(missing[0])} is missing")
        self.fps = float(_FRAMES_PER_SECOND)
        self.times = np.arange(self.num_frames) / self.fps

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
        """See `Video.frames`. All frames must have the same size."""
        size = None
        for number in numbers:
            image = read_frame(f"{self.path}/{self.template.format(number + self.first - 1)}").image()
            size = size or image.size
            if image.size != size:
                raise UserError(
                    f"{printable(self.path)}: frame {number} is {image.width} x {image.height}, not "
                    f"{size[0]} x {size[1]}"
                )
            yield number, image


class VideoFile(Video):
    """One video file.

    Raises:
        UserError: it is not a video, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._index = index_frames(path)
        except VideoError as error:
            raise UserError(f"{printable(path)}: {error}") from None
        self.num_frames = self._index.count
        self.times = self._index.seconds()
        is_timed = self.num_frames > 1 and self.times[-1] > 0
        self.fps = (self.num_frames - 1) / self.times[-1] if is_timed else float(self._index.rate)

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
        """Decode frames, with the same pixels as `VideoFiles.read` but fewer decoded frames."""
        to_image = FrameConverter(self._index.size)
        try:
            for number, frame in decode_frames(self.path, self._index, list(numbers)):
                yield number, to_image(frame).convert("RGB")
        except VideoError as error:
            raise UserError(f"{printable(self.path)}: {error}") from None


class AnimatedImage(Video):
    """A GIF or an animated WebP. FFmpeg decodes no animated WebP, and Pillow keeps a GIF's colours.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Browsers show a frame for 0.1 s if its duration is 10 ms or less.
        durations = [value if value > 10 else 100 for _, value in self._decode()]
        self.num_frames = len(durations)
        self.times = np.concatenate([[0], np.cumsum(durations[:-1])]) / 1000
        self.fps = 1000 * self.num_frames / sum(durations)

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
        """Decode frames, up to the last of these numbers."""
        wanted = set(numbers)
        last = max(wanted)
        for number, (image, _) in enumerate(self._decode(), start=1):
            if number in wanted:
                yield number, image.convert("RGB")
            if number == last:
                return

    def _decode(self) -> Iterator[tuple[Image.Image, float]]:
        """Yield each frame with its duration in milliseconds."""
        try:
            with open_regular(self.path) as file, Image.open(file, formats=("GIF", "WEBP")) as image:
                for frame in ImageSequence.Iterator(image):
                    frame.load()
                    yield frame, frame.info.get("duration", 0)
        except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError, Warning) as error:
            raise UserError(f"{printable(self.path)}: cannot be read ({printable(error)})") from None


def duration(video: Video) -> float:
    """Duration of a video in seconds, including that of the last frame."""
    return float(video.times[-1]) + 1 / video.fps


def is_animated(path: Path) -> bool:
    """Whether a file begins like a GIF or an animated WebP."""
    try:
        with open_regular(path) as file:
            start = file.read(21)
    except OSError:
        return False
    is_webp = start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X"
    return start[:6] in (b"GIF87a", b"GIF89a") or (is_webp and bool(start[20] & 2))


def open_video(path: Path) -> Video:
    """Open a frame folder, a video file, a GIF or an animated WebP.

    Raises:
        UserError: it cannot be used.
    """
    if path.is_dir():
        return FrameFolder(path)
    return AnimatedImage(path) if is_animated(path) else VideoFile(path)


def find_videos(path: Path) -> list[Path]:
    """Find the video files and the frame folders in a folder, at any depth.

    A frame folder contains only numbered images. Each folder is searched once, even if several links lead to
    it. Hidden files and folders are ignored. A warning names one of the other files that are not videos.

    Returns:
        The videos, sorted, which may turn out to be unreadable; or the path itself if it is a file.

    Raises:
        UserError: a folder cannot be read, or there is no video.
    """
    if not path.is_dir():
        return [path]
    videos, skipped, searched = [], [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{printable(error.filename)}: cannot be read ({error.strerror})")

    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in searched:
            folders.clear()
            continue
        searched.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        is_numbered = files and not folders and all(map(_NUMBERED.fullmatch, files))
        if is_numbered and not is_animated(Path(folder, files[0])):
            videos.append(Path(folder))
            continue
        for file in (Path(folder, name) for name in files):
            (videos if is_video(file) or is_animated(file) else skipped).append(file)
    if not videos:
        raise UserError(f"{printable(path)}: has no videos and no folders with only numbered images")
    if skipped:
        first = printable(min(skipped).relative_to(path))
        log.warning(f"warning: {printable(path)}: skipped {pluralize(len(skipped), 'file')} such as {first}")
    return sorted(videos)
