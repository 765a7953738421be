"""Classify a live stream, in windows of its newest frames."""

import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image

from frames.stream import LiveStream
from inference.answers import log_window, make_answer, merge_windows
from inference.clips import EPSILON, Clip, ClipFormat, Window
from reports.render import Caption, Movie, rendering
from utils.cli import UserError, log, pluralize, printable

RECONNECT_SECONDS = 2.0


def watch(
    args: Namespace,
    source: str,
    predict: Callable[[torch.Tensor], list[torch.Tensor]],
    clip_format: ClipFormat,
    names: Sequence[str],
) -> tuple[list[dict[str, Any]], int]:
    """Classify the newest window of a stream until the stream ends or Ctrl-C is pressed.

    Args:
        args: options of `test_video.py`.
        source: the stream, see `LiveStream`.
        predict: computes the logits of a batch of clips.
        clip_format: sampling and crops.
        names: class names.

    Returns:
        The stream in the format of the JSON output, and the exit status: 1 if the stream was lost.

    Raises:
        UserError: the stream cannot be opened, or its recording failed and no answers are kept.
    """
    file = args.rendered_output
    streams: list[LiveStream] = []  # one for each connection
    answers: list[list[dict[str, Any]]] = []  # of each connection
    count, error, start = 0, "", time.monotonic()
    try:
        recorded = recording(Path(file), names) if file else nullcontext()
        with recorded as recorder, suppress(KeyboardInterrupt):
            while True:
                try:
                    num_frames = sum(stream.num_frames for stream in streams)
                    moment = time.monotonic() - start if streams else 0.0
                    kept_seconds = args.window + args.stride
                    record = recorder.add if recorder else None
                    first = (num_frames + 1, moment)
                    stream = LiveStream(source, clip_format.crop, kept_seconds, *first, record)
                    streams.append(stream)
                    answers.append([])
                    for clip, arrival in live_clips(stream, clip_format, args.window, args.stride):
                        logits = predict(torch.from_numpy(clip.pixels[None]))[0][0].cpu()
                        answer = make_answer(clip, logits, names, args.topk, args.weights)
                        count += 1
                        best = answer["top"][0]
                        is_shown = best["probability"] >= (args.threshold or 0)
                        if is_shown:
                            log_window(answer, f"  ({1000 * (time.monotonic() - arrival):.0f} ms)")
                        if recorder:
                            recorder.show(best if is_shown else None)
                        if args.json or args.csv:
                            answers[-1].append(answer)
                    stream.close()
                    lost = f"{printable(source)}: lost ({stream.error})" if stream.error else ""
                except UserError as failure:
                    if not streams:
                        raise
                    lost = str(failure)
                if lost:
                    log.error(f"error: {lost}")
                is_over = streams[-1].is_recording and not lost
                if is_over or not args.reconnect or source == "-":
                    error = lost
                    break
                time.sleep(RECONNECT_SECONDS)
    except UserError as failure:  # the recording failed; the answers so far are kept
        if not any(answers):
            raise
        error = str(failure)
        log.error(f"error: {error}")
    num_frames = sum(stream.num_frames for stream in streams)
    num_dropped = sum(stream.num_dropped for stream in streams)
    log.info(
        f"{pluralize(count, 'answer')}, {pluralize(num_frames, 'frame')} in "
        f"{time.monotonic() - start:.1f} s, {num_dropped} dropped"
    )
    video: dict[str, Any] = {"video": source, "num_frames": num_frames, "num_dropped": num_dropped}
    video["windows"] = list(chain.from_iterable(answers))
    if args.threshold is not None:
        segments = (merge_windows(windows, args.threshold) for windows in answers)
        video["segments"] = list(chain.from_iterable(segments))
    return [video | ({"error": error} if error else {})], int(bool(error))


class Recorder:
    """Writes the frames of a stream, with the newest answer, to a file.

    Frames are encoded in the thread that decodes them, so a recording misses no frame.

    Args:
        names: class names; all pictures have room for the longest one.
    """

    def __init__(self, part: Path, names: Sequence[str]) -> None:
        self._movie = Movie(part)
        self._caption = Caption(names)
        self._answer: dict[str, Any] | None = None
        self._last = -1.0
        self._error: OSError | av.FFmpegError | None = None
        self._is_open = True
        self._lock = threading.Lock()

    def add(self, image: Image.Image, moment: float) -> None:
        """Add a frame with its time, in seconds."""
        with self._lock:
            if not self._is_open or self._error or moment <= self._last:
                return
            self._last = moment
            picture = self._caption.draw(image, self._answer)
            try:
                self._movie.add(picture, Fraction(moment).limit_denominator(90_000))
            except (OSError, av.FFmpegError) as error:
                self._error = error  # for the main thread

    def show(self, answer: dict[str, Any] | None) -> None:
        """Draw an answer from now on.

        Raises:
            OSError, av.FFmpegError: the file cannot be written.
        """
        if self._error:
            raise self._error
        self._answer = answer

    def close(self) -> None:
        """Finish the file; see `show` for the exceptions."""
        with self._lock:
            self._is_open = False
            self._movie.close()
        self.show(None)


@contextmanager
def recording(path: Path, names: Sequence[str]) -> Iterator[Recorder]:
    """Yield a recorder, and give its file the name `path` at the end; see `rendering`."""
    with rendering(path) as part:
        recorder = Recorder(part, names)
        yield recorder
        recorder.close()
    log.info(f"rendered: {path}")


def live_clips(
    stream: LiveStream, clip_format: ClipFormat, seconds: float, stride: float
) -> Iterator[tuple[Clip, float]]:
    """Yield windows of a running live stream. If the model is too slow, older windows are skipped.

    The windows are those that `plan_windows` makes for the recorded stream, except for skipped ones.

    Args:
        stream: its frames are prepared by `clip_format.crop`.
        clip_format: sampling and crops.
        seconds: length of a window.
        stride: seconds from the start of a window to that of the next.

    Yields:
        The clip of a window, and the arrival time of its newest frame (`time.monotonic`).
    """

    def make_clip(start: float, end: float) -> Iterator[tuple[Clip, float]]:
        frames = {frame.number: frame for frame in stream.take(start - EPSILON, end - EPSILON)}
        if frames:
            numbers = clip_format.sample(min(frames), len(frames))
            pixels = clip_format.stack([frames[number].content for number in numbers])
            times = [frames[number].time for number in numbers]
            yield Clip(0, stream, Window(start, end, numbers), times, pixels), frames[max(frames)].arrival

    covered = stream.first_time
    end = covered + seconds
    while stream.wait(end):
        end += int((stream.newest + EPSILON - end) // stride) * stride if stream.newest > end else 0
        yield from make_clip(end - seconds, end)
        covered = end
        end += stride
    if (stream.newest + stream.end) / 2 > covered:  # the rest, after the last window
        yield from make_clip(max(stream.first_time, stream.end - seconds), stream.end)
