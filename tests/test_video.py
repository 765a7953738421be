"""utils/video.py: frames in time, and their images. For what it makes of files see test_extract_frames.py."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from utils.video import VideoError, check_length, resample, to_image


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


def test_an_image_is_full_range_ycbcr():
    image = to_image(frame_at(0, shade=200), 24, 16, VideoReformatter())
    assert (image.mode, image.size) == ("YCbCr", (24, 16))
    assert np.abs(np.asarray(image).astype(int) - (200, 128, 128)).max() <= 1


def test_length_of_a_riff_file(tmp_path):
    path = tmp_path / "a.avi"
    path.write_bytes(b"RIFF" + (8).to_bytes(4, "little") + bytes(8))
    check_length(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VideoError, match="truncated: 15 bytes of at least 16"):
        check_length(path)
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="empty"):
        check_length(path)
