"""utils/cli.py: which numbers and which places for files it takes, and how it refuses the others."""

import argparse
import math
import os
from fractions import Fraction

import pytest

from utils.cli import (
    UserError,
    check_writable_file,
    check_writable_folder,
    non_negative_float,
    non_negative_int,
    number_type,
    positive_float,
    positive_int,
)

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
        (positive_int, "0", "'0' is not a whole number of 1 or more"),
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
    assert positive_int("1" * 400) > 10**399 > math.e


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
    return {
        tmp_path: "is not a file",
        tmp_path / "none" / "new": "is not a folder",
        tmp_path / "file" / "new": "is not a folder",
        tmp_path / ("n" * 300): "File name too long",
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
