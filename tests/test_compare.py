"""tools/compare.py: trained and evaluated by real processes on a tiny data set, stopped and continued."""

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from forked import Program
from helpers import assert_one_line_error, call
from PIL import Image

from datasets_video import return_dataset
from models import BLOCKS
from tools import compare
from tools.compare import Accuracy, Groups, Row

OPTIONS = ["--arch", "resnet14", "--input_size", 32, "--num_segments", 2, "-b", 12, "--epochs", 1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with one clip of each class. Read only: it is shared."""
    folder = tmp_path_factory.mktemp("compare")
    words = ["--dataset", "tiny", "--level", 1, "--train", 1, "--val", 1, "--size", 32, 32]
    done = call("tools/make_motion_dataset.py", folder, *words)
    assert done.returncode == 0, done.stderr
    return folder


def words(root: Path, out: Path, *more: object) -> list[object]:
    data = ["--root_path", root, "--dataset", "tiny", "--out", out, "--types", "GST", "--jobs", 2]
    return ["tools/compare.py", *data, *more, "--", *OPTIONS]


def test_a_comparison_is_stopped_and_continued(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    program = Program(*words(root, out, "--seeds", 0))
    program.wait_for("GST_seed0: main.py")
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 128 + signal.SIGTERM
    assert not (out / "table.md").exists()

    done = call(*words(root, out, "--seeds", 0))
    assert (done.returncode, done.stderr) == (0, "")
    text = (out / "table.md").read_text()
    assert done.stdout.endswith(text)
    rows = [line.strip("| ").split(" | ")[0] for line in text.splitlines() if line.startswith("| GST")]
    assert rows == [
        "GST",
        "GST, played backwards",
        "GST, frames shuffled",
        "GST, trained without the label swap",
    ]
    assert "7.26 M | 0.055 G" in text
    with Image.open(out / "plot.png") as picture:
        assert min(picture.size) > 300

    # The backward clips are scored as the models see them: other scores, the same clips and labels.
    scores = {path.stem: np.load(path) for path in (out / "scores").iterdir()}
    forwards, backwards = scores["GST_seed0"], scores["GST_seed0_backwards"]
    assert backwards["labels"].tolist() == forwards["labels"].tolist()
    assert not np.allclose(backwards["scores"], forwards["scores"])

    # Only that run was told to leave the labels of mirrored classes as they are.
    swaps = {path.parents[1].name: "swaps no classes" not in path.read_text() for path in out.rglob("*.log")}
    assert swaps == {"GST_seed0": True, "GST_unswapped_seed0": False}

    # Nothing is left to compute; other options are another comparison.
    again = call(*words(root, out, "--seeds", 0))
    assert again.stdout == text
    refused = call(*words(root, out, "--seeds", 0), "--lr", 0.5)
    assert_one_line_error(refused, out / "settings.json", "another --out")


def test_reordered_clips(root: Path, tmp_path: Path) -> None:
    paths = return_dataset("tiny", root)
    for order in compare.REORDERED:
        compare.reorder(paths, order, tmp_path)
    video = paths.val_list.read_text().split()[0]
    own = [(paths.root_data / video / f"{number:05d}.jpg").read_bytes() for number in range(1, 25)]
    orders = {}
    for order in compare.REORDERED:
        made = return_dataset(order, tmp_path, for_training=False)
        assert made.categories == paths.categories
        assert made.val_list.read_bytes() == paths.val_list.read_bytes()
        frames = [made.root_data / video / f"{number:05d}.jpg" for number in range(1, 25)]
        orders[order] = [own.index(frame.read_bytes()) for frame in frames]
    assert orders["backwards"] == list(range(24))[::-1]
    assert sorted(orders["shuffled"]) == list(range(24))
    assert np.abs(np.corrcoef(orders["shuffled"], range(24))[0, 1]) < 0.7


def test_accuracies() -> None:
    groups = Groups(reversed=[[0, 1]], mirrored=[[1, 2]], static=[3])
    scores = np.array(
        [
            [2.0, 1.0, 9.0, 0.0],  # wrong, but right within its pairs
            [2.0, 1.0, 0.0, 0.0],  # wrong within the reversed pair, right within the mirrored one
            [0.0, 5.0, 1.0, 0.0],  # wrong within the mirrored pair
            [0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 1.0, 0.5],
        ]
    )
    found = compare.accuracy(scores, np.array([0, 1, 2, 3, 3]), groups)
    assert found == Accuracy(all=20, reversed=50, mirrored=50, static=50)
    assert math.isnan(compare.accuracy(scores, np.zeros(5, int), Groups([[0, 1]], [], [3])).static)


def test_table_has_mean_and_spread() -> None:
    accuracies = [Accuracy(50, 60, math.nan, 90), Accuracy(70, 61, math.nan, 95)]
    text = compare.table(
        [Row("X", accuracies, 1_250_000, 2_000_000, [0.1, 0.3]), Row("Y", accuracies)], [0, 1]
    )
    x, y = text.splitlines()[-2:]
    common = "60.0 (50.0 to 70.0) | 60.5 (60.0 to 61.0) | - | 92.5 (90.0 to 95.0)"
    assert x == f"| X | {common} | 1.25 M | 0.002 G | 200 (100 to 300) ms |"
    assert y == f"| Y | {common} |  |  |  |"


# In the last the mean of equal values is rounded to below them.
@pytest.mark.parametrize("values", [(70, 80), (100, 100), (20, 99), (95.4, 99.9)])
def test_the_plot_ends_at_100_and_its_names_do_not_overlap(values: tuple[float, float]) -> None:
    one = Accuracy(values[0], values[1], 80, 70)
    rows = [Row(name, [one] * 3, 1, 10**7 * (number + 1)) for number, name in enumerate(BLOCKS)]
    figure = compare.draw(rows)
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert max(tick for tick in axes.get_yticks() if low <= tick <= high) <= 100
        assert high < 105
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == len(rows)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max) for box in boxes)


def test_what_cannot_be_compared_is_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # One at a time: of two that fail at once, either may be the first to end.
    failed = call(*words(root, out, "--seeds", 0, "--jobs", 1), "--lr", "much")
    assert_one_line_error(failed, "GST_seed0", "--lr")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").write_text("mine")
    assert_one_line_error(call(*words(root, foreign)), f"--out {foreign}", "not empty")

    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    settings = copy / "tiny" / "motion_dataset.json"
    known = json.loads(settings.read_text())
    for damage in (
        "[]",
        "{",
        json.dumps(known | {"static": ["no class"]}),
        json.dumps(known | {"reversed_pairs": []}),
    ):
        settings.write_text(damage)
        assert_one_line_error(call(*words(copy, tmp_path / "other")), settings)
    settings.unlink()
    assert_one_line_error(call(*words(copy, tmp_path / "other")), settings, "make_motion_dataset")
    assert not (tmp_path / "other").exists()
