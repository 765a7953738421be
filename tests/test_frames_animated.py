"""GIF and animated WebP files as videos, and the times of the frames of every kind of video."""

import numpy as np
import pytest
from PIL import Image
from synthetic import write_video as write_frames
from video_files import numbered_image, write_video

from frames.sources import duration, find_videos, open_video
from utils.cli import UserError

DURATIONS = [100, 50, 200, 100, 30, 100]


def write_animation(path, durations=DURATIONS):
    """Write frames that show their number; return their pixels."""
    frames = [numbered_image(number, 96, 64) for number in range(1, len(durations) + 1)]
    images = [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
    return frames


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "named_wrongly.mp4"])
def test_animated_image_is_a_video(name, tmp_path):
    path = tmp_path / name
    frames = write_animation(tmp_path / "a.gif" if path.suffix == ".mp4" else path)
    if path.suffix == ".mp4":
        (tmp_path / "a.gif").rename(path)
    video = open_video(path)
    assert video.num_frames == len(frames)
    np.testing.assert_allclose(video.times, [0, 0.1, 0.15, 0.35, 0.45, 0.48])
    assert duration(video) == pytest.approx(0.58, abs=0.1)
    for number, image in video.read([2, 5]).items():
        np.testing.assert_array_equal(np.asarray(image), frames[number - 1])
    assert [float(time) for _, time in video.play()] == pytest.approx(video.times)
    assert find_videos(tmp_path) == [path]


def test_still_images_are_no_videos(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.webp")
    with pytest.raises(UserError, match="has no videos"):
        find_videos(tmp_path)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_frames_have_times(name, tmp_path):
    write_video(tmp_path / name, 24)
    video = open_video(tmp_path / name)
    np.testing.assert_allclose(video.times, np.arange(24) / 12, atol=1e-3)
    assert video.fps == pytest.approx(12, rel=1e-2)
    assert duration(video) == pytest.approx(2, rel=1e-2)


def test_frames_of_a_folder_have_one_size(tmp_path):
    folder = tmp_path / "a"
    write_frames(folder, 4, (54, 40), "{:05d}.jpg", 1, np.random.default_rng(0))
    Image.new("RGB", (40, 54)).save(folder / "00003.jpg")
    with pytest.raises(UserError, match="frame 3 is 40 x 54, not 54 x 40"):
        list(open_video(folder).frames([1, 2, 3]))
