"""The data of a run: its clips (`dataset.VideoDataSet`), their batches, and the processes that load them."""

import errno
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from classes import NEVER, mirrored_labels, read_flip_pairs
from dataset import VideoDataSet, check_excluded, open_videos, read_excluded
from datasets_video import DatasetPaths, return_dataset
from frames.resize import Batch, decodes_only
from transforms import Compose, evaluation_transform, needs_pixels, training_transform
from utils.cli import UserError, log, pluralize
from utils.distributed import World


class ClipSampler(Sampler):
    """The batches of one process in an epoch of training.

    The order depends only on seed and epoch. Each batch is divided among the processes, so the clips of a
    batch do not depend on the number of processes. A batch with fewer clips than processes is left out.

    Args:
        num_clips: clips of the data set.
        batch_size: clips of a batch, over all processes.
        seed: seed of the order.
        accumulate: batches in one step of the optimizer.
        rank: number of this process.
        size: number of processes.
        is_excluded: for each clip, whether to remove it from its batch. Other batches do not change.

    Yields:
        Lists of `(epoch, number of the clip)`, which determine each clip's augmentation.
    """

    def __init__(
        self,
        num_clips: int,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        size: int = 1,
        is_excluded: np.ndarray | None = None,
    ) -> None:
        self.num_clips = num_clips
        self.batch_size = batch_size
        self.seed = seed
        self.accumulate = accumulate
        self.rank = rank
        self.size = size
        self.is_included = np.ones(num_clips, dtype=bool) if is_excluded is None else ~is_excluded
        self.start(0)

    def start(self, epoch: int, first_step: int = 0) -> list[list[int]]:
        """Go to an epoch and to a step in it, and return `batch_sizes`."""
        self.epoch = epoch
        self.first_step = first_step
        self._order = np.random.default_rng((self.seed, epoch, 0)).permutation(self.num_clips)
        return self.batch_sizes()

    @property
    def num_steps(self) -> int:
        """Steps of the optimizer in an epoch."""
        whole, rest = divmod(self.num_clips, self.batch_size * self.accumulate)
        return whole + (rest >= self.size)

    def batches_of(self, step: int) -> list[np.ndarray]:
        """The batches of a step of the optimizer: the numbers of their clips, over all processes."""
        start = step * self.batch_size * self.accumulate
        starts = range(start, start + self.batch_size * self.accumulate, self.batch_size)
        batches = [self._order[start : start + self.batch_size] for start in starts]
        batches = [batch[self.is_included[batch]] for batch in batches]
        return [batch for batch in batches if len(batch) >= self.size]

    def batch_sizes(self) -> list[list[int]]:
        """The clips in each batch of each step, over all processes."""
        return [[len(batch) for batch in self.batches_of(step)] for step in range(self.num_steps)]

    def __len__(self) -> int:
        return sum(len(self.batches_of(step)) for step in range(self.first_step, self.num_steps))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.num_steps):
            for batch in self.batches_of(step):
                share = np.array_split(batch, self.size)[self.rank]
                yield [(self.epoch, int(number)) for number in share]


def evaluation_batches(
    clips: Sequence[int], batch_size: int, rank: int = 0, size: int = 1
) -> list[list[int]]:
    """The batches of one process in an evaluation: every `size`th batch, in the order of the list.

    Each process computes whole batches. So a clip is always in the same batch, and the results do not depend
    on the number of processes.
    """
    batches = [list(map(int, clips[i : i + batch_size])) for i in range(0, len(clips), batch_size)]
    return batches[rank::size]


class ClipLoader(DataLoader):
    """Batches of clips and labels.

    The clips are uint8, batch x (views x) frames x height x width x channel; or, with `decode_only`, the
    input of `frames.resize.resize_clips`.

    Args:
        dataset: the clips.
        batches: the clip numbers of each batch.
        workers: number of processes that load clips; 0 for none.
        decode_only: resize on the device, not in the workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: ClipSampler | list[list[int]],
        workers: int,
        decode_only: bool = False,
    ) -> None:
        if workers and len(tempfile.gettempdir()) > 70:  # torch hangs if a socket's name has over 108 bytes
            raise UserError(f"TMPDIR {tempfile.gettempdir()}: the path is too long for --workers")
        super().__init__(
            _BatchDataset(dataset, decode_only),
            batch_sampler=batches,
            collate_fn=_keep_batch,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
        )

    def __iter__(self) -> Iterator[Batch]:
        _pin_errors.clear()
        # torch's iterator draws a random number: create it now, not at the first batch.
        with self._one_line_errors():
            batches = super().__iter__()
        if self.num_workers:
            # torch's handler would raise anywhere in the program. `_one_line_errors` also finds dead workers.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self._checked(batches)

    def _checked(self, batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
        for _ in range(len(self)):
            with self._one_line_errors():
                batch = next(batches)
            if isinstance(batch, UserError):
                raise batch
            yield batch

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Replace torch's multi-line errors about dead workers, open files and shared memory."""
        threading.excepthook = _keep_pin_error
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            text = f"{error} {_pin_errors}"
            # The second means that no descriptor was free for a file from a worker.
            if "Too many open files" in text or "received 0 items of ancdata" in text:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
            if "</torch_" in text:  # torch's name of a piece of shared memory
                raise UserError(
                    "/dev/shm: has no room for the clips of --workers; make it larger (docker run "
                    "--shm-size), or try --resize workers or fewer --workers"
                ) from None
            workers = {worker.sentinel: worker for worker in getattr(self._iterator, "_workers", ())}
            dead = multiprocessing.connection.wait(list(workers), timeout=1)
            if not dead:
                raise
            raise UserError(
                f"a process that loads clips (pid {workers[dead[0]].pid}) was killed; if out of memory, "
                "try fewer --workers"
            ) from None


_pin_errors: list[BaseException] = []


def _keep_pin_error(args: threading.ExceptHookArgs) -> None:
    """Keep errors of torch's pin-memory thread for `ClipLoader` instead of printing a traceback."""
    if args.thread and "_pin_memory_loop" in args.thread.name:
        _pin_errors.append(args.exc_value)
    else:
        threading.__excepthook__(args)


class _BatchDataset(Dataset):
    """Loads whole batches. If a clip cannot be loaded, the error is returned instead of the batch.

    If it were raised in a worker, the program would get the text of a traceback.
    """

    def __init__(self, dataset: Dataset, decode_only: bool) -> None:
        self.dataset = dataset
        self.decode_only = decode_only

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> Batch | UserError:
        try:
            if self.decode_only:
                clips, labels = self.dataset.decode(keys)
            else:
                clips, labels = default_collate([self.dataset[key] for key in keys])
        except UserError as error:
            return error
        if get_worker_info():  # fails here if memory is full; the sending thread would drop the batch
            labels.share_memory_()
        return [clips, labels]


def _keep_batch(batch: Batch | UserError) -> Batch | UserError:
    return batch


def _prepare_worker(worker: int) -> None:
    # A stop signal reaches the whole process group, but the training process needs clips to finish its step.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # The main process reports errors in one line.
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open as long as the process


class Datasets(NamedTuple):
    """The data of a run."""

    train: VideoDataSet
    val: VideoDataSet
    categories: list[str]
    mirrored: list[int]  # the label of each class in a mirrored clip; see `classes.mirrored_labels`
    source: str  # 'frames' or 'videos'
    excluded: set[str]  # names of the videos of --exclude


def open_datasets(args: Namespace, checkpoint: dict[str, Any]) -> Datasets:
    """Open the training and the validation clips of a run, and check that their videos exist.

    `checkpoint` is the one to continue from; empty for a new run.
    """
    paths = return_dataset(
        args.dataset,
        args.root_path,
        args.train_list,
        args.val_list,
        args.image_tmpl,
        source=args.source,
        preferred=checkpoint.get("options", {}).get("source", "frames"),
    )
    flips: dict[int, int] = {}
    if args.no_flip:
        flips = dict.fromkeys(range(len(paths.categories)), NEVER)
    elif args.flip_pairs:
        flips = read_flip_pairs(args.flip_pairs, paths.categories)
    mirrored = mirrored_labels(paths.categories, flips)
    excluded = {*(read_excluded(args.exclude) if args.exclude else ()), *checkpoint.get("excluded", ())}
    dataset_kwargs = {"seed": args.seed, "skip_missing": args.skip_missing, "excluded": excluded}
    train_set = open_videos(
        paths,
        args.num_segments,
        training_transform(args.input_size, mirrored),
        is_training=True,
        **dataset_kwargs,
    )
    val_set = open_videos(paths, args.num_segments, evaluation_transform(args.input_size), **dataset_kwargs)
    for name, videos in (("training", train_set), ("validation", val_set)):
        clips = pluralize(len(videos.included), f"{name} clip")
        log.info(f"{args.dataset}: {clips} from {paths.source}, {len(paths.categories)} classes")
    check_excluded(excluded, [train_set, val_set])
    return Datasets(train_set, val_set, paths.categories, mirrored, paths.source, excluded)


def open_evaluation(
    args: Namespace, num_segments: int, transform: Compose, preferred: str, **dataset_kwargs: Any
) -> tuple[DatasetPaths, VideoDataSet]:
    """Open the list of `--val_list`, or the data set's validation list, for an evaluation.

    The model was trained on the source `preferred`. See `open_videos` for the other arguments.
    """
    paths = return_dataset(
        args.dataset,
        args.root_path,
        val_list=args.val_list,
        image_tmpl=args.image_tmpl,
        for_training=False,
        source=args.source,
        preferred=preferred,
    )
    excluded = read_excluded(args.exclude) if args.exclude else []
    dataset = open_videos(
        paths, num_segments, transform, skip_missing=args.skip_missing, excluded=excluded, **dataset_kwargs
    )
    check_excluded(excluded, [dataset])
    return paths, dataset


def make_loaders(
    args: Namespace, world: World, data: Datasets, val_batch_size: int
) -> tuple[ClipLoader, ClipLoader]:
    """Make the loaders of this process's training and validation batches."""
    train_set, decode_only = data.train, decodes_only(args.resize, world.device)
    can_decode_only = not (decode_only and needs_pixels(train_set.transform))
    if not can_decode_only:
        message = "the training transforms change colours"
        if args.resize:
            raise UserError(f"--resize {args.resize}: {message}; use --resize workers")
        log.info(f"{message}, so the workers resize the training clips")
    sampler = ClipSampler(
        len(train_set),
        args.batch_size,
        args.seed,
        args.accumulate,
        world.rank,
        world.size,
        train_set.is_excluded,
    )
    if not any(sampler.batch_sizes()):
        raise UserError(f"{train_set.list_file}: no batch has a clip for each of the {world.size} processes")
    batches = evaluation_batches(data.val.included, val_batch_size, world.rank, world.size)
    return (
        ClipLoader(train_set, sampler, args.workers, decode_only and can_decode_only),
        ClipLoader(data.val, batches, args.workers, decode_only),
    )
