"""main.py as its users meet it: what a run prints and leaves, goes on from, refuses, and stops at.

Where the process itself matters a real one is started; where it does not, `call` runs the same `main`
in this process, which saves the seconds that importing torch takes.
"""

import csv
import fcntl
import io
import json
import os
import platform
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import termios
from argparse import Namespace
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import torchvision
from helpers import ON_CPU, REPOSITORY, assert_one_line_error, read_events, run, small_run
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset
from torchvision import transforms

import opts
from classes import released_categories
from dataset import ClipSampler
from inference.fuse import to_channels_last
from models import TemporalModel
from training.optim import load_optimizer, make_optimizer
from training.run import Curves, RunFiles, describe_changes, write_json

NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
NUMBER = r"\d+\.\d{3} \(\d+\.\d{3}\)"
TRAIN_LINE = re.compile(
    rf"Epoch: \[(\d+)\]\[(\d+)/(\d+)\], lr: (\d+\.\d{{5}})\tTime {NUMBER}\tData {NUMBER}\t"
    rf"Loss (\d+\.\d{{4}}) \((\d+\.\d{{4}})\)\tPrec@1 (\d+\.\d{{3}}) \((\d+\.\d{{3}})\)\tPrec@5 {NUMBER}"
    r"\t\d+\.\d clips/s\tleft \d+:\d\d:\d\d in the epoch, \d+:\d\d:\d\d in the run\tmemory \d+\.\d\d GB"
)
RESULT_LINE = re.compile(r"Testing Results: Prec@1 (\d+\.\d{3}) Prec@5 (\d+\.\d{3}) Loss (\d+\.\d{5})(.*)")


def call(*args):
    """Run `main.py` in this process."""
    return helpers.call("main.py", *args)


def succeed(*args):
    """`call`, for a run that must succeed; gives its lines."""
    process = call(*args)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr
    assert "\r" not in process.stdout
    return process.stdout.splitlines()


def load(path):
    return torch.load(path, weights_only=True)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(one, other):
    """The same to the last bit, in whatever containers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def results_of(lines):
    """Of each result line: top-1, top-5, loss."""
    matches = filter(None, map(RESULT_LINE.fullmatch, lines))
    return [tuple(map(float, match.groups()[:3])) for match in matches]


def small_data(root, **how):
    """A data set of few frames, for runs that are refused."""
    return make_dataset(root, **{"train": 3, "val": 3, "frames": 3, "size": (36, 36)} | how)


# ---------------------------------------------------------------------------------------------------------
# A finished run.


@pytest.fixture(scope="module")
def finished(trn_root, tmp_path_factory):
    """A run of a real process: 8 and 6 clips in batches of 5, so that each last batch is short."""
    out = tmp_path_factory.mktemp("finished") / "new" / "folder"
    more = ("-b", 5, "--epochs", 2, "--store_name", "first")
    process = run("main.py", *small_run(trn_root, out, *more), env=ON_CPU)
    assert process.returncode == 0, process.stderr
    name = f"{NAME}_first"
    return Namespace(
        process=process,
        lines=process.stdout.splitlines(),
        root=trn_root,
        out=out,
        more=more,
        name=name,
        last=out / "checkpoint" / f"{name}_checkpoint.pth.tar",
        best=out / "checkpoint" / f"{name}_best.pth.tar",
        csv=out / "log" / f"{name}.csv",
        json=out / "log" / f"{name}.json",
        log=out / "log" / f"{name}.log",
        board=out / "tensorboard" / name,
    )


def test_the_log_tells_the_run_in_plain_lines(finished):
    # The pipe is no terminal: a progress bar would stand on stderr, or as lines of its own.
    assert finished.process.stderr == ""
    lines = iter(finished.lines)
    command = shlex.join(map(str, small_run(finished.root, finished.out, *finished.more)))
    started = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: python\S* \S*main\.py "
    assert re.fullmatch(started + re.escape(command), next(lines))
    commit = r"([0-9a-f]{12}( with changes)?|unknown)"
    versions = re.escape(f"python {platform.python_version()}, torch {torch.__version__}, ")
    host = re.escape(socket.gethostname())
    assert re.match(rf"host {host}, commit {commit}, {versions}", next(lines))
    assert next(lines) == "somethingv1: 8 training clips from frames, 4 classes"
    assert next(lines) == "somethingv1: 6 validation clips from frames, 4 classes"
    assert re.fullmatch(
        r"GST resnet14, alpha 4, beta 2: 7\.24 M parameters, 0\.1 G multiply-adds, 4 frames of 32 x 32",
        next(lines),
    )
    assert next(lines) == "weights: random start"
    assert re.fullmatch(r"device: CPU, \d+ threads; batch of 5", next(lines))
    assert next(lines) == f"horizontal flip: swaps '{CATEGORIES[0]}' <-> '{CATEGORIES[2]}'"
    change = "--flip_pairs FILE or --no_flip changes this"
    assert next(lines) == f"horizontal flip: all other classes keep their labels; {change}"
    precisions = "training in float32 (as published); validation in float32 (as published)"
    assert next(lines) == f"precision: {precisions}"
    recipe = "somethingv1: its published recipe has --epochs 70 (now 2)"
    assert next(lines) == f"{recipe}; see docs/TRAINING.md"
    batch = "5 clips per step, learning rate 0.01, published for 24"
    assert next(lines) == f"{batch}; the linear rule would give --lr 0.00208333"
    assert next(lines) == f"run {finished.name}, written below {finished.out}"
    for epoch in "01":
        for step in "01":
            assert TRAIN_LINE.fullmatch(next(lines)).groups()[:4] == (epoch, step, "2", "0.01000")
        assert re.fullmatch(
            r"Training Results: Prec@1 [\d.]+ Prec@5 [\d.]+ Loss [\d.]+ \(\d+ s\)", next(lines)
        )
        for step in "01":
            assert re.fullmatch(
                rf"Test: \[{step}/2\]\tTime {NUMBER}\tLoss .*\tPrec@1 .*\tPrec@5 .*", next(lines)
            )
        assert RESULT_LINE.fullmatch(next(lines))[4] == ""
        so_far = [prec1 for prec1, _, _ in results_of(finished.lines)][: int(epoch) + 1]
        best = f"{max(so_far):.3f} (epoch {so_far.index(max(so_far))})"
        assert re.fullmatch(rf"Best Prec@1: {re.escape(best)}\tvalidation took \d+ s", next(lines))
    assert next(lines) == f"best checkpoint, Prec@1 {best}: {finished.best}"
    assert next(lines, None) is None


def test_the_files_are_where_they_are_promised(finished):
    files = {str(path) for path in contents(finished.out)}
    boards = {file for file in files if file.startswith(f"tensorboard/{finished.name}/events.out.tfevents.")}
    assert len(boards) == 1
    assert files - boards == {
        f"checkpoint/{finished.name}_checkpoint.pth.tar",
        f"checkpoint/{finished.name}_checkpoint.pth.tar.1",
        f"checkpoint/{finished.name}_best.pth.tar",
        f"log/{finished.name}.csv",
        f"log/{finished.name}.json",
        f"log/{finished.name}.log",
        f"log/{finished.name}.png",
        f"log/{finished.name}.batch.png",
        f"log/{finished.name}.lock",
    }


def test_the_log_file_has_every_line_with_its_time(finished):
    lines = (finished.out / "log" / f"{finished.name}.log").read_text().splitlines()
    time, line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", len("2026-11-24 12:00:00,000 ")
    assert all(re.match(time, text) for text in lines)
    assert [text[line:] for text in lines] == finished.lines


def test_the_best_checkpoint_is_no_second_copy(finished):
    files = [finished.best, finished.last, Path(f"{finished.last}.1")]
    assert len({path.stat().st_ino for path in files}) == 2


def test_the_csv_has_a_row_for_each_epoch(finished):
    rows = rows_of(finished.csv)
    columns = "epoch lr train_loss train_prec1 train_prec5 val_loss val_prec1 val_prec5 val_mean_class"
    assert list(rows[0]) == columns.split()
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for row, (prec1, prec5, loss) in zip(rows, results_of(finished.lines), strict=True):
        assert float(row["lr"]) == 0.01
        told = float(row["val_prec1"]), float(row["val_prec5"]), float(row["val_loss"])
        assert told == (pytest.approx(prec1, abs=6e-4), pytest.approx(prec5), pytest.approx(loss, abs=6e-6))
        assert 0 <= float(row["val_mean_class"]) <= 100


def test_training_figures_are_averages_over_clips(finished):
    steps = [match.groups() for match in map(TRAIN_LINE.fullmatch, finished.lines) if match]
    for epoch, row in enumerate(rows_of(finished.csv)):
        (loss5, prec5), (loss3, prec3) = [(float(s[4]), float(s[6])) for s in steps if s[0] == str(epoch)]
        loss, over_batches = (5 * loss5 + 3 * loss3) / 8, (loss5 + loss3) / 2
        assert float(row["train_loss"]) == pytest.approx(loss, abs=1e-4)
        assert abs(loss - over_batches) > 1e-3, "this run cannot tell the two averages apart"
        assert float(row["train_prec1"]) == pytest.approx((5 * prec5 + 3 * prec3) / 8, abs=1e-3)
        averages = [s for s in steps if s[0] == str(epoch)][-1]
        assert float(averages[5]) == pytest.approx(loss, abs=1e-4)
        assert float(averages[7]) == pytest.approx(float(row["train_prec1"]), abs=6e-4)


def scores_clip_by_clip(root, checkpoint, dataset="somethingv1", val_list="val_videofolder.txt"):
    """Score the validation clips with as little of the repository as can be; give losses and hits."""
    folder, template = FRAMES[dataset]
    model = TemporalModel(4, 4, backbone="resnet14").eval()
    model.load_state_dict(load(checkpoint)["state_dict"])
    prepare = transforms.Compose(
        [
            transforms.Resize(32 * 256 // 224),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    losses, hits = [], []
    for line in (root / dataset / val_list).read_text().splitlines():
        video, frames, label = line.split()
        assert frames == "10"
        numbers = (2, 4, 7, 9)  # the middles of four segments of ten frames
        paths = [root / dataset / folder / video / template.format(number) for number in numbers]
        with torch.no_grad():
            logits = model(torch.stack([prepare(Image.open(path)) for path in paths])[None])[0].double()
        losses.append(float(torch.logsumexp(logits, 0) - logits[int(label)]))
        hits.append(int(logits.argmax()) == int(label))
    return losses, hits


def test_validation_figures_are_averages_over_clips(finished):
    losses, hits = scores_clip_by_clip(finished.root, finished.last)
    row = rows_of(finished.csv)[-1]
    assert float(row["val_loss"]) == pytest.approx(np.mean(losses), abs=2e-4)
    assert abs(np.mean(losses) - (np.mean(losses[:5]) + losses[5]) / 2) > 2e-3, "averages too close to tell"
    assert float(row["val_prec1"]) == pytest.approx(100 * np.mean(hits))


def test_the_json_has_options_and_versions(finished):
    content = json.loads(finished.json.read_text())
    assert set(content["options"]) == {a.dest for a in opts.parser._actions} - {"help"}
    assert content["options"]["batch_size"] == 5
    assert content["options"]["lr_steps"] == [50, 60]
    assert content["options"]["pretrained"] == "none"  # what became of the default
    versions = {name: content["versions"][name] for name in ("python", "torch", "torchvision", "numpy")}
    # A package's metadata leaves out the build, such as +cpu.
    versions = {name: version.split("+")[0] for name, version in versions.items()}
    assert versions == {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
        "numpy": np.__version__,
    }
    assert content["parameters"] == sum(
        p.numel() for p in TemporalModel(4, 4, backbone="resnet14").parameters()
    )
    assert content["clips"] == {"training": 8, "validation": 6}
    assert len(content["parts"]) == 1


def test_the_json_keeps_every_part_of_a_resumed_run(halves):
    parts = json.loads((halves.parts / "log" / f"{NAME}.json").read_text())["parts"]
    assert [(part["epoch"], part["step"]) for part in parts] == [(0, 0), (1, 0)]
    assert "--resume" not in parts[0]["command"]
    assert f"--resume {halves.parts}" in parts[1]["command"]
    for part in parts:
        assert part["host"] == socket.gethostname()
        assert part["versions"]["torch"] == torch.__version__
        assert part["commit"]
        assert part["started"]


@pytest.mark.parametrize("old", ["", "[" * 10**5, '{"parts": 5}', "[]", '{"parts": null}'])
def test_a_json_that_is_not_this_codes_is_replaced(tmp_path, old):
    path = tmp_path / "a.json"
    path.write_text(old)
    part = {"versions": {}, "started": "now"}
    write_json(path, {"clips": 3}, part)
    assert json.loads(path.read_text()) == {"clips": 3, "versions": {}, "parts": [part]}


def scalars_of(folder):
    """{tag: {step: value}} of the curves in the event files."""
    curves = {}
    for tag, values in read_events(folder).items():
        curve = {step: value.simple_value for step, value in values.items() if value.HasField("simple_value")}
        curves |= {tag: curve} if curve else {}
    return curves


def test_tensorboard_has_the_curves(finished):
    scalars = scalars_of(finished.board)
    names = ("loss", "prec1", "prec5", "lr", "gradient_norm", "step_time", "data_time")
    assert {f"train/{name}" for name in names} <= set(scalars)
    assert all(list(scalars[f"train/{name}"]) == [0, 1, 2, 3] for name in names)
    steps = [match.groups() for match in map(TRAIN_LINE.fullmatch, finished.lines) if match]
    assert list(scalars["train/loss"].values()) == pytest.approx([float(s[4]) for s in steps], abs=6e-5)
    assert list(scalars["train/lr"].values()) == pytest.approx([0.01] * 4)
    assert min(scalars["train/gradient_norm"].values()) > 0
    for name in ("loss", "prec1", "prec5"):
        trained = [float(row[f"train_{name}"]) for row in rows_of(finished.csv)]
        assert list(scalars[f"train_epoch/{name}"]) == [1, 3]
        assert list(scalars[f"train_epoch/{name}"].values()) == pytest.approx(trained, rel=1e-6)
    for name in ("loss", "prec1", "prec5", "mean_class"):
        told = [float(row[f"val_{name}"]) for row in rows_of(finished.csv)]
        assert list(scalars[f"val/{name}"]) == [1, 3]
        assert list(scalars[f"val/{name}"].values()) == pytest.approx(told, rel=1e-6)


def test_the_checkpoint_has_what_is_published_and_what_a_resume_needs(finished):
    saved = load(finished.last)  # weights_only: it needs no code to be run
    assert (saved["epoch"], saved["arch"]) == (2, "resnet14")
    wanted = TemporalModel(4, 4, backbone="resnet14").state_dict()
    shapes = {name: value.shape for name, value in saved["state_dict"].items()}
    assert shapes == {name: value.shape for name, value in wanted.items()}
    rows = rows_of(finished.csv)
    assert type(saved["best_prec1"]) is float
    assert saved["best_prec1"] == max(float(row["val_prec1"]) for row in rows)
    assert saved["categories"] == list(CATEGORIES)
    assert saved["mirrored"] == [2, 1, 0, 3]
    assert saved["options"]["store_name"] == "first"
    momenta = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    assert len(momenta) == len(list(TemporalModel(4, 4, backbone="resnet14").parameters()))
    assert all(tensor.device.type == "cpu" for tensor in [*saved["state_dict"].values(), *momenta])
    best = load(finished.best)
    is_best = [float(row["val_prec1"]) for row in rows].index(best["best_prec1"]) + 1
    assert best["epoch"] == is_best
    assert load(f"{finished.last}.1")["epoch"] == 1


def test_evaluate_gives_the_figures_of_training_under_a_progress_bar(finished, tmp_path):
    before = contents(finished.out)
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # no width, no bar
    command = small_run(finished.root, finished.out, *finished.more, "-e", "--resume", finished.last)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / "main.py", *map(str, command)],
            stdout=log,
            stderr=terminal,
            env=os.environ | ON_CPU,
        )
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(master, 10000):
                shown += piece
        except OSError:  # Linux's way to say that nobody has the terminal open any more
            pass
        os.close(master)
        assert process.wait() == 0, shown
    assert b"test:" in shown
    assert b"\r" in shown
    log = (tmp_path / "log").read_bytes()
    assert b"\r" not in log
    lines = log.decode().splitlines()
    assert lines[-1] == [line for line in finished.lines if RESULT_LINE.fullmatch(line)][-1]
    assert not any(line.startswith(("Epoch", "resumed")) for line in lines)
    assert contents(finished.out) == before  # it writes nothing


# ---------------------------------------------------------------------------------------------------------
# Names and older runs.


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("type", "other"),
        ("dataset", "somethingv2"),
        ("arch", "resnet26"),
        ("alpha", 8),
        ("beta", 1),
        ("num_segments", 16),
        ("store_name", "b"),
    ],
)
def test_the_name_tells_runs_apart_by(option, value):
    given = ["--dataset", "somethingv1", "--root_path", "x", "--store_name", "a"]
    args = opts.parser.parse_args(given)
    one = RunFiles.of(args)
    setattr(args, option, value)
    other = RunFiles.of(args)
    assert str(value) in other.name
    for path in ("checkpoint", "best", "csv", "json", "tensorboard"):
        assert getattr(one, path) != getattr(other, path)
        assert other.name in str(getattr(other, path))


def test_gst_large_leaves_the_files_of_gst_alone(finished, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    before = contents(tmp_path / "out")
    more = ("-b", 12, "--accumulate", 2, "--epochs", 1, "--store_name", "first", "--beta", 1)
    lines = succeed(*small_run(finished.root, tmp_path / "out", *more))
    after = contents(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    large = [path for path in after if "beta1" in str(path)]
    assert len(large) == len(after) - len(before) == 9
    assert not any("linear rule" in line for line in lines)  # twice 12 is the published 24


def test_an_older_run_of_the_same_name_is_not_touched(finished):
    before = contents(finished.out)
    process = run("main.py", *small_run(finished.root, finished.out, *finished.more), env=ON_CPU)
    assert_one_line_error(process, "--resume", "--store_name", "--overwrite")
    for path in (
        finished.last,
        f"{finished.last}.1",
        finished.best,
        finished.csv,
        finished.json,
        finished.board,
    ):
        assert str(path) in process.stderr
    assert len(process.stdout.splitlines()) == 2  # what was started, where
    assert contents(finished.out) == before


@pytest.mark.parametrize("left", ["last", "best", "csv"])
def test_any_result_of_an_older_run_is_enough_to_refuse(finished, tmp_path, left):
    path = tmp_path / getattr(finished, left).relative_to(finished.out)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    assert_one_line_error(call(*small_run(finished.root, tmp_path, *finished.more)), path)
    assert path.read_bytes() == b"precious"


def test_a_name_whose_start_failed_is_free_again(trn_root, tmp_path):
    failed = call(*small_run(trn_root, tmp_path, "-b", 4, "--lr", 1e30))
    assert_one_line_error(failed, "epoch 0")
    kinds = {path.suffix for path in (tmp_path / "log").iterdir()}
    assert {".csv", ".json", ".log"} <= kinds, "nothing was left that could be in the way"
    succeed(*small_run(trn_root, tmp_path, "-b", 4, "--lr", 0.001))
    log = next((tmp_path / "log").glob("*.log")).read_text()
    assert "error: epoch 0" in log, "what failed is still to be read"
    assert_one_line_error(call(*small_run(trn_root, tmp_path, "-b", 4)), "already exists")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nothing there")])
@pytest.mark.parametrize("left", ["last", "last.1", "csv", "json", "log", "lock"])
def test_what_is_no_file_in_the_place_of_one_is_refused_at_once(finished, tmp_path, left, make):
    places = {"lock": finished.csv.with_suffix(".lock"), "last.1": Path(f"{finished.last}.1")}
    name = places.get(left) or getattr(finished, left)
    path = tmp_path / name.relative_to(finished.out)
    path.parent.mkdir(parents=True)
    make(path)
    process = call(*small_run(finished.root, tmp_path, *finished.more, "--resume", "auto"))
    assert_one_line_error(process, path, "is not a file")


def test_overwrite_deletes_the_older_run(finished, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    succeed(*small_run(finished.root, tmp_path / "out", *finished.more, "--epochs", 1, "--overwrite"))
    checkpoints = {path.name for path in (tmp_path / "out" / "checkpoint").iterdir()}
    assert checkpoints == {finished.last.name, finished.best.name}  # the older run's .1 is gone
    assert load(tmp_path / "out" / "checkpoint" / finished.last.name)["epoch"] == 1
    assert len(rows_of(tmp_path / "out" / "log" / finished.csv.name)) == 1
    events = list((tmp_path / "out" / "tensorboard" / finished.name).iterdir())
    assert len(events) == 1
    assert events[0].read_bytes() != next(finished.board.iterdir()).read_bytes()


def test_a_name_that_leads_elsewhere_is_refused(trn_root, tmp_path):
    for name in ("../there", "a/b", "a/", "a\x1b"):
        process = call(*small_run(trn_root, tmp_path / "out", "--store_name", name))
        assert_one_line_error(process, "--store_name", name.replace("\x1b", "\\x1b"))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------
# Going on.

TWO_EPOCHS = ("-b", 5, "--lr", 0.002, "--lr_steps", 1)


@pytest.fixture(scope="module")
def halves(trn_root, tmp_path_factory):
    """A run of two epochs, whose rate falls after the first, and the same in two parts."""
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    log = succeed(*small_run(trn_root, whole, *TWO_EPOCHS, "--epochs", 2))
    succeed(*small_run(trn_root, parts, *TWO_EPOCHS, "--epochs", 1))
    checkpoint = parts / "checkpoint" / f"{NAME}_checkpoint.pth.tar"
    half = parts / "half.pth.tar"
    shutil.copy(checkpoint, half)
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", checkpoint)
    resumed = succeed(*small_run(trn_root, parts, *more))
    return Namespace(root=trn_root, whole=whole, parts=parts, half=half, log=log, resumed=resumed)


def without_times(lines):
    changing = rf"(Time|Data) {NUMBER}|\(\d+ s\)|took \d+ s|\t[\d.]+ clips/s\tleft .*"
    return [re.sub(changing, r"\1", line) for line in lines]


def test_a_resumed_run_ends_as_the_one_that_was_not(halves):
    for name in ("checkpoint", "best"):
        one, other = (
            load(out / "checkpoint" / f"{NAME}_{name}.pth.tar") for out in (halves.whole, halves.parts)
        )
        for key in ("epoch", "step", "state_dict", "optimizer", "best_prec1", "history"):
            assert_same(one[key], other[key])
    logs = [(out / "log" / f"{NAME}.csv").read_bytes() for out in (halves.whole, halves.parts)]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == 3


def test_a_resumed_run_says_where_it_continues(halves):
    best = float(rows_of(halves.parts / "log" / f"{NAME}.csv")[0]["val_prec1"])
    start = next(n for n, line in enumerate(halves.resumed) if line.startswith("Epoch"))
    told = [line for line in halves.resumed[:start] if line.startswith("resumed")]
    assert len(told) == 1
    assert f"epoch 1, step 0, best Prec@1 {best:.3f}" in told[0]
    # From there on line by line what the whole run says, the rate after its step included.
    second = next(n for n, line in enumerate(halves.log) if line.startswith("Epoch: [1][0/2], lr: 0.00020"))
    ours, theirs = halves.resumed[start:], halves.log[second:]
    assert without_times(ours[:-1]) == without_times(theirs[:-1])
    assert "5 clips per step, learning rate 0.002" in halves.resumed  # --lr was given: no linear rule
    assert [sum("published recipe" in line for line in log) for log in (halves.log, halves.resumed)] == [1, 0]


def test_tensorboard_continues_at_the_right_step(halves):
    one, other = (scalars_of(out / "tensorboard" / NAME) for out in (halves.whole, halves.parts))
    assert one["train/loss"] == other["train/loss"]
    assert one["val/prec1"] == other["val/prec1"]
    assert list(one["train/loss"]) == [0, 1, 2, 3]


def test_tensorboard_files_of_the_same_second_are_all_kept(tmp_path):
    for step in range(5):
        Curves(tmp_path, step).add({"train/loss": step / 2}, step)
    assert scalars_of(tmp_path) == {"train/loss": {step: step / 2 for step in range(5)}}


CHANGES = [
    ("dataset", "somethingv2"),
    ("alpha", 8),
    ("beta", 1),
    ("arch", "resnet26"),
    ("num_segments", 3),
    ("input_size", 64),
    ("dropout", 0.4),
    ("batch-size", 6),
    ("accumulate", 2),
    ("lr", 0.003),
    ("lr_mult_new", 2.0),
    ("lr_schedule", "cosine"),
    ("lr_steps", 2),
    ("warmup_epochs", 1.0),
    ("momentum", 0.8),
    ("weight_decay", 0.001),
    ("clip-gradient", 10.0),
    ("freeze_bn", True),
    ("seed", 1),
    ("amp", "bf16"),
]


@pytest.mark.parametrize(("option", "value"), CHANGES, ids=lambda x: str(x))
def test_another_model_or_recipe_is_refused_on_resume(halves, tmp_path, option, value):
    given = f"--{option}" if value is True else f"--{option}={value}"
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", halves.half, given)
    process = call(*small_run(halves.root, tmp_path / "out", *more))
    before = load(halves.half)["options"][option.replace("-", "_")]
    value = [value] if option == "lr_steps" else value
    assert_one_line_error(process, halves.half, f"{option.replace('-', '_')} {before} (now {value})")
    assert not (tmp_path / "out").exists()


def test_start_epoch_cannot_be_changed_on_resume(halves, tmp_path):
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", halves.half)
    process = call(*small_run(halves.root, tmp_path, *more, "--start-epoch", 0))
    assert_one_line_error(process, "--start-epoch 0", halves.half, "epoch 1")
    process = call(*small_run(halves.root, tmp_path, *more, "--overwrite"))
    assert_one_line_error(process, "--overwrite", "--resume")


def swap_two_lines(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[2], lines[1], lines[0], *lines[3:]]) + "\n")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("category.txt", swap_two_lines, [f"'{CATEGORIES[0]}'", "class 0", f"'{CATEGORIES[2]}'"]),
        ("category.txt", lambda p: p.write_text(p.read_text() + "Jumping\n"), ["4 classes", "has 5"]),
        ("train_videofolder.txt", swap_two_lines, ["train_videofolder.txt", "order"]),
        (
            "train_videofolder.txt",
            lambda p: p.write_text(p.read_text().replace("1 10 0", "1 9 0", 1)),
            ["frames"],
        ),
        (
            "train_videofolder.txt",
            lambda p: p.write_text(p.read_text().replace("1 10 0", "1 10 1", 1)),
            ["labels"],
        ),
        ("val_videofolder.txt", swap_two_lines, ["val_videofolder.txt", "was validated on", "order"]),
    ],
    ids=["classes in another order", "more classes", "another order", "frames", "labels", "validation"],
)
def test_other_data_is_refused_on_resume(halves, tmp_path, file, change, words):
    shutil.copytree(halves.root, tmp_path / "data")
    change(tmp_path / "data" / "somethingv1" / file)
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", halves.half)
    process = call(*small_run(tmp_path / "data", tmp_path / "out", *more))
    assert_one_line_error(process, halves.half, *words)
    assert "parameters" not in process.stdout  # before a model is built
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (None, ["'Pulling something from left to right' mirrored to", f"'{CATEGORIES[2]}' (now never"]),
        (f"{CATEGORIES[3]}\n", [f"'{CATEGORIES[3]}' mirrored to '{CATEGORIES[3]}' (now never mirrored)"]),
        (
            f"{CATEGORIES[1]}\t{CATEGORIES[3]}\n",
            [f"'{CATEGORIES[1]}' mirrored to '{CATEGORIES[1]}' (now mirrored to '{CATEGORIES[3]}')"],
        ),
    ],
    ids=["no_flip", "never", "a pair"],
)
def test_other_mirrored_classes_are_refused_on_resume(halves, tmp_path, pairs, words):
    given = ["--no_flip"]
    if pairs:
        (tmp_path / "pairs.txt").write_text(pairs)
        given = ["--flip_pairs", tmp_path / "pairs.txt"]
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", halves.half, *given)
    process = call(*small_run(halves.root, tmp_path / "out", *more))
    assert_one_line_error(process, halves.half, *words, "--flip_pairs", "--no_flip")
    assert "parameters" not in process.stdout  # before a model is built
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mirrored", [[1, 0], [2, 1, 0, 9], [2, 1, 0, -2], "left"])
def test_mirrored_classes_that_a_checkpoint_cannot_have_are_refused(halves, tmp_path, mirrored):
    torch.save(load(halves.half) | {"mirrored": mirrored}, tmp_path / "wrong.pth.tar")
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", tmp_path / "wrong.pth.tar")
    process = call(*small_run(halves.root, tmp_path / "out", *more))
    assert_one_line_error(process, "wrong.pth.tar", "its 'mirrored")


def test_a_run_with_pairs_of_a_file_says_so_and_resumes(trn_root, tmp_path):
    (tmp_path / "pairs.txt").write_text(f"{CATEGORIES[1]} {CATEGORIES[3]}\n{CATEGORIES[0]}\n")
    given = ("-b", 5, "--flip_pairs", tmp_path / "pairs.txt")
    lines = succeed(*small_run(trn_root, tmp_path / "out", *given))
    assert f"horizontal flip: swaps '{CATEGORIES[1]}' <-> '{CATEGORIES[3]}'" in lines
    assert f"horizontal flip: never mirrors '{CATEGORIES[0]}', '{CATEGORIES[2]}'" in lines
    path = tmp_path / "out" / "checkpoint" / f"{NAME}_checkpoint.pth.tar"
    saved = load(path)
    assert saved["mirrored"] == [-1, 3, -1, 1]
    (tmp_path / "pairs.txt").rename(tmp_path / "renamed.txt")  # what it says matters, not its name
    succeed(*small_run(trn_root, tmp_path / "out", *given[:3], tmp_path / "renamed.txt", "--resume", "auto"))
    process = call(*small_run(trn_root, tmp_path / "out", "-b", 5, "--resume", "auto"))
    assert_one_line_error(process, f"'{CATEGORIES[0]}' never mirrored (now mirrored to '{CATEGORIES[2]}')")
    # One that does not say it, as those that were saved before.
    torch.save({key: value for key, value in saved.items() if key != "mirrored"}, path)
    succeed(*small_run(trn_root, tmp_path / "out", "-b", 5, "--resume", path))


def test_clips_are_mirrored_as_the_options_say(halves, tmp_path):
    (tmp_path / "pairs.txt").write_text("\n".join(CATEGORIES))  # each alone, so never mirrored
    logs = []
    for name, *given in (["none", "--no_flip"], ["file", "--flip_pairs", tmp_path / "pairs.txt"]):
        lines = succeed(*small_run(halves.root, tmp_path, *TWO_EPOCHS, *given, "--store_name", name))
        logs.append([line for line in without_times(lines) if line.startswith("Epoch")])
    assert logs[0] == logs[1]
    assert logs[0][0] not in without_times(halves.log)  # the same clips, some of them mirrored


def test_a_class_that_a_file_of_pairs_does_not_have_is_one_line(tmp_path):
    root = small_data(tmp_path)
    (tmp_path / "pairs.txt").write_text("Jumping\n")
    process = call(*small_run(root, tmp_path / "out", "--flip_pairs", tmp_path / "pairs.txt"))
    assert_one_line_error(process, "pairs.txt, line 1", "'Jumping'")
    assert not (tmp_path / "out").exists()


def test_a_released_checkpoint_can_be_evaluated_and_trained_further(halves, tmp_path):
    # As the authors' code saved under DataParallel: keys, a tensor for the accuracy, torch's old format.
    saved = load(halves.half)
    state = {f"module.{name}": value for name, value in saved["state_dict"].items()}
    released = {"epoch": 1, "arch": "resnet14", "state_dict": state, "best_prec1": torch.tensor(99.0)}
    torch.save(released, tmp_path / "released.pth.tar", _use_new_zipfile_serialization=False)
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", tmp_path / "released.pth.tar")
    lines = succeed(*small_run(halves.root, tmp_path / "out", *more, "--evaluate"))
    row = rows_of(halves.whole / "log" / f"{NAME}.csv")[0]
    assert results_of(lines) == [
        tuple(round(float(row[f"val_{name}"]), n) for name, n in (("prec1", 3), ("prec5", 3), ("loss", 5)))
    ]
    assert not (tmp_path / "out").exists()
    lines = succeed(*small_run(halves.root, tmp_path / "out", *more))
    assert any("released.pth.tar has no optimizer state" in line for line in lines)
    assert [line[:10] for line in lines if line.startswith("Epoch")] == ["Epoch: [1]"] * 2
    # The first step sees the same weights, so the same loss; momentum is gone, so the next ones differ.
    ours = [line for line in lines if line.startswith("Epoch")]
    theirs = [line for line in halves.log if line.startswith("Epoch: [1]")]
    assert without_times(ours)[0] == without_times(theirs)[0]
    saved = load(tmp_path / "out" / "checkpoint" / f"{NAME}_checkpoint.pth.tar")
    assert saved["epoch"] == 2
    assert type(saved["best_prec1"]) is float  # not the tensor that came in


def test_a_checkpoint_from_before_the_rate_of_new_classifiers_is_resumed(halves, tmp_path):
    saved = load(halves.half)
    del saved["options"]["lr_mult_new"], saved["new_classifier"]
    torch.save(saved, tmp_path / "old.pth.tar")
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", tmp_path / "old.pth.tar", "--lr_mult_new", 9)
    lines = succeed(*small_run(halves.root, tmp_path / "out", *more))
    assert "--lr_mult_new has no effect: the classifier did not start from scratch" in lines
    one, other = (
        load(out / "checkpoint" / f"{NAME}_checkpoint.pth.tar") for out in (halves.whole, tmp_path / "out")
    )
    for key in ("state_dict", "optimizer", "history"):
        assert_same(one[key], other[key])


def test_evaluate_maps_labels_by_name_and_a_resumed_run_does_not(halves, tmp_path):
    more = (*TWO_EPOCHS, "--resume", halves.half)
    expected = results_of(succeed(*small_run(halves.root, tmp_path, *more, "--evaluate")))
    shutil.copytree(halves.root, tmp_path / "data")
    order = [2, 0, 3, 1]
    names = [CATEGORIES[label].replace("something", "[something]") for label in order]
    home = tmp_path / "data" / "somethingv1"
    (home / "category.txt").write_text("\n".join(names))
    for file in (home / "val_videofolder.txt", home / "train_videofolder.txt"):
        lines = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{start} {order.index(int(label))}\n" for start, label in lines))
    lines = succeed(*small_run(tmp_path / "data", tmp_path, *more, "--evaluate"))
    assert sum("labels are mapped by name" in line for line in lines) == 1
    assert results_of(lines) == expected
    process = call(*small_run(tmp_path / "data", tmp_path / "out", *more, "--epochs", 2))
    assert_one_line_error(process, halves.half, f"'{CATEGORIES[0]}' as class 0", names[0])


def test_a_bare_state_dict_continues_at_the_epoch_that_is_given(halves, tmp_path):
    torch.save(load(halves.half)["state_dict"], tmp_path / "bare.pth")
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", tmp_path / "bare.pth", "--start-epoch", 1)
    lines = succeed(*small_run(halves.root, tmp_path / "out", *more))
    assert [line[:28] for line in lines if line.startswith("Epoch")] == [
        f"Epoch: [1][{step}/2], lr: 0.00020" for step in (0, 1)
    ]


def test_an_empty_resume_is_no_fresh_start(trn_root, tmp_path):
    """As `--resume "$FILE"` gives it when the shell's variable is not set."""
    process = call(*small_run(trn_root, tmp_path / "out", "--resume", ""))
    assert_one_line_error(process, "--resume", "empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")])
def test_evaluate_needs_a_checkpoint(trn_root, tmp_path, resume):
    process = call(*small_run(trn_root, tmp_path / "out", "-e", *resume))
    assert_one_line_error(process, "--evaluate", "--resume FILE")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------
# The start.


def small_2d_resnet(layers, seed=0):
    torch.manual_seed(seed)
    net = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, layers)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # so that each tensor tells whether it was loaded
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.state_dict()


def test_pretrained_file_is_loaded_and_the_authors_lists_are_found(authors_root, tmp_path):
    weights = small_2d_resnet([1, 1, 1, 1])
    torch.save(weights, tmp_path / "2d.pth")
    # A gradient of next to nothing, so that the weights are still there at the end.
    more = ("--pretrained", tmp_path / "2d.pth", "--epochs", 1, "-b", 24, "--weight_decay", 0, "--gd", 1e-30)
    lines = succeed(*small_run(authors_root, tmp_path / "out", *more, dataset="somethingv2"))
    own = [name for name in weights if not name.startswith("fc.") and "num_batches" not in name]
    assert f"{tmp_path / '2d.pth'}: {len(own)} tensors loaded, not 4 Tconv.weight and the classifier" in lines
    assert not any("random start" in line for line in lines)
    assert not any("linear rule" in line for line in lines)  # 24 is the batch of the paper
    assert lines[2:4] == [
        f"somethingv2: {n} clips from frames, 4 classes" for n in ("8 training", "6 validation")
    ]
    name = NAME.replace("somethingv1", "somethingv2")
    state = load(tmp_path / "out" / "checkpoint" / f"{name}_checkpoint.pth.tar")["state_dict"]
    for key in own:
        value, wanted = state[f"base_model.{key}"], weights[key]
        if "running" in key:  # these move while training
            continue
        wanted = wanted.unsqueeze(2) if wanted.ndim == 4 else wanted
        wanted = wanted[: value.shape[0], : value.shape[1]] if ".conv2." in key else wanted
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-20, msg=key)


@pytest.mark.parametrize(
    "fault", ["absent", "cut short", "text", "other blocks", "no 2D model", "a list", "a number", "nan"]
)
def test_a_pretrained_file_that_does_not_fit_is_refused(tmp_path, trn_root, fault):
    path = tmp_path / "2d.pth"
    if fault in ("other blocks", "cut short"):
        torch.save(small_2d_resnet([2, 1, 1, 1]), path)
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if fault == "text":
        path.write_text("no weights")
    if fault == "no 2D model":
        torch.save({"some.weight": torch.zeros(3)}, path)
    if fault == "a list":
        torch.save([torch.zeros(3)], path)
    if fault == "a number":
        torch.save(small_2d_resnet([1, 1, 1, 1]) | {"conv1.weight": 5}, path)
    if fault == "nan":
        torch.save(small_2d_resnet([1, 1, 1, 1]) | {"bn1.bias": torch.full((64,), torch.nan)}, path)
    process = call(*small_run(trn_root, tmp_path / "out", "--pretrained", path))
    assert_one_line_error(process, path)
    assert not (tmp_path / "out").exists()


def filled_checkpoint(path, categories, is_released=False, **kwargs):
    """Save a checkpoint of a small GST, no tensor as it is initialised with seed 0; give the model."""
    torch.manual_seed(7)
    model = TemporalModel(len(categories), 4, backbone="resnet14", input_size=32, **kwargs)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("running" in name or ".bn" in name):
            torch.nn.init.uniform_(tensor, 0.9, 1.1)
    torch.nn.init.normal_(model.classifier.bias)
    state_dict = model.state_dict()
    content = {"state_dict": state_dict, "epoch": 40, "best_prec1": 99.0, "arch": "resnet14"}
    if is_released:
        content["state_dict"] = {f"module.{name}": value for name, value in state_dict.items()}
    else:
        options = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "lr": 0.3}
        content |= {"options": options, "categories": list(categories), "step": 5, "history": []}
    torch.save(content, path)
    return model


# With next to no gradient, the weights that a run starts with are still there at its end.
STILL = ("-b", 8, "--gd", 1e-30, "--weight_decay", 0, "--freeze_bn")


def started_from(path, root, out, *more):
    """Start from a file; give what the line about it says, and the run's only checkpoint."""
    lines = succeed(*small_run(root, out, "--pretrained", path, *STILL, *more))
    told = [line for line in lines if line.startswith(f"{path}: ")]
    assert len(told) == 1, lines
    assert not any("resumed" in line for line in lines)
    saved = load(out / "checkpoint" / f"{NAME}_checkpoint.pth.tar")
    assert (saved["epoch"], len(saved["history"])) == (1, 1)
    assert saved["best_prec1"] == saved["history"][0]["val_prec1"]  # not that of the file
    return told[0].removeprefix(f"{path}: "), saved


def assert_backbone(state_dict, model):
    for name, value in model.state_dict().items():
        if name.startswith("base_model.") and not name.startswith("base_model.fc."):
            torch.testing.assert_close(state_dict[name], value, rtol=0, atol=1e-20, msg=name)


@pytest.mark.parametrize("is_released", [False, True], ids=["own", "released"])
def test_a_run_starts_from_a_checkpoint_of_other_classes(trn_root, tmp_path, is_released):
    names = ["Up", "Down", "Left", "Right", "Away"][: 4 if is_released else 5]
    model = filled_checkpoint(tmp_path / "start.pth", names, is_released)
    told, saved = started_from(tmp_path / "start.pth", trn_root, tmp_path / "out", "--lr_mult_new", 10)
    assert "backbone loaded; the classifier starts from scratch" in told
    why = "does not name its classes" if is_released else "its classes are not those of category.txt"
    assert told.endswith(why)
    assert_backbone(saved["state_dict"], model)
    torch.manual_seed(0)
    new = TemporalModel(4, 4, backbone="resnet14", input_size=32).classifier
    torch.testing.assert_close(saved["state_dict"]["new_fc.weight"], new.weight.data, rtol=0, atol=1e-20)
    assert saved["new_classifier"] is True
    groups = {group["name"]: group["lr"] for group in saved["optimizer"]["param_groups"]}
    assert groups["normal_weight"] == pytest.approx(0.01)
    assert groups["classifier_weight"] == pytest.approx(0.1)
    assert groups["classifier_bias"] == pytest.approx(0.2)


@pytest.mark.parametrize(("had_dropout", "dropout"), [(0.3, 0), (0, 0.3)])
def test_a_run_starts_with_the_classifier_of_the_same_classes(trn_root, tmp_path, had_dropout, dropout):
    order = [2, 0, 3, 1]
    names = [CATEGORIES[label].replace("something", "[something]") for label in order]
    model = filled_checkpoint(tmp_path / "start.pth", names, dropout=had_dropout)
    more = ("--dropout", dropout, "--lr_mult_new", 10)
    told, saved = started_from(tmp_path / "start.pth", trn_root, tmp_path / "out", *more)
    assert told == "backbone and classifier loaded, since the classes are the same, in another order"
    assert_backbone(saved["state_dict"], model)
    head = "new_fc" if dropout else "base_model.fc"
    for name, value in model.classifier.state_dict().items():
        ours = saved["state_dict"][f"{head}.{name}"]
        torch.testing.assert_close(ours[order], value, rtol=0, atol=1e-20)
    assert saved["new_classifier"] is False
    rates = [group["lr"] for group in saved["optimizer"]["param_groups"]]
    assert rates == pytest.approx([0.01, 0.02, 0.01, 0.02, 0.01])
    assert "lr_mult_new has no effect" in (tmp_path / "out" / "log" / f"{NAME}.log").read_text()


def test_a_released_file_of_174_classes_has_those_of_something_something(tmp_path):
    names = released_categories()
    model = filled_checkpoint(tmp_path / "start.pth", names, is_released=True)
    bracketed = sorted(name.replace("something", "[something]") for name in names)
    root = small_data(tmp_path / "data", categories=bracketed)
    told, saved = started_from(tmp_path / "start.pth", root, tmp_path / "out")
    assert told == "backbone and classifier loaded, since the classes are the same, in another order"
    places = [names.index(name.replace("[", "").replace("]", "")) for name in bracketed]
    assert places != sorted(places)
    weight = model.classifier.weight.data[places]
    torch.testing.assert_close(saved["state_dict"]["new_fc.weight"], weight, rtol=0, atol=1e-20)
    assert saved["categories"] == bracketed


def test_a_start_of_another_model_is_refused_with_what_to_give(trn_root, tmp_path):
    path = tmp_path / "start.pth"
    large = {"alpha": 8, "beta": 1}
    filled_checkpoint(path, CATEGORIES, is_released=True, **large)
    process = call(*small_run(trn_root, tmp_path / "out", "--pretrained", path))
    told = "is a model with alpha 8 (now 4), beta 1 (now 2): give --alpha 8 --beta 1"
    assert_one_line_error(process, f"--pretrained {path} {told}")
    filled_checkpoint(path, CATEGORIES)
    process = call(*small_run(trn_root, tmp_path / "out", "--pretrained", path, "--arch", "resnet26"))
    assert_one_line_error(
        process, f"--pretrained {path}", "arch resnet14 (now resnet26): give --arch resnet14"
    )
    assert not (tmp_path / "out").exists()


def test_a_fine_tuned_run_is_resumed_without_the_file_it_started_from(trn_root, tmp_path):
    """With batch norm frozen, in bf16, and a rate of its own for the classifier: to the last bit."""
    path = tmp_path / "start.pth"
    model = filled_checkpoint(path, ["Up", "Down"])
    more = ("--pretrained", path, "--freeze_bn", "--amp", "bf16", "--lr_mult_new", 10, "-b", 8)
    for out, epochs in ((tmp_path / "whole", 2), (tmp_path / "parts", 1)):
        assert call(*small_run(trn_root, out, *more, "--epochs", epochs)).returncode == 0
    path.unlink()
    process = call(*small_run(trn_root, tmp_path / "parts", *more, "--epochs", 2, "--resume", "auto"))
    assert process.returncode == 0, process.stderr
    one, other = (
        load(tmp_path / name / "checkpoint" / f"{NAME}_checkpoint.pth.tar") for name in ("whole", "parts")
    )
    for key in ("state_dict", "optimizer", "history", "new_classifier"):
        assert_same(one[key], other[key])
    assert other["new_classifier"] is True
    start = {name: value for name, value in model.state_dict().items() if "fc." not in name}
    changed = {name for name, value in start.items() if not torch.equal(other["state_dict"][name], value)}
    statistics = {name for name in start if "running" in name or "num_batches" in name}
    assert not changed & statistics
    assert "base_model.conv1.weight" in changed


def test_without_network_imagenet_weights_are_not_silently_left_out(trn_root, tmp_path):
    nowhere = "http://127.0.0.1:9"
    env = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    env |= {"TORCH_HOME": str(tmp_path / "home"), "no_proxy": "", "NO_PROXY": ""}
    command = small_run(trn_root, tmp_path / "out", "--arch", "resnet50")
    process = run("main.py", *command, env=ON_CPU | env)
    place = tmp_path / "home" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    url = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    words = ("--pretrained FILE", "--pretrained none", "resnet50", "Connection refused")
    assert_one_line_error(process, url, place, *words)
    assert not (tmp_path / "out").exists()
    assert "random start" not in process.stdout


@pytest.mark.parametrize("fault", ["text", "other weights"])
def test_a_damaged_file_in_the_place_of_imagenet_weights_is_refused(trn_root, tmp_path, fault):
    # torchvision looks at the checksum of what it fetches only, not of what it finds.
    place = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    place.parent.mkdir(parents=True)
    if fault == "text":
        place.write_bytes(b"an error page")
    else:
        torch.save(small_2d_resnet([1, 1, 1, 1]), place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path))
        process = call(*small_run(trn_root, tmp_path / "out", "--arch", "resnet50"))
    assert_one_line_error(process, place if fault == "text" else place.name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arch", ["resnet14", "resnet26"])
def test_imagenet_weights_that_do_not_exist_are_refused(trn_root, tmp_path, arch):
    process = call(*small_run(trn_root, tmp_path, "--arch", arch, "--pretrained", "imagenet"))
    assert_one_line_error(process, "--pretrained imagenet", arch)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--alpha", 3, ["2, 4, 8, 16, 32, 64"]),
        ("--alpha", 1, []),
        ("--alpha", 128, ["64"]),
        ("--alpha", 0, []),
        ("--beta", 4, ["1, 2"]),
        ("--beta", 0, []),
        ("--type", "TPN", ["GST", "TSM"]),
        ("--arch", "bninception", ["resnet50", "resnet101"]),
        ("--gpus", 99, ["visible GPUs"]),
    ],
)
def test_a_model_that_cannot_work_is_refused_at_once(tmp_path, option, value, words):
    # There is no data either: it was not looked for.
    process = call(*small_run(tmp_path / "none", tmp_path / "out", option, value))
    assert_one_line_error(process, option, value, *words)
    assert "clips" not in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_one_line_of_a_real_process_too(trn_root, tmp_path):
    process = run("main.py", *small_run(trn_root, tmp_path / "out", "--alpha", 3), env=ON_CPU)
    assert_one_line_error(process, "--alpha", "3")
    assert (process.stdout, list(tmp_path.iterdir())) == ("", [])


def test_one_seed_gives_one_run_whatever_the_workers(trn_root, tmp_path):
    def final(name, *more):
        command = small_run(trn_root, tmp_path, "-b", 5, "--epochs", 1, "--lr", 0.01, "--store_name", name)
        lines = succeed(*command, *more)
        saved = load(tmp_path / "checkpoint" / f"{NAME}_{name}_checkpoint.pth.tar")
        log = [line for line in without_times(lines) if line.startswith("Epoch")]
        return saved["state_dict"], saved["optimizer"], saved["history"], log

    one = final("a")
    assert_same(one, final("b", "-j", 2))
    other = final("c", "--seed", 1)
    assert not torch.equal(one[0]["base_model.conv1.weight"], other[0]["base_model.conv1.weight"])
    assert one[3] != other[3]


@pytest.mark.parametrize(
    ("categories", "more", "told"),
    [
        (
            ("Left turn", "Pushing something to the right", "Right turn", "c"),
            (),
            [
                "swaps 'Left turn' <-> 'Right turn'",
                "never mirrors 'Pushing something to the right'",
                "all other",
            ],
        ),
        (("a", "b", "c", "Holding"), (), ["swaps no classes", "all other"]),
        (("0", "1", "2", "3"), (), ["mirrors no class"]),
        (("a", "b", "c", "Holding"), ("--no_flip",), ["mirrors no class"]),
    ],
)
def test_what_the_flip_does_with_the_classes_is_reported(tmp_path, categories, more, told):
    root = small_data(tmp_path, categories=categories)
    lines = succeed(*small_run(root, tmp_path / "out", *more))
    lines = [line.removeprefix("horizontal flip: ") for line in lines if line.startswith("horizontal flip")]
    assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told
    assert "--flip_pairs FILE" in lines[-1]


# ---------------------------------------------------------------------------------------------------------
# The optimizer.

RECIPE = Namespace(lr=0.1, momentum=0.9, weight_decay=0.01)


def model_of(channels_last, state=None):
    torch.manual_seed(0)
    model = TemporalModel(4, 2, backbone="resnet14")
    model.load_state_dict(state or model.state_dict())
    if channels_last:
        to_channels_last(model, torch.device("cpu"))
    return model


def give_gradients(model, seed):
    """Gradients that depend on the seed alone, each in the layout of its parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(values)


def assert_close_models(one, other):
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_optimizer_is_sgd_with_a_rate_and_decay_for_each_group(channels_last):
    model, other = model_of(channels_last), model_of(False)
    optimizer = make_optimizer(model, RECIPE)
    groups = [
        {"params": g["params"], "lr": 0.1 * g["lr_mult"], "weight_decay": 0.01 * g["decay_mult"]}
        for g in other.get_optim_policies()
    ]
    assert [len(group["params"]) for group in groups] == [3, 0, 19, 1, 34]
    expected = torch.optim.SGD(groups, momentum=0.9, fused=False, foreach=False)
    for step in range(3):
        give_gradients(model, step)
        give_gradients(other, step)
        optimizer.step()
        expected.step()
        assert_close_models(model, other)


@pytest.mark.parametrize("channels_last", [True, False])
def test_momentum_continues_in_the_other_layout(channels_last):
    """A checkpoint of a GPU without --channels_last, continued on a CPU, or the other way round."""
    model = model_of(channels_last)
    optimizer = make_optimizer(model, RECIPE)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(2):
        give_gradients(model, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = load(file)
    other = model_of(not channels_last, saved["state_dict"])
    resumed = make_optimizer(other, RECIPE)
    load_optimizer(resumed, scaler, saved, "a.pth")
    for parameter in other.parameters():  # which the kernel goes through in the order of the memory
        assert resumed.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    give_gradients(model, 2)
    give_gradients(other, 2)
    optimizer.step()
    resumed.step()
    assert_close_models(other, model)


def test_a_first_step_that_fp16_skips_leaves_no_momentum():
    model, other = model_of(True), model_of(True)
    optimizer, scaler = make_optimizer(model, RECIPE), torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(scale, infinity=0.0):
        scaler.scale(torch.ones(()))
        give_gradients(model, 0)
        for parameter in model.parameters():
            parameter.grad *= scale
        next(model.parameters()).grad[0] += infinity
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    step(8, torch.inf)
    assert scaler.get_scale() == 4
    assert_close_models(model, other)
    # The second is as a first one.
    step(4)
    give_gradients(other, 0)
    make_optimizer(other, RECIPE).step()
    assert_close_models(model, other)


# ---------------------------------------------------------------------------------------------------------
# Data that is not as it should be.


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_line(line):
    return lambda path: path.write_text(f"1 3 0\n{line}\n")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("", remove, ["--root_path"]),
        (FRAMES["somethingv1"][0], remove, [FRAMES["somethingv1"][0]]),
        ("category.txt", remove, ["category.txt"]),
        ("category.txt", lambda path: path.write_text("a\nb\na\n"), ["line 3", "'a'"]),
        ("train_videofolder.txt", remove, ["train_videofolder.txt", "train.txt", "--train_list"]),
        ("val_videofolder.txt", remove, ["val_videofolder.txt", "valid.txt", "--val_list"]),
        (
            "valid.txt",
            lambda path: path.write_text("1\t3\t0\n"),
            ["val_videofolder.txt and", "--val_list"],
        ),
        (
            "train.txt",
            lambda path: path.write_text("1\t3\t0\n"),
            ["train_videofolder.txt and", "--train_list"],
        ),
        ("train_videofolder.txt", lambda path: path.write_text(""), ["train_videofolder.txt", "empty"]),
        ("val_videofolder.txt", write_line("2 3"), ["val_videofolder.txt, line 2", "2 3"]),
        ("val_videofolder.txt", write_line("2 many 1"), ["line 2", "many"]),
        ("val_videofolder.txt", write_line("2 3 one"), ["line 2", "one"]),
        ("val_videofolder.txt", write_line("2 3 -1"), ["line 2", "-1"]),
        (
            "train_videofolder.txt",
            write_line("2 3 4"),
            ["train_videofolder.txt, line 2", "0 to 3"],
        ),
    ],
)
def test_data_that_cannot_be_read_is_one_line(tmp_path, file, change, words):
    root = small_data(tmp_path / "data")
    path = root / "somethingv1" / file
    change(path)
    process = call(*small_run(root, tmp_path / "out"))
    assert_one_line_error(process, root / "somethingv1", *words)
    assert "parameters" not in process.stdout  # no model was built
    assert not (tmp_path / "out").exists()


def test_missing_frames_are_counted_and_the_first_ten_named(tmp_path):
    root = small_data(tmp_path / "data", train=14)
    frames = root / "somethingv1" / FRAMES["somethingv1"][0]
    for number in range(1, 12):
        shutil.rmtree(frames / str(number))
    (frames / "12" / "00003.jpg").unlink()  # the last frame that the list promises
    process = call(*small_run(root, tmp_path / "out"))
    assert_one_line_error(process, "train_videofolder.txt: 12 of 14 videos", "--skip_missing")
    named = process.stderr.rstrip().split(": ")[-1].split(", ")
    assert named[:10] == [str(frames / str(number)) for number in range(1, 11)]
    assert len(named) == 11
    assert str(frames / "11") not in process.stderr
    assert "parameters" not in process.stdout
    assert not (tmp_path / "out").exists()

    shutil.rmtree(frames / "15")
    shutil.rmtree(frames / "17")
    lines = succeed(*small_run(root, tmp_path / "out", "--skip_missing", "--epochs", 1))
    assert any("train_videofolder.txt: 12 of 14 videos" in line and "left out" in line for line in lines)
    assert any(f"{frames}/12/00003.jpg" in line for line in lines) is False  # the twelfth is not named
    assert "somethingv1: 2 training clips from frames, 4 classes" in lines
    assert "somethingv1: 1 validation clip from frames, 4 classes" in lines
    assert [m[4] for m in map(RESULT_LINE.fullmatch, lines) if m] == [" (1 of 3 videos)"]


def test_a_missing_last_frame_is_named_and_short_videos_are_counted(tmp_path):
    root = small_data(tmp_path / "data", frames=[3, 4, 3, 2, 3, 3])
    last = root / "somethingv1" / FRAMES["somethingv1"][0] / "2" / "00004.jpg"
    last.unlink()
    process = call(*small_run(root, tmp_path / "out"))
    assert_one_line_error(process, "1 of 3 videos", last)
    last.touch()
    with Image.open(last.with_name("00001.jpg")) as image:
        image.save(last)
    lines = succeed(*small_run(root, tmp_path / "out", "--epochs", 1))
    assert any("val_videofolder.txt: left out 1 video with under 3 frames" in line for line in lines)
    assert [m[4] for m in map(RESULT_LINE.fullmatch, lines) if m] == [" (2 of 3 videos)"]


@pytest.fixture
def torn_frame(tmp_path):
    """Data with a video whose frames, the first and the last apart, are cut short; and its folder."""
    root = make_dataset(tmp_path / "data", frames=8, train=9, val=3)
    # Of an epoch's last step, so that it is met in the middle of training.
    sampler = ClipSampler(9, 3, seed=0)
    video = root / "somethingv1" / FRAMES["somethingv1"][0] / str(sampler.batches_of(2)[0][0] + 1)
    for path in video.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    return root, video


def test_an_unreadable_frame_stops_the_run_with_its_path(torn_frame, tmp_path):
    root, video = torn_frame
    command = small_run(root, tmp_path / "out", "-b", 3, "--lr", 0.001)
    alone = call(*command)
    workers = run("main.py", *command, "-j", 2, "--overwrite", env=ON_CPU)
    for process in (alone, workers):
        assert_one_line_error(process, f"{video}/0000", "cannot be read as an image")
        assert [line[:13] for line in process.stdout.splitlines() if line.startswith("Epoch")] == [
            "Epoch: [0][0/",
            "Epoch: [0][1/",
        ]
    assert list((tmp_path / "out" / "checkpoint").iterdir()) == []


@pytest.mark.parametrize(
    ("option", "word"), [("--checkpoint_dir", "too long"), ("--store_name", "at most 150 bytes")]
)
def test_a_name_that_is_too_long_is_one_line(trn_root, tmp_path, option, word):
    process = call(*small_run(trn_root, tmp_path / "out", option, "x" * 300))
    assert_one_line_error(process, option, "xxx", word)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(trn_root, tmp_path):
    (tmp_path / "file").write_text("mine")
    process = call(*small_run(trn_root, tmp_path / "file" / "out"))
    assert_one_line_error(process, "--checkpoint_dir", tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_continues_without_a_video_that_broke(torn_frame, tmp_path):
    """As the message advises; the checkpoint remembers it, and all other steps stay the same."""
    root, video = torn_frame
    out = tmp_path / "out"
    recipe = ("-b", 3, "--lr", 0.001, "--epochs", 2, "--save-freq", 1)
    command = small_run(root, out, *recipe, "--resume", "auto")
    assert_one_line_error(call(*command), f"--exclude FILE with the line '{video.name}'")
    left_out = tmp_path / "broken.txt"
    left_out.write_text(f"\n {video.name} \n")
    lines = succeed(*command, "--exclude", left_out)
    assert [line[:13] for line in lines if line.startswith("Epoch")][:2] == ["Epoch: [0][2/", "Epoch: [1][0/"]
    assert any("train_videofolder.txt: left out 1 video (--exclude)" in line for line in lines)
    saved = load(out / "checkpoint" / f"{NAME}_checkpoint.pth.tar")
    assert saved["excluded"] == [video.name]

    # From the start, without the video's frames: the same.
    shutil.rmtree(video)
    other = small_run(root, tmp_path / "other", *recipe)
    succeed(*other, "--exclude", left_out)
    rows = [rows_of(folder / "log" / f"{NAME}.csv") for folder in (out, tmp_path / "other")]
    assert rows[0] == rows[1]

    # Resumed without the option it stays left out.
    assert succeed(*other, "--resume", "auto", "--epochs", 3)[-1].startswith("best checkpoint")
    assert load(tmp_path / "other" / "checkpoint" / f"{NAME}_checkpoint.pth.tar")["excluded"] == [video.name]


def test_steps_whose_clips_are_all_excluded_are_passed_over(trn_root, tmp_path):
    names = tmp_path / "names.txt"
    order = np.random.default_rng((0, 0, 0)).permutation(8)
    names.write_text("".join(f"{clip + 1}\n" for clip in order[2:6]) + "no such video\n")
    process = call(*small_run(trn_root, tmp_path / "out", "-b", 2, "--lr", 0.001, "--exclude", names))
    assert process.returncode == 0
    assert process.stderr == "warning: --exclude: 1 name not in any list: no such video\n"
    steps = [line[:13] for line in process.stdout.splitlines() if line.startswith("Epoch")]
    assert steps == ["Epoch: [0][0/", "Epoch: [0][3/"]
    names.write_text("".join(f"{clip + 1}\n" for clip in range(8)))
    assert_one_line_error(
        call(*small_run(trn_root, tmp_path / "all", "--exclude", names)), "train_videofolder.txt", "--exclude"
    )
    names.write_text("1\0\n")
    assert_one_line_error(
        call(*small_run(trn_root, tmp_path / "all", "--exclude", names)), "line 1", "1\\x00"
    )
    missing = call(*small_run(trn_root, tmp_path / "all", "--exclude", tmp_path / "none.txt"))
    assert_one_line_error(missing, "none.txt: no such file")


def test_what_changes_the_curve_of_a_resumed_run_is_a_warning(halves, tmp_path):
    more = (*TWO_EPOCHS, "--lr_schedule", "cosine", "--resume", "auto")
    for epochs in (1, 1, 2):
        process = call(*small_run(halves.root, tmp_path, *more, "--epochs", epochs))
        assert process.returncode == 0
        expected = "warning: the run continues on another curve: --epochs 2 (was 1) stretches the cosine"
        assert process.stderr.startswith(expected) == (epochs == 2)
        assert len(process.stderr.splitlines()) == (epochs == 2)
    args = Namespace(epochs=2, lr_schedule="step", freeze_bn=False, sync_bn=False)
    saved = {"options": {"epochs": 70}, "num_devices": 8}
    assert describe_changes(args, saved, 8) == ""
    assert describe_changes(args, saved, 4).startswith(
        "number of devices 4 (was 8): batch norm sees other shares"
    )
    assert "batch norm" not in describe_changes(Namespace(**vars(args) | {"sync_bn": True}), saved, 4)


# ---------------------------------------------------------------------------------------------------------
# Training that fails.


def test_a_loss_that_is_not_finite_saves_nothing(trn_root, tmp_path):
    process = call(*small_run(trn_root, tmp_path, "-b", 4, "--lr", 1e30))
    assert_one_line_error(process, "epoch 0, step 1", "--lr")
    clips = np.random.default_rng((0, 0, 0)).permutation(8)[4:]  # of the list's videos 1 to 8
    assert process.stderr.rstrip().endswith(", ".join(str(clip + 1) for clip in clips))
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_a_loss_that_is_not_finite_leaves_older_checkpoints_alone(halves, tmp_path):
    shutil.copytree(halves.whole, tmp_path / "out")
    before = contents(tmp_path / "out" / "checkpoint")
    saved = load(tmp_path / "out" / "checkpoint" / f"{NAME}_checkpoint.pth.tar")
    saved["state_dict"]["new_fc.bias"][0] = 3e38  # the losses of two clips are more than float32 holds
    torch.save(saved, tmp_path / "bad.pth.tar")
    more = (*TWO_EPOCHS, "--epochs", 3, "--resume", tmp_path / "bad.pth.tar")
    process = call(*small_run(halves.root, tmp_path / "out", *more))
    assert_one_line_error(process, "epoch 2, step 0: loss or gradient is nan")
    assert contents(tmp_path / "out" / "checkpoint") == before
    assert len(rows_of(tmp_path / "out" / "log" / f"{NAME}.csv")) == 2


def test_evaluation_every_few_epochs_and_after_the_last(trn_root, tmp_path):
    lines = succeed(
        *small_run(trn_root, tmp_path, "-b", 8, "--epochs", 3, "-ef", 2, "--lr", 0.001, "--keep", 1)
    )
    rows = rows_of(tmp_path / "log" / f"{NAME}.csv")
    assert [row["val_loss"] != "" for row in rows] == [False, True, True]
    assert len(results_of(lines)) == 2
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2  # the newest and the best


# ---------------------------------------------------------------------------------------------------------
# What the last line and the best checkpoint promise.


def test_an_evaluation_whose_loss_is_not_finite_saves_nothing(trn_root, tmp_path):
    # One step an epoch: its own loss is finite, and only the evaluation meets the weights that it made.
    process = call(*small_run(trn_root, tmp_path, "-b", 8, "--lr", 1e30))
    assert_one_line_error(process, "--lr")
    assert list((tmp_path / "checkpoint").iterdir()) == []


@pytest.mark.parametrize("form", ["released", "another name"])
def test_the_best_checkpoint_is_as_good_as_it_is_said_to_be(halves, tmp_path, form):
    saved = load(halves.half)
    saved["best_prec1"] = 100.0  # the epochs that follow will hardly be as good
    if form == "released":
        saved = {key: saved[key] for key in ("epoch", "arch", "state_dict", "best_prec1")}
    torch.save(saved, tmp_path / "good.pth.tar")
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", tmp_path / "good.pth.tar", "--store_name", "other")
    lines = succeed(*small_run(halves.root, tmp_path / "out", *more))
    told = re.fullmatch(r"best checkpoint, Prec@1 (\d+\.\d{3})(?: \(epoch \d\))?: (.*)", lines[-1])
    best = load(told[2])
    if torch.equal(best["state_dict"]["new_fc.weight"], saved["state_dict"]["new_fc.weight"]):
        measured = saved["best_prec1"]  # the run took over what it began with
    else:
        measured = next(r["val_prec1"] for r in best["history"] if r["epoch"] == best["epoch"] - 1)
    assert float(told[1]) == pytest.approx(measured, abs=6e-4)


def test_no_best_checkpoint_is_named_where_there_is_none(halves, tmp_path):
    # One that has all its epochs behind it trains nothing, so that it has no best epoch of its own.
    more = (*TWO_EPOCHS, "--epochs", 1, "--resume", halves.half, "--store_name", "other")
    lines = succeed(*small_run(halves.root, tmp_path, *more))
    assert any(line.startswith("run ") for line in lines)
    assert list((tmp_path / "checkpoint").iterdir()) == []
    assert not any("best checkpoint" in line or "_best.pth.tar" in line for line in lines)


def test_a_checkpoint_with_an_optimizer_of_another_code_is_no_traceback(halves, tmp_path):
    saved = load(halves.half)
    saved = {key: saved[key] for key in ("epoch", "arch", "state_dict", "best_prec1")}
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", tmp_path / "other.pth.tar")
    for optimizer in (load(halves.half)["optimizer"], {"state": {}, "param_groups": []}):
        torch.save(saved | {"optimizer": optimizer}, tmp_path / "other.pth.tar")
        process = call(*small_run(halves.root, tmp_path / "out", *more, "--store_name", len(str(optimizer))))
        if process.returncode:
            assert_one_line_error(process, tmp_path / "other.pth.tar")


def test_a_batch_too_small_for_batch_norm_is_one_line(trn_root, tmp_path):
    # The last layers see one pixel of one frame of one clip: there is no deviation to divide by.
    process = call(*small_run(trn_root, tmp_path, "-b", 1, "--num_segments", 1))
    assert_one_line_error(process, "--num_segments 1", "--input_size 32", "batch norm")


def test_a_seed_beyond_what_torch_takes_is_one_line(trn_root, tmp_path):
    assert_one_line_error(call(*small_run(trn_root, tmp_path, "--seed", 10**30)), "--seed")
