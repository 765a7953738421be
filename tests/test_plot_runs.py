"""tools/plot_runs.py: the logs of runs, drawn by real processes, and what is refused."""

from pathlib import Path

import pytest
from helpers import assert_one_line_error, call, run
from PIL import Image

from reports.plots import draw_curves
from tools import plot_runs
from training.run import format_csv

ROWS = [
    {"epoch": 0, "lr": 0.01, "train_loss": 4.0, "train_prec1": 5.0, "train_prec5": 9.0},
    {"epoch": 1, "lr": 0.001, "train_loss": 3.0, "train_prec1": 25.0, "train_prec5": 50.0},
]
ROWS[1] |= {"val_loss": 3.5, "val_prec1": 20.0, "val_prec5": 45.0, "val_mean_class": 19.0}


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """The logs of two runs; the first has an epoch without a validation."""
    texts = {"_a $x$.csv": format_csv(ROWS), "b.csv": format_csv(ROWS[1:])}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in texts]


def test_runs_are_compared(logs, tmp_path):
    done = run("tools/plot_runs.py", *logs, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "plot: runs.png\n", "")
    picture = (tmp_path / "runs.png").read_bytes()
    with Image.open(tmp_path / "runs.png") as image:
        assert image.size[0] > 1000
    assert_one_line_error(run("tools/plot_runs.py", *logs, cwd=tmp_path), "--out runs.png: already exists")
    assert (tmp_path / "runs.png").read_bytes() == picture
    one = call("tools/plot_runs.py", logs[0], "--out", tmp_path / "one.png")
    assert one.returncode == 0
    assert (tmp_path / "one.png").read_bytes() != picture


def test_the_curves_are_those_of_the_logs(logs):
    figure = draw_curves({name.stem: plot_runs.read_log(str(name)) for name in logs})
    loss, accuracy, rate = (
        [[list(line.get_xdata()), list(line.get_ydata())] for line in axes.get_lines()]
        for axes in figure.axes
    )
    assert loss == [[[0, 1], [4, 3]], [[1], [3.5]], [[1], [3]], [[1], [3.5]]]
    assert accuracy == [[[0, 1], [5, 25]], [[1], [20]], [[1], [25]], [[1], [20]]]
    assert rate == [[[0, 1], [0.01, 0.001]], [[1], [0.001]]]
    assert figure.axes[2].get_yscale() == "log"
    (legend,) = figure.legends
    names = [text.get_text().strip() for text in legend.get_texts()]
    assert names == ["training", "validation", "_a $x$", "b"]


def test_names_are_complete_and_inside_the_picture():
    names = ["a" * 190, *(f"run {number}" for number in range(12))]
    figure = draw_curves(dict.fromkeys(names, ROWS))
    figure.draw_without_rendering()
    texts = figure.legends[0].get_texts()
    assert [text.get_text().replace("\n", "").strip() for text in texts[2:]] == names
    boxes = [text.get_window_extent() for text in texts]
    assert all(figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max) for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[2].get_lines()}
    assert len(looks) == len(names)


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert plot_runs.name_runs(["s0/log/a.csv", "s1/log/b.csv"]) == ["a", "b"]
    assert plot_runs.name_runs(["s0/log/a.csv", "s1/log/a.csv"]) == ["s0/log/a.csv", "s1/log/a.csv"]


GOOD = format_csv(ROWS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["no such file"]),
        ("", ["is not the log of a run"]),
        ("{}\n", ["is not the log of a run", "train_loss"]),
        ("class,top-1\n1,2\n", ["is not the log of a run"]),
        (format_csv([]), ["has no epoch yet"]),
        (GOOD.replace("4.0", "much"), ["line 2", "train_loss 'much' is not a number"]),
        (GOOD.replace("4.0", "nan"), ["line 2", "train_loss 'nan'"]),
        (GOOD.replace("4.0", ""), ["line 2", "train_loss ''"]),
        (GOOD[: GOOD.index("4.0")], ["line 2", "train_loss ''"]),
        (GOOD + GOOD.splitlines()[1] + "\n", ["line 4", "epoch 0 does not follow"]),
        (GOOD + '"' + "x" * 200_000, ["line 4", "cannot be read"]),
        ("\0\n", []),  # the versions of Python differ in what they say of it
    ],
)
def test_what_is_not_a_log_is_one_line(logs, tmp_path, text, words):
    file, out = tmp_path / "other.csv", tmp_path / "out.png"
    if text is not None:
        file.write_text(text)
    refused = call("tools/plot_runs.py", logs[0], file, "--out", out)
    assert_one_line_error(refused, file, *words)
    assert not out.exists()


def test_other_refusals(logs, tmp_path):
    out = tmp_path / "out.png"
    assert_one_line_error(call("tools/plot_runs.py", logs[0], logs[0], "--out", out), "given twice")
    assert_one_line_error(call("tools/plot_runs.py", logs[0], "--out", tmp_path / "out.jpg"), ".png")
    assert_one_line_error(call("tools/plot_runs.py", logs[0], "--out", tmp_path / "no" / "out.png"), "no")
    assert_one_line_error(call("tools/plot_runs.py"), "CSV")
    assert_one_line_error(call("tools/plot_runs.py", tmp_path, "--out", out), tmp_path, "is a folder")
    assert not out.exists()
