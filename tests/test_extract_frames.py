"""tools/extract_frames.py, run as a user runs it, on real VP9 and H.264 files."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import REPOSITORY, assert_one_line_error, call, files_limited_to
from PIL import Image
from video_files import cut, read_number, write_audio, write_video

from utils.cli import UserError
from utils.pool import map_in_processes

sys.path.insert(0, str(REPOSITORY / "tools"))

import extract_frames

TOOL = "tools/extract_frames.py"
NATIVE = extract_frames.Settings(None, True, "{:05d}.jpg")
# name -> (frames, options of write_video)
WHOLE = {
    "odd size.webm": (24, {"width": 97, "height": 61}),
    "h264.mp4": (24, {}),
    "index last.mp4": (13, {"index_first": False}),
    "odd size 444.mp4": (9, {"width": 97, "height": 61, "pix_fmt": "yuv444p"}),
    "matroska.mkv": (12, {}),
    "old.avi": (12, {"codec": "mpeg4"}),
    "one.webm": (1, {}),
    "varying.webm": (8, {"times": [0, 1, 2, 7, 8, 20, 21, 30]}),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The videos of `WHOLE`. Read only."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (frames, options) in WHOLE.items():
        write_video(folder / name, frames, **options)
    return folder


@pytest.fixture(scope="module")
def native(videos, tmp_path_factory):
    """Their frames in full size. Read only."""
    out = tmp_path_factory.mktemp("native")
    extract(videos, out, "--native")
    return out


def extract(videos, out, *options, status=0):
    process = call(TOOL, "--videos", videos, "--out", out, "--workers", 1, *options)
    assert process.returncode == status, process.stderr
    return process


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the contents of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def make_source(folder, *names):
    """A folder with the same video under `first.mp4` and each of these names."""
    folder.mkdir()
    write_video(folder / "first.mp4", 2)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "first.mp4", folder / name)
    return folder


def numbers(folder):
    return [read_number(Image.open(path)) for path in sorted(folder.iterdir())]


def folders(out):
    return sorted(path.name for path in out.iterdir() if path.is_dir())


def read_report(process, out):
    """The failed videos and the reasons; the same lines, and no others, are on stderr."""
    lines = (out / "extract_failures.txt").read_text().splitlines()
    assert sorted(process.stderr.splitlines()) == sorted(line.replace("\t", ": ") for line in lines)
    return dict(line.split("\t") for line in lines)


def first_jpeg(path):
    return Image.open(io.BytesIO(next(extract_frames.read_jpegs(path, NATIVE))))


@pytest.mark.parametrize("name", WHOLE)
def test_frames_are_decoded_in_order(name, videos, native):
    frames = sorted((native / Path(name).stem).iterdir())
    with av.open(str(videos / name)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(expected) == WHOLE[name][0]
    assert [path.name for path in frames] == [f"{i:05d}.jpg" for i in range(1, len(expected) + 1)]
    assert numbers(native / Path(name).stem) == list(range(1, len(frames) + 1))
    for path, image in zip(frames, expected, strict=True):
        jpeg = np.asarray(Image.open(path).convert("RGB"))
        assert jpeg.shape == image.shape
        assert np.abs(jpeg.astype(int) - image).mean() < 4  # successive frames differ by far more


def test_sizes_and_jpeg_tables(tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    write_video(source / "wide.webm", 2, width=128, height=60)
    write_video(source / "tall.mp4", 2, width=60, height=128)
    for number, (options, sizes) in enumerate(
        [
            ((), [(256, 256), (256, 256)]),
            (("--short_side", 30), [(64, 30), (30, 64)]),
            (("--native",), [(128, 60), (60, 128)]),
        ]
    ):
        out = tmp_path / f"out{number}"
        extract(source, out, *options)
        assert [Image.open(out / name / "00001.jpg").size for name in ("wide", "tall")] == sizes
    # ffmpeg -q:v 2 writes these tables, and 4:2:0.
    image = Image.open(tmp_path / "out0/wide/00001.jpg")
    assert image.quantization[0][:4] == [8, 4, 4, 5] and image.quantization[0][-1] == 20
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


BT709, FULL = 1, 2


@pytest.mark.parametrize(
    "tags", [{}, {"colorspace": BT709}, {"color_range": FULL}, {"colorspace": BT709, "color_range": FULL}]
)
def test_colours_are_kept(tags, tmp_path):
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    image = np.repeat(np.array(colours, dtype=np.uint8)[None], 64, axis=0).repeat(32, axis=1)
    path = tmp_path / "a.mp4"
    write_video(path, [image] * 2, **tags)
    pixels = np.asarray(first_jpeg(path).convert("RGB"))[32, 16::32].astype(int)
    assert np.abs(pixels - colours).max() <= 4


def test_colours_are_not_biased(tmp_path):
    """Rounding that always goes down would show in the mean over many colours."""
    rng = np.random.default_rng(0)
    image = rng.integers(30, 220, (16, 16, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    write_video(tmp_path / "colours.mp4", [image])
    with av.open(str(tmp_path / "colours.mp4")) as container:
        planes = next(container.decode(video=0)).planes
        means = [
            np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].mean() for p in planes
        ]
    expected = [(means[0] - 16) * 255 / 219, *((mean - 128) * 255 / 224 + 128 for mean in means[1:])]
    jpeg = first_jpeg(tmp_path / "colours.mp4")
    jpeg.draft("YCbCr", jpeg.size)
    assert np.allclose(np.asarray(jpeg).reshape(-1, 3).mean(axis=0), expected, atol=0.2)


def test_workers_do_not_change_frames(videos, native, tmp_path):
    extract(videos, tmp_path, "--native", "--workers", 2)
    assert tree(tmp_path) == tree(native)


def test_dataset_names_the_frames(tmp_path):
    source = make_source(tmp_path / "videos")
    for dataset in ("somethingv2", "my data"):
        words = ["--dataset", dataset, "--root_path", tmp_path, "--workers", 1]
        process = call(TOOL, "--videos", source, *words)
        assert process.returncode == 0, process.stderr
    frames = tmp_path / "somethingv2/20bn-something-something-v2-frames/first"
    assert sorted(path.name for path in frames.iterdir()) == ["000001.jpg", "000002.jpg"]
    assert (tmp_path / "my data/frames/first/00002.jpg").is_file()


def make_broken(folder):
    """Fill a folder with unusable videos; return the start of each one's reason."""
    reasons = {"empty.webm": "empty", "silence.webm": "no video stream", "text.webm": "not a video"}
    (folder / "empty.webm").touch()
    write_audio(folder / "silence.webm")
    (folder / "text.webm").write_text("this is no video\n" * 50)
    Image.new("RGB", (64, 64)).save(folder / "picture.mp4", "JPEG")
    reasons["picture.mp4"] = "not a video"
    for share in (5, 99):
        for name in ("a.webm", "b.mp4", "last.mp4", "c.mkv", "d.avi"):
            path = folder / f"{share}{name}"
            codec = "mpeg4" if name.endswith("avi") else None
            write_video(path, 20, codec=codec, index_first=name != "last.mp4")
            cut(path, share / 100)
            reasons[path.name] = "truncated"
    return reasons


def test_broken_videos_are_reported(tmp_path):
    source, out = make_source(tmp_path / "videos", "also good.mp4"), tmp_path / "out"
    reasons = make_broken(source)
    process = extract(source, out, status=1)
    assert folders(out) == ["also good", "first"]
    assert (out / "also good/00002.jpg").is_file()
    report = read_report(process, out)
    assert sorted(report) == sorted(reasons)
    assert all(report[name].startswith(reason) for name, reason in reasons.items()), report
    assert f"2 extracted now, 0 before, {len(reasons)} failed" in process.stdout


def test_rerun_extracts_what_is_missing(tmp_path):
    source, out = make_source(tmp_path / "videos", "second.mp4", "third.mp4"), tmp_path / "out"
    whole = (source / "third.mp4").read_bytes()
    cut(source / "third.mp4", 0.5)
    extract(source, out, status=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    # A killed run leaves unfinished folders under other names.
    (out / ".0123.part").mkdir()
    (out / ".0123.part/00001.jpg").write_bytes(b"half")
    (source / "third.mp4").write_bytes(whole)
    assert "1 extracted now, 2 before, 0 failed" in extract(source, out).stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert numbers(out / "third") == [1, 2]
    assert sorted(path.name for path in out.iterdir()) == [".extract_frames.json", "first", "second", "third"]
    for path in source.iterdir():  # finished ones are not even opened
        path.write_bytes(b"")
    assert "0 extracted now, 3 before" in extract(source, out).stdout


def test_settings_are_not_mixed(tmp_path):
    source, out = make_source(tmp_path / "videos"), tmp_path / "out"
    extract(source, out)
    before = tree(out)
    for options in (["--native"], ["--short_side", "80"]):
        process = call(TOOL, "--videos", source, "--out", out, *options)
        assert_one_line_error(process, out, options[0])
    assert tree(out) == before
    settings = out / ".extract_frames.json"
    assert set(json.loads(settings.read_text())) == {"short_side", "native", "image_tmpl"}
    (tmp_path / "other/1").mkdir(parents=True)
    assert_one_line_error(call(TOOL, "--videos", source, "--out", tmp_path / "other"), tmp_path / "other")


def test_names(tmp_path):
    good = ["日本　語 👩‍🚀.mp4", "x" * 251 + ".mp4", "class/a b.mp4", "class/deep/c.tar.mp4"]
    source = make_source(tmp_path / "videos", "twice.mp4", "twice.webm", "taken.mp4", *good)
    out = tmp_path / "out"
    (out / "taken").mkdir(parents=True)
    (out / "taken/mine").touch()
    (out / ".extract_frames.json").write_text(
        json.dumps(extract_frames.Settings(None, False, "{:05d}.jpg")._asdict())
    )
    report = read_report(extract(source, out, status=1), out)
    assert set(report) == {"twice.mp4", "twice.webm", "taken.mp4"}
    assert all(len(list((out / name[:-4]).iterdir())) >= 2 for name in good)
    assert [path.name for path in (out / "taken").iterdir()] == ["mine"]


def test_class_folders(tmp_path):
    source = make_source(tmp_path / "videos", "jump/a.mp4", "run/a.mp4")
    (source / "linked").symlink_to(make_source(tmp_path / "elsewhere"))
    (source / "README.txt").write_text("not a video")
    for _ in range(2):  # the second time, the frames are among the videos
        process = extract(source, source / "frames")
        assert process.stderr.startswith(f"warning: {source}: skipped ") and "README.txt" in process.stderr
        made = sorted(str(path.parent.relative_to(source)) for path in source.rglob("00002.jpg"))
        assert made == ["frames/first", "frames/jump/a", "frames/linked/first", "frames/run/a"]
    # A single video, whatever its suffix.
    (source / "first.mp4").rename(source / "first")
    assert "1 video, 1 extracted now" in extract(source / "first", tmp_path / "single").stdout
    assert folders(tmp_path / "single") == ["first"]
    assert_one_line_error(call(TOOL, "--videos", source / "frames", "--out", tmp_path / "other"), "frames")


def make_videos(folder: Path, count: int) -> None:
    """Fill a folder with videos, the last of them truncated."""
    folder.mkdir()
    for number in range(count):
        suffix = ".mp4" if number % 3 == 0 else ".webm"
        write_video(folder / f"{number}{suffix}", 12 + number % 20, width=160, height=120)
    cut(folder / f"{count - 1}{suffix}", 0.6)


def is_whole(folder: Path, expected: dict[str, bytes | None]) -> bool:
    """Whether everything with its final name has its final contents."""
    now = tree(folder)
    final = {Path(path).parts[0] for path in now if not path.startswith(".")}
    paths = [path for path in {*expected, *now} if Path(path).parts[0] in final]
    return all(path in now and path in expected and now[path] == expected[path] for path in paths)


def kill_and_compare(videos: Path, work: Path, kills: int, seed: int) -> list[int]:
    """Kill runs, alternately the first process alone and all processes; finish, and compare.

    Returns:
        Number of finished folders after each kill.
    """
    rng = random.Random(seed)
    undisturbed, disturbed = work / "undisturbed", work / "disturbed"
    command = [sys.executable, str(REPOSITORY / TOOL), "--videos", str(videos), "--workers", "2", "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert subprocess.run([*command, str(undisturbed)], **quiet).returncode == 1  # one video is broken
    expected = tree(undisturbed)
    progress: list[int] = []
    while len(progress) < kills:
        process = subprocess.Popen(
            [*command, str(disturbed)],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        before = len(list(disturbed.glob("[!.]*")))
        # Some kills are early, most after the first new folder.
        if rng.random() < 0.8:
            while process.poll() is None and len(list(disturbed.glob("[!.]*"))) == before:
                time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        assert process.poll() is None, f"too few videos: it ended before kill {len(progress) + 1}"
        if len(progress) % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate(timeout=60)  # until the last process has closed its output
        assert is_whole(disturbed, expected), f"incomplete after kill {len(progress) + 1}"
        progress.append(len(list(disturbed.glob("[!.]*"))))
    assert subprocess.run([*command, str(disturbed)], **quiet).returncode == 1
    assert tree(disturbed) == expected, "the trees differ"
    return progress


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_leaves_whole_folders(tmp_path):
    """`EXTRACT_KILLS=20 pytest --timeout 0 tests/test_extract_frames.py -k kill` kills 20 times."""
    kills = int(os.environ.get("EXTRACT_KILLS", "2"))
    make_videos(tmp_path / "videos", 15 * kills)
    progress = kill_and_compare(tmp_path / "videos", tmp_path, kills, seed=0)
    assert 0 < progress[-1] < 15 * kills - 1


@pytest.mark.slow
def test_ctrl_c_ends_without_traceback(tmp_path):
    make_videos(tmp_path / "videos", 20)
    out = tmp_path / "out"
    command = [sys.executable, REPOSITORY / TOOL, "--videos", tmp_path / "videos", "--out", out]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(out.glob("[!.]*")):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not list(out.glob(".*.part"))


def test_full_disk_is_one_line(tmp_path):
    """A limit on the size of a file replaces a full disk."""
    source, out = make_source(tmp_path / "videos", "second.mp4"), tmp_path / "out"
    with files_limited_to(1000):
        process = call(TOOL, "--videos", source, "--out", out, "--workers", 1)
    assert_one_line_error(process, out, "File too large")
    assert sorted(path.name for path in out.iterdir()) == [".extract_frames.json"]


def die(name):
    if name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_dead_process_is_one_line():
    with pytest.raises(UserError, match="a process died"):
        list(map_in_processes(die, ["a", "deadly", "b"], workers=2))


@pytest.mark.parametrize(
    ("command", "culprit"),
    [
        ("--videos {empty} --out {new}", "{empty}"),
        ("--videos {empty}/none --out {new}", "{empty}/none"),
        ("--videos {one}", "--out"),
        ("--videos {one} --dataset diving48", "--root_path"),
        ("--videos {one} --out {new} --short_side 0", "--short_side"),
        ("--videos {one} --out {new} --short_side 9 --native", "--native"),
    ],
)
def test_bad_options(command, culprit, tmp_path):
    paths = {name: str(tmp_path / name) for name in ("empty", "one", "new")}
    for name in ("empty", "one"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/a.webm").touch()
    process = call(TOOL, *(word.format(**paths) for word in command.split()))
    assert_one_line_error(process, culprit.format(**paths))
    assert not (tmp_path / "new").exists()
