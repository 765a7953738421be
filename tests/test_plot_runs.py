"""tools/plot_runs.py: the curves of runs in one picture, and refused files."""

import tempfile
from pathlib import Path

import pytest
from helpers import assert_one_line_error, call
from PIL import Image

from reports.plots import draw_curves, plain_matplotlib
from tools import plot_runs
from training.files import write_csv

ROWS = [
    {"epoch": 0, "lr": 0.01, "train_loss": 4.0, "train_prec1": 5.0, "train_prec5": 9.0},
    {"epoch": 1, "lr": 0.001, "train_loss": 3.0, "train_prec1": 25.0, "train_prec5": 50.0},
]
ROWS[1] |= {"val_loss": 3.5, "val_prec1": 20.0, "val_prec5": 45.0, "val_mean_class": 19.0}


def format_csv(rows: list[dict]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder, "a.csv"), rows)
        return Path(folder, "a.csv").read_text()


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """The logs of two runs; the first has an epoch without a validation."""
    texts = {"_a $x$.csv": format_csv(ROWS), "b.csv": format_csv(ROWS[1:])}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in texts]


def test_picture_of_two_runs(logs, tmp_path):
    out = tmp_path / "runs.png"
    done = call("tools/plot_runs.py", *logs, "--out", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"plot: {out}\n", "")
    with Image.open(out) as image:
        assert image.size[0] > 1000
    picture = out.read_bytes()
    assert_one_line_error(call("tools/plot_runs.py", *logs, "--out", out), f"--out {out}")
    assert out.read_bytes() == picture


def test_curves_are_those_of_the_logs(logs):
    figure = draw_curves({name.stem: plot_runs.read_log(str(name)) for name in logs})
    loss, accuracy, rate = (
        [[list(line.get_xdata()), list(line.get_ydata())] for line in axes.get_lines()]
        for axes in figure.axes
    )
    assert loss == [[[0, 1], [4, 3]], [[1], [3.5]], [[1], [3]], [[1], [3.5]]]
    assert accuracy == [[[0, 1], [5, 25]], [[1], [20]], [[1], [25]], [[1], [20]]]
    assert rate == [[[0, 1], [0.01, 0.001]], [[1], [0.001]]]
    assert figure.axes[2].get_yscale() == "log"


def test_names_of_runs_are_complete_and_apart():
    names = ["_a $x$", "a" * 190, *(f"run {number}" for number in range(12))]
    with plain_matplotlib():
        figure = draw_curves(dict.fromkeys(names, ROWS))
        figure.draw_without_rendering()
        texts = figure.legends[0].get_texts()
        boxes = [text.get_window_extent() for text in texts]
        rates = "".join(label.get_text() for label in figure.axes[2].get_yticklabels(which="both"))
    assert rates
    assert "$" not in rates
    assert [text.get_text().replace("\n", "").strip() for text in texts] == names
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[2].get_lines()}
    assert len(looks) == len(names)


GOOD = format_csv(ROWS)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        (None, ""),
        ("class,top-1\n1,2\n", "line 2: "),
        (GOOD.replace("4.0", "much"), "line 2: "),
    ],
)
def test_other_files_are_refused(logs, tmp_path, text, culprit):
    file, out = tmp_path / "other.csv", tmp_path / "out.png"
    if text is not None:
        file.write_text(text)
    assert_one_line_error(call("tools/plot_runs.py", logs[0], file, "--out", out), file, culprit)
    assert not out.exists()


def test_runs_without_an_epoch_are_skipped(logs, tmp_path):
    new, out = tmp_path / "new.csv", tmp_path / "out.png"
    new.write_text(format_csv([]))
    assert_one_line_error(call("tools/plot_runs.py", new, "--out", out), "epoch")
    assert not out.exists()
    done = call("tools/plot_runs.py", new, *logs, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"{tmp_path / 'new'}: skipped")
    assert out.exists()
