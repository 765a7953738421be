"""frames/sources.py: clips from video files and from frame folders; which videos a folder holds."""

import os
from pathlib import Path

import numpy as np
import pytest
from synthetic import CATEGORIES
from video_files import cut, read_number, write_video

from classes import mirrored_labels
from dataset import VideoDataSet, open_videos
from datasets_video import return_dataset
from frames.sources import VideoFiles, find_videos
from frames.video import FrameConverter, decode
from loader import ClipLoader, ClipSampler
from transforms import evaluation_transform, training_transform
from utils.cli import UserError

# Two codecs, odd sizes, B-frames, variable times, a turned camera, colour tags, capitals.
VIDEOS = {
    "vp9.webm": {},
    "odd.webm": {"width": 61, "height": 47},
    "h264.mp4": {},
    "odd444.mp4": {"width": 61, "height": 47, "pix_fmt": "yuv444p"},
    "variable.mkv": {"times": [0, 1, 2, 4, 5, 9, 10, 11, 13, 14, 15, 20]},
    "turned.mp4": {"turn": 90},
    "hd.mkv": {"colorspace": 1, "color_range": 2},
    "CAPITALS.MP4": {},
    "Title.Mp4": {},
}
COUNT = 12


@pytest.fixture(scope="module")
def own_root(tmp_path_factory) -> Path:
    """A data set, `own`, with each video twice: as a file, and as PNG frames of the file's pixels."""
    root = tmp_path_factory.mktemp("own")
    home = root / "own"
    (home / "videos").mkdir(parents=True)
    for name, options in VIDEOS.items():
        write_video(home / "videos" / name.lower(), COUNT, **options)
        (home / "videos" / name.lower()).rename(home / "videos" / name)
        folder = home / "frames" / Path(name).stem
        folder.mkdir(parents=True)
        for number, frame in enumerate(decode(home / "videos" / name), start=1):
            image = FrameConverter((frame.width, frame.height))(frame)
            image.convert("RGB").save(folder / f"{number:05d}.png")
    (home / "category.txt").write_text("".join(f"{name}\n" for name in CATEGORIES))
    lines = [f"{Path(name).stem} {COUNT} {label % len(CATEGORIES)}\n" for label, name in enumerate(VIDEOS)]
    for list_name in ("train_videofolder.txt", "val_videofolder.txt"):
        (home / list_name).write_text("".join(lines))
    return root


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "validation"])
def test_videos_and_frames_give_the_same_batches(own_root, is_training):
    loaded = []
    for source, template, workers in (("frames", "{:05d}.png", 0), ("videos", None, 0), ("videos", None, 2)):
        paths = return_dataset("own", own_root, image_tmpl=template, source=source)
        transform = evaluation_transform(32)
        if is_training:
            transform = training_transform(32, mirrored_labels(paths.categories))
        clips = open_videos(paths, 4, transform, is_training=is_training, seed=3)
        sampler = ClipSampler(len(clips), 3, seed=3)
        loaded.append([clips.numpy() for clips, _ in ClipLoader(clips, sampler, workers)])
    for from_frames, *from_videos in zip(*loaded, strict=True):
        for batch in from_videos:
            np.testing.assert_array_equal(batch, from_frames)


def test_frames_after_the_last_are_not_decoded(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, 40)
    content = bytearray(path.read_bytes())
    for position in range(len(content) * 2 // 3, len(content) - 2000, 7):
        content[position] ^= 0x55
    path.write_bytes(content)
    frames = VideoFiles(str(tmp_path)).read("a", [3, 5])
    assert sorted(read_number(frame.image()) for frame in frames.values()) == [3, 5]


def break_video(folder: Path, kind: str) -> str:
    """Write the video `a`, broken; return the start of the message after the folder."""
    path = folder / "a.mp4"
    if kind == "empty":
        path.touch()
        return "a.mp4: empty file"
    if kind == "named pipe":
        os.mkfifo(path)
        return "a.mp4: cannot be read"
    if kind == "missing":
        return "a: no such video"
    write_video(path, 12)
    if kind == "truncated":
        cut(path, 0.6)
        return "a.mp4: truncated"
    return "a.mp4: has only 12 of the 30 frames in the list"


@pytest.mark.parametrize("kind", ["empty", "named pipe", "missing", "truncated", "shorter"])
def test_unusable_video_is_named(tmp_path, kind):
    message = break_video(tmp_path, kind)
    (tmp_path / "list.txt").write_text("a 30 0\n")
    clips = VideoDataSet(tmp_path, tmp_path / "list.txt", 4, None, random_shift=False, num_class=1)
    with pytest.raises(UserError) as caught:
        clips[0]
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "--exclude" in str(caught.value)


def test_missing_and_ambiguous_files_are_found(tmp_path):
    for name in ("there.webm", "sub/there.MOV", "third.Mp4", "twice.mp4", "twice.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ("there", "sub/there", "third", "twice", "gone", "no/folder")
    (tmp_path / "list.txt").write_text("".join(f"{name} 9 0\n" for name in names))
    clips = VideoDataSet(tmp_path, tmp_path / "list.txt", 4, None, random_shift=False, num_class=1)
    missing = clips.find_missing()
    assert [index for index, _ in missing] == [3, 4, 5]
    for (_, text), name in zip(missing, names[3:], strict=True):
        assert text.startswith(f"{tmp_path}/{name}")


def test_find_videos(tmp_path, capsys):
    for name in ("frames/1.jpg", "frames/2.jpg", "frames/.hidden", "clips/deep/b.webm", "clips/anim.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "clips/cover1.jpg").write_bytes(b"\xff\xd8")  # no frame of "clips"
    (tmp_path / "clips/link").symlink_to(tmp_path)
    assert find_videos(tmp_path) == [tmp_path / "clips/deep/b.webm", tmp_path / "frames"]
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "2 files" in error and "anim.gif" in error
    assert find_videos(tmp_path / "frames") == [tmp_path / "frames"]
    (tmp_path / "clips/deep/b.webm").unlink()
    (tmp_path / "clips/link").unlink()
    with pytest.raises(UserError, match="clips: has no videos"):
        find_videos(tmp_path / "clips")


def test_source_is_found(own_root, tmp_path):
    assert return_dataset("own", own_root).source == "frames"
    assert return_dataset("own", own_root, preferred="videos").source == "videos"
    assert return_dataset("own", own_root, source="videos").root_data == own_root / "own" / "videos"
    own = tmp_path / "own"
    own.mkdir()
    for name in ("category.txt", "train_videofolder.txt", "val_videofolder.txt"):
        (own / name).write_bytes((own_root / "own" / name).read_bytes())
    with pytest.raises(UserError, match=f"{own}/frames or {own}/videos: no such folder"):
        return_dataset("own", tmp_path)
    (own / "videos").mkdir()
    assert return_dataset("own", tmp_path).source == "videos"
    with pytest.raises(UserError, match="own/frames"):
        return_dataset("own", tmp_path, source="frames")
