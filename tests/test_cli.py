"""utils/cli.py: which numbers and which places for files it takes, and how it refuses the others."""

import argparse
import math
import os
import shlex
import sys
from fractions import Fraction

import pytest
from helpers import REPOSITORY, finish

from utils.cli import (
    UserError,
    non_negative_float,
    non_negative_int,
    number_type,
    positive_float,
    positive_int,
)
from utils.files import check_writable_file, check_writable_folder

PERCENT = number_type(int, 1, 100)
SHARE = number_type(float, 0, 1, below=True)
RATE = number_type(Fraction, 0, 1000, above=True)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive_int, "1", 1),
        (non_negative_int, "0", 0),
        (non_negative_int, "007", 7),
        (positive_float, "1e-3", 0.001),
        (positive_float, "+2", 2.0),
        (non_negative_float, "0", 0.0),
        (PERCENT, "100", 100),
        (SHARE, "0.999", 0.999),
        (RATE, "24000/1001", Fraction(24000, 1001)),
        (RATE, "12.5", Fraction(25, 2)),
    ],
)
def test_numbers(kind, text, value):
    parsed = kind(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["", "a", "1_0", "١", "²", "+1", "-1", " 1", "1.0", "1e1", "0x1", "9" * 5000]
)
def test_whole_numbers_are_digits_only(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 0 to 1000$"):
        number_type(int, 0, 1000)(text)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive_int, "0", "'0' is not a whole number from 1 to 1000000000"),
        (PERCENT, "101", "'101' is not a whole number from 1 to 100"),
        (SHARE, "1", "'1' is not a number from 0 to below 1"),
        (SHARE, "-0.1", "'-0.1' is not a number from 0 to below 1"),
        (RATE, "0", "'0' is not a number above 0 and at most 1000"),
        (RATE, "1/0", "'1/0' is not a number above 0 and at most 1000"),
        (positive_float, "0", "'0' is not a number above 0"),
        (non_negative_float, "nan", "'nan' is not a number of 0 or more"),
        (non_negative_float, "inf", "'inf' is not a number of 0 or more"),
        (non_negative_float, "1_0", "'1_0' is not a number of 0 or more"),
        (non_negative_float, "١", "'١' is not a number of 0 or more"),
    ],
)
def test_other_numbers_are_refused(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    assert str(caught.value) == message


def test_whole_numbers_may_be_larger_than_a_float():
    assert number_type(int, 1)("1" * 400) > 10**399 > math.e


def test_a_file_that_can_be_written_is_not_touched(tmp_path):
    old = tmp_path / "old"
    old.write_text("precious")
    check_writable_file(old)
    check_writable_file(tmp_path / "new", "--json")
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "precious"


def refusals(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "dangling").symlink_to("nothing")
    return {
        tmp_path: "is not a file",
        tmp_path / "none" / "new": "is not a folder",
        tmp_path / "file" / "new": "is not a folder",
        tmp_path / ("n" * 300): "File name too long",
        tmp_path / ("n" * 250): "File name too long",  # as it is called while it is written
        tmp_path / "dangling": "is a symbolic link that leads nowhere",
    } | ({} if os.access(tmp_path / "closed", os.W_OK) else {tmp_path / "closed" / "new": "no permission"})


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    for path, reason in refusals(tmp_path).items():
        with pytest.raises(UserError) as caught:
            check_writable_file(path, "--json")
        assert str(caught.value).startswith(f"--json {path}: ")
        assert reason in str(caught.value)


def test_a_folder_may_be_several_levels_below_the_first_that_exists(tmp_path):
    (tmp_path / "file").touch()
    check_writable_folder(tmp_path)
    check_writable_folder(tmp_path / "a" / "b")
    with pytest.raises(UserError) as caught:
        check_writable_folder(tmp_path / "file" / "a" / "b", "--out")
    assert str(caught.value).startswith(f"--out {tmp_path / 'file' / 'a' / 'b'}: {tmp_path / 'file'} is not")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(UserError, match="dangling is a symbolic link that leads nowhere"):
        check_writable_folder(tmp_path / "dangling" / "a")


# ---------------------------------------------------------------------------------------------------------
# Standard output and error that fail.

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from utils.cli import UserError, log, run_program

def main():
    for number in range(1000):
        print("printed", number)
        log.info("logged")
    log.warning("warning: something")
    Path(sys.argv[2]).write_text("finished")
    if sys.argv[3:]:
        raise UserError("wrong")

run_program(main)
"""


def run_shell(tmp_path, redirection, *more):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", REPOSITORY, tmp_path / "work", *more]
    line = f"{shlex.join(map(str, command))} {redirection}"
    return finish(["bash", "-c", f"set -o pipefail; {line}"])


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        (">/dev/full", "warning: no more lines on stdout (No space left on device)\nwarning: something\n"),
        (">&-", "warning: stdout is closed\nwarning: something\n"),
        ("2>/dev/full >/dev/null", ""),
        ("2>&- >/dev/null", ""),
        (">&- 2>&-", ""),
        (">/dev/full 2>&1", ""),
        ("<&-", "warning: something\n"),
    ],
)
def test_output_that_is_full_or_closed_costs_its_text_alone(tmp_path, redirection, words):
    done = run_shell(tmp_path, redirection)
    assert (done.returncode, done.stderr) == (0, words)
    assert (tmp_path / "work").read_text() == "finished"
    assert run_shell(tmp_path, redirection, "fail").returncode == 1


@pytest.mark.parametrize(
    ("redirection", "words"),
    [("2>/dev/full", "no more lines on stderr (No space left on device)"), ("2>&-", "stderr is closed")],
)
def test_standard_error_that_is_lost_is_reported_on_standard_output(tmp_path, redirection, words):
    assert f"warning: {words}" in run_shell(tmp_path, redirection).stdout.splitlines()


def test_a_broken_pipe_ends_a_program(tmp_path):
    done = run_shell(tmp_path, "| head -1")
    assert (done.returncode, done.stdout) == (1, "printed 0\n")
    assert done.stderr == "error: nobody reads the output any more\n"
    assert not (tmp_path / "work").exists()


def test_what_a_terminal_cannot_show_is_escaped(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from utils.cli import UserError, log, run_program, printable

def main():
    log.info("clip \u00fc a\\nb\\x1b[2J\tc")
    print("\u2026")
    raise UserError(f"{{printable('x' * 300)}}: no\\nsuch file")

run_program(main)
"""
    done = finish([sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.splitlines() == ["clip \\xfc a\\nb\\x1b[2J\tc", "\\u2026"]
    assert done.stderr == f"error: {'x' * 199}\\u2026: no\\nsuch file\n"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("OSError(24, 'Too many open files')", "Too many open files; raise the limit (ulimit -n)"),
        ("OSError(28, 'No space left on device', '/a/file')", "/a/file: No space left on device"),
        ("MemoryError()", "out of memory"),
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried 9 bytes")', "out of memory"),
    ],
)
def test_what_the_system_lacks_is_one_line(raised, words):
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from utils.cli import run_program

def main():
    raise {raised}

run_program(main)
"""
    done = finish([sys.executable, "-c", code])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
