"""Lists, sampling, clips and the check of the videos, with real frame folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import CATEGORIES, make_dataset

from classes import mirrored_labels
from dataset import VideoDataSet, check_videos, open_videos, read_list
from datasets_video import VideoRecord, return_dataset
from transforms import Compose, GroupScale, Stack, evaluation_transform, training_transform
from utils.cli import UserError

FRAMES = "20bn-something-something-v1"


def write_list(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def open_list(root, list_name="val_videofolder.txt", segments=4, **kwargs):
    """The data set of a `make_dataset(root)`."""
    home = root / "somethingv1"
    kwargs = {"transform": Compose(Stack()), "random_shift": False, "num_class": 4} | kwargs
    return VideoDataSet(home / FRAMES, home / list_name, segments, "{:05d}.jpg", **kwargs)


def random_dataset(root, seed=0):
    transform = training_transform(32, mirrored_labels(list(CATEGORIES)))
    return open_list(root, "train_videofolder.txt", random_shift=True, transform=transform, seed=seed)


def numbered_video(root, count):
    """A data set of one video whose frames have their number as grey value."""
    frames = root / "somethingv1" / FRAMES / "video"
    frames.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (16, 16), (5 * number,) * 3).save(frames / f"{number:05d}.jpg", quality=95)
    (root / "somethingv1" / "list.txt").write_text(f"video {count} 2\n")
    return root


def numbers_in(clip):
    return [round(frame.mean() / 5) for frame in clip]


# Lists


@pytest.mark.parametrize(
    "text",
    [
        "1 24 3\na b/2 7 0\n",
        "1\t24\t3\na b/2\t7\t0\n",
        "\n1 24 3\r\n\n   \na b/2 7 0  \r\n\t",
        "\ufeff1 24 3\na b/2 7 0",
    ],
)
def test_read_list(text, tmp_path):
    records = read_list(write_list(tmp_path, text), 4)
    assert records == [VideoRecord("1", 24, 3), VideoRecord("a b/2", 7, 0)]


@pytest.mark.parametrize(
    "line",
    [
        "7 12",
        "7 many 1",
        "7 12 -1",
        "7 12 4",
        "7 9999999999 1",
    ],
)
def test_wrong_line_is_named(line, tmp_path):
    path = write_list(tmp_path, f"1 24 3\n\n2 24 0\n{line}\n3 24 0\n")
    with pytest.raises(UserError, match=f"^{path}, line 4: "):
        read_list(path, 4)


def test_list_without_labels(tmp_path):
    path = write_list(tmp_path, "a 30\nb c 12\n")
    records = [VideoRecord("a", 30, -1), VideoRecord("b c", 12, -1)]
    assert read_list(path, 4, may_lack_labels=True) == records
    with pytest.raises(UserError, match="line 1"):
        read_list(path, 4)
    with pytest.raises(UserError, match="line 2"):  # a label is missing
        read_list(write_list(tmp_path, "a 30 1\nb 12\n"), 4, may_lack_labels=True)


def test_short_videos_are_left_out(tmp_path, capsys):
    dataset = open_list(make_dataset(tmp_path, val=6, train=0, frames=[10, 2, 3, 1, 4, 5]))
    assert [dataset.record(index).num_frames for index in range(len(dataset))] == [10, 3, 4, 5]
    assert dataset.coverage() == " (4 of 6 videos)"
    check_videos(dataset, skip_missing=False)
    assert "left out 2 videos" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of its 2 videos"):
        open_list(make_dataset(tmp_path / "short", val=2, train=0, frames=2))


def test_fingerprint_differs_between_lists(trn_root, tmp_path):
    def fingerprint(text):
        return VideoDataSet(trn_root, write_list(tmp_path, text), 4, "{}.jpg", num_class=4).fingerprint()

    text = "1 10 0\n2 10 1\n3 10 2\n"
    changed = ["1 10 0\n2 10 1\n", "1 10 0\n4 10 1\n3 10 2\n", "1 10 0\n2 9 1\n3 10 2\n"]
    changed += ["1 10 0\n2 10 3\n3 10 2\n", "2 10 1\n1 10 0\n3 10 2\n"]
    assert fingerprint(text) == fingerprint(text.replace(" ", "\t"))
    assert len({fingerprint(other) for other in [text, *changed]}) == 6


# Sampling; for validation and test see test_reference.py


@pytest.mark.parametrize(("frames", "segments"), [(43, 8), (15, 8)])
def test_training_samples_each_segment(trn_root, frames, segments):
    dataset = open_list(trn_root, segments=segments, random_shift=True)
    length = frames // segments
    rng = np.random.default_rng(0)
    drawn = np.array([dataset.sample_indices(frames, rng) for _ in range(60 * length)])
    for segment in range(segments):
        assert set(drawn[:, segment]) == set(range(1 + segment * length, 1 + (segment + 1) * length))
    if length > 1:  # independent draws
        offsets = drawn - np.arange(segments) * length
        assert (offsets != offsets[:, :1]).any()


@pytest.mark.parametrize(("random_shift", "test_mode"), [(True, False), (False, False), (False, True)])
def test_sampled_frames_exist_in_time_order(trn_root, random_shift, test_mode):
    for segments in (1, 3, 8):
        dataset = open_list(trn_root, segments=segments, random_shift=random_shift, test_mode=test_mode)
        rng = np.random.default_rng(0)
        for frames in range(3, 60):
            sampled = dataset.sample_indices(frames, rng)
            assert len(sampled) == segments and (np.diff(sampled) >= 0).all()
            assert sampled[0] >= 1 and sampled[-1] <= frames
            if random_shift and frames < segments:
                assert set(sampled) == {1}


def test_clip_has_the_sampled_frames(tmp_path):
    root = numbered_video(tmp_path, 40)
    clip, label = open_list(root, "list.txt")[0]
    assert (numbers_in(clip), label) == ([6, 16, 26, 36], 2)
    training = open_list(root, "list.txt", random_shift=True)
    clips = {tuple(numbers_in(training[epoch, 0][0])) for epoch in range(20)}
    assert all([(number - 1) // 10 for number in clip] == [0, 1, 2, 3] for clip in clips)
    assert len(clips) > 15


def test_new_length_takes_consecutive_frames(tmp_path):
    dataset = open_list(numbered_video(tmp_path, 9), "list.txt", segments=2, new_length=3)
    numbers = numbers_in(dataset[0][0])
    assert np.diff(np.reshape(numbers, (2, 3))).tolist() == [[1, 1], [1, 1]]
    assert max(numbers) <= 9


# Clips


def test_clip_is_uint8_rgb(tmp_path):
    root = make_dataset(tmp_path, val=1, train=0, frames=4, size=(20, 12), folder="with spaces {}")
    Image.new("L", (20, 12), 77).save(root / "somethingv1" / FRAMES / "with spaces 1/00001.jpg")
    clip, label = open_list(root)[0]
    assert (clip.shape, clip.dtype, label) == ((4, 12, 20, 3), np.uint8, 0)
    assert (clip[0] == 77).all()


def spoil(path, kind):
    """Make a frame unreadable; return a word of the message."""
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "other size":
        Image.new("RGB", (30, 20)).save(path)
        return "30 x 20"
    elif kind == "missing":
        path.unlink()
        return "No such file"
    return "cannot be read as an image"


@pytest.mark.parametrize("kind", ["truncated", "other size", "missing"])
def test_unreadable_frame_is_named(tmp_path, kind):
    dataset = open_list(make_dataset(tmp_path, train=0, val=4, frames=8))
    dataset.transform = Compose(GroupScale(32), Stack())
    frame = Path(dataset.source.path(dataset.record(2).path, 6))
    word = spoil(frame, kind)
    dataset[1]
    with pytest.raises(UserError, match=f"^{frame}: .*{word}"):
        dataset[2]


def test_clip_depends_on_seed_epoch_and_number(trn_root):
    dataset = random_dataset(trn_root)
    clip, label = dataset[3, 1]
    for _ in range(3):
        dataset[3, 2], dataset[4, 1]
    np.random.seed(1)
    torch.manual_seed(1)
    again, label_again = random_dataset(trn_root)[3, 1]
    assert np.array_equal(clip, again)
    assert label == label_again
    assert not np.array_equal(clip, dataset[4, 1][0])
    assert not np.array_equal(clip, random_dataset(trn_root, seed=1)[3, 1][0])


# The check at the start


@pytest.fixture
def damaged_root(tmp_path):
    """Of 6 validation videos, 2 has no folder, 3 no first frame, 5 no last frame, 6 lacks one between."""
    root = make_dataset(tmp_path, train=0, val=6, frames=[10, 10, 10, 9, 10, 8])
    frames = root / "somethingv1" / FRAMES
    shutil.rmtree(frames / "2")
    (frames / "3" / "00001.jpg").unlink()
    (frames / "5" / "00010.jpg").unlink()
    (frames / "6" / "00004.jpg").unlink()
    return root


def test_skip_missing(damaged_root, capsys):
    dataset = open_list(damaged_root)
    frames = damaged_root / "somethingv1" / FRAMES
    with pytest.raises(UserError) as caught:
        check_videos(dataset, skip_missing=False)
    paths = f"{frames / '2'}, {frames / '3' / '00001.jpg'}, {frames / '5' / '00010.jpg'}"
    assert str(caught.value).endswith(paths)
    records = [dataset.record(index) for index in (0, 3, 5)]
    check_videos(dataset, skip_missing=True)
    assert [dataset.record(index) for index in range(len(dataset))] == records
    assert "3 of 6 videos" in capsys.readouterr().out
    assert dataset[1][1] == 3  # with its own label
    shutil.rmtree(frames)
    for total, excluded in ((3, []), (2, [dataset.paths[0].decode()])):
        dataset.exclude(excluded)
        with pytest.raises(UserError, match=f"{total} of {total} videos"):
            check_videos(dataset, skip_missing=True)


def test_open_videos(tmp_path):
    paths = return_dataset("somethingv1", make_dataset(tmp_path, train=5, val=6, frames=4))
    validation = open_videos(paths, 8, evaluation_transform(32))
    transform = training_transform(32, mirrored_labels(paths.categories))
    training = open_videos(paths, 8, transform, is_training=True, seed=3)
    assert [validation.record(index).path for index in range(6)] == ["6", "7", "8", "9", "10", "11"]
    assert (len(training), training.record(0).path, training.seed) == (5, "1", 3)
    assert (training.random_shift, validation.random_shift) == (True, False)
    assert training[0][0].shape == validation[0][0].shape == (8, 32, 32, 3)
    spread = open_videos(paths, 8, evaluation_transform(32), test_mode=True)
    assert spread.sample_indices(4, None).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    few = open_videos(paths, 4, evaluation_transform(32), max_num=3, excluded=["7"])
    assert few.included.tolist() == [0, 2]
    with pytest.raises(UserError, match="--exclude"):
        open_videos(paths, 4, evaluation_transform(32), excluded=["6", "7", "8", "9", "10", "11"])
