"""Read cameras and live streams: a thread decodes and keeps the newest frames."""

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
from PIL import Image

from frames.video import FrameConverter, display_size
from utils.cli import UserError, printable

# Seconds without data after which a network stream is lost, and the longest plausible gap between two frames.
TIMEOUT = 10
MAX_GAP = 10


class LiveFrame(NamedTuple):
    """A frame of a stream.

    Attributes:
        number: from 1.
        time: in seconds of the stream.
        arrival: when it was decoded, by `time.monotonic`.
        content: what `prepare` returned.
    """

    number: int
    time: float
    arrival: float
    content: Any


def is_live(source: str) -> bool:
    """Whether a source is a stream: `-`, a URL, a device or a named pipe."""
    path = Path(source)
    is_device = path.is_fifo() or path.is_char_device() or source.startswith("/dev/video")
    return source == "-" or bool(re.match(r"[a-z0-9]+://", source)) or is_device


class LiveStream:
    """A camera or a stream that PyAV can open. Recordings are played in real time.

    Args:
        source: see `is_live`.
        prepare: called with each frame as RGB, in the decoding thread.
        seconds: time for which frames are kept.
        first_number: number of the first frame.
        first_time: time of the first frame, in seconds.
        record: called with each frame as RGB and its time, in the decoding thread.

    Attributes:
        newest: time of the newest frame, in seconds.
        end: time at which the newest frame ends, in seconds.
        num_frames: frames so far.
        num_dropped: frames that were discarded before `take` returned them.
        error: why the stream was lost; empty if it runs or has ended.
        is_recording: whether the stream has a duration, such as a file on a web server.

    Raises:
        UserError: it cannot be opened, or has no video.
    """

    def __init__(
        self,
        source: str,
        prepare: Callable[[Image.Image], Any],
        seconds: float,
        first_number: int = 1,
        first_time: float = 0.0,
        record: Callable[[Image.Image, float], None] | None = None,
    ) -> None:
        self.path = source
        self.first_number, self.first_time = first_number, first_time
        self.newest, self.end = -math.inf, first_time
        self.num_frames = self.num_dropped = 0
        self.error = ""
        self._prepare, self._record, self._seconds = prepare, record, seconds
        self._frames: deque[LiveFrame] = deque()
        self._seen = first_number - 1  # number of the last frame that `take` returned
        self._has_ended = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        url = "pipe:0" if source == "-" else source
        kind = "v4l2" if re.fullmatch(r"/dev/video\d+", source) else None
        timeout = TIMEOUT if "://" in source else None
        try:
            self._container = av.open(url, format=kind, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{printable(source)}: cannot be opened ({_reason(error)})") from None
        self.is_recording = bool(self._container.duration)
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise UserError(f"{printable(source)}: no video stream")
        self._step = 1 / float(self._stream.average_rate or self._stream.guessed_rate or 25)
        self._stream.thread_type = "SLICE"  # frame threads would delay every frame
        # A blocked read must not keep the program from ending.
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, moment: float) -> bool:
        """Wait until the stream has reached a time, in seconds; False if it ends before."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or self.newest >= moment)
            return self.newest >= moment or self.newest + 1.5 * self._step > moment

    def take(self, start: float, end: float) -> list[LiveFrame]:
        """Return the kept frames from `start` up to `end`, in seconds."""
        with self._changed:
            frames = [frame for frame in self._frames if start <= frame.time < end]
            if frames:
                self._seen = frames[-1].number
            return frames

    def close(self) -> None:
        """Stop decoding, and free the frames."""
        self._stop.set()
        with self._changed:
            self._frames.clear()

    def _run(self) -> None:
        try:
            self._decode()
        except Exception as error:  # PyAV raises many kinds of errors
            self.error = _reason(error)
        self._container.close()
        with self._changed:
            if not self.num_frames:
                self.error = self.error or "contains no frames"
            self._has_ended = True
            self._changed.notify_all()

    def _decode(self) -> None:
        to_image, start, offset = None, None, 0.0
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue  # lost packets are common in streams
            for frame in frames:
                now = time.monotonic()
                start = start or now
                moment = self.first_time + now - start if frame.time is None else frame.time
                if to_image is None:
                    frame.opaque = self._stream.sample_aspect_ratio
                    to_image, offset = FrameConverter(display_size(frame)), moment - self.first_time
                elif not self.newest < moment - offset <= self.newest + MAX_GAP:
                    offset = moment - self.newest - self._step  # the clock of the stream has jumped
                moment -= offset
                if self.is_recording and self._stop.wait(max(0.0, moment - self.first_time - now + start)):
                    return
                image = to_image(frame).convert("RGB")
                if self._record:
                    self._record(image, moment)
                self._keep(moment, self._prepare(image))
            if self._stop.is_set():
                return
        length = (self._container.duration or 0) / av.time_base
        if length - (self.end - self.first_time) > max(1, length / 100):
            self.error = "connection closed"

    def _keep(self, moment: float, content: Any) -> None:
        with self._changed:
            number = self.first_number + self.num_frames
            self._frames.append(LiveFrame(number, moment, time.monotonic(), content))
            self.num_frames += 1
            self.newest, self.end = moment, moment + self._step
            while self._frames and self._frames[0].time < moment - self._seconds:
                self.num_dropped += self._frames.popleft().number > self._seen
            self._changed.notify_all()


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return f"no data for {TIMEOUT} s"
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
