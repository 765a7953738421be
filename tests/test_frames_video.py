"""frames/video.py: frames in time, and their images. See also test_extract_frames.py."""

from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from video_files import cut, make_strange, remux, write_audio, write_blank, write_video

from frames.video import (
    MAX_PIXELS,
    MAX_REPEATS,
    VideoError,
    check_length,
    count_frames,
    decode,
    is_video,
    resample,
    to_image,
)

TIMES = [0, 1, 2, 7, 8, 20, 21, 30, 31, 40, 50, 51]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *[
            (name, {})
            for name in ("b_frames.mp4", "b_frames.mkv", "b_frames.mov", "vp9.webm", "b_frames.avi")
        ],
        *[(name, {"times": TIMES}) for name in ("varying.mp4", "varying.webm", "varying.avi")],
        *[(f"old.{suffix}", {"codec": "mpeg4"}) for suffix in ("avi", "mp4")],
        ("interlaced.mkv", {"codec": "mpeg2video"}),
    ],
)
def test_frames_are_counted_without_decoding(name, how, tmp_path):
    write_video(tmp_path / name, 12, **how)
    assert count_frames(tmp_path / name) == sum(1 for _ in decode(tmp_path / name)) == 12


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [("a.webm", "libvpx", "b.webm"), ("a.webm", "libvpx-vp9", "b.mkv"), ("a.webm", "libvpx-vp9", "b.mp4")],
)
def test_invisible_frames_do_not_count(source, codec, target, tmp_path):
    write_video(tmp_path / source, 24, codec=codec)
    remux(tmp_path / source, tmp_path / target, hides_key_frames=True)
    decoded = sum(1 for _ in decode(tmp_path / target))
    assert count_frames(tmp_path / target) == decoded < 24


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_frames_before_the_start_of_an_edit_list_do_not_count(name, tmp_path):
    write_video(tmp_path / "whole.mp4", 36)
    remux(tmp_path / "whole.mp4", tmp_path / name, shift=1)
    assert count_frames(tmp_path / name) == sum(1 for _ in decode(tmp_path / name)) == 24


@pytest.mark.parametrize("how", ["truncated", "empty", "audio only", "text", "first frame", "no frame"])
def test_counting_refuses_what_decoding_refuses(how, tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, 12)
    if how == "truncated":
        cut(path, 0.7)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "audio only":
        write_audio(path)
    elif how == "text":
        path.write_text("not a video\n" * 50)
    elif how == "first frame":
        write_video(tmp_path / "a.mp4", 12)
        path = tmp_path / "a.mp4"
        data = path.read_bytes()
        start = data.index(b"mdat") + 4
        path.write_bytes(data[:start] + bytes(len(data) - start))
    else:
        write_video(tmp_path / "whole.mp4", 12)
        path = tmp_path / "a.mp4"
        remux(tmp_path / "whole.mp4", path, shift=100)
    reasons = []
    for read in (count_frames, lambda path: list(decode(path))):
        with pytest.raises(VideoError) as caught:
            read(path)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]


def frame_at(pts: int | None, shade: int = 0) -> av.VideoFrame:
    """A grey frame of 64 x 32, shown at `pts` tenths of a second."""
    frame = av.VideoFrame.from_ndarray(np.full((32, 64), shade, dtype=np.uint8), format="gray")
    frame.pts, frame.time_base = pts, Fraction(1, 10)
    return frame


@pytest.mark.parametrize(
    ("times", "fps", "shown"),
    [
        ([0, 1, 2, 3], 10, [1, 1, 1, 0]),  # nothing says how long the last one lasts
        ([0, 1, 2, 3], 5, [1, 0, 1, 0]),
        ([0, 1, 2], 20, [2, 2, 0]),
        ([5, 6, 9], 10, [1, 3, 0]),  # the first one is at the instant 0
        ([0], 10, [1]),
    ],
)
def test_resample(times, fps, shown):
    frames = [frame_at(time) for time in times]
    resampled = list(resample(iter(frames), Fraction(fps)))
    assert [frame for frame, _ in resampled] == frames
    assert [count for _, count in resampled] == shown


def test_resampling_needs_times():
    with pytest.raises(VideoError, match="without a time"):
        list(resample(iter([frame_at(0), frame_at(None)]), Fraction(10)))
    unclear = frame_at(1)
    unclear.time_base = Fraction(0)
    assert unclear.time_base is None
    with pytest.raises(VideoError, match="without a time"):
        list(resample(iter([frame_at(0), unclear]), Fraction(10)))


@pytest.mark.parametrize("start", [0, -(2**62), 7])
def test_a_frame_is_repeated_so_often_and_no_more(start):
    times = [start, start + MAX_REPEATS, start + MAX_REPEATS + 1]
    resampled = resample(map(frame_at, times), Fraction(10))
    assert [count for _, count in resampled] == [MAX_REPEATS, 1, 0]
    times[1:] = [start + MAX_REPEATS + 1] * 2
    with pytest.raises(VideoError, match=f"repeat frame 1 {MAX_REPEATS + 1} times"):
        list(resample(map(frame_at, times), Fraction(10)))


def test_the_last_frame_may_claim_to_last_for_years():
    last = frame_at(1)
    last.duration = 10**10
    with pytest.raises(VideoError, match="repeat frame 2 .* s"):
        list(resample(iter([frame_at(0), last]), Fraction(10)))


def test_time_goes_forward():
    with pytest.raises(VideoError, match="goes back after frame 2"):
        list(resample(map(frame_at, [0, 5, 4, 6]), Fraction(10)))


def test_an_image_is_full_range_ycbcr():
    image = to_image(frame_at(0, shade=200), 24, 16, VideoReformatter())
    assert (image.mode, image.size) == ("YCbCr", (24, 16))
    assert np.abs(np.asarray(image).astype(int) - (200, 128, 128)).max() <= 1


def test_length_of_a_riff_file(tmp_path):
    path = tmp_path / "a.avi"
    whole = b"RIFF" + (8).to_bytes(4, "little") + bytes(8)
    for content, error in ((whole, None), (whole[:-1], "truncated: 15 bytes of at least 16"), (b"", "empty")):
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(VideoError, match=error) if error else nullcontext():
            check_length(file)


def test_only_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    for name, reason in make_strange(Path()).items():
        assert is_video(Path(name))  # so that it is not left out without a word
        with pytest.raises(VideoError, match=f"cannot be read .{reason}"):
            next(decode(Path(name)))
    with pytest.raises(VideoError, match="is a folder"):
        next(decode(tmp_path))


def test_what_is_a_video(tmp_path):
    for name in ("a.webm", "b.mp4", "c.mkv", "d.avi"):
        path = tmp_path / name
        write_video(path, 3, codec="mpeg4" if name == "d.avi" else None)
        cut(path, 0.5)
        assert is_video(path.rename(path.with_suffix(".bin")))
    texts = {"README.txt": b"Read me.", "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "empty": b""}
    for name, content in (texts | {"sound.wav": b"RIFF1234WAVE"}).items():
        (tmp_path / name).write_bytes(content)
        assert not is_video(tmp_path / name)
    (tmp_path / "damaged.MP4").write_bytes(bytes(100))
    assert is_video(tmp_path / "damaged.MP4")


def test_huge_frames_are_not_decoded(tmp_path):
    huge, growing = tmp_path / "huge.mkv", tmp_path / "growing.mkv"
    write_blank(huge, 10000, 9000, "mjpeg", "yuvj420p")
    write_blank(tmp_path / "small.mkv", 64, 64, "mjpeg", "yuvj420p")
    with pytest.raises(VideoError, match=f"10000 x 9000 pixels, which is more than {MAX_PIXELS}"):
        next(decode(huge))
    with av.open(str(growing), "w") as film:
        for number, path in enumerate((tmp_path / "small.mkv", huge)):
            with av.open(str(path)) as container:
                if not number:
                    stream = film.add_stream_from_template(container.streams.video[0])
                packet = next(container.demux(video=0))
                packet.stream, packet.pts, packet.dts = stream, number * 100, number * 100
                film.mux(packet)
    frames = decode(growing)
    assert next(frames).width == 64
    with pytest.raises(VideoError, match="after frame 1"):
        next(frames)


def test_whatever_the_decoder_raises_is_the_videos_fault(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("odd bytes")

    write_video(tmp_path / "a.mp4", 2)
    frame = next(decode(tmp_path / "a.mp4"))
    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(VideoError, match="after frame 0 .odd bytes"):
        next(decode(tmp_path / "a.mp4"))
    with pytest.raises(VideoError, match="cannot be scaled to 0 x 0"):
        to_image(frame, 0, 0, VideoReformatter())
