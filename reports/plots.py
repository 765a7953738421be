"""The style of all plots, the curves of runs, contact sheets of clips."""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    "savefig.bbox": "tight",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, GREY, ACCENT = "#111827", "#6b7280", "#c2410c"

MAX_CLIPS, MAX_FRAMES = 12, 16  # in the picture of a batch
# Contact sheet, in pixels.
SHEET_WIDTH, MARGIN, GAP, TEXT_SIZE, LINE_HEIGHT = 1600, 20, 4, 17, 24
MAX_FRAME_HEIGHT = 300
MAX_CHARACTERS = 140  # of a line


@contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Draw in the same style everywhere: ignore matplotlibrc, and suppress warnings about missing glyphs."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def figure_png(draw: Callable[[], "Figure"]) -> bytes:
    """Call `draw` in the style of all plots, and encode its figure as PNG."""
    content = io.BytesIO()
    with plain_matplotlib():
        draw().savefig(content, format="png")
    return content.getvalue()


def image_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)  # the default takes four times as long
    return content.getvalue()


def font(size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load matplotlib's font, which has more glyphs than Pillow's; `size` is in pixels."""
    matplotlib = find_spec("matplotlib").origin  # not imported, because that takes half a second
    file = Path(matplotlib).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"
    if is_bold:
        file = file.with_stem("DejaVuSans-Bold")
    # BASIC gives the same layout with and without Raqm.
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Plot loss, top-1 accuracy and learning rate over the epochs, of training (dashed) and validation.

    Args:
        runs: `{name: rows of its CSV file}`; values of the validation may be missing.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for number, (name, rows) in enumerate(runs.items()):
        style = {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        style["markevery"] = max(1, len(rows) // 20)
        for axes, value in zip(panels, ("loss", "prec1"), strict=False):
            for part, line in (("train", {"linestyle": "--", "alpha": 0.6}), ("val", {})):
                points = [(row["epoch"], row[f"{part}_{value}"]) for row in rows if f"{part}_{value}" in row]
                axes.plot(*zip(*points, strict=True), **style, **line)
        # matplotlib leaves out labels that begin with an underscore, hence the blank.
        label = f" {textwrap.fill(printable(name), 140)}"
        panels[2].plot([row["epoch"] for row in rows], [row["lr"] for row in rows], label=label, **style)
    titles = ("loss (training dashed)", "top-1, % (training dashed)", "learning rate")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.grid(color="0.92")
    panels[1].set_ylim(0, 102)  # room for a marker at 100 %
    rates = [row["lr"] for rows in runs.values() for row in rows]
    if max(rates) >= 10 * min(rates) > 0:
        panels[2].set_yscale("log")
        # The default labels are formulas, which STYLE shows as plain text.
        panels[2].yaxis.set_major_formatter(LogFormatter())
        panels[2].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    else:
        panels[2].set_ylim(0, 1.1 * max(rates) or 1)
    # Below the figure; savefig's 'tight' includes it.
    figure.legend(
        *panels[2].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=9
    )
    return figure


class SheetRow(NamedTuple):
    """A clip on a contact sheet.

    Attributes:
        frames: images of the same size.
        lines: text above the frames; the first line is bold.
        captions: text below each frame; empty for none.
        mark: coloured word before the first line, with a bar beside the frames; empty for none.
    """

    frames: Sequence[Image.Image]
    lines: Sequence[str]
    captions: Sequence[str] = ()
    mark: str = ""


def contact_sheet(rows: Sequence[SheetRow], columns: int = 8, width: int = SHEET_WIDTH) -> Image.Image:
    """Draw clips below each other, with their frames in lines that fill the width.

    Args:
        rows: the clips; a row without frames has only text.
        columns: maximum number of frames in a line.
        width: width of the sheet, in pixels.
    """
    images = [_draw_row(row, columns, width) for row in rows]
    sheet = Image.new("RGB", (width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def _draw_row(row: SheetRow, columns: int, width: int) -> Image.Image:
    room = width - 2 * MARGIN
    columns = max(1, min(columns, len(row.frames)))
    frame_width, frame_height = row.frames[0].size if row.frames else (1, 1)
    scale = min(((room + GAP) / columns - GAP) / frame_width, MAX_FRAME_HEIGHT / frame_height)
    size = max(1, round(frame_width * scale)), max(1, round(frame_height * scale))
    resampling = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    top = MARGIN // 2 + LINE_HEIGHT * len(row.lines)
    line_height = size[1] + GAP + (LINE_HEIGHT if row.captions else 0)
    num_lines = -(-len(row.frames) // columns)
    image = Image.new("RGB", (width, top + num_lines * line_height + MARGIN // 2), "white")
    draw = ImageDraw.Draw(image)
    regular, bold = font(TEXT_SIZE), font(TEXT_SIZE, is_bold=True)

    left = MARGIN
    if row.mark:
        draw.text((MARGIN, MARGIN // 2), row.mark, ACCENT, bold)
        draw.rectangle((MARGIN // 2, top, MARGIN // 2 + 5, image.height - MARGIN // 2 - GAP - 1), ACCENT)
        left += round(bold.getlength(f"{row.mark}  "))
    for number, line in enumerate(row.lines):
        x, style, colour = (left, bold, INK) if number == 0 else (MARGIN, regular, GREY)
        text = printable(line, MAX_CHARACTERS)
        draw.text((x, MARGIN // 2 + number * LINE_HEIGHT), text, colour, style)
    draw.rectangle((width - MARGIN, 0, width, image.height), "white")  # cuts long lines
    for number, frame in enumerate(row.frames):
        line, column = divmod(number, columns)
        x, y = MARGIN + column * (size[0] + GAP), top + line * line_height
        image.paste(frame.resize(size, resampling), (x, y))
        if row.captions:
            draw.text((x, y + size[1] + GAP // 2), row.captions[number], GREY, regular)
    return image


def draw_batch(
    clips: np.ndarray,
    labels: Sequence[int],
    mirrored: Sequence[bool],
    videos: Sequence[str],
    categories: Sequence[str],
    title: str,
) -> Image.Image:
    """Draw the first clips of a batch: frames in a row, label and video above.

    Args:
        clips: uint8, batch x frames x height x width x channel (RGB), before normalisation.
        labels: training labels of the clips.
        mirrored: for each clip to draw, whether it is mirrored.
        videos: names of the videos.
        categories: class names.
        title: text of the first line.
    """
    step = -(-clips.shape[1] // MAX_FRAMES)
    part = f"one in {step} frames of " if step > 1 else ""
    rows = [SheetRow([], [title])]
    for clip, label, is_mirrored, video in zip(clips[:MAX_CLIPS], labels, mirrored, videos, strict=False):
        lines = [f"{label} {categories[label]}", f"{part}video {video}"]
        mark = "mirrored" if is_mirrored else ""
        rows.append(SheetRow([Image.fromarray(frame) for frame in clip[::step]], lines, mark=mark))
    return contact_sheet(rows, columns=MAX_FRAMES)
