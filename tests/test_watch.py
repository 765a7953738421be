"""What shows how a run is doing: pictures of its first batch and its curves, and TensorBoard's pages."""

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
from reports.plots import (
    ACCENT,
    BAR,
    FRAME_SIZE,
    GAP,
    LINE_HEIGHT,
    MARGIN,
    MAX_CLIPS,
    draw_batch,
    draw_curves,
)
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
    """A run of an epoch, whose batches are larger than the picture of one. Read only: it is shared."""
    out = tmp_path_factory.mktemp("finished")
    done = run("main.py", *small_run(root, out, "-b", 15))
    assert (done.returncode, done.stderr) == (0, "")
    return Namespace(out=out, log=out / "log", events=read_events(out / "tensorboard" / NAME))


def expected_batch(root: Path, epoch: int, title: str) -> Image.Image:
    """The picture, from clips that are loaded anew; what is mirrored follows from their pixels."""
    sampler = ClipSampler(19, 15, 0)
    sampler.start(epoch)
    keys = next(iter(sampler))[:MAX_CLIPS]
    videos, as_they_are = open_clips(root), open_clips(root, flips=False)
    clips, labels = zip(*(videos[key] for key in keys), strict=True)
    mirrored = [not np.array_equal(clip, as_they_are[key][0]) for clip, key in zip(clips, keys, strict=True)]
    assert 0 < sum(mirrored) < MAX_CLIPS
    names = [videos.record(number).path for _, number in keys]
    return draw_batch(np.stack(clips), labels, mirrored, names, CATEGORIES, title)


def test_the_first_batch_is_drawn_as_it_trains(finished, root):
    expected = expected_batch(root, 0, "First batch of this run, at step 0: 12 of its 15 clips")
    with Image.open(finished.log / f"{NAME}.batch.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    assert list(finished.events["train/batch"]) == [0]
    encoded = finished.events["train/batch"][0].image.encoded_image_string
    with Image.open(io.BytesIO(encoded)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_tensorboard_has_classes_options_and_lengths(finished, root):
    events = finished.events
    accuracies = {tag: points[1].simple_value for tag, points in events.items() if "val_class" in tag}
    assert list(accuracies) == [
        "val_class/000_Pulling_something_from_left_to_right",
        "val_class/001_Holding_something",
        "val_class/002_Pulling_something_from_right_to_left",
        "val_class/003_Dropping_something_onto_something",
    ]
    mean = np.mean(list(accuracies.values()))
    assert mean == pytest.approx(events["val/mean_class"][1].simple_value, rel=1e-5)
    clips = np.array([2, 2, 2, 1])  # of 7 in 4 classes
    total = np.dot(list(accuracies.values()), clips) / 7
    assert total == pytest.approx(events["val/prec1"][1].simple_value, rel=1e-5)

    (text,) = events["run/text_summary"][0].tensor.string_val
    told = json.loads(text)
    known = json.loads((finished.log / f"{NAME}.json").read_text())
    assert told["options"] == known["options"]
    assert all(line.startswith(b"    ") for line in text.splitlines())  # so that Markdown leaves it alone

    lengths = {"training": [6, 9, 7] * 6 + [6], "validation": [9, 7, 6, 9, 7, 6, 9]}
    for name, numbers in lengths.items():
        found = events[f"data/{name}_frames"][0].histo
        counts = {limit - 0.5: count for limit, count in zip(found.bucket_limit, found.bucket, strict=True)}
        assert {n: c for n, c in counts.items() if c} == {n: numbers.count(n) for n in (6, 7, 9)}


def test_curves_are_drawn_after_each_epoch(finished):
    with Image.open(finished.log / f"{NAME}.png") as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert("L")).min() < 100


def test_pictures_that_cannot_be_written_cost_a_warning(finished, root, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    before = (out / "log" / f"{NAME}.png").read_bytes()
    for picture in (f"{NAME}.png", f"{NAME}.batch.png"):
        (out / "log" / f".{picture}.part").mkdir()  # in the way of what it is called while it is written
    options = ("-b", 15, "--epochs", 3, "--resume", "auto")
    done = call("main.py", *small_run(root, out, *options))
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"warning: cannot draw {out}/log/{NAME}.batch.png (")
    assert warning.endswith("); training continues without it")
    assert (out / "log" / f"{NAME}.png").read_bytes() == before

    # A run that continues shows its own first batch; TensorBoard's file could be written.
    events = read_events(out / "tensorboard" / NAME)
    assert list(events["train/batch"]) == [0, 2]
    expected = expected_batch(root, 1, "First batch of this run, at step 2: 12 of its 15 clips")
    with Image.open(io.BytesIO(events["train/batch"][2].image.encoded_image_string)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))

    # With the pictures, the run ends in the same weights.
    other = tmp_path / "other"
    shutil.copytree(finished.out, other)
    done = call("main.py", *small_run(root, other, *options))
    assert (done.returncode, done.stderr) == (0, "")
    assert (other / "log" / f"{NAME}.png").read_bytes() != before
    one, two = (
        torch.load(folder / "checkpoint" / f"{NAME}_checkpoint.pth.tar", weights_only=True)["state_dict"]
        for folder in (out, other)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_overwrite_deletes_the_pictures(finished, root, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    done = call("main.py", *small_run(root, tmp_path / "out", "-b", 15, "--overwrite", "--lr", 1e30))
    assert done.returncode == 1  # it diverges before its first epoch ends
    assert {path.name for path in (tmp_path / "out" / "log").glob("*.png")} == {f"{NAME}.batch.png"}


def test_whether_a_clip_is_mirrored_is_what_its_transform_does(root):
    mirrored = [2, 1, 0, NEVER]
    videos, as_they_are = open_clips(root, mirrored), open_clips(root, mirrored, flips=False)
    found = []
    for key in [(epoch, number) for epoch in range(3) for number in range(len(videos))]:
        found.append(videos.is_mirrored(key))
        clip, expected = videos[key][0], as_they_are[key][0]
        np.testing.assert_array_equal(clip, expected[:, :, ::-1] if found[-1] else expected)
    assert 10 < sum(found) < len(found) - 10


def test_a_picture_of_a_batch_is_bounded_and_marks_what_is_mirrored():
    categories = [f"{number} " + "long " * 50 for number in range(174)]
    clips = np.random.default_rng(0).integers(256, size=(64, 20, 32, 32, 3), dtype=np.uint8)
    mirrored = [number % 3 == 1 for number in range(MAX_CLIPS)]
    labels = list(range(110, 174))
    sheet = draw_batch(clips, labels, mirrored, ["v" * 300] * MAX_CLIPS, categories, "title " * 100)
    pixels = np.asarray(sheet)
    size = FRAME_SIZE // 32 * 32
    row = size + 2 * LINE_HEIGHT + MARGIN
    assert pixels.shape == (MARGIN + 2 * LINE_HEIGHT + MAX_CLIPS * row, *pixels.shape[1:])
    assert pixels.shape[1] == 2 * MARGIN + BAR + 10 * (size + GAP)  # every second frame
    assert (pixels[:, -MARGIN:] == 255).all(), "a text is cut off at the border"
    accent = np.array([int(ACCENT[place : place + 2], 16) for place in (1, 3, 5)])
    for number in range(MAX_CLIPS):
        top = MARGIN + 2 * LINE_HEIGHT + number * row
        for place in range(10):
            left = MARGIN + BAR + place * (size + GAP)
            frame = pixels[top : top + size, left : left + size]
            np.testing.assert_array_equal(frame[::3, ::3], clips[number, 2 * place])
        assert (pixels[top, MARGIN] == accent).all() == mirrored[number]
        text = pixels[top + size : top + row, MARGIN:]
        assert (text == accent).all(-1).any() == mirrored[number]
        assert (text < 100).all(-1).any()


def test_drawing_draws_no_random_number():
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
        axis = axes.xaxis
        assert [tick for tick in axis.get_ticklocs() if tick % 1] == []


def test_matplotlib_is_imported_with_the_first_picture():
    code = "import main, sys; print([name for name in sys.modules if name == 'matplotlib'])"
    done = finish([sys.executable, "-c", code], cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
