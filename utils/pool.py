"""What programs share that work through videos: processes, and how far they are."""

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
    """What tqdm writes to: its carriage returns would make one endless line of a log file."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stdout.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stdout.flush()


def cores() -> int:
    """Number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(total: int, initial: int = 0) -> tqdm:
    """Count videos: a bar on a terminal's stderr; otherwise a line on stdout every half minute.

    Args:
        total: the number of videos.
        initial: how many of them were done before; they do not count for the speed.
    """
    if sys.stderr.isatty():
        style = {"smoothing": 0.05, "dynamic_ncols": True}
    else:
        style = {
            "file": _Lines(),
            "mininterval": _SECONDS_BETWEEN_LINES,
            "delay": _SECONDS_BETWEEN_LINES,
            "miniters": 1,
            "bar_format": "{n_fmt} of {total_fmt} videos, {rate_fmt}, {elapsed} gone, {remaining} left",
        }
    # tqdm starts a thread that never ends. A signal that the main thread makes wait would reach it there.
    with uninterrupted():
        return tqdm(total=total, initial=initial, unit="video", **style)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to their parent, and end when it does, even by kill -9.

    Work is to be handed to them `uninterrupted`: it starts them, and while they start, they
    could only answer Ctrl-C with a traceback.
    """
    # Forked processes would inherit each other's pipes, and with them the parent's death unnoticed.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
