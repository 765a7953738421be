"""The order of clips in batches, and the processes that load them."""

import multiprocessing
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from synthetic import make_dataset
from test_dataset import open_list, random_dataset, spoil

from loader import ClipLoader, ClipSampler, evaluation_batches
from transforms import Compose, GroupScale, Stack
from utils.cli import UserError


@pytest.fixture(autouse=True)
def kill_workers():
    yield
    for child in multiprocessing.active_children():
        child.kill()


def stack(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_workers_do_not_change_clips(trn_root):
    """In several epochs of the same workers."""
    dataset = random_dataset(trn_root)
    sampler = ClipSampler(len(dataset), 3, seed=0)
    loaders = [ClipLoader(dataset, sampler, workers) for workers in (0, 2)]
    epochs = []
    for epoch in (5, 6):
        sampler.start(epoch)
        (alone, labels), (shared, shared_labels) = map(stack, loaders)
        assert (alone.dtype, alone.shape) == (torch.uint8, (8, 4, 32, 32, 3))  # with the short last batch
        assert torch.equal(alone, shared)
        assert torch.equal(labels, shared_labels)
        epochs.append(alone)
    assert not torch.equal(*epochs)


def order(epoch=0, first_step=0, clips=30, batch=4, **kwargs):
    sampler = ClipSampler(clips, batch, **{"seed": 0} | kwargs)
    sampler.start(epoch, first_step)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    return batches


def flat(batches):
    return [clip for batch in batches for clip in batch]


def test_order_is_a_permutation_by_seed_and_epoch():
    for epoch in (0, 7):
        batches = order(epoch)
        assert [len(batch) for batch in batches] == [4] * 7 + [2]
        assert sorted(flat(batches)) == [(epoch, number) for number in range(30)]
    orders = [[n for _, n in flat(order(epoch, seed=seed))] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert order() == order()
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(range(30)) not in orders
    assert flat(order(batch=7)) == flat(order(batch=4))


def test_epoch_starts_at_any_step():
    assert order(5, first_step=3) == order(5)[3:]
    assert order(5, first_step=2, accumulate=2) == order(5)[4:]
    assert order(5, first_step=8) == []


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_each_batch(size):
    whole = order(3)
    shares = [order(3, rank=rank, size=size) for rank in range(size)]
    together = [flat(parts) for parts in zip(*shares, strict=True)]
    # The last batch of 2 is too short for 3 and 4 processes.
    assert together == (whole if size == 2 else whole[:-1])
    assert all(batch for share in shares for batch in share)
    assert ClipSampler(30, 4, 0, size=size).num_steps == len(together)


@pytest.mark.parametrize(("size", "accumulate", "steps"), [(1, 1, 8), (3, 2, 4)])
def test_batch_sizes_of_the_steps(size, accumulate, steps):
    samplers = [ClipSampler(31, 4, 0, accumulate, rank, size) for rank in range(size)]
    loaded = list(zip(*map(list, samplers), strict=True))  # batch by batch, each process's share
    for sampler in samplers:
        sizes = sampler.batch_sizes()
        assert len(sizes) == sampler.num_steps == steps
        assert flat(sizes) == [sum(map(len, shares)) for shares in loaded]
        assert sampler.start(0, 2) == sizes


@pytest.mark.parametrize(("clips", "size"), [(1, 2), (7, 1), (8, 2), (9, 3)])
def test_evaluation_has_every_clip_once(clips, size):
    whole = evaluation_batches(range(clips), 4)
    assert flat(whole) == list(range(clips))
    assert all(len(batch) == 4 for batch in whole[:-1])
    shares = [evaluation_batches(range(clips), 4, rank, size) for rank in range(size)]
    assert sorted(flat(shares)) == whole


# Errors


def many_clips(tmp_path, count=40):
    root = make_dataset(tmp_path, train=0, val=count, frames=8, size=(24, 20))
    return open_list(root, transform=Compose(GroupScale(16), Stack()))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_frame_passes_the_loader(tmp_path, workers):
    dataset = many_clips(tmp_path, 8)
    frame = Path(dataset.source.path(dataset.record(5).path, 6))
    spoil(frame, "truncated")
    batches = iter(ClipLoader(dataset, evaluation_batches(range(8), 2), workers))
    assert [next(batches)[1].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match=f"^{frame}: "):
        next(batches)


def slow(frames, label, rng):
    time.sleep(60)


@pytest.mark.parametrize("is_at_work", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_worker_is_named(tmp_path, is_at_work):
    before = {child.pid for child in multiprocessing.active_children()}
    dataset = many_clips(tmp_path)
    if is_at_work:
        dataset.transform = Compose(slow)
    batches = iter(ClipLoader(dataset, evaluation_batches(range(40), 1), 1))
    if not is_at_work:
        next(batches)
        time.sleep(0.3)  # until it has loaded the next ones
    worker = next(child for child in multiprocessing.active_children() if child.pid not in before)
    threading.Timer(0.5, worker.kill).start()
    if not is_at_work:
        worker.join()
    with pytest.raises(UserError, match=rf"pid {worker.pid}\) was killed"):
        next(batches)


def test_too_many_open_files(trn_root):
    batches = iter(ClipLoader(open_list(trn_root), [[index % 4] for index in range(40)], 2))
    next(batches)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            list(batches)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(free)


def test_long_temporary_folder_is_refused(trn_root, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{'x' * 80}")
    with pytest.raises(UserError, match="^TMPDIR /tmp/x+: "):
        ClipLoader(open_list(trn_root), [[0]], 1)
    assert len(list(ClipLoader(open_list(trn_root), [[0]], 0))) == 1
