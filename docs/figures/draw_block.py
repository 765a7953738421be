"""Draw the README's picture: the bottlenecks of ResNet, GST and GST-Large side by side.

    python docs/figures/draw_block.py docs/figures/gst_block.png

The blocks are those of the paper (arXiv 1909.13130) for alpha 4, its choice.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.cli import Parser, run_program

INK, LINE = "#1f2937", "#4b5563"
# Face and edge of the boxes.
NEUTRAL, SPATIAL, TEMPORAL = ("#eceff3", "#9aa4b2"), ("#cfe2fb", "#2f6fbd"), ("#fbd9c0", "#c2601c")
# One unit is a hundredth of an inch. Heights of the rows, top to bottom.
WIDTH, HEIGHT = 820, 500
TITLE, INPUT, CONV1, SPLIT, CONV2, CONCAT, CONV3, SUM, OUTPUT = 478, 432, 378, 328, 262, 202, 152, 98, 54
HALF = 22  # half the height of a box


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="the picture to write, such as gst_block.png")
    args = parser.parse_args()
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=200, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    frame(axes, 122, 95, "ResNet", "each frame alone")
    line(axes, (122, CONV1 - HALF), (122, CONV2 + HALF), head=True)
    box(axes, 122, CONV2, "1×3×3 conv\n$C$ → $C$", SPATIAL)
    line(axes, (122, CONV2 - HALF), (122, CONV3 + HALF), head=True)
    draw_gst(axes, 386, "GST", "α = 4, β = 2: each path reads half of the channels", "$C/2$")
    draw_gst(axes, 676, "GST-Large", "α = 4, β = 1: each path reads all channels", "$C$")
    text(
        axes,
        WIDTH / 2,
        20,
        "kernels are time × height × width; batch norms and ReLUs are left out",
        color=LINE,
    )
    figure.savefig(args.file, facecolor="white")


def text(axes: Axes, x: float, y: float, words: str, **style: object) -> None:
    axes.text(x, y, words, ha="center", va="center", **{"size": 8, "color": INK} | style)


def box(axes: Axes, x: float, y: float, words: str, colours: tuple[str, str] = NEUTRAL) -> None:
    style = {"boxstyle": "round,pad=0.6", "facecolor": colours[0], "edgecolor": colours[1]}
    text(axes, x, y, words, size=9, bbox=style)


def line(axes: Axes, *points: tuple[float, float], head: bool = False) -> None:
    if head:
        style = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], points[-2], arrowprops=style)
    axes.plot(*zip(*points, strict=True), color=LINE, linewidth=1.2)


def frame(axes: Axes, middle: float, half: float, title: str, subtitle: str) -> None:
    """Draw what the blocks have in common: title, the 1x1x1 convolutions at both ends and the shortcut."""
    text(axes, middle, TITLE, title, size=11.5, weight="bold")
    text(axes, middle, TITLE - 18, subtitle, color=LINE)
    text(axes, middle, INPUT, "input, $4C$ channels")
    line(axes, (middle, INPUT - 9), (middle, CONV1 + HALF), head=True)
    box(axes, middle, CONV1, "1×1×1 conv\n$4C$ → $C$")
    box(axes, middle, CONV3, "1×1×1 conv\n$C$ → $4C$")
    line(axes, (middle, CONV3 - HALF), (middle, SUM + 11), head=True)
    left = middle - half
    line(axes, (middle, INPUT - 19), (left, INPUT - 19), (left, SUM), (middle - 11, SUM), head=True)
    text(axes, left - 11, CONV2, "shortcut", rotation=90)
    text(
        axes,
        middle,
        SUM,
        "$+$",
        size=10,
        bbox={"boxstyle": "circle", "facecolor": "white", "edgecolor": LINE},
    )
    line(axes, (middle, SUM - 11), (middle, OUTPUT + 9), head=True)
    text(axes, middle, OUTPUT, "output, $4C$ channels")


def draw_gst(axes: Axes, middle: float, title: str, subtitle: str, reads: str) -> None:
    frame(axes, middle, 130, title, subtitle)
    line(axes, (middle, CONV1 - HALF), (middle, SPLIT))
    for x, path, operation, gives, colours in (
        (middle - 58, "spatial path", "1×3×3 conv", "$3C/4$", SPATIAL),
        (middle + 58, "temporal path", "3×3×3 conv", "$C/4$", TEMPORAL),
    ):
        line(axes, (middle, SPLIT), (x, SPLIT), (x, CONV2 + HALF), head=True)
        text(axes, x, SPLIT + 10, path, weight="bold", color=colours[1])
        box(axes, x, CONV2, f"{operation}\n{reads} → {gives}", colours)
        line(axes, (x, CONV2 - HALF), (x, CONCAT), (middle, CONCAT))
    line(axes, (middle, CONCAT), (middle, CONV3 + HALF), head=True)
    text(axes, middle, CONCAT + 10, "concatenate")


if __name__ == "__main__":
    run_program(main)
