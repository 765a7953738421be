"""Lists, sampling, loading and checking of videos, with real frame folders."""

import multiprocessing
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, assert_one_line_error, run
from PIL import Image
from synthetic import CATEGORIES, make_dataset

from classes import mirrored_labels
from dataset import VideoDataSet, VideoRecord, check_same_list, check_videos, open_videos, read_list
from datasets_video import return_dataset
from loader import ClipLoader, ClipSampler, evaluation_batches
from transforms import Compose, GroupScale, Stack, evaluation_transform, training_transform
from utils.cli import UserError


def write_list(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def open_list(
    root: Path, list_name: str = "val_videofolder.txt", segments: int = 4, **kwargs
) -> VideoDataSet:
    """The data set of a `make_dataset(root)`, whose frames stay as they are unless told otherwise."""
    home = root / "somethingv1"
    kwargs = {"transform": Compose(Stack()), "random_shift": False, "num_class": 4} | kwargs
    frames = home / "20bn-something-something-v1"
    return VideoDataSet(frames, home / list_name, segments, "{:05d}.jpg", **kwargs)


def numbered_video(root: Path, count: int) -> Path:
    """A data set of one video, each frame of which is as grey as its number says."""
    frames = root / "somethingv1" / "20bn-something-something-v1" / "video"
    frames.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (16, 16), (5 * number,) * 3).save(frames / f"{number:05d}.jpg", quality=95)
    (root / "somethingv1" / "list.txt").write_text(f"video {count} 2\n")
    return root


def numbers_in(clip: np.ndarray) -> list[int]:
    return [round(frame.mean() / 5) for frame in clip]


# Lists.


def test_both_conventions_are_read_alike(tmp_path):
    expected = [VideoRecord("1", 24, 3), VideoRecord("folder/2", 7, 0)]
    assert read_list(write_list(tmp_path, "1 24 3\nfolder/2 7 0\n"), 4) == expected
    assert read_list(write_list(tmp_path, "1\t24\t3\nfolder/2\t7\t0\n"), 4) == expected


def test_folder_names_may_contain_spaces(tmp_path):
    text = "pushing a box 12 24 3\na b\t7\t0\n"
    assert read_list(write_list(tmp_path, text), 4) == [
        VideoRecord("pushing a box 12", 24, 3),
        VideoRecord("a b", 7, 0),
    ]


def test_blank_lines_and_line_ends_do_not_matter(tmp_path):
    text = "\n1 24 3\r\n\n   \n2 7 0  \r\n\t\n3 8 1"
    assert [record.path for record in read_list(write_list(tmp_path, text), 4)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("7", "'7' is not 'name frames label'"),
        ("7 12", "'7 12' is not 'name frames label'"),
        ("7,12,1", "'7,12,1' is not 'name frames label'"),
        ("7 many 1", "number of frames 'many' is not a whole number below 10^9"),
        ("7 12.5 1", "number of frames '12.5' is not a whole number below 10^9"),
        ("7 -12 1", "number of frames '-12' is not a whole number below 10^9"),
        ("7 12 left", "label 'left' is not a whole number below 10^9"),
        ("7 12 -1", "label '-1' is not a whole number below 10^9"),
        ("7 12 1.0", "label '1.0' is not a whole number below 10^9"),
        ("7 12 4", "label 4, but category.txt has the labels 0 to 3"),
        ("7 12 174", "label 174, but category.txt has the labels 0 to 3"),
    ],
)
def test_bad_line_is_named_with_file_number_and_problem(tmp_path, line, problem):
    path = write_list(tmp_path, f"1 24 3\n\n2 24 0\n{line}\n3 24 0\n")
    with pytest.raises(UserError) as caught:
        read_list(path, 4)
    assert str(caught.value) == f"{path}, line 4: {problem}"


@pytest.mark.parametrize("frames", ["99999999999", "9" * 5000])
def test_number_of_frames_that_no_video_has_is_refused(tmp_path, frames):
    path = write_list(tmp_path, f"1 24 0\n2 {frames} 0\n")
    with pytest.raises(UserError, match="line 2: number of frames"):
        VideoDataSet(tmp_path, path, 4, "{:05d}.jpg", num_class=4)


def test_byte_order_mark_is_no_part_of_the_first_folders_name(tmp_path):
    assert read_list(write_list(tmp_path, "\ufeff1 24 0\n"), 4) == [VideoRecord("1", 24, 0)]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_list_is_refused(tmp_path, text):
    path = write_list(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_list(path, 4)
    assert str(caught.value).startswith(f"{path}: is empty")


def test_list_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file"):
        read_list(tmp_path / "nowhere.txt", 4)
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path, 4)
    path = tmp_path / "latin1.txt"
    path.write_bytes("Äpfel 12 0\n".encode("latin1"))
    with pytest.raises(UserError, match=r"latin1\.txt, line 1: cannot be read"):
        read_list(path, 4)


def test_videos_under_three_frames_are_left_out_and_counted(tmp_path, capsys):
    root = make_dataset(tmp_path, val=6, train=0, frames=[10, 2, 3, 1, 4, 5])
    dataset = open_list(root)
    assert [dataset.record(index) for index in range(len(dataset))] == [
        VideoRecord("1", 10, 0),
        VideoRecord("3", 3, 2),
        VideoRecord("5", 4, 0),
        VideoRecord("6", 5, 1),
    ]
    assert (dataset.num_short, dataset.num_listed) == (2, 6)
    assert dataset.coverage() == " (4 of 6 videos)"
    check_videos(dataset, skip_missing=False)
    assert "left out 2 videos with under 3 frames" in capsys.readouterr().out


def test_list_of_short_videos_only_is_refused(tmp_path):
    root = make_dataset(tmp_path, val=2, train=0, frames=2)
    with pytest.raises(UserError, match="none of its 2 videos has 3 frames or more"):
        open_list(root)


# Sampling. What validation and test pick is in test_reference.py.


@pytest.mark.parametrize(("frames", "segments"), [(40, 8), (43, 8), (16, 8), (8, 8), (250, 16), (15, 8)])
def test_training_takes_a_random_frame_of_each_segment(trn_root, frames, segments):
    dataset = open_list(trn_root, segments=segments, random_shift=True)
    length = frames // segments
    rng = np.random.default_rng(0)
    drawn = np.array([dataset.sample_indices(frames, rng) for _ in range(60 * length)])
    for segment in range(segments):
        assert set(drawn[:, segment]) == set(range(1 + segment * length, 1 + (segment + 1) * length))
    if length > 1:  # one draw for each segment, not one for all
        offsets = drawn - np.arange(segments) * length
        assert (offsets != offsets[:, :1]).any()


def test_training_repeats_the_first_frame_of_shorter_videos(trn_root):
    dataset = open_list(trn_root, segments=8, random_shift=True)
    for frames in range(3, 8):
        assert dataset.sample_indices(frames, np.random.default_rng(0)).tolist() == [1] * 8


@pytest.mark.parametrize(("random_shift", "test_mode"), [(True, False), (False, False), (False, True)])
def test_sampled_frames_exist_and_are_in_time_order(trn_root, random_shift, test_mode):
    for segments in (1, 3, 8):
        dataset = open_list(trn_root, segments=segments, random_shift=random_shift, test_mode=test_mode)
        rng = np.random.default_rng(0)
        for frames in range(3, 60):
            sampled = dataset.sample_indices(frames, rng)
            assert len(sampled) == segments
            assert sampled[0] >= 1
            assert sampled[-1] <= frames
            assert (np.diff(sampled) >= 0).all()


def test_frames_of_the_clip_are_the_sampled_ones(tmp_path):
    root = numbered_video(tmp_path, 40)
    clip, label = open_list(root, "list.txt")[0]
    assert (numbers_in(clip), label) == ([6, 16, 26, 36], 2)

    training = open_list(root, "list.txt", random_shift=True)
    seen = set()
    for epoch in range(20):
        numbers = numbers_in(training[epoch, 0][0])
        assert [(number - 1) // 10 for number in numbers] == [0, 1, 2, 3]
        seen.add(tuple(numbers))
    assert len(seen) > 15


def test_new_length_takes_consecutive_frames(tmp_path):
    dataset = open_list(numbered_video(tmp_path, 9), "list.txt", segments=2, new_length=3)
    numbers = numbers_in(dataset[0][0])
    assert numbers[1:3] == [numbers[0] + 1, numbers[0] + 2]
    assert numbers[4:6] == [numbers[3] + 1, numbers[3] + 2]
    assert len(numbers) == 6
    assert max(numbers) <= 9


# Loading.


def test_clip_is_uint8_frames_height_width_channel_and_grey_becomes_rgb(tmp_path):
    root = make_dataset(tmp_path, val=1, train=0, frames=4, size=(20, 12))
    grey = root / "somethingv1" / "20bn-something-something-v1" / "1" / "00001.jpg"
    Image.new("L", (20, 12), 77).save(grey)
    clip, label = open_list(root)[0]
    assert clip.shape == (4, 12, 20, 3)
    assert clip.dtype == np.uint8
    assert (clip[0] == 77).all()
    assert label == 0


def test_without_a_transform_the_frames_come_as_images(trn_root):
    frames, label = open_list(trn_root, transform=None)[1]
    assert [frame.size for frame in frames] == [(48, 40)] * 4
    assert label == 1


def test_folder_with_spaces_is_loaded(tmp_path):
    root = make_dataset(tmp_path, train=0, val=2, folder="push a box {}")
    dataset = open_list(root)
    assert dataset.record(1).path == "push a box 2"
    assert dataset[1][0].shape == (4, 40, 48, 3)
    check_videos(dataset, skip_missing=False)


def spoil(path: Path, how: str) -> str:
    """Make a frame unreadable; gives a word that the message must hold."""
    whole = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "text":
        path.write_text("<html>404 Not Found</html>")
    elif how == "other size":
        Image.new("RGB", (30, 20)).save(path)
        return "30 x 20"
    elif how == "gone":
        path.unlink()
        return "No such file"
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "absurd size":
        start = whole.index(b"\xff\xc0") + 5  # height and width in the header of the frame
        path.write_bytes(whole[:start] + b"\xff\xf0\xff\xf0" + whole[start + 4 :])
    return "cannot be read as an image"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("how", ["empty", "truncated", "text", "other size", "gone", "folder", "absurd size"])
def test_unreadable_frame_stops_with_its_path(tmp_path, how):
    root = make_dataset(tmp_path, train=0, val=4, frames=8)
    dataset = open_list(root, transform=Compose(GroupScale(32), Stack()))
    bad = Path(dataset.source.path(dataset.record(2).path, 6))
    word = spoil(bad, how)
    dataset[1]
    with pytest.raises(UserError) as caught:
        dataset[2]
    alone = str(caught.value)
    assert alone.startswith(f"{bad}: ")
    assert word in alone
    assert "\n" not in alone


@pytest.mark.parametrize("how", ["empty", "other size"])
def test_program_ends_after_an_unreadable_frame_in_a_worker(tmp_path, how):
    """With one line, not the worker's traceback; and workers that live on do not keep it from ending.

    In a process of its own: an exception keeps the loader alive until the interpreter's end.
    """
    root = make_dataset(tmp_path, train=0, val=4, frames=8)
    dataset = open_list(root)
    bad = Path(dataset.source.path(dataset.record(2).path, 6))
    word = spoil(bad, how)
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import sys

sys.path[:0] = [{str(REPOSITORY)!r}]

from dataset import VideoDataSet
from loader import (evaluation_batches, ClipLoader)
from utils.cli import run_program
from transforms import Stack


def main():
    folder = {dataset.source.root!r}
    dataset = VideoDataSet(folder, {dataset.list_file!r}, 4, "{{:05d}}.jpg", 1, Stack(), False, num_class=4)
    loader = ClipLoader(dataset, evaluation_batches(range(4), 2), 2)
    for _ in loader:
        pass


run_program(main)
"""
    )
    process = run(str(program))
    assert_one_line_error(process, f"error: {bad}: ", word)


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Programs kill the processes of their loaders when they end."""
    yield
    for child in multiprocessing.active_children():
        child.kill()


def many_clips(tmp_path: Path, count: int = 40) -> VideoDataSet:
    root = make_dataset(tmp_path, train=0, val=count, frames=8, size=(24, 20))
    return open_list(root, transform=Compose(GroupScale(16), Stack()))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["truncated", "other size", "gone"])
def test_error_of_a_clip_comes_through_the_loader_as_it_was_raised(tmp_path, how, workers):
    dataset = many_clips(tmp_path, 8)
    bad = Path(dataset.source.path(dataset.record(5).path, 6))
    word = spoil(bad, how)
    with pytest.raises(UserError) as expected:
        dataset[5]
    batches = iter(ClipLoader(dataset, evaluation_batches(range(8), 2), workers))
    for labels in ([0, 1], [2, 3]):
        assert next(batches)[1].tolist() == labels
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == str(expected.value)
    assert str(caught.value).startswith(f"{bad}: ")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def fail(frames, label, rng):
    if label == 2:
        raise RuntimeError("the code of this clip is wrong")
    return Stack()(frames, label, rng)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_the_code_for_a_clip_keeps_its_traceback(tmp_path, workers):
    dataset = many_clips(tmp_path, 4)
    dataset.transform = Compose(fail)
    batches = iter(ClipLoader(dataset, evaluation_batches(range(4), 1), workers))
    next(batches), next(batches)
    with pytest.raises(RuntimeError, match="the code of this clip is wrong") as caught:
        next(batches)
    if workers:  # else it is that of the exception itself
        assert "Traceback" in str(caught.value)
        assert "in fail" in str(caught.value)
    else:
        assert caught.traceback[-1].name == "fail"


def slow(frames, label, rng):
    time.sleep(60)


def the_worker(before: set[int]) -> multiprocessing.Process:
    """The process that was started since these were."""
    return next(child for child in multiprocessing.active_children() if child.pid not in before)


@pytest.mark.parametrize("moment", ["with batches ready", "while it dies", "at work"])
def test_killed_worker_is_named(tmp_path, moment):
    """What it has ready can be had from a live process only: each moment is noticed in another way."""
    before = {child.pid for child in multiprocessing.active_children()}
    dataset = many_clips(tmp_path)
    if moment == "at work":
        dataset.transform = Compose(slow)
    batches = iter(ClipLoader(dataset, evaluation_batches(range(40), 1), 1))
    if moment == "at work":
        worker = the_worker(before)
        threading.Timer(0.5, worker.kill).start()
    else:
        next(batches)
        worker = the_worker(before)
        time.sleep(0.3)  # so that it has loaded the next ones
        worker.kill()
    if moment == "with batches ready":
        worker.join()
    said = rf"^a process that loads clips \(pid {worker.pid}\) was killed; .* fewer --workers$"
    with pytest.raises(UserError, match=said):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_clip_that_has_a_cause_is_not_taken_for_a_killed_worker(tmp_path, workers):
    dataset = many_clips(tmp_path, 4)
    dataset.transform = Compose(fail_for_a_reason)
    with pytest.raises(RuntimeError, match="the code of this clip is wrong"):
        next(iter(ClipLoader(dataset, [[0]], workers)))


def fail_for_a_reason(frames, label, rng):
    raise RuntimeError("the code of this clip is wrong") from ValueError("so is its input")


def test_loader_leaves_sigchld_to_the_program(tmp_path):
    """torch's own handler would raise from any line of it."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        next(iter(ClipLoader(many_clips(tmp_path, 2), [[0], [1]], 1)))
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_folder_for_temporary_files_that_is_too_deep_for_workers_is_refused(trn_root, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{'x' * 80}")
    dataset = open_list(trn_root)
    with pytest.raises(UserError, match=r"^TMPDIR /tmp/x+: .* --workers"):
        ClipLoader(dataset, [[0]], 1)
    assert len(list(ClipLoader(dataset, [[0]], 0))) == 1


# Everything random is a function of seed, epoch and clip.


def random_dataset(root: Path, seed: int = 0) -> VideoDataSet:
    transform = training_transform(32, mirrored_labels(list(CATEGORIES)))
    return open_list(root, "train_videofolder.txt", random_shift=True, transform=transform, seed=seed)


def load_epoch(dataset: VideoDataSet, epoch: int, workers: int) -> tuple[torch.Tensor, list[int]]:
    sampler = ClipSampler(len(dataset), 3, seed=0)
    sampler.start(epoch)
    batches = list(ClipLoader(dataset, sampler, workers))
    return torch.cat([clips for clips, _ in batches]), torch.cat([labels for _, labels in batches]).tolist()


def test_epoch_is_the_same_with_any_number_of_workers(trn_root):
    alone, labels = load_epoch(random_dataset(trn_root), 5, workers=0)
    shared, shared_labels = load_epoch(random_dataset(trn_root), 5, workers=2)
    assert alone.dtype == torch.uint8
    assert alone.shape == (8, 4, 32, 32, 3)  # the short last batch is there
    assert torch.equal(alone, shared)
    assert labels == shared_labels


def test_clip_depends_on_seed_epoch_and_number_alone(trn_root):
    dataset = random_dataset(trn_root)
    clip, label = dataset[3, 1]
    for _ in range(3):
        dataset[3, 2], dataset[4, 1]  # whatever else is drawn between
    np.random.seed(1)
    torch.manual_seed(1)
    again, label_again = random_dataset(trn_root)[3, 1]
    assert np.array_equal(clip, again)
    assert label == label_again
    assert not np.array_equal(clip, dataset[4, 1][0])
    assert not np.array_equal(clip, random_dataset(trn_root, seed=1)[3, 1][0])


def test_clips_of_an_epoch_are_augmented_independently(tmp_path):
    """The same video listed many times gives many different clips."""
    root = make_dataset(tmp_path, train=1, val=0, frames=12)
    (root / "somethingv1" / "train_videofolder.txt").write_text("1 12 0\n" * 12)
    dataset = random_dataset(root)
    clips = {dataset[0, index][0].tobytes() for index in range(12)}
    assert len(clips) == 12
    assert {dataset[0, index][1] for index in range(12)} == {0, 2}


def test_epochs_differ_in_order_and_augmentation(trn_root):
    first, _ = load_epoch(random_dataset(trn_root), 0, workers=0)
    second, _ = load_epoch(random_dataset(trn_root), 1, workers=0)
    assert not torch.equal(first, second)


def order(epoch: int = 0, first_step: int = 0, clips: int = 30, batch: int = 4, **kwargs) -> list[list]:
    sampler = ClipSampler(clips, batch, **{"seed": 0} | kwargs)
    sampler.start(epoch, first_step)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    return batches


def flat(batches: list[list]) -> list:
    return [clip for batch in batches for clip in batch]


def test_order_is_a_permutation_that_follows_seed_and_epoch():
    for epoch in (0, 7):
        batches = order(epoch)
        assert [len(batch) for batch in batches] == [4] * 7 + [2]
        assert sorted(flat(batches)) == [(epoch, number) for number in range(30)]
    orders = [
        [number for _, number in flat(order(epoch, seed=seed))] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert order() == order()
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(range(30)) not in orders
    assert flat(order(batch=7)) == flat(order(batch=4))


def test_epoch_starts_at_any_step():
    assert order(5, first_step=3) == order(5)[3:]
    assert order(5, first_step=2, accumulate=2) == order(5)[4:]
    assert order(5, first_step=8) == []


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 8), (2, 4), (3, 3), (30, 1)])
def test_accumulated_batches_make_one_step(accumulate, steps):
    sampler = ClipSampler(30, 4, 0, accumulate)
    assert sampler.num_steps == steps
    made = [[list(map(int, batch)) for batch in sampler.batches_of(step)] for step in range(steps)]
    assert all(len(batches) == accumulate for batches in made[:-1])
    # The clips of a step do not depend on how they are cut into batches.
    assert flat(made) == [[number for _, number in batch] for batch in order()]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_share_each_batch(size):
    whole = order(3)
    shares = [order(3, rank=rank, size=size) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    together = [flat(parts) for parts in zip(*shares, strict=True)]
    # A last batch of 2 is too short for 3 and 4 processes, and left out by all of them.
    assert together == (whole if size == 2 else whole[:-1])
    assert all(batch for share in shares for batch in share)
    assert ClipSampler(30, 4, 0, size=size).num_steps == len(together)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_sizes_and_clips_of_a_step_are_those_that_are_loaded(accumulate, size):
    samplers = [ClipSampler(31, 4, 0, accumulate, rank, size) for rank in range(size)]
    for sampler in samplers:
        sampler.start(5)
    loaded = list(zip(*map(list, samplers), strict=True))  # batch by batch, each process's share
    for sampler in samplers:
        assert len(sampler.batch_sizes()) == sampler.num_steps
        sizes = [number for step in sampler.batch_sizes() for number in step]
        assert sizes == [sum(map(len, shares)) for shares in loaded]
        batches = iter(loaded)
        for step, parts in enumerate(sampler.batch_sizes()):
            shares = [share for _ in parts for share in next(batches)]
            assert [(5, clip) for clip in sampler.clips_of(step)] == flat(shares)
            assert all(type(clip) is int for clip in sampler.clips_of(step))
        # Of the whole epoch, wherever in it the loading starts.
        whole = sampler.batch_sizes()
        sampler.start(5, 2)
        assert sampler.batch_sizes() == whole


def test_epoch_reaches_workers_that_live_on(trn_root):
    dataset = random_dataset(trn_root)
    sampler = ClipSampler(len(dataset), 3, seed=0)
    loader = ClipLoader(dataset, sampler, 2)
    for epoch in (0, 1):
        sampler.start(epoch)
        clips = torch.cat([clips for clips, _ in loader])
        assert torch.equal(clips, load_epoch(dataset, epoch, workers=0)[0])


def test_evaluation_goes_through_the_list_in_order(trn_root):
    dataset = open_list(trn_root)
    loader = ClipLoader(dataset, evaluation_batches(range(len(dataset)), 4), 2)
    labels = [label for _, labels in loader for label in labels.tolist()]
    assert labels == [dataset.record(index).label for index in range(6)] == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("clips", [1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_evaluate_every_clip_once_in_whole_batches(clips, size):
    whole = evaluation_batches(range(clips), 4)
    assert flat(whole) == list(range(clips))
    assert all(len(batch) == 4 for batch in whole[:-1])
    shares = [evaluation_batches(range(clips), 4, rank, size) for rank in range(size)]
    assert sorted(flat(shares)) == whole


def test_fingerprint_tells_lists_apart(trn_root, tmp_path):
    frames = trn_root / "somethingv1" / "20bn-something-something-v1"

    def fingerprint(text: str) -> int:
        path = write_list(tmp_path, text)
        return VideoDataSet(frames, path, 4, "{:05d}.jpg", num_class=4).fingerprint()

    text = "1 10 0\n2 10 1\n3 10 2\n"
    changed = ["1 10 0\n2 10 1\n", "1 10 0\n4 10 1\n3 10 2\n", "1 10 0\n2 9 1\n3 10 2\n"]
    changed += ["1 10 0\n2 10 3\n3 10 2\n", "2 10 1\n1 10 0\n3 10 2\n"]
    assert fingerprint(text) == fingerprint(text.replace(" ", "\t"))
    assert len({fingerprint(other) for other in [text, *changed]}) == 6


def test_another_training_list_is_refused(trn_root, tmp_path):
    dataset = open_list(trn_root)
    check_same_list(dataset, dataset.fingerprint(), "a.pth", "trained")
    check_same_list(dataset, None, "a.pth", "trained")  # a checkpoint that does not say
    with pytest.raises(UserError) as caught:
        check_same_list(dataset, dataset.fingerprint() + 1, "a.pth", "trained")
    assert str(caught.value).startswith(f"{dataset.list_file}: is not the list that a.pth was trained on")


# The check at the start.


def test_long_names_are_cut_in_messages(trn_root, tmp_path):
    name = "long/" * 300 + "end"
    dataset = open_list(trn_root, write_list(tmp_path, f"{name} 10 0\n"))
    with pytest.raises(UserError) as caught:
        check_videos(dataset, skip_missing=False)
    assert "…" in str(caught.value)
    assert len(str(caught.value)) < 800
    with pytest.raises(UserError) as caught:
        dataset[0]
    assert len(str(caught.value)) < 1000


def test_whole_data_set_passes_without_a_word(trn_root, capsys):
    dataset = open_list(trn_root)
    check_videos(dataset, skip_missing=False)
    assert len(dataset) == 6
    assert dataset.coverage() == ""
    assert capsys.readouterr() == ("", "")


def test_a_look_at_many_videos_is_announced(tmp_path, capsys):
    root = make_dataset(tmp_path, train=0, val=1, frames=3)
    (root / "somethingv1" / "val_videofolder.txt").write_text("1 3 0\n" * 5001)
    dataset = open_list(root)
    check_videos(dataset, skip_missing=False)
    assert capsys.readouterr() == (f"{dataset.list_file}: looking for 5001 videos\n", "")


@pytest.fixture
def damaged_root(tmp_path) -> Path:
    """Of 6 validation videos, 2 has no folder, 3 no first frame, 5 no last frame, 6 lacks one between."""
    root = make_dataset(tmp_path, train=0, val=6, frames=[10, 10, 10, 9, 10, 8])
    frames = root / "somethingv1" / "20bn-something-something-v1"
    shutil.rmtree(frames / "2")
    (frames / "3" / "00001.jpg").unlink()
    (frames / "5" / "00010.jpg").unlink()
    (frames / "6" / "00004.jpg").unlink()
    return root


def test_missing_folders_and_frames_are_counted_and_named(damaged_root):
    dataset = open_list(damaged_root)
    frames = damaged_root / "somethingv1" / "20bn-something-something-v1"
    with pytest.raises(UserError) as caught:
        check_videos(dataset, skip_missing=False)
    assert str(caught.value) == (
        f"{dataset.list_file}: 3 of 6 videos missing or incomplete "
        f"(--skip_missing leaves them out): "
        f"{frames / '2'}, {frames / '3' / '00001.jpg'}, {frames / '5' / '00010.jpg'}"
    )


def test_skip_missing_continues_without_them_and_says_so(damaged_root, capsys):
    dataset = open_list(damaged_root)
    before = {index: dataset.record(index) for index in range(6)}
    check_videos(dataset, skip_missing=True)
    assert [dataset.record(index) for index in range(len(dataset))] == [before[0], before[3], before[5]]
    assert dataset.coverage() == " (3 of 6 videos)"
    out = capsys.readouterr().out
    assert "3 of 6 videos missing or incomplete, left out:" in out
    assert len(out.splitlines()) == 1
    assert dataset[1][1] == 3  # what is left loads, with its own label
    check_videos(dataset, skip_missing=False)


def test_first_ten_of_many_are_named(tmp_path):
    root = make_dataset(tmp_path, train=0, val=13, frames=3)
    frames = root / "somethingv1" / "20bn-something-something-v1"
    for number in range(1, 13):
        shutil.rmtree(frames / str(number))
    with pytest.raises(UserError) as caught:
        check_videos(open_list(root), skip_missing=False)
    message = str(caught.value)
    assert "12 of 13 videos" in message
    assert f": {', '.join(str(frames / str(number)) for number in range(1, 11))}, …" in message
    assert str(frames / "11") not in message


def test_ten_missing_are_all_that_is_named(tmp_path):
    root = make_dataset(tmp_path, train=0, val=11, frames=3)
    frames = root / "somethingv1" / "20bn-something-something-v1"
    for number in range(1, 11):
        shutil.rmtree(frames / str(number))
    with pytest.raises(UserError) as caught:
        check_videos(open_list(root), skip_missing=False)
    assert str(caught.value).endswith(str(frames / "10"))


def test_missing_of_a_list_longer_than_a_chunk_of_the_check_keep_their_order(tmp_path):
    root = make_dataset(tmp_path, train=0, val=1, frames=3)
    lines = [f"{1 if number % 100 else number} 3 0\n" for number in range(2, 1902)]
    (root / "somethingv1" / "val_videofolder.txt").write_text("".join(lines))
    dataset = open_list(root)
    missing = dataset.find_missing()
    assert [Path(path).name for _, path in missing] == [str(100 * i) for i in range(1, 20)]
    assert all(dataset.record(index).path == Path(path).name for index, path in missing)


def test_when_nothing_is_left_skip_missing_does_not_help(tmp_path):
    root = make_dataset(tmp_path, train=0, val=2, frames=3)
    shutil.rmtree(root / "somethingv1" / "20bn-something-something-v1")
    (root / "somethingv1" / "20bn-something-something-v1").mkdir()
    with pytest.raises(UserError, match="2 of 2 videos"):
        check_videos(open_list(root), skip_missing=True)


def test_short_videos_and_missing_ones_are_both_left_out_of_the_coverage(tmp_path):
    root = make_dataset(tmp_path, train=0, val=4, frames=[2, 5, 5, 5])
    shutil.rmtree(root / "somethingv1" / "20bn-something-something-v1" / "3")
    dataset = open_list(root)
    check_videos(dataset, skip_missing=True)
    assert dataset.coverage() == " (2 of 4 videos)"


def test_lists_of_a_data_set_are_opened_for_their_purpose(tmp_path):
    root = make_dataset(tmp_path, train=5, val=6, frames=4)
    paths = return_dataset("somethingv1", root)
    validation = open_videos(paths, 8, evaluation_transform(32))
    training = open_videos(
        paths, 8, training_transform(32, mirrored_labels(paths.categories)), is_training=True, seed=3
    )
    assert [validation.record(index).path for index in range(len(validation))] == [
        "6",
        "7",
        "8",
        "9",
        "10",
        "11",
    ]
    assert (len(training), training.record(0).path, training.seed) == (5, "1", 3)
    assert (training.random_shift, validation.random_shift) == (True, False)
    assert training[0][0].shape == validation[0][0].shape == (8, 32, 32, 3)
    # A video shorter than the clip, which the published test program spreads over it.
    starts = [
        open_videos(paths, 8, evaluation_transform(32), test_mode=mode).sample_indices(4, None).tolist()
        for mode in (False, True)
    ]
    assert starts == [[1] * 8, [1, 1, 2, 2, 3, 3, 4, 4]]


def test_opened_list_may_be_cut_short_and_continue_without_what_is_missing(damaged_root):
    paths = return_dataset("somethingv1", damaged_root, for_training=False)
    transform = evaluation_transform(32)
    assert len(open_videos(paths, 4, transform, max_num=1)) == 1
    with pytest.raises(UserError, match="1 of 2 videos missing or incomplete"):  # of those that are used
        open_videos(paths, 4, transform, max_num=2)
    with pytest.raises(UserError, match="3 of 6 videos missing or incomplete"):
        open_videos(paths, 4, transform, max_num=100)
    assert len(open_videos(paths, 4, transform, skip_missing=True)) == 3
