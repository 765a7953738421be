"""Clips from video files: the same pixels, batches and runs as from frame folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from synthetic import CATEGORIES
from video_files import cut, numbered_image, read_number, write_audio, write_video

from classes import mirrored_labels
from dataset import VideoDataSet, open_videos, read_list
from datasets_video import return_dataset
from frames.sources import FrameFolders, VideoFiles
from frames.video import decode, to_image
from loader import ClipLoader, ClipSampler
from transforms import Compose, Stack, evaluation_transform, training_transform
from utils.cli import UserError

# What folders hold: two codecs, odd sizes, B-frames, times that vary, a turned camera, colour tags, capitals.
VIDEOS = {
    "vp9.webm": {},
    "odd.webm": {"width": 61, "height": 47},
    "h264.mp4": {},
    "odd444.mp4": {"width": 61, "height": 47, "pix_fmt": "yuv444p"},
    "variable.mkv": {"times": [0, 1, 2, 4, 5, 9, 10, 11, 13, 14, 15, 20]},
    "turned.mp4": {"turn": 90},
    "hd.mkv": {"colorspace": 1, "color_range": 2},
    "tags.webm": {"colorspace": 1},
    "CAPITALS.MP4": {},
}
COUNT = 12


def write_videos(folder: Path) -> list[str]:
    """Write a video of each kind, `COUNT` frames long; return their names as a list has them."""
    folder.mkdir(parents=True)
    for name, how in VIDEOS.items():
        small = folder / name.lower()
        write_video(small, COUNT, **how)
        small.rename(folder / name)
    return [Path(name).stem for name in VIDEOS]


@pytest.fixture(scope="module")
def own_root(tmp_path_factory) -> Path:
    """A data set, `own`, that has each video twice: as a file, and as PNG frames of the file's own pixels."""
    root = tmp_path_factory.mktemp("own")
    home = root / "own"
    names = write_videos(home / "videos")
    for file, name in zip(VIDEOS, names, strict=True):
        folder = home / "frames" / name
        folder.mkdir(parents=True)
        scaler = VideoReformatter()
        for number, frame in enumerate(decode(home / "videos" / file), start=1):
            image = to_image(frame, frame.width, frame.height, scaler)  # what extraction makes a JPEG of
            image.convert("RGB").save(folder / f"{number:05d}.png")
    (home / "category.txt").write_text("".join(f"{name}\n" for name in CATEGORIES))
    lines = [f"{name} {COUNT} {label % len(CATEGORIES)}\n" for label, name in enumerate(names)]
    for list_name in ("train_videofolder.txt", "val_videofolder.txt"):
        (home / list_name).write_text("".join(lines))
    return root


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "validation"])
def test_batches_from_videos_and_from_their_frames_are_the_same_bit_by_bit(own_root, is_training):
    loaded = []
    for source, template, workers in (("frames", "{:05d}.png", 0), ("videos", None, 0), ("videos", None, 2)):
        paths = return_dataset("own", own_root, image_tmpl=template, source=source)
        transform = (
            training_transform(32, mirrored_labels(paths.categories))
            if is_training
            else evaluation_transform(32)
        )
        clips = open_videos(paths, 4, transform, is_training=is_training, seed=3)
        sampler = ClipSampler(len(clips), 3, seed=3)
        loaded.append([clips.numpy() for clips, _ in ClipLoader(clips, sampler, workers)])
    for from_frames, *from_videos in zip(*loaded, strict=True):
        for batch in from_videos:
            np.testing.assert_array_equal(batch, from_frames)


def test_every_frame_of_a_video_comes_once_and_in_order(tmp_path):
    write_video(tmp_path / "a.mp4", 40)
    frames = VideoFiles(str(tmp_path)).read("a", range(1, 41))
    assert [read_number(frames[number].image()) for number in range(1, 41)] == list(range(1, 41))


def test_nothing_after_the_last_frame_that_is_wanted_is_decoded(tmp_path):
    write_video(tmp_path / "a.mkv", 40)
    data = (tmp_path / "a.mkv").read_bytes()
    with pytest.raises(UserError):
        cut(tmp_path / "a.mkv", 0.5)  # which is seen at once by the container's length
        VideoFiles(str(tmp_path)).read("a", [3])
    spoilt = bytearray(data)
    for place in range(len(data) * 2 // 3, len(data) - 2000, 7):
        spoilt[place] ^= 0x55
    (tmp_path / "a.mkv").write_bytes(spoilt)
    frames = VideoFiles(str(tmp_path)).read("a", [3, 5])
    assert sorted(read_number(frame.image()) for frame in frames.values()) == [3, 5]


def test_size_that_changes_midway_is_the_first_frames(tmp_path):
    images = [numbered_image(number, 64, 48) for number in range(1, 5)]
    write_video(tmp_path / "a.webm", images)
    assert {frame.size for frame in VideoFiles(str(tmp_path)).read("a", [1, 4]).values()} == {(64, 48)}


def broken(folder: Path, how: str) -> str:
    """Write the video `a`, broken somehow; return what is to be said of it."""
    path = folder / "a.mp4"
    if how == "empty":
        path.touch()
        return "a.mp4: empty file"
    if how == "audio only":
        write_audio(path)
        return "a.mp4: no video stream"
    if how == "a text":
        path.write_text("this is not a video, whatever it is called\n" * 20)
        return "a.mp4: not a video, or damaged at its beginning"
    if how == "a folder":
        path.mkdir()
        return "a.mp4: cannot be read (is a folder"
    if how == "a named pipe":
        os.mkfifo(path)
        return "a.mp4: cannot be read (is a named pipe"
    if how == "missing":
        return "a: no such video (.webm, .mp4, .mkv, .avi, .mov)"
    write_video(path, 12)
    if how == "truncated":
        cut(path, 0.6)
        return "a.mp4: truncated: "
    return "a.mp4: has only 12 frames; by the list it has frame 27"


@pytest.mark.parametrize(
    "how",
    ["empty", "audio only", "a text", "a folder", "a named pipe", "missing", "truncated", "shorter"],
)
def test_video_that_cannot_be_used_stops_with_its_name_and_the_way_on(tmp_path, how):
    told = broken(tmp_path, how)
    (tmp_path / "list.txt").write_text("a 30 0\n")
    clips = VideoDataSet(tmp_path, tmp_path / "list.txt", 4, None, random_shift=False, num_class=1)
    with pytest.raises(UserError) as caught:
        clips[0]
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/{told}"), message
    assert message.endswith("; to continue without this video, give --exclude FILE with the line 'a'")


def test_look_at_the_start_names_what_is_missing_or_there_twice(tmp_path):
    for name in ("there.webm", "sub/there.MOV", "twice.mp4", "twice.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("there 9 0\nsub/there 9 0\ntwice 9 0\ngone 9 0\nno/folder 9 0\n")
    clips = VideoDataSet(tmp_path, tmp_path / "list.txt", 4, None, random_shift=False, num_class=1)
    others = "(or .mp4, .mkv, .avi, .mov)"
    assert clips.find_missing() == [
        (2, f"{tmp_path}/twice (twice.mp4 and twice.avi: which?)"),
        (3, f"{tmp_path}/gone.webm {others}"),
        (4, f"{tmp_path}/no/folder.webm {others}"),
    ]


def test_source_is_what_is_there_and_frames_if_both_are(own_root, tmp_path):
    assert return_dataset("own", own_root).source == "frames"
    assert return_dataset("own", own_root, preferred="videos").source == "videos"
    assert return_dataset("own", own_root, source="videos").root_data == own_root / "own" / "videos"
    own = tmp_path / "own"
    own.mkdir()
    for name in ("category.txt", "train_videofolder.txt", "val_videofolder.txt"):
        (own / name).write_bytes((own_root / "own" / name).read_bytes())
    with pytest.raises(UserError) as caught:
        return_dataset("own", tmp_path)
    belongs = f"the frame folders of own belong there, or its videos into {own}/videos"
    assert str(caught.value) == f"{own}/frames: no such folder; {belongs}"
    (own / "videos").mkdir()
    assert return_dataset("own", tmp_path).source == "videos"
    assert return_dataset("own", tmp_path, preferred="frames").source == "videos"
    with pytest.raises(
        UserError, match=r"own/frames: no such folder; the frame folders of own belong there$"
    ):
        return_dataset("own", tmp_path, source="frames")
    with pytest.raises(UserError, match=r"--image_tmpl x\{\}: is for frames, but .*videos holds videos"):
        return_dataset("own", tmp_path, image_tmpl="x{}")


def test_names_that_are_there_are_told_where_one_is_not(own_root):
    with pytest.raises(UserError) as caught:
        return_dataset("onw", own_root)
    assert str(caught.value).endswith("the folder that holds 'onw' (there are: own)")


def test_list_without_labels_is_taken_where_it_may_be(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a 30\nb c 12\n")
    assert [tuple(record) for record in read_list(path, 4, may_lack_labels=True)] == [
        ("a", 30, -1),
        ("b c", 12, -1),
    ]
    with pytest.raises(UserError, match=r"line 1: 'a 30' is not 'name frames label'"):
        read_list(path, 4)
    path.write_text("a 30 1\nb 12\n")  # a label was forgotten
    with pytest.raises(UserError, match=r"line 2: 'b 12' is not 'name frames label'"):
        read_list(path, 4, may_lack_labels=True)


def test_frames_without_a_transform_come_as_images_from_both(own_root):
    home = own_root / "own"
    frames = FrameFolders(str(home / "frames"), "{:05d}.png").read("turned", [2, 5])
    videos = VideoFiles(str(home / "videos")).read("turned", [2, 5])
    clip = Compose(Stack())
    images = [[frame.image() for frame in source.values()] for source in (frames, videos)]
    for clip_of in images:
        assert [image.size for image in clip_of] == [(64, 96)] * 2  # upright
    np.testing.assert_array_equal(*(clip(clip_of, 0, np.random.default_rng(0))[0] for clip_of in images))
