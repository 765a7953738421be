"""tools/make_motion_dataset.py: the demo and the levels."""

import json
import zlib
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
from helpers import assert_one_line_error, call
from PIL import Image

from classes import mirrored_labels
from datasets_video import MOTION_SETTINGS, return_dataset
from tools import make_motion_dataset as motion

SCRIPT = "tools/make_motion_dataset.py"
# CRC-32 of the pixels before they are encoded: three frames of a clip of each class, seeded with its number.
CHECKSUMS = {"demo": 1245111634, "1": 2005862201, "2": 1600660073, "3": 3445146901}
SIZE = (40, 32)
PAIRS = [
    ("Bringing something in from the left", "Taking something out to the left"),
    ("Bringing something in from the right", "Taking something out to the right"),
    ("Moving something down", "Moving something up"),
    ("Moving something towards the camera", "Moving something away from the camera"),
    ("Pulling something from left to right", "Pulling something from right to left"),
]
LEVEL_WORDS = ["--dataset", "motion", "--level", 2, "--train", 2, "--val", 1, "--size", *SIZE]


def make(*args):
    done = call(SCRIPT, *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_list(path):
    return [(folder, int(frames), int(label)) for folder, frames, label in map(str.split, path.open())]


@pytest.fixture(scope="module")
def level_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels") / "new" / "folder"
    assert "24 training and 12 validation clips of 12 classes" in make(folder, *LEVEL_WORDS)
    return folder


def test_demo(tmp_path):
    make(tmp_path, "--train", 2, "--val", 1)
    paths = return_dataset("somethingv1", tmp_path)
    assert paths.categories == sorted(name for pair in PAIRS[2:] for name in pair)
    assert mirrored_labels(paths.categories) == [0, 1, 2, 3, 5, 4]
    train, val = read_list(paths.train_list), read_list(paths.val_list)
    assert [label for _, _, label in train] == [*range(6), *range(6)]
    assert [label for _, _, label in val] == [*range(6)]
    folders = [video for video, _, _ in train + val]
    assert {path.name for path in paths.root_data.iterdir()} == set(folders)
    first_frames = {(paths.root_data / video / "00001.jpg").read_bytes() for video in folders}
    assert len(first_frames) == 18  # validation differs from training


def test_level_layout_and_settings(level_root):
    paths = return_dataset("motion", level_root)
    names = paths.categories
    assert names == sorted(names) == list(motion.CLASSES)
    for list_file, clips in ((paths.train_list, 2), (paths.val_list, 1)):
        videos = read_list(list_file)
        assert Counter(label for _, _, label in videos) == dict.fromkeys(range(12), clips)
        assert {frames for _, frames, _ in videos} == {24}
    assert len(list((paths.root_data / "1").iterdir())) == 24
    with Image.open(paths.root_data / "1" / "00024.jpg") as frame:
        assert frame.size == SIZE

    settings = json.loads((level_root / "motion" / MOTION_SETTINGS).read_text())
    assert sorted(map(tuple, settings["reversed_pairs"])) == PAIRS
    flipped = mirrored_labels(names)
    assert [[names[a], names[b]] for a, b in enumerate(flipped) if a < b] == settings["mirrored_pairs"]
    assert len(settings["mirrored_pairs"]) == 3
    paired = {name for pair in PAIRS for name in pair}
    assert settings["static"] == [name for name in names if name not in paired]


def test_same_seed_gives_same_bytes(level_root, tmp_path):
    make(tmp_path, *LEVEL_WORDS)
    assert content(tmp_path) == content(level_root)
    assert "already exists" in make(tmp_path, *LEVEL_WORDS)
    assert_one_line_error(call(SCRIPT, tmp_path, *LEVEL_WORDS, "--seed", 1), tmp_path)
    assert content(tmp_path) == content(level_root)
    (tmp_path / "motion" / MOTION_SETTINGS).unlink()
    assert_one_line_error(call(SCRIPT, tmp_path, *LEVEL_WORDS), tmp_path)


def test_wrong_options(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line_error(call(SCRIPT, tmp_path / "file"), tmp_path / "file")
    for option, value in (("--seed", "-1"), ("--level", "4"), ("--dataset", "a/b")):
        assert_one_line_error(call(SCRIPT, tmp_path / "new", option, value), option)
    assert not (tmp_path / "new").exists()


def test_partner_is_backwards():
    """So the frames of both classes have the same distribution, and only their order differs."""
    for one, other in PAIRS:
        for seed, level in enumerate(motion.LEVELS.values()):
            forwards, backwards = (
                motion.draw_clip(np.random.default_rng(seed), name, 6, SIZE, level) for name in (one, other)
            )
            assert [frame.tobytes() for frame in forwards] == [frame.tobytes() for frame in backwards[::-1]]
            assert len({frame.tobytes() for frame in forwards}) == 6


@pytest.mark.parametrize("level", CHECKSUMS)
def test_pixels_are_unchanged(level):
    """If the drawing of a level changes, its version in `make_settings` and the number here must change."""
    checksum = 0
    for number, name in enumerate(motion.class_names(level)):
        for frame in motion.draw_clip(np.random.default_rng(number), name, 3, SIZE, motion.LEVELS[level]):
            checksum = zlib.crc32(frame.tobytes(), checksum)
    assert checksum == CHECKSUMS[level]
    settings = motion.make_settings(Namespace(level=level, train=1, val=1, size=SIZE, seed=0))
    assert settings["version"] == (2 if level in ("demo", "3") else 1)
