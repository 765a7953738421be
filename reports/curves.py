"""Write curves for TensorBoard."""

import time
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram, image, scalar, text

from utils.cli import log


class Curves:
    """Writes an event file for TensorBoard. If writing fails, training continues without it.

    tensorboardX's `SummaryWriter` writes in a thread. If a full disk ends the thread, the next call blocks
    forever. This class writes in the calling thread, with other classes of tensorboardX.

    Args:
        folder: the folder of the file.
        purge_step: TensorBoard ignores the values in older files from this step on.
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
        """Add a text without formatting: each line begins with four spaces, a code block in Markdown."""
        self.add_summary(text(name, "\n".join(f"    {line}" for line in content.splitlines())), step)

    def add_lengths(self, name: str, num_frames: np.ndarray, step: int) -> None:
        """Add a histogram of the lengths of videos in frames."""
        # The width of the bins is a whole number, so that no bin is empty by chance. TensorBoard shows 30.
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
