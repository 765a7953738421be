"""Mistakes in what a user gave: told in one line, without a traceback."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable


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
