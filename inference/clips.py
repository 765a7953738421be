"""Load the clips of videos for a model: one clip per video, or a clip for each window of time."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset import clip_fractions, spread_frames
from frames.sources import Video, duration, open_video
from frames.stream import LiveStream
from transforms import Compose
from utils.cli import UserError
from utils.pool import cores

EPSILON = 1e-6  # tolerance for rounded times, in seconds


class Window(NamedTuple):
    """A part of a video.

    Attributes:
        start, end: in seconds after the first frame of the video.
        numbers: frames that the model sees, from 1; those of the first clip come first.
    """

    start: float
    end: float
    numbers: list[int]


class Clip(NamedTuple):
    """The frames of a window.

    Attributes:
        index: number of the video in the list of paths, from 0.
        window: the part of the video.
        times: time of each frame of the window, in seconds.
        pixels: uint8, views x frames x height x width x RGB, the views in the order of `VideoDataSet`.
    """

    index: int
    video: Video | LiveStream
    window: Window
    times: list[float]
    pixels: np.ndarray


class Failure(NamedTuple):
    """The error of a video, or of the rest of it. `index` is its number in the list of paths."""

    index: int
    error: UserError


@dataclass(frozen=True)
class ClipFormat:
    """How a model samples and crops the frames of a clip.

    Args:
        num_segments: frames in a clip.
        num_clips: clips of a window, see `dataset.clip_fractions`.
        transform: crops the frames, see `transforms.evaluation_transform`.
    """

    num_segments: int
    num_clips: int
    transform: Compose

    def sample(self, first: int, count: int) -> list[int]:
        """Sample frames from `count` frames that begin at number `first`, as `test_models.py` does."""
        fractions = clip_fractions(self.num_clips)
        spread = [spread_frames(count, self.num_segments, fraction) for fraction in fractions]
        return (np.concatenate(spread) + first - 1).tolist()

    def crop(self, image: Image.Image) -> np.ndarray:
        """Crop a frame: uint8, crops x height x width x RGB."""
        return self.transform([image], -1, None)[0]

    def stack(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Stack the crops of the frames as the pixels of a `Clip`."""
        views = np.stack(crops, axis=1)
        return views.reshape(-1, self.num_segments, *views.shape[2:])


def load_clips(
    paths: Sequence[Path], clip_format: ClipFormat, batch_size: int
) -> Iterator[list[Clip | Failure]]:
    """Load one clip of each video, in batches. Threads load the next batch while the model computes one.

    Args:
        clip_format: sampling and crops.
        batch_size: videos in a batch.
    """

    def load(index: int, path: Path) -> Clip | Failure:
        return next(_windows_of(index, path, clip_format, None, None))

    batches = _batched(enumerate(paths), batch_size)
    with ThreadPoolExecutor(min(16, cores())) as pool:
        futures = [pool.submit(load, *item) for item in next(batches)]
        while futures:
            clips = [future.result() for future in futures]
            futures = [pool.submit(load, *item) for item in next(batches, ())]
            yield clips


def load_windows(
    paths: Sequence[Path], clip_format: ClipFormat, batch_size: int, seconds: float, stride: float
) -> Iterator[list[Clip | Failure]]:
    """Load the windows of each video, in batches. A thread loads the next batch.

    Every sampled frame is decoded once, and stays in memory until no window needs it.

    Args:
        clip_format: sampling and crops.
        batch_size: windows in a batch.
        seconds: length of a window.
        stride: seconds from the start of a window to that of the next.
    """

    def load() -> Iterator[list[Clip | Failure]]:
        for index, path in enumerate(paths):
            clips = _windows_of(index, path, clip_format, seconds, stride)
            yield from _batched(clips, batch_size)

    batches = load()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, batches, None)
        while batch := future.result():
            future = pool.submit(next, batches, None)
            yield batch


def _windows_of(
    index: int, path: Path, clip_format: ClipFormat, seconds: float | None, stride: float | None
) -> Iterator[Clip | Failure]:
    """Yield the clips of a video; a single one if `seconds` is None."""
    try:
        video = open_video(path)
        windows = [Window(0.0, duration(video), clip_format.sample(1, video.num_frames))]
        if seconds:
            windows = plan_windows(video.times, 1 / video.fps, clip_format, seconds, stride)
        frames = video.frames(sorted({number for window in windows for number in window.numbers}))
        crops: dict[int, np.ndarray] = {}
        for window in windows:
            first, last = min(window.numbers), max(window.numbers)
            crops = {number: array for number, array in crops.items() if number >= first}
            while last not in crops:
                number, image = next(frames)
                crops[number] = clip_format.crop(image)
            pixels = clip_format.stack([crops[number] for number in window.numbers])
            times = [float(video.times[number - 1]) for number in window.numbers]
            yield Clip(index, video, window, times, pixels)
    except UserError as error:
        yield Failure(index, error)


def plan_windows(
    times: np.ndarray, frame_duration: float, clip_format: ClipFormat, seconds: float, stride: float
) -> list[Window]:
    """Divide a video into windows. The last one ends with the video.

    Args:
        times: times of the video's frames, in seconds.
        frame_duration: duration of the last frame, in seconds.
        clip_format: samples the frames of a window.
        seconds: length of a window; a shorter video has one window.
        stride: seconds from the start of a window to that of the next.

    Raises:
        UserError: the stride is shorter than half a frame.
    """
    if stride < frame_duration / 2:
        raise UserError(f"--stride {stride:g}: is shorter than half a frame ({frame_duration / 2:.3f} s)")
    length, tolerance = float(times[-1]) + frame_duration, frame_duration / 2
    count = int((length - seconds + tolerance) / stride) + 1 if length + tolerance >= seconds else 0
    spans = [(number * stride, number * stride + seconds) for number in range(count)]
    if not spans or spans[-1][1] < length - tolerance:
        spans.append((max(0.0, length - seconds), length))
    starts = np.searchsorted(times, [start - EPSILON for start, _ in spans])
    ends = np.searchsorted(times, [end - EPSILON for _, end in spans])
    windows = []
    for (start, end), first, last in zip(spans, starts.tolist(), ends.tolist(), strict=True):
        first = min(first, max(0, last - 1))  # a window without frames gets the frame that is on the screen
        windows.append(Window(start, end, clip_format.sample(first + 1, max(1, last - first))))
    return windows


def _batched(items: Iterable, size: int) -> Iterator[list]:
    """Divide items into lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
