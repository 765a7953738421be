"""tools/make_motion_dataset.py, run as a user runs it."""

import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line_error, call
from PIL import Image

from classes import mirrored_labels
from dataset import VideoDataSet
from datasets_video import MOTION_SETTINGS, return_dataset
from tools import make_motion_dataset as demo

SCRIPT = Path(demo.__file__)
# Grey levels of the first frame with seed 3, every 21st row and 28th column.
DEMO_PIXELS = [[62, 32, 43], [58, 46, 55], [41, 51, 46], [63, 45, 48]]
# CRC-32 of the pixels before they are encoded: three frames of a clip of each class, seeded with its number.
CHECKSUMS = {"demo": 1017020180, "1": 2005862201, "2": 1600660073, "3": 3445146901}
PARTNERS = [(0, 2), (1, 3), (4, 5)]  # away/towards, down/up, left to right/right to left


def start(*args):
    command = [sys.executable, SCRIPT, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*args):
    process = start(*args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_list(path):
    return [(folder, int(frames), int(label)) for folder, frames, label in map(str.split, path.open())]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two folders, made by two processes with the same seed."""
    roots = [tmp_path_factory.mktemp("demo") / "new" / "folder" for _ in range(2)]
    for process in [start(root, "--seed", "3") for root in roots]:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert "480 training and 144 validation clips of 6 classes" in out
    return roots


@pytest.fixture(scope="module")
def paths(twins):
    return return_dataset("somethingv1", twins[0])


@pytest.fixture(scope="module")
def clips(paths):
    """[(frames x height x width x channel, label)] of the validation clips."""
    return [
        (
            np.stack(
                [np.asarray(Image.open(paths.root_data / video / f"{n + 1:05d}.jpg")) for n in range(frames)]
            ),
            y,
        )
        for video, frames, y in read_list(paths.val_list)
    ]


def test_layout(paths):
    train, val = read_list(paths.train_list), read_list(paths.val_list)
    assert set(Counter(label for _, _, label in train).items()) == {(label, 80) for label in range(6)}
    assert set(Counter(label for _, _, label in val).items()) == {(label, 24) for label in range(6)}
    assert {frames for _, frames, _ in train} == set(range(12, 31))
    folders = [video for video, _, _ in train + val]
    assert len(set(folders)) == len(folders)
    assert {path.name for path in paths.root_data.iterdir()} == set(folders)
    for video, frames, _ in train + val:
        expected = {f"{number:05d}.jpg" for number in range(1, frames + 1)}
        assert {path.name for path in (paths.root_data / video).iterdir()} == expected


def test_frames(clips):
    assert {clip.shape[1:] for clip, _ in clips} == {(64, 84, 3)}
    # Random colours, shapes and backgrounds: no two clips begin alike.
    firsts = [clip[0].astype(float) for clip, _ in clips]
    assert min(np.abs(a - b).mean() for i, a in enumerate(firsts) for b in firsts[:i]) > 3


def test_categories(paths):
    assert paths.categories == sorted(paths.categories) == list(demo.CLASSES)
    assert mirrored_labels(paths.categories) == [0, 1, 2, 3, 5, 4]


def test_the_demo_is_what_it_was(paths):
    """Its drawing may not change; other versions of NumPy and Pillow change a pixel by a few grey levels."""
    frame = np.asarray(Image.open(paths.root_data / "1" / "00001.jpg"), dtype=float)
    assert frame[::21, ::28].mean(axis=2) == pytest.approx(np.array(DEMO_PIXELS), abs=4)


def test_same_seed_same_bytes(twins):
    assert content(twins[0]) == content(twins[1])


def test_validation_clips_are_not_training_clips(paths):
    def first_frames(list_file):
        return {(paths.root_data / video / "00001.jpg").read_bytes() for video, _, _ in read_list(list_file)}

    train, val = first_frames(paths.train_list), first_frames(paths.val_list)
    assert (len(train), len(val)) == (480, 144)
    assert not train & val


@pytest.mark.parametrize("pair", PARTNERS)
def test_partner_is_the_clip_backwards(pair):
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
def test_single_frames_do_not_tell_partners_apart(pair, moment):
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


def test_mirrored_clip_is_a_clip_of_the_mirrored_class():
    rng = np.random.default_rng(0)
    left_to_right, right_to_left = list(demo.CLASSES)[4:]
    for moment in (0, 5, 10, 19):
        a = np.array([mirrored(demo.draw_path(rng, left_to_right, 20))[moment] for _ in range(1000)])
        b = np.array([demo.draw_path(rng, right_to_left, 20)[moment] for _ in range(1000)])
        assert max(ks_distance(a[:, column], b[:, column]) for column in range(3)) < 0.1


def place_and_size(clip):
    """Where something differs from the clip's corners, frame by frame: mean x, mean y and area."""
    background = clip[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=(0, 1))
    weight = np.abs(clip - background).sum(axis=3)
    weight = np.where(weight > 200, 1.0, 1e-6)
    area = weight.sum(axis=(1, 2))
    x = (weight * np.arange(clip.shape[2])).sum(axis=(1, 2)) / area
    y = (weight * np.arange(clip.shape[1])[:, None]).sum(axis=(1, 2)) / area
    return np.stack([x, y, area], axis=1)


@pytest.mark.parametrize(("pair", "column"), list(zip(PARTNERS, [2, 1, 0], strict=True)))
def test_rendered_frames_show_the_motion(clips, pair, column):
    """The frames on disk, too: their order says which of two partners a clip is, single frames do not."""
    measured = {y: [place_and_size(clip)[:, column] for clip, label in clips if label == y] for y in pair}
    grows = {y: np.mean([values[-3:].mean() > values[:3].mean() for values in measured[y]]) for y in pair}
    assert sorted(grows.values()) == pytest.approx([0.0, 1.0], abs=0.05)
    middles = [np.mean([values.mean() for values in measured[y]]) for y in pair]
    spread = np.std([values.mean() for y in pair for values in measured[y]])
    assert abs(middles[0] - middles[1]) < 3 * spread * np.sqrt(2 / 24)


def test_second_run_changes_nothing(twins):
    before = {path: path.stat().st_mtime_ns for path in twins[0].rglob("*")}
    code, out, err = run(twins[0], "--seed", "3")
    assert (code, err) == (0, "")
    assert "already exists" in out
    assert {path: path.stat().st_mtime_ns for path in twins[0].rglob("*")} == before


def refused(*args, status=1):
    process = call("tools/make_motion_dataset.py", *args)
    assert_one_line_error(process, "error: ")
    assert (process.returncode, process.stdout) == (status, "")
    return process.stderr


def test_other_seed_is_refused(twins):
    before = {path: path.stat().st_mtime_ns for path in twins[0].rglob("*")}
    code, out, err = run(twins[0])  # a real process, once
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "seed 3 (not 0)" in err
    assert {path: path.stat().st_mtime_ns for path in twins[0].rglob("*")} == before


@pytest.mark.parametrize("settings", [None, "not json", '{"seed": 0}', "[]"])
def test_foreign_folder_is_refused(tmp_path, settings):
    folder = tmp_path / "somethingv1"
    folder.mkdir()
    (folder / "category.txt").write_text("mine\n")
    if settings is not None:
        (folder / MOTION_SETTINGS).write_text(settings)
    before = content(tmp_path)
    assert str(folder) in refused(tmp_path)
    assert content(tmp_path) == before


def test_settings_that_cannot_be_read_are_refused(tmp_path):
    folder = tmp_path / "somethingv1"
    folder.mkdir()
    settings = folder / MOTION_SETTINGS
    os.mkfifo(settings)  # whoever opened it would wait for ever
    assert str(folder) in refused(tmp_path)
    settings.unlink()
    settings.write_text("[" * 10**5)
    assert str(folder) in refused(tmp_path)


def test_unusable_arguments_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in refused(file)
    assert file.read_text() == "mine"
    assert "--seed" in refused(tmp_path / "new", "--seed", "-1", status=2)
    assert "--level" in refused(tmp_path / "new", "--level", "4", status=2)
    assert "--dataset" in refused(tmp_path / "new", "--dataset", "a/b", status=2)
    assert "--size 64 64: the demo has" in refused(tmp_path / "new", "--size", "64", "64")
    assert not (tmp_path / "new").exists()


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
    done = call("tools/make_motion_dataset.py", folder, *LEVEL_WORDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "24 training and 12 validation clips of 12 classes" in done.stdout
    return folder


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


@pytest.mark.parametrize(("option", "value"), [("--level", 1), ("--train", 3), ("--val", 2), ("--seed", 1)])
def test_other_settings_are_named(level_root, option, value):
    message = refused(level_root, *LEVEL_WORDS, option, value)
    assert f"other settings: {option[2:]} " in message
    assert str(level_root / "motion") in message


@pytest.mark.parametrize("pair", PAIRS)
def test_level_partner_is_the_clip_backwards(pair):
    for seed, level in enumerate(demo.LEVELS.values()):
        forwards, backwards = (
            demo.draw_level_clip(np.random.default_rng(seed), name, 6, SIZE, level) for name in pair
        )
        assert [frame.tobytes() for frame in forwards] == [frame.tobytes() for frame in backwards[::-1]]
        assert len({frame.tobytes() for frame in forwards}) == 6


@pytest.mark.parametrize("pair", PAIRS[:1] + PAIRS[2:])
def test_level_frames_have_the_same_histograms(pair):
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


def test_what_is_sampled_of_a_level_is_symmetric_in_time(level_root):
    """Sampling must not tell a clip from its reversal: it sees the same frames of both."""
    paths = return_dataset("motion", level_root)
    videos = VideoDataSet(paths.root_data, paths.val_list, 8, paths.prefix, random_shift=False, num_class=12)
    middles = videos.sample_indices(demo.LEVEL_FRAMES, np.random.default_rng(0))
    assert (demo.LEVEL_FRAMES + 1 - middles[::-1]).tolist() == middles.tolist()
    videos.random_shift = True
    rng = np.random.default_rng(0)
    drawn = np.array([videos.sample_indices(demo.LEVEL_FRAMES, rng) for _ in range(200)])
    assert (drawn.min(axis=0) + drawn.max(axis=0)[::-1] == demo.LEVEL_FRAMES + 1).all()


def test_level_mirrored_clip_is_a_clip_of_the_mirrored_class():
    rng = np.random.default_rng(0)
    for kinds, step in ((("in from left", "in from right"), 1), (("x", "x"), -1)):
        one, other = (
            np.array([demo.draw_motion(rng, kind, 10, 1.0)[:, 0] for _ in range(800)]) for kind in kinds
        )
        for moment in (0, 3, 5, 9):
            assert ks_distance(-one[:, moment], other[:, ::step][:, moment]) < 0.15


def test_one_frame_decides_the_static_classes():
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
def test_the_pixels_are_what_they_were(level):
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


@pytest.mark.parametrize(("level", "share"), [("1", 0.5), ("2", 0.5), ("3", 1.0)])
def test_a_colour_decides_the_static_classes_of_level_3(level, share):
    """There a frame with a cross is redder than the same one with a ring, elsewhere in every second seed."""

    def redness(seed, name):
        frames = demo.draw_level_clip(np.random.default_rng(seed), name, 3, SIZE, demo.LEVELS[level])
        red, _, blue = np.asarray(frames[1], dtype=float).mean(axis=(0, 1))
        return red - blue

    redder = [redness(seed, "Showing a cross") > redness(seed, "Showing a ring") for seed in range(100)]
    assert np.mean(redder) == pytest.approx(share, abs=0.15)


def test_levels_grow_harder():
    levels = np.array([[*level[:5], *level[6:8], -level.quality] for level in demo.LEVELS.values()])
    assert (np.diff(levels, axis=0) > 0).all()
