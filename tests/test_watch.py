"""Pictures of a run's first batch and curves, and TensorBoard's pages."""

import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from helpers import call, small_run
from PIL import Image
from resume_harness import NAME
from synthetic import CATEGORIES, make_dataset

from dataset import VideoDataSet, open_videos
from datasets_video import return_dataset
from loader import ClipSampler
from reports.plots import MAX_CLIPS, draw_batch
from transforms import Compose, GroupRandomHorizontalFlip, training_transform

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
    process = call("main.py", *small_run(root, out, "-b", 15))
    assert (process.returncode, process.stderr) == (0, "")
    return Namespace(out=out, log=out / "log")


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


def test_pictures_of_a_run(finished, root):
    expected = expected_batch(root, 0, "First batch of this run, at step 0: 12 of its 15 clips")
    with Image.open(finished.log / f"{NAME}.batch.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected)
    with Image.open(finished.log / f"{NAME}.png") as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert("L")).min() < 100


def test_lost_pictures_are_a_warning(finished, root, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    before = (out / "log" / f"{NAME}.png").read_bytes()
    for picture in (f"{NAME}.png", f"{NAME}.batch.png"):
        (out / "log" / f".{picture}.part").mkdir()  # where the picture is written before it is renamed
    process = call("main.py", *small_run(root, out, "-b", 15, "--epochs", 2, "--resume", "auto"))
    assert process.returncode == 0
    for warning, picture in zip(process.stderr.splitlines(), (".batch.png", ".png"), strict=True):
        assert warning.startswith(f"warning: {out}/log/{NAME}{picture}")
    assert (out / "log" / f"{NAME}.png").read_bytes() == before
