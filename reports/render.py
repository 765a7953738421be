"""Draw the answer of a model on the video or below the input frames."""

import itertools
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from frames.sources import Video, duration
from reports.plots import INK, LINE_HEIGHT, MARGIN, TEXT_SIZE, SheetRow, contact_sheet, font, stack
from utils.cli import UserError, printable, uninterrupted
from utils.files import check_new_file, give_name

SUFFIXES = (".mp4", ".png")

# In pixels. Captions would be illegible on smaller pictures.
MIN_WIDTH, MIN_FONT = 320, 16
# A narrow video is enlarged up to this height, and then gets black sides.
MAX_ENLARGED_HEIGHT = 4096
SHEET_WIDTH = 1200
# The strip that shows the predicted class over time, in matplotlib's colours.
STRIP_HEIGHT = 6
STRIP_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22")
BAND, WHITE, BAR = (0, 0, 0, 170), (255, 255, 255), (31, 97, 160)


class Answer(NamedTuple):
    """One of a model's best classes: its name and its probability, from 0 to 1."""

    label: str
    probability: float


def check_rendered_output(path: Path) -> None:
    """Check that a file can be rendered to.

    Raises:
        UserError: its suffix is not one of `SUFFIXES`, it exists, or it cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--rendered_output {path}: the name must end in {', '.join(SUFFIXES)}")
    check_new_file(path, "--rendered_output")


class TimedAnswer(NamedTuple):
    """The best class of a window from `start` to `end` (seconds); `answer` is None if it is not drawn."""

    start: float
    end: float
    answer: Answer | None


def render(
    path: Path,
    video: Video,
    numbers: Sequence[int],
    crops: np.ndarray,
    top: Sequence[Answer],
    windows: Sequence[TimedAnswer] = (),
) -> None:
    """Draw the answers of a model, depending on the suffix of the file (see `--rendered_output`).

    The file gets its name when it is complete. Memory does not depend on the length of the video.

    Args:
        path: file to write, with one of `SUFFIXES`.
        video: the input of the model.
        numbers: frames that the model saw, from 1.
        crops: what it saw of them, uint8, frames x height x width x RGB.
        top: the best classes, the best one first.
        windows: answers over time to draw instead of the first one of `top`.

    Raises:
        UserError: a frame cannot be read, or the file cannot be written.
    """
    with rendering(path) as part:
        if path.suffix.lower() == ".png":
            answer_sheet(video.path.name, numbers, crops, top).save(part, format="PNG")
        else:
            answers = windows or [TimedAnswer(0.0, duration(video), top[0])]
            frames = tqdm(
                video.play(), "rendering", video.num_frames, leave=False, unit="frame", disable=None
            )
            write_movie(part, frames, _Captions(answers, bool(windows)))


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
        with uninterrupted():
            give_name(part, path)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, handler)


class _Captions:
    """Draws on each frame of a video the answer of its time, and a strip that shows the progress.

    Args:
        windows: the answers, in the order of time.
        has_strip: draw the strip: a colour for each class, and the current time.
    """

    def __init__(self, windows: Sequence[TimedAnswer], has_strip: bool) -> None:
        self.windows = windows
        self.has_strip = has_strip
        self.centres = np.array([(window.start + window.end) / 2 for window in windows])
        self.caption: Caption | None = None
        self.strip: Image.Image | None = None

    def answer_at(self, time: float) -> Answer | None:
        """The answer of the window whose centre is nearest."""
        return self.windows[int(np.abs(self.centres - time).argmin())].answer

    def __call__(self, frame: Image.Image, time: float) -> Image.Image:
        if self.caption is None:
            answers = [window.answer for window in self.windows if window.answer]
            self.caption = Caption(frame.size, answers)
        picture = self.caption.draw(frame, self.answer_at(time))
        if self.has_strip:
            self.strip = self.strip or self._draw_strip(picture.width)
            picture.paste(self.strip, (0, 0))
            x = round(picture.width * time / self.windows[-1].end)
            ImageDraw.Draw(picture).rectangle((x - 1, 0, x + 1, STRIP_HEIGHT), WHITE)
        return picture

    def _draw_strip(self, width: int) -> Image.Image:
        labels = {window.answer.label for window in self.windows if window.answer}
        colours = dict(zip(sorted(labels), itertools.cycle(STRIP_COLOURS), strict=False))
        strip = Image.new("RGB", (width, STRIP_HEIGHT))
        for x in range(width):
            if answer := self.answer_at(self.windows[-1].end * (x + 0.5) / width):
                strip.paste(colours[answer.label], (x, 0, x + 1, STRIP_HEIGHT))
        return strip


class Caption:
    """Draws answers on the frames of a video; all pictures have the same size.

    Args:
        size: width and height of the video, in pixels.
        answers: answers that may be drawn; there is room for the longest one.
    """

    def __init__(self, size: tuple[int, int], answers: Sequence[Answer]) -> None:
        scale = max(size[0], MIN_WIDTH) / size[0]
        if scale > 1:
            scale = min(scale, max(1, MAX_ENLARGED_HEIGHT / size[1]))
        self.frame_size = tuple(max(1, round(side * scale)) for side in size)
        canvas_width = _even(max(self.frame_size[0], MIN_WIDTH))
        text_size = min(math.sqrt(canvas_width * self.frame_size[1]) / 25, canvas_width / 12)
        self.style = font(round(max(MIN_FONT, text_size)))
        self.margin = round(self.style.size / 2)
        width_for_text = canvas_width - 2 * self.margin
        labels = dict.fromkeys(answer.label for answer in answers)
        self.lines = {label: _wrap(f"100 %  {label}", self.style, width_for_text) for label in labels}
        num_lines = max(map(len, self.lines.values()), default=0)
        band_height = self._band_height(num_lines)
        # Below the frame if it would hide more than half of it.
        is_below = 2 * band_height > self.frame_size[1]
        self.size = canvas_width, _even(self.frame_size[1] + band_height * is_below)

    def draw(self, frame: Image.Image, answer: Answer | None) -> Image.Image:
        """Draw an answer on a frame; None for no caption."""
        if frame.size != self.frame_size:
            frame = frame.resize(self.frame_size, Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", self.size)
        canvas.paste(frame, ((self.size[0] - frame.width) // 2, 0))
        if answer:
            lines = self.lines[answer.label]
            band = Image.new("RGBA", (self.size[0], self._band_height(len(lines))), BAND)
            draw = ImageDraw.Draw(band)
            for number, line in enumerate(lines):
                text = line if number else line.replace("100 %", f"{100 * answer.probability:.0f} %", 1)
                place = (self.margin, self.margin // 2 + number * self.line_height)
                draw.text(place, text, WHITE, self.style)
            canvas.paste(band, (0, self.size[1] - band.height), band)
        return canvas

    @property
    def line_height(self) -> int:
        return round(1.2 * self.style.size)

    def _band_height(self, num_lines: int) -> int:
        return num_lines * self.line_height + self.margin


def answer_sheet(name: str, numbers: Sequence[int], crops: np.ndarray, top: Sequence[Answer]) -> Image.Image:
    """Draw the crops that a model saw, with their frame numbers, and the best classes as bars below."""
    captions = [f"frame {number}" for number in numbers]
    row = SheetRow([Image.fromarray(crop) for crop in crops], [name], captions)
    images = [contact_sheet([row], 4 if len(numbers) <= 8 else 8, SHEET_WIDTH)]
    style, left, bar_width = font(TEXT_SIZE), SHEET_WIDTH * 6 // 10, SHEET_WIDTH * 3 // 10
    for answer in top:
        lines = _wrap(answer.label, style, left - 2 * MARGIN)
        image = Image.new("RGB", (SHEET_WIDTH, len(lines) * LINE_HEIGHT + MARGIN), WHITE)
        draw = ImageDraw.Draw(image)
        draw.multiline_text((MARGIN, 0), "\n".join(lines), INK, style)
        draw.rectangle((left, 0, left + bar_width, LINE_HEIGHT - 4), "#e1e1e1")
        if (length := round(bar_width * answer.probability)) > 0:
            draw.rectangle((left, 0, left + length, LINE_HEIGHT - 4), BAR)
        draw.text((left + bar_width + MARGIN, 0), f"{answer.probability:.3f}", INK, style)
        images.append(image)
    return stack(images)


def write_movie(
    part: Path,
    frames: Iterable[tuple[Image.Image, Fraction]],
    draw: Callable[[Image.Image, float], Image.Image],
) -> None:
    """Write an MP4 file (H.264).

    Args:
        part: the file.
        frames: with their times, in seconds.
        draw: makes the picture of a frame from the frame and its time. All pictures have the same size, with
            an even width and height.
    """
    time_base = Fraction(1, 90_000)  # the common unit of the usual frame rates
    pts, length = None, 0
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, pix_fmt="yuv420p")
        stream.time_base = stream.codec_context.time_base = time_base
        stream.options = {"preset": "veryfast", "crf": "20"}
        stream.codec_context.colorspace = Colorspace.ITU601
        stream.codec_context.color_range = ColorRange.MPEG
        for image, time in frames:
            picture = draw(image, float(time))
            if pts is None:
                stream.width, stream.height = picture.size
            frame = av.VideoFrame.from_image(picture).reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            length, pts = round(time / time_base) - (pts or 0), round(time / time_base)
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        for packet in stream.encode():
            packet.duration = length  # the last frame has none
            container.mux(packet)


def _even(number: int) -> int:
    return number + number % 2  # yuv420p has one colour for four pixels


def _wrap(text: str, style: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words or inside a longer word."""
    lines = [""]
    for word in printable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if style.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and style.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
