"""utils/annotations.py: small annotations of each data set. Whole runs are in test_process_dataset.py."""

import json

import pytest

from utils.annotations import Video, read_annotations, read_test_list
from utils.cli import UserError


def test_v1_sorts_its_classes(tmp_path):
    texts = {"labels": "Up\nDown\n", "train": "7;Up\n", "validation": "8;Down\n", "test": "9\n"}
    for part, text in texts.items():
        (tmp_path / f"something-something-v1-{part}.csv").write_text(text)
    categories, lists = read_annotations("somethingv1", tmp_path)
    assert categories == ["Down", "Up"]
    assert lists == {
        "train_videofolder.txt": [Video("7", 1)],
        "val_videofolder.txt": [Video("8", 0)],
        "test_videofolder.txt": [Video("9", None)],
    }


def test_v2_keeps_its_numbers_and_needs_no_test_list(tmp_path):
    entry = {"id": "7", "template": "Moving [something] up"}
    texts = {"labels": {"Moving something up": "1", "Down": "0"}, "train": [entry], "validation": [entry]}
    for part, content in texts.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    categories, lists = read_annotations("somethingv2", tmp_path)
    assert categories == ["Down", "Moving something up"]
    assert lists == {"train_videofolder.txt": [Video("7", 1)], "val_videofolder.txt": [Video("7", 1)]}


def test_diving48_has_ranges(tmp_path):
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps([["Back", "PIKE"]]))
    entry = {"vid_name": "a", "label": 0, "start_frame": 2, "end_frame": 9}
    for part in ("train", "test"):
        (tmp_path / f"Diving48_V2_{part}.json").write_text(json.dumps([entry]))
    categories, lists = read_annotations("diving48", tmp_path)
    assert categories == ["Back_PIKE"]
    assert lists["val_videofolder.txt"] == [Video("a", 0, start=2, end=9)]


def test_a_test_list_is_folders_and_numbers(tmp_path):
    path = tmp_path / "test_videofolder.txt"
    path.write_text("a b 12\n\nc 3\n")
    assert read_test_list(path) == [Video("a b", None, 12), Video("c", None, 3)]
    path.write_text("a b 12\nc\n")
    with pytest.raises(UserError, match=r"test_videofolder\.txt, line 2: 'c' is not"):
        read_test_list(path)
