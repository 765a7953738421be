"""`test_video.py`: answers, decoding of single frames, rendered pictures, refusals."""

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import assert_one_line_error, call, run
from PIL import Image
from synthetic import CATEGORIES
from synthetic import write_video as write_frames
from video_files import cut, damage, numbered_image, remux, write_audio, write_video
from video_model import save_model

from classes import released_categories
from frames.sources import find_videos, open_video
from frames.video import decode, decode_frames, index_frames
from inference.clips import Clip, Window
from inference.draw import draw_sheet
from inference.options import check_answer_options, rendered_files
from opts import video_parser
from reports.render import Caption
from utils.cli import UserError

LONG = "Putting something that cannot actually stand upright upright on the table, so it falls on its side"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder with two video files, a folder of frames, and other files. Read only: it is shared."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "more").mkdir()
    write_video(folder / "a.mp4", 30)
    write_video(folder / "more" / "b.webm", 12)
    write_frames(folder / "c", 20, (54, 40), "img_{:05d}.jpg", 1, np.random.default_rng(0))
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.mp4").write_text("none")
    return folder


@pytest.fixture
def ask(weights) -> Callable:
    """Run the program in this process."""

    def ask(*args: object, weights: Path = weights):
        return call("test_video.py", "--weights", weights, *args)

    return ask


@pytest.mark.slow
def test_released_checkpoint_and_three_videos(tmp_path):
    weights = save_model(tmp_path / "released.pth.tar", 174, own=False)
    videos = [tmp_path / f"{number}.webm" for number in range(3)]
    for number, video in enumerate(videos):
        write_video(video, 12 + number)
    done = run("test_video.py", "--weights", weights, *videos)
    assert (done.returncode, done.stderr) == (0, "")
    _, names, *lines = done.stdout.splitlines()
    assert "categories/something.txt" in names
    assert lines[::6] == [f"RESULT ON {video}" for video in videos]
    answers = [re.fullmatch(r"([01]\.\d{3}) -> (.+)", line).groups() for line in lines if " -> " in line]
    assert {name for _, name in answers} <= set(released_categories())
    probabilities = np.array([float(probability) for probability, _ in answers]).reshape(3, 5)
    assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize(
    ("source", "views"),
    [("frames", []), ("videos", ["--test_crops", 10, "--num_clips", 2, "--full_res", "-b", 8])],
)
def test_scores_are_those_of_test_models(source, views, ask, weights, tmp_path):
    home = tmp_path / "own"
    lines = []
    for number, count in enumerate((3, 8, 45)):
        path = home / source / (f"{number}.mp4" if source == "videos" else str(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        if source == "videos":
            write_video(path, count)
        else:
            write_frames(path, count, (54, 40), "{:05d}.jpg", number, np.random.default_rng(number))
        lines.append(f"{number} {count}\n")
    (home / "category.txt").write_text("".join(f"{name}\n" for name in CATEGORIES))
    (home / "val_videofolder.txt").write_text("".join(lines))
    scores = tmp_path / "scores.npz"
    data = ("--dataset", "own", "--root_path", tmp_path, "-j", 0)
    evaluated = call("test_models.py", "--weights", weights, *data, *views, "--save_scores", scores)
    assert evaluated.returncode == 0, evaluated.stderr
    expected = torch.from_numpy(np.load(scores)["scores"]).softmax(dim=1).numpy()

    asked = ask(home / source, *views, "--json", "-")
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)
    assert [Path(answer["video"]).stem for answer in answers["videos"]] == ["0", "1", "2"]
    for answer, row in zip(answers["videos"], expected, strict=True):
        labels = [best["label"] for best in answer["top"]]
        assert labels == np.argsort(-row)[:5].tolist()
        np.testing.assert_allclose([best["probability"] for best in answer["top"]], row[labels], atol=1e-6)
    # The frames of the published test program
    assert answers["videos"][0]["frames"][:8] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert answers["videos"][2]["frames"][:8] == [3, 9, 15, 20, 26, 31, 37, 43]
    assert answers["model"]["class_names"] == "from the checkpoint"


# ---------------------------------------------------------------------------------------------------------
# Decoding of single frames, see `frames.video.decode_frames`

# Containers and codecs differ in where decoding can start.
OPEN_GOP = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}
FILES = {
    "b_frames.mkv": {},
    "vp9.webm": {},
    "open.mp4": {"options": OPEN_GOP},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "varying.mp4": {"times": np.cumsum(np.arange(60) % 5 + 1).tolist()},
    "no_times.avi": {},
    "no_times.h264": {},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=10:open-gop=1:log-level=none"}},
}


def noisy_images(count: int) -> list[np.ndarray]:
    """Frames that differ from each other, also after lossy compression."""
    rng = np.random.default_rng(0)
    return [
        np.clip(numbered_image(number, 96, 64) + rng.integers(-27, 28, (64, 96, 3)), 0, 255).astype(np.uint8)
        for number in range(count)
    ]


def assert_same_frames(path: Path) -> None:
    """Check that single frames equal those of decoding in sequence, bit for bit."""
    in_sequence = [frame.to_ndarray() for frame in decode(path)]
    index = index_frames(path)
    last = len(in_sequence)
    for numbers in ([1, last // 2 + 1, last], [last - 1, last], [40, 20], *([n] for n in range(17, last, 4))):
        frames = dict(decode_frames(path, index, numbers))
        assert list(frames) == sorted(numbers)
        for number, frame in frames.items():
            np.testing.assert_array_equal(frame.to_ndarray(), in_sequence[number - 1], err_msg=str(numbers))


@pytest.mark.parametrize("name", FILES)
def test_single_frames(name, tmp_path):
    write_video(tmp_path / name, noisy_images(60), **FILES[name])
    assert_same_frames(tmp_path / name)


def test_single_frames_with_an_edit_list(tmp_path):
    write_video(tmp_path / "whole.mp4", noisy_images(63), options={"g": "8"})
    remux(tmp_path / "whole.mp4", tmp_path / "a.mp4", shift=1)
    assert index_frames(tmp_path / "a.mp4").count < 63
    assert_same_frames(tmp_path / "a.mp4")


def test_other_frames_are_not_decoded(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, noisy_images(60))
    intact = [frame.to_ndarray() for frame in decode(path)]
    damage(path, 12)
    for number, frame in decode_frames(path, index_frames(path), [1, 58]):
        np.testing.assert_array_equal(frame.to_ndarray(), intact[number - 1])


# ---------------------------------------------------------------------------------------------------------
# Answers


def test_folder_may_start_at_frame_0(clips, tmp_path):
    for number in range(20):
        source = clips / "c" / f"img_{number + 1:05d}.jpg"
        (tmp_path / f"a{{}}_{number}.jpg").write_bytes(source.read_bytes())
    moved, original = open_video(tmp_path).read([1, 20]), open_video(clips / "c").read([1, 20])
    assert [frame.tobytes() for frame in moved.values()] == [frame.tobytes() for frame in original.values()]


def test_bad_videos_are_named_and_others_answered(ask, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    write_video(broken, 12)
    cut(broken, 0.6)
    videos = [clips / "a.mp4", broken, clips / "c", tmp_path / "missing.mp4", clips / "more" / "b.webm"]
    asked = ask(*videos, "-b", 2, "--json", tmp_path / "answers.json")
    assert asked.returncode == 1
    assert [line for line in asked.stdout.splitlines() if line.startswith("RESULT")] == [
        f"RESULT ON {video}" for video in videos[::2]
    ]
    errors = asked.stderr.splitlines()
    assert len(errors) == 2
    assert str(broken) in errors[0]
    assert str(videos[3]) in errors[1]
    answers = json.loads((tmp_path / "answers.json").read_text())["videos"]
    assert [answer["video"] for answer in answers] == [str(video) for video in videos]
    assert ["error" in answer for answer in answers] == [False, True, False, True, False]
    # An answer does not depend on the batch.
    alone = json.loads(ask(videos[2], "--json", "-").stdout)["videos"][0]["top"]
    np.testing.assert_allclose(
        [best["probability"] for best in answers[2]["top"]],
        [best["probability"] for best in alone],
        atol=1e-6,
    )


def test_class_names(ask, clips, tmp_path):
    weights = save_model(tmp_path / "bare.pth.tar", 6, own=True)
    asked = ask(clips / "a.mp4", weights=weights)
    assert "--categories" in asked.stdout.splitlines()[1]
    assert set(re.findall(r"-> (.*)", asked.stdout)) < {f"class {label}" for label in range(6)}
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {label}\n" for label in range(6)))
    named = ask(clips / "a.mp4", "--categories", names, weights=weights)
    assert re.findall(r"-> .* (\d)", named.stdout) == re.findall(r"-> .* (\d)", asked.stdout)
    names.write_text("one\ntwo\n")
    assert_one_line_error(ask(clips / "a.mp4", "--categories", names, weights=weights), "--categories")


def test_short_and_turned_videos(ask, tmp_path):
    write_video(tmp_path / "one.mp4", 1, turn=90)
    asked = ask(tmp_path / "one.mp4", "--json", "-")
    assert asked.returncode == 0
    assert json.loads(asked.stdout)["videos"][0]["frames"] == [1] * 8
    assert open_video(tmp_path / "one.mp4").read([1])[1].size == (64, 96)


# ---------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("kind", ["text", "empty", "audio", "no videos", "missing", "gap", "two names"])
def test_unusable_video(kind, tmp_path):
    path = tmp_path / "a.mkv"
    culprit = path.name
    if kind == "audio":
        write_audio(path)
    elif kind == "no videos":
        path.mkdir()
        (path / "notes.txt").write_text("none")
    elif kind in ("gap", "two names"):
        write_frames(path, 4, (54, 40), "{:05d}.jpg", 1, np.random.default_rng(0))
        if kind == "gap":
            culprit = "00002.jpg"
            (path / culprit).unlink()
        else:
            (path / "b00001.jpg").write_bytes((path / "00001.jpg").read_bytes())
    elif kind != "missing":
        path.write_bytes(b"not a video" * 100 if kind == "text" else b"")
    with pytest.raises(UserError, match=culprit):
        for video in find_videos(path):
            open_video(video)


def test_wrong_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    for name in ("there.png", "taken/a.mp4.mp4"):
        Path(name).write_text("old")
    before = sorted(Path().rglob("*"))
    for options, culprit in (
        ("a.mp4 --rendered_output nowhere/a.mp4", "nowhere"),
        ("a.mp4 --rendered_output a.mov", "a.mov"),
        ("a.mp4 --rendered_output there.png", "there.png"),
        ("a.mp4 --rendered_output taken/", "a.mp4.mp4"),
        ("a.mp4 b/a.mp4 --rendered_output new/", "a.mp4.mp4"),
        ("a.mp4 b.mp4 --rendered_output a.mp4", "--rendered_output"),
        ("a.mp4 --json nowhere/a.json", "--json nowhere/a.json"),
        ("a.mp4 --json there.png", "there.png"),
        ("a.mp4 --csv a.txt", "--csv a.txt"),
        ("a.mp4 --save_scores -", "--save_scores -"),
        ("a.mp4 --stride 1", "--stride"),
        ("a.mp4 --threshold 0.5", "--threshold"),
        ("a.mp4 --reconnect", "--reconnect"),
        ("a.mp4 --cam a.jpg", "--cam a.jpg"),
        ("a.mp4 --cam a.png --window 2", "--cam"),
        ("a.mp4 --cam a.png --test_crops 3", "--cam"),
        ("- --cam a.png", "--cam"),
        ("- --rendered_output a.png", "--rendered_output a.png"),
        ("- --window 1 --stride 2", "--stride 2"),
    ):
        args = video_parser().parse_args(["--weights", "FILE", *options.split()])
        is_live = args.videos == ["-"]
        with pytest.raises(UserError, match=re.escape(culprit)):
            check_answer_options(args, is_live)
            rendered_files(args, [] if is_live else list(map(Path, args.videos)), is_live)
    assert sorted(Path().rglob("*")) == before


def test_refusals_of_the_program(ask, clips, tmp_path):
    for options, culprit in (
        (["--num_segments", 4], "--num_segments 4"),
        (["--categories", tmp_path / "none.txt"], "none.txt"),
        (["--weights", tmp_path / "none.pth"], "none.pth"),
        (["--window", 1e-9], "--stride 5e-10"),
        (["-"], "single stream"),
    ):
        assert_one_line_error(ask(clips / "a.mp4", *options), culprit)
    assert_one_line_error(ask(), "video")


# ---------------------------------------------------------------------------------------------------------
# Pictures


def test_rendered_output(ask, clips, tmp_path):
    for name in ("out.PNG", "out.mp4"):
        assert ask(clips / "a.mp4", "--rendered_output", tmp_path / name).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.PNG", "out.mp4"]
    assert Image.open(tmp_path / "out.PNG").width == 1200
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(12)
    assert len(frames) == 30
    pictures = [np.asarray(frame.to_image()) for frame in frames]
    for picture in pictures:
        assert (picture[213:] > 200).all(axis=2).any()  # white letters
    # The picture above the caption is the video's own.
    own = open_video(clips / "a.mp4").read([1])[1].resize((320, 213), Image.Resampling.BICUBIC)
    assert np.abs(pictures[0][:213].astype(int) - np.asarray(own)).mean() < 8


def test_video_that_cannot_be_drawn_has_its_answer(ask, clips, tmp_path):
    """The model has not seen the damaged frame."""
    folder, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(clips / "c", folder / "a")
    cut(folder / "a" / "img_00003.jpg", 0.5)
    shutil.copy(clips / "a.mp4", folder / "b.mp4")
    out.mkdir()
    asked = ask(folder, "--rendered_output", out, "--json", tmp_path / "a.json")
    assert_one_line_error(asked, "img_00003.jpg")
    answers = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert [("top" in answer, "error" in answer) for answer in answers] == [(True, True), (True, False)]
    assert len(list(out.iterdir())) == 1


@pytest.mark.parametrize("size", [(64, 48), (427, 240), (1080, 1920)])
@pytest.mark.parametrize("label", ["Jumping", LONG, "x" * 300])
def test_captions_are_not_cut(size, label):
    caption = Caption([label])
    image = caption.draw(Image.new("RGB", size, (0, 90, 0)), {"class": label, "probability": 0.5})
    assert image.width >= 320 and image.width % 2 == image.height % 2 == 0
    letters = (np.asarray(image) > 128).all(axis=2)
    rows, columns = np.flatnonzero(letters.any(axis=1)), np.flatnonzero(letters.any(axis=0))
    assert caption.frame_size[1] < rows[0] and rows[-1] < image.height - 1
    assert columns[0] > 0 and columns[-1] < image.width - 1
    assert caption.draw(Image.new("RGB", size), None).size == image.size


def test_sheet_shows_the_crops_and_the_classes():
    crops = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in (90, 150, 210)])
    video, window = Namespace(path=Path("a.mp4")), Window(0.0, 1.0, [1, 5, 9])
    clip = Clip(0, video, window, [0.0, 0.4, 0.8], np.stack([crops, crops[::-1]]))
    tops = [[{"class": name, "probability": 0.5}] for name in ("a", "b")]
    sheets = [np.asarray(draw_sheet(clip, top)) for top in tops]
    for colour in (90, 150, 210):
        assert (sheets[0] == colour).all(axis=2).sum() > 250**2
    rows = np.flatnonzero((sheets[0] != sheets[1]).any(axis=(1, 2)))
    assert rows.size and rows.max() < 80  # the names, above the frames
