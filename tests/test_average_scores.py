"""`tools/average_scores.py`: the mean of several models' scores, matched by the names of the videos."""

import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forked import REPOSITORY
from helpers import assert_one_line_error, call, files_limited_to, finish

PROGRAM = "tools/average_scores.py"
CLASSES = [f"Doing {name}" for name in "abcdefg"]
VIDEOS = ["1", "2", "folder/3", "4", "5", "6"]
LABELS = np.array([0, 1, 2, 6, 0, 5])


def arrays(seed: int, order: list[int] | None = None, **changes: object) -> dict[str, object]:
    """What a file holds; `order` is that of the videos."""
    order = order or list(range(len(VIDEOS)))
    scores = np.random.default_rng(seed).normal(size=(len(VIDEOS), len(CLASSES))).astype(np.float32) * 3
    found = {"scores": scores[order], "labels": LABELS[order], "videos": [VIDEOS[i] for i in order]}
    return found | {"classes": CLASSES} | changes


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    def write(name: str, seed: int, order: list[int] | None = None, **changes: object) -> Path:
        path = tmp_path / name
        content = arrays(seed, order, **changes)
        np.savez(path, **{key: value for key, value in content.items() if value is not None})
        return path

    return write


def figures(scores: np.ndarray, labels: np.ndarray = LABELS) -> list[str]:
    """Top-1, top-5, mean class."""
    ranks = [sorted(own, reverse=True).index(own[label]) for own, label in zip(scores, labels, strict=True)]
    per_class = [
        np.mean([rank == 0 for rank, other in zip(ranks, labels, strict=True) if other == label])
        for label in set(labels.tolist())
    ]
    found = np.mean([r == 0 for r in ranks]), np.mean([r < 5 for r in ranks]), np.mean(per_class)
    return [f"{100 * value:.3f}" for value in found]


def softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores.astype(np.float64))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("is_softmax", [False, True])
def test_the_average_is_of_the_same_videos_whatever_their_order(write, tmp_path, is_softmax):
    a, b = write("a.npz", 1), write("b.npz", 2, [3, 1, 0, 5, 4, 2])
    options = ["--softmax"] * is_softmax + ["--save_scores", tmp_path / "out.npz"]
    done = call(PROGRAM, a, b, "--weights", 1, 3, *options)
    assert done.returncode == 0, done.stderr
    one, two = arrays(1)["scores"], arrays(2)["scores"]
    parts = [softmax(own) if is_softmax else own.astype(np.float64) for own in (one, two)]
    expected = (parts[0] + 3 * parts[1]) / 4
    for line, start, scores in zip(
        done.stdout.splitlines(), (a, b, "average"), (one, two, expected), strict=False
    ):
        assert line.startswith(str(start))
        assert re.findall(r"\d+\.\d{3}", line.removeprefix(str(start))) == figures(scores)
    with np.load(tmp_path / "out.npz") as content:
        np.testing.assert_allclose(content["scores"], expected, rtol=1e-6, atol=1e-7)
        assert content["scores"].dtype == np.float32
        assert content["videos"].tolist() == VIDEOS
        assert content["labels"].tolist() == LABELS.tolist()
        assert content["classes"].tolist() == CLASSES
    # Its own output is its input.
    again = call(PROGRAM, tmp_path / "out.npz", tmp_path / "out.npz")
    assert again.returncode == 0, again.stderr
    equal = call(PROGRAM, a, b, *options[:-2])
    other = call(PROGRAM, a, b, *options[:-2], "--weights", 2, 2)
    assert equal.stdout == other.stdout


def test_without_labels_there_is_no_accuracy_but_an_average(write, tmp_path):
    files = [write(name, seed, labels=[-1] * 6) for name, seed in (("a.npz", 1), ("b.npz", 2))]
    done = call(PROGRAM, *files, "--save_scores", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no accuracy") == 3
    assert "nan" not in done.stdout
    assert np.load(tmp_path / "out.npz")["labels"].tolist() == [-1] * 6


def test_it_starts_without_torch(write):
    code = f"import sys, runpy; sys.argv = ['x', {str(write('a.npz', 1))!r}]\n"
    code += f"try: runpy.run_path({str(REPOSITORY / PROGRAM)!r}, run_name='__main__')\n"
    code += "except SystemExit as stop: assert not stop.code\nassert 'torch' not in sys.modules"
    done = finish([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"videos": ["1", "2", "folder/3", "4", "5", "7"]}, ["b.npz", "no video '6'", "a.npz"]),
        ({"videos": ["1", "2", "folder/3", "4", "5", "1"]}, ["b.npz", "video '1' more than once"]),
        ({"labels": [0, 1, 2, 6, 1, 5]}, ["video '5'", "is 1", "is 0"]),
        ({"labels": [-1] * 6}, ["video '1'", "-1"]),
        ({"labels": [0, 1, 2, 6, 0, -1]}, ["labels", "7 classes"]),
        ({"labels": [0, 1, 2, 6, 0, 7]}, ["labels", "7 classes"]),
        ({"labels": [0, 1, 2]}, ["do not fit", "(3,)"]),
        ({"labels": [0.5] * 6}, ["do not fit", "float64"]),
        ({"classes": [*CLASSES[:6], "Other\n"]}, ["class 6", "'Other\\n'", "'Doing g'"]),
        ({"classes": CLASSES[:6]}, ["do not fit"]),
        ({"scores": np.zeros((6, 8), np.float32), "classes": [*CLASSES, "h"]}, ["8 classes", "has 7"]),
        ({"scores": np.zeros((6, 7, 1))}, ["do not fit", "(6, 7, 1)"]),
        ({"scores": np.zeros((6, 7), int)}, ["do not fit"]),
        ({"scores": np.full((6, 7), np.nan)}, ["video '1'", "not finite"]),
        ({"scores": np.full((6, 7), 1e300)}, ["video '1'", "not finite"]),  # in float32
        ({"videos": np.array([0x7FFFFFFF] * 6, np.uint32).view("<U1")}, ["b.npz", "damaged"]),
        ({"scores": None}, ["no array 'scores'"]),
        ({"classes": None}, ["no array 'classes'"]),
        ({"videos": np.array(VIDEOS, dtype=object)}, ["b.npz", "damaged"]),
    ],
)
def test_files_that_do_not_fit_are_refused(write, tmp_path, changes, words):
    a, b = write("a.npz", 1), write("b.npz", 2, **changes)
    done = call(PROGRAM, a, b, "--save_scores", tmp_path / "out.npz")
    assert_one_line_error(done, *words)
    assert not (tmp_path / "out.npz").exists()


def test_a_full_disk_is_named_with_the_file(write, tmp_path):
    a, out = write("a.npz", 1), tmp_path / "out.npz"
    with files_limited_to(100):
        done = call(PROGRAM, a, a, "--save_scores", out)
    assert_one_line_error(done, f"--save_scores {out}: cannot be written (File too large)")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_video_that_only_the_second_file_has_is_named(write):
    fewer = arrays(1)
    shorter = {name: fewer[name][:5] for name in ("scores", "labels", "videos")}
    a, b = write("a.npz", 1, **shorter), write("b.npz", 2)
    assert_one_line_error(call(PROGRAM, a, b), a, "no video '6'", b)


@pytest.mark.parametrize(
    "kind", ["text", "empty", "npy", "cut", "folder", "missing", "flipped", "odd", "open", "huge", "bytes"]
)
def test_what_is_not_an_npz_file_is_refused(write, tmp_path, kind):
    good, path = write("a.npz", 1), tmp_path / "b.npz"
    data = good.read_bytes()
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "folder":
        path.mkdir()
    elif kind == "flipped":
        np.savez_compressed(path, **arrays(2))
        spoilt = bytearray(path.read_bytes())
        spoilt[150:400] = bytes(byte ^ 0x55 for byte in spoilt[150:400])
        path.write_bytes(spoilt)
    elif kind == "odd":
        path.write_bytes(data.replace(b"'descr': '<f4'", b"'descr': '<q4'"))
    elif kind == "open":
        path.write_bytes(data.replace(b"'shape': (6, 7), }", b"'shape': (6, 7), ("))
    elif kind == "huge":
        path.write_bytes(data.replace(b"(6, 7), }         ", b"(6, 7777777777), }"))
    elif kind == "bytes":
        with zipfile.ZipFile(path, "w") as file:
            for name in ("scores", "labels", "videos", "classes"):
                file.writestr(f"{name}.npy", b"words")
    elif kind != "missing":
        path.write_bytes({"text": b"words", "empty": b"", "cut": data[: len(data) // 2]}[kind])
    assert_one_line_error(call(PROGRAM, good, path), f"error: {path}: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", 1], ["--weights", "1 numbers for 2 files"]),
        (["--weights", 0, 0], ["--weights", "above 0"]),
        (["--weights", 1, -1], ["-1"]),
        (["--weights", "1e308", "1e308"], ["--weights"]),
        (["--save_scores", "out.txt"], ["--save_scores", ".npz"]),
        (["--save_scores", "there.npz"], ["--save_scores", "already exists"]),
    ],
)
def test_options_that_cannot_work_are_refused(write, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    files = [write("a.npz", 1), write("b.npz", 2)]
    Path("there.npz").write_text("precious")
    assert_one_line_error(call(PROGRAM, *files, *options), *words)
    assert Path("there.npz").read_text() == "precious"
