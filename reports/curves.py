"""TensorBoard's curves."""

import time
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram, image, scalar, text

from utils.cli import log


class Curves:
    """Writes TensorBoard's file; training continues without it if that fails.

    tensorboardX's `SummaryWriter` writes in a thread. When a full disk ends that thread, the next values
    wait for ever. This class writes at once, with tensorboardX's other classes.

    Args:
        folder: the folder of the file.
        purge_step: TensorBoard ignores the values of older files from this step on.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        # tensorboardX names a file by the second; the suffix makes the name unique.
        number = len(list(folder.iterdir()))
        self.file: EventsWriter | None = EventsWriter(str(folder / "events"), f".{number:03}")
        self._write(Event(step=purge_step, file_version="brain.Event:2"))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self.add_summary(scalar(name, value), step)

    def add_text(self, name: str, content: str, step: int) -> None:
        """Add a text as it is: Markdown does not change lines that begin with four spaces."""
        self.add_summary(text(name, "\n".join(f"    {line}" for line in content.splitlines())), step)

    def add_lengths(self, name: str, num_frames: np.ndarray, step: int) -> None:
        """Add a histogram of the numbers of frames of a list's videos."""
        # Bins of whole numbers, so that there are no gaps. TensorBoard shows 30 bins.
        width = -(-(int(np.ptp(num_frames)) + 1) // 30)
        bins = np.arange(num_frames.min(), num_frames.max() + width + 1, width) - 0.5
        self.add_summary(histogram(f"data/{name}_frames", num_frames, bins), step)

    def add_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture, height x width x RGB."""
        self.add_summary(image(name, pixels, dataformats="HWC"), step)

    def add_summary(self, summary: Summary, step: int) -> None:
        """Add a summary of tensorboardX."""
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Event) -> None:
        if self.file is None:
            return
        event.wall_time = time.time()
        try:
            self.file.write_event(event)
            self.file.flush()
        except OSError as error:
            log.warning(f"warning: no more TensorBoard curves ({error.strerror})")
            self.file = None
