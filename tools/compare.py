"""Train models with different types of block in the same way, and compare them in a table and a plot.

    python tools/make_motion_dataset.py DATA --dataset motion3 --level 3 --size 64 64
    python tools/compare.py --root_path DATA --dataset motion3 --out DIR -- \\
        --arch resnet14 --input_size 48 --epochs 10 -b 8 --lr 0.008 --lr_schedule cosine

The options after `--` are options of main.py, the same for all models. test_models.py evaluates the
checkpoint of the last epoch, not the best checkpoint. The program writes DIR/table.md and DIR/plot.png.
After an interruption, the same command continues. With several GPUs, set CUDA_VISIBLE_DEVICES to one.

The controls are GST on validation clips that are played backwards or have shuffled frames, and GST trained
with flips that keep the labels of mirrored classes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from matplotlib.figure import Figure

from dataset import read_list
from datasets_video import MOTION_SETTINGS, DatasetPaths, dataset_name, layout, return_dataset
from inference.load import load_model
from models import BLOCKS, multiply_adds
from reports.plots import MARKERS, figure_png
from reports.report import markdown_table
from utils.cli import Parser, UserError, non_negative_int, run_program
from utils.files import check_writable_folder, read_text, write_files

REPOSITORY = Path(__file__).resolve().parent.parent
ORDERS = ("backwards", "shuffled")  # of the frames in the validation clips of the controls
CONTROLS = {
    "GST, played backwards": "GST_seed{}_backwards",
    "GST, frames shuffled": "GST_seed{}_shuffled",
    "GST, trained without the label swap": "GST_unswapped_seed{}",
}
GROUPS = ("all", "reversed pairs", "mirrored pairs", "static")


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    add = parser.add_argument
    add("--root_path", required=True, metavar="DIR", help="folder that contains the data set's folder")
    add("--dataset", type=dataset_name, required=True, metavar="NAME", help="from make_motion_dataset.py")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for runs, table and plot")
    add("--types", choices=tuple(BLOCKS), nargs="+", default=list(BLOCKS), help="types of block")
    add("--seeds", type=non_negative_int, nargs="+", default=[0, 1, 2], help="seeds of the training runs")
    add("options", nargs="*", metavar="OPTION", help="options of main.py, after --")
    args = parser.parse_args()
    out = args.out
    check_writable_folder(out, "--out")
    paths = return_dataset(args.dataset, args.root_path, source="frames")
    groups = read_groups(Path(args.root_path) / args.dataset / MOTION_SETTINGS, paths.categories)
    settings = json.dumps({"data": str(paths.root_data.resolve()), "options": args.options}) + "\n"
    file = out / "settings.json"
    if file.exists() and read_text(file) != settings:
        raise UserError(f"--out {out}: contains a different comparison; use another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_files({file: settings})

    controls = CONTROLS if "GST" in args.types else {}
    if controls:
        for order in ORDERS:
            reorder(paths, order, out / "data" / order)
        names = [paths.categories[label] for pair in groups["mirrored pairs"] for label in pair]
        write_files({out / "unswapped.txt": "".join(f"{name}\t{name}\n" for name in names)})
    for seed in args.seeds:
        for kind in [*args.types, *(["GST_unswapped"] if controls else [])]:
            train_and_score(kind, seed, args)

    accuracies, costs = {}, {}
    for name, template in ({kind: f"{kind}_seed{{}}" for kind in args.types} | controls).items():
        scores = [np.load(out / "scores" / f"{template.format(seed)}.npz") for seed in args.seeds]
        accuracies[name] = np.array([accuracy(one["scores"], one["labels"], groups) for one in scores])
    for kind in args.types:
        model = load_model(last_checkpoint(out, f"{kind}_seed{args.seeds[0]}")).model
        costs[kind] = sum(parameter.numel() for parameter in model.parameters()), multiply_adds(model)
    text = table(accuracies, costs)
    plot = figure_png(lambda: draw(accuracies, costs))
    write_files({out / "table.md": text, out / "plot.png": plot})
    print(text, end="")


def read_groups(path: Path, categories: list[str]) -> dict[str, list]:
    """Read the pairs of labels and the labels of static classes from the data set's settings."""
    settings = json.loads(read_text(path, "tools/make_motion_dataset.py writes it"))
    label = {name: number for number, name in enumerate(categories)}
    pairs = {name: settings[name.replace(" ", "_")] for name in ("reversed pairs", "mirrored pairs")}
    groups = {name: [[label[a], label[b]] for a, b in both] for name, both in pairs.items()}
    return groups | {"static": [label[name] for name in settings["static"]]}


def reorder(paths: DatasetPaths, order: str, root: Path) -> None:
    """Make a data set of the validation clips with their frames in one of `ORDERS`, as symbolic links."""
    shutil.rmtree(root, ignore_errors=True)
    files = layout(order)
    for number, record in enumerate(read_list(paths.val_list, len(paths.categories))):
        folder = root / order / files.frames / record.path
        folder.mkdir(parents=True)
        sources = np.arange(record.num_frames, 0, -1)
        if order == "shuffled":
            sources = np.random.default_rng(number).permutation(sources)
        for new, source in enumerate(sources, start=1):
            frame = (paths.root_data / record.path / paths.prefix.format(source)).resolve()
            (folder / files.template.format(new)).symlink_to(frame)
    shutil.copyfile(paths.val_list, root / order / "val_videofolder.txt")
    write_files({root / order / "category.txt": "".join(f"{name}\n" for name in paths.categories)})


def train_and_score(kind: str, seed: int, args: argparse.Namespace) -> None:
    """Train a type of block, or 'GST_unswapped', and score it; skip what is finished."""
    out, name = args.out, f"{kind}_seed{seed}"
    data = {name: (args.root_path, args.dataset)}
    if kind == "GST":
        data |= {f"{name}_{order}": (out / "data" / order, order) for order in ORDERS}
    data = {clips: where for clips, where in data.items() if not (out / "scores" / f"{clips}.npz").exists()}
    if not data:
        return
    words = ["--root_path", args.root_path, "--dataset", args.dataset, "-j", 0]
    words += ["--eval-freq", 10**6, *args.options, "--type", kind.removesuffix("_unswapped"), "--seed", seed]
    words += ["--store_name", "comparison", "--checkpoint_dir", out / "runs" / name, "--resume", "auto"]
    if kind == "GST_unswapped":
        words += ["--flip_pairs", out / "unswapped.txt"]
    run(name, "main.py", *words)
    (out / "scores").mkdir(exist_ok=True)
    for clips, (root, dataset) in data.items():
        words = ["--weights", last_checkpoint(out, name), "--root_path", root, "--dataset", dataset]
        words += ["-j", 0, "--save_scores", out / "scores" / f"{clips}.npz"]
        run(name, "test_models.py", *words)


def run(name: str, program: str, *words: object) -> None:
    """Run a program of the repository. Ctrl-C also stops it: training saves and can be resumed."""
    print(f"{name}: {program}", flush=True)
    command = [sys.executable, str(REPOSITORY / program), *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = process.wait()
    if status:
        raise UserError(f"{name}: {program} failed, see its error above")


def last_checkpoint(out: Path, name: str) -> Path:
    """The checkpoint after the last epoch of a model."""
    (file,) = (out / "runs" / name / "checkpoint").glob("*_checkpoint.pth.tar")
    return file


def accuracy(scores: np.ndarray, labels: np.ndarray, groups: Mapping[str, list]) -> list[float]:
    """Compute top-1 (percent) of each of `GROUPS` from scores (clips x classes); nan without clips."""
    hits = scores.argmax(1) == labels
    results = [hits]
    for name in ("reversed pairs", "mirrored pairs"):
        # Only the scores of the label and of its partner count; chance is 50.
        both = groups[name] + [pair[::-1] for pair in groups[name]]
        wins = [scores[labels == a, a] > scores[labels == a, b] for a, b in both]
        results.append(np.concatenate(wins) if wins else hits[:0])
    results.append(hits[np.isin(labels, groups["static"])])
    return [100 * float(values.mean()) if len(values) else np.nan for values in results]


def table(accuracies: Mapping[str, np.ndarray], costs: Mapping[str, tuple[int, int]]) -> str:
    """Format the accuracies (seeds x `GROUPS`) and the costs (parameters, multiply-adds) in Markdown."""
    rows = []
    for name, values in accuracies.items():
        cells = [name, *(f"{v.mean():.1f} ({v.min():.1f} to {v.max():.1f})" for v in values.T), "", ""]
        if name in costs:
            parameters, macs = costs[name]
            cells[-2:] = f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.3f} G"
        rows.append(cells)
    text = markdown_table(("type", *GROUPS, "parameters", "multiply-adds"), rows)
    return (
        "Top-1 in percent after the last epoch, mean over the seeds (smallest to largest).\n"
        f"Within pairs only the scores of the two partners count: chance is 50 %.\n\n{text}\n"
    ).replace("nan (nan to nan)", "-")


def draw(accuracies: Mapping[str, np.ndarray], costs: Mapping[str, tuple[int, int]]) -> Figure:
    """Plot accuracy against multiply-adds, for all clips and within reversed pairs; bars show all seeds."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for group, axes in enumerate(figure.subplots(1, 2)):
        for marker, (name, (_, macs)) in zip(cycle(MARKERS), costs.items(), strict=False):
            values = accuracies[name][:, group]
            errors = np.abs([[values.mean() - values.min()], [values.max() - values.mean()]])
            axes.errorbar(macs / 1e9, values.mean(), errors, fmt=marker, markersize=8, capsize=3, label=name)
        axes.set(title=GROUPS[group], xlabel="multiply-adds of a clip, G", ylabel="top-1, %")
        axes.margins(0.15)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


if __name__ == "__main__":
    run_program(main)
