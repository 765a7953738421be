"""Draw the README's picture: the bottlenecks of ResNet, GST and GST-Large side by side.

    python docs/figures/draw_block.py docs/figures/gst_block.png

The blocks are those of the paper (arXiv 1909.13130) for alpha 4, its choice.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from utils.cli import Parser, run_program

INK, LINE = "#1f2937", "#4b5563"
NEUTRAL, SPATIAL, TEMPORAL = "#eceff3", "#cfe2fb", "#fbd9c0"
EDGE = {NEUTRAL: "#9aa4b2", SPATIAL: "#2f6fbd", TEMPORAL: "#c2601c"}

# One unit is a hundredth of an inch; at 200 dpi the picture is 1640 pixels wide.
WIDTH, HEIGHT = 820, 500
DPI = 200
BOX_HEIGHT = 38
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 11.5, 9.0, 8.0

# Heights of the rows, top to bottom.
TITLE, INPUT, CONV1, SPLIT, CONV2, CONCAT, CONV3, SUM, OUTPUT = 478, 432, 378, 328, 262, 202, 152, 98, 54
FOOTNOTE = 20


class Canvas:
    """Boxes, arrows and text in one style."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")

    def text(self, x: float, y: float, words: str, size: float = TEXT_SIZE, **style: str | float) -> None:
        self.axes.text(x, y, words, size=size, ha="center", va="center", **{"color": INK, **style})

    def box(self, x: float, y: float, width: float, lines: str, colour: str = NEUTRAL) -> None:
        """A box centred at (x, y); its first line, the operation, is bold."""
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - BOX_HEIGHT / 2),
                width,
                BOX_HEIGHT,
                boxstyle="round,pad=0,rounding_size=6",
                facecolor=colour,
                edgecolor=EDGE[colour],
                linewidth=1.1,
            )
        )
        operation, _, channels = lines.partition("\n")
        self.text(x, y + 8, operation, weight="bold")
        self.text(x, y - 9, channels, size=SMALL_SIZE)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        style = {"arrowstyle": "-|>,head_length=0.35,head_width=0.17", "color": LINE, "linewidth": 1.2}
        self.axes.annotate("", end, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})

    def line(self, *points: tuple[float, float]) -> None:
        self.axes.plot(*zip(*points, strict=True), color=LINE, linewidth=1.2, solid_joinstyle="round")

    def sum_sign(self, x: float, y: float) -> None:
        self.axes.add_patch(Circle((x, y), 9, facecolor="white", edgecolor=LINE, linewidth=1.2, zorder=3))
        self.axes.plot([x - 5, x + 5], [y, y], [x, x], [y - 5, y + 5], color=LINE, linewidth=1.2, zorder=4)


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="the picture to write, such as gst_block.png")
    args = parser.parse_args()
    canvas = Canvas()
    _draw_resnet(canvas, middle=122)
    _draw_gst(canvas, middle=386, beta=2)
    _draw_gst(canvas, middle=676, beta=1)
    footnote = "kernels are time × height × width; batch norms and ReLUs are left out"
    canvas.text(WIDTH / 2, FOOTNOTE, footnote, size=SMALL_SIZE, color=LINE)
    canvas.figure.savefig(args.file, facecolor="white")


def _draw_frame(canvas: Canvas, middle: float, half: float, title: str, subtitle: str) -> None:
    """Draw what the blocks have in common: title, the 1x1x1 convolutions at both ends and the shortcut."""
    canvas.text(middle, TITLE, title, size=TITLE_SIZE, weight="bold")
    canvas.text(middle, TITLE - 18, subtitle, size=SMALL_SIZE, color=LINE)
    left = middle - half
    canvas.text(middle, INPUT, "input, $4C$ channels", size=SMALL_SIZE)
    canvas.arrow((middle, INPUT - 9), (middle, CONV1 + BOX_HEIGHT / 2))
    canvas.box(middle, CONV1, 120, "1×1×1 conv\n$4C$ → $C$")
    canvas.box(middle, CONV3, 120, "1×1×1 conv\n$C$ → $4C$")
    canvas.arrow((middle, CONV3 - BOX_HEIGHT / 2), (middle, SUM + 9))
    canvas.line((middle, INPUT - 19), (left, INPUT - 19), (left, SUM))
    canvas.text(left - 11, CONV2, "shortcut", size=SMALL_SIZE, rotation=90)
    canvas.arrow((left, SUM), (middle - 9, SUM))
    canvas.sum_sign(middle, SUM)
    canvas.arrow((middle, SUM - 9), (middle, OUTPUT + 9))
    canvas.text(middle, OUTPUT, "output, $4C$ channels", size=SMALL_SIZE)


def _draw_resnet(canvas: Canvas, middle: float) -> None:
    _draw_frame(canvas, middle, 95, "ResNet", "each frame alone")
    canvas.arrow((middle, CONV1 - BOX_HEIGHT / 2), (middle, CONV2 + BOX_HEIGHT / 2))
    canvas.box(middle, CONV2, 120, "1×3×3 conv\n$C$ → $C$", SPATIAL)
    canvas.arrow((middle, CONV2 - BOX_HEIGHT / 2), (middle, CONV3 + BOX_HEIGHT / 2))


def _draw_gst(canvas: Canvas, middle: float, beta: int) -> None:
    title, subtitle = {
        2: ("GST", "α = 4, β = 2: each path reads half of the channels"),
        1: ("GST-Large", "α = 4, β = 1: each path reads all channels"),
    }[beta]
    _draw_frame(canvas, middle, 130, title, subtitle)
    reads = {2: "$C/2$", 1: "$C$"}[beta]
    canvas.line((middle, CONV1 - BOX_HEIGHT / 2), (middle, SPLIT))
    for side, path, operation, gives, half, colour in (
        (-1, "spatial path", "1×3×3 conv", "$3C/4$", "first half", SPATIAL),
        (1, "temporal path", "3×3×3 conv", "$C/4$", "second half", TEMPORAL),
    ):
        x = middle + side * 58
        canvas.line((middle, SPLIT), (x, SPLIT))
        canvas.arrow((x, SPLIT), (x, CONV2 + BOX_HEIGHT / 2))
        canvas.box(x, CONV2, 104, f"{operation}\n{reads} → {gives}", colour)
        canvas.text(x, SPLIT + 10, path, size=SMALL_SIZE, weight="bold", color=EDGE[colour])
        if beta == 2:
            canvas.text(x + side * 38, SPLIT - 20, half, size=SMALL_SIZE)
        canvas.line((x, CONV2 - BOX_HEIGHT / 2), (x, CONCAT), (middle, CONCAT))
    canvas.arrow((middle, CONCAT), (middle, CONV3 + BOX_HEIGHT / 2))
    canvas.text(middle, CONCAT + 10, "concatenate", size=SMALL_SIZE)


if __name__ == "__main__":
    run_program(main)
