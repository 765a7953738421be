"""Worker processes and progress bars for programs that process many videos."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from tqdm import tqdm

from utils.cli import UserError, printable, uninterrupted


def cores() -> int:
    """Number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(total: int, initial: int = 0) -> tqdm:
    """Show progress on stderr: live on a terminal, otherwise every half minute.

    Args:
        total: number of videos.
        initial: number of videos that are already done; the speed is computed without them.
    """
    seconds = 0.1 if sys.stderr.isatty() else 30.0
    # tqdm starts a thread, which would receive the signals that the main thread blocks later.
    with uninterrupted():
        return tqdm(total=total, initial=initial, unit="video", mininterval=seconds, delay=seconds)


def map_in_processes(
    task: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any]]:
    """Call `task` for each item in parallel; yield each item with the result, in order.

    The processes ignore Ctrl-C and end with their parent, even on kill -9. One worker needs no process.

    Raises:
        UserError: a process died.
    """
    if workers == 1:
        yield from ((item, task(item)) for item in items)
        return
    item = items[0] if items else None
    # A message between two processes takes as long as listing a folder.
    chunksize = min(32, len(items) // (32 * workers) + 1)
    # Forked processes would inherit each other's pipes and not notice the end of the parent.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            with uninterrupted():  # Ctrl-C during the start of the processes would print a traceback
                results = pool.map(task, items, chunksize=chunksize)
            with closing(results):  # after Ctrl-C, cancels the remaining tasks
                for item, result in zip(items, results, strict=True):
                    yield item, result
    except BrokenProcessPool:
        raise UserError(
            f"a process died soon after {printable(item)}; if out of memory, try fewer --workers, otherwise "
            "remove the video that caused this"
        ) from None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
