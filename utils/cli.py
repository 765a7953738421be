"""Option parsing, the log, and one-line errors for all programs."""

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
from typing import Any, NoReturn

from tqdm import tqdm


class UserError(Exception):
    """An error that the user can fix. The message is one line: it names the cause and says what to do."""

    status = 1  # exit status of the program


def one_line(text: str) -> str:
    """Escape line breaks and other control characters except tabs."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def printable(name: object, limit: int = 200) -> str:
    """Format a name or value from a file: escape control characters, and cut it to `limit` characters."""
    text = one_line(str(name)[: limit + 1]).replace("\t", "\\t")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def pluralize(number: int, noun: str) -> str:
    """Format a number and a noun with a regular plural: '1 video', '2 videos'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_ten(names: Sequence[str]) -> str:
    """Join the first ten names, and say how many more there are."""
    return ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")


class OneLine(logging.Formatter):
    """Format a record as one line with control characters escaped, followed by the traceback, if any."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return one_line(super().formatMessage(record))


class _Terminal(logging.Handler):
    """Write records above any progress bar: warnings and errors to stderr, the rest to stdout."""

    # Called when the output is closed. A training run sets it in order to save before it stops.
    on_lost_output: Callable[[], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except OSError:  # a broken pipe, a lost terminal, or a full disk
            discard_lost_output()
            if self.on_lost_output is None:
                raise
            self.on_lost_output()


terminal = _Terminal()
terminal.setFormatter(OneLine())
log = logging.getLogger(__name__)  # torch.hub loads each clone under another name
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(terminal)

# Callbacks for the end of the program, such as releasing the lock of a run.
at_end = ExitStack()


def run_program(
    main: Callable[..., int | None], parse: Callable[[], argparse.Namespace] | None = None
) -> None:
    """Run a program with the options of `parse`, and end the process. Expected errors take one line.

    `main` may return an exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        # Line buffering shows each line at once in a log file. Some locales cannot encode every name.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        status = main(parse()) if parse else main()
    except SystemExit as error:
        status = error.code
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        # Deleting incomplete objects must not print a traceback after the message.
        sys.unraisablehook = lambda _: None
        with suppress(OSError):  # stderr may be lost, too
            if message := _describe_error(error):
                log.error("error: %s", message)
            else:
                log.critical("unexpected error:", exc_info=True)
        status = error.status if isinstance(error, UserError) else 1
    # Loader processes ignore SIGTERM, which multiprocessing would send them.
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError):
        at_end.close()
    discard_lost_output()
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        # After an error, a process of torchrun must not wait for the others, because they wait for it.
        os._exit(status or 0)
    sys.exit(status)


def _describe_error(error: Exception) -> str | None:
    """Describe an expected error in one line; None for a bug, which needs its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "output pipe closed"
    if isinstance(error, OSError):
        path = f"{printable(error.filename)}: " if error.filename else ""
        advice = "; raise the limit (ulimit -n) or try fewer --workers" if error.errno == errno.EMFILE else ""
        return f"{path}{error.strerror or error}{advice}"
    # torch has an exception class for GPU memory only.
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory_error or "can't allocate memory" in str(error):
        return "out of memory; try a smaller batch, fewer frames or fewer --workers"
    return None


def discard_lost_output() -> None:
    """Redirect broken output streams to the null device, so that Python's flush at exit does not fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the body. Processes started in the body inherit this."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def number_type(
    kind: type, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Callable[[str], Any]:
    """Make an argparse type for finite numbers of a kind (`int`, `float`, `Fraction`) from `low` to `high`.

    `above` excludes `low`, `below` excludes `high`.
    """
    name = "a whole number" if kind is int else "a number"
    expected = f"{name} {'above' if above else 'of at least'} {low}"
    if high < math.inf:
        expected += f" and {'below' if below else 'at most'} {high}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, ZeroDivisionError):
            value = math.nan
        is_excluded = (above and value == low) or (below and value == high) or value == math.inf
        if is_excluded or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return parse


positive_int = number_type(int, 1, 10**9)
non_negative_int = number_type(int, 0, 10**9)
positive_float = number_type(float, 0, above=True)
non_negative_float = number_type(float, 0)


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors, which accepts both `_` and `-` in the names of options."""

    def __init__(self, description: str, epilog: str = "") -> None:
        super().__init__(
            sys.argv[0], None, description, epilog, formatter_class=_HelpFormatter, allow_abbrev=False
        )

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # `--an-option` is `--an_option`, and vice versa.
        spellings = {name.replace("-", "_"): name for name in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            name = spellings.get(name.replace("-", "_"), name)
            words.append(name + equals + value if word.startswith("--") else word)
        return super().parse_known_args(words, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # An empty path would mean the working folder.
        if "" in arg_strings and action.default != "":
            raise argparse.ArgumentError(action, "is empty (an unset shell variable?)")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """End the program with one line on stderr and status 2."""
        self.exit(2, f"error: {one_line(message[:1000])} (for help: python {self.prog} -h)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Append the default to each help text, unless the text already mentions it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default in (None, "", argparse.SUPPRESS) or isinstance(default, bool) or "(default" in action.help:
            return action.help
        values = default if isinstance(default, list) else [default]
        return f"{action.help} (default: {' '.join(map(str, values))})"
