"""frames/video.py: frames, their number, times and images. See also test_extract_frames.py."""

from pathlib import Path

import av
import numpy as np
import pytest
from helpers import REPOSITORY
from PIL import Image
from video_files import cut, remux, set_display_matrix, write_audio, write_video

from frames.sources import VideoFiles, open_video
from frames.video import FrameConverter, VideoError, decode, index_frames

TIMES = [0, 1, 2, 7, 8, 20, 21, 30, 31, 40, 50, 51]


def assert_all_agree(path: Path, count: int | None = None) -> None:
    """Check that the list, `--source videos`, `test_video.py` and extraction have the same frames."""
    frames = list(decode(path))
    last = len(frames)
    assert count in (None, last)
    video = open_video(path)
    assert index_frames(path).count == video.num_frames == last
    to_image = FrameConverter(index_frames(path).size)
    images = [np.asarray(to_image(frame).convert("RGB")) for frame in frames]
    numbers = [1, last // 2, last]
    from_files = VideoFiles(str(path.parent)).read(path.stem, numbers) if path.suffix in (".mp4",) else {}
    for number in numbers:
        np.testing.assert_array_equal(video.read([number])[number], images[number - 1])
        if from_files:
            np.testing.assert_array_equal(from_files[number].image(), images[number - 1])
    assert [image.size for image, _ in video.play()] == [images[0].shape[1::-1]] * last


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in ("b.mp4", "b.mkv", "b.mov", "vp9.webm", "b.avi", "b.ts")],
        *[(name, {"times": TIMES}) for name in ("varying.mp4", "varying.webm", "varying.avi")],
        *[(f"old.{suffix}", {"codec": "mpeg4"}) for suffix in ("avi", "mp4")],
        ("interlaced.mkv", {"codec": "mpeg2video"}),
    ],
)
def test_all_agree_on_frames(name, options, tmp_path):
    write_video(tmp_path / name, 12, **options)
    assert_all_agree(tmp_path / name, 12)


@pytest.mark.parametrize("name", ["joined.ts", "joined.mp4"])
def test_packets_before_the_first_frame(name, tmp_path):
    open_gop = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}
    write_video(tmp_path / "whole.ts", 40, options=open_gop)
    remux(tmp_path / "whole.ts", tmp_path / name, first=4)
    with av.open(str(tmp_path / name)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert len(list(decode(tmp_path / name))) < packets
    assert_all_agree(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "codec", "target"), [("a.webm", "libvpx", "b.webm"), ("a.webm", "libvpx-vp9", "b.mp4")]
)
def test_invisible_frames_do_not_count(source, codec, target, tmp_path):
    write_video(tmp_path / source, 24, codec=codec)
    remux(tmp_path / source, tmp_path / target, hides_key_frames=True)
    assert index_frames(tmp_path / target).count == len(list(decode(tmp_path / target))) < 24


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_frames_before_an_edit_list_do_not_count(name, tmp_path):
    write_video(tmp_path / "whole.mp4", 36)
    remux(tmp_path / "whole.mp4", tmp_path / name, shift=1)
    assert_all_agree(tmp_path / name, 24)


def test_non_square_pixels():
    path = REPOSITORY / "tests/cases/sar.mp4"  # stored 96 x 64, pixels 16:9
    assert index_frames(path).size == (171, 64)
    assert_all_agree(path, 24)


# (a, b, c, d) maps the pixel (x, y) to (ax + cy, bx + dy): all turns and their mirror images.
MATRICES = [
    *[(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)],
    *[(0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0), (0, -1, 1, 0)],
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_display_matrix(matrix, tmp_path):
    path = tmp_path / "a.mp4"
    corners = np.array([[40, 90], [150, 210]], np.uint8)
    grey = corners.repeat(32, axis=0).repeat(48, axis=1)
    write_video(path, [np.repeat(grey[..., None], 3, axis=2)] * 3)
    set_display_matrix(path, matrix)
    a, b, c, d = matrix
    expected = np.empty((2, 2), int)
    for y, x in np.ndindex(2, 2):  # around the centre
        shown_x, shown_y = a * (2 * x - 1) + c * (2 * y - 1), b * (2 * x - 1) + d * (2 * y - 1)
        expected[(shown_y + 1) // 2, (shown_x + 1) // 2] = corners[y, x]
    image = open_video(path).read([1])[1]
    assert image.size == ((96, 64) if a else (64, 96))
    pixels = np.asarray(image.convert("L").resize((2, 2), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - expected).max() < 5
    assert_all_agree(path, 3)


@pytest.mark.parametrize("kind", ["truncated", "empty", "audio only", "text", "first frame", "no frame"])
def test_counting_refuses_like_decoding(kind, tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, 12)
    if kind == "truncated":
        cut(path, 0.7)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "audio only":
        write_audio(path)
    elif kind == "text":
        path.write_text("not a video\n" * 50)
    elif kind == "first frame":
        data = path.read_bytes()
        start = data.index(b"mdat") + 4
        path.write_bytes(data[:start] + bytes(len(data) - start))
    else:
        remux(path.rename(tmp_path / "whole.mp4"), path, shift=100)
    reasons = []
    for read in (index_frames, lambda path: list(decode(path))):
        with pytest.raises(VideoError) as caught:
            read(path)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]


def test_avi_that_was_written_to_a_pipe(tmp_path):
    """Its size is unknown."""
    path = tmp_path / "a.avi"
    write_video(path, 6, codec="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 4 + data[8:])
    assert_all_agree(path, 6)


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.mkv"])
def test_every_truncation_is_noticed(name, tmp_path):
    path = tmp_path / name
    write_video(path, 20)
    data = path.read_bytes()
    for length in [*range(1, len(data), 97), *range(len(data) - 12, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(VideoError):
            list(decode(path))
    path.write_bytes(data[: len(data) * 6 // 10].ljust(len(data), b"\0"))  # an unfinished download
    with pytest.raises(VideoError):
        list(decode(path))


def test_title_need_not_be_utf8(tmp_path):
    path = tmp_path / "titled.webm"
    write_video(path, 3, title="smorgasbord")
    path.write_bytes(path.read_bytes().replace(b"smorgasbord", "smörgåsbord".encode("latin-1")))
    assert len(list(decode(path))) == 3


def test_image_is_full_range_ycbcr():
    frame = av.VideoFrame.from_ndarray(np.full((32, 64), 200, dtype=np.uint8), format="gray")
    image = FrameConverter((24, 16))(frame)
    assert (image.mode, image.size) == ("YCbCr", (24, 16))
    assert np.abs(np.asarray(image).astype(int) - (200, 128, 128)).max() <= 1
