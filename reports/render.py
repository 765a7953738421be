"""Draw the answers of a model below the video or above the input frames."""

import itertools
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw
from tqdm import tqdm

from frames.sources import Video
from reports.plots import SheetRow, contact_sheet, font
from utils.cli import UserError, printable
from utils.files import give_name

# In pixels. Captions would be illegible on smaller pictures.
MIN_WIDTH, MIN_FONT = 320, 16
SHEET_WIDTH = 1200
# The strip that shows the predicted class over time, in matplotlib's colours.
STRIP_HEIGHT = 6
STRIP_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22")


def render_film(
    path: Path, video: Video, windows: Sequence[dict[str, Any]], threshold: float, has_strip: bool
) -> None:
    """Write a video with the answer of each moment below it. Memory does not depend on the video's length.

    Args:
        path: the .mp4 file to write. It gets its name when it is complete.
        video: the input of the model.
        windows: the answers, in the order of time; see `inference.answers.make_answer`.
        threshold: do not draw answers below this probability.
        has_strip: draw a strip that shows the progress: a colour for each class, and the current time.

    Raises:
        UserError: a frame cannot be read, or the file cannot be written.
    """
    captions = _Captions(windows, threshold, has_strip)
    frames = tqdm(video.play(), "rendering", video.num_frames, leave=False, unit="frame", disable=None)
    with rendering(path) as part, closing(Movie(part)) as movie:
        for frame, time in frames:
            movie.add(captions.draw(frame, float(time)), time)


@contextmanager
def rendering(path: Path, option: str = "--rendered_output") -> Iterator[Path]:
    """Yield a hidden file to write, and rename it to `path` at the end of the `with` block.

    Raises:
        UserError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    # The default handler would leave the partial file.
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield part
        give_name(part, path)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, handler)


class _Captions:
    """Draws the current answer below each frame of a video; see `render_film`."""

    def __init__(self, windows: Sequence[dict[str, Any]], threshold: float, has_strip: bool) -> None:
        best = [window["top"][0] for window in windows]
        self.answers = [answer if answer["probability"] >= threshold else None for answer in best]
        self.has_strip = has_strip
        self.centres = np.array([(window["start"] + window["end"]) / 2 for window in windows])
        self.end = windows[-1]["end"]
        self.names = sorted({answer["class"] for answer in self.answers if answer})
        self.caption = Caption(self.names)
        self.strip: Image.Image | None = None

    def answer_at(self, time: float) -> dict[str, Any] | None:
        """The answer of the window whose centre is nearest."""
        return self.answers[int(np.abs(self.centres - time).argmin())]

    def draw(self, frame: Image.Image, time: float) -> Image.Image:
        picture = self.caption.draw(frame, self.answer_at(time))
        if self.has_strip:
            self.strip = self.strip or self._draw_strip(picture.width)
            picture.paste(self.strip, (0, 0))
            x = round(picture.width * time / self.end)
            ImageDraw.Draw(picture).rectangle((x - 1, 0, x + 1, STRIP_HEIGHT), "white")
        return picture

    def _draw_strip(self, width: int) -> Image.Image:
        colours = dict(zip(self.names, itertools.cycle(STRIP_COLOURS), strict=False))
        strip = Image.new("RGB", (width, STRIP_HEIGHT))
        for x in range(width):
            if answer := self.answer_at(self.end * (x + 0.5) / width):
                strip.paste(colours[answer["class"]], (x, 0, x + 1, STRIP_HEIGHT))
        return strip


class Caption:
    """Draws answers below the frames of a video. All pictures have the size of the first one.

    Args:
        names: names of the classes that may be drawn; there is room for the longest one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.size: tuple[int, int] | None = None

    def draw(self, frame: Image.Image, answer: dict[str, Any] | None) -> Image.Image:
        """Draw `class` and `probability` of an answer below a frame; None leaves the place empty."""
        if self.size is None:
            self._lay_out(frame.size)
        if frame.size != self.frame_size:
            frame = frame.resize(self.frame_size, Image.Resampling.BICUBIC)
        picture = Image.new("RGB", self.size)
        picture.paste(frame)
        if answer:
            text = f"{100 * answer['probability']:.0f} %  {answer['class']}"
            place = (self.margin, self.frame_size[1] + self.margin)
            ImageDraw.Draw(picture).text(place, self._wrap(text), "white", self.style)
        return picture

    def _lay_out(self, size: tuple[int, int]) -> None:
        scale = max(1, MIN_WIDTH / size[0])
        self.frame_size = tuple(round(side * scale) for side in size)
        self.style = font(max(MIN_FONT, self.frame_size[0] // 30))
        self.margin = self.style.size // 2
        draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        texts = [self._wrap(f"100 %  {name}") for name in self.names] or [""]
        text_height = max(draw.textbbox((0, 0), text, self.style)[3] for text in texts)
        height = self.frame_size[1] + int(text_height) + 2 * self.margin
        # yuv420p needs even sizes.
        self.size = self.frame_size[0] + self.frame_size[0] % 2, height + height % 2

    def _wrap(self, text: str) -> str:
        """Break a text into lines that are as wide as the frame."""
        text = printable(text)
        width = self.frame_size[0] - 2 * self.margin
        characters = int(0.9 * width * len(text) / self.style.getlength(text))  # some are wider than the mean
        return textwrap.fill(text, max(1, characters))


def model_sheet(row: SheetRow) -> Image.Image:
    """Draw the input frames of a model in lines of 4, or of 8 if there are more than 8."""
    return contact_sheet([row], 4 if len(row.frames) <= 8 else 8, SHEET_WIDTH)


class Movie:
    """Writes an MP4 file (H.264)."""

    TIME_BASE = Fraction(1, 90_000)  # the common unit of the usual frame rates

    def __init__(self, part: Path) -> None:
        self.container = av.open(str(part), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=25, pix_fmt="yuv420p")
        self.stream.time_base = self.stream.codec_context.time_base = self.TIME_BASE
        self.stream.options = {"preset": "veryfast", "crf": "20"}
        self.stream.codec_context.colorspace = Colorspace.ITU601
        self.stream.codec_context.color_range = ColorRange.MPEG
        self.pts, self.length = None, 0

    def add(self, picture: Image.Image, time: Fraction) -> None:
        """Add a picture with its time in seconds. All have the same size, with an even width and height."""
        if self.pts is None:
            self.stream.width, self.stream.height = picture.size
        frame = av.VideoFrame.from_image(picture).reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
        )
        pts = round(time / self.TIME_BASE)
        self.length, self.pts = pts - (self.pts or 0), pts
        frame.pts, frame.time_base = pts, self.TIME_BASE
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write the last pictures, and close the file."""
        with self.container:
            for packet in self.stream.encode():
                packet.duration = self.length  # the last frame has none
                self.container.mux(packet)
