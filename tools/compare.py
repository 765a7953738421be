"""Train types of block with the same budget and compare them: a table and a plot.

    python tools/make_motion_dataset.py DATA --dataset motion3 --level 3 --size 64 64
    python tools/compare.py --root_path DATA --dataset motion3 --out DIR --jobs 2 -- \\
        --arch resnet14 --input_size 48 --epochs 10 -b 8 --lr 0.008 --lr_schedule cosine

What follows `--` are options of main.py, the same for all. Each model is scored after its last epoch with
test_models.py; no checkpoint is chosen by its accuracy. Stopped (Ctrl-C, SIGTERM), it continues where it was
with the same command, and what is finished is not computed again.

DIR/table.md   top-1 in percent, parameters, multiply-adds, time of a training step
DIR/plot.png   accuracy against multiply-adds

Controls are lines of the table, too: GST on validation clips that are played backwards or whose frames are
shuffled, and GST trained with flips that leave the labels of mirrored classes as they are.
"""

import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from matplotlib.figure import Figure

from dataset import read_list
from datasets_video import MOTION_SETTINGS, DatasetPaths, dataset_name, layout, return_dataset
from inference.load import build_model
from models import BLOCKS, multiply_adds
from reports.plots import MARKERS, figure_png
from training.checkpoint import load_checkpoint
from training.describe import describe_model
from utils.cli import Parser, UserError, non_negative_int, number_type, printable, run_program
from utils.files import check_writable_folder, read_text, write_atomically, write_texts
from utils.pool import cores

REPOSITORY = Path(__file__).resolve().parent.parent
# Below --root_path of its own: validation clips whose frames are links in another order.
REORDERED = {"backwards": "played backwards", "shuffled": "frames shuffled"}


class Groups(NamedTuple):
    """Which labels belong together.

    Attributes:
        reversed: pairs that are each other's time reversal.
        mirrored: pairs that are each other's mirror image.
        static: labels that one frame decides.
    """

    reversed: list[list[int]]
    mirrored: list[list[int]]
    static: list[int]


class Training(NamedTuple):
    """A model to train: its name, type of block and seed, and whether flips swap the labels."""

    name: str
    type: str
    seed: int
    swaps_labels: bool = True


class Accuracy(NamedTuple):
    """Top-1 in percent: of all clips, within reversed and mirrored pairs, and of static classes."""

    all: float
    reversed: float
    mirrored: float
    static: float


class Row(NamedTuple):
    """A line of the table: the accuracy of each seed, and what the model costs (None: as above)."""

    name: str
    accuracies: list[Accuracy]
    parameters: int | None = None
    multiply_adds: int | None = None
    step_times: list[float] | None = None


def main() -> None:
    """Train and evaluate what is not finished yet, and write the table and the plot.

    Raises:
        UserError: something that the user can mend, a run that failed among it.
    """
    summary, _, details = __doc__.partition("\n\n")
    words, more = sys.argv[1:], []
    if "--" in words:
        words, more = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = Parser(summary, details)
    parser.add_argument("--root_path", required=True, metavar="DIR", help="folder of the data set's folder")
    parser.add_argument(
        "--dataset", type=dataset_name, required=True, metavar="NAME", help="from make_motion_dataset.py"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for runs, table and plot")
    parser.add_argument("--types", choices=tuple(BLOCKS), nargs="+", default=list(BLOCKS), help="to compare")
    parser.add_argument("--seeds", type=non_negative_int, nargs="+", default=[0, 1, 2], help="to train with")
    parser.add_argument(
        "--jobs", type=number_type(int, 1, 64), default=1, metavar="N", help="models at a time"
    )
    parser.add_argument(
        "-j",
        "--workers",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="loader processes of each",
    )
    args = parser.parse_args(words)
    out = Path(args.out)
    check_writable_folder(out, "--out")
    paths = return_dataset(args.dataset, args.root_path, source="frames")
    groups = read_groups(Path(args.root_path) / args.dataset / MOTION_SETTINGS, paths.categories)
    check_settings(out, {"data": str(paths.root_data.resolve()), "options": more})

    kinds, seeds = list(dict.fromkeys(args.types)), list(dict.fromkeys(args.seeds))
    trainings = [Training(f"{kind}_seed{seed}", kind, seed) for seed in seeds for kind in kinds]
    has_controls = "GST" in kinds
    if has_controls:
        trainings += [Training(f"GST_unswapped_seed{seed}", "GST", seed, False) for seed in seeds]
        for order in REORDERED:
            reorder(paths, order, out / "data" / order)
        names = [paths.categories[label] for pair in groups.mirrored for label in pair]
        write_texts({out / "unswapped.txt": "".join(f"{name}\t{name}\n" for name in names)})
    run_all({one.name: commands(one, args, more) for one in trainings}, args.jobs, out / "messages")

    rows = []
    for kind in kinds:
        names = [f"{kind}_seed{seed}" for seed in seeds]
        rows.append(Row(kind, read_accuracies(names, out, groups), *costs(names, out)))
    controls = {}
    if has_controls:
        controls = {f"GST, {words}": f"GST_seed{{}}_{order}" for order, words in REORDERED.items()}
        controls["GST, trained without the label swap"] = "GST_unswapped_seed{}"
    lines = list(rows)
    for name, template in controls.items():
        found = read_accuracies([template.format(seed) for seed in seeds], out, groups)
        lines.append(Row(name, found))
    text = table(lines, seeds)
    write_texts({out / "table.md": text})
    write_atomically(out / "plot.png", figure_png(lambda: draw(rows)))
    print(text, end="")


def read_groups(path: Path, categories: list[str]) -> Groups:
    """Read which classes are pairs or static from a data set's settings file.

    Raises:
        UserError: it is missing or says something else.
    """
    text = read_text(path, "tools/make_motion_dataset.py writes it")
    label = {name: number for number, name in enumerate(categories)}
    try:
        found = json.loads(text)
        reversed_pairs, mirrored_pairs = (
            [[label[one], label[other]] for one, other in found[name]]
            for name in ("reversed_pairs", "mirrored_pairs")
        )
        groups = Groups(reversed_pairs, mirrored_pairs, [label[name] for name in found["static"]])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: does not say which classes of category.txt are pairs or static") from None
    if not groups.reversed:
        raise UserError(f"{path}: has no reversed pairs to compare models on")
    return groups


def check_settings(out: Path, settings: dict[str, object]) -> None:
    """Note what a comparison is of in its folder, or refuse to mix it with another one.

    Raises:
        UserError: the folder has another comparison, or something else.
    """
    path = out / "settings.json"
    if path.exists():
        try:
            found = json.loads(read_text(path))
        except (ValueError, RecursionError):
            found = None
        if found != settings:
            raise UserError(f"{path}: is of other data or options; give the same ones, or another --out")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty and has no comparison; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_texts({path: json.dumps(settings, indent=2) + "\n"})


def reorder(paths: DatasetPaths, order: str, root: Path) -> None:
    """Make a data set of the validation clips with their frames in another order, as links.

    Args:
        paths: of the data set, which has frames.
        order: a key of `REORDERED`.
        root: of the new data set, whose name is `order`; nothing is done if it exists.

    Raises:
        UserError: the list cannot be read.
    """
    target, partial = root / order, root / f".{order}.partial"
    if target.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    files = layout(order)
    for number, record in enumerate(read_list(paths.val_list, len(paths.categories))):
        folder = partial / files.frames / record.path
        folder.mkdir(parents=True)
        numbers = np.arange(record.num_frames, 0, -1)
        if order == "shuffled":
            numbers = np.random.default_rng(number).permutation(numbers)
        for place, source in enumerate(numbers, start=1):
            frame = (paths.root_data / record.path / paths.prefix.format(source)).resolve()
            (folder / files.template.format(place)).symlink_to(frame)
    shutil.copyfile(paths.val_list, partial / "val_videofolder.txt")
    (partial / "category.txt").write_text("".join(f"{name}\n" for name in paths.categories), encoding="utf-8")
    partial.rename(target)


def commands(training: Training, args: Namespace, more: list[str]) -> Iterator[list[object]]:
    """Give the command lines that are left to do for a model, each when the one before it has ended.

    Args:
        training: of the model.
        args: of this program.
        more: options of main.py.
    """
    out = Path(args.out)
    folder = out / "runs" / training.name
    clips = {training.name: (args.root_path, args.dataset)}
    if training.type == "GST" and training.swaps_labels:
        clips |= {f"{training.name}_{order}": (out / "data" / order, order) for order in REORDERED}
    left = {name: where for name, where in clips.items() if not scores_file(out, name).exists()}
    if not left:
        return
    words = ["--root_path", args.root_path, "--dataset", args.dataset, "-j", args.workers]
    words += ["--eval-freq", 10**6, *more, "--type", training.type, "--seed", training.seed]
    words += ["--store_name", "comparison", "--checkpoint_dir", folder, "--resume", "auto"]
    if not training.swaps_labels:
        words += ["--flip_pairs", out / "unswapped.txt"]
    yield ["main.py", *words]
    for name, (root, dataset) in left.items():
        file = scores_file(out, name)
        file.parent.mkdir(exist_ok=True)
        words = ["--weights", last_checkpoint(folder), "--root_path", root, "--dataset", dataset]
        yield ["test_models.py", *words, "-j", args.workers, "--save_scores", file]


def run_all(commands: Mapping[str, Iterator[list[object]]], at_a_time: int, messages: Path) -> None:
    """Run the programs of models; when this ends, in whatever way, no process is left.

    Args:
        commands: `{name of the model: command lines of the repository's programs, one after the other}`.
        at_a_time: how many models; they share the cores.
        messages: folder for what the programs write to their standard error.

    Raises:
        UserError: one failed; the others were stopped, and continue with the same command.
        SystemExit: SIGTERM asked for it.
    """
    # Looked at between two starts: raised in the middle of one, it would leave a process that nobody knows.
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // at_a_time))} | os.environ
    messages.mkdir(exist_ok=True)
    waiting = list(commands)
    running: dict[str, subprocess.Popen] = {}
    try:
        while waiting or running:
            if asked:
                sys.exit(128 + asked[0])
            for name in [*running, *waiting[: at_a_time - len(running)]]:
                file = messages / f"{name}.txt"
                if name in running:
                    if running[name].poll() is None:
                        continue
                    if status := running.pop(name).returncode:
                        lines = file.read_text(errors="replace").splitlines() or [f"status {status}"]
                        raise UserError(f"{name}: {printable(lines[-1].removeprefix('error: '))}")
                else:
                    waiting.remove(name)
                if command := next(commands[name], None):
                    print(f"{name}: {command[0]}", flush=True)
                    words = [sys.executable, str(REPOSITORY / command[0]), *map(str, command[1:])]
                    with file.open("w") as errors:
                        running[name] = subprocess.Popen(
                            words, stdout=subprocess.DEVNULL, stderr=errors, env=environment
                        )
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.terminate()  # a training saves, and continues from there
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)


def scores_file(out: Path, name: str) -> Path:
    """Where the scores of a model on the clips that `name` ends in are."""
    return out / "scores" / f"{name}.npz"


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint after the last epoch of the run in a folder."""
    (file,) = (folder / "checkpoint").glob("*_checkpoint.pth.tar")
    return file


def accuracy(scores: np.ndarray, labels: np.ndarray, groups: Groups) -> Accuracy:
    """Compute a model's accuracies, in percent; nan for groups without clips.

    Args:
        scores: clips x classes.
        labels: one for each clip.
        groups: of the labels.
    """
    hits = scores.argmax(1) == labels

    def within(pairs: list[list[int]]) -> float:
        """Top-1 where only the scores of the label and of its partner count; by chance it is 50."""
        right = [
            scores[labels == label, label] > scores[labels == label, other]
            for pair in pairs
            for label, other in (pair, pair[::-1])
        ]
        return percent(np.concatenate(right)) if right else math.nan

    return Accuracy(
        percent(hits),
        within(groups.reversed),
        within(groups.mirrored),
        percent(hits[np.isin(labels, groups.static)]),
    )


def percent(hits: np.ndarray) -> float:
    """The share of what is true, in percent; nan if there is nothing."""
    return 100 * float(hits.mean()) if len(hits) else math.nan


def read_accuracies(names: list[str], out: Path, groups: Groups) -> list[Accuracy]:
    """The accuracies in the scores files of models."""
    found = []
    for name in names:
        with np.load(scores_file(out, name)) as file:
            found.append(accuracy(file["scores"], file["labels"], groups))
    return found


def costs(names: list[str], out: Path) -> tuple[int, int, list[float]]:
    """Parameters and multiply-adds of the models of a type, and the seconds of a training step of each."""
    times = []
    for name in names:
        (file,) = (out / "runs" / name / "log").glob("*.log")
        # The last line of an epoch has the mean over its steps; the median leaves out a slow start.
        means = dict(
            re.findall(r" Epoch: \[(\d+)\].*\tTime [\d.]+ \(([\d.]+)\)", read_text(file), re.MULTILINE)
        )
        times.append(statistics.median(map(float, means.values())))
    path = last_checkpoint(out / "runs" / names[0])
    saved = load_checkpoint(path)
    options = saved["options"]
    model = build_model(describe_model(saved, path), options["num_segments"], options["input_size"], path)
    return sum(parameter.numel() for parameter in model.parameters()), multiply_adds(model), times


def table(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """The comparison in Markdown."""
    columns = ("all", "reversed pairs", "mirrored pairs", "static", "parameters", "multiply-adds", "step")
    lines = [
        f"Top-1 in percent after the last epoch, mean over {len(seeds)} seeds (smallest to largest).",
        "In pairs only the scores of the two partners count, so that chance is 50 %.",
        "",
        f"| type | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for row in rows:
        cells = [spread(values, ".1f") for values in zip(*row.accuracies, strict=True)]
        if row.parameters is None:
            cells += ["", "", ""]
        else:
            step = spread([1000 * seconds for seconds in row.step_times], ".0f")
            cells += [f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e9:.3f} G", f"{step} ms"]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], style: str) -> str:
    """Mean, smallest and largest of values, in a format such as `.1f`; a dash if there are none."""
    if math.isnan(values[0]):
        return "-"
    mean = f"{statistics.fmean(values):{style}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{style}} to {max(values):{style}})"


def draw(rows: Sequence[Row]) -> Figure:
    """Plot accuracy against multiply-adds, of all clips and within reversed pairs; bars span the seeds.

    Names stand in a column to the right of the points, in the order of these and apart from each other.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = (("all clips", 0), ("reversed pairs (chance: 50)", 1))
    x = [row.multiply_adds / 1e9 for row in rows]
    margin = 0.1 * (max(x) - min(x) or max(x))
    left, right = min(x) - margin, max(x) + margin
    for axes, (title, column) in zip(figure.subplots(1, 2), panels, strict=True):
        values = [[one[column] for one in row.accuracies] for row in rows]
        means = [statistics.fmean(ones) for ones in values]
        low, high = min(map(min, values)), max(map(max, values))
        height = max(high - low, 10.0)
        high = min(high + 0.1 * height, 100 + 0.04 * height)  # room for a marker at 100 %
        low = min(low - 0.1 * height, high - height)
        # Equal ones are mostly at 100, from where names move down: lines from the left pass below others.
        order = sorted(range(len(rows)), key=lambda number: (means[number], x[number]))
        gap, places = 0.08 * (high - low), list(means)
        for below, above in pairwise(order):
            places[above] = max(places[above], places[below] + gap)
        places[order[-1]] = min(places[order[-1]], high)
        for above, below in pairwise(order[::-1]):
            places[below] = min(places[below], places[above] - gap)
        end = right + 0.1 * (right - left)
        for number, (row, mean, ones, place) in enumerate(zip(rows, means, values, places, strict=True)):
            # A mean of equal values may be rounded to beyond them.
            errors = np.abs([[mean - min(ones)], [max(ones) - mean]])
            style = {"color": "black", "markerfacecolor": "0.7", "markersize": 8, "capsize": 3}
            axes.errorbar(x[number], mean, yerr=errors, fmt=MARKERS[number % len(MARKERS)], **style)
            line = {"color": "0.8", "linewidth": 0.8, "zorder": 0, "clip_on": False}
            axes.plot([x[number], end], [mean, place], **line)
            axes.text(end, place, f" {row.name}", va="center")
        axes.set(title=title, xlabel="multiply-adds of a clip, G", ylabel="top-1, %")
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
    return figure


if __name__ == "__main__":
    run_program(main)
