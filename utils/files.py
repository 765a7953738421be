"""Files: only regular ones are read, and they are written completely or not at all."""

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.cli import UserError, uninterrupted

# A list of a million videos has less than a tenth of this.
_MAX_TEXT = 256 << 20

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading; a named pipe, which would make the program wait for ever, is refused at once.

    Raises:
        OSError: it cannot be opened, or is not a regular file; `strerror` says which.
    """
    _regular_size(path)
    return open(path, "rb")  # noqa: PTH123, SIM115 - for each frame of each clip


def read_regular(path: str, limit: int) -> bytes | None:
    """Read a file in a third less time than `open_regular` takes for it, for each frame of each clip.

    Args:
        path: the file.
        limit: bytes; of a larger file, None is returned.

    Raises:
        OSError: see `open_regular`; or it cannot be read.
    """
    size = _regular_size(path)
    if size > limit:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, size)
        # A network file system may give less at a time.
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return data


def _regular_size(path: str | Path) -> int:
    status = os.stat(path)  # noqa: PTH116 - likewise
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    return status.st_size


def read_text(path: str | Path, purpose: str = "") -> str:
    """Read a text file in UTF-8, with or without a byte order mark; its lines end in `\\n`.

    Args:
        path: the file.
        purpose: what it is for, to be said if it does not exist.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is too large to be meant.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_TEXT + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file" + (f"; {purpose}" if purpose else "")) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: cannot be read (is not UTF-8 text)") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if len(content) > _MAX_TEXT:
        raise UserError(f"{path}: is larger than {_MAX_TEXT >> 20} MiB; is it the right file?")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment, a power cut included, the old or the new one is there, complete.

    Raises:
        OSError: it cannot be written; what is there stays as it is.
    """
    with staged({path: content}):
        pass


def npz(**arrays: Any) -> bytes:
    """The content of an npz file with these arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


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
            part.unlink(missing_ok=True)  # of a killed process; or a named pipe, which would be waited for
            with part.open("xb") as file:
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


def check_writable_file(file: str | Path, option: str = "") -> None:
    """Refuse an output file that cannot be written, before any work is done. The file is not touched.

    Args:
        file: file to write or replace.
        option: the option that names it, for the message.

    Raises:
        UserError: the path is not a file, its folder is missing, or permissions are.
    """
    path, name = Path(file), f"{option} {file}".strip()
    if os.path.lexists(path) and not path.is_file():
        raise UserError(f"{name}: is not a file")
    if not path.parent.is_dir():
        raise UserError(f"{name}: cannot be written ({path.parent} is not a folder)")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{name}: cannot be written (no permission)")


def check_new_file(file: str | Path, option: str, suffix: str = "") -> None:
    """Refuse an output file that exists, cannot be written, or has another suffix.

    Args:
        file: file to write.
        option: the option that names it, for the message.
        suffix: required end of the name, such as '.npz'; empty for any.

    Raises:
        UserError: see above.
    """
    if suffix and Path(file).suffix != suffix:
        raise UserError(f"{option} {file}: the name must end in {suffix}")
    check_writable_file(file, option)
    if Path(file).exists():
        raise UserError(f"{option} {file}: already exists")


@contextmanager
def writing(option: str, file: str | Path) -> Iterator[None]:
    """Write the file of an option in the body of the `with`.

    Raises:
        UserError: the file cannot be written, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {file}: cannot be written ({error.strerror})") from None


def check_writable_folder(folder: str | Path, option: str = "") -> None:
    """Refuse an output folder that cannot be created or written to, before any work is done.

    Args:
        folder: it may not exist yet, nor the folders above it.
        option: the option that names it, for the message.

    Raises:
        UserError: the lowest existing path above it is not a folder or not writable.
    """
    existing = Path(folder).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{f'{option} {folder}'.strip()}: {existing} is not a folder that can be written to")
