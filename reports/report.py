"""The report of `test_models.py --report DIR`: tables and pictures of correct and wrong predictions.

report.md       averages, worst classes, mirrored pairs
per_class.csv   a row for each class
predictions.csv a row for each clip
confusion.png   the confusion matrix
mistakes.png    frames of the most confident mistakes; missing if there are no mistakes
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from classes import mirrored_labels
from dataset import VideoDataSet
from reports.plots import DPI, SheetRow, contact_sheet, figure_png, image_png
from utils.cli import UserError, printable
from utils.files import check_writable_folder, to_csv, write_files, writing
from utils.metrics import Result

if TYPE_CHECKING:  # it takes half a second to import
    from matplotlib.figure import Figure

NUM_CLASSES = 20  # in the table of the worst ones
NUM_MISTAKES = 12

# With at most FEW_CLASSES classes, the confusion matrix has numbers in its cells and names at both axes. With
# more classes, columns are labelled by class numbers.
FEW_CLASSES = 20
MAX_NAME = 50  # characters


def check_report(folder: Path) -> None:
    """Check before the evaluation that a report can be written. Nothing is created.

    Raises:
        UserError: the folder is not empty, or it cannot be written.
    """
    check_writable_folder(folder, "--report")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--report {folder}: is not empty; use a new or an empty folder")


def write_report(
    folder: Path,
    result: Result,
    categories: Sequence[str],
    videos: VideoDataSet,
    model: str,
) -> None:
    """Write the report on an evaluation, either all of its files or none.

    Args:
        folder: a new or empty folder.
        result: result of the evaluation, with labels, and with the classes in the order of `categories`.
        categories: class names.
        videos: the clips that were evaluated.
        model: description of the model in one line.

    Raises:
        UserError: a frame cannot be read, or the report cannot be written.
    """
    labels = result.labels
    best = torch.from_numpy(result.scores).topk(min(5, len(categories)), dim=1).indices.numpy()
    confusions = np.zeros((len(categories), len(categories)), dtype=int)  # true class x prediction
    np.add.at(confusions, (labels, best[:, 0]), 1)
    top5 = np.bincount(labels[(best == labels[:, None]).any(1)], minlength=len(categories))
    classes = summarise_classes(confusions, top5, categories)
    mistakes = find_mistakes(result.scores, labels, best[:, 0], categories, videos)

    text = report_text(result, confusions, classes, categories, model, videos.coverage())
    contents = {
        "report.md": text.encode(),
        "per_class.csv": _csv(classes),
        "predictions.csv": _csv(list_predictions(result.scores, labels, best[:, 0], categories, videos)),
        "confusion.png": figure_png(lambda: draw_confusions(confusions, categories)),
    }
    if mistakes:
        contents["mistakes.png"] = image_png(contact_sheet(mistakes))
    with writing("--report", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_files({folder / name: content for name, content in contents.items()})


def summarise_classes(
    confusions: np.ndarray, top5: np.ndarray, categories: Sequence[str]
) -> list[dict[str, Any]]:
    """Make the rows of per_class.csv, with accuracies in percent; those of a class without clips are empty.

    Args:
        confusions: number of clips, true class x predicted class.
        top5: for each class, the number of its clips for which one of the five best classes is right.
        categories: class names.
    """
    rows = []
    for label, counts in enumerate(confusions):
        clips, others = counts.sum(), np.where(np.arange(len(counts)) == label, 0, counts)
        top1_share, top5_share = percent(counts[label], clips), percent(top5[label], clips)
        row = {"label": label, "class": categories[label], "clips": clips}
        for name, share in (("top-1", top1_share), ("top-5", top5_share)):
            row[name] = f"{share:.3f}" if clips else ""
        confused_with, num_confused = "", ""
        if others.any():
            confused_with, num_confused = categories[others.argmax()], others.max()
        rows.append(row | {"most confused with": confused_with, "clips confused": num_confused})
    return rows


def percent(part: int, whole: int) -> float:
    """Compute a share in percent; nan if `whole` is 0."""
    return 100 * part / whole if whole else float("nan")


def compare(confusions: np.ndarray, first: int, second: int) -> tuple[float, float]:
    """Compute confusion and accuracy of a pair of classes.

    Returns:
        The share of their clips that are predicted as the other class, and the share that is predicted
        correctly, both in percent; nan without clips.
    """
    (a, b), (c, d) = confusions[np.ix_((first, second), (first, second))]
    clips = confusions[[first, second]].sum()
    return percent(b + c, clips), percent(a + d, clips)


def softmax(scores: np.ndarray) -> np.ndarray:
    """The probabilities of scores (clips x classes), from 0 to 1."""
    return torch.from_numpy(scores).double().softmax(1).numpy()


def list_predictions(
    scores: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    categories: Sequence[str],
    videos: VideoDataSet,
) -> list[dict[str, Any]]:
    """Make the rows of predictions.csv."""
    rows = []
    for index, label, prediction, row in zip(
        videos.included, labels, predictions, softmax(scores), strict=True
    ):
        classes = {"true class": categories[label], "predicted class": categories[prediction]}
        names = ("probability of the true class", "probability of the predicted class")
        probabilities = dict(zip(names, (f"{row[label]:.6f}", f"{row[prediction]:.6f}"), strict=True))
        rows.append({"video": videos.record(index).path} | classes | probabilities)
    return rows


def find_mistakes(
    scores: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    categories: Sequence[str],
    videos: VideoDataSet,
) -> list[SheetRow]:
    """Find the mistakes with the highest probability, and read the frames that the model saw."""
    probabilities = 100 * softmax(scores)
    wrong = np.flatnonzero(predictions != labels)
    confidence = probabilities[wrong, predictions[wrong]]
    mistakes = []
    for clip in wrong[np.argsort(-confidence, kind="stable")[:NUM_MISTAKES]]:
        record = videos.record(videos.included[clip])
        sampled = videos.sample_indices(record.num_frames, np.random.default_rng(0))  # draws nothing
        numbers = [int(number) for number in sampled[: videos.num_segments]]  # of the first clip
        frames = videos.source.read(record.path, list(dict.fromkeys(numbers)))
        classes = (("predicted", predictions[clip]), ("true", labels[clip]))
        lines = [f"{word} ({probabilities[clip, c]:.1f} %): {c} {categories[c]}" for word, c in classes]
        lines.append(f"video {record.path}, frames {', '.join(map(str, numbers))}")
        mistakes.append(SheetRow([frames[number].image() for number in numbers], lines))
    return mistakes


def report_text(
    result: Result,
    confusions: np.ndarray,
    classes: Sequence[dict[str, Any]],
    categories: Sequence[str],
    model: str,
    coverage: str = "",
) -> str:
    """Format the report in Markdown; for the arguments see `write_report`."""
    averages = [f"{value:.3f} %" for value in (result.prec1, result.prec5, result.mean_class)]
    row = [f"{len(result.labels)}{coverage}", *averages, f"{result.loss:.5f}"]
    has_mistakes = confusions.trace() < confusions.sum()
    partners = mirrored_labels(list(categories))
    mirrored = [(label, partner) for label, partner in enumerate(partners) if label < partner]
    parts = [
        "# Evaluation",
        _escape(model),
        markdown_table(("clips", "top-1", "top-5", "mean class accuracy", "loss"), [row]),
        "Classes are numbered from 0, as in `category.txt`. Accuracies are in percent. All classes are in "
        "[per_class.csv](per_class.csv), all clips in [predictions.csv](predictions.csv).",
        f"## Classes, worst first (at most {NUM_CLASSES})",
        _class_table(classes),
        "## Mirrored pairs",
        "According to their names, these classes mirror each other. Confusion is the share of their clips "
        "that are predicted as the other class; accuracy is the share that is predicted correctly. If the "
        "confusion is higher, the labels were probably swapped, in training or in the list.",
        _pair_table(mirrored, confusions, categories) or "There are none.",
        "## Confusion matrix",
        "![Confusion matrix](confusion.png)",
        "## Most confident mistakes",
        "![Most confident mistakes](mistakes.png)" if has_mistakes else "There are none.",
    ]
    return "\n\n".join(parts) + "\n"


def _class_table(classes: Sequence[dict[str, Any]]) -> str:
    """Make a table of the classes with the lowest accuracy."""
    columns = ["class", "clips", "top-1", "top-5", "most confused with", "clips confused"]
    # If accuracies are equal, the class with more clips comes first.
    tested = [row | {"class": f"{row['label']} {row['class']}"} for row in classes if row["clips"]]
    tested.sort(key=lambda row: (float(row["top-1"]), -row["clips"]))
    cells = [[_escape(str(row[column])) for column in columns] for row in tested[:NUM_CLASSES]]
    return markdown_table(columns, cells)


def _pair_table(pairs: Sequence[tuple[int, int]], confusions: np.ndarray, categories: Sequence[str]) -> str:
    """Make a table of pairs of classes; empty without pairs."""
    rows = []
    for pair in pairs:
        confusion, accuracy = compare(confusions, *pair)
        numbers = ["no clips"] * 2 if np.isnan(accuracy) else [f"{confusion:.1f}", f"{accuracy:.1f}"]
        note = "**labels swapped?**" if confusion > accuracy else ""
        rows.append([*(_escape(f"{label} {categories[label]}") for label in pair), *numbers, note])
    return markdown_table(("class", "class", "confusion, %", "accuracy, %", ""), rows) if rows else ""


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    return to_csv([list(rows[0]), *(list(row.values()) for row in rows)])


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _escape(text: str) -> str:
    """Escape a text for Markdown, including cells of tables."""
    return re.sub(r"([\\`*_\[\]<>|~&$#@:!])", r"\\\1", printable(text))


def draw_confusions(confusions: np.ndarray, categories: Sequence[str]) -> "Figure":
    """Draw the confusion matrix. Text may extend beyond the figure."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    count = len(categories)
    is_small = count <= FEW_CLASSES
    clips = confusions.sum(1)
    # Labels identify names that are cut and begin with the same words, or that the font cannot display.
    names = [printable(f"{label} {name}", MAX_NAME) for label, name in enumerate(categories)]
    names = [name if clips[label] else f"{name} (no clips)" for label, name in enumerate(names)]

    side = 0.5 * count + 2 if is_small else 0.1 * count  # of the matrix, in inches
    figure = Figure(figsize=(side, side), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    shares = confusions / clips.clip(1)[:, None]
    # The square root makes small shares visible.
    image = axes.imshow(shares, cmap="Greys", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    lines = np.arange(0 if is_small else 9, count, 1 if is_small else 10) + 0.5
    axes.vlines(lines, -0.5, count - 0.5, color="0.7", linewidth=0.4)
    axes.hlines(lines, -0.5, count - 0.5, color="0.7", linewidth=0.4)
    title = "Row: true class. Column: prediction. Shade: share of the row's clips."
    axes.set_title(title, size=9, loc="left")
    size = 9 if is_small else 5.5
    axes.set_yticks(range(count), names, size=size)
    axes.set_xticks(range(count), names if is_small else range(count), size=size, rotation=90)
    axes.tick_params(length=0)
    for (y, x), share in np.ndenumerate(shares if is_small else shares[:0]):
        if share:
            text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
            colour = "white" if share > 0.3 else "black"
            axes.text(x, y, text, ha="center", va="center", size=size, color=colour)
    scale = figure.add_axes((1 + 0.3 / side, 1 - 2.1 / side, 0.15 / side, 2 / side))
    figure.colorbar(image, cax=scale, ticks=[0, 0.05, 0.2, 0.5, 1], format=PercentFormatter(1))
    return figure
