"""Pictures of a run's first batch and curves, and TensorBoard's pages."""

import io
import json
import random
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import REPOSITORY
from helpers import call, finish, read_events, run, small_run
from PIL import Image
from synthetic import CATEGORIES, make_dataset

from classes import NEVER
from dataset import VideoDataSet, open_videos
from datasets_video import return_dataset
from loader import ClipSampler
from reports.plots import MAX_CLIPS, draw_batch, draw_curves
from transforms import Compose, GroupRandomHorizontalFlip, training_transform

NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
MIRRORED = [2, 1, 0, 3]


def open_clips(root: Path, mirrored: list[int] = MIRRORED, flips: bool = True) -> VideoDataSet:
    transform = training_transform(32, mirrored)
    if not flips:
        parts = [part for part in transform.transforms if not isinstance(part, GroupRandomHorizontalFlip)]
        transform = Compose(*parts)
    return open_videos(return_dataset("somethingv1", root), 4, transform, is_training=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 6 to 9 frames. Read only: it is shared."""
    return make_dataset(tmp_path_factory.mktemp("watch"), train=19, val=7, frames=(6, 9, 7))


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """A run of an epoch whose batches are larger than the picture of one. Read only: it is shared."""
    out = tmp_path_factory.mktemp("finished")
    process = run("main.py", *small_run(root, out, "-b", 15))
    assert (process.returncode, process.stderr) == (0, "")
    return Namespace(out=out, log=out / "log", events=read_events(out / "tensorboard" / NAME))


def expected_batch(root: Path, epoch: int, title: str) -> np.ndarray:
    """The picture of an epoch's first batch, from clips that are loaded again."""
    sampler = ClipSampler(19, 15, 0)
    sampler.start(epoch)
    keys = next(iter(sampler))[:MAX_CLIPS]
    videos, unflipped = open_clips(root), open_clips(root, flips=False)
    clips, labels = zip(*(videos[key] for key in keys), strict=True)
    mirrored = [not np.array_equal(clip, unflipped[key][0]) for clip, key in zip(clips, keys, strict=True)]
    assert 0 < sum(mirrored) < MAX_CLIPS
    names = [videos.record(number).path for _, number in keys]
    return np.asarray(draw_batch(np.stack(clips), labels, mirrored, names, CATEGORIES, title))


def decode(events: dict, step: int) -> np.ndarray:
    encoded = events["train/batch"][step].image.encoded_image_string
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_first_batch_is_drawn_as_trained(finished, root):
    expected = expected_batch(root, 0, "First batch of this run, at step 0: 12 of its 15 clips")
    with Image.open(finished.log / f"{NAME}.batch.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    assert list(finished.events["train/batch"]) == [0]
    np.testing.assert_array_equal(decode(finished.events, 0), expected)


def test_tensorboard_has_classes_options_and_lengths(finished):
    events = finished.events
    accuracies = {tag: points[1].simple_value for tag, points in events.items() if "val_class" in tag}
    assert list(accuracies) == [
        "val_class/000_Pulling_something_from_left_to_right",
        "val_class/001_Holding_something",
        "val_class/002_Pulling_something_from_right_to_left",
        "val_class/003_Dropping_something_onto_something",
    ]
    values = list(accuracies.values())
    assert np.mean(values) == pytest.approx(events["val/mean_class"][1].simple_value, rel=1e-5)
    total = np.dot(values, [2, 2, 2, 1]) / 7  # clips of each class
    assert total == pytest.approx(events["val/prec1"][1].simple_value, rel=1e-5)

    (text,) = events["run/text_summary"][0].tensor.string_val
    content = json.loads((finished.log / f"{NAME}.json").read_text())
    assert json.loads(text)["options"] == content["options"]
    assert all(line.startswith(b"    ") for line in text.splitlines())  # Markdown leaves such lines alone

    lengths = {"training": [6, 9, 7] * 6 + [6], "validation": [9, 7, 6, 9, 7, 6, 9]}
    for name, numbers in lengths.items():
        histogram = events[f"data/{name}_frames"][0].histo
        bins = zip(histogram.bucket_limit, histogram.bucket, strict=True)
        assert {limit - 0.5: count for limit, count in bins if count} == {
            number: numbers.count(number) for number in (6, 7, 9)
        }


def test_curves_are_drawn(finished):
    with Image.open(finished.log / f"{NAME}.png") as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert("L")).min() < 100


def test_lost_pictures_are_a_warning(finished, root, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    before = (out / "log" / f"{NAME}.png").read_bytes()
    for picture in (f"{NAME}.png", f"{NAME}.batch.png"):
        (out / "log" / f".{picture}.part").mkdir()  # where the picture is written before it is renamed
    options = ("-b", 15, "--epochs", 2, "--resume", "auto")
    process = call("main.py", *small_run(root, out, *options))
    assert process.returncode == 0
    (warning,) = process.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert f"{out}/log/{NAME}.batch.png" in warning
    assert (out / "log" / f"{NAME}.png").read_bytes() == before

    # A resumed run shows its own first batch; TensorBoard's file could be written.
    events = read_events(out / "tensorboard" / NAME)
    assert list(events["train/batch"]) == [0, 2]
    expected = expected_batch(root, 1, "First batch of this run, at step 2: 12 of its 15 clips")
    np.testing.assert_array_equal(decode(events, 2), expected)

    # The weights do not depend on the pictures.
    shutil.copytree(finished.out, tmp_path / "other")
    process = call("main.py", *small_run(root, tmp_path / "other", *options))
    assert (process.returncode, process.stderr) == (0, "")
    one, other = (
        torch.load(folder / "checkpoint" / f"{NAME}_checkpoint.pth.tar", weights_only=True)["state_dict"]
        for folder in (out, tmp_path / "other")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_overwrite_deletes_the_pictures(finished, root, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    process = call("main.py", *small_run(root, tmp_path / "out", "-b", 15, "--overwrite", "--lr", 1e30))
    assert process.returncode == 1  # it diverges before its first epoch ends
    assert {path.name for path in (tmp_path / "out" / "log").glob("*.png")} == {f"{NAME}.batch.png"}


def test_is_mirrored_agrees_with_the_transform(root):
    mirrored = [2, 1, 0, NEVER]
    videos, unflipped = open_clips(root, mirrored), open_clips(root, mirrored, flips=False)
    flips = []
    for key in [(epoch, number) for epoch in range(3) for number in range(len(videos))]:
        flips.append(videos.is_mirrored(key))
        clip, expected = videos[key][0], unflipped[key][0]
        np.testing.assert_array_equal(clip, expected[:, :, ::-1] if flips[-1] else expected)
    assert 10 < sum(flips) < len(flips) - 10


def test_picture_of_a_batch_is_bounded_and_marks_mirrored_clips():
    categories = [f"{number} " + "long " * 50 for number in range(174)]
    clips = np.random.default_rng(0).integers(256, size=(64, 20, 32, 32, 3), dtype=np.uint8)
    arguments = (list(range(110, 174)), ["v" * 300] * MAX_CLIPS, categories, "title " * 100)

    def draw(mirrored: list[bool]) -> np.ndarray:
        labels, names, *texts = arguments
        return np.asarray(draw_batch(clips, labels, mirrored, names, *texts))

    plain = draw([False] * MAX_CLIPS)
    assert max(plain.shape) < 4000
    assert (plain[:, -4:] == 255).all(), "a text is cut off at the border"
    rows = np.linspace(0, len(plain), MAX_CLIPS + 1).astype(int)
    second = draw([number == 1 for number in range(MAX_CLIPS)])
    changed = np.flatnonzero((second != plain).any(axis=(1, 2)))
    assert changed.size
    assert rows[1] <= changed.min() <= changed.max() < rows[3]


def test_drawing_leaves_random_numbers_alone():
    def states() -> list[object]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    before = states()
    clips = np.zeros((2, 4, 300, 200, 3), np.uint8)
    draw_batch(clips, [0, 1], [True, False], ["a", "b"], CATEGORIES, "title")
    row = {"epoch": 0, "lr": 0.0, "train_loss": 1.0, "train_prec1": 2.0}
    figure = draw_curves({"run": [row]})
    figure.draw_without_rendering()
    assert states() == before
    for axes in figure.axes:
        assert [tick for tick in axes.xaxis.get_ticklocs() if tick % 1] == []


def test_matplotlib_is_imported_late():
    code = "import main, sys; print([name for name in sys.modules if name == 'matplotlib'])"
    process = finish([sys.executable, "-c", code], cwd=REPOSITORY)
    assert (process.returncode, process.stdout) == (0, "[]\n"), process.stderr
