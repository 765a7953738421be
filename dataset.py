"""From a list file to clips: records, sampled frames, decoded and transformed."""

import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from datasets_video import MIN_FRAMES, DatasetPaths, VideoRecord
from frames.images import SourceFrame
from frames.resize import DecodedClips, Outline
from frames.sources import FrameFolders, VideoFiles
from transforms import Compose
from utils.cli import UserError, first_ten, log, pluralize, printable
from utils.files import read_text


def read_list(list_file: str | Path, num_class: int, may_lack_labels: bool = False) -> list[VideoRecord]:
    """Read a list file of lines `name  frames  label`, separated by spaces or tabs.

    The last two fields are the numbers. The name is that of the frame folder, or of the video file without
    its suffix. It may contain spaces.

    Args:
        num_class: number of classes; labels must be smaller.
        may_lack_labels: also accept a list of lines `name  frames`. The labels are then -1.
    """
    lines = [line.strip() for line in read_text(list_file).split("\n")]
    if not any(lines):
        raise UserError(f"{list_file}: is empty (expected lines of 'name frames label')")
    labelled = re.compile(r"([^\0]*[^\s\0])\s+([0-9]{1,9})\s+([0-9]{1,9})")
    unlabelled = re.compile(r"([^\0]*[^\s\0])\s+([0-9]{1,9})()")
    has_labels = not may_lack_labels or any(map(labelled.fullmatch, lines))
    form, pattern = ("name frames label", labelled) if has_labels else ("name frames", unlabelled)
    records = []
    for line_number, line in enumerate(lines, start=1):
        if not line:
            continue
        where = f"{list_file}, line {line_number}"
        match = pattern.fullmatch(line)
        if not match:
            raise UserError(f"{where}: '{printable(line)}' is not '{form}'")
        name, num_frames, label = match[1], int(match[2]), int(match[3] or -1)
        if label >= num_class:
            raise UserError(f"{where}: label {label}, but category.txt has the labels 0 to {num_class - 1}")
        records.append(VideoRecord(name, num_frames, label))
    return records


def spread_frames(num_frames: int, num_segments: int, fraction: float = 0.5) -> np.ndarray:
    """Divide a video into equal segments and sample a frame of each, as the published test program does.

    Returns:
        `num_segments` frame numbers, from 1, in time order; `fraction` is their position in the segments.
    """
    length = num_frames / num_segments
    return 1 + (length * fraction + length * np.arange(num_segments)).astype(int)


def clip_fractions(num_clips: int) -> list[float]:
    """For each clip of a video, the position of its frames in their segments, from 0 to 1.

    The first clip has the middle of each segment, the second clip its beginning (TSM's `twice_sample`).
    Further clips are evenly spaced between the two.
    """
    between = [number / (2 * (num_clips - 1)) for number in range(1, num_clips - 1)]
    return [0.5, 0.0, *between][:num_clips]


class VideoDataSet(Dataset):
    """Clips of a data set of frame folders or video files.

    The index is the number of a clip, or `(epoch, number)` from `ClipSampler`. All random numbers of a clip
    depend only on seed, epoch and number.

    Args:
        root_path: the folder of the frame folders or videos.
        list_file: see `read_list`.
        num_segments: number of equal segments of a video; one position is sampled in each.
        image_tmpl: file name of a frame, such as `{:05d}.jpg`; None for video files.
        new_length: number of consecutive frames at each position (1 for RGB).
        transform: converts frames to a clip; see `transforms`.
        random_shift: sample a random position in each segment (training) instead of the middle.
        test_mode: sample like the published test program. It differs from validation for videos with at most
            `num_segments` frames: the segments are spread over the video.
        num_class: number of classes; labels must be smaller.
        seed: seed of all random numbers.
        may_lack_labels: see `read_list`.
        first_frame: number in the file name of a video's first frame.
        num_clips: clips of a video, with different positions in the segments; see `clip_fractions`. Values
            above 1 need `test_mode`.
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
        first_frame: int = 1,
        num_clips: int = 1,
    ) -> None:
        self.list_file = str(list_file)
        self.num_segments = num_segments
        self.source = VideoFiles(str(root_path))
        if image_tmpl:
            self.source = FrameFolders(str(root_path), image_tmpl, first_frame)
        self.new_length = new_length
        self.transform = transform
        self.random_shift = random_shift
        self.test_mode = test_mode
        self.seed = seed
        self.fractions = clip_fractions(num_clips)
        records = read_list(list_file, num_class, may_lack_labels)
        self.num_listed = len(records)
        records = [record for record in records if record.num_frames >= MIN_FRAMES]
        self.num_short = self.num_listed - len(records)
        if not records:
            raise UserError(
                f"{list_file}: none of its {self.num_listed} videos has {MIN_FRAMES} frames or more"
            )
        # Not Python objects: workers share the memory of their parent as long as they only read.
        self.paths = np.array([record.path.encode() for record in records])
        self.num_frames = np.array([record.num_frames for record in records], dtype=np.int32)
        self.labels = np.array([record.label for record in records], dtype=np.int64)
        self.is_excluded = np.zeros(len(records), dtype=bool)

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
        """The number of videos that are used, for the log; empty if all are used."""
        count = len(self.included)
        return f" ({count} of {self.num_listed} videos)" if count < self.num_listed else ""

    def fingerprint(self) -> int:
        """A checksum of the list: names, numbers of frames, labels and their order.

        It includes excluded videos, so that a run can continue without a video that became unreadable.
        """
        return zlib.crc32(self.paths.tobytes() + self.num_frames.tobytes() + self.labels.tobytes())

    def keep(self, indices: np.ndarray | list[int]) -> None:
        """Keep only the clips with these numbers, and renumber them."""
        self.paths = self.paths[indices]
        self.num_frames = self.num_frames[indices]
        self.labels = self.labels[indices]
        self.is_excluded = self.is_excluded[indices]

    def exclude(self, names: Collection[str]) -> None:
        """Exclude videos by name; the others keep their numbers."""
        self.is_excluded |= np.isin(self.paths, [name.encode() for name in names])
        if self.is_excluded.all():
            raise UserError(f"{self.list_file}: all of its {len(self)} videos are excluded (--exclude)")

    def sample_indices(self, num_frames: int, rng: np.random.Generator, fraction: float = 0.5) -> np.ndarray:
        """Sample a position in each segment: the number of its first frame, from 1 (paper, section 4.2; TSN).

        `fraction` is the position in each segment without `random_shift`, from 0 to 1.
        """
        segments = np.arange(self.num_segments)
        num_positions = num_frames - self.new_length + 1
        if self.random_shift:
            length = num_positions // self.num_segments
            if length > 0:
                return 1 + segments * length + rng.integers(length, size=self.num_segments)
            if num_frames > self.num_segments:
                return 1 + np.sort(rng.integers(num_positions, size=self.num_segments))
            return np.ones_like(segments)
        if not self.test_mode and num_frames <= self.num_segments + self.new_length - 1:
            return np.ones_like(segments)
        return spread_frames(num_positions, self.num_segments, fraction)

    def _sample(self, key: int | tuple[int, int]) -> tuple[VideoRecord, list[int], np.random.Generator]:
        """Sample the frame numbers of a video's clips. The transform continues with the same generator."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.record(index)
        rng = np.random.default_rng((self.seed, epoch, index + 1))  # 0 is the generator of `ClipSampler`
        starts = [self.sample_indices(record.num_frames, rng, fraction) for fraction in self.fractions]
        numbers = np.concatenate(starts)[:, None] + np.arange(self.new_length)
        return record, np.minimum(numbers, record.num_frames).flatten().tolist(), rng

    def _read(self, record: VideoRecord, numbers: list[int]) -> dict[int, SourceFrame]:
        """Read each frame once, even if it occurs several times in a clip."""
        numbers = list(dict.fromkeys(numbers))
        with _advice(record):
            if self.random_shift or isinstance(self.source, FrameFolders):
                return self.source.read(record.path, numbers)
            return self.source.read(record.path, numbers, record.num_frames)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[np.ndarray, int]:
        """Load a clip.

        Returns:
            The clip from `transform` (uint8, frames x height x width x channel) and the label. If there are
            several views (crops of clips), the shape is views x frames x height x width x channel, with all
            clips of the first crop, then those of the next.
        """
        record, numbers, rng = self._sample(key)
        frames = self._read(record, numbers)
        with _advice(record):
            images = {number: frame.image() for number, frame in frames.items()}
        clip = [images[number] for number in numbers]
        if self.transform is None:
            return clip, record.label
        clip, label = self.transform(clip, record.label, rng)
        length = self.num_segments * self.new_length
        return clip if len(clip) == length else clip.reshape(-1, length, *clip.shape[1:]), label

    def decode(self, keys: Sequence[int | tuple[int, int]]) -> tuple[DecodedClips, torch.Tensor]:
        """Decode a batch of clips, without the transform, which `frames.resize.resize_clips` applies later.

        In a worker, the clips are in shared memory.
        """
        videos, shapes, orders, views, labels = [], [], [], [], []
        end = 0
        for key in keys:
            record, numbers, rng = self._sample(key)
            frames = self._read(record, numbers)
            videos.append((record, frames))
            width, height = frames[numbers[0]].size
            outlines, label = self.transform([Outline.of(width, height)], record.label, rng)
            position = {number: index for index, number in enumerate(frames)}
            orders.append([position[number] for number in numbers])
            views.append([outline.view for outline in outlines])
            labels.append(label)
            shapes.append((end, len(frames), height, width))
            end += len(frames) * height * width * 3
        pixels = torch.empty(0, dtype=torch.uint8)
        if get_worker_info():  # decoded directly into shared memory, as in torch's collation
            pixels.set_(torch.UntypedStorage._new_shared(end))
        else:
            pixels.resize_(end)
        for (record, frames), (start, count, height, width) in zip(videos, shapes, strict=True):
            target = pixels[start : start + count * height * width * 3].view(count, height, width, 3).numpy()
            with _advice(record):
                for array, frame in zip(target, frames.values(), strict=True):
                    frame.write(array)
        length = self.num_segments * self.new_length
        arrays = map(np.array, (shapes, orders, views))
        return DecodedClips(pixels, *arrays, outlines[0].width, length), torch.tensor(labels)

    def is_mirrored(self, key: tuple[int, int]) -> bool:
        """Whether the transform mirrors a clip, given by its epoch and number."""
        record, numbers, rng = self._sample(key)
        frame = self._read(record, numbers[:1])[numbers[0]]
        self.transform([frame.image()], record.label, rng)
        return self.transform.has_mirrored

    def find_missing(self) -> list[tuple[int, str]]:
        """Find videos that lack a file, folder, first or last frame: their numbers and the missing paths."""
        check = self.source.checker()

        def check_all(indices: np.ndarray) -> list[tuple[int, str]]:
            records = [(int(index), self.record(index)) for index in indices]
            paths = [(index, check(record.path, record.num_frames)) for index, record in records]
            return [(index, path) for index, path in paths if path]

        chunks = np.array_split(self.included, max(1, len(self) // 500))
        with ThreadPoolExecutor(16) as pool:  # threads: most of the time is spent waiting for the file system
            results = pool.map(check_all, chunks)
            progress = tqdm(results, "looking for videos", len(chunks), leave=False, disable=None)
            return [video for missing in progress for video in missing]


@contextmanager
def _advice(record: VideoRecord) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error}; to continue without this video, use --exclude FILE with the line "
            f"'{printable(record.path)}'"
        ) from None


def open_videos(
    paths: DatasetPaths,
    num_segments: int,
    transform: Compose,
    *,
    is_training: bool = False,
    skip_missing: bool = False,
    max_num: int | None = None,
    excluded: Collection[str] = (),
    **dataset_kwargs: Any,
) -> VideoDataSet:
    """Open a data set's training or validation list, and check that its videos exist.

    Args:
        paths: where the list and the videos are.
        num_segments, transform: see `VideoDataSet`.
        is_training: open the training list, with random frames.
        skip_missing: leave out videos that are missing or incomplete.
        max_num: maximum number of clips; the first ones are kept.
        excluded: names of videos to leave out.
        dataset_kwargs: further arguments of `VideoDataSet`.
    """
    videos = VideoDataSet(
        paths.root_data,
        paths.train_list if is_training else paths.val_list,
        num_segments,
        paths.prefix,
        first_frame=paths.first_frame,
        transform=transform,
        random_shift=is_training,
        num_class=len(paths.categories),
        **dataset_kwargs,
    )
    if max_num:
        videos.keep(np.arange(min(max_num, len(videos))))
    if excluded:
        videos.exclude(excluded)
    check_videos(videos, skip_missing)
    if videos.is_excluded.any():
        log.info(f"{videos.list_file}: left out {pluralize(videos.is_excluded.sum(), 'video')} (--exclude)")
    return videos


def read_excluded(path: str | Path) -> list[str]:
    """Read the names of videos to leave out, one per line, as in the lists."""
    lines = read_text(path, "expected names of videos, one per line").split("\n")
    return [line.strip() for line in lines if line.strip()]


def check_excluded(names: Collection[str], videos: Sequence[VideoDataSet]) -> None:
    """Warn about names that exclude no clip, such as misspelled ones."""
    excluded = np.concatenate([dataset.paths[dataset.is_excluded] for dataset in videos])
    unknown = sorted(set(names) - {path.decode() for path in excluded})
    if unknown:
        names = first_ten([printable(name) for name in unknown])
        log.warning(f"warning: --exclude: {pluralize(len(unknown), 'name')} unused: {names}")


def check_videos(dataset: VideoDataSet, skip_missing: bool) -> None:
    """Check that every listed video exists. With `skip_missing`, missing ones are removed."""
    if dataset.num_short:
        short = pluralize(dataset.num_short, "video")
        log.info(f"{dataset.list_file}: left out {short} with fewer than {MIN_FRAMES} frames")
    if len(dataset) > 5000:  # takes some seconds
        log.info(f"{dataset.list_file}: looking for {len(dataset)} videos")
    missing = dataset.find_missing()
    if not missing:
        return
    videos = pluralize(len(dataset.included), "video")
    count = f"{dataset.list_file}: {len(missing)} of {videos} missing or incomplete"
    names = first_ten([path for _, path in missing])
    if not skip_missing or len(missing) == len(dataset.included):
        raise UserError(f"{count} (--skip_missing leaves such videos out): {names}")
    log.info(f"{count}, left out: {names}")
    dataset.keep(np.delete(np.arange(len(dataset)), [index for index, _ in missing]))


def check_same_list(dataset: VideoDataSet, fingerprint: int | None, path: str | Path, use: str) -> None:
    """Check that a run continues with the list of its checkpoint, whose fingerprint may be unknown (None)."""
    if fingerprint not in (None, dataset.fingerprint()):
        raise UserError(
            f"{dataset.list_file}: is not the list that {path} was {use} on; videos, numbers of frames, "
            "labels or their order differ"
        )
