"""Plot the answers of a model over the time of a video, and the evidence in space and time for one answer."""

from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from frames.sources import Video, duration
from reports.plots import GREY, INK, SheetRow
from reports.render import Movie, model_sheet, rendering
from utils.cli import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CLASSES, NUM_THUMBNAILS = 6, 10
MOVIE_WIDTH, BAR_HEIGHT = 448, 60  # of the film of `--cam`, in pixels
FOR, AGAINST = "#c2410c", "#9ca3af"


def draw_timeline(
    video: Video, spans: Sequence[tuple[float, float]], probabilities: np.ndarray, names: Sequence[str]
) -> "Figure":
    """Plot the probabilities of the most probable classes over time, below frames of the video.

    Args:
        spans: start and end of each window, in seconds.
        probabilities: windows x classes.
        names: class names.
    """
    from matplotlib.figure import Figure

    length = duration(video)
    times = (np.arange(NUM_THUMBNAILS) + 0.5) * length / NUM_THUMBNAILS
    numbers = [max(1, int(np.searchsorted(video.times, time, side="right"))) for time in times]
    frames = video.read(sorted(set(numbers)))
    image = next(iter(frames.values()))
    size = (240, 240 * image.height // image.width)
    thumbnails = np.hstack([np.asarray(frames[number].resize(size)) for number in numbers])
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1.2 * image.height / image.width, 3))
    strip.imshow(thumbnails, extent=(0, length, 0, 1), aspect="auto")
    strip.set_title(printable(video.path.name))
    strip.axis("off")
    centres = [(start + end) / 2 for start, end in spans]
    for label in np.argsort(-probabilities.max(axis=0), kind="stable")[:NUM_CLASSES]:
        axes.plot(
            centres, probabilities[:, label], marker="o", markersize=3, label=f" {printable(names[label])}"
        )
    axes.set(xlabel="seconds (centre of the window)", ylabel="probability", ylim=(0, 1.02))
    axes.grid(color="0.92")
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=9)
    return figure


def write_activation(
    path: Path,
    title: str,
    frames: np.ndarray,
    maps: np.ndarray,
    numbers: Sequence[int],
    times: Sequence[float],
) -> None:
    """Draw class activation as a heat map on the input frames, and the evidence of each frame as a bar.

    Args:
        path: file to write: .png for a contact sheet, .mp4 for a video.
        title: video and class.
        frames: uint8, frames x height x width x RGB.
        maps: class activation, frames x height x width of the last stage.
        numbers: frame numbers.
        times: times of the frames, in seconds.

    Raises:
        UserError: the file cannot be written.
    """
    evidence = maps.mean(axis=(1, 2))
    pictures = [_with_bars(image, evidence, index) for index, image in enumerate(heat(frames, maps))]
    with rendering(path, "--cam") as part:
        if path.suffix.lower() == ".png":
            captions = [
                f"{number}, {time:.1f} s: {value:+.2f}"
                for number, time, value in zip(numbers, times, evidence, strict=True)
            ]
            lines = [title, "frame, time: evidence (its mean plus the bias is the logit)"]
            model_sheet(SheetRow(pictures, lines, captions)).save(part, format="PNG")
            return
        with closing(Movie(part)) as movie:
            for index, (picture, time) in enumerate(zip(pictures, times, strict=True)):
                # Frames of short videos are repeated, but times in a video file must increase.
                movie.add(picture, Fraction(max(round(1000 * time), index), 1000))


def heat(frames: np.ndarray, maps: np.ndarray) -> list[Image.Image]:
    """Draw the positive part of class activation over frames, from transparent to red and yellow.

    Args:
        frames: uint8, frames x height x width x RGB.
        maps: frames x height x width of the last stage. The strongest activation of the clip is yellow.
    """
    strength = np.clip(maps, 0, None) / max(float(maps.max()), 1e-9)
    images = []
    for frame, values in zip(frames, strength, strict=True):
        size = (frame.shape[1], frame.shape[0])
        scaled = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        share = np.asarray(scaled)[..., None]
        colour = np.concatenate([np.ones_like(share), share**2, np.zeros_like(share)], axis=2) * 255
        images.append(Image.fromarray((frame + 0.65 * share * (colour - frame)).round().astype(np.uint8)))
    return images


def _with_bars(image: Image.Image, evidence: np.ndarray, index: int) -> Image.Image:
    """Enlarge a frame, and draw the evidence of all frames as bars below it. The frame's bar is dark."""
    height = round(MOVIE_WIDTH * image.height / image.width) // 2 * 2
    canvas = Image.new("RGB", (MOVIE_WIDTH, height + BAR_HEIGHT), "white")
    canvas.paste(image.resize((MOVIE_WIDTH, height), Image.Resampling.BICUBIC), (0, 0))
    draw = ImageDraw.Draw(canvas)
    low, high = min(0.0, float(evidence.min())), max(0.0, float(evidence.max()))
    scale = (BAR_HEIGHT - 8) / max(high - low, 1e-9)
    zero = height + 4 + scale * high
    width = MOVIE_WIDTH / len(evidence)
    for number, value in enumerate(evidence.tolist()):
        top, bottom = sorted((zero, zero - scale * value))
        colour = INK if number == index else FOR if value > 0 else AGAINST
        draw.rectangle((number * width + 2, top, (number + 1) * width - 3, bottom), colour)
    draw.line((0, zero, MOVIE_WIDTH, zero), GREY)
    return canvas
