"""Read only regular files, and write files atomically."""

import csv
import errno
import io
import os
import stat
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.cli import UserError, uninterrupted

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, and refuse others, such as a named pipe, which would block."""
    kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 - called for each frame
    if kind != stat.S_IFREG:
        raise OSError(errno.EISDIR, f"is {_KINDS.get(kind, 'a device')}, not a file", str(path))
    return open(path, "rb")  # noqa: PTH123, SIM115


def read_text(path: str | Path, purpose: str = "") -> str:
    """Read a text file in UTF-8, with or without a byte order mark. Line ends become `\\n`.

    `purpose` is a part of the message if the file is missing.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file" + (f" ({purpose})" if purpose else "")) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: cannot be read (is not UTF-8 text)") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_files(contents: Mapping[Path, bytes | str]) -> None:
    """Write files atomically, all or none of them, see `staged`; texts are written in UTF-8."""
    with staged(contents):
        pass


def to_csv(rows: Iterable[Sequence[object]], delimiter: str = ",") -> bytes:
    """Format rows of cells as the content of a CSV file. None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def write_new(path: Path, content: bytes) -> None:
    """Write a new file atomically. An existing file is never replaced, even if it has just appeared."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        give_name(part, path)
    finally:
        part.unlink(missing_ok=True)


def give_name(part: Path, path: Path) -> None:
    """Give a complete file its name, but never the name of an existing file."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this disk
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        part.replace(path)


def npz(**arrays: Any) -> bytes:
    """Encode arrays as an npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@contextmanager
def staged(contents: Mapping[Path, bytes | str]) -> Iterator[None]:
    """Write files under hidden names, and rename them at the end of the `with` block.

    All files are on the disk before the first one is renamed, so that after a power cut a file has either its
    old or its new content. Ctrl-C and SIGTERM wait until all are renamed. After an error, existing files are
    unchanged.
    """
    parts = {path: path.with_name(f".{path.name}.part") for path in contents}
    try:
        for path, part in parts.items():
            part.unlink(missing_ok=True)  # left by a killed process
            content = contents[path]
            with part.open("xb") as file:
                file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        yield
        with uninterrupted():
            for path, part in parts.items():
                part.replace(path)
    finally:
        for part in parts.values():
            with suppress(OSError):  # the first error is the one to report
                part.unlink(missing_ok=True)


def check_new_file(file: str | Path, option: str, suffix: str = "") -> None:
    """Refuse an option's output file that exists, cannot be written, or has another suffix."""
    path, name = Path(file), f"{option} {file}"
    if suffix and path.suffix != suffix:
        raise UserError(f"{name}: the name must end in {suffix}")
    if path.exists():
        raise UserError(f"{name}: already exists")
    if not path.parent.is_dir():
        raise UserError(f"{name}: cannot be written ({path.parent} is not a folder)")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{name}: cannot be written (no permission)")


def check_new_files(args: Namespace, suffixes: dict[str, str]) -> None:
    """Refuse the output files of several options, see `check_new_file`, or a file used by two of them.

    Args:
        args: the options; their values may be None, or '-' for stdout if there is no suffix.
        suffixes: the suffix of each option's file.
    """
    options: dict[Path, str] = {}
    for option, suffix in suffixes.items():
        file = getattr(args, option)
        if file and (file != "-" or suffix):
            check_new_file(file, f"--{option}", suffix)
            other = options.setdefault(Path(file).resolve(), option)
            if other != option:
                raise UserError(f"--{option} {file}: is also the file of --{other}")


@contextmanager
def writing(option: str, file: str | Path) -> Iterator[None]:
    """Report an error in the `with` block as an error of an option's output file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{f'{option} {file}'.strip()}: cannot be written ({error.strerror})") from None


def check_writable_folder(folder: str | Path, option: str = "") -> None:
    """Check before the work begins that an output folder can be created or written to."""
    existing = Path(folder).absolute()
    with writing(option, folder):  # the name may be too long
        while not existing.exists():
            existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{f'{option} {folder}'.strip()}: {existing} is not a writable folder")
