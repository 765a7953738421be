"""Draw the answer of a model on the video, or below the frames that the model saw."""

import math
import signal
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from frames.sources import FrameFolder, VideoFile
from reports.plots import INK, LINE_HEIGHT, MARGIN, TEXT_SIZE, SheetRow, contact_sheet, font, stack
from utils.cli import UserError, printable, uninterrupted
from utils.files import check_new_file

SUFFIXES = (".mp4", ".gif", ".png")

# In pixels: a caption on a smaller picture could not be read.
MIN_WIDTH, MIN_FONT = 320, 16
# A narrow video of this height gets black sides instead of being enlarged.
MAX_ENLARGED_HEIGHT = 4096
GIF_FPS = 10
SHEET_WIDTH = 1200
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


def render(path: Path, video: FrameFolder | VideoFile, numbers: Sequence[int], top: Sequence[Answer]) -> None:
    """Draw the answers of a model; the suffix of the file decides how, see the option `--rendered_output`.

    The file appears under its name when it is complete. Memory does not grow with the length of the video.

    Args:
        path: file to write, with one of `SUFFIXES`.
        video: the input of the model.
        numbers: frames that the model saw, from 1.
        top: the best classes, the best one first.

    Raises:
        UserError: a frame cannot be read, or the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    # The default handler would leave the partial file.
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if path.suffix.lower() == ".png":
            answer_sheet(video, numbers, top).save(part, format="PNG")
        else:
            _write_movie(part, video, top[0], is_gif=path.suffix.lower() == ".gif")
        with uninterrupted():
            part.replace(path)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"--rendered_output {path}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, handler)


class Caption:
    """Draws an answer on the frames of a video; all frames get the size of the first.

    Args:
        size: width and height of the video, in pixels.
        answer: to be drawn.
        width: of the output; None for the width of the video, but at least `MIN_WIDTH`.
    """

    def __init__(self, size: tuple[int, int], answer: Answer, width: int | None = None) -> None:
        scale = (width or max(size[0], MIN_WIDTH)) / size[0]
        if scale > 1:
            scale = min(scale, max(1, MAX_ENLARGED_HEIGHT / size[1]))
        self.frame_size = tuple(max(1, round(side * scale)) for side in size)
        canvas_width = _even(max(self.frame_size[0], width or MIN_WIDTH))
        text_size = min(math.sqrt(canvas_width * self.frame_size[1]) / 25, canvas_width / 12)
        style = font(round(max(MIN_FONT, text_size)))
        margin = round(style.size / 2)
        lines = _wrap(f"{100 * answer.probability:.0f} %  {answer.label}", style, canvas_width - 2 * margin)
        line_height = round(1.2 * style.size)
        band_height = len(lines) * line_height + margin
        # Below the frame if it would hide more than half of it.
        is_below = 2 * band_height > self.frame_size[1]
        self.size = canvas_width, _even(self.frame_size[1] + band_height * is_below)
        self.band = Image.new("RGBA", (canvas_width, band_height), BAND)
        draw = ImageDraw.Draw(self.band)
        for number, line in enumerate(lines):
            draw.text((margin, margin // 2 + number * line_height), line, WHITE, style)

    def draw(self, frame: Image.Image) -> Image.Image:
        """Draw the caption on a frame."""
        if frame.size != self.frame_size:
            frame = frame.resize(self.frame_size, Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", self.size)
        canvas.paste(frame, ((self.size[0] - frame.width) // 2, 0))
        canvas.paste(self.band, (0, self.size[1] - self.band.height), self.band)
        return canvas


def answer_sheet(
    video: FrameFolder | VideoFile, numbers: Sequence[int], top: Sequence[Answer]
) -> Image.Image:
    """Draw the frames that a model saw, with their numbers, and the best classes as bars below."""
    frames = video.read(numbers)
    captions = [f"frame {number}" for number in numbers]
    row = SheetRow([frames[number] for number in numbers], [video.path.name], captions)
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


def _write_movie(part: Path, video: FrameFolder | VideoFile, answer: Answer, is_gif: bool) -> None:
    """Write an MP4 file (H.264), or a GIF of `GIF_FPS` frames per second and `MIN_WIDTH` pixels."""
    kind, codec, pix_fmt = ("gif", "gif", "pal8") if is_gif else ("mp4", "libx264", "yuv420p")
    # 1/90000 s is the common unit of the usual frame rates.
    time_base = Fraction(1, 100 if is_gif else 90_000)
    caption, due, pts, duration = None, Fraction(0), 0, 0
    with av.open(str(part), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, pix_fmt=pix_fmt)
        stream.time_base = stream.codec_context.time_base = time_base
        if not is_gif:
            stream.options = {"preset": "veryfast", "crf": "20"}
            stream.codec_context.colorspace = Colorspace.ITU601
            stream.codec_context.color_range = ColorRange.MPEG
        frames = tqdm(video.play(), "rendering", video.num_frames, leave=False, unit="frame", disable=None)
        for image, time in frames:
            if is_gif and time < due:
                continue
            due = max(due, time - Fraction(1, 2 * GIF_FPS)) + Fraction(1, GIF_FPS)
            if caption is None:
                caption = Caption(image.size, answer, MIN_WIDTH if is_gif else None)
                stream.width, stream.height = caption.size
            frame = (_gif_frame if is_gif else _mp4_frame)(caption.draw(image))
            duration, pts = round(time / time_base) - pts, round(time / time_base)
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        for packet in stream.encode():
            packet.duration = duration  # the last frame has none
            container.mux(packet)


def _mp4_frame(image: Image.Image) -> av.VideoFrame:
    return av.VideoFrame.from_image(image).reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
    )


def _gif_frame(image: Image.Image) -> av.VideoFrame:
    colours = image.quantize(256)
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    entries = np.array(colours.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(entries), 1:] = entries
    return av.VideoFrame.from_ndarray((np.asarray(colours), palette), format="pal8")


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
