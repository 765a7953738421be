"""`tools/average_scores.py`: the mean of several models' scores, matched by the names of the videos."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line_error, call

PROGRAM = "tools/average_scores.py"
CLASSES = [f"Doing {name}" for name in "abcdefg"]
VIDEOS = ["1", "2", "folder/3", "4", "5", "6"]
LABELS = np.array([0, 1, 2, 6, 0, 5])


def make_arrays(seed: int, order: list[int] | None = None, **changes: object) -> dict[str, object]:
    """The arrays of a file, with the videos in this order."""
    order = order or list(range(len(VIDEOS)))
    scores = np.random.default_rng(seed).normal(size=(len(VIDEOS), len(CLASSES))).astype(np.float32) * 3
    arrays = {"scores": scores[order], "labels": LABELS[order], "videos": [VIDEOS[i] for i in order]}
    return arrays | {"classes": CLASSES} | changes


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    def write(name: str, seed: int, order: list[int] | None = None, **changes: object) -> Path:
        arrays = make_arrays(seed, order, **changes)
        np.savez(tmp_path / name, **{key: value for key, value in arrays.items() if value is not None})
        return tmp_path / name

    return write


def accuracies(scores: np.ndarray) -> list[str]:
    """Top-1, top-5, mean class."""
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(scores, LABELS, strict=True)]
    is_best = np.array([rank == 0 for rank in ranks])
    per_class = [is_best[label == LABELS].mean() for label in set(LABELS.tolist())]
    values = is_best.mean(), np.mean([rank < 5 for rank in ranks]), np.mean(per_class)
    return [f"{100 * value:.3f}" for value in values]


def test_average(write, tmp_path):
    a, b = write("a.npz", 1), write("b.npz", 2, [3, 1, 0, 5, 4, 2])
    done = call(PROGRAM, a, b, "--weights", 1, 3, "--save_scores", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    one, two = make_arrays(1)["scores"], make_arrays(2)["scores"]
    expected = (one.astype(np.float64) + 3 * two) / 4
    lines = done.stdout.splitlines()
    for line, start, scores in zip(lines, (a, b, "average"), (one, two, expected), strict=False):
        assert line.startswith(str(start))
        numbers = re.findall(r"(?:Prec@\d|class) (\d+\.\d{3})", line.removeprefix(str(start)))
        assert numbers == accuracies(scores)
    with np.load(tmp_path / "out.npz") as content:
        np.testing.assert_allclose(content["scores"], expected, rtol=1e-6, atol=1e-7)
        assert content["scores"].dtype == np.float32
        assert content["videos"].tolist() == VIDEOS
        assert content["labels"].tolist() == LABELS.tolist()
        assert content["classes"].tolist() == CLASSES
    again = call(PROGRAM, tmp_path / "out.npz", tmp_path / "out.npz")  # the output is an input
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"videos": ["1", "2", "folder/3", "4", "5", "7"]}, "'6'"),
        ({"videos": ["1", "2", "folder/3", "4", "5", "5"]}, "several rows"),
        ({"labels": [0, 1, 2, 6, 1, 5]}, "'5'"),
        ({"classes": [*CLASSES[:6], "Other\n"]}, "classes"),
        ({"videos": np.array(VIDEOS, dtype=object)}, "b.npz"),
    ],
)
def test_files_that_do_not_match(write, tmp_path, changes, culprit):
    a, b = write("a.npz", 1), write("b.npz", 2, **changes)
    assert_one_line_error(call(PROGRAM, a, b, "--save_scores", tmp_path / "out.npz"), b, culprit)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--weights", 1], "--weights"),
        (["--weights", 0, 0], "--weights"),
        (["--save_scores", "there.npz"], "there.npz"),
    ],
)
def test_wrong_options(write, tmp_path, monkeypatch, options, culprit):
    monkeypatch.chdir(tmp_path)
    files = [write("a.npz", 1), write("b.npz", 2)]
    Path("there.npz").write_text("precious")
    assert_one_line_error(call(PROGRAM, *files, *options), culprit)
    assert Path("there.npz").read_text() == "precious"
