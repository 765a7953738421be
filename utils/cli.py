"""What every program needs around its work: options, checks of them, errors in one line, Ctrl-C."""

import argparse
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

Number = TypeVar("Number")


class InputError(Exception):
    """An option, list, folder, image or checkpoint that cannot be used.

    The message is one line that names the culprit and says what to do about it.
    """

    def __init__(self, message: str):
        # A DataLoader worker's exception comes back with the worker's traceback as its message;
        # the line that the user needs is the last one.
        last_line = message.rstrip().splitlines()[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.InputError: "))


def run_program(main: Callable[[], int | None]) -> None:
    """Run a program's `main`, and end the process: bad input is one line on stderr and status 1."""
    sys.stdout.reconfigure(line_buffering=True)  # so that a log file can be followed
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        first_line = (str(error).splitlines() or [""])[0].strip()
        if first_line.startswith("DataLoader worker"):
            sys.exit(f"error: {first_line} It loads clips; if memory ran out, try fewer --workers")
        if "/gloo/" in first_line or " by peer" in first_line:
            sys.exit("error: lost another process of this run; what that one said tells why")
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        sys.exit("error: nobody reads the output any more")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Workers that load clips ignore SIGTERM, with which multiprocessing would end them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and a termination wait; processes that are started meanwhile inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def number_type(
    kind: Callable[[str], Number],
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> Callable[[str], Number]:
    """Make a type for argparse: a finite number, written with the digits 0 to 9.

    Args:
        kind: `int`, which takes nothing but digits, `float` or `Fraction`.
        low: the smallest number.
        high: the largest number.
        above: refuse `low` itself.
        below: refuse `high` itself.
    """
    what = "a whole number" if kind is int else "a number"
    if high == math.inf:
        what += f" above {low}" if above else f" of {low} or more"
    elif above:
        what += f" above {low} and {'below' if below else 'at most'} {high}"
    else:
        what += f" from {low} to {'below ' if below else ''}{high}"

    def parse(text: str) -> Number:
        try:
            # Python also reads 1_000, and the digits of every script.
            is_plain = text.isascii() and (text.isdigit() if kind is int else "_" not in text)
            value = kind(text) if is_plain else math.nan
        except (ValueError, ZeroDivisionError):
            value = math.nan
        is_inside = low <= value <= high and value < math.inf
        if not is_inside or (above and value == low) or (below and value == high):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


positive_int = number_type(int, 1)
non_negative_int = number_type(int, 0)
positive_float = number_type(float, 0, above=True)
non_negative_float = number_type(float, 0)


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, not a page of usage with a line at its end."""

    def __init__(self, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=sys.argv[0],
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (for help: python {self.prog} -h)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Ends each help text with the option's default, where it has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        has_none = action.default in (None, "", argparse.SUPPRESS) or isinstance(action.default, bool)
        if has_none or "(default" in action.help:
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})"


def cores() -> int:
    """How many cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_writable_file(file: str | Path, option: str = "") -> None:
    """Refuse a file that cannot be written, before the work whose result it is for; do not touch it.

    Args:
        file: to be written or replaced.
        option: that names it, for the message.

    Raises:
        InputError: it is something other than a file, or permissions or its folder are missing.
    """
    path, name = Path(file), f"{option} {file}".strip()
    folder = path.parent
    try:
        if path.exists():
            if not path.is_file():
                raise InputError(f"{name}: is not a file")
            if not os.access(path, os.W_OK):
                raise InputError(f"{name}: cannot be written (no permission)")
        if not folder.is_dir():
            raise InputError(f"{name}: cannot be written ({folder} is not a folder)")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{name}: cannot be written (no permission to write to the folder {folder})")
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{name}: cannot be written ({error.strerror})") from None


def check_writable_folder(folder: str | Path, option: str = "") -> None:
    """Refuse a folder that cannot be created or written to, before the work whose results it is for.

    Args:
        folder: it need not exist, nor the folders above it.
        option: that names it, for the message.

    Raises:
        InputError: the first folder above it that exists is not a folder, or must not be written to.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{f'{option} {folder}'.strip()}: {existing} is not a folder that can be written to")
