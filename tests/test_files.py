"""utils/files.py: regular files only, and written completely or not at all."""

import os
from pathlib import Path

import pytest
from helpers import files_limited_to

from utils.cli import UserError
from utils.files import open_regular, read_text, staged, to_csv, write_files, write_new


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_are_renamed_after_the_body(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("precious")
    (tmp_path / ".a.part").symlink_to(tmp_path / "other")  # replaced, not written to
    with (tmp_path / "a").open() as reader:
        with staged({tmp_path / "a": b"new", tmp_path / "b": b"new"}):
            assert files_in(tmp_path) == {"a": "old", ".a.part": "new", ".b.part": "new", "other": "precious"}
        assert reader.read() == "old"
    assert files_in(tmp_path) == {"a": "new", "b": "new", "other": "precious"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_body_changes_nothing(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), staged({tmp_path / "a": b"new"}):
        raise error
    assert files_in(tmp_path) == {"a": "old"}


def test_failed_write_changes_nothing(tmp_path):
    path = tmp_path / "a"
    write_files({path: b"first"})
    with files_limited_to(1000), pytest.raises(OSError, match="File too large"):
        write_files({path: bytes(5000)})
    for wrong in (path / "below", tmp_path / "none" / "a"):
        with pytest.raises(OSError):
            write_files({wrong: b"second"})
    assert files_in(tmp_path) == {"a": "first"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "no such file (class names)"),
        (lambda path: path.write_bytes(b"one\ntwo\xff"), "line 2"),
    ],
)
def test_only_regular_text_is_read(tmp_path, make, reason):
    path = tmp_path / "a"
    make(path)
    with pytest.raises(UserError) as caught:
        read_text(path, "class names")
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)
    if "line" not in reason:
        with pytest.raises(OSError):
            open_regular(path)


def test_texts_are_utf8_with_unix_line_ends(tmp_path):
    write_files({tmp_path / "a": "Äpfel\n"})
    assert (tmp_path / "a").read_bytes() == "Äpfel\n".encode()
    (tmp_path / "a").write_bytes("\ufeffone\r\ntwo\u2028\x0b\rthree\n".encode())
    assert read_text(tmp_path / "a") == "one\ntwo\u2028\x0b\nthree\n"


def test_new_file_never_replaces_another(tmp_path):
    path = tmp_path / "scores.npz"
    write_new(path, b"first")
    with pytest.raises(FileExistsError):
        write_new(path, b"second")
    assert files_in(tmp_path) == {"scores.npz": "first"}


def test_csv():
    assert to_csv([["a,b", 1, None], ["not UTF-8: \udce9"]]) == b'"a,b",1,\nnot UTF-8: \\udce9\n'
