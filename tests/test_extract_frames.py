"""tools/extract_frames.py, run as a user runs it, on real VP9 and H.264 files."""

import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from extract_kill_harness import kill_and_compare, make_videos, tree
from helpers import REPOSITORY, assert_one_line_error, call, run
from PIL import Image
from video_files import (
    cut,
    make_strange,
    numbered_image,
    read_number,
    write_audio,
    write_blank,
    write_video,
)

sys.path.insert(0, str(REPOSITORY / "tools"))

import extract_frames

from frames.video import VideoError, decode

TOOL = "tools/extract_frames.py"
# name -> (frames, options of write_video)
WHOLE = {
    "odd size.webm": (24, {"width": 97, "height": 61}),
    "h264.mp4": (24, {}),
    "index last.mp4": (13, {"index_first": False}),
    "odd size 444.mp4": (9, {"width": 97, "height": 61, "pix_fmt": "yuv444p"}),
    "matroska.mkv": (12, {}),
    "old.avi": (12, {"codec": "mpeg4"}),
    "one.webm": (1, {}),
    "one frame.mp4": (1, {}),
    "five.webm": (5, {}),
    "five frames.mp4": (5, {}),
    "varying.webm": (8, {"times": [0, 1, 2, 7, 8, 20, 21, 30]}),
    "varying rate.mp4": (8, {"times": [0, 1, 2, 7, 8, 20, 21, 30]}),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos of `WHOLE`. Read only: it is shared."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (frames, options) in WHOLE.items():
        write_video(folder / name, frames, **options)
    return folder


@pytest.fixture(scope="module")
def native(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their frames in full size, at the best quality. Read only: it is shared."""
    out = tmp_path_factory.mktemp("native")
    extract(videos, out, "--native", "--quality", 100)
    return out


def extract(videos: Path, out: Path, *options: object, fails: bool = False) -> subprocess.CompletedProcess:
    process = run(TOOL, "--videos", videos, "--out", out, *options)
    assert process.returncode == (1 if fails else 0), process.stderr
    return process


def numbers(folder: Path) -> list[int]:
    return [read_number(Image.open(path)) for path in sorted(folder.iterdir())]


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", WHOLE)
def test_frames_are_those_of_decoding_in_order(name: str, videos: Path, native: Path) -> None:
    frames = sorted((native / Path(name).stem).iterdir())
    with av.open(str(videos / name)) as container:
        stream = container.streams.video[0]
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        counted = stream.frames
    with av.open(str(videos / name)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert [path.name for path in frames] == [f"{i:05d}.jpg" for i in range(1, len(expected) + 1)]
    assert len(frames) == packets == WHOLE[name][0]
    assert counted in (0, len(frames))  # 0: this container does not say
    assert numbers(native / Path(name).stem) == list(range(1, len(frames) + 1))
    for path, image in zip(frames, expected, strict=True):
        jpeg = np.asarray(Image.open(path).convert("RGB"))
        assert jpeg.shape == image.shape
        # A frame differs from the next one by far more.
        assert np.abs(jpeg.astype(int) - image).mean() < 4


def test_sizes_and_jpeg_tables(videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    write_video(source / "wide.webm", 2, width=128, height=60)
    write_video(source / "tall.mp4", 2, width=60, height=128)
    sizes = {}
    for options in ((), ("--short_side", 30), ("--native",)):
        out = tmp_path / "_".join(map(str, ["out", *options]))
        extract(source, out, *options)
        sizes[options] = [Image.open(out / name / "00001.jpg").size for name in ("wide", "tall")]
    assert sizes[()] == [(256, 256), (256, 256)]
    assert sizes["--short_side", 30] == [(64, 30), (30, 64)]
    assert sizes[("--native",)] == [(128, 60), (60, 128)]
    # 8, 4, 4, 5 ... 20 is what `ffmpeg -q:v 2` writes; 4:2:0, as it does too.
    image = Image.open(tmp_path / "out" / "wide" / "00001.jpg")
    assert image.quantization[0][:4] == [8, 4, 4, 5] and image.quantization[0][-1] == 20
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    extract(source, tmp_path / "small", "--quality", 30)
    small, default = ((tmp_path / name / "tall" / "00002.jpg").stat().st_size for name in ("small", "out"))
    assert small < default


BT709, FULL = 1, 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.webm", {}),
        ("plain.mp4", {}),
        ("hd.mp4", {"colorspace": BT709}),
        ("hd.webm", {"colorspace": BT709}),
        ("full.mp4", {"color_range": FULL}),
        ("both.webm", {"colorspace": BT709, "color_range": FULL}),
    ],
)
def test_colours_survive(name: str, options: dict, tmp_path: Path) -> None:
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    image = np.repeat(np.array(colours, dtype=np.uint8)[None], 64, axis=0).repeat(32, axis=1)
    write_video(tmp_path / name, [image] * 3, **options)
    settings = extract_frames.Settings(None, True, 100, None, "{:05d}.jpg")
    for jpeg in extract_frames.read_jpegs(tmp_path / name, settings):
        seen = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))[32, 16::32].astype(int)
        assert np.abs(seen - colours).max() <= 4, seen


def test_no_shade_is_moved(tmp_path: Path) -> None:
    """A rounding that always goes down would show in the mean over many colours."""
    rng = np.random.default_rng(0)
    image = rng.integers(30, 220, (16, 16, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    write_video(tmp_path / "colours.mp4", [image])
    with av.open(str(tmp_path / "colours.mp4")) as container:
        frame = next(container.decode(video=0))
        luma, blue, red = (
            np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            for plane in frame.planes
        )
    expected = [(luma.mean() - 16) * 255 / 219, *((p.mean() - 128) * 255 / 224 + 128 for p in (blue, red))]
    settings = extract_frames.Settings(None, True, 100, None, "{:05d}.jpg")
    jpeg = Image.open(io.BytesIO(next(extract_frames.read_jpegs(tmp_path / "colours.mp4", settings))))
    jpeg.draft("YCbCr", jpeg.size)
    assert np.allclose(np.asarray(jpeg).reshape(-1, 3).mean(axis=0), expected, atol=0.2)


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_turned_video_is_upright(turn: int, tmp_path: Path) -> None:
    image = numbered_image(5, 96, 64)
    write_video(tmp_path / "turned.mp4", [image], turn=turn)
    settings = extract_frames.Settings(None, True, 100, None, "{:05d}.jpg")
    jpeg = Image.open(io.BytesIO(next(extract_frames.read_jpegs(tmp_path / "turned.mp4", settings))))
    upright = np.rot90(image, turn // 90)
    assert np.abs(np.asarray(jpeg.convert("RGB")).astype(int) - upright).mean() < 6


def test_a_title_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "titled.webm"
    write_video(path, 3, title="smorgasbord")
    assert b"smorgasbord" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"smorgasbord", "smörgåsbord".encode("latin-1")))
    assert len(list(decode(path))) == 3


@pytest.mark.parametrize("name", ["varying.webm", "varying rate.mp4"])
def test_fps_shows_what_is_on_the_screen(name: str, videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    (source / name).write_bytes((videos / name).read_bytes())
    times = WHOLE[name][1]["times"]
    for fps in (12, 6, 24):
        out = tmp_path / f"out{fps}"
        extract(source, out, "--fps", fps)
        instants = [Fraction(k, fps) for k in range(math.ceil(Fraction(31 * fps, 12)))]
        expected = [sum(Fraction(time, 12) <= instant for time in times) for instant in instants]
        assert numbers(out / Path(name).stem) == expected


def test_the_number_of_processes_makes_no_difference(videos: Path, tmp_path: Path) -> None:
    extract(videos, tmp_path / "one", "--workers", 1)
    extract(videos, tmp_path / "three", "--workers", 3)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


def test_dataset_places_and_names_the_frames(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    write_video(source / "7.webm", 2)
    for dataset in ("somethingv2", "diving48", "my data"):
        process = run(TOOL, "--videos", source, "--dataset", dataset, "--root_path", tmp_path)
        assert process.returncode == 0, process.stderr
    frames = tmp_path / "somethingv2/20bn-something-something-v2-frames/7"
    assert sorted(path.name for path in frames.iterdir()) == ["000001.jpg", "000002.jpg"]
    assert (tmp_path / "diving48/frames/7/00002.jpg").is_file()
    assert (tmp_path / "my data/frames/7/00002.jpg").is_file()


def make_broken(folder: Path) -> dict[str, str]:
    """Fill a folder with videos that cannot be used, and say what the reason of each begins with."""
    reasons = {"empty.webm": "empty", "silence.webm": "no video stream", "mute.mp4": "no video stream"}
    (folder / "empty.webm").touch()
    write_audio(folder / "silence.webm")
    write_audio(folder / "mute.mp4")
    (folder / "text.webm").write_text("this is no video\n" * 50)
    Image.new("RGB", (64, 64)).save(folder / "picture.mp4", "JPEG")
    reasons |= dict.fromkeys(["text.webm", "picture.mp4"], "not a video")
    for share in (5, 50, 90, 99):
        for name in ("a.webm", "b.mp4", "last.mp4", "c.mkv", "d.avi"):
            path = folder / f"{share}{name}"
            codec = "mpeg4" if name.endswith("avi") else None
            write_video(path, 20, codec=codec, index_first=name != "last.mp4")
            cut(path, share / 100)
            reasons[path.name] = "truncated"
    return reasons


def test_broken_videos_are_reported_and_the_rest_continues(tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    reasons = make_broken(source)
    write_video(source / "good.webm", 3)
    write_video(source / "also good.mp4", 4)
    process = extract(source, out, "--image_tmpl", "img_{:03d}.jpg", fails=True)
    assert "Traceback" not in process.stderr and "\r" not in process.stderr + process.stdout
    assert folders(out) == ["also good", "good"]
    assert (out / "also good/img_004.jpg").is_file()
    report = dict(line.split("\t") for line in (out / "extract_failures.txt").read_text().splitlines())
    assert sorted(report) == sorted(reasons)
    for name, reason in reasons.items():
        assert report[name].startswith(reason), (name, report[name])
        assert f"{name}: {report[name]}" in process.stderr
    assert f"2 extracted now, 0 before, {len(reasons)} failed" in process.stdout


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.mkv"])
def test_no_truncation_goes_unnoticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_video(path, 20)
    data = path.read_bytes()
    for length in [*range(1, len(data), 97), *range(len(data) - 12, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(VideoError):
            list(decode(path))


def test_a_download_whose_end_is_still_zeros(tmp_path: Path) -> None:
    for name in ("a.webm", "a.mp4"):
        path = tmp_path / name
        write_video(path, 20)
        size = path.stat().st_size
        cut(path, 0.6)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        with pytest.raises(VideoError):
            list(decode(path))


def test_a_rerun_does_only_what_is_missing(tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    for name in ("first.webm", "second.mp4", "third.webm"):
        write_video(source / name, 4)
    whole = (source / "third.webm").read_bytes()
    cut(source / "third.webm", 0.5)
    extract(source, out, fails=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    # What a killed run leaves: a folder half full and a file half written, under other names.
    (out / ".0123.part").mkdir()
    (out / ".0123.part/00001.jpg").write_bytes(b"half")
    (out / ".4567.part").write_bytes(b"half")
    (source / "third.webm").write_bytes(whole)
    process = extract(source, out)
    assert "1 extracted now, 2 before, 0 failed" in process.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert numbers(out / "third") == [1, 2, 3, 4]
    assert sorted(path.name for path in out.iterdir()) == [".extract_frames.json", "first", "second", "third"]
    # Finished ones are not even opened.
    for path in source.iterdir():
        path.write_bytes(b"")
    assert "0 extracted now, 3 before" in extract(source, out).stdout


def test_different_settings_are_not_mixed(tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    write_video(source / "a.webm", 2)
    extract(source, out)
    before = tree(out)
    for options in (["--native"], ["--quality", "80"], ["--fps", "6"], ["--image_tmpl", "{:03d}.jpg"]):
        process = call(TOOL, "--videos", source, "--out", out, *options)
        assert_one_line_error(process, out, options[0], "new folder")
    assert tree(out) == before
    (out / ".extract_frames.json").write_text("{")
    settings = out / ".extract_frames.json"
    for content in ("", "[" * 100_000, "[]", '{"native": 1}', "\xff"):
        settings.write_bytes(content.encode("latin-1"))
        assert_one_line_error(call(TOOL, "--videos", source, "--out", out), settings.name)
    settings.unlink()
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)):
        make(settings)
        assert_one_line_error(call(TOOL, "--videos", source, "--out", out), settings.name, "cannot be read")
        settings.rmdir() if settings.is_dir() else settings.unlink()
    other = tmp_path / "other"
    (other / "1").mkdir(parents=True)
    assert_one_line_error(call(TOOL, "--videos", source, "--out", other), other, "another program")


def failed(process: subprocess.CompletedProcess[str], out: Path) -> dict[str, str]:
    """What failed and why, by the report; the same lines, and no others, are on stderr."""
    assert process.returncode == 1, process.stderr
    report = (out / "extract_failures.txt").read_text().splitlines()
    assert sorted(process.stderr.splitlines()) == sorted(line.replace("\t", ": ") for line in report)
    return dict(line.split("\t") for line in report)


def make_source(folder: Path, *names: str, frames: int = 2) -> Path:
    """A folder with the same video under each of these names, which may be in folders."""
    folder.mkdir()
    write_video(folder / "first.mp4", frames)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "first.mp4", folder / name)
    return folder


def test_what_is_not_a_file_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_source(tmp_path / "videos"))
    reasons = make_strange(Path())
    Path("again").symlink_to(".")
    Path("folder.mp4").mkdir()
    process = call(TOOL, "--videos", ".", "--out", tmp_path / "out")
    report = failed(process, tmp_path / "out")
    assert report.pop("again") == "is the same folder as --videos"
    assert report == {name: report[name] for name in reasons}
    assert all(reason in report[name] for name, reason in reasons.items()), report
    assert folders(tmp_path / "out") == ["first"]
    for name in ("pipe", "dangling.mp4"):
        process = call(TOOL, "--videos", name, "--out", tmp_path / name)
        assert_one_line_error(process, name, reasons[name])


BAD_NAMES = {
    "extract_failures.txt.mp4": "not for frames",
    "Extract_failures.txt/a.mp4": "not for frames",
    "line\nbreak.mp4": "list",
    "tab\there.mp4": "list",
    "escape\x1b[31m.mp4": "list",
    "paragraph\u2029.mp4": "list",
    "not utf-8 \udcff.mp4": "list",
    " before.mp4": "list",
    "after\u3000.mp4": "list",
    "twice.mp4": "same folder as twice.webm",
    "twice.webm": "same folder as twice.mp4",
    "class.mp4": "other videos' frames",
}
GOOD_NAMES = ["日本　語 👩‍🚀.mp4", "x" * 251 + ".mp4", "class/a b.mp4", "class/deep/c.tar.mp4"]


def test_a_bad_name_costs_its_video_alone(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos", *BAD_NAMES, *GOOD_NAMES), tmp_path / "out"
    process = call(TOOL, "--videos", source, "--out", out)
    report = failed(process, out)
    assert set(report) == {ascii(name)[1:-1] for name in BAD_NAMES}
    assert all(reason in report[ascii(name)[1:-1]] for name, reason in BAD_NAMES.items()), report
    assert all(len(list((out / name[:-4]).iterdir())) >= 2 for name in GOOD_NAMES)
    assert f"{1 + len(GOOD_NAMES)} extracted now, 0 before, {len(BAD_NAMES)} failed" in process.stdout


def test_a_name_that_is_taken_in_the_output_folder(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos", "a.mp4", "b.mp4", "class/c.mp4"), tmp_path / "out"
    out.mkdir()
    for name in ("a", "class"):
        (out / name).write_text("mine")
    assert call(TOOL, "--videos", source / "first.mp4", "--out", out).returncode == 0
    (out / "b").mkdir()
    (out / "b" / "mine").touch()
    report = failed(call(TOOL, "--videos", source, "--out", out), out)
    assert list(report) == ["a.mp4", "b.mp4", "class/c.mp4"]
    assert all("cannot be made its frame folder" in reason for reason in report.values())
    assert (out / "a").read_text() == (out / "class").read_text() == "mine"
    assert [path.name for path in (out / "b").iterdir()] == ["mine"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_report_that_cannot_be_written_stops_it_before_the_work(make: Callable, tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos"), tmp_path / "out"
    out.mkdir()
    make(out / "extract_failures.txt")
    process = call(TOOL, "--videos", source, "--out", out)
    assert_one_line_error(process, out / "extract_failures.txt", "not a file")
    assert [path.name for path in out.iterdir()] == ["extract_failures.txt"]


def test_folders_of_classes(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos", "jump/a.mp4", "run/a.mp4"), tmp_path / "videos" / "frames"
    elsewhere = make_source(tmp_path / "elsewhere")
    (source / "linked").symlink_to(elsewhere)
    (source / "twice").symlink_to(source / "jump")
    for skipped in ("", "skipped frames (hidden, or not a video)"):  # then they are among the videos
        process = call(TOOL, "--videos", source, "--out", out)
        assert skipped in process.stdout
        report = failed(process, out)
        assert report == {"twice": "is the same folder as jump"}
        made = sorted(str(path.parent.relative_to(out)) for path in out.rglob("00002.jpg"))
        assert made == ["first", "jump/a", "linked/first", "run/a"]
    assert_one_line_error(call(TOOL, "--videos", out, "--out", tmp_path / "other"), "frames")


def test_strangers_among_the_videos_are_skipped_with_a_word(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos"), tmp_path / "out"
    for name in ("README.txt", "Thumbs.db", "first.srt", ".hidden.mp4"):
        (source / name).write_text("not a video")
    (source / ".cache").mkdir()
    process = call(TOOL, "--videos", source, "--out", out)
    assert (process.returncode, process.stderr) == (0, "")
    skipped = ".cache, .hidden.mp4, README.txt and 2 more"
    assert process.stdout.startswith(f"{source}: skipped {skipped} (hidden, or not a video)\n")
    assert folders(out) == ["first"]


def test_a_single_video(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos", "other.mp4", ".hidden.mp4"), tmp_path / "out"
    (source / "first.mp4").rename(source / "first")
    process = call(TOOL, "--videos", source / "first", "--out", out)
    assert process.returncode == 0 and "1 video, 1 extracted now" in process.stdout
    assert folders(out) == ["first"]
    report = failed(call(TOOL, "--videos", source / ".hidden.mp4", "--out", out), out)
    assert "not for frames" in report[".hidden.mp4"]
    assert folders(out) == ["first"]


def test_times_that_are_days_apart_do_not_fill_the_disk(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos"), tmp_path / "out"
    write_video(source / "hour.mp4", 3, times=[0, 1, 3600 * 12])
    write_video(source / "days.webm", 3, times=[0, 1, 3 * 24 * 3600 * 12])
    report = failed(call(TOOL, "--videos", source, "--out", out, "--fps", 12), out)
    assert list(report) == ["days.webm", "hour.mp4"]
    assert all(reason.startswith("--fps would repeat frame 2 ") for reason in report.values())
    assert folders(out) == ["first"]
    assert call(TOOL, "--videos", source, "--out", tmp_path / "every").returncode == 0


def test_frames_that_no_jpeg_can_hold(tmp_path: Path) -> None:
    source = make_source(tmp_path / "videos")
    write_blank(source / "wide.mkv", 66000, 16, "ffv1", "gray")
    for options, reasons in (
        (["--native"], {"wide.mkv": "frames of 66000 x 16 pixels, but no side of a JPEG exceeds 65500"}),
        (["--short_side", "8"], {}),
        (
            ["--short_side", "16000"],
            {
                "first.mp4": "frames of 24000 x 16000 pixels, which is more than 89478485",
                "wide.mkv": "frames of 66000000 x 16000 pixels, but no side of a JPEG exceeds 65500",
            },
        ),
        ([], {}),
    ):
        out = tmp_path / f"out{len(options)}{options[-1:]}"
        process = call(TOOL, "--videos", source, "--out", out, *options)
        assert (failed(process, out) if reasons else {}) == reasons
        assert process.returncode == (1 if reasons else 0)
        assert len(folders(out)) == 2 - len(reasons)


def test_folders_whose_names_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff\n"
    folder.mkdir()
    source = make_source(folder / "videos", "empty.webm")
    (source / "empty.webm").write_bytes(b"")
    process = call(TOOL, "--videos", source, "--out", folder / "out")
    assert failed(process, folder / "out") == {"empty.webm": "empty file"}
    assert folders(folder / "out") == ["first"]


def test_closed_pipe_ends_extraction(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "videos", "second.mp4"), tmp_path / "out"
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, REPOSITORY / TOOL, "--videos", source, "--out", out, "--workers", "2"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert len(process.stderr.splitlines()) == 1 and "Traceback" not in process.stderr
    assert process.returncode == 1
    assert [numbers(out / name) for name in ("first", "second")] == [[1, 2], [1, 2]]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """The short form of extract_kill_harness.py."""
    make_videos(tmp_path / "videos", 60)
    progress = kill_and_compare(tmp_path / "videos", tmp_path, kills=4, seed=0)
    assert 0 < progress[-1] < 59


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    make_videos(tmp_path / "videos", 40)
    out = tmp_path / "out"
    command = [sys.executable, REPOSITORY / TOOL, "--videos", tmp_path / "videos", "--out", out]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a script would hand down that they ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(out.glob("[!.]*")):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not list(out.glob(".*.part"))


def test_no_room_stops_with_one_line(tmp_path: Path) -> None:
    """A limit on the size of a file stands for a full disk."""
    source, out = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    for number in range(4):
        write_video(source / f"{number}.webm", 5)
    command = [sys.executable, REPOSITORY / TOOL, "--videos", source, "--out", out]
    process = subprocess.run(
        [*command, "--workers", "2"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert_one_line_error(process, out, "File too large", "continues")
    assert sorted(path.name for path in out.iterdir()) == [".extract_frames.json"]


def _die_of_it(name: str) -> str | None:
    if name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return None


def test_a_video_that_kills_the_process_fails_alone() -> None:
    videos = [*map(str, range(9)), "deadly", *map(str, range(10, 20))]
    ended = list(extract_frames.run_in_processes(_die_of_it, videos, workers=2))
    assert sorted(name for name, _ in ended) == sorted(videos)
    assert [name for name, reason in ended if reason] == ["deadly"]


def test_a_video_that_is_handed_out_twice(tmp_path: Path) -> None:
    source = make_source(tmp_path / "videos")
    settings = extract_frames.Settings(None, False, None, None, "{:05d}.jpg")
    for _ in range(2):
        assert extract_frames.extract_video(source, tmp_path, settings, "first.mp4") is None
    assert folders(tmp_path) == ["first", "videos"]


def test_few_videos_are_handed_out_at_a_time() -> None:
    taken = 0

    def names() -> object:
        nonlocal taken
        for taken in range(1, 201):
            yield str(taken)

    for done, _ in enumerate(extract_frames.run_in_processes(_die_of_it, names(), workers=2)):
        assert taken <= done + 2 * 2
    assert taken == 200


def test_files_are_closed(videos: Path, tmp_path: Path) -> None:
    """Each video more, one more open file: that would be the end after a thousand of them."""
    settings = extract_frames.Settings(None, False, None, None, "{:05d}.jpg")
    broken = tmp_path / "broken"
    broken.mkdir()
    make_broken(broken)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for folder in (videos, broken):
        for path in folder.iterdir():
            extract_frames.extract_video(folder, tmp_path, settings, path.name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--videos", "{empty}", "--out", "{new}"], ["--videos", "{empty}", "no videos"]),
        (["--videos", "{empty}/none", "--out", "{new}"], ["--videos", "{empty}/none", "No such file"]),
        (["--videos", "{stray}", "--out", "{new}"], ["--videos", "{stray}", "no videos", "README.txt"]),
        (["--videos", "{one}/loop", "--out", "{new}"], ["--videos", "Too many levels"]),
        (["--videos", "{one}/" + "x" * 300, "--out", "{new}"], ["--videos", "File name too long"]),
        (["--videos", "{one}", "--out", "{empty}/" + "x" * 300], ["--out", "File name too long"]),
        (
            ["--videos", "{one}", "--out", "{one}/loop"],
            ["{one}/loop", "is a symbolic link that leads nowhere"],
        ),
        (["--videos", "", "--out", "{new}"], ["--videos", "is empty"]),
        (["--videos", "{one}", "--out", "{one}/pipe"], ["--out", "{one}/pipe", "not a folder"]),
        (["--videos", "{one}"], ["--dataset", "--root_path", "--out"]),
        (["--videos", "{one}", "--dataset", "diving48"], ["--root_path"]),
        (["--videos", "{one}", "--dataset", "../x", "--root_path", "{new}"], ["--dataset", "not a path"]),
        (["--videos", "{one}", "--out", "{new}", "--dataset", "diving48"], ["--out"]),
        (["--videos", "{one}", "--out", "{new}", "--root_path", "{new}"], ["--root_path"]),
        (["--videos", "{one}", "--out", "{one}"], ["{one}", "holds the videos"]),
        (["--videos", "{one}", "--out", "{one}/a.webm"], ["--out", "{one}/a.webm", "not a folder"]),
        (["--videos", "{one}/a.webm", "--out", "{one}"], ["{one}", "holds the videos"]),
    ],
)
def test_bad_input_is_reported_in_one_line(options: list[str], words: list[str], tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("empty", "one", "stray", "new")}
    for name in ("empty", "one", "stray"):
        (tmp_path / name).mkdir()
    for path in ("one/a.webm", "stray/README.txt"):
        (tmp_path / path).touch()
    (tmp_path / "one/loop").symlink_to("loop")
    os.mkfifo(tmp_path / "one/pipe")
    process = call(TOOL, *(option.format(**places) for option in options))
    assert_one_line_error(process, *(word.format(**places) for word in words))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--short_side", "0"],
        ["--short_side", "many"],
        ["--quality", "101"],
        ["--fps", "0"],
        ["--fps", "1/0"],
        ["--fps", "nan"],
        ["--fps", "1e999999999"],
        ["--workers", "0"],
        ["--image_tmpl", "frame.jpg"],
        ["--image_tmpl", "../{:05d}.jpg"],
        ["--image_tmpl", "x" * 190 + "é" * 30 + "{:05d}.jpg"],
        ["--short_side", "9", "--native"],
    ],
)
def test_options_are_checked(options: list[str], tmp_path: Path) -> None:
    process = call(TOOL, "--videos", tmp_path, "--out", tmp_path / "new", *options)
    assert_one_line_error(process, options[-1][:190])


def test_the_settings_file_is_readable(native: Path) -> None:
    settings = json.loads((native / ".extract_frames.json").read_text())
    assert settings == {
        "short_side": None,
        "native": True,
        "quality": 100,
        "fps": None,
        "image_tmpl": "{:05d}.jpg",
    }
