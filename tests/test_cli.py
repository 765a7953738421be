"""utils/cli.py and the output checks of utils/files.py: numbers, one-line errors, lost output."""

import argparse
import os
import shlex
import sys
from fractions import Fraction

import pytest
from helpers import REPOSITORY, finish

from utils.cli import UserError, number_type, positive_int
from utils.files import check_new_file, check_writable_folder

PERCENT = number_type(int, 1, 100)
SHARE = number_type(float, 0, 1, below=True)
RATE = number_type(Fraction, 0, 1000, above=True)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (positive_int, ["", "0", "-1", "1.0", "1e1", "9" * 5000]),
        (PERCENT, ["0", "101"]),
        (SHARE, ["1", "-0.1", "nan"]),
        (RATE, ["0", "1/0", "1001", "x"]),
    ],
)
def test_number_out_of_range_is_refused(kind, texts):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}' is not a "):
            kind(text)


def test_number_in_range():
    assert (SHARE("0.999"), RATE("1/2"), positive_int("007")) == (0.999, Fraction(1, 2), 7)


def test_unwritable_paths_are_refused(tmp_path):
    (tmp_path / "file").touch()
    wrong = [
        (check_new_file, tmp_path),
        (check_new_file, tmp_path / "none" / "new"),
        (check_new_file, tmp_path / "file"),
        (check_writable_folder, tmp_path / "file" / "a" / "b"),
    ]
    for check, path in wrong:
        with pytest.raises(UserError, match=f"^--out {path}: "):
            check(path, "--out")
    with pytest.raises(UserError, match=r"^--out .*\.npz$"):
        check_new_file(tmp_path / "new.txt", "--out", ".npz")
    check_new_file(tmp_path / "new.npz", "--out", ".npz")
    check_writable_folder(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# A program that ends with the statements of its first argument.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from utils.cli import UserError, log, printable, run_program

class HalfBuilt:
    def __del__(self):
        raise AttributeError("noise of a destructor")

def main():
    for number in range(10_000):  # more than a pipe holds
        log.info("logged")
        print("printed")
    log.info("clip \\u00fc a\\nb\\x1b[2J\\tc")
    exec(sys.argv[1])

run_program(main)
"""


def run_program(redirection, ending="pass", **env):
    command = shlex.join([sys.executable, "-c", PROGRAM, ending])
    return finish(["bash", "-c", f"set -o pipefail; {command} {redirection}"], env=os.environ | env)


@pytest.mark.parametrize(
    ("redirection", "status", "words"),
    [
        (">/dev/null", 0, []),
        ("| head -1", 1, ["output pipe closed"]),
        (">/dev/full", 1, ["No space left"]),
        (">/dev/full 2>&1", 1, []),
    ],
)
def test_lost_output_ends_a_program(redirection, status, words):
    done = run_program(redirection)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, len(words))
    assert all(word in done.stderr for word in words)


@pytest.mark.parametrize(
    ("ending", "status", "words"),
    [
        ("raise UserError('a.txt: no such\\nfile')", 1, "error: a.txt: no such\\nfile"),
        ("half_built = HalfBuilt(); raise OSError(24, 'Too many open files')", 1, "ulimit -n"),
        ("raise OSError(28, 'No space left on device', '/a/file')", 1, "/a/file: No space left on device"),
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 9 bytes")', 1, "out of memory"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_expected_error_is_one_line(ending, status, words):
    done = run_program(">/dev/null", ending)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == bool(words), done.stderr
    assert words in done.stderr


def test_bug_has_a_traceback():
    done = run_program(">/dev/null", "1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_ascii_locale_escapes_names():
    done = run_program("| tail -1", "raise UserError(printable('\\u00fc' * 300))", LC_ALL="C", PYTHONUTF8="0")
    assert done.stdout == "clip \\xfc a\\nb\\x1b[2J\tc\n"
    assert done.stderr == "error: " + "\\xfc" * 199 + "\\u2026\n"
