"""What every program needs around its work: options, checks of them, errors in one line, Ctrl-C."""

import argparse
import errno
import logging
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

Number = TypeVar("Number")


class UserError(Exception):
    """What the user of a program can mend: an option, a file, a full disk, a learning rate that is too large.

    The message is one line that names the culprit and says what to do about it.
    """

    status = 1


class BusyError(UserError):
    """Another process is doing it already."""

    status = 75  # EX_TEMPFAIL of sysexits.h: later it may succeed


def one_line(text: str) -> str:
    """A text with its line breaks and other control characters escaped, tabs aside."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def printable(name: object, limit: int = 200) -> str:
    """What to print of a name or value that comes from data: escaped, and at most `limit` characters."""
    text = one_line(str(name)[: limit + 1]).replace("\t", "\\t")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def pluralize(number: int, noun: str) -> str:
    """A number and what it counts, which has a regular plural: '1 video', '2 videos'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Output:
    """Standard output or standard error, that a program can do without.

    A full disk or a closed stream costs its text and nothing else. If nobody reads it any more (a broken
    pipe), the program ends, unless `when_broken` says otherwise.

    Args:
        name: of the attribute of `sys`: 'stdout' or 'stderr'.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.when_broken: Callable[[], None] | None = None
        self.stream = getattr(sys, name)
        self.is_lost = self.stream is None
        if self.stream is None:  # closed; a file that takes its number would be written to
            self.stream = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open as long as the process
        elif hasattr(self.stream, "reconfigure"):
            # Line by line, so that a log file can be followed; whatever a terminal cannot show is escaped.
            self.stream.reconfigure(line_buffering=True, errors="backslashreplace")

    def write(self, text: str) -> int:
        """As a stream's."""
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        self._attempt(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, call: Callable, *args: str) -> None:
        try:
            call(*args)
        except OSError as error:
            self.is_lost = True
            # From now on into the void, also what the stream holds back and tries again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if isinstance(error, BrokenPipeError):
                if self.when_broken is None:
                    raise
                self.when_broken()
            else:
                other = sys.stdout if self.name == "stderr" else sys.stderr
                print(f"warning: no more lines on {self.name} ({error.strerror})", file=other)


class _Terminal(logging.Handler):
    """Shows what is logged, above any progress bar: warnings and errors on stderr, the rest on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class OneLine(logging.Formatter):
    """Formats a record as one line, whatever is in the names that it mentions; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name for it
        return one_line(super().formatMessage(record))


# What main.py and test_models.py, and all that they use, have to say.
log = logging.getLogger(__name__)  # another one for each clone that torch.hub loads
log.setLevel(logging.INFO)
log.propagate = False
_terminal = _Terminal()
_terminal.setFormatter(OneLine())
log.addHandler(_terminal)


# What a program has to undo when it ends: the locks and log files of a run.
at_end = ExitStack()


def run_program(
    main: Callable[..., int | None], parse: Callable[[], argparse.Namespace] | None = None
) -> None:
    """Run a program, and end the process: a `UserError` is one line on stderr, and its status.

    Args:
        main: the program.
        parse: gives the options that it is called with.
    """
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    sys.stdout, sys.stderr = Output("stdout"), Output("stderr")
    if len(closed) == 1:
        print(f"warning: {closed[0]} is closed", file=sys.stdout if closed == ["stderr"] else sys.stderr)
    try:
        sys.exit(main(parse()) if parse else main())
    except UserError as error:
        log.error("error: %s", error)
        sys.exit(error.status)
    except BrokenPipeError:
        log.error("error: nobody reads the output any more")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # no room, no permission: where that was not foreseen
        where = f"{printable(error.filename)}: " if error.filename else ""
        advice = "; raise the limit (ulimit -n) or try fewer --workers" if error.errno == errno.EMFILE else ""
        log.error("error: %s", f"{where}{error.strerror or error}{advice}")
        sys.exit(1)
    except Exception as error:
        if _is_out_of_memory(error):
            log.error("error: out of memory; try a smaller batch, fewer frames or fewer --workers")
        else:  # a mistake in the code, whose traceback belongs in the log file, too
            log.critical("unexpected error:", exc_info=True)
        sys.exit(1)
    finally:
        # Objects that an error left half-built, such as torch's loader, may complain when they are deleted.
        sys.unraisablehook = lambda _: None
        # Workers that load clips ignore SIGTERM, with which multiprocessing would end them.
        for child in multiprocessing.active_children():
            child.kill()
        with suppress(OSError):
            at_end.close()


def _is_out_of_memory(error: Exception) -> bool:
    # torch has an exception of its own for GPUs, and none for CPUs.
    named_so = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named_so or "can't allocate memory" in str(error)


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


# Nothing is counted beyond this.
MOST = 10**9
positive_int = number_type(int, 1, MOST)
non_negative_int = number_type(int, 0, MOST)
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

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; but `--an_option` may also be written `--an-option`, and the other way round."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._known_spelling(word) for word in words], namespace)

    def _known_spelling(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        for known in self._option_string_actions:
            if known.startswith("--") and known.replace("-", "_") == name.replace("-", "_"):
                return known + equals + value
        return word

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Python before 3.12.5 takes `--option=--` for an empty list.
        if action.option_strings and "--" in arg_strings:
            raise argparse.ArgumentError(action, "'--' is not a value")
        # It would be the working folder, no file at all, or the same as no option.
        if action.option_strings and "" in arg_strings and action.default != "":
            raise argparse.ArgumentError(action, "is empty, as from an empty variable of a shell")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        message = one_line(message[:1000])
        self.exit(2, f"error: {message} (for help: python {self.prog} -h)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Ends each help text with the option's default, where it has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        has_none = action.default in (None, "", argparse.SUPPRESS) or isinstance(action.default, bool)
        if has_none or "(default" in action.help:
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})"


def environment_number(name: str, default: int | None = None) -> int:
    """Read a whole number that torchrun puts into the environment.

    Raises:
        UserError: it is something else, or missing and without a default.
    """
    value = os.environ.get(name, "" if default is None else str(default))
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        told = f"is {printable(value)!r}" if name in os.environ else "is missing"
        raise UserError(f"environment variable {name}: {told}; torchrun sets it to a whole number")
    return int(value)


def cores() -> int:
    """How many cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_writable_file(file: str | Path, option: str = "") -> None:
    """Refuse a file that cannot be written, before the work whose result it is for; do not touch it.

    Args:
        file: to be written or replaced.
        option: that names it, for the message.

    Raises:
        UserError: it is something other than a file, or permissions or its folder are missing.
    """
    path, name = Path(file), f"{option} {file}".strip()
    folder = path.parent
    try:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{name}: is a symbolic link that leads nowhere")
        if path.exists():
            if not path.is_file():
                raise UserError(f"{name}: is not a file")
            if not os.access(path, os.W_OK):
                raise UserError(f"{name}: cannot be written (no permission)")
        if not folder.is_dir():
            raise UserError(f"{name}: cannot be written ({folder} is not a folder)")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{name}: cannot be written (no permission to write to the folder {folder})")
        with suppress(FileNotFoundError):
            path.with_name(f".{path.name}.part").lstat()  # what it is called while it is written
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{name}: cannot be written ({error.strerror})") from None


def check_new_file(file: str | Path, option: str, suffix: str = "") -> None:
    """Refuse a file for a result that already exists, cannot be written, or has another suffix.

    Args:
        file: to be written.
        option: that names it, for the message.
        suffix: that its name must have, such as '.npz'; empty for any.

    Raises:
        UserError: which, and why.
    """
    if suffix and Path(file).suffix != suffix:
        raise UserError(f"{option} {file}: the name must end in {suffix}")
    check_writable_file(file, option)
    if Path(file).exists():
        raise UserError(f"{option} {file}: already exists")


@contextmanager
def writing(option: str, file: str | Path) -> Iterator[None]:
    """Write a file that an option names in the body of the `with`.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {file}: cannot be written ({error.strerror})") from None


def check_writable_folder(folder: str | Path, option: str = "") -> None:
    """Refuse a folder that cannot be created or written to, before the work whose results it is for.

    Args:
        folder: it need not exist, nor the folders above it.
        option: that names it, for the message.

    Raises:
        UserError: the first folder above it that exists is not a folder, or must not be written to.
    """
    existing = Path(folder).absolute()
    try:
        while not existing.exists():
            if existing.is_symlink():
                raise UserError(
                    f"{f'{option} {folder}'.strip()}: {existing} is a symbolic link that leads nowhere"
                )
            existing = existing.parent
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{f'{option} {folder}'.strip()}: cannot be written ({error.strerror})") from None
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{f'{option} {folder}'.strip()}: {existing} is not a folder that can be written to")
