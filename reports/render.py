"""Draw what a model says of a video: on the video itself, or under the frames that the model saw."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from frames.sources import FrameFolder, VideoFile
from utils.cli import UserError, printable, uninterrupted
from utils.files import check_new_file

SUFFIXES = (".mp4", ".gif", ".png")

# Of what is drawn, in pixels: a caption on less could not be read.
_MIN_WIDTH = 320
_MIN_FONT = 16
# Beyond it a narrow video gets black sides instead of being enlarged.
_MAX_ENLARGED_HEIGHT = 4096
_GIF_FPS = 10

_BAND = (0, 0, 0, 170)
_WHITE, _INK, _GREY, _BAR = (255, 255, 255), (20, 20, 20), (225, 225, 225), (31, 97, 160)
# The contact sheet's width and margin, in pixels.
_SHEET_WIDTH, _GAP = 1200, 16


class Answer(NamedTuple):
    """One of a model's best classes: its name and its probability, from 0 to 1."""

    label: str
    probability: float


def check_rendered_output(path: Path) -> None:
    """Refuse a file that cannot be rendered to.

    Raises:
        UserError: its name has another ending, it exists, or it cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise UserError(f"--rendered_output {path}: the name must end in {endings}")
    check_new_file(path, "--rendered_output")


def render(path: Path, video: FrameFolder | VideoFile, numbers: Sequence[int], top: Sequence[Answer]) -> None:
    """Draw the answers of a model, by the ending of the file's name: see the option `--rendered_output`.

    The file appears under its name when it is complete. Memory does not grow with the video's length.

    Args:
        path: to be written, with one of `SUFFIXES`.
        video: what the model was asked about.
        numbers: of the frames that it saw, from 1.
        top: the best classes, the best one first.

    Raises:
        UserError: a frame cannot be read, or the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of a killed process
        if path.suffix.lower() == ".png":
            contact_sheet(video, numbers, top).save(part, format="PNG")
        elif path.suffix.lower() == ".gif":
            _write_gif(part, video, top[0])
        else:
            _write_mp4(part, video, top[0])
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        with uninterrupted():
            part.replace(path)
    except (OSError, av.FFmpegError) as error:
        raise UserError(
            f"--rendered_output {path}: cannot be written ({getattr(error, 'strerror', None) or error})"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


class Caption:
    """Draws one answer on the frames of a video, all of which become as large as the first.

    Args:
        size: width and height of the video, in pixels.
        answer: to be drawn.
        width: of what is drawn; None for the video's, but at least `_MIN_WIDTH`.
    """

    def __init__(self, size: tuple[int, int], answer: Answer, width: int | None = None) -> None:
        scale = (width or max(size[0], _MIN_WIDTH)) / size[0]
        if scale > 1:
            scale = min(scale, max(1, _MAX_ENLARGED_HEIGHT / size[1]))
        self.frame_size = tuple(max(1, round(side * scale)) for side in size)
        canvas_width = _even(max(self.frame_size[0], width or _MIN_WIDTH))
        wanted = min(math.sqrt(canvas_width * self.frame_size[1]) / 25, canvas_width / 12)
        font = _font(max(_MIN_FONT, wanted))
        margin = round(font.size / 2)
        text = f"{100 * answer.probability:.0f} %  {answer.label}"
        lines = _wrap(text, font, canvas_width - 2 * margin)
        band_height = len(lines) * _line_height(font) + margin
        # On the frame, or below one of which it would hide more than half.
        is_below = 2 * band_height > self.frame_size[1]
        self.size = canvas_width, _even(self.frame_size[1] + band_height * is_below)
        self._band = Image.new("RGBA", (canvas_width, band_height), _BAND)
        draw = ImageDraw.Draw(self._band)
        for number, line in enumerate(lines):
            draw.text((margin, margin // 2 + number * _line_height(font)), line, _WHITE, font)

    def draw(self, frame: Image.Image) -> Image.Image:
        """Draw the caption on a frame, enlarged or reduced to `frame_size`."""
        if frame.size != self.frame_size:
            frame = frame.resize(self.frame_size, Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", self.size)
        canvas.paste(frame, ((self.size[0] - frame.width) // 2, 0))
        canvas.paste(self._band, (0, self.size[1] - self._band.height), self._band)
        return canvas


def contact_sheet(
    video: FrameFolder | VideoFile, numbers: Sequence[int], top: Sequence[Answer]
) -> Image.Image:
    """Draw the frames that a model saw, with their numbers, and its best classes as bars below.

    Raises:
        UserError: a frame cannot be read.
    """
    frames = video.read(numbers)
    width, height = next(iter(frames.values())).size
    columns = min(len(numbers), 4 if len(numbers) <= 8 and width >= height else 8)
    cell = (_SHEET_WIDTH - _GAP) // columns - _GAP
    scale = min(cell / width, 3 * cell / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small, large = _font(18), _font(24)
    row_height = size[1] + _line_height(small) + _GAP
    titles = _wrap(printable(video.path.name), large, _SHEET_WIDTH - 2 * _GAP)
    top_of_frames = _GAP + len(titles) * _line_height(large) + _GAP
    top_of_bars = top_of_frames + math.ceil(len(numbers) / columns) * row_height + _GAP
    bar_left, bar_width = _SHEET_WIDTH * 6 // 10, _SHEET_WIDTH * 3 // 10
    labels = [_wrap(answer.label, large, bar_left - 3 * _GAP) for answer in top]
    heights = [len(lines) * _line_height(large) + _GAP for lines in labels]

    sheet = Image.new("RGB", (_SHEET_WIDTH, top_of_bars + sum(heights) + _GAP), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(titles):
        draw.text((_GAP, _GAP + number * _line_height(large)), line, _INK, large)
    for place, number in enumerate(numbers):
        row, column = divmod(place, columns)
        left, upper = _GAP + column * (cell + _GAP), top_of_frames + row * row_height
        sheet.paste(frames[number].resize(size, Image.Resampling.BICUBIC), (left, upper))
        draw.text((left, upper + size[1] + 2), f"frame {number}", _INK, small)
    upper = top_of_bars
    for answer, lines, height in zip(top, labels, heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((_GAP, upper + number * _line_height(large)), line, _INK, large)
        box = bar_left, upper, bar_left + bar_width, upper + _line_height(large) - 4
        draw.rectangle(box, _GREY)
        if (length := round(bar_width * answer.probability)) > 0:
            draw.rectangle((*box[:2], bar_left + length, box[3]), _BAR)
        draw.text((box[2] + _GAP, upper), f"{answer.probability:.3f}", _INK, large)
        upper += height
    return sheet


def _write_mp4(path: Path, video: FrameFolder | VideoFile, answer: Answer) -> None:
    with _encoder(path, "mp4", "libx264") as (container, stream):
        # 90,000 parts of a second are what the usual frame rates have in common.
        stream.pix_fmt, time_base = "yuv420p", Fraction(1, 90000)
        stream.time_base = stream.codec_context.time_base = time_base
        stream.options = {"preset": "veryfast", "crf": "20"}
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        caption = None
        before = duration = 0
        for image, time in _with_progress(video):
            if caption is None:
                caption = Caption(image.size, answer)
                stream.width, stream.height = caption.size
            frame = av.VideoFrame.from_image(caption.draw(image)).reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
            before, duration = frame.pts, frame.pts - before
        for packet in stream.encode():
            packet.duration = duration  # which the last frame lacks
            container.mux(packet)


def _write_gif(path: Path, video: FrameFolder | VideoFile, answer: Answer) -> None:
    with _encoder(path, "gif", "gif") as (container, stream):
        stream.pix_fmt, time_base = "pal8", Fraction(1, 100)
        stream.time_base = stream.codec_context.time_base = time_base
        caption = None
        due = Fraction(0)
        for image, time in _with_progress(video):
            if time < due:
                continue
            due = max(due, time - Fraction(1, 2 * _GIF_FPS)) + Fraction(1, _GIF_FPS)
            if caption is None:
                caption = Caption(image.size, answer, _MIN_WIDTH)
                stream.width, stream.height = caption.size
            colours = caption.draw(image).quantize(256)
            palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
            entries = np.array(colours.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(entries), 1:] = entries
            frame = av.VideoFrame.from_ndarray((np.asarray(colours), palette), format="pal8")
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@contextmanager
def _encoder(
    path: Path, kind: str, codec: str
) -> Iterator[tuple[av.container.OutputContainer, av.VideoStream]]:
    with av.open(str(path), "w", format=kind) as container:
        yield container, container.add_stream(codec, rate=25)


def _with_progress(video: FrameFolder | VideoFile) -> Iterator[tuple[Image.Image, Fraction]]:
    return iter(
        tqdm(
            video.play(),
            total=video.num_frames,
            desc="rendering",
            unit="frame",
            disable=None,
            leave=False,
        )
    )


def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=round(size))


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(1.1 * sum(font.getmetrics()))


def _even(number: int) -> int:
    return number + number % 2  # yuv420p has one colour for four pixels


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines that are at most so many pixels wide; where a word is wider, inside it."""
    lines = [""]
    for word in printable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
