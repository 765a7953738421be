"""Worker processes and progress bars for programs that process many videos."""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from utils.cli import uninterrupted

_SECONDS_BETWEEN_LINES = 30.0


class _Lines:
    """A stream for tqdm that writes lines instead of carriage returns, for log files."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stdout.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stdout.flush()


def cores() -> int:
    """Number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(total: int, initial: int = 0) -> tqdm:
    """Show progress: a bar on stderr if it is a terminal, otherwise a line on stdout every half minute.

    Args:
        total: number of videos.
        initial: number of videos that are already done; the speed is computed without them.
    """
    if sys.stderr.isatty():
        style = {"smoothing": 0.05, "dynamic_ncols": True}
    else:
        style = {
            "file": _Lines(),
            "mininterval": _SECONDS_BETWEEN_LINES,
            "delay": _SECONDS_BETWEEN_LINES,
            "miniters": 1,
            "bar_format": "{n_fmt} of {total_fmt} videos, {rate_fmt}, {elapsed} elapsed, {remaining} left",
        }
    # tqdm starts a thread, which would receive the signals that the main thread blocks later.
    with uninterrupted():
        return tqdm(total=total, initial=initial, unit="video", **style)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Make a pool of processes that ignore Ctrl-C and end with their parent, even on kill -9.

    Submit work inside `uninterrupted`. Submitting starts the processes, and Ctrl-C during their start would
    print a traceback.
    """
    # Forked processes would inherit each other's pipes and not notice the end of the parent.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
