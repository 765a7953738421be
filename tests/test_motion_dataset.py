"""tools/make_motion_dataset.py: the demo and the levels."""

import json
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from helpers import assert_one_line_error, call
from PIL import Image

from classes import mirrored_labels
from dataset import VideoDataSet
from datasets_video import MOTION_SETTINGS, return_dataset
from tools import make_motion_dataset as demo

SCRIPT = "tools/make_motion_dataset.py"
# CRC-32 of the pixels before they are encoded: three frames of a clip of each class, seeded with its number.
CHECKSUMS = {"demo": 1017020180, "1": 2005862201, "2": 1600660073, "3": 3445146901}
PARTNERS = [(0, 2), (1, 3), (4, 5)]  # away/towards, down/up, left to right/right to left


def make(*args):
    done = call(SCRIPT, *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_list(path):
    return [(folder, int(frames), int(label)) for folder, frames, label in map(str.split, path.open())]


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "new" / "folder"
    assert "120 training and 144 validation clips of 6 classes" in make(root, "--seed", 3, "--train", 20)
    return root


@pytest.fixture(scope="module")
def paths(demo_root):
    return return_dataset("somethingv1", demo_root)


def test_layout(paths):
    train, val = read_list(paths.train_list), read_list(paths.val_list)
    assert set(Counter(label for _, _, label in train).items()) == {(label, 20) for label in range(6)}
    assert set(Counter(label for _, _, label in val).items()) == {(label, 24) for label in range(6)}
    assert {frames for _, frames, _ in train + val} == set(range(12, 31))
    folders = [video for video, _, _ in train + val]
    assert len(set(folders)) == len(folders)
    assert {path.name for path in paths.root_data.iterdir()} == set(folders)
    for video, frames, _ in train + val:
        expected = {f"{number:05d}.jpg" for number in range(1, frames + 1)}
        assert {path.name for path in (paths.root_data / video).iterdir()} == expected


def test_categories(paths):
    assert paths.categories == sorted(paths.categories) == list(demo.CLASSES)
    assert mirrored_labels(paths.categories) == [0, 1, 2, 3, 5, 4]


def test_validation_differs_from_training(paths):
    def first_frames(list_file):
        return {(paths.root_data / video / "00001.jpg").read_bytes() for video, _, _ in read_list(list_file)}

    train, val = first_frames(paths.train_list), first_frames(paths.val_list)
    assert (len(train), len(val)) == (120, 144)
    assert not train & val


@pytest.mark.parametrize("pair", PARTNERS)
def test_partner_is_backwards(pair):
    one, other = (list(demo.CLASSES)[label] for label in pair)
    for seed in range(50):
        forwards = demo.draw_path(np.random.default_rng(seed), one, 20)
        backwards = demo.draw_path(np.random.default_rng(seed), other, 20)
        assert np.array_equal(forwards, backwards[::-1])


def ks_distance(a, b):
    """The largest distance between the cumulative distributions of two samples (Kolmogorov-Smirnov)."""
    values = np.concatenate([a, b])
    ranks = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (a, b)]
    return np.abs(ranks[0] - ranks[1]).max()


def mirrored(path):
    return path * [-1, 1, 1, 1] + [demo.WIDTH, 0, 0, 0]


@pytest.mark.parametrize("pair", PARTNERS)
@pytest.mark.parametrize("moment", [slice(None), 0, -1])
def test_single_frames_do_not_distinguish_partners(pair, moment):
    """Places and sizes over all frames agree; those of the first or last frame alone do not."""
    samples = []
    for label in pair:
        rng = np.random.default_rng(label)  # the two classes draw different clips
        drawn = [demo.draw_path(rng, list(demo.CLASSES)[label], 20) for _ in range(1000)]
        # One frame a clip: those of one clip are not independent.
        samples.append(
            np.array([path[rng.integers(20) if moment == slice(None) else moment] for path in drawn])
        )
    distance = max(ks_distance(samples[0][:, column], samples[1][:, column]) for column in range(3))
    # For 2 x 1000 equal draws, a distance above 0.1 has a probability of about 1e-4.
    assert distance < 0.1 if moment == slice(None) else distance > 0.9


def test_mirrored_clip_is_of_mirrored_class():
    rng = np.random.default_rng(0)
    left_to_right, right_to_left = list(demo.CLASSES)[4:]
    for moment in (0, 5, 10, 19):
        a = np.array([mirrored(demo.draw_path(rng, left_to_right, 20))[moment] for _ in range(1000)])
        b = np.array([demo.draw_path(rng, right_to_left, 20)[moment] for _ in range(1000)])
        assert max(ks_distance(a[:, column], b[:, column]) for column in range(3)) < 0.1


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def write_half(folder, dataset, settings):
        (folder / "category.txt").write_text("half\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "make_dataset", write_half)
    monkeypatch.setattr(sys, "argv", ["make_motion_dataset.py", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        demo.main()
    assert list(tmp_path.iterdir()) == []


# The levels.

SIZE = (40, 32)
PAIRS = [
    ("Bringing something in from the left", "Taking something out to the left"),
    ("Bringing something in from the right", "Taking something out to the right"),
    ("Moving something down", "Moving something up"),
    ("Moving something towards the camera", "Moving something away from the camera"),
    ("Pulling something from left to right", "Pulling something from right to left"),
]


@pytest.fixture(scope="module")
def level_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    assert "24 training and 12 validation clips of 12 classes" in make(folder, *LEVEL_WORDS)
    return folder


def test_same_seed_gives_same_bytes(level_root, tmp_path):
    make(tmp_path, *LEVEL_WORDS)
    assert content(tmp_path) == content(level_root)
    assert "already exists" in make(tmp_path, *LEVEL_WORDS)
    assert content(tmp_path) == content(level_root)


@pytest.mark.parametrize(("option", "value"), [("--level", 1), ("--train", 3), ("--val", 2), ("--seed", 1)])
def test_other_settings_are_refused(level_root, option, value):
    before = content(level_root)
    assert_one_line_error(call(SCRIPT, level_root, *LEVEL_WORDS, option, value), level_root, option[2:])
    assert content(level_root) == before


@pytest.mark.parametrize("settings", [None, "not json", '{"seed": 0}', "[]"])
def test_foreign_folder_is_refused(tmp_path, settings):
    folder = tmp_path / "somethingv1"
    folder.mkdir()
    (folder / "category.txt").write_text("mine\n")
    if settings is not None:
        (folder / MOTION_SETTINGS).write_text(settings)
    before = content(tmp_path)
    assert_one_line_error(call(SCRIPT, tmp_path), folder)
    assert content(tmp_path) == before


def test_wrong_options(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line_error(call(SCRIPT, tmp_path / "file"), tmp_path / "file")
    for option, *values in (
        ("--seed", "-1"),
        ("--level", "4"),
        ("--dataset", "a/b"),
        ("--size", "64", "64"),
    ):
        assert_one_line_error(call(SCRIPT, tmp_path / "new", option, *values), option)
    assert not (tmp_path / "new").exists()


LEVEL_WORDS = ["--dataset", "motion", "--level", 2, "--train", 2, "--val", 1, "--size", *SIZE]


def test_level_layout_and_settings(level_root):
    paths = return_dataset("motion", level_root)
    names = paths.categories
    assert names == sorted(names) == list(demo.LEVEL_CLASSES)
    assert (paths.root_data.name, paths.prefix) == ("frames", "{:05d}.jpg")
    for list_file, clips in ((paths.train_list, 2), (paths.val_list, 1)):
        videos = read_list(list_file)
        assert Counter(label for _, _, label in videos) == dict.fromkeys(range(12), clips)
        assert {frames for _, frames, _ in videos} == {demo.LEVEL_FRAMES}
    with Image.open(paths.root_data / "1" / "00024.jpg") as frame:
        assert frame.size == SIZE

    settings = json.loads((level_root / "motion" / MOTION_SETTINGS).read_text())
    assert sorted(map(tuple, settings["reversed_pairs"])) == PAIRS
    flipped = mirrored_labels(names)
    assert [[names[a], names[b]] for a, b in enumerate(flipped) if a < b] == settings["mirrored_pairs"]
    assert len(settings["mirrored_pairs"]) == 3
    paired = {name for pair in PAIRS for name in pair}
    assert settings["static"] == [name for name in names if name not in paired]


@pytest.mark.parametrize("pair", PAIRS)
def test_level_partner_is_backwards(pair):
    for seed, level in enumerate(demo.LEVELS.values()):
        forwards, backwards = (
            demo.draw_level_clip(np.random.default_rng(seed), name, 6, SIZE, level) for name in pair
        )
        assert [frame.tobytes() for frame in forwards] == [frame.tobytes() for frame in backwards[::-1]]
        assert len({frame.tobytes() for frame in forwards}) == 6


@pytest.mark.parametrize("pair", PAIRS[:1] + PAIRS[2:])
def test_level_partners_have_the_same_histograms(pair):
    """The two classes draw different clips, whose single frames have one distribution of grey levels."""
    samples = []
    for label, name in enumerate(pair):
        rng = np.random.default_rng(label)
        clips = [demo.draw_level_clip(rng, name, 4, SIZE, demo.LEVELS["1"]) for _ in range(250)]
        # One frame a clip: those of one clip are not independent.
        frames = [np.asarray(clip[rng.integers(4)]) for clip in clips]
        samples.append(np.array([np.histogram(frame, bins=(0, 60, 90, 150, 256))[0] for frame in frames]))
    # For 2 x 250 equal draws, a distance above 0.2 has a probability of about 1e-4.
    assert max(ks_distance(samples[0][:, column], samples[1][:, column]) for column in range(4)) < 0.2


def test_level_sampling_is_symmetric_in_time(level_root):
    """Sampling must not tell a clip from its reversal: it sees the same frames of both."""
    paths = return_dataset("motion", level_root)
    videos = VideoDataSet(paths.root_data, paths.val_list, 8, paths.prefix, random_shift=False, num_class=12)
    middles = videos.sample_indices(demo.LEVEL_FRAMES, np.random.default_rng(0))
    assert (demo.LEVEL_FRAMES + 1 - middles[::-1]).tolist() == middles.tolist()
    videos.random_shift = True
    rng = np.random.default_rng(0)
    drawn = np.array([videos.sample_indices(demo.LEVEL_FRAMES, rng) for _ in range(200)])
    assert (drawn.min(axis=0) + drawn.max(axis=0)[::-1] == demo.LEVEL_FRAMES + 1).all()


def test_level_mirrored_clip_is_of_mirrored_class():
    rng = np.random.default_rng(0)
    for kinds, step in ((("in from left", "in from right"), 1), (("x", "x"), -1)):
        one, other = (
            np.array([demo.draw_motion(rng, kind, 10, 1.0)[:, 0] for _ in range(800)]) for kind in kinds
        )
        for moment in (0, 3, 5, 9):
            assert ks_distance(-one[:, moment], other[:, ::step][:, moment]) < 0.15


def test_static_classes_need_one_frame():
    """No motion of its own, and a shape that no other class has."""
    for name in ("Showing a cross", "Showing a ring"):
        changes, _ = demo.LEVEL_CLASSES[name]
        assert changes in demo.STATIC
        assert changes not in demo.SHAPES
        clips = [
            demo.draw_level_clip(np.random.default_rng(seed), name, 2, SIZE, demo.LEVELS["1"])
            for seed in range(3)
        ]
        assert len({clip[0].tobytes() for clip in clips}) == 3
    masks = {shape: np.asarray(demo.shape_mask(shape, 40)) for shape in (*demo.SHAPES, *demo.STATIC)}
    assert [shape for shape, mask in masks.items() if mask[20, 20] == 0] == ["ring"]
    arms = [
        shape for shape, mask in masks.items() if min(mask[1, 20], mask[20, 1]) == 255 and mask[9, 9] == 0
    ]
    assert arms == ["cross"]


@pytest.mark.parametrize("level", CHECKSUMS)
def test_pixels_are_unchanged(level):
    """Another drawing of a level needs another version in `Settings.content`, and other numbers here."""
    checksum = 0
    for number, name in enumerate(demo.CLASSES if level == "demo" else demo.LEVEL_CLASSES):
        rng = np.random.default_rng(number)
        if level == "demo":
            clip = demo.render_clip(rng, demo.draw_path(rng, name, 3))
        else:
            clip = demo.draw_level_clip(rng, name, 3, SIZE, demo.LEVELS[level])
        for frame in clip:
            checksum = zlib.crc32(frame.tobytes(), checksum)
    assert checksum == CHECKSUMS[level]
    assert demo.Settings(level, 1, 1, SIZE, 0).content()["version"] == (2 if level == "3" else 1)
