"""What the data tools share: progress, processes and files that are written whole or not at all."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class _Lines:
    """What tqdm writes to: its carriage returns would make one endless line of a log file."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stdout.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stdout.flush()


def progress_bar(total: int, initial: int = 0) -> tqdm:
    """Count videos: a bar on a terminal's stderr; otherwise a plain line on stdout every half minute.

    Args:
        total: the number of videos.
        initial: how many of them were done before; they do not count for the speed.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, initial=initial, unit="video", smoothing=0.05, dynamic_ncols=True)
    return tqdm(
        total=total,
        initial=initial,
        unit="video",
        file=_Lines(),
        mininterval=_SECONDS_BETWEEN_LINES,
        delay=_SECONDS_BETWEEN_LINES,
        miniters=1,
        bar_format="{n_fmt} of {total_fmt} videos, {rate_fmt}, {elapsed} gone, {remaining} left",
    )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and a termination wait; processes that are started meanwhile inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_atomically(texts: dict[Path, str]) -> None:
    """Write text files, each of which then has its old or its new content, whenever this is stopped.

    All are written completely under hidden names before the first takes its place. Then they
    follow each other at once, and Ctrl-C or a termination waits until the last is in place.
    """
    parts = {path: path.with_name(f".{path.name}.part") for path in texts}
    try:
        for path, part in parts.items():
            with part.open("w", encoding="utf-8", newline="\n") as file:
                file.write(texts[path])
                file.flush()
                os.fsync(file.fileno())
        with uninterrupted():
            for path, part in parts.items():
                part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


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
