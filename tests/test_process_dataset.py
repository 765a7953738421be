"""tools/process_dataset.py: lists from annotations, class folders and CSVs; checks of lists."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, assert_one_line_error, call, files_limited_to, finish
from PIL import Image
from video_files import cut, write_audio, write_video

from classes import released_categories
from dataset import open_videos
from datasets_video import return_dataset

TOOL = "tools/process_dataset.py"
FRAMES = {
    "somethingv1": ("20bn-something-something-v1", "{:05d}.jpg"),
    "somethingv2": ("20bn-something-something-v2-frames", "{:06d}.jpg"),
    "diving48": ("frames", "{:05d}.jpg"),
}
# In an order that is not the alphabet's.
V2_NAMES = [
    "Pulling something from left to right",
    "Holding something",
    "Approaching something with your camera",
]
V1_FOLDERS = {"100": 5, "7": 4, "55": 3, "9": 6, "8": 3}
V2_FOLDERS = {"78687": 5, "42326": 4, "100904": 3, "74225": 6, "116154": 7, "1420": 3, "3344": 8}


def make_frames(root: Path, dataset: str, folders: dict[str, int]) -> Path:
    """Write frame folders, from their names and numbers of frames."""
    place, template = FRAMES[dataset]
    for name, count in folders.items():
        folder = root / dataset / place / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (32, 32), (number % 256, 90, 40)).save(folder / template.format(number))
    return root / dataset


def annotate_v1(folder: Path, prefix: str = "something-something") -> Path:
    folder.mkdir(exist_ok=True)
    parts = {
        "labels": "Turning something\nHolding something\nBending something\n",
        "train": "100;Holding something\n7;Turning something\n",
        "validation": "55;Bending something\n",
        "test": "9\n8\n",
    }
    for part, text in parts.items():
        (folder / f"{prefix}-v1-{part}.csv").write_text(text)
    return folder


def annotate_v2(folder: Path, pattern: str = "labels/{}.json") -> Path:
    def entry(video: str, label: int) -> dict:
        template = V2_NAMES[label].replace("something", "[something]")
        return {"id": video, "label": "pulling a pen", "template": template, "placeholders": ["a pen"]}

    parts = {
        "labels": {name: str(V2_NAMES.index(name)) for name in sorted(V2_NAMES)},
        "train": [entry("78687", 1), entry("42326", 0), entry("100904", 2)],
        "validation": [entry("74225", 0), entry("116154", 1)],
        "test": [{"id": "1420"}, {"id": "3344"}],
    }
    for part, content in parts.items():
        path = folder / pattern.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def annotate_diving48(folder: Path, ends: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    entries = [
        {"vid_name": name, "label": number % 2, "start_frame": 0, "end_frame": end}
        for number, (name, end) in enumerate(ends.items())
    ]
    contents = {"vocab": [["Back", "FREE"], ["Forward", "PIKE"]], "V2_train": entries[:-1]}
    for part, content in (contents | {"V2_test": entries[-1:]}).items():
        (folder / f"Diving48_{part}.json").write_text(json.dumps(content))
    return folder


def write_videos(folder: Path, videos: dict[str, int], **options: object) -> Path:
    """Write videos, from their file names and numbers of frames."""
    for name, count in videos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, count, width=48, height=32, **options)
    return folder


def process(root: Path, dataset: str, *options: object) -> subprocess.CompletedProcess:
    return call(TOOL, "--dataset", dataset, "--root_path", root, "--workers", 1, *options)


def succeed(*arguments: object) -> subprocess.CompletedProcess:
    done = process(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done


def texts(home: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(home.glob("*.txt"))}


def findings(text: str) -> dict[tuple[str, str], str]:
    """Of a report or of what --check prints: (kind, name) -> what."""
    lines = [line.split("\t") for line in text.splitlines() if "\t" in line]
    return {(kind, name): what for kind, _, name, what in lines}


def whole_state(folder: Path) -> dict[Path, bytes | int]:
    """The contents of all files, and the times of their last changes."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# Lists of the official data sets.


def test_v1_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    done = succeed(tmp_path, "somethingv1", "--annotations", annotate_v1(tmp_path / "csv"))
    assert texts(home) == {
        "category.txt": "Bending something\nHolding something\nTurning something\n",
        "train_videofolder.txt": "100 5 1\n7 4 2\n",
        "val_videofolder.txt": "55 3 0\n",
        "test_videofolder.txt": "9 6\n8 3\n",
        "process_report.txt": "",
    }
    assert "train_videofolder.txt: 2 videos\n" in done.stdout


def test_v2_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", V2_FOLDERS)
    annotations = annotate_v2(tmp_path / "json", "something-something-v2-{}.json")
    succeed(tmp_path, "somethingv2", "--annotations", annotations)
    assert texts(home) == {
        "category.txt": "".join(f"{name}\n" for name in V2_NAMES),
        "train_videofolder.txt": "78687 5 1\n42326 4 0\n100904 3 2\n",
        "val_videofolder.txt": "74225 6 0\n116154 7 1\n",
        "test_videofolder.txt": "1420 3\n3344 8\n",
        "process_report.txt": "",
    }
    succeed(tmp_path, "somethingv2", "--check")


def test_diving48_lists_stop_at_the_end(tmp_path: Path) -> None:
    home = make_frames(
        tmp_path, "diving48", {"whole_1": 9, "one_off": 9, "longer": 9, "shorter": 5, "a b_2": 4}
    )
    ends = {"whole_1": 9, "one_off": 8, "longer": 6, "shorter": 9, "a b_2": 4}
    succeed(tmp_path, "diving48", "--annotations", annotate_diving48(tmp_path / "json", ends))
    written = texts(home)
    assert written["train_videofolder.txt"] == "whole_1 9 0\none_off 9 1\nlonger 6 0\nshorter 5 1\n"
    assert written["val_videofolder.txt"] == "a b_2 4 0\n"
    assert "test_videofolder.txt" not in written
    assert findings(written["process_report.txt"]) == {
        ("note", "longer"): "the folder has 9 frames, the annotation ends at 6",
        ("note", "shorter"): "the folder has 5 of the annotation's 9 frames",
    }
    succeed(tmp_path, "diving48", "--check")  # here a list may stop before the folder does


def test_unusual_class_order_is_noted(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    names = released_categories()
    (annotations / "something-something-v1-labels.csv").write_text("".join(f"{name}\n" for name in names))
    for part, video in (("train", 100), ("validation", 55)):
        (annotations / f"something-something-v1-{part}.csv").write_text(f"{video};{names[5]}\n")
    succeed(tmp_path, "somethingv1", "--annotations", annotations)
    (home / "category.txt").write_text("".join(f"{name}\n" for name in [*names[1:], names[0]]))
    done = succeed(tmp_path, "somethingv1", "--check")
    note = findings(done.stdout)["note", "-"]
    assert "Something-Something" in note


# Problems.


def damage(frames: Path) -> dict[tuple[str, str], str]:
    """Break all but one training and one validation video, and say what the report has."""
    shutil.rmtree(frames / "78687")
    (frames / "42326/000002.jpg").unlink()
    last = frames / "74225/000006.jpg"
    last.write_bytes(last.read_bytes()[:-12])
    (frames / "1420/000001.jpg").write_bytes(b"")
    for path in (frames / "3344").iterdir():
        path.unlink()
    return {
        ("problem", "78687"): "no folder",
        ("problem", "42326"): "3 files, but no 000002.jpg; there is 000004.jpg",
        ("problem", "74225"): "000006.jpg cannot be decoded",
        ("problem", "1420"): "000001.jpg cannot be decoded",
        ("problem", "3344"): "empty folder",
    }


def assert_findings(text: str, expected: dict[tuple[str, str], str]) -> None:
    """Check the kinds and names of all findings, and how their texts begin."""
    actual = findings(text)
    assert actual.keys() == expected.keys()
    for key, what in expected.items():
        assert actual[key].startswith(what), actual[key]


def test_problems_prevent_lists_unless_skipped(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", V2_FOLDERS | {"1421": 3})
    annotations = annotate_v2(tmp_path / "json")
    tested = [{"id": "1420"}, {"id": "3344"}, {"id": 1421}]
    (annotations / "labels/test.json").write_text(json.dumps(tested))
    succeed(tmp_path, "somethingv2", "--annotations", annotations)
    before = texts(home)
    expected = damage(home / FRAMES["somethingv2"][0])

    done = process(tmp_path, "somethingv2", "--annotations", annotations)
    assert_one_line_error(done, home / "process_report.txt", "5 problems", "78687", "--skip_missing")
    after = texts(home)
    assert_findings(after["process_report.txt"], expected)
    assert after == before | {"process_report.txt": after["process_report.txt"]}

    done = succeed(tmp_path, "somethingv2", "--annotations", annotations, "--skip_missing")
    assert "train_videofolder.txt: 1 of 3 videos\n" in done.stdout
    after = texts(home)
    lists = [after[f"{part}_videofolder.txt"] for part in ("train", "val", "test")]
    assert lists == ["100904 3 2\n", "116154 7 1\n", "1421 3\n"]

    (annotations / "labels/test.json").write_text(json.dumps(tested[:2]))
    done = process(tmp_path, "somethingv2", "--annotations", annotations, "--skip_missing")
    assert_one_line_error(done, home / "test_videofolder.txt")


def test_video_in_two_lists_is_a_problem(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    annotations = annotate_v1(tmp_path / "csv")
    with (annotations / "something-something-v1-validation.csv").open("a") as file:
        file.write("7;Turning something\n")
    assert_one_line_error(process(tmp_path, "somethingv1", "--annotations", annotations), "1 problem", "7")
    assert_findings(texts(home)["process_report.txt"], {("problem", "7"): "is already in train_videofolder"})
    (home / FRAMES["somethingv1"][0] / "55/00003.jpg").unlink()  # too short: a list without videos
    done = process(tmp_path, "somethingv1", "--annotations", annotate_v1(annotations))
    assert_one_line_error(done, home / "val_videofolder.txt", "3 frames")
    assert texts(home).keys() == {"process_report.txt"}


def test_check_changes_nothing(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", V2_FOLDERS)
    frames = home / FRAMES["somethingv2"][0]
    succeed(tmp_path, "somethingv2", "--annotations", annotate_v2(tmp_path / "json"))
    before = whole_state(home)
    assert "0 problems, 0 notes" in succeed(tmp_path, "somethingv2", "--check").stdout
    assert whole_state(home) == before

    expected = damage(frames) | {
        ("problem", "116154"): "the list says 7 frames, the folder has 8",
        ("problem", "100904"): "the list says 3 frames, the folder has 2",
    }
    Image.new("RGB", (32, 32)).save(frames / "116154/000008.jpg")
    (frames / "100904/000003.jpg").unlink()
    before = whole_state(home)
    done = process(tmp_path, "somethingv2", "--check")
    assert done.returncode == 1
    assert_findings(done.stdout, expected)
    assert "7 problems, 0 notes" in done.stdout
    assert whole_state(home) == before


def test_check_reads_the_authors_lists(authors_root: Path) -> None:
    succeed(authors_root, "somethingv2", "--check")


def test_each_finding_is_one_line(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    frames = home / FRAMES["somethingv1"][0]
    succeed(tmp_path, "somethingv1", "--annotations", annotate_v1(tmp_path / "csv"))
    shutil.rmtree(frames / "9")
    (frames / "9").symlink_to("9")
    (frames / "8/00001.jpg").unlink()
    os.mkfifo(frames / "8/00001.jpg")
    with (home / "train_videofolder.txt").open("a") as file:
        file.write("a\tb\x1b[1m 4 0\n\u2028x\u2028y 4 0\n")
    done = process(tmp_path, "somethingv1", "--check")
    assert done.returncode == 1
    assert_findings(
        done.stdout,
        {
            ("problem", "a\\tb\\x1b[1m"): "no folder",
            ("problem", "x\\u2028y"): "no folder",
            ("problem", "9"): "no folder (Too many levels",
            ("problem", "8"): "00001.jpg cannot be decoded (is a named pipe",
        },
    )


def noise(size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(256, size=(*size, 3), dtype=np.uint8))


def test_decode_all_reads_every_listed_frame(tmp_path: Path) -> None:
    counts = {"a": 8, "b c": 5, "ends": 5, "fine": 4}
    home = make_frames(tmp_path, "diving48", counts)
    annotations = annotate_diving48(tmp_path / "json", counts)
    succeed(tmp_path, "diving48", "--annotations", annotations)
    listed, frames = home / "train_videofolder.txt", home / "frames"
    listed.write_text(listed.read_text().replace("ends 5", "ends 3"))
    noise().save(frames / "a/00003.jpg")
    whole = (frames / "a/00003.jpg").read_bytes()
    (frames / "a/00003.jpg").write_bytes(whole[: len(whole) // 2])
    noise((16, 32)).save(frames / "b c/00004.jpg")
    (frames / "ends/00005.jpg").write_bytes(b"not listed")

    succeed(tmp_path, "diving48", "--check")
    done = process(tmp_path, "diving48", "--check", "--decode_all")
    assert (done.returncode, done.stderr) == (1, "")
    expected = {
        ("problem", "a"): "00003.jpg cannot be decoded",
        ("problem", "b c"): "00004.jpg is 32 x 16, not 32 x 32 like 00001.jpg",
        ("note", "ends"): "the list says 3 frames, the folder has 5",
    }
    assert_findings(done.stdout, expected)
    # As the docs cut out the videos to exclude.
    (tmp_path / "check.txt").write_text(done.stdout)
    assert "grep '^problem' check.txt | cut -f3 | sort -u" in (REPOSITORY / "docs/DATA.md").read_text()
    command = f"grep '^problem' '{tmp_path}/check.txt' | cut -f3 | sort -u"
    assert finish(["sh", "-c", command]).stdout == "a\nb c\n"


# Nothing is lost.


def test_full_disk_leaves_old_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    words = ["--annotations", annotate_v1(tmp_path / "csv")]
    succeed(tmp_path, "somethingv1", *words)
    (home / "category.txt").write_text("old\n")  # the new one has 54 bytes
    before = whole_state(home)
    with files_limited_to(40):
        done = process(tmp_path, "somethingv1", *words)
    assert_one_line_error(done, home, "cannot be written", "File too large")
    assert whole_state(home) == before


# Own data.

OWN = {
    **{f"up/{number}.mp4": 3 + number for number in range(5)},
    **{f"down/{number}.webm": 4 + number for number in range(3)},
}
STEMS = {name.partition(".")[0]: count for name, count in OWN.items()}


def own_lists(home: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """The training and the validation list: name -> frames and label."""
    lists = {}
    for part in ("train", "val"):
        text = (home / f"{part}_videofolder.txt").read_text()
        fields = [line.rsplit(" ", 2) for line in text.splitlines()]
        lists[part] = {name: (int(count), int(label)) for name, count, label in fields}
    return lists


def test_class_folders_of_videos(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", OWN)
    (videos / "up/.hidden.mp4").touch()
    (videos / "up/notes.txt").write_text("not a video")
    home = tmp_path / "data/own"
    done = succeed(tmp_path / "data", "own", "--videos", videos)
    assert (home / "videos").readlink() == videos
    assert texts(home)["category.txt"] == "down\nup\n"
    lists = own_lists(home)
    labels = {name: (count, int(name[0] == "u")) for name, count in STEMS.items()}
    assert lists["train"] | lists["val"] == labels
    assert len(lists["train"]) == 6  # 2 + 4
    assert [name.partition("/")[0] for name in lists["val"]] == ["down", "up"]
    assert findings(texts(home)["process_report.txt"]) == {("note", "up/notes.txt"): "is not a video"}
    assert "  up: 4, 1\n  down: 2, 1\n" in done.stdout
    before = texts(home)
    succeed(tmp_path / "data", "own")  # now from the link
    assert texts(home) == before
    succeed(tmp_path / "data", "own", "--check")

    # The order of an existing category.txt is kept; new classes do not change the draw.
    write_videos(videos, {"left/1.mkv": 4, "left/2.mkv": 4})
    (home / "category.txt").write_text("up\nleft\ndown\n")
    succeed(tmp_path / "data", "own")
    assert texts(home)["category.txt"] == "up\nleft\ndown\n"
    val = own_lists(home)["val"]
    assert {name: label for name, (_, label) in val.items() if "left" not in name} == {
        name: 2 - 2 * label for name, (_, label) in lists["val"].items()
    }
    succeed(tmp_path / "data", "own", "--seed", 1, "--val_fraction", 0.99)
    assert sorted(own_lists(home)["train"]) == ["down/1", "left/1", "up/0"]  # with seed 0: 2, 2 and 4


def test_unusable_videos_are_named(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", OWN | {"up/cut.webm": 12, "up/twice.mp4": 3, "up/twice.mkv": 3})
    cut(videos / "up/cut.webm", 0.7)
    (videos / "up/empty.mp4").touch()
    (videos / "up/text.mp4").write_text("not a video at all\n" * 20)
    write_audio(videos / "down/song.mp4")
    os.mkfifo(videos / "down/pipe.mov")
    write_videos(videos, {"down/old.mpg": 5}, codec="mpeg2video")
    home = tmp_path / "own"
    assert_one_line_error(process(tmp_path, "own", "--videos", videos), home / "process_report.txt")
    assert_findings(
        texts(home)["process_report.txt"],
        {
            ("problem", "up/cut"): "cut.webm: truncated",
            ("problem", "up/empty"): "empty.mp4: empty file",
            ("problem", "up/text"): "text.mp4: not a video",
            ("problem", "up/twice"): "twice.mp4 and twice.mkv",
            ("problem", "down/song"): "song.mp4: no video stream",
            ("problem", "down/pipe"): "pipe.mov: cannot be read (is a named pipe",
            ("problem", "down/old"): "no video (.webm, .mp4",
        },
    )
    assert not (home / "category.txt").exists()
    succeed(tmp_path, "own", "--skip_missing")
    lists = own_lists(home)
    assert (lists["train"] | lists["val"]).keys() == STEMS.keys()


def test_check_of_videos(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "clips", OWN | {"up/late.mp4": 30})
    succeed(tmp_path, "own", "--videos", videos)
    write_videos(videos, {"up/1.mp4": 3, "up/3.mp4": 9})
    (videos / "down/1.webm").unlink()
    # Spoiled where only decoding notices.
    data = bytearray((videos / "up/late.mp4").read_bytes())
    data[-340:-40] = bytes(300)
    (videos / "up/late.mp4").write_bytes(data)
    expected = {
        ("problem", "up/1"): "the list says 4 frames, the video has 3",
        ("problem", "up/3"): "the list says 6 frames, the video has 9",
        ("problem", "down/1"): "no video (.webm, .mp4, .mkv, .avi, .mov)",
    }
    done = process(tmp_path, "own", "--check")
    assert done.returncode == 1
    assert_findings(done.stdout, expected)
    done = process(tmp_path, "own", "--check", "--decode_all")
    assert_findings(done.stdout, expected | {("problem", "up/late"): "late.mp4: damaged or truncated after"})


def test_class_folders_of_frames(tmp_path: Path) -> None:
    home = tmp_path / "own"
    for name, count in STEMS.items():
        folder = home / "frames" / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (32, 32)).save(folder / f"{number:05d}.jpg")
    (home / "frames/up/extra.txt").touch()
    succeed(tmp_path, "own")
    lists = own_lists(home)
    assert {name: count for name, (count, _) in (lists["train"] | lists["val"]).items()} == STEMS
    assert findings(texts(home)["process_report.txt"]) == {("note", "up/extra.txt"): "is not a video"}
    # With the videos, too: their classes, but these frames, unless --source says otherwise.
    videos = write_videos(tmp_path / "clips", OWN | {"up/new.mp4": 3})
    process(tmp_path, "own", "--videos", videos)
    assert_findings(texts(home)["process_report.txt"], {("problem", "up/new"): "no folder"})
    succeed(tmp_path, "own", "--source", "videos")
    assert "up/new" in own_lists(home)["train"] | own_lists(home)["val"]


def test_frames_with_other_names(tmp_path: Path) -> None:
    home, template = tmp_path / "own", "img_{:05d}.jpg"
    for name, count in STEMS.items():
        folder = home / "frames" / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (number, 90, 40)).save(folder / template.format(number))
    succeed(tmp_path, "own")
    assert own_lists(home)["train"]["up/4"] == (7, 1)
    succeed(tmp_path, "own", "--check", "--decode_all")
    paths = return_dataset("own", tmp_path)
    assert paths.first_frame == 0
    # Training and testing find the frames without further options.
    videos = open_videos(paths, 3, None, is_training=False)
    record, (clip, _) = videos.record(0), videos[0]
    path = home / "frames" / record.path / template.format(record.num_frames // 2)
    assert clip[1].tobytes() == Image.open(path).convert("RGB").tobytes()
    (home / "frames/up/4" / template.format(2)).unlink()
    assert process(tmp_path, "own", "--check").returncode == 1
    (home / "dataset.json").write_text("{}")
    assert_one_line_error(process(tmp_path, "own", "--check"), home / "dataset.json")


CSV = "video,label,split\nup/0.mp4,Up,train\nup/1,Up,validation\ndown/0.webm,Down,training\nup/2,,test\n"


def test_csv_with_and_without_split(tmp_path: Path) -> None:
    videos, home, file = write_videos(tmp_path / "clips", OWN), tmp_path / "own", tmp_path / "my.csv"
    file.write_text(CSV)
    succeed(tmp_path, "own", "--videos", videos, "--annotations", file)
    written = texts(home)
    assert written["category.txt"] == "Down\nUp\n"
    assert written["train_videofolder.txt"] == "up/0 3 1\ndown/0 4 0\n"
    assert written["val_videofolder.txt"] == "up/1 4 1\n"
    assert written["test_videofolder.txt"] == "up/2 5\n"
    succeed(tmp_path, "own", "--check")
    # Test videos keep their labels if all have one.
    file.write_text(CSV.replace("up/2,,", "up/2,Up,"))
    succeed(tmp_path, "own", "--annotations", file)
    assert texts(home)["test_videofolder.txt"] == "up/2 5 1\n"
    succeed(tmp_path, "own", "--check")
    # Without a split, it is drawn. The order of an existing category.txt is kept.
    (home / "category.txt").write_text("Up\nDown\n")
    file.write_text("video,label\n" + "".join(f"{name},{name.split('/')[0].title()}\n" for name in OWN))
    succeed(tmp_path, "own", "--annotations", file, "--val_fraction", 0.5)
    assert sorted(label for _, label in own_lists(home)["val"].values()) == [0, 0, 1, 1]
    file.write_text(CSV + "up/none,Up,val\n")
    process(tmp_path, "own", "--annotations", file)
    expected = {
        ("problem", "up/none"): "no video",
        ("note", "-"): "val_videofolder.txt has no clips of: Down",
    }
    assert_findings(texts(home)["process_report.txt"], expected)


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("", ["line 1"]),
        ("video,label,split\n", ["is empty"]),
        ("up/0,Up\n", ["line 1", "video,label"]),
        (CSV + "up/3,Up\n", ["line 6", "''"]),
        (CSV + "/elsewhere/up/3,Up,val\n", ["line 6", "/elsewhere/up/3"]),
        (CSV + "up/0.mp4,Up,val\n", ["line 6", "up/0"]),
        (CSV + "up/3,Up,dev\n", ["line 6", "dev"]),
        (CSV + "up/3,,train\n", ["line 6", "up/3"]),
        (CSV + "../3,Up,train\n", ["line 6", "../3"]),
        (CSV + "up/3,Sideways,test\n", ["Sideways", "category.txt"]),
        (CSV.replace("up/2", "up/clip 2"), ["up/clip 2"]),
        (CSV.replace("validation", "test"), ["'val'"]),
    ],
)
def test_wrong_csv(text: str, culprits: list[str], tmp_path: Path) -> None:
    (tmp_path / "own/videos").mkdir(parents=True)
    (tmp_path / "own/category.txt").write_text("Up\nDown\n")
    (tmp_path / "my.csv").write_text(text)
    done = process(tmp_path, "own", "--annotations", tmp_path / "my.csv")
    assert_one_line_error(done, *culprits)
    assert texts(tmp_path / "own") == {"category.txt": "Up\nDown\n"}


def test_wrong_class_folders(tmp_path: Path) -> None:
    for number, (videos, culprit) in enumerate(
        (
            ([], "--videos"),
            (["1.mp4"], "CLASS/VIDEO"),
            (["up/1.mp4"], "two groups"),
            (["up/1.mp4", "up/2.mp4", "down/1.txt"], "clips/down"),
            (["train/up/1.mp4", "val/up/1.mp4"], "clips/train"),
            (["up/1.mp4", "up/a\tb.mp4"], "up/a\\tb.mp4"),
        )
    ):
        for name in videos:
            path = tmp_path / str(number) / "clips" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        done = process(tmp_path / "data", "own", "--videos", tmp_path / str(number) / "clips")
        assert_one_line_error(done, culprit)
        assert not (tmp_path / "data").exists()


def test_wrong_options(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", V1_FOLDERS)
    (tmp_path / "jester").mkdir()
    (tmp_path / "my.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text("video,label,split\nup/1,,test\n")
    (tmp_path / "own/videos").mkdir(parents=True)
    videos = write_videos(tmp_path / "clips", {"up/1.mp4": 3, "up/2.mp4": 3})
    (tmp_path / "taken/videos").mkdir(parents=True)
    for dataset, words, culprits in (
        ("jester", ["--check"], ["20bn-jester-v1"]),
        ("a/b", ["--check"], ["--dataset"]),
        ("somethingv1", ["--check"], [home / "category.txt"]),
        ("somethingv1", [], ["--annotations"]),
        ("somethingv1", ["--annotations", tmp_path], ["v1-labels.csv"]),
        ("somethingv1", ["--annotations", tmp_path, "--seed", 1], ["--seed"]),
        ("own", ["--annotations", tmp_path / "my.csv", "--seed", 1], ["--seed", "my.csv"]),
        ("own", ["--annotations", tmp_path / "test.csv"], [tmp_path / "own/category.txt"]),
        ("own", ["--group", "("], ["--group"]),
        ("own", ["--annotations", tmp_path / "my.csv", "--group", "x"], ["--group", "up/0"]),
        ("own", ["--annotations", tmp_path / "my.csv", "--group_column", "x"], ["--group_column"]),
        ("taken", ["--videos", videos], [tmp_path / "taken/videos"]),
    ):
        assert_one_line_error(process(tmp_path, dataset, *words), *culprits)
    (home / "train.txt").touch()
    words = ["--annotations", annotate_v1(tmp_path / "csv")]
    assert_one_line_error(process(tmp_path, "somethingv1", *words), home / "train.txt")
