"""utils/pool.py: Ctrl-C beside a progress bar. test_extract_frames.py has the processes."""

import sys

from helpers import REPOSITORY, finish

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
