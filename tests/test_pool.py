"""utils/pool.py: progress of the tools. test_extract_frames.py has the processes."""

import sys

from helpers import REPOSITORY, finish

from utils.pool import progress_bar

CTRL_C_MEANWHILE = """
import os, signal, time
from utils.cli import uninterrupted
from utils.pool import progress_bar
signal.signal(signal.SIGINT, signal.default_int_handler)
with progress_bar(1):
    try:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            print("done")
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_waits_alongside_a_progress_bar():
    """tqdm starts a thread, which could receive a signal that the main thread blocks."""
    process = finish([sys.executable, "-c", CTRL_C_MEANWHILE], cwd=REPOSITORY)
    assert process.stdout.split() == ["done", "interrupted"], process.stderr


def test_progress_without_a_terminal_is_lines(capsys, monkeypatch):
    monkeypatch.setattr("utils.pool._SECONDS_BETWEEN_LINES", 0.0)
    with progress_bar(3, initial=1) as bar:
        bar.update()
        bar.update()
    out, err = capsys.readouterr()
    assert (err, out.count("\r")) == ("", 0)
    assert out.splitlines()[-1].startswith("3 of 3 videos, ")
