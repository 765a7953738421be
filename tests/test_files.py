"""utils/files.py: several files are replaced together. What holds for one is in test_checkpoint.py."""

import os
import socket

import pytest

from utils.cli import UserError
from utils.files import open_regular, read_text, staged, write_texts


def files_in(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_texts_are_utf8_with_unix_line_ends(tmp_path):
    write_texts({tmp_path / "a": "Äpfel\n", tmp_path / "b": ""})
    assert (tmp_path / "a").read_bytes() == "Äpfel\n".encode()
    assert (tmp_path / "b").read_bytes() == b""


def test_files_take_their_places_after_the_body(tmp_path):
    (tmp_path / "a").write_text("old")
    with staged({tmp_path / "a": b"new", tmp_path / "b": b"new"}):
        assert files_in(tmp_path) == {"a": "old", ".a.part": "new", ".b.part": "new"}
    assert files_in(tmp_path) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_body_that_fails_leaves_the_files_as_they_are(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), staged({tmp_path / "a": b"new"}):
        raise error
    assert files_in(tmp_path) == {"a": "old"}


def test_what_lies_in_the_place_of_a_part_is_neither_waited_for_nor_written_to(tmp_path):
    (tmp_path / "other").write_text("precious")
    for make in (os.mkfifo, lambda part: part.symlink_to(tmp_path / "other")):
        make(tmp_path / ".a.part")
        write_texts({tmp_path / "a": "new"})
        assert files_in(tmp_path) == {"a": "new", "other": "precious"}


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is a named pipe, not a file"),
        (os.mkdir, "is a folder, not a file"),
        (make_socket, "is a socket, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "no such file; it holds names"),
        (lambda path: path.write_bytes(b"one\ntwo\xff"), "a, line 2: cannot be read (is not UTF-8 text)"),
    ],
)
def test_only_regular_files_are_read(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(tmp_path / "a" if make is not make_socket else "a")
    with pytest.raises(UserError) as caught:
        read_text(tmp_path / "a", "it holds names")
    assert str(tmp_path / "a") in str(caught.value)
    assert words in str(caught.value)
    if "line" not in words:
        with pytest.raises(OSError):
            open_regular(tmp_path / "a")


def test_lines_end_as_anywhere(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffone\r\ntwo\u2028\x0b\rthree\n".encode())
    assert read_text(tmp_path / "a") == "one\ntwo\u2028\x0b\nthree\n"
