"""tools/process_dataset.py: lists from annotations, class folders and CSVs; checks of lists."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, assert_one_line_error, call, files_limited_to, finish
from PIL import Image
from test_annotations import DIVE, annotate
from video_files import cut, write_audio, write_video

from classes import released_categories
from dataset import open_videos
from datasets_video import layout, return_dataset

TOOL = "tools/process_dataset.py"


def make_frames(
    root: Path, dataset: str, folders: dict[str, int], template: str = "", first: int = 1
) -> Path:
    """Write frame folders, from their names and numbers of frames; return the data set's folder."""
    names = layout(dataset)
    for name, count in folders.items():
        folder = root / dataset / names.frames / name
        folder.mkdir(parents=True)
        for number in range(first, first + count):
            image = Image.new("RGB", (32, 32), (number % 256, 90, 40))
            image.save(folder / (template or names.template).format(number))
    return root / dataset


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


def assert_findings(text: str, expected: dict[tuple[str, str], str]) -> None:
    """Check the kind and name of every finding of a report or --check, and a part of its text."""
    lines = [line.split("\t") for line in text.splitlines() if "\t" in line]
    actual = {(kind, name): what for kind, _, name, what in lines}
    assert actual.keys() == expected.keys()
    for key, what in expected.items():
        assert what in actual[key], actual[key]


def whole_state(folder: Path) -> dict[Path, bytes | int]:
    """The contents of all files, and the times of their last changes."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# Lists of the official data sets.


def test_official_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv2", {"7": 5, "9": 4, "10": 3})
    done = succeed(tmp_path, "somethingv2", "--annotations", annotate(tmp_path, "somethingv2"))
    assert texts(home) == {
        "category.txt": "Up\nMoving it\n",
        "train_videofolder.txt": "7 5 1\n",
        "val_videofolder.txt": "9 4 0\n",
        "test_videofolder.txt": "10 3\n",
        "process_report.txt": "",
    }
    assert "train_videofolder.txt: 1 video\n" in done.stdout
    before = whole_state(home)
    assert "0 problems, 0 notes" in succeed(tmp_path, "somethingv2", "--check").stdout
    assert whole_state(home) == before


def test_diving48_lists_stop_at_the_end(tmp_path: Path) -> None:
    counts = {"whole": 9, "one_off": 9, "longer": 9, "shorter": 5, "a b": 4}
    ends = {"whole": 9, "one_off": 8, "longer": 6, "shorter": 9, "a b": 4}
    home = make_frames(tmp_path, "diving48", counts)
    *train, val = (DIVE | {"vid_name": name, "end_frame": end} for name, end in ends.items())
    succeed(
        tmp_path, "diving48", "--annotations", annotate(tmp_path, "diving48", V2_train=train, V2_test=[val])
    )
    written = texts(home)
    assert written["train_videofolder.txt"] == "whole 9 0\none_off 8 0\nlonger 6 0\nshorter 5 0\n"
    assert written["val_videofolder.txt"] == "a b 4 0\n"
    assert "test_videofolder.txt" not in written
    expected = {("note", "longer"): "9 frames, but the annotation ends at 6", ("note", "shorter"): "at 9"}
    assert_findings(written["process_report.txt"], expected)
    succeed(tmp_path, "diving48", "--check")  # here a list may stop before the folder does


def test_diving48_lists_have_all_frames_of_a_video(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "rgb", {"longer.mp4": 9, "val.mp4": 5})
    train, val = (DIVE | {"vid_name": name, "end_frame": 5} for name in ("longer", "val"))
    folder = annotate(tmp_path, "diving48", V2_train=[train], V2_test=[val])
    succeed(tmp_path, "diving48", "--videos", videos, "--annotations", folder)
    home = tmp_path / "diving48"
    assert texts(home)["train_videofolder.txt"] == "longer 9 0\n"
    (home / "train_videofolder.txt").write_text("longer 5 0\n")
    assert "the list says 5 frames, but there are 9" in process(tmp_path, "diving48", "--check").stdout


def test_unusual_class_order_is_noted(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", {"7": 3, "8": 3})
    names = released_categories()
    parts = {"labels": "".join(f"{name}\n" for name in names), "test": None}
    parts |= {"train": f"7;{names[5]}\n", "validation": f"8;{names[5]}\n"}
    succeed(tmp_path, "somethingv1", "--annotations", annotate(tmp_path, "somethingv1", **parts))
    (home / "category.txt").write_text("".join(f"{name}\n" for name in [*names[1:], names[0]]))
    done = succeed(tmp_path, "somethingv1", "--check")
    assert_findings(done.stdout, {("note", "-"): "Something-Something"})


# Problems.


def test_problems_prevent_lists_unless_skipped(tmp_path: Path) -> None:
    folders = {"7": 4, "gone": 4, "gap": 4, "late": 4, "8": 4, "cut": 4, "9": 3, "blank": 3, "empty": 3}
    home = make_frames(tmp_path, "somethingv1", folders | {"loop": 3, "pipe": 3})
    train = "7;Up\ngone;Up\ngap;Up\nlate;Up\nloop;Up\n"
    changes = {"train": train, "validation": "8;Up\ncut;Up\n", "test": "9\nblank\nempty\npipe\n"}
    words = ["--annotations", annotate(tmp_path, "somethingv1", **changes)]
    succeed(tmp_path, "somethingv1", *words)
    before = texts(home)

    frames = home / layout("somethingv1").frames
    for name in ("gone", "loop"):
        shutil.rmtree(frames / name)
    (frames / "loop").symlink_to("loop")
    (frames / "gap/00002.jpg").unlink()
    (frames / "late/00001.jpg").unlink()
    last = frames / "cut/00004.jpg"
    last.write_bytes(last.read_bytes()[:-12])
    (frames / "blank/00001.jpg").write_bytes(b"")
    for path in (frames / "empty").iterdir():
        path.unlink()
    (frames / "pipe/00001.jpg").unlink()
    os.mkfifo(frames / "pipe/00001.jpg")
    expected = {
        ("problem", "gone"): "No such file",
        ("problem", "loop"): "Too many levels",
        ("problem", "gap"): "00002.jpg is missing",
        ("problem", "late"): "begins with 00002.jpg, not with 00001.jpg",
        ("problem", "cut"): "00004.jpg: cannot be read as an image",
        ("problem", "blank"): "00001.jpg: cannot be read as an image",
        ("problem", "empty"): "numbered sequence",
        ("problem", "pipe"): "is a named pipe",
    }
    done = process(tmp_path, "somethingv1", *words)
    assert_one_line_error(done, home / "process_report.txt", "8 problems", "gone", "--skip_missing")
    after = texts(home)
    assert_findings(after["process_report.txt"], expected)
    assert after == before | {"process_report.txt": after["process_report.txt"]}

    # With the lists from before the damage, --check finds more. Each finding is one line.
    with (home / "train_videofolder.txt").open("a") as file:
        file.write("a\tb\x1b[1m 4 0\n\u2028x\u2028y 4 0\n")
    (frames / "7/00004.jpg").unlink()
    Image.new("RGB", (32, 32)).save(frames / "8/00005.jpg")
    state = whole_state(home)
    done = process(tmp_path, "somethingv1", "--check")
    assert done.returncode == 1
    expected |= {
        ("problem", "7"): "the list says 4 frames, but there are 3",
        ("problem", "8"): "the list says 4 frames, but there are 5",
        ("problem", "a\\tb\\x1b[1m"): "No such file",
        ("problem", "x\\u2028y"): "No such file",
    }
    assert_findings(done.stdout, expected)
    assert "12 problems, 0 notes" in done.stdout
    assert whole_state(home) == state

    done = succeed(tmp_path, "somethingv1", *words, "--skip_missing")
    assert "train_videofolder.txt: 1 of 5 videos\n" in done.stdout
    lists = [texts(home)[f"{part}_videofolder.txt"] for part in ("train", "val", "test")]
    assert lists == ["7 3 1\n", "8 5 1\n", "9 3\n"]


def test_video_in_two_lists_is_a_problem(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", {"7": 4, "8": 3, "9": 3})
    annotations = annotate(tmp_path, "somethingv1", validation="8;Up\n7;Up\n")
    assert_one_line_error(process(tmp_path, "somethingv1", "--annotations", annotations), "1 problem", "7")
    assert_findings(texts(home)["process_report.txt"], {("problem", "7"): "is already in train_videofolder"})


def test_check_reads_the_authors_lists(authors_root: Path) -> None:
    succeed(authors_root, "somethingv2", "--check")


def noise(size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(256, size=(*size, 3), dtype=np.uint8))


def test_decode_all_reads_every_listed_frame(tmp_path: Path) -> None:
    counts = {"a": 8, "b c": 5, "ends": 5, "fine": 4}
    home = make_frames(tmp_path, "diving48", counts)
    (home / "category.txt").write_text("Up\n")
    (home / "train_videofolder.txt").write_text("a 8 0\nb c 5 0\nends 3 0\n")
    (home / "val_videofolder.txt").write_text("fine 4 0\n")
    frames = home / "frames"
    noise().save(frames / "a/00003.jpg")
    cut(frames / "a/00003.jpg", 0.5)
    noise((16, 32)).save(frames / "b c/00004.jpg")
    (frames / "ends/00005.jpg").write_bytes(b"not listed")

    succeed(tmp_path, "diving48", "--check")
    done = process(tmp_path, "diving48", "--check", "--decode_all")
    assert (done.returncode, done.stderr) == (1, "")
    expected = {
        ("problem", "a"): "00003.jpg: cannot be read as an image",
        ("problem", "b c"): "frame 4 is 32 x 16, not 32 x 32",
    }
    assert_findings(done.stdout, expected)
    # As the docs cut out the videos to exclude.
    (tmp_path / "check.txt").write_text(done.stdout)
    assert "grep '^problem' check.txt | cut -f3 | sort -u" in (REPOSITORY / "docs/DATA.md").read_text()
    command = f"grep '^problem' '{tmp_path}/check.txt' | cut -f3 | sort -u"
    assert finish(["sh", "-c", command]).stdout == "a\nb c\n"


def test_full_disk_leaves_old_lists(tmp_path: Path) -> None:
    home = make_frames(tmp_path, "somethingv1", {"7": 4, "8": 3, "9": 3})
    words = ["--annotations", annotate(tmp_path, "somethingv1", labels="Up\nDown\nIn some other direction\n")]
    succeed(tmp_path, "somethingv1", *words)
    (home / "category.txt").write_text("old\n")  # the new one has 32 bytes
    before = whole_state(home)
    with files_limited_to(20):
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
    (videos / "up/notes.txt").touch()
    home = tmp_path / "data/own"
    done = succeed(tmp_path / "data", "own", "--videos", videos)
    assert (home / "videos").readlink() == videos
    assert texts(home)["category.txt"] == "down\nup\n"
    lists = own_lists(home)
    labels = {name: (count, int(name[0] == "u")) for name, count in STEMS.items()}
    assert lists["train"] | lists["val"] == labels
    assert len(lists["train"]) == 6  # 2 + 4
    assert [name.partition("/")[0] for name in lists["val"]] == ["down", "up"]
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
            ("problem", "up/cut"): "truncated",
            ("problem", "up/empty"): "empty file",
            ("problem", "up/text"): "not a video",
            ("problem", "up/twice"): "ambiguous, found .mp4 and .mkv",
            ("problem", "down/song"): "no video stream",
            ("problem", "down/pipe"): "is a named pipe",
            ("problem", "down/old"): "no such video (.webm, .mp4",
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
        ("problem", "up/1"): "the list says 4 frames, but there are 3",
        ("problem", "up/3"): "the list says 6 frames, but there are 9",
        ("problem", "down/1"): "no such video",
    }
    done = process(tmp_path, "own", "--check")
    assert done.returncode == 1
    assert_findings(done.stdout, expected)
    done = process(tmp_path, "own", "--check", "--decode_all")
    assert_findings(done.stdout, expected | {("problem", "up/late"): "damaged or truncated after"})


def test_class_folders_of_frames(tmp_path: Path) -> None:
    template = "img_{:05d}.jpg"
    home = make_frames(tmp_path, "own", STEMS, template, first=0)
    (home / "frames/up/extra.txt").touch()
    succeed(tmp_path, "own")
    lists = own_lists(home)
    assert {name: count for name, (count, _) in (lists["train"] | lists["val"]).items()} == STEMS
    succeed(tmp_path, "own", "--check", "--decode_all")
    # Training and testing find the frames without further options.
    paths = return_dataset("own", tmp_path)
    assert paths.first_frame == 0
    videos = open_videos(paths, 3, None, is_training=False)
    record, (clip, _) = videos.record(0), videos[0]
    path = home / "frames" / record.path / template.format(record.num_frames // 2)
    assert clip[1].tobytes() == Image.open(path).convert("RGB").tobytes()
    # With the videos, too: their classes, but these frames, unless --source says otherwise.
    videos = write_videos(tmp_path / "clips", OWN | {"up/new.mp4": 3})
    process(tmp_path, "own", "--videos", videos)
    assert_findings(texts(home)["process_report.txt"], {("problem", "up/new"): "No such file"})
    succeed(tmp_path, "own", "--source", "videos")
    assert "up/new" in own_lists(home)["train"] | own_lists(home)["val"]
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
        ("problem", "up/none"): "no such video",
        ("note", "-"): "val_videofolder.txt has no clips of: Down",
    }
    assert_findings(texts(home)["process_report.txt"], expected)


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("", ["line 1"]),
        ("video,label,split\n", ["is empty"]),
        ("up/0,Up\n", ["line 1", "video,label"]),
        ('video,label\n"up/0,Up\n' + "up/1,Up\n" * 20_000, ["line "]),  # a quote that is never closed
        ('"video,label\n' + "up/1,Up\n" * 20_000, ["line "]),
        (CSV + "up/3,Up\n", ["line 6", "''"]),
        (CSV + "up/0.mp4,Up,val\n", ["line 6", "up/0"]),
        (CSV + "up/3,Up,dev\n", ["line 6", "dev"]),
        (CSV + "up/3,,train\n", ["line 6", "up/3"]),
        (CSV + "../3,Up,train\n", ["line 6", "../3"]),
        (CSV + "up/3,Sideways,test\n", ["Sideways", "category.txt"]),
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
    home = make_frames(tmp_path, "somethingv1", {"7": 3})
    (tmp_path / "jester").mkdir()
    (tmp_path / "my.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text("video,label,split\nup/1,,test\n")
    (tmp_path / "own/videos").mkdir(parents=True)
    videos = tmp_path / "clips"
    for name in ("1.mp4", "2.mp4"):
        (videos / "up").mkdir(parents=True, exist_ok=True)
        (videos / "up" / name).touch()
    (tmp_path / "taken/videos").mkdir(parents=True)
    for dataset, words, culprits in (
        ("jester", ["--check"], ["20bn-jester-v1"]),
        ("a/b", ["--check"], ["--dataset"]),
        ("somethingv1", ["--check"], [home / "category.txt"]),
        ("somethingv1", [], ["--annotations"]),
        ("somethingv1", ["--annotations", tmp_path], ["v1-labels.csv"]),
        ("own", ["--annotations", tmp_path / "test.csv"], [tmp_path / "own/category.txt"]),
        ("own", ["--group", "("], ["--group"]),
        ("own", ["--annotations", tmp_path / "my.csv", "--group", "x"], ["--group", "up/0"]),
        ("own", ["--annotations", tmp_path / "my.csv", "--group_column", "x"], ["--group_column"]),
        ("taken", ["--videos", videos], [tmp_path / "taken/videos"]),
    ):
        assert_one_line_error(process(tmp_path, dataset, *words), *culprits)
