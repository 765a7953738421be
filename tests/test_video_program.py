"""`test_video.py`: answers, decoding of single frames, rendered pictures, refusals."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import ON_CPU, assert_one_line_error, call, run
from PIL import Image
from synthetic import CATEGORIES
from synthetic import write_video as write_frames
from video_files import cut, damage, numbered_image, remux, write_audio, write_video
from video_model import save_model

from classes import released_categories
from frames.sources import open_video
from frames.video import decode, decode_frames, index_frames
from reports.render import Answer, Caption, answer_sheet

LONG = "Putting something that cannot actually stand upright upright on the table, so it falls on its side"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """An own checkpoint of the classes of `synthetic`. Read only: it is shared."""
    path = tmp_path_factory.mktemp("weights") / "own.pth.tar"
    return save_model(path, len(CATEGORIES), categories=list(CATEGORIES))


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


def test_released_checkpoint_and_three_videos(tmp_path):
    weights = save_model(tmp_path / "released.pth.tar", 174, own=False)
    videos = [tmp_path / f"{number}.webm" for number in range(3)]
    for number, video in enumerate(videos):
        write_video(video, 12 + number)
    done = run("test_video.py", "--weights", weights, *videos)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    _, names, *lines = done.stdout.splitlines()
    assert "categories/something.txt" in names
    assert lines[::6] == [f"RESULT ON {video}" for video in videos]
    answers = [re.fullmatch(r"([01]\.\d{3}) -> (.+)", line).groups() for line in lines if " -> " in line]
    assert {name for _, name in answers} <= set(released_categories())
    probabilities = np.array([float(probability) for probability, _ in answers]).reshape(3, 5)
    assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize(
    ("source", "views"),
    [
        ("videos", []),
        ("frames", []),
        ("videos", ["--test_crops", 10, "--num_clips", 2, "--full_res", "-b", 8]),
    ],
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
FILES = {
    "b_frames.mp4": {},
    "b_frames.mkv": {},
    "vp9.webm": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "open.mp4": {"options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}},
    "open.mkv": {"options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "varying.mp4": {"times": np.cumsum(np.arange(60) % 5 + 1).tolist()},
    "no_times.avi": {},
    "no_times.h264": {},
    "stream.ts": {},
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
    """Check that single frames equal those of decoding in sequence, bit by bit."""
    in_sequence = [frame.to_ndarray() for frame in decode(path)]
    index = index_frames(path)
    last = len(in_sequence)
    choices = [
        [1, last // 2 + 1, last],
        [last],
        [last - 1, last],
        [40, 20],
        *([n] for n in range(17, last, 4)),
    ]
    for numbers in choices:
        frames = dict(decode_frames(path, index, numbers))
        assert list(frames) == sorted(numbers)
        for number, frame in frames.items():
            np.testing.assert_array_equal(frame.to_ndarray(), in_sequence[number - 1], err_msg=str(numbers))


@pytest.mark.parametrize("name", FILES)
def test_single_frames(name, tmp_path):
    write_video(tmp_path / name, noisy_images(60), **FILES[name])
    assert_same_frames(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_single_frames_with_an_edit_list(name, tmp_path):
    write_video(tmp_path / "whole.mp4", noisy_images(63), options={"g": "8"})
    remux(tmp_path / "whole.mp4", tmp_path / name, shift=1)
    assert index_frames(tmp_path / name).count < 63
    assert_same_frames(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_other_frames_are_not_decoded(name, tmp_path):
    path = tmp_path / name
    write_video(path, noisy_images(60))
    content = path.read_bytes()
    damage(path, 12)
    numbers = [1, 58]
    frames = dict(decode_frames(path, index_frames(path), numbers))
    path.write_bytes(content)
    intact = [frame.to_ndarray() for frame in decode(path)]
    for number in numbers:
        np.testing.assert_array_equal(frames[number].to_ndarray(), intact[number - 1])


# ---------------------------------------------------------------------------------------------------------
# Answers


def test_folder_may_start_at_frame_0(clips, tmp_path):
    folder = tmp_path / "from_{0}"
    folder.mkdir()
    for number in range(20):
        source = clips / "c" / f"img_{number + 1:05d}.jpg"
        (folder / f"a{{}}_{number}.jpg").write_bytes(source.read_bytes())
    moved, original = open_video(folder), open_video(clips / "c")
    assert moved.num_frames == 20
    for number, frame in original.read([1, 10, 20]).items():
        assert moved.read([number])[number].tobytes() == frame.tobytes()


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
    assert str(names) in named.stdout.splitlines()[1]
    names.write_text("one\ntwo\n")
    assert_one_line_error(ask(clips / "a.mp4", "--categories", names, weights=weights), "--categories")


def test_short_and_turned_videos(ask, tmp_path):
    write_video(tmp_path / "one.mp4", 1)
    asked = ask(tmp_path / "one.mp4", "--json", "-")
    assert asked.returncode == 0
    assert "1 frame" in asked.stderr
    assert json.loads(asked.stdout)["videos"][0]["frames"] == [1] * 8
    write_video(tmp_path / "turned.mp4", 12, turn=90)
    assert ask(tmp_path / "turned.mp4").returncode == 0
    assert open_video(tmp_path / "turned.mp4").read([3])[3].size == (64, 96)


# ---------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("kind", ["text", "empty", "audio", "no videos", "missing", "gap", "two names"])
def test_unusable_video(kind, ask, tmp_path):
    path = tmp_path / "a.mkv"
    culprits: list[object] = [path]
    if kind == "audio":
        write_audio(path)
    elif kind == "no videos":
        path.mkdir()
        (path / "notes.txt").write_text("none")
    elif kind in ("gap", "two names"):
        write_frames(path, 4, (54, 40), "{:05d}.jpg", 1, np.random.default_rng(0))
        if kind == "gap":
            culprits.append("00002.jpg")
            (path / "00002.jpg").unlink()
        else:
            (path / "b00001.jpg").write_bytes((path / "00001.jpg").read_bytes())
    elif kind != "missing":
        path.write_bytes(b"not a video" * 100 if kind == "text" else b"")
    assert_one_line_error(ask(path), *culprits)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--rendered_output", "nowhere/a.mp4"], "nowhere"),
        (["--rendered_output", "a.mov"], "a.mov"),
        (["--rendered_output", "there.png"], "there.png"),
        (["more.webm", "--rendered_output", "a.mp4"], "--rendered_output"),
        (["--json", "nowhere/a.json"], "--json nowhere/a.json"),
        (["--json", "there.png"], "there.png"),
        (["--json", "a.png", "--rendered_output", "./a.png"], "--rendered_output"),
        (["--num_segments", "4"], "--num_segments 4"),
        (["--categories", "none.txt"], "none.txt"),
        (["--weights", "there.png"], "there.png"),
    ],
)
def test_wrong_options(options, culprit, ask, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.png").write_text("old")
    Path("more.webm").write_bytes((clips / "a.mp4").read_bytes())
    assert_one_line_error(ask(clips / "a.mp4", *options), culprit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.webm", "there.png"]
    assert Path("there.png").read_text() == "old"


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_json_to_full_stdout_fails(weights, clips):
    arguments = ["--weights", weights, clips / "a.mp4", "--json", "-"]
    done = run("test_video.py", *arguments, env=ON_CPU, prepare=fill_stdout)
    assert_one_line_error(done, "--json -")


# ---------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("suffix", [".mp4", ".PNG"])
def test_rendered_output(suffix, ask, clips, tmp_path):
    out = tmp_path / f"out{suffix}"
    asked = ask(clips / "a.mp4", "--rendered_output", out)
    assert asked.returncode == 0, asked.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    if suffix == ".PNG":
        assert Image.open(out).width == 1200
        return
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert frames[0].width == 320
        assert frames[0].height % 2 == 0
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(12)
        assert len(frames) == 30
        for frame in frames:
            image = np.asarray(frame.to_image())
            assert (image[-40:] > 200).all(axis=2).any()  # white letters
        # The picture above the band is the video's own.
        own = next(iter(open_video(clips / "a.mp4").read([1]).values()))
        shown = Image.fromarray(np.asarray(frames[0].to_image())[:150])
        expected = np.asarray(own.resize((320, 213), Image.Resampling.BICUBIC))[:150]
        assert np.abs(np.asarray(shown, int) - expected).mean() < 8


@pytest.mark.parametrize(
    "size", [(64, 48), (320, 240), (1920, 1080), (2160, 3840), (100, 1000), (1000, 40), (9, 900)]
)
@pytest.mark.parametrize("label", ["Jumping", LONG, "x" * 500, "日本語 – что-то 🎉 \u202e\n"])
def test_captions_fit_frames_of_any_size(size, label):
    answer = Answer(label, 0.5)
    caption = Caption(size, [answer])
    image = caption.draw(Image.new("RGB", size, (0, 90, 0)), answer)
    assert image.size == caption.size
    assert image.width >= 320
    letters = (np.asarray(image) > 128).all(axis=2)
    rows, columns = np.flatnonzero(letters.any(axis=1)), np.flatnonzero(letters.any(axis=0))
    # No letter touches an edge, so none is cut.
    assert rows[0] > 0 and rows[-1] < image.height - 1
    assert columns[0] > 0 and columns[-1] < image.width - 1
    assert columns[-1] - columns[0] > image.width / 12


def test_sheet_has_the_crops_and_bars_of_the_probabilities():
    crops = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in (90, 150, 210)])
    top = [Answer(LONG, 0.5), Answer("x" * 200, 0.25), Answer("c", 0.0)]
    sheet = np.asarray(answer_sheet("a.mp4", [1, 5, 9], crops, top)).astype(int)
    assert [(sheet == colour).all(axis=2).sum() > 250**2 for colour in (90, 150, 210)] == [True] * 3
    is_bar = (np.abs(sheet - (31, 97, 160)) < 2).all(axis=2)
    lengths = is_bar[:, 600:].sum(axis=1)
    assert set(lengths[lengths > 150].tolist()) == {181}
    assert 91 in lengths
