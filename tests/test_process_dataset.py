"""tools/process_dataset.py on the annotation files as the data sets' pages offer them."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, assert_one_line_error, call, files_limited_to, finish
from PIL import Image
from video_files import cut, remux, write_audio, write_video

from annotations import read_annotations
from classes import read_categories, released_categories
from dataset import read_list
from frames.video import decode
from utils.files import write_texts

TOOL = "tools/process_dataset.py"
FRAMES = {
    "somethingv1": ("20bn-something-something-v1", "{:05d}.jpg"),
    "somethingv2": ("20bn-something-something-v2-frames", "{:06d}.jpg"),
    "diving48": ("frames", "{:05d}.jpg"),
}
V2_NAMES = [
    "Pulling something from left to right",
    "Holding something",
    "Approaching something with your camera",
]
DIVES = [
    ["Back", "15som", "05Twis", "FREE"],
    ["Back", "15som", "15Twis", "FREE"],
    ["Forward", "Dive", "NoTwis", "PIKE"],
]


def make_frames(root: Path, dataset: str, folders: dict[str, int]) -> Path:
    """Write frame folders, from their names and numbers of frames."""
    place, template = FRAMES[dataset]
    for name, count in folders.items():
        folder = root / dataset / place / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (32, 32), (number % 256, 90, 40)).save(folder / template.format(number))
    return root / dataset


def annotate_v1(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    parts = {
        # Not sorted, as on the page.
        "labels": "Turning something\nHolding something\nBending something\n",
        "train": "100;Holding something\n7;Turning something\n",
        "validation": "55;Bending something\n",
        "test": "9\n8\n",
    }
    for part, text in parts.items():
        (folder / f"something-something-v1-{part}.csv").write_text(text)
    return folder


def annotate_v2(folder: Path, pattern: str = "labels/{}.json") -> Path:
    def entry(video: str, label: int, things: Sequence[str]) -> dict:
        template = V2_NAMES[label].replace("something", "[something]")
        return {"id": video, "label": "pulling a pen", "template": template, "placeholders": list(things)}

    texts = {
        # Numbered in an order that is not the alphabet's.
        "labels": {name: str(label) for label, name in sorted(enumerate(V2_NAMES), key=lambda pair: pair[1])},
        "train": [entry("78687", 1, ["a pen"]), entry("42326", 0, ["a pen"]), entry("100904", 2, ["a cup"])],
        "validation": [entry("74225", 0, ["a cup"]), entry("116154", 1, ["a box"])],
        "test": [{"id": "1420"}, {"id": "3344"}],
    }
    for part, text in texts.items():
        path = folder / pattern.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text))
    return folder


def annotate_diving48(folder: Path, ends: dict[str, int], start: int = 0) -> Path:
    folder.mkdir(exist_ok=True)

    def entry(name: str, label: int) -> dict:
        return {"vid_name": name, "label": label, "start_frame": start, "end_frame": ends[name]}

    *train, last = ends
    (folder / "Diving48_vocab.json").write_text(json.dumps(DIVES))
    (folder / "Diving48_V2_train.json").write_text(json.dumps([entry(n, i % 3) for i, n in enumerate(train)]))
    (folder / "Diving48_V2_test.json").write_text(json.dumps([entry(last, 1)]))
    return folder


def write_videos(folder: Path, videos: dict[str, int], **how: object) -> Path:
    """Write videos, from their file names and numbers of frames."""
    for name, count in videos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, count, width=48, height=32, **how)
    return folder


V1_FOLDERS = {"100": 5, "7": 4, "55": 3, "9": 6, "8": 3}
V2_FOLDERS = {"78687": 5, "42326": 4, "100904": 3, "74225": 6, "116154": 7, "1420": 3, "3344": 8}


def process(root: Path, dataset: str, *options: object) -> subprocess.CompletedProcess:
    return call(TOOL, "--dataset", dataset, "--root_path", root, "--workers", 2, *options)


def texts(home: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(home.glob("*.txt"))}


def test_v1(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    done = process(tmp_path, "somethingv1", "--annotations", annotate_v1(tmp_path / "csv"))
    assert done.returncode == 0, done.stderr
    assert texts(home) == {
        "category.txt": "Bending something\nHolding something\nTurning something\n",
        "train_videofolder.txt": "100 5 1\n7 4 2\n",
        "val_videofolder.txt": "55 3 0\n",
        "test_videofolder.txt": "9 6\n8 3\n",
        "process_report.txt": "",
    }
    assert "train_videofolder.txt: 2 videos, new" in done.stdout


@pytest.mark.parametrize("pattern", ["something-something-v2-{}.json", "labels/{}.json", "{}.json"])
def test_v2_of_both_releases(pattern: str, tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", V2_FOLDERS)
    done = process(tmp_path, "somethingv2", "--annotations", annotate_v2(tmp_path / "json", pattern))
    assert done.returncode == 0, done.stderr
    assert texts(home) == {
        "category.txt": "".join(f"{name}\n" for name in V2_NAMES),
        "train_videofolder.txt": "78687 5 1\n42326 4 0\n100904 3 2\n",
        "val_videofolder.txt": "74225 6 0\n116154 7 1\n",
        "test_videofolder.txt": "1420 3\n3344 8\n",
        "process_report.txt": "",
    }


def test_diving48_and_its_ranges(tmp_path: Path) -> None:
    folders = {"whole_1": 9, "one_off": 9, "longer": 9, "shorter": 5, "a b_2": 4}
    home = make_frames(tmp_path, "diving48", folders)
    ends = {"whole_1": 9, "one_off": 8, "longer": 6, "shorter": 9, "a b_2": 4}
    done = process(tmp_path, "diving48", "--annotations", annotate_diving48(tmp_path / "json", ends))
    assert done.returncode == 0, done.stderr
    now = texts(home)
    assert now["category.txt"] == "Back_15som_05Twis_FREE\nBack_15som_15Twis_FREE\nForward_Dive_NoTwis_PIKE\n"
    assert now["train_videofolder.txt"] == "whole_1 9 0\none_off 9 1\nlonger 6 2\nshorter 5 0\n"
    assert now["val_videofolder.txt"] == "a b_2 4 1\n"
    assert "test_videofolder.txt" not in now
    assert now["process_report.txt"].splitlines() == [
        "note\ttrain_videofolder.txt\tlonger\tthe folder has 9 frames, the annotation ends at 6",
        "note\ttrain_videofolder.txt\tshorter\tthe folder has 5 of the annotation's 9 frames",
    ]
    # A list that stops before the folder does is in order here.
    assert process(tmp_path, "diving48", "--check").returncode == 0


def test_jester_from_videos_has_v1s_annotations(tmp_path: Path) -> None:
    home, annotations = tmp_path / "jester", annotate_v1(tmp_path / "csv")
    for path in annotations.iterdir():
        path.rename(path.with_name(path.name.replace("something-something", "jester")))
    write_videos(tmp_path / "clips", {f"{name}.webm": count for name, count in V1_FOLDERS.items()})
    done = process(tmp_path, "jester", "--annotations", annotations, "--videos", tmp_path / "clips")
    assert done.returncode == 0, done.stderr
    assert (home / "videos").resolve() == (tmp_path / "clips").resolve()
    assert texts(home)["category.txt"] == "Bending something\nHolding something\nTurning something\n"
    assert texts(home)["train_videofolder.txt"] == "100 5 1\n7 4 2\n"
    assert texts(home)["test_videofolder.txt"] == "9 6\n8 3\n"


def test_diving48_cannot_start_in_the_middle(tmp_path: Path) -> None:
    make_frames(tmp_path, "diving48", {"a": 9, "b": 9})
    annotations = annotate_diving48(tmp_path / "json", {"a": 9, "b": 9}, start=3)
    done = process(tmp_path, "diving48", "--annotations", annotations)
    assert_one_line_error(done, "process_report.txt", "starts at frame 3")


def damage(frames: Path) -> dict[str, str]:
    """Break all but one training and one validation video, and say what is to be reported."""
    shutil.rmtree(frames / "78687")
    (frames / "42326/000002.jpg").unlink()
    last = frames / "74225/000006.jpg"
    last.write_bytes(last.read_bytes()[:-12])
    (frames / "1420/000001.jpg").write_bytes(b"")
    for path in (frames / "3344").iterdir():
        path.unlink()
    return {
        "78687": "no folder",
        "42326": "3 files, but no 000002.jpg; there is 000004.jpg",
        "74225": "000006.jpg cannot be decoded",
        "1420": "000001.jpg cannot be decoded",
        "3344": "empty folder",
    }


def test_problems_are_found_and_left_out_only_when_asked(tmp_path: Path) -> None:
    folders = V2_FOLDERS | {"stranger": 3, "1420": 3, "1421": 3}
    home = make_frames(tmp_path, "somethingv2", folders)
    (home / FRAMES["somethingv2"][0] / ".hidden.part").mkdir()
    annotations = annotate_v2(tmp_path / "json")
    tested = annotations / "labels/test.json"
    tested.write_text(json.dumps([{"id": "1420"}, {"id": "3344"}, {"id": 1421}]))
    assert process(tmp_path, "somethingv2", "--annotations", annotations).returncode == 0
    before = texts(home)
    expected = damage(home / FRAMES["somethingv2"][0])

    done = process(tmp_path, "somethingv2", "--annotations", annotations)
    assert_one_line_error(done, "process_report.txt", "5 problems with 8 videos", "78687", "--skip_missing")
    now = texts(home)
    report = [line.split("\t") for line in now.pop("process_report.txt").splitlines()]
    assert now == {name: text for name, text in before.items() if name != "process_report.txt"}
    problems = {folder: what for kind, _, folder, what in report if kind == "problem"}
    assert problems.keys() == expected.keys()
    for folder, what in expected.items():
        assert problems[folder].startswith(what), problems[folder]
    notes = [(folder, what) for kind, _, folder, what in report if kind == "note"]
    assert notes == [("stranger", "folder without a label")]

    done = process(tmp_path, "somethingv2", "--annotations", annotations, "--skip_missing")
    assert done.returncode == 0, done.stderr
    assert "train_videofolder.txt: 1 of 3 videos, replaced" in done.stdout
    assert "category.txt: 3 classes, unchanged" in done.stdout
    now = texts(home)
    assert now["train_videofolder.txt"] == "100904 3 2\n"
    assert now["val_videofolder.txt"] == "116154 7 1\n"
    assert now["test_videofolder.txt"] == "1421 3\n"

    tested.write_text(json.dumps([{"id": "1420"}, {"id": "3344"}]))
    done = process(tmp_path, "somethingv2", "--annotations", annotations, "--skip_missing")
    assert_one_line_error(done, "none is left for test_videofolder.txt")


def test_other_numbering_is_named(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    frames = home / FRAMES["somethingv1"][0]
    for path in sorted((frames / "7").iterdir()):
        path.rename(path.with_name("0" + path.name))
    (frames / "100/Thumbs.db").touch()
    done = process(tmp_path, "somethingv1", "--annotations", annotate_v1(tmp_path / "csv"))
    assert done.returncode == 1
    report = (home / "process_report.txt").read_text()
    assert "\t7\t4 files, but no 00001.jpg; there is 000001.jpg\n" in report
    assert "\t100\t6 files, but no 00006.jpg; there is Thumbs.db\n" in report


def test_a_video_in_two_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    with (annotations / "something-something-v1-validation.csv").open("a") as file:
        file.write("7;Turning something\n")
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert_one_line_error(done, "1 problem with", "7")
    assert "is already in train_videofolder.txt" in (home / "process_report.txt").read_text()


def test_findings_that_cannot_be_printed_do_not_pass_for_none(tmp_path: Path) -> None:
    make_frames(tmp_path, "somethingv2", V2_FOLDERS)
    annotations = annotate_v2(tmp_path / "json")
    assert process(tmp_path, "somethingv2", "--annotations", annotations).returncode == 0
    command = (
        f"{sys.executable} {REPOSITORY}/tools/process_dataset.py --dataset somethingv2 --root_path {tmp_path}"
    )
    done = finish(["bash", "-c", f"{command} --check >/dev/full"])
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_check_changes_nothing(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", V2_FOLDERS)
    annotations = annotate_v2(tmp_path / "json")
    assert process(tmp_path, "somethingv2", "--annotations", annotations).returncode == 0
    (home / "process_report.txt").unlink()
    frames = home / FRAMES["somethingv2"][0]
    state = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    done = process(tmp_path, "somethingv2", "--check")
    assert done.returncode == 0, done.stderr
    assert "0 problems, 0 notes" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == state

    expected = damage(frames)
    Image.new("RGB", (32, 32)).save(frames / "116154/000008.jpg")
    (frames / "100904/000003.jpg").unlink()
    state = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    done = process(tmp_path, "somethingv2", "--check")
    assert done.returncode == 1
    for folder, what in expected.items():
        assert f"\t{folder}\t{what}" in done.stdout
    assert "116154\tthe list says 7 frames, the folder has 8" in done.stdout
    assert "100904\tthe list says 3 frames, the folder has 2" in done.stdout
    assert "7 problems, 0 notes" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == state


def test_an_order_that_is_not_the_released_one_is_noted(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    names = released_categories()
    (annotations / "something-something-v1-labels.csv").write_text("".join(f"{name}\n" for name in names))
    for part in ("train", "validation"):
        lines = (annotations / f"something-something-v1-{part}.csv").read_text().splitlines()
        lines = [f"{line.partition(';')[0]};{names[5]}\n" for line in lines]
        (annotations / f"something-something-v1-{part}.csv").write_text("".join(lines))
    bracketed = sorted(name.replace("something", "[something]") for name in names)
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert (done.returncode, "note" in done.stdout.replace("0 notes", "")) == (0, False)
    for order, how in ((bracketed, "sorted with brackets, 120"), ([*names[1:], names[0]], "0")):
        (home / "category.txt").write_text("".join(f"{name}\n" for name in order))
        note = (
            "note\tcategory.txt\t-\tthe classes are Something-Something's, but not in the released "
            f"checkpoints' order ({how} of 174 in the same place)\n"
        )
        done = process(tmp_path, "somethingv1", "--check")
        assert done.returncode == 0
        assert note in done.stdout
        assert "0 problems, 1 note\n" in done.stdout
        # Making lists puts the sorted names in its place, and says what was there.
        done = process(tmp_path, "somethingv1", "--annotations", annotations)
        assert note in done.stdout
        assert (home / "process_report.txt").read_text() == note
        assert read_categories(home / "category.txt") == names


def test_check_reads_the_authors_lists_too(authors_root: Path) -> None:
    done = process(authors_root, "somethingv2", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


# A run that is killed when it has written so many of its files, under their hidden names.
KILLED_AT_FSYNC = """
import os, runpy, signal, stat, sys
calls, sys.argv = int(sys.argv[1]), sys.argv[2:]
fsync = os.fsync
def count(file):
    global calls
    calls -= stat.S_ISREG(os.fstat(file).st_mode)  # not the folder, after all of them
    fsync(file)
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = count
sys.path.insert(0, os.path.dirname(sys.argv[0]))
if __name__ == "__main__":
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_while_it_writes_it_leaves_the_old_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    assert process(tmp_path, "somethingv1", "--annotations", annotations).returncode == 0
    old = texts(home)
    shutil.rmtree(home / FRAMES["somethingv1"][0])
    make_frames(tmp_path, "somethingv1", {name: count + 1 for name, count in V1_FOLDERS.items()})
    new = old | {
        "train_videofolder.txt": "100 6 1\n7 5 2\n",
        "val_videofolder.txt": "55 4 0\n",
        "test_videofolder.txt": "9 7\n8 4\n",
    }
    words = ["--dataset", "somethingv1", "--root_path", tmp_path, "--annotations", annotations]
    seen = []
    for calls in itertools.count(1):
        command = [sys.executable, "-c", KILLED_AT_FSYNC, calls, REPOSITORY / TOOL, *words]
        done = finish(command, cwd=REPOSITORY)
        if done.returncode == 0:  # it has fewer files than that to write
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert texts(home) == old
        seen.append({path.name for path in home.glob(".*.part")})
    assert {".train_videofolder.txt.part", ".val_videofolder.txt.part"} < seen[-1], "no kill in the middle"
    assert texts(home) == new
    assert process(tmp_path, "somethingv1", "--annotations", annotations).returncode == 0
    assert texts(home) == new


def test_files_are_replaced_only_when_all_are_written(tmp_path: Path) -> None:
    first = tmp_path / "first.txt"
    first.write_text("old")
    with pytest.raises(FileNotFoundError):
        write_texts({first: "new", tmp_path / "nowhere" / "second.txt": "new"})
    assert first.read_text() == "old"
    assert list(tmp_path.iterdir()) == [first]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (("labels/labels.json", None), ["--annotations", "labels/labels.json"]),
        (("labels/labels.json", '{"Holding something": "1"}'), ["labels.json", "must be 0 to 0"]),
        (("labels/labels.json", '{"Holding something": "0"}'), ["train.json", "42326", "Pulling something"]),
        (("labels/labels.json", '["Holding"]'), ["labels.json"]),
        (("labels/train.json", None), ["train.json", "no such file"]),
        (("labels/train.json", '[{"id": "1"'), ["train.json"]),
        (("labels/train.json", '[{"id": "1"}]'), ["train.json", "template"]),
        (("labels/train.json", '{"id": "1"}'), ["train.json"]),
    ],
)
def test_bad_annotations(spoil: tuple[str, str | None], words: list[str], tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", V2_FOLDERS)
    annotations = annotate_v2(tmp_path / "json")
    name, text = spoil
    (annotations / name).unlink()
    if text is not None:
        (annotations / name).write_text(text)
    assert_one_line_error(process(tmp_path, "somethingv2", "--annotations", annotations), *words)
    assert texts(home) == {}


def test_bad_annotations_of_the_others(tmp_path: Path) -> None:
    make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    with (annotations / "something-something-v1-train.csv").open("a") as file:
        file.write("8;Throwing something\n")
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert_one_line_error(done, "v1-train.csv, line 3", "Throwing something")
    make_frames(tmp_path, "diving48", {"a": 9, "b": 9})
    annotate_diving48(annotations, {"a": 9, "b": 9})
    (annotations / "Diving48_vocab.json").write_text(json.dumps(DIVES[:1]))
    done = process(tmp_path, "diving48", "--annotations", annotations)
    assert_one_line_error(done, "Diving48_V2_test", "label 1")


def test_bad_options(tmp_path: Path) -> None:
    assert_one_line_error(process(tmp_path, "somethingv1", "--check"), "somethingv1: no such folder")
    (tmp_path / "somethingv1").mkdir()
    assert_one_line_error(
        process(tmp_path, "somethingv1", "--check"), FRAMES["somethingv1"][0], "no such folder"
    )
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    assert_one_line_error(process(tmp_path, "somethingv1"), "--annotations")
    done = process(tmp_path, "somethingv1", "--check", "--annotations", tmp_path, "--seed", 0)
    assert_one_line_error(done, "--check", "leave out --annotations and --seed")
    done = process(tmp_path, "somethingv1", "--annotations", tmp_path, "--seed", 1)
    assert_one_line_error(done, "--seed: is for own data")
    assert_one_line_error(process(tmp_path, "a/b", "--check"), "--dataset", "not a path")
    assert_one_line_error(process(tmp_path, "somethingv1", "--check"), "category.txt")
    assert_one_line_error(process(tmp_path, "somethingv1", "--annotations", tmp_path), "v1-labels.csv")
    (home / "train.txt").touch()
    annotations = annotate_v1(tmp_path / "csv")
    assert_one_line_error(process(tmp_path, "somethingv1", "--annotations", annotations), home / "train.txt")


def test_from_videos_to_an_accuracy(tmp_path: Path) -> None:
    """As the README has it: downloaded files, two tools, training, evaluation; nothing by hand.

    With real processes: test_own_data.py.
    """
    source, root, out = tmp_path / "20bn-something-something-v2", tmp_path / "data", tmp_path / "runs"
    source.mkdir()
    annotations = annotate_v2(tmp_path)
    for name in V2_FOLDERS:
        write_video(source / f"{name}.webm", 8)
    options = ["--dataset", "somethingv2", "--root_path", root]
    training = ["--arch", "resnet14", "--pretrained", "none", "--input_size", 64, "--num_segments", 4]
    training += ["--epochs", 1, "-b", 2, "-j", 0, "--checkpoint_dir", out]
    for program, *arguments in (
        ["tools/extract_frames.py", "--videos", source, *options],
        [TOOL, "--annotations", annotations / "labels", *options],
        [TOOL, "--check", *options],
        ["main.py", *options, *training],
    ):
        done = call(program, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    (best,) = (out / "checkpoint").glob("*_best.pth.tar")
    done = call("test_models.py", "--weights", best, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("Testing Results: Prec@1 ")


# Each can be a folder's name, and stand in a list.
ODD_NAMES = [
    "a b  c",
    "12 3 4",
    "007",
    "-1",
    "1e5",
    "nan",
    "Ünïcödé 動画",
    "a\u00a0b",
    "a\u200db",
    "a\u3000b",
    "part/of a path",
    "100%",
    "#1",
    "{:05d}",
    "~",
    "a\\b",
    "'quoted\"",
    "x" * 255,
    "\U0001f600",
]
ODD_CLASSES = ["0", "1 2 3", "Ünïcödé 動画", "a\u00a0b", "a/b", "../a", "x" * 300]


def annotate_odd(dataset: str, folder: Path) -> dict[str, int]:
    """Annotate videos with odd names, in all lists, and odd classes; return the names with frame counts."""
    folder.mkdir()
    *trained, validated, tested = [name for name in ODD_NAMES if dataset != "somethingv1" or ";" not in name]
    labels = {name: i % len(ODD_CLASSES) for i, name in enumerate((*trained, validated))}
    if dataset == "somethingv1":
        lines = {name: f"{name};{ODD_CLASSES[label]}\n" for name, label in labels.items()}
        parts = {"train": "".join(lines[name] for name in trained), "validation": lines[validated]}
        parts |= {"labels": "".join(f"{name}\n" for name in ODD_CLASSES), "test": f"{tested}\n"}
        for part, text in parts.items():
            (folder / f"something-something-v1-{part}.csv").write_text(text)
    elif dataset == "somethingv2":
        entries = {name: {"id": name, "template": ODD_CLASSES[label]} for name, label in labels.items()}
        parts = {"train": [entries[name] for name in trained], "validation": [entries[validated]]}
        parts |= {"labels": {name: i for i, name in enumerate(ODD_CLASSES)}, "test": [{"id": tested}]}
        for part, content in parts.items():
            (folder / f"{part}.json").write_text(json.dumps(content))
    else:
        entries = {
            name: {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 3 + label}
            for name, label in labels.items()
        }
        parts = {"V2_train": [entries[name] for name in trained], "V2_test": [entries[validated]]}
        parts |= {"vocab": [[name] for name in ODD_CLASSES]}
        for part, content in parts.items():
            (folder / f"Diving48_{part}.json").write_text(json.dumps(content))
    return {name: 3 + labels.get(name, 0) for name in ODD_NAMES}


@pytest.mark.parametrize("dataset", FRAMES)
def test_what_is_written_is_read_back(dataset: str, tmp_path: Path) -> None:
    counts = annotate_odd(dataset, tmp_path / "annotations")
    home = make_frames(tmp_path, dataset, counts)
    done = process(tmp_path, dataset, "--annotations", tmp_path / "annotations")
    assert done.returncode == 0, done.stderr
    categories, lists = read_annotations(dataset, tmp_path / "annotations")
    assert read_categories(home / "category.txt") == categories
    for name, videos in lists.items():
        if name == "test_videofolder.txt":
            read = [(video.folder, video.frames) for video in read_test_list(home / name)]
            assert read == [(video.folder, counts[video.folder]) for video in videos]
        else:
            expected = [(video.folder, counts[video.folder], video.label) for video in videos]
            assert read_list(home / name, len(categories)) == expected
    done = process(tmp_path, dataset, "--check", "--decode_all")
    assert done.returncode == 0, done.stdout + done.stderr
    # Diving48 has no test list, for which one folder was made.
    assert f"0 problems, {'1 note' if dataset == 'diving48' else '0 notes'}\n" in done.stdout


def test_folders_on_disk_may_have_any_name(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    frames = home / FRAMES["somethingv1"][0]
    (frames / "loop").symlink_to("loop")
    (frames / "two\nlines\tand a tab").mkdir()
    os.mkdir(os.fsencode(frames) + b"/not \xff UTF-8")  # noqa: PTH102 - a name in bytes
    os.mkfifo(frames / "pipe")
    annotations = annotate_v1(tmp_path / "csv")
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert done.returncode == 0, done.stderr
    notes = [
        "note\t-\tloop\tcannot be looked into (Too many levels of symbolic links)",
        "note\t-\tnot \\udcff UTF-8\tfolder without a label",
        "note\t-\ttwo\\nlines\\tand a tab\tfolder without a label",
    ]
    assert (home / "process_report.txt").read_text().splitlines() == notes
    done = process(tmp_path, "somethingv1", "--check")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:3] == notes

    # Listed, such a folder is a problem, and the others are looked at.
    shutil.rmtree(frames / "7")
    (frames / "7").symlink_to("7")
    shutil.rmtree(frames / "9")
    os.mkfifo(frames / "9")
    (frames / "8" / "00001.jpg").unlink()
    os.mkfifo(frames / "8" / "00001.jpg")
    done = process(tmp_path, "somethingv1", "--check")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:3] == [
        "problem\ttrain_videofolder.txt\t7\tno folder (Too many levels of symbolic links)",
        "problem\ttest_videofolder.txt\t9\tno folder (Not a directory)",
        "problem\ttest_videofolder.txt\t8\t00001.jpg cannot be decoded (is a named pipe, not a file)",
    ]
    assert "3 problems, 3 notes" in done.stdout


def test_names_in_lists_from_elsewhere_stay_one_line_each(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    assert process(tmp_path, "somethingv1", "--annotations", annotate_v1(tmp_path / "csv")).returncode == 0
    with (home / "train_videofolder.txt").open("a") as file:
        file.write("a\tb\x1b[1m 4 0\n\u2028x\u2028y 4 0\n" + "n" * 300 + " 4 0\n")
    done = process(tmp_path, "somethingv1", "--check")
    assert done.returncode == 1
    findings = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("problem")]
    assert [finding[1:3] for finding in findings] == [
        ["train_videofolder.txt", name] for name in ("a\\tb\\x1b[1m", "x\\u2028y", "n" * 300)
    ]
    assert findings[2][3] == "no folder (File name too long)"


def noise(size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(256, size=(*size, 3), dtype=np.uint8))


def test_decode_all_reads_each_listed_frame_as_training_does(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "diving48", {"a": 8, "b c": 5, "ends": 5, "fine": 4})
    annotations = annotate_diving48(tmp_path / "json", {"a": 8, "b c": 5, "ends": 5, "fine": 4})
    assert process(tmp_path, "diving48", "--annotations", annotations).returncode == 0
    listed = home / "train_videofolder.txt"
    listed.write_text(listed.read_text().replace("ends 5", "ends 3"))
    frames = home / "frames"
    # Decoded at an eighth of its size or less, the whole of it is not needed.
    noise().save(frames / "a/00003.jpg")
    whole = (frames / "a/00003.jpg").read_bytes()
    (frames / "a/00003.jpg").write_bytes(whole[: len(whole) // 2])
    (frames / "a/00004.jpg").unlink()
    os.mkfifo(frames / "a/00004.jpg")
    noise((16, 32)).save(frames / "a/00006.jpg")
    noise((16, 32)).save(frames / "b c/00004.jpg")
    (frames / "ends/00005.jpg").write_bytes(b"no list reaches it")
    state = {path: path.stat().st_mtime_ns for path in home.rglob("*")}

    done = process(tmp_path, "diving48", "--check")
    assert done.returncode == 0, done.stdout
    done = process(tmp_path, "diving48", "--check", "--decode_all")
    assert done.returncode == 1
    assert done.stderr == ""
    found = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("problem\t")]
    assert [(folder, what.partition(" (")[0]) for _, folder, what in found] == [
        ("a", "00003.jpg cannot be decoded"),
        ("a", "00004.jpg cannot be decoded"),
        ("a", "00006.jpg is 32 x 16, not 32 x 32 like 00001.jpg"),
        ("b c", "00004.jpg is 32 x 16, not 32 x 32 like 00001.jpg"),
    ]
    assert "is a named pipe, not a file" in found[1][2]
    assert "4 problems, 1 note\n" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == state

    # A folder whose numbering is broken, too; a list that names far more frames than there are, soon.
    (frames / "a/00002.jpg").unlink()
    listed.write_text(listed.read_text().replace("ends 3", "ends 999999999"))
    done = process(tmp_path, "diving48", "--check", "--decode_all")
    lines = [line for line in done.stdout.splitlines() if line.startswith("problem\t")]
    assert "\ta\t7 files, but no 00002.jpg; there is 00008.jpg" in lines[0]
    assert [line.split("\t")[3][:9] for line in lines[1:4]] == ["00003.jpg", "00004.jpg", "00006.jpg"]
    assert any(line.startswith("problem\ttrain_videofolder.txt\tends\t00005.jpg") for line in lines)
    assert any("ends\tthe list says 999999999 frames" in line for line in lines)


def test_the_excluded_videos_can_be_cut_out(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "diving48", {"a": 4, "b c": 5, "ends": 5, "fine": 4})
    annotations = annotate_diving48(tmp_path / "json", {"a": 4, "b c": 5, "ends": 5, "fine": 4})
    assert process(tmp_path, "diving48", "--annotations", annotations).returncode == 0
    for number in (2, 3):
        (home / f"frames/b c/0000{number}.jpg").write_bytes(b"")
    (home / "frames/stranger").mkdir()
    done = process(tmp_path, "diving48", "--check", "--decode_all")
    (tmp_path / "check.txt").write_text(done.stdout)
    command = f"grep '^problem' '{tmp_path}/check.txt' | cut -f3 | sort -u"
    assert "cut -f3 | sort -u" in (REPOSITORY / "docs/DATA.md").read_text()
    assert finish(["sh", "-c", command]).stdout == "b c\n"


def test_decode_all_while_lists_are_made(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    (home / FRAMES["somethingv1"][0] / "100/00003.jpg").write_bytes(b"")
    annotations = annotate_v1(tmp_path / "csv")
    assert process(tmp_path, "somethingv1", "--annotations", annotations).returncode == 0
    done = process(tmp_path, "somethingv1", "--annotations", annotations, "--decode_all")
    assert_one_line_error(done, "1 problem with", "00003.jpg cannot be decoded")


def whole_state(folder: Path) -> dict[Path, bytes | int]:
    """The contents of all files, and the kinds of what is no file."""
    return {path: path.read_bytes() if path.is_file() else path.lstat().st_mode for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name", ["category.txt", "train_videofolder.txt", "test_videofolder.txt", "process_report.txt"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_nothing_is_written_where_one_cannot_be(name: str, kind: str, tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    for old in ("category.txt", "train_videofolder.txt", "val_videofolder.txt"):
        (home / old).write_text("old\n")
    (home / name).unlink(missing_ok=True)
    (os.mkfifo if kind == "pipe" else os.mkdir)(home / name)
    before = whole_state(home)
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert_one_line_error(done, home / name, "is not a file")
    assert whole_state(home) == before
    if name != "process_report.txt":
        done = process(tmp_path, "somethingv1", "--check")
        assert_one_line_error(done, home / name)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    assert process(tmp_path, "somethingv1", "--annotations", annotations).returncode == 0
    shutil.rmtree(home / FRAMES["somethingv1"][0])
    make_frames(tmp_path, "somethingv1", {name: count + 1 for name, count in V1_FOLDERS.items()})
    (home / "category.txt").write_text("old\n")  # the new one has 54 bytes, a lock of the processes 32
    before = whole_state(home)
    with files_limited_to(40):
        done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert_one_line_error(done, home, "cannot be written", "File too large")
    assert whole_state(home) == before


def test_a_folder_that_must_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    access = os.access
    # What root, too, is told of a file system that is read-only.
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not mode & os.W_OK)
    before = whole_state(home)
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert_one_line_error(done, home, "cannot be written")
    assert whole_state(home) == before


def test_paths_that_are_too_long(tmp_path: Path) -> None:
    assert_one_line_error(process(tmp_path / ("x" * 300), "somethingv1", "--check"), "xxx", "too long")
    make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    assert_one_line_error(process(tmp_path, "somethingv1", "--annotations", "x" * 5000), "xxx")


def test_a_list_that_main_would_refuse_is_not_written(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS | {"55": 2})
    annotations = annotate_v1(tmp_path / "csv")
    done = process(tmp_path, "somethingv1", "--annotations", annotations)
    assert_one_line_error(done, home / "val_videofolder.txt", "none of its videos has 3 frames")
    assert texts(home) == {}
    texts_of = {"category": "a\nb\nc\n", "train_videofolder": "100 5 1\n", "val_videofolder": "55 2 0\n"}
    for name, text in texts_of.items():
        (home / f"{name}.txt").write_text(text)
    done = process(tmp_path, "somethingv1", "--check")
    assert_one_line_error(done, home / "val_videofolder.txt", "none of its videos has 3 frames")


OWN = {
    **{f"up/{number}.mp4": 3 + number for number in range(5)},
    **{f"down/{number}.webm": 4 + number for number in range(3)},
}


def own_lists(home: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """The training and the validation list: name -> frames and label."""
    lists = {}
    for part in ("train", "val"):
        text = (home / f"{part}_videofolder.txt").read_text()
        fields = [line.rsplit(" ", 2) for line in text.splitlines()]
        lists[part] = {name: (int(count), int(label)) for name, count, label in fields}
    return lists


def problems(done: subprocess.CompletedProcess, home: Path) -> dict[str, str]:
    """What the report says of each video that has a problem."""
    assert_one_line_error(done, "process_report.txt", "no list was written")
    lines = [line.split("\t") for line in (home / "process_report.txt").read_text().splitlines()]
    return {name: what for kind, _, name, what in lines if kind == "problem"}


def test_class_folders_of_videos(tmp_path: Path) -> None:
    """Categories, the draw, counted frames, notes, and what is in place already."""
    videos = write_videos(tmp_path / "clips", OWN)
    (videos / "up/.hidden.mp4").touch()
    (videos / "up/notes.txt").write_text("not a video")
    (videos / "loose.mp4").touch()
    home = tmp_path / "data/own"
    done = process(tmp_path / "data", "own", "--videos", videos)
    assert done.returncode == 0, done.stderr
    assert (home / "videos").readlink() == videos
    assert texts(home)["category.txt"] == "down\nup\n"
    lists = own_lists(home)
    counts = {name.partition(".")[0]: (count, int(name[0] == "u")) for name, count in OWN.items()}
    assert lists["train"] | lists["val"] == counts
    assert len(lists["train"]) == 6  # 2 + 4
    assert [name.partition("/")[0] for name in lists["val"]] == ["down", "up"]
    assert texts(home)["process_report.txt"].splitlines() == [
        "note\t-\tloose.mp4\tvideo without a label",
        "note\t-\tup/notes.txt\tis not a video",
    ]
    before = texts(home)
    assert process(tmp_path / "data", "own").returncode == 0  # from the folder in place
    assert texts(home) == before
    assert process(tmp_path / "data", "own", "--check").returncode == 0

    # The draw is the seed's and the names', whatever else there is; a fraction leaves each side one video.
    write_videos(videos, {"left/1.mkv": 4, "left/2.mkv": 4})
    (home / "category.txt").write_text("up\nleft\ndown\n")
    assert process(tmp_path / "data", "own").returncode == 0
    assert texts(home)["category.txt"] == "up\nleft\ndown\n"
    now = own_lists(home)
    assert {name: label for name, (_, label) in now["val"].items() if "left" not in name} == {
        name: 2 - 2 * label for name, (_, label) in lists["val"].items()
    }
    assert process(tmp_path / "data", "own", "--seed", 1, "--val_fraction", 0.99).returncode == 0
    assert sorted(own_lists(home)["train"]) == ["down/1", "left/1", "up/0"]  # with seed 0: 2, 2 and 4

    done = process(tmp_path / "data", "own", "--videos", tmp_path)
    assert_one_line_error(done, "has no videos but folders such as")
    other = write_videos(tmp_path / "other", {"up/1.mp4": 3, "up/2.mp4": 3})
    done = process(tmp_path / "data", "own", "--videos", other)
    assert_one_line_error(done, home / "videos", "already exists and is not", other)
    write_videos(videos, {"sideways/1.mkv": 4, "sideways/2.mkv": 4})
    done = process(tmp_path / "data", "own")
    assert_one_line_error(done, home / "videos/sideways", "'sideways' is not in", home / "category.txt")


def test_videos_that_cannot_be_used_are_named_with_the_reason(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", OWN | {"up/cut.webm": 12, "up/twice.mp4": 3, "up/twice.mkv": 3})
    cut(videos / "up/cut.webm", 0.7)
    (videos / "up/empty.mp4").touch()
    (videos / "up/text.mp4").write_text("not a video at all\n" * 20)
    write_audio(videos / "down/song.mp4")
    os.mkfifo(videos / "down/pipe.mov")
    write_videos(videos, {"down/old.mpg": 5}, codec="mpeg2video")
    home = tmp_path / "own"
    done = process(tmp_path, "own", "--videos", videos)
    found = problems(done, home)
    for name, what in {
        "up/cut": "cut.webm: truncated: ",
        "up/empty": "empty.mp4: empty file",
        "up/text": "text.mp4: not a video, or damaged at its beginning",
        "up/twice": "twice.mkv and twice.mp4 would have the same name; rename one",
        "down/song": "song.mp4: no video stream",
        "down/pipe": "pipe.mov: cannot be read (is a named pipe, not a file)",
        "down/old": "old.mpg is not one of .webm, .mp4, .mkv, .avi, .mov; convert it, or extract",
    }.items():
        assert found.pop(name).startswith(what)
    assert not found
    assert not (home / "category.txt").exists()
    done = process(tmp_path, "own", "--skip_missing")
    assert done.returncode == 0, done.stderr
    lists = own_lists(home)
    assert sorted(lists["train"] | lists["val"]) == sorted(name.partition(".")[0] for name in OWN)


def test_check_compares_videos_with_the_lists(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", OWN)
    assert process(tmp_path, "own", "--videos", videos).returncode == 0
    write_videos(videos, {"up/1.mp4": 3, "up/3.mp4": 9, "new.mp4": 3})
    (videos / "down/1.webm").unlink()
    done = process(tmp_path, "own", "--check")
    assert done.returncode == 1
    found = {tuple(line.split("\t")[2:]) for line in done.stdout.splitlines() if "\t" in line}
    assert found == {
        ("up/1", "the list says 4 frames, the video has 3"),
        ("up/3", "the list says 6 frames, the video has 9"),
        ("down/1", "no video (.webm, .mp4, .mkv, .avi, .mov)"),
        ("new.mp4", "video without a label"),
    }


def test_a_sample_is_decoded_and_with_decode_all_every_video(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", {f"{name}/{i:02d}.mp4": 3 for name in "ab" for i in range(51)})
    # Spoilt where decoding comes last; demuxing sees nothing.
    for name in ("a/00", "b/50"):
        write_video(videos / f"{name}.mp4", 12)
        data = bytearray((videos / f"{name}.mp4").read_bytes())
        end = len(data) - 40
        data[end - 300 : end] = bytes(300)
        (videos / f"{name}.mp4").write_bytes(data)
    done = process(tmp_path, "own", "--videos", videos)
    found = problems(done, tmp_path / "own")
    assert list(found) == ["a/00"]
    assert found["a/00"].startswith("00.mp4: damaged or truncated after frame ")
    done = process(tmp_path, "own", "--videos", videos, "--decode_all")
    assert sorted(problems(done, tmp_path / "own")) == ["a/00", "b/50"]


def test_packets_that_are_no_frames(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", OWN | {"up/vp9.webm": 12})
    remux(videos / "up/vp9.webm", videos / "up/strange.avi", hides_key_frames=True)
    decoded = sum(1 for _ in decode(videos / "up/strange.avi"))
    found = problems(process(tmp_path, "own", "--videos", videos), tmp_path / "own")
    told = f"strange.avi: has 12 frames by its packets, but {decoded} when decoded; --decode_all counts"
    assert found["up/strange"].startswith(told)
    assert decoded < 12
    done = process(tmp_path, "own", "--decode_all")
    assert done.returncode == 0, done.stderr
    lists = own_lists(tmp_path / "own")
    assert (lists["train"] | lists["val"])["up/strange"] == (decoded, 1)


def test_frames_of_own_data(tmp_path: Path) -> None:
    home = tmp_path / "own"
    for name, count in OWN.items():
        folder = home / "frames" / name.partition(".")[0]
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (32, 32)).save(folder / f"{number:05d}.jpg")
    (home / "frames/up/extra.txt").touch()
    done = process(tmp_path, "own")
    assert done.returncode == 0, done.stderr
    lists = own_lists(home)
    assert {name: count for name, (count, _) in (lists["train"] | lists["val"]).items()} == {
        name.partition(".")[0]: count for name, count in OWN.items()
    }
    assert texts(home)["process_report.txt"] == "note\t-\tup/extra.txt\tis not a video\n"
    # With the videos as well: their classes, but these frames, unless the source is given.
    videos = write_videos(tmp_path / "clips", OWN | {"up/new.mp4": 3})
    done = process(tmp_path, "own", "--videos", videos)
    assert problems(done, home) == {"up/new": "no folder"}
    assert process(tmp_path, "own", "--source", "videos").returncode == 0
    assert "up/new" in own_lists(home)["train"] | own_lists(home)["val"]


CSV = "video,label,split\nup/0.mp4,Up,train\nup/1,Up,validation\ndown/0.webm,Down,training\nup/2,,test\n"


def test_csv_of_own_data(tmp_path: Path) -> None:
    videos, home, file = write_videos(tmp_path / "clips", OWN), tmp_path / "own", tmp_path / "my.csv"
    file.write_text(CSV)
    done = process(tmp_path, "own", "--videos", videos, "--annotations", file)
    assert done.returncode == 0, done.stderr
    now = texts(home)
    assert now["category.txt"] == "Down\nUp\n"
    assert now["train_videofolder.txt"] == "up/0 3 1\ndown/0 4 0\n"
    assert now["val_videofolder.txt"] == "up/1 4 1\n"
    assert now["test_videofolder.txt"] == "up/2 5\n"
    assert process(tmp_path, "own", "--check").returncode == 0
    # Labels that are known are kept.
    file.write_text(CSV.replace("up/2,,", "up/2,Up,"))
    assert process(tmp_path, "own", "--annotations", file).returncode == 0
    assert texts(home)["test_videofolder.txt"] == "up/2 5 1\n"
    assert process(tmp_path, "own", "--check").returncode == 0
    # Without a split, it is drawn; the order of a category.txt that is there is kept.
    (home / "category.txt").write_text("Up\nDown\n")
    file.write_text("video,label\n" + "".join(f"{name},{name.split('/')[0].title()}\n" for name in OWN))
    assert process(tmp_path, "own", "--annotations", file, "--val_fraction", 0.5).returncode == 0
    assert sorted(label for _, label in own_lists(home)["val"].values()) == [0, 0, 1, 1]
    file.write_text(CSV + "up/none,Up,val\n")
    done = process(tmp_path, "own", "--annotations", file)
    assert problems(done, home)["up/none"].startswith("no video")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        ("video,label,split\n", ["is empty"]),
        ("up/0,Up\n", ["line 1: the header must be 'video,label' or", "not 'up/0,Up'"]),
        ("video;label\nup/0;Up\n", ["line 1: the header"]),
        (CSV + "up/3,Up\n", ["line 6: has 2 fields, not 3"]),
        (CSV + "up/0.mp4,Up,val\n", ["line 6: 'up/0' is already in line 2"]),
        (CSV + "up/3,Up,dev\n", ["line 6: 'dev' is not a split (train, training, val"]),
        (CSV + "up/3,,train\n", ["line 6: the name is blank"]),
        (CSV + "../3,Up,train\n", ["line 6: the name is not that of a folder inside"]),
        (CSV + '"up/3,Up,train\n', ["line 6: is not CSV"]),
        (CSV + "up/3,Sideways,test\n", ["line 6: the class 'Sideways' is not in", "category.txt"]),
        (CSV.replace("up/2", "up/clip 2"), ["line 5: 'up/clip 2' ends in a number", "rename the video"]),
        (CSV.replace("validation", "test"), ["no line has the split 'val'"]),
        (CSV.replace("train", "val").replace("valing", "val"), ["no line has the split 'train'"]),
        ("video,label\nup/0,Up\nup/1,Up\ndown/0,Down\n", ["line 4: the class 'Down' has a single video"]),
    ],
)
def test_csv_that_is_refused(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own/videos").mkdir(parents=True)
    (tmp_path / "own/category.txt").write_text("Up\nDown\n")
    (tmp_path / "my.csv").write_text(text)
    done = process(tmp_path, "own", "--annotations", tmp_path / "my.csv")
    assert_one_line_error(done, tmp_path / "my.csv", *words)
    assert texts(tmp_path / "own") == {"category.txt": "Up\nDown\n"}


def test_own_data_that_is_refused(tmp_path: Path) -> None:
    videos, root = tmp_path / "clips", tmp_path / "data"
    options = ["--videos", videos]
    assert_one_line_error(process(root, "own", *options), "--videos", videos, "is not a folder")
    write_videos(videos, {"1.mp4": 3})
    assert_one_line_error(process(root, "own", *options), videos, "no folders of classes", "CLASS/VIDEO")
    write_videos(videos, {"up/1.mp4": 3, "up/2.mp4": 3, "down/1.mp4": 3})
    done = process(root, "own", *options)
    assert_one_line_error(done, videos / "down", "'down' has a single video, 'down/1'", "add videos")
    (videos / "down/1.mp4").rename(videos / "down/1.txt")
    (videos / "down/1.txt").write_text("no video")
    assert_one_line_error(process(root, "own", *options), videos / "down", "has no videos;")
    (videos / "down/sub").mkdir()
    done = process(root, "own", *options)
    assert_one_line_error(done, "down: has no videos but folders such as 'sub'", "train or val")
    shutil.rmtree(videos / "down")
    (videos / "up/2.mp4").rename(videos / "up/a\tb.mp4")
    assert_one_line_error(process(root, "own", *options), "a\\tb.mp4: the name holds a control", "rename it")
    for fraction in (0, 1, "x"):
        done = process(root, "own", *options, "--val_fraction", fraction)
        assert_one_line_error(done, "--val_fraction", "is not a number above 0 and below 1")
    (tmp_path / "my.csv").write_text(CSV)
    done = process(root, "own", *options, "--annotations", tmp_path / "my.csv", "--seed", 1)
    assert_one_line_error(done, "--seed", "has a column 'split'")
    (tmp_path / "my.csv").write_text("video,label,split\nup/1,,test\n")
    done = process(root, "own", *options, "--annotations", tmp_path / "my.csv")
    assert_one_line_error(done, root / "own/category.txt", "no such file; videos without labels need")
    assert not root.exists()
    assert_one_line_error(process(root, "own"), root / "own", "no such folder")
