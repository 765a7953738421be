"""Pictures: the style of all plots, the curves of runs, a batch of clips."""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.cli import printable

if TYPE_CHECKING:  # it takes half a second to import
    from matplotlib.figure import Figure

DPI = 150
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # names may have dollar signs
    "savefig.dpi": DPI,
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, GREY, ACCENT = "#111827", "#6b7280", "#c2410c"

# Of the picture of a batch, in pixels.
MAX_CLIPS, MAX_FRAMES = 12, 16
FRAME_SIZE, MARGIN, GAP, BAR, TEXT_SIZE, LINE_HEIGHT = 112, 16, 2, 6, 15, 20
MIN_WIDTH = 640


@contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Draw without a display, independently of a matplotlibrc, and without warnings of missing glyphs."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def figure_png(draw: Callable[[], "Figure"]) -> bytes:
    """The content of a PNG file with what `draw` draws, in the style of all plots."""
    content = io.BytesIO()
    with plain_matplotlib():
        draw().savefig(content, format="png")
    return content.getvalue()


def image_png(image: Image.Image) -> bytes:
    """The content of a PNG file with an image."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    """matplotlib's own font, which has more letters than Pillow's.

    Args:
        size: in pixels.
        weight: 'normal' or 'bold'.
    """
    from matplotlib.font_manager import FontProperties, findfont

    file = findfont(FontProperties(family="DejaVu Sans", weight=weight))
    # The same layout everywhere, whatever libraries are installed.
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def shorten(text: str, room: float, width_of: Callable[[str], float]) -> str:
    """Cut a text to a width, with an ellipsis at its end.

    Args:
        text: in one line.
        room: the width, in the unit of `width_of`.
        width_of: gives the width of a text.
    """
    if width_of(text) <= room:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if width_of(text[:middle].rstrip() + "…") <= room:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…"


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Plot loss, top-1 accuracy and learning rate over the epochs, of training (dashed) and validation.

    Args:
        runs: `{name: rows of its CSV file}`, as `training.checkpoint.HistoryRow`; values of the validation may
            be missing.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter, MaxNLocator

    names = [textwrap.fill(printable(name), 140) for name in runs]
    lines = sum(1 + name.count("\n") for name in names)
    figure = Figure(figsize=(12, 4.2 + 0.2 * lines), layout="constrained")
    panels = figure.subplots(1, 3)
    handles = [Line2D([], [], color=GREY, linestyle=style) for style in ("--", "-")]
    for number, rows in enumerate(runs.values()):
        style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        style["markevery"] = max(1, len(rows) // 20)
        for axes, name in zip(panels, ("loss", "prec1"), strict=False):
            for part, line in (("train", {"linestyle": "--", "alpha": 0.6}), ("val", {})):
                points = [(row["epoch"], row[f"{part}_{name}"]) for row in rows if f"{part}_{name}" in row]
                axes.plot(*zip(*points, strict=True), **style, **line)
        panels[2].plot([row["epoch"] for row in rows], [row["lr"] for row in rows], **style)
        handles.append(Line2D([], [], **style))
    for axes, label in zip(panels, ("loss", "top-1, %", "learning rate"), strict=True):
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.grid(color="0.92")
    panels[1].set_ylim(0, 102)  # room for a marker at 100 %
    rates = [row["lr"] for rows in runs.values() for row in rows]
    if max(rates) >= 10 * min(rates) > 0:
        panels[2].set_yscale("log")
        panels[2].yaxis.set_major_formatter(LogFormatter())
        panels[2].yaxis.set_minor_formatter(LogFormatter())  # only where there is room
    else:
        panels[2].set_ylim(0, 1.1 * max(rates) or 1)
    # matplotlib leaves out labels that begin with an underscore, hence the blank.
    labels = [f" {name}" for name in ("training", "validation", *names)]
    figure.legend(handles, labels, loc="outside lower center", fontsize=9)
    return figure


def draw_batch(
    clips: np.ndarray,
    labels: Sequence[int],
    mirrored: Sequence[bool],
    videos: Sequence[str],
    categories: Sequence[str],
    title: str,
) -> Image.Image:
    """Draw the first clips of a batch, the frames of each in a row, its label and its video beneath.

    Args:
        clips: uint8, batch x frames x height x width x channel (RGB), as `engine.to_input` takes them.
        labels: that they train.
        mirrored: for each clip to draw, whether it is.
        videos: their names.
        categories: class names.
        title: the first line.
    """
    clips, step = clips[:MAX_CLIPS], -(-clips.shape[1] // MAX_FRAMES)
    height, width = clips.shape[2:4]
    scale = FRAME_SIZE / max(height, width)
    scale = int(scale) if scale > 1 else scale  # enlarged, each pixel becomes a square
    size = max(1, round(scale * width)), max(1, round(scale * height))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    row = size[1] + 2 * LINE_HEIGHT + MARGIN

    frames = range(0, clips.shape[1], step)
    room = max(BAR + len(frames) * (size[0] + GAP), MIN_WIDTH)
    top = MARGIN + 2 * LINE_HEIGHT
    sheet = Image.new("RGB", (room + 2 * MARGIN, top + len(clips) * row), "white")
    draw = ImageDraw.Draw(sheet)
    regular, bold = font(TEXT_SIZE), font(TEXT_SIZE, "bold")

    def write(y: int, text: str, style: ImageFont.FreeTypeFont, colour: str, x: int = 0) -> None:
        text = shorten(printable(text), room - x, style.getlength)
        draw.text((MARGIN + x, y), text, colour, style)

    write(MARGIN, title, bold, INK)
    for number, clip in enumerate(clips):
        y = top + number * row
        for place, frame in enumerate(frames):
            image = Image.fromarray(clip[frame]).resize(size, resampling)
            sheet.paste(image, (MARGIN + BAR + place * (size[0] + GAP), y))
        y += size[1] + 2
        mark = "mirrored  " if mirrored[number] else ""
        if mark:
            draw.rectangle((MARGIN, y - size[1] - 2, MARGIN + BAR - GAP - 1, y - 3), ACCENT)
            write(y, mark, bold, ACCENT)
        write(y, f"{labels[number]} {categories[labels[number]]}", bold, INK, round(bold.getlength(mark)))
        part = f"one in {step} frames of " if step > 1 else ""
        write(y + LINE_HEIGHT, f"{part}video {videos[number]}", regular, GREY)
    return sheet
