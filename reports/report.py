"""What `test_models.py --report DIR` writes: where a model is right and wrong, in tables and pictures.

report.md       figures, best and worst classes, hardest pairs, mirrored pairs
per_class.csv   a row for each class
confusion.png   the confusion matrix
mistakes.png    frames of the most confident mistakes; none if there are no mistakes
"""

import csv
import importlib.util
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from classes import mirrored_labels
from dataset import VideoDataSet
from reports.plots import DPI, GREY, INK, figure_png, font, image_png, shorten
from utils.cli import UserError, printable
from utils.files import check_writable_folder, staged
from utils.metrics import Result

if TYPE_CHECKING:  # it takes half a second to import
    from matplotlib.figure import Figure

NUM_BEST = 10  # classes in the table of the best ones, and of the worst
NUM_PAIRS = 20
NUM_MISTAKES = 12

# Up to so many classes the confusion matrix has numbers in its cells and names at both axes. With more, the
# columns have only the numbers of the classes, and the hardest pairs stand alongside.
FEW_CLASSES = 20
# With more classes, not every row has its label.
MAX_ROW_LABELS = 300

# Contact sheet, in pixels.
MARGIN, GAP, TEXT_SIZE, LINE_HEIGHT = 24, 6, 17, 25
FRAME_WIDTH, FRAME_HEIGHT = 200, 112
FRAMES_A_LINE, MAX_FRAMES = 8, 32


class ClassResult(NamedTuple):
    """A class's clips: how many there are, and for how many the best, or one of the five best, is right.

    `confused_with` is the class that its other clips are most often taken for, and `num_confused` how many
    are; None and 0 where no clip is taken for another class.
    """

    label: int
    clips: int
    top1: int
    top5: int
    confused_with: int | None
    num_confused: int


class Pair(NamedTuple):
    """Two classes, the confusion between them (the share of their clips that are taken for the other one),
    and their accuracy (the share of their clips that are right), both in percent; nan without clips."""

    first: int
    second: int
    confusion: float
    accuracy: float


class Mistake(NamedTuple):
    """A clip with a wrong prediction; probabilities are in percent, frames have numbers from 1."""

    video: str
    numbers: Sequence[int]
    frames: Sequence[Image.Image]
    label: str
    label_probability: float
    prediction: str
    probability: float


def check_report(folder: Path) -> None:
    """Refuse a folder for the report that is not new or empty, before the evaluation; create nothing.

    Raises:
        UserError: that is so, or it cannot be written, or matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--report: needs matplotlib; pip install -r requirements.txt")
    check_writable_folder(folder, "--report")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--report {folder}: is not empty; give a new or an empty folder")


def write_report(
    folder: Path,
    result: Result,
    places: np.ndarray,
    categories: Sequence[str],
    dataset: VideoDataSet,
    model: str,
) -> None:
    """Write the report on an evaluation, all of its files or none.

    Args:
        folder: new or empty.
        result: of the evaluation, whose clips have labels.
        places: for each class its place in the model's classifier, as from `find_labels`; the report has the
            classes in the order of `categories`.
        categories: class names.
        dataset: of the clips that were evaluated.
        model: one line that describes it.

    Raises:
        UserError: a frame cannot be read, or the report cannot be written.
    """
    # The best classes are found among the scores as they are, so that ties are decided as in the result.
    own = np.argsort(places)
    labels = own[result.labels]
    best = own[torch.from_numpy(result.scores).topk(min(5, len(categories)), dim=1).indices.numpy()]
    confusions = count_confusions(labels, best[:, 0], len(categories))
    classes = summarise_classes(confusions, labels[(best == labels[:, None]).any(1)])
    mistakes = find_mistakes(result.scores[:, places], labels, best[:, 0], categories, dataset)

    contents = {
        "report.md": report_text(result, confusions, classes, categories, model, dataset.coverage()).encode(),
        "per_class.csv": per_class_csv(classes, categories).encode(),
        "confusion.png": figure_png(lambda: draw_confusions(confusions, categories)),
    }
    if mistakes:
        contents["mistakes.png"] = image_png(draw_mistakes(mistakes))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staged({folder / name: content for name, content in contents.items()}):
            pass
    except OSError as error:
        raise UserError(f"--report {folder}: cannot be written ({error.strerror})") from None


def count_confusions(labels: np.ndarray, predictions: np.ndarray, num_class: int) -> np.ndarray:
    """Count clips by label (rows) and prediction (columns)."""
    counts = np.bincount(labels * num_class + predictions, minlength=num_class**2)
    return counts.reshape(num_class, num_class)


def summarise_classes(confusions: np.ndarray, top5_labels: np.ndarray) -> list[ClassResult]:
    """Summarise each class, in their order.

    Args:
        confusions: from `count_confusions`.
        top5_labels: the labels of the clips for which one of the five best classes is right.
    """
    top5 = np.bincount(top5_labels, minlength=len(confusions))
    others = confusions - np.diag(np.diag(confusions))
    return [
        ClassResult(
            label,
            clips=int(row.sum()),
            top1=int(row[label]),
            top5=int(top5[label]),
            confused_with=int(others[label].argmax()) if others[label].any() else None,
            num_confused=int(others[label].max()),
        )
        for label, row in enumerate(confusions)
    ]


def compare(confusions: np.ndarray, first: int, second: int) -> Pair:
    """Compare two classes; see `Pair`."""
    clips = int(confusions[[first, second]].sum())
    confused = int(confusions[first, second] + confusions[second, first])
    right = int(confusions[first, first] + confusions[second, second])
    return Pair(first, second, percent(confused, clips), percent(right, clips))


def hardest_pairs(confusions: np.ndarray) -> list[Pair]:
    """The pairs of classes with the most confusion between them, most first; none without any."""
    mutual = np.triu(confusions + confusions.T, 1)
    clips = confusions.sum(1)
    first, second = np.nonzero(mutual)
    counts = mutual[first, second]
    # Of equal shares the one with more clips says more.
    order = np.lexsort((-counts, -counts / (clips[first] + clips[second])))[:NUM_PAIRS]
    return [compare(confusions, int(first[i]), int(second[i])) for i in order]


def mirrored_pairs(confusions: np.ndarray, categories: Sequence[str]) -> list[Pair]:
    """The pairs of classes whose names say that they are each other's mirror image, in their order."""
    partners = mirrored_labels(list(categories))
    return [compare(confusions, label, other) for label, other in enumerate(partners) if label < other]


def find_mistakes(
    scores: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    categories: Sequence[str],
    dataset: VideoDataSet,
) -> list[Mistake]:
    """Find the mistakes with the highest probability, and read the frames that the model saw.

    Args:
        scores: clips x classes, before softmax.
        labels: of the clips.
        predictions: labels, too.
        categories: class names.
        dataset: its included clips are those of `scores`, in the same order.

    Raises:
        UserError: a frame cannot be read.
    """
    shifted = scores.astype(np.float64) - scores.max(1, keepdims=True)
    probabilities = 100 * np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    wrong = np.flatnonzero(predictions != labels)
    confidence = probabilities[wrong, predictions[wrong]]
    mistakes = []
    for clip in wrong[np.argsort(-confidence, kind="stable")[:NUM_MISTAKES]]:
        video = dataset.record(dataset.included[clip])
        sampled = dataset.sample_indices(video.num_frames, np.random.default_rng(0))  # draws nothing in tests
        numbers = [int(number) for number in sampled[:: -(-len(sampled) // MAX_FRAMES)]]
        frames = dataset.source.read(video.path, list(dict.fromkeys(numbers)))
        label, prediction = labels[clip], predictions[clip]
        mistakes.append(
            Mistake(
                video.path,
                numbers,
                [frames[number].image() for number in numbers],
                _numbered(label, categories),
                probabilities[clip, label],
                _numbered(prediction, categories),
                probabilities[clip, prediction],
            )
        )
    return mistakes


def percent(part: int, whole: int) -> float:
    """A share in percent; nan of nothing."""
    return 100 * part / whole if whole else float("nan")


def per_class_csv(classes: Sequence[ClassResult], categories: Sequence[str]) -> str:
    """A row for each class, accuracies in percent; a class without clips has none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "class", "clips", "top-1", "top-5", "most confused with", "clips confused"])
    for one in classes:
        accuracies = [f"{percent(hits, one.clips):.3f}" if one.clips else "" for hits in (one.top1, one.top5)]
        other = ["", ""] if one.confused_with is None else [categories[one.confused_with], one.num_confused]
        table.writerow([one.label, categories[one.label], one.clips, *accuracies, *other])
    return text.getvalue()


def report_text(
    result: Result,
    confusions: np.ndarray,
    classes: Sequence[ClassResult],
    categories: Sequence[str],
    model: str,
    coverage: str = "",
) -> str:
    """The report in Markdown.

    Args:
        result: of the evaluation.
        confusions: from `count_confusions`.
        classes: from `summarise_classes`.
        categories: class names.
        model: one line that describes it.
        coverage: what to say if videos were left out, as from `VideoDataSet.coverage`.
    """
    parts = ["# Evaluation", _escaped(model)]
    parts += [
        _table(
            ("clips", "top-1", "top-5", "mean class accuracy", "loss"),
            [
                (
                    f"{len(result.labels)}{coverage}",
                    f"{result.prec1:.3f} %",
                    f"{result.prec5:.3f} %",
                    f"{result.mean_class:.3f} %",
                    f"{result.loss:.5f}",
                )
            ],
        ),
        "Classes are numbered from 0, as in `category.txt`. All are in [per_class.csv](per_class.csv).",
        *_class_sections(classes, categories),
        *_pair_sections(confusions, classes, categories),
        "## Confusion matrix",
        "![Confusion matrix](confusion.png)",
        "## Most confident mistakes",
    ]
    if confusions.trace() == confusions.sum():
        parts.append("There are none: all clips are right.")
    else:
        parts.append("![Frames of the most confident mistakes](mistakes.png)")
    return "\n\n".join(parts) + "\n"


def _class_sections(classes: Sequence[ClassResult], categories: Sequence[str]) -> Iterator[str]:
    def table(some: Sequence[ClassResult]) -> str:
        rows = []
        for one in some:
            confused = "none"
            if one.confused_with is not None:
                confused = f"{one.num_confused} x {_escaped(_numbered(one.confused_with, categories))}"
            accuracies = (f"{percent(hits, one.clips):.1f}" for hits in (one.top1, one.top5))
            rows.append((_escaped(_numbered(one.label, categories)), one.clips, *accuracies, confused))
        return _table(("class", "clips", "top-1, %", "top-5, %", "most confused with"), rows)

    tested = [one for one in classes if one.clips]
    # Of equal accuracies the one with more clips says more.
    best = sorted(tested, key=lambda one: (-one.top1 / one.clips, -one.clips))
    if len(best) <= 2 * NUM_BEST:
        yield from ("## Classes, best first", table(best))
    else:
        worst = sorted(tested, key=lambda one: (one.top1 / one.clips, -one.clips))
        yield from (f"## The {NUM_BEST} best classes", table(best[:NUM_BEST]))
        yield from (f"## The {NUM_BEST} worst classes, worst first", table(worst[:NUM_BEST]))
    without = [_escaped(_numbered(one.label, categories)) for one in classes if not one.clips]
    if without:
        yield f"Classes without clips, {len(without)} of {len(classes)}: {'; '.join(without)}."


def _pair_sections(
    confusions: np.ndarray, classes: Sequence[ClassResult], categories: Sequence[str]
) -> Iterator[str]:
    def cells(pair: Pair) -> list[object]:
        found: list[object] = []
        for label, other in ((pair.first, pair.second), (pair.second, pair.first)):
            one = classes[label]
            accuracy = f"{percent(one.top1, one.clips):.1f}" if one.clips else "no clips"
            taken = f"{confusions[label, other]} of {one.clips}"
            found += [_escaped(_numbered(label, categories)), accuracy, taken]
        return [*found, "" if np.isnan(pair.confusion) else f"{pair.confusion:.1f}"]

    columns = ("class", "top-1, %", "taken for the other") * 2
    hardest = hardest_pairs(confusions)
    yield "## Hardest pairs"
    if hardest:
        yield "The confusion of two classes is the share of their clips that are taken for the other one."
        yield _table((*columns, "confusion, %"), map(cells, hardest))
    else:
        yield "There are none: no class is taken for another."

    mirrored = mirrored_pairs(confusions, categories)
    yield "## Mirrored pairs"
    if mirrored:
        yield (
            "These classes are each other's mirror image by their names. More confusion than accuracy in a "
            "pair suggests that its labels were swapped, in training or in the list."
        )
        swapped = ["**labels swapped?**" if p.confusion > p.accuracy else "" for p in mirrored]
        rows = [[*cells(pair), note] for pair, note in zip(mirrored, swapped, strict=True)]
        yield _table((*columns, "confusion, %", ""), rows)
    else:
        yield "There are none: no two classes are each other's mirror image by their names."


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is, also in a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|~&$#@:!])", r"\\\1", printable(text))


def _numbered(label: int, categories: Sequence[str]) -> str:
    return f"{label} {categories[label]}"


def similarity_order(confusions: np.ndarray) -> list[int]:
    """Order classes so that those that are confused with each other are close (average-linkage clustering).

    Args:
        confusions: from `count_confusions`.
    """
    shares = confusions / confusions.sum(1, keepdims=True).clip(1)
    likeness = shares + shares.T
    between = likeness.copy()  # of groups: the mean over their pairs; each is in the place of its first class
    np.fill_diagonal(between, -1)
    groups = [[label] for label in range(len(confusions))]
    for _ in range(len(groups) - 1):
        a, b = sorted(np.unravel_index(between.argmax(), between.shape))
        sides = [(x, y) for x in (groups[a], groups[a][::-1]) for y in (groups[b], groups[b][::-1])]
        left, right = max(sides, key=lambda side: likeness[side[0][-1], side[1][0]])
        mean = (len(groups[a]) * between[a] + len(groups[b]) * between[b]) / (len(groups[a]) + len(groups[b]))
        groups[a] = left + right
        between[a] = between[:, a] = np.where(between[a] < 0, -1, mean)
        between[b] = between[:, b] = -1
        between[a, a] = -1
    return groups[0]


def draw_confusions(confusions: np.ndarray, categories: Sequence[str]) -> "Figure":
    """Draw the confusion matrix, the classes ordered by similarity.

    Every part has its place in inches, and texts are cut to their room, so that nothing overlaps.

    Args:
        confusions: from `count_confusions`.
        categories: class names.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(categories)
    is_small = count <= FEW_CLASSES
    labelled = range(0, count, -(-count // MAX_ROW_LABELS))  # all of them, or every second, third, ...
    row = 0.6 if is_small else max(7 / 72, 9 / len(labelled))
    side = row * len(labelled)
    size = 9.0 if is_small else min(9.0, 0.78 * 72 * row)  # of the labels, in points

    # Every label begins with its number: names that are cut may begin alike, and some scripts have no font.
    clips = confusions.sum(1)
    width_of = _text_width(size)
    max_names = (0.38 if is_small else 0.5) * size

    def named(label: int) -> str:
        note = "" if clips[label] else " (no clips)"
        return shorten(printable(_numbered(label, categories)), max_names - width_of(note), width_of) + note

    order = similarity_order(confusions)
    row_names = [named(order[number]) for number in labelled]
    column_names = row_names if is_small else [str(order[number]) for number in labelled]

    # From left to right: names, matrix, colour bar, pairs; from top to bottom: title, names, matrix, names.
    margin, bar, pairs = 0.2, 1.0, 0.0 if is_small else 5.0
    pad = 0.08  # between names and matrix
    names, below = (max(map(width_of, texts)) + 2 * pad for texts in (row_names, column_names))
    above = 0.8 + (0 if is_small else below)
    left = margin + names
    width = max(left + side + bar + pairs + margin, 6.5)
    height = above + max(side + below, 1.8) + margin
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    def place(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """A rectangle in inches, from the top left corner, as axes want it."""
        return x / width, 1 - (y + h) / height, w / width, h / height

    def write(x: float, y: float, text: str, points: float, **style: object) -> None:
        figure.text(x / width, 1 - y / height, text, size=points, va="top", parse_math=False, **style)

    write(margin, 0.15, "Confusion matrix", 12, weight="bold")
    legend = "Row: true class. Column: prediction. Shade: share of the row's clips. Ordered by similarity."
    write(margin, 0.42, legend, 8)

    # The matrix. Small shares must be seen, too, hence the square root.
    shares = (confusions / clips.clip(1)[:, None])[np.ix_(order, order)]
    axes = figure.add_axes(place(left, above, side, side))
    image = axes.imshow(shares, cmap="Greys", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.spines[:].set(visible=True, linewidth=0.5)
    lines = np.arange(count - 1) + 0.5 if is_small else np.arange(10, count, 10) - 0.5
    axes.vlines(lines, -0.5, count - 0.5, color="#b0b7c3", linewidth=0.4)
    axes.hlines(lines, -0.5, count - 0.5, color="#b0b7c3", linewidth=0.4)

    style = {"size": size, "parse_math": False}
    axes.set_yticks(labelled, row_names, **style)
    axes.set_xticks(labelled, column_names, rotation=90, **style)
    axes.tick_params(length=0, pad=72 * pad, labeltop=not is_small)
    for tick in axes.xaxis.get_major_ticks():
        tick.label2.set(rotation=90, **style)
    if is_small:
        for (y, x), share in np.ndenumerate(shares):
            if share:
                text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
                colour = "white" if share > 0.3 else "black"
                axes.text(x, y, text, ha="center", va="center", size=size, color=colour)

    # What the shades mean.
    scale = figure.add_axes(place(left + side + 0.2, above, 0.15, min(max(side, 1.5), 3)))
    colours = figure.colorbar(image, cax=scale, ticks=[0, 0.05, 0.2, 0.5, 1])
    colours.ax.set_yticklabels(["0 %", "5 %", "20 %", "50 %", "100 %"], size=8)

    if not is_small:
        x, y = left + side + bar, above
        write(x, y, "Hardest pairs: share of their clips that are taken for the other one", 9, weight="bold")
        hardest, width_of_pair = hardest_pairs(confusions), _text_width(9)
        for number, pair in enumerate(hardest):
            y = above + 0.3 + 0.43 * number
            write(x, y, f"{pair.confusion:.1f} %", 9)
            for line, label in enumerate((pair.first, pair.second)):
                text = shorten(printable(_numbered(label, categories)), pairs - 0.6, width_of_pair)
                write(x + 0.6, y + 0.18 * line, text, 9)
        if not hardest:
            write(x, above + 0.3, "none: no class is taken for another", 9)
    return figure


def _text_width(size: float) -> Callable[[str], float]:
    """A function that measures a text of this size (in points) in inches."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer, font = RendererAgg(1, 1, DPI), FontProperties(size=size)
    return lambda text: renderer.get_text_width_height_descent(text, font, False)[0] / DPI


def draw_mistakes(mistakes: Sequence[Mistake]) -> Image.Image:
    """Draw a contact sheet: for each clip its prediction, its label, its name, and the frames."""
    bold, regular = font(TEXT_SIZE, "bold"), font(TEXT_SIZE)
    rows = [-(-len(mistake.frames) // FRAMES_A_LINE) for mistake in mistakes]
    heights = [3 * LINE_HEIGHT + (FRAME_HEIGHT + GAP) * lines + 2 * MARGIN for lines in rows]
    room = FRAMES_A_LINE * (FRAME_WIDTH + GAP) - GAP
    sheet = Image.new("RGB", (room + 2 * MARGIN, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for mistake, height in zip(mistakes, heights, strict=True):
        if top:
            draw.line([(MARGIN, top), (MARGIN + room, top)], fill="#d1d5db")
        y = top + MARGIN
        frames = ", ".join(map(str, mistake.numbers))
        for text, style, colour in (
            (f"predicted ({mistake.probability:.1f} %): {mistake.prediction}", bold, INK),
            (f"true ({mistake.label_probability:.1f} %): {mistake.label}", regular, INK),
            (f"video {mistake.video}, frames {frames}", regular, GREY),
        ):
            draw.text((MARGIN, y), shorten(printable(text), room, style.getlength), colour, style)
            y += LINE_HEIGHT
        for number, frame in enumerate(mistake.frames):
            scale = min(FRAME_WIDTH / frame.width, FRAME_HEIGHT / frame.height)
            small = frame.resize([max(1, round(side * scale)) for side in frame.size])
            line, column = divmod(number, FRAMES_A_LINE)
            x = MARGIN + column * (small.width + GAP)
            sheet.paste(small, (x, y + GAP + line * (FRAME_HEIGHT + GAP)))
        top += height
    return sheet
