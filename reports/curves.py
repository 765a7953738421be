"""Write curves for TensorBoard."""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from utils.cli import log


class Curves:
    """Writes an event file for TensorBoard. If writing fails, training continues without it.

    tensorboardX's `SummaryWriter` writes in a thread. If a full disk ends the thread, the next call blocks
    forever. This class writes in the calling thread, with other classes of tensorboardX.

    Args:
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
            self._write(Event(step=step, summary=scalar(name, value)))

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
