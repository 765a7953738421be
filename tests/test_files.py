"""utils/files.py: several files are replaced together. What holds for one is in test_checkpoint.py."""

import pytest

from utils.files import staged, write_texts


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
