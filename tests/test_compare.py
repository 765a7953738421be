"""tools/compare.py: trained and evaluated by real processes on a tiny data set, stopped and continued."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line_error, call
from PIL import Image

from datasets_video import return_dataset
from tools import compare
from utils.cli import UserError

OPTIONS = ["--arch", "resnet14", "--input_size", 32, "--num_segments", 2, "-b", 12, "--epochs", 1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with one clip of each class. Read only: it is shared."""
    folder = tmp_path_factory.mktemp("compare")
    words = ["--dataset", "tiny", "--level", 1, "--train", 1, "--val", 1, "--size", 32, 32]
    done = call("tools/make_motion_dataset.py", folder, *words)
    assert done.returncode == 0, done.stderr
    return folder


def words(root: Path, out: Path) -> list[object]:
    data = ["--root_path", root, "--dataset", "tiny", "--out", out, "--types", "GST", "--seeds", 0]
    return ["tools/compare.py", *data, "--", *OPTIONS]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_comparison(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process. The second program fails, and the same command continues."""
    out = tmp_path / "new" / "out"
    runs = []

    def run_here(name: str, program: str, *words: object) -> None:
        runs.append(program)
        if len(runs) == 2:
            raise UserError("stopped")
        done = call(program, *words)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(compare, "run", run_here)
    monkeypatch.setattr("sys.argv", [str(word) for word in words(root, out)])
    with pytest.raises(UserError, match="stopped"):
        compare.main()
    assert not (out / "table.md").exists()
    compare.main()
    assert runs.count("main.py") == 3  # GST again, which is finished, and the one without swaps
    text = (out / "table.md").read_text()
    rows = [line.strip("| ").split(" | ")[0] for line in text.splitlines() if line.startswith("| GST")]
    assert rows == ["GST", *compare.CONTROLS]
    assert "7.26 M | 0.055 G" in text
    with Image.open(out / "plot.png") as picture:
        assert min(picture.size) > 300

    # The backward clips have other scores, the same clips and labels.
    scores = {path.stem: np.load(path) for path in (out / "scores").iterdir()}
    forwards, backwards = scores["GST_seed0"], scores["GST_seed0_backwards"]
    assert backwards["labels"].tolist() == forwards["labels"].tolist()
    assert not np.allclose(backwards["scores"], forwards["scores"])

    # Only the control keeps the labels of mirrored clips.
    swaps = {path.parents[1].name: "swaps no classes" not in path.read_text() for path in out.rglob("*.log")}
    assert swaps == {"GST_seed0": True, "GST_unswapped_seed0": False}

    # A finished comparison runs nothing; other options are refused.
    assert call(*words(root, out)).stdout == text
    assert_one_line_error(call(*words(root, out), "--lr", 0.5), f"--out {out}")


def test_reordered_clips(root: Path, tmp_path: Path) -> None:
    paths = return_dataset("tiny", root)
    video = paths.val_list.read_text().split()[0]
    own = [(paths.root_data / video / f"{number:05d}.jpg").read_bytes() for number in range(1, 25)]
    orders = {}
    for order in compare.ORDERS:
        compare.reorder(paths, order, tmp_path / order)
        made = return_dataset(order, tmp_path / order, for_training=False)
        assert made.categories == paths.categories
        assert made.val_list.read_bytes() == paths.val_list.read_bytes()
        frames = [made.root_data / video / f"{number:05d}.jpg" for number in range(1, 25)]
        orders[order] = [own.index(frame.read_bytes()) for frame in frames]
    assert orders["backwards"] == list(range(24))[::-1]
    assert sorted(orders["shuffled"]) == list(range(24))
    assert np.abs(np.corrcoef(orders["shuffled"], range(24))[0, 1]) < 0.7


def test_accuracies() -> None:
    groups = {"reversed pairs": [[0, 1]], "mirrored pairs": [[1, 2]], "static": [3]}
    scores = np.array(
        [
            [2.0, 1.0, 9.0, 0.0],  # wrong, but right within its pairs
            [2.0, 1.0, 0.0, 0.0],  # wrong within the reversed pair, right within the mirrored one
            [0.0, 5.0, 1.0, 0.0],  # wrong within the mirrored pair
            [0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 1.0, 0.5],
        ]
    )
    assert compare.accuracy(scores, np.array([0, 1, 2, 3, 3]), groups) == [20, 50, 50, 50]


def test_table_has_mean_and_spread() -> None:
    values = np.array([[50, 60, math.nan, 90], [70, 61, math.nan, 95]])
    text = compare.table({"X": values, "Y": values}, {"X": (1_250_000, 2_000_000)})
    common = "60.0 (50.0 to 70.0) | 60.5 (60.0 to 61.0) | - | 92.5 (90.0 to 95.0)"
    assert text.splitlines()[-2:] == [f"| X | {common} | 1.25 M | 0.002 G |", f"| Y | {common} |  |  |"]
