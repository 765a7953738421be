"""From a list file to clips: records, sampled frames, decoded and transformed."""

import errno
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info
from tqdm import tqdm

from classes import MAX_NAME, NEVER, mirrored_labels, read_flip_pairs
from datasets_video import MAX_DIGITS, MIN_FRAMES, DatasetPaths, VideoRecord, return_dataset
from frames.images import SourceFrame
from frames.resize import DecodedClips, Outline, decodes_only
from frames.sources import FrameFolders, VideoFiles
from transforms import Compose, evaluation_transform, training_transform
from utils.cli import UserError, log, pluralize, printable
from utils.distributed import World
from utils.files import read_text


def read_list(list_file: str | Path, num_class: int, may_lack_labels: bool = False) -> list[VideoRecord]:
    """Read a list file of lines `name  frames  label`, separated by spaces or tabs.

    The last two fields are the numbers; the name of a video (its frame folder's, or its file's without the
    suffix) may contain spaces.

    Args:
        list_file: the file.
        num_class: labels must be below it.
        may_lack_labels: also take a list none of whose lines has a label: `name  frames`.

    Raises:
        UserError: the file cannot be read, is empty, or has a line that cannot be right.
    """
    lines = [line.strip() for line in read_text(list_file).split("\n")]
    if not any(lines):
        raise UserError(f"{list_file}: is empty; it holds a line 'name frames label' for each video")
    has_labels = not may_lack_labels or any(map(_has_label, lines))
    records = []
    for line_number, line in enumerate(lines, start=1):
        if not line:
            continue
        where = f"{list_file}, line {line_number}"
        form = "name frames label" if has_labels else "name frames"
        fields = line.rsplit(None, len(form.split()) - 1)
        if len(fields) < len(form.split()):
            raise UserError(f"{where}: '{printable(line)}' is not '{form}'")
        name, frames, label = fields if has_labels else [*fields, "0"]
        if len(name.encode()) > MAX_NAME or "\0" in name:
            raise UserError(f"{where}: '{printable(name)}' cannot be a video's name")
        for what, number in (("number of frames", frames), ("label", label)):
            if not _is_number(number):
                raise UserError(
                    f"{where}: {what} '{printable(number)}' is not a whole number below 10^{MAX_DIGITS}"
                )
        if int(label) >= num_class:
            raise UserError(f"{where}: label {label}, but category.txt has the labels 0 to {num_class - 1}")
        records.append(VideoRecord(name, int(frames), int(label) if has_labels else -1))
    return records


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS


def _has_label(line: str) -> bool:
    fields = line.rsplit(None, 2)
    return len(fields) == 3 and all(map(_is_number, fields[1:]))


def spread_frames(num_frames: int, num_segments: int, fraction: float = 0.5) -> np.ndarray:
    """A frame of each of equal segments, by its number from 1, as the published test program has it.

    Args:
        num_frames: of the video; if they are fewer than the segments, some occur several times.
        num_segments: how many whole numbers to give, in time order.
        fraction: how much of a segment lies before its frame; see `clip_fractions`.
    """
    length = num_frames / num_segments
    return 1 + (length * fraction + length * np.arange(num_segments)).astype(int)


class VideoDataSet(Dataset):
    """Clips of a data set of frame folders or video files.

    Indexed by a clip's number, or by `(epoch, number)` as `ClipSampler` gives it: everything
    random about a clip is drawn from a generator of seed, epoch and number alone.

    Args:
        root_path: the folder that holds the frame folders or the videos.
        list_file: see `read_list`.
        num_segments: equal segments that a video is cut into; one place is sampled in each.
        image_tmpl: file name of a frame, such as `{:05d}.jpg`; None for video files.
        new_length: consecutive frames taken at each place (1 for RGB).
        transform: makes the clip of the frames; see `transforms`.
        random_shift: sample a random place in each segment (training), not the middle one.
        test_mode: sample as the published test program: like validation, except that videos
            that are not longer than the number of segments are spread over the clip too.
        num_class: labels must be below it.
        seed: of all that is random.
        may_lack_labels: see `read_list`.
        num_clips: clips of a video, each with other places in the segments; see `clip_fractions`. Above 1
            with `test_mode` only.

    Raises:
        UserError: see `read_list`; or no video has `MIN_FRAMES` frames.
    """

    def __init__(
        self,
        root_path: str | Path,
        list_file: str | Path,
        num_segments: int,
        image_tmpl: str | None,
        new_length: int = 1,
        transform: Compose | None = None,
        random_shift: bool = True,
        test_mode: bool = False,
        *,
        num_class: int,
        seed: int = 0,
        may_lack_labels: bool = False,
        num_clips: int = 1,
    ) -> None:
        self.list_file = str(list_file)
        self.num_segments = num_segments
        self.source = FrameFolders(str(root_path), image_tmpl) if image_tmpl else VideoFiles(str(root_path))
        self.new_length = new_length
        self.transform = transform
        self.random_shift = random_shift
        self.test_mode = test_mode
        self.seed = seed
        self.fractions = clip_fractions(num_clips)
        records = read_list(list_file, num_class, may_lack_labels)
        self.num_listed = len(records)
        long_enough = [record for record in records if record.num_frames >= MIN_FRAMES]
        self.num_short = len(records) - len(long_enough)
        if not long_enough:
            raise UserError(f"{list_file}: none of its {len(records)} videos has {MIN_FRAMES} frames or more")
        # Arrays, not Python objects: a worker that only reads them shares the memory of its parent.
        self.paths = np.array([record.path.encode() for record in long_enough])
        self.num_frames = np.array([record.num_frames for record in long_enough], dtype=np.int32)
        self.labels = np.array([record.label for record in long_enough], dtype=np.int64)
        self.is_excluded = np.zeros(len(long_enough), dtype=bool)

    def __len__(self) -> int:
        return len(self.labels)

    def record(self, index: int) -> VideoRecord:
        """The record of clip number `index`."""
        return VideoRecord(self.paths[index].decode(), int(self.num_frames[index]), int(self.labels[index]))

    @property
    def included(self) -> np.ndarray:
        """The numbers of the clips that are not excluded."""
        return np.flatnonzero(~self.is_excluded)

    def coverage(self) -> str:
        """What a result must say if videos of the list are left out of it; empty if none are."""
        used = len(self.included)
        return f" ({used} of {self.num_listed} videos)" if used < self.num_listed else ""

    def fingerprint(self) -> int:
        """A number that differs for other videos, frame counts, labels, or another order of them.

        Excluded videos count, so that a run may be continued without a video that cannot be read any more.
        """
        return zlib.crc32(self.paths.tobytes() + self.num_frames.tobytes() + self.labels.tobytes())

    def keep(self, indices: np.ndarray | list[int]) -> None:
        """Keep only the clips with these numbers, and number them anew."""
        self.paths = self.paths[indices]
        self.num_frames = self.num_frames[indices]
        self.labels = self.labels[indices]
        self.is_excluded = self.is_excluded[indices]

    def exclude(self, names: Collection[str]) -> None:
        """Exclude videos by their names; the others keep their numbers.

        Raises:
            UserError: no video is left.
        """
        self.is_excluded |= np.isin(self.paths, [name.encode() for name in names])
        if self.is_excluded.all():
            raise UserError(f"{self.list_file}: all of its {len(self)} videos are excluded (--exclude)")

    def sample_indices(self, num_frames: int, rng: np.random.Generator, fraction: float = 0.5) -> np.ndarray:
        """Sample the first frame number (from 1) of each segment (paper, section 4.2; TSN-pytorch).

        Args:
            num_frames: of the video.
            rng: used with `random_shift` only.
            fraction: of a segment that lies before the place that is taken, without `random_shift`.

        Returns:
            `num_segments` whole numbers, in time order.
        """
        segments = np.arange(self.num_segments)
        places = num_frames - self.new_length + 1
        if self.random_shift:
            length = places // self.num_segments
            if length > 0:
                return 1 + segments * length + rng.integers(length, size=self.num_segments)
            if num_frames > self.num_segments:
                return 1 + np.sort(rng.integers(places, size=self.num_segments))
            return np.ones_like(segments)
        if not self.test_mode and num_frames <= self.num_segments + self.new_length - 1:
            return np.ones_like(segments)
        return spread_frames(places, self.num_segments, fraction)

    def _sample(self, record: VideoRecord, rng: np.random.Generator) -> list[int]:
        """Draw the numbers of the frames of a video's clips."""
        starts = [
            start
            for fraction in self.fractions
            for start in self.sample_indices(record.num_frames, rng, fraction).tolist()
        ]
        return [min(start + i, record.num_frames) for start in starts for i in range(self.new_length)]

    def _read(self, record: VideoRecord, numbers: list[int]) -> dict[int, SourceFrame]:
        """Read each of a video's frames once, however often it is in a clip."""
        return self.source.read(record.path, list(dict.fromkeys(numbers)))

    @contextmanager
    def _advice(self, record: VideoRecord) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(
                f"{error}; to continue without this video, give --exclude FILE with the line "
                f"'{printable(record.path)}'"
            ) from None

    def _generator(self, key: int | tuple[int, int]) -> tuple[VideoRecord, np.random.Generator]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.record(index), np.random.default_rng((self.seed, epoch, index + 1))  # 0: the clips' order

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, int]:
        """Load a clip.

        Returns:
            What `transform` makes of the frames (uint8, frames x height x width x channel) and the label.
            With several views, each a crop of a clip, views x frames x height x width x channel: all clips of
            the first crop, then of the next.

        Raises:
            UserError: see `FrameFolders.read` and `VideoFiles.read`.
        """
        record, rng = self._generator(key)
        numbers = self._sample(record, rng)
        with self._advice(record):
            frames = self._read(record, numbers)
            images = {number: frame.image() for number, frame in frames.items()}
        clip = [images[number] for number in numbers]
        if self.transform is None:
            return clip, record.label
        clip, label = self.transform(clip, record.label, rng)
        length = self.num_segments * self.new_length
        return clip if len(clip) == length else clip.reshape(-1, length, *clip.shape[1:]), label

    def decode(self, keys: Sequence[int | tuple[int, int]]) -> tuple[DecodedClips, torch.Tensor]:
        """Decode a batch of clips, and leave what `transform` does with them to `frames.resize.resize_clips`.

        Args:
            keys: see `__getitem__`.

        Returns:
            The clips, from a worker in memory that processes share, and their labels.

        Raises:
            UserError: see `FrameFolders.read` and `VideoFiles.read`.
        """
        videos, shapes, orders, views, labels = [], [], [], [], []
        end = 0
        for key in keys:
            record, rng = self._generator(key)
            numbers = self._sample(record, rng)
            with self._advice(record):
                frames = self._read(record, numbers)
            videos.append((record, list(frames.values())))
            width, height = videos[-1][1][0].size
            outlines, label = self.transform([Outline.of(width, height)], record.label, rng)
            places = {number: place for place, number in enumerate(frames)}
            orders.append([places[number] for number in numbers])
            views.append([outline.view for outline in outlines])
            labels.append(label)
            shapes.append((end, len(frames), height, width))
            end += len(frames) * height * width * 3
        pixels = torch.empty(0, dtype=torch.uint8)
        if get_worker_info():  # decoded to where the other process reads it, as torch's collation does
            pixels.set_(torch.UntypedStorage._new_shared(end))
        else:
            pixels.resize_(end)
        for (record, frames), (start, count, height, width) in zip(videos, shapes, strict=True):
            room = pixels[start : start + count * height * width * 3].view(count, height, width, 3).numpy()
            with self._advice(record):
                for place, frame in zip(room, frames, strict=True):
                    frame.write(place)
        clips = DecodedClips(
            pixels,
            *map(np.array, (shapes, orders, views)),
            outlines[0].width,
            self.num_segments * self.new_length,
        )
        return clips, torch.tensor(labels)

    def is_mirrored(self, key: tuple[int, int]) -> bool:
        """Whether the transform mirrors a clip: what becomes of a ramp from black to white in its place.

        Args:
            key: epoch and number of the clip.

        Raises:
            UserError: see `FrameFolders.read` and `VideoFiles.read`.
        """
        record, rng = self._generator(key)
        first = self._sample(record, rng)[:1]
        width, height = self._read(record, first)[first[0]].size
        ramp = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
        clip, _ = self.transform([Image.fromarray(np.tile(ramp, (height, 1, 3)))], record.label, rng)
        return bool(clip[0, 0, 0, 0] > clip[0, 0, -1, 0])

    def find_missing(self) -> list[tuple[int, str]]:
        """Look for every video's file, or its folder, first and last frame, in parallel.

        Returns:
            The number of each clip that is missing or incomplete, and the missing path.
        """
        check = self.source.checker()

        def check_all(indices: np.ndarray) -> list[tuple[int, str]]:
            videos = ((int(index), self.record(index)) for index in indices[~self.is_excluded[indices]])
            found = ((index, check(video.path, video.num_frames)) for index, video in videos)
            return [(index, path) for index, path in found if path]

        chunks = np.array_split(np.arange(len(self)), max(1, len(self) // 500))
        with ThreadPoolExecutor(16) as pool:  # threads: the time goes into waiting for the file system
            found = tqdm(
                pool.map(check_all, chunks),
                total=len(chunks),
                desc=f"checking {Path(self.list_file).name}",
                unit_scale=len(self) / len(chunks),
                unit=" videos",
                disable=None,
                leave=False,
            )
            return [problem for problems in found for problem in problems]


def clip_fractions(num_clips: int) -> list[float]:
    """How much of each segment lies before the place that each clip of a video takes.

    The first takes the middle, the second the beginning (TSM's `twice_sample`), further ones lie evenly
    between the two.
    """
    between = [number / (2 * (num_clips - 1)) for number in range(1, num_clips - 1)]
    return [0.5, 0.0, *between][:num_clips]


def open_videos(
    paths: DatasetPaths,
    num_segments: int,
    transform: Compose,
    *,
    is_training: bool = False,
    test_mode: bool = False,
    seed: int = 0,
    skip_missing: bool = False,
    max_num: int | None = None,
    excluded: Collection[str] = (),
    may_lack_labels: bool = False,
    num_clips: int = 1,
) -> VideoDataSet:
    """Open the clips of a data set's training or validation list, and check that their videos are there.

    Args:
        paths: where they are.
        num_segments: see `VideoDataSet`.
        transform: see `VideoDataSet`.
        is_training: the training list, with random frames.
        test_mode: see `VideoDataSet`.
        seed: see `VideoDataSet`.
        skip_missing: leave out videos that are missing or incomplete.
        max_num: take the first clips only, so many.
        excluded: names of videos to leave out, whether they are there or not.
        may_lack_labels: see `read_list`.
        num_clips: see `VideoDataSet`.

    Raises:
        UserError: see `read_list` and `check_videos`; or all videos are excluded.
    """
    videos = VideoDataSet(
        paths.root_data,
        paths.train_list if is_training else paths.val_list,
        num_segments,
        paths.prefix,
        transform=transform,
        random_shift=is_training,
        test_mode=test_mode,
        num_class=len(paths.categories),
        seed=seed,
        may_lack_labels=may_lack_labels,
        num_clips=num_clips,
    )
    if max_num:
        videos.keep(np.arange(min(max_num, len(videos))))
    if excluded:
        videos.exclude(excluded)
    check_videos(videos, skip_missing)
    if videos.is_excluded.any():
        log.info(f"{videos.list_file}: left out {pluralize(videos.is_excluded.sum(), 'video')} (--exclude)")
    return videos


class Datasets(NamedTuple):
    """The data of a run.

    Attributes:
        train: the training clips.
        val: the validation clips.
        categories: class names.
        mirrored: the label of each class in a mirrored clip; see `classes.mirrored_labels`.
        source: 'frames' or 'videos'.
        excluded: names of videos that were left out on request.
    """

    train: VideoDataSet
    val: VideoDataSet
    categories: list[str]
    mirrored: list[int]
    source: str
    excluded: set[str]


def open_datasets(args: Namespace, checkpoint: dict[str, Any]) -> Datasets:
    """Open the training and the validation clips of a run, and check that their videos are there.

    Args:
        args: options of main.py.
        checkpoint: content of the checkpoint to continue from; empty for a new run.

    Raises:
        UserError: a list or a video is missing or wrong.
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


def make_loaders(
    args: Namespace, world: World, data: Datasets, val_batch_size: int
) -> tuple["ClipLoader", "ClipLoader"]:
    """Make the loaders of this process's training and validation batches.

    Args:
        args: options of main.py.
        world: this process and the others.
        data: the data of the run.
        val_batch_size: clips in a validation batch.

    Raises:
        UserError: no training batch has a clip for each process.
    """
    train_set, decode_only = data.train, decodes_only(args.resize, world.device)
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
        ClipLoader(train_set, sampler, args.workers, decode_only),
        ClipLoader(data.val, batches, args.workers, decode_only),
    )


def read_excluded(path: str | Path) -> list[str]:
    """Read the names of videos to leave out, one a line, as they are in the lists.

    Raises:
        UserError: the file cannot be read.
    """
    lines = [line.strip() for line in read_text(path, "it holds names of videos, one a line").split("\n")]
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{path}, line {number}: '{printable(line)}' cannot be a video's name")
    return [line for line in lines if line]


def remap_labels(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Give labels other numbers, as for a checkpoint with another order of the classes.

    The labels change, not the model, whose results so stay the same to the last digit.

    Args:
        labels: of clips; -1 stays.
        numbers: for each label the other one.
    """
    return np.where(labels < 0, labels, numbers[labels])


def check_excluded(names: Collection[str], videos: Sequence[VideoDataSet]) -> None:
    """Warn of names to leave out that no list has, such as those with a misprint."""
    found = np.concatenate([dataset.paths[dataset.is_excluded] for dataset in videos])
    unknown = sorted(set(names) - {path.decode() for path in found})
    if unknown:
        named = ", ".join(map(printable, unknown[:10])) + (", …" if len(unknown) > 10 else "")
        log.warning(f"warning: --exclude: {pluralize(len(unknown), 'name')} not in any list: {named}")


def check_videos(dataset: VideoDataSet, skip_missing: bool) -> None:
    """Check that every listed video is there, and tell what was left out.

    Args:
        dataset: with `skip_missing`, the videos that are not there are taken out of it.
        skip_missing: leave them out.

    Raises:
        UserError: videos are missing, or all of them.
    """
    if dataset.num_short:
        short = pluralize(dataset.num_short, "video")
        log.info(f"{dataset.list_file}: left out {short} with under {MIN_FRAMES} frames")
    if len(dataset) > 5000:  # some seconds without a word otherwise
        log.info(f"{dataset.list_file}: looking for {len(dataset)} videos")
    missing = dataset.find_missing()
    if not missing:
        return
    named = ", ".join(path for _, path in missing[:10]) + (", …" if len(missing) > 10 else "")
    count = f"{dataset.list_file}: {len(missing)} of {pluralize(len(dataset), 'video')} missing or incomplete"
    if not skip_missing:
        raise UserError(f"{count} (--skip_missing leaves them out): {named}")
    if len(missing) == len(dataset):
        raise UserError(f"{count}: {named}")
    log.info(f"{count}, left out: {named}")
    dataset.keep(np.delete(np.arange(len(dataset)), [index for index, _ in missing]))


def check_same_list(dataset: VideoDataSet, fingerprint: int | None, path: str | Path, use: str) -> None:
    """Refuse to continue with another list.

    Args:
        dataset: of the list that is given now.
        fingerprint: of the one that a checkpoint was made with; None where it does not say.
        path: of the checkpoint, for the message.
        use: what the list is for: 'trained' or 'validated'.

    Raises:
        UserError: they differ.
    """
    if fingerprint not in (None, dataset.fingerprint()):
        raise UserError(
            f"{dataset.list_file}: is not the list that {path} was {use} on; videos, numbers of frames, "
            "labels or their order differ"
        )


class ClipSampler(Sampler):
    """The batches of one process in an epoch of training.

    The order depends on seed and epoch alone, and a batch's clips are the same for any number of
    processes, which share each batch. A batch with fewer clips than processes is left out.

    Args:
        num_clips: of the data set.
        batch_size: clips of a batch, over all processes.
        seed: of the order.
        accumulate: batches that make one step of the optimizer.
        rank: number of this process.
        size: number of processes.
        is_excluded: for each clip, whether to leave it out of its batch; all other batches stay the same.

    Yields:
        Lists of `(epoch, number of the clip)`, so that any worker knows the clip's augmentation.
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

    def clips_of(self, step: int) -> list[int]:
        """The numbers of a step's clips."""
        return [int(clip) for batch in self.batches_of(step) for clip in batch]

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
    """The batches of one process in an evaluation: every `size`th of those in the order of the list.

    Whole batches, not parts of them, so that a clip is computed in the same company, and to the
    same last digit, for any number of processes.
    """
    batches = [list(map(int, clips[i : i + batch_size])) for i in range(0, len(clips), batch_size)]
    return batches[rank::size]


Batch = list[torch.Tensor | DecodedClips]  # clips and labels


class ClipLoader(DataLoader):
    """Batches of clips and labels.

    The clips are uint8, batch x (views x) frames x height x width x channel; or, with `decode_only`, what
    `frames.resize.resize_clips` makes these of.

    Args:
        dataset: of the clips.
        batches: the numbers of each batch's clips.
        workers: processes that load them; 0 for this one.
        decode_only: leave the resize to the device.

    Raises:
        UserError: a clip cannot be loaded, a worker was killed or has no shared memory left (each in the
            middle of the batches), or the path for temporary files is too long for the workers' sockets.
    """

    def __init__(
        self,
        dataset: VideoDataSet,
        batches: ClipSampler | list[list[int]],
        workers: int,
        decode_only: bool = False,
    ) -> None:
        if workers and len(tempfile.gettempdir()) > 70:
            # A socket's name has 108 bytes; where it is longer, torch waits for ever.
            raise UserError(
                f"TMPDIR {tempfile.gettempdir()}: is too long a path for --workers; give a shorter one"
            )
        super().__init__(
            _Tolerant(dataset, decode_only),
            batch_sampler=batches,
            collate_fn=_as_they_are,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
        )

    def __iter__(self) -> Iterator[Batch]:
        # Begun at once, not with the first batch: torch's iterator draws a random number.
        batches = super().__iter__()
        if self.num_workers:
            # torch's handler would raise from any line of the program; a dead worker is noticed below, too.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self._checked(batches)

    def _checked(self, batches: Iterator[Any]) -> Iterator[Batch]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                if "Too many open files" in str(error):  # torch's own text, which has several lines
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
                if "</torch_" in str(error):  # what torch calls a piece of shared memory
                    remedies = "--resize workers, " if self.dataset.decode_only else ""
                    raise UserError(
                        "/dev/shm: has no room for the clips of --workers; make it larger (docker run "
                        f"--shm-size), or try {remedies}fewer --workers or a smaller batch"
                    ) from None
                # Raised by the code of a clip, or because the process that had the clips is gone.
                workers = {worker.sentinel: worker for worker in getattr(batches, "_workers", ())}
                gone = multiprocessing.connection.wait(list(workers), timeout=1)
                if not gone:
                    raise
                raise UserError(
                    f"a process that loads clips (pid {workers[gone[0]].pid}) was killed; if out of memory, "
                    "try fewer --workers"
                ) from None
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del (
                        batch,
                        batches,
                    )  # or the workers would live until the garbage collector finds the error
            yield batch


class _Tolerant(Dataset):
    """Gives whole batches, or in the place of one the error of a clip that cannot be loaded.

    Raised in a worker, it would reach the program as text that ends a traceback.
    """

    def __init__(self, dataset: VideoDataSet, decode_only: bool) -> None:
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
        if get_worker_info():  # without room for them, the thread that sends batches would drop this one
            labels.share_memory_()
        return [clips, labels]


def _as_they_are(batch: Batch | UserError) -> Batch | UserError:
    return batch


def _prepare_worker(worker: int) -> None:
    # A stop goes to the whole process group; the training process finishes its step first, and needs clips.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # The program reports in one line what multiprocessing's threads meet, as with too many open files.
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open as long as the process
