"""Files that are written completely or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.cli import uninterrupted


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, a power cut included, the old or the new one is there, complete.

    Raises:
        OSError: it cannot be written; what is there stays as it is.
    """
    with staged({path: content}):
        pass


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write text files, in UTF-8, that belong together: see `staged`."""
    with staged({path: text.encode() for path, text in texts.items()}):
        pass


@contextmanager
def staged(contents: Mapping[Path, bytes | Path]) -> Iterator[None]:
    """Write files under hidden names; they take their places when the body of the `with` has ended.

    All are on the disk before the first takes its place. Then they follow each other at once, and Ctrl-C
    or a termination waits until the last is in place. Each has its old or its new content, whenever this
    is stopped.

    Args:
        contents: the files' contents: bytes, or a complete file of which they become other names, or copies
            where there are no hard links. A file's folder must exist.

    Raises:
        OSError: one cannot be written, or the body raised it; while they are being written, this leaves all
            as they are.
    """
    parts = {path: path.with_name(f".{path.name}.part") for path in contents}
    try:
        for path, part in parts.items():
            content = contents[path]
            if isinstance(content, Path) and link(content, part):
                continue
            with part.open("wb") as file:
                file.write(content.read_bytes() if isinstance(content, Path) else content)
                file.flush()
                os.fsync(file.fileno())
        yield
        with uninterrupted():
            for path, part in parts.items():
                part.replace(path)
            for folder in {path.parent for path in parts}:
                _sync_folder(folder)
    finally:
        for part in parts.values():
            with suppress(OSError):  # such as a folder that is a file; the first error is the one to tell
                part.unlink(missing_ok=True)


def link(file: Path, name: Path) -> bool:
    """Give a file a second name, replacing what has that name; False where there are no hard links."""
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(file)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, not only the contents of its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
