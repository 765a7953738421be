"""`test_video.py` as its users run it: videos to names, seeks, pictures, refusals."""

import json
import os
import re
import runpy
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from forked import REPOSITORY
from helpers import ON_CPU, assert_one_line_error, call, run
from PIL import Image
from synthetic import CATEGORIES
from synthetic import write_video as write_frames
from video_files import cut, numbered_image, remux, write_audio, write_blank, write_video

from classes import released_categories
from frames.sources import find_videos, open_video
from frames.video import decode, decode_frames, index_frames
from inference.load import build_model
from models import TemporalModel
from reports.render import Answer, Caption, answer_sheet, render
from training.describe import describe_model
from utils.cli import UserError

LONG = "Putting something that cannot actually stand upright upright on the table, so it falls on its side"


def save_model(path: Path, classes: int, own: bool = True, **more: object) -> Path:
    """Save a model whose scores differ between clips: an own checkpoint, or one as the authors released."""
    torch.manual_seed(0)
    model = TemporalModel(classes, 8, backbone="resnet14", input_size=32)
    torch.nn.init.normal_(model.new_fc.weight, 0, 0.3)
    content = {"epoch": 1, "arch": "resnet14", "best_prec1": torch.tensor(50.0)}
    content["state_dict"] = {f"module.{name}": value for name, value in model.state_dict().items()}
    if own:
        content["options"] = {"num_segments": 8, "input_size": 32}
    torch.save(content | more, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """An own checkpoint of the classes of `synthetic`. Read only: it is shared."""
    path = tmp_path_factory.mktemp("weights") / "own.pth.tar"
    return save_model(path, len(CATEGORIES), categories=list(CATEGORIES))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of videos: two files at different depths, a folder of frames, and what is none. Read only."""
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


def test_a_released_checkpoint_and_three_webm_files_to_names_in_one_command(tmp_path):
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
    found = [re.fullmatch(r"([01]\.\d{3}) -> (.+)", line) for line in lines if not line.startswith("RESULT")]
    assert {match[2] for match in found} <= set(released_categories())
    probabilities = np.array([float(match[1]) for match in found]).reshape(3, 5)
    assert (np.diff(probabilities) <= 0).all()
    assert (probabilities.sum(axis=1) > 0).all()


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
    # As the published test program has it.
    assert answers["videos"][0]["frames"][:8] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert answers["videos"][2]["frames"][:8] == [3, 9, 15, 20, 26, 31, 37, 43]
    assert answers["model"]["class_names"] == "from the checkpoint"


# What decoding can start at, and where it goes wrong: see `frames.video.decode_frames`.
FILES = {
    "b_frames.mp4": {},
    "b_frames.mkv": {},
    "vp9.webm": {},
    "vp8.webm": {"codec": "libvpx"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "open.mp4": {"options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}},
    "open.mkv": {"options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "varying.mp4": {"times": np.cumsum(np.arange(60) % 5 + 1).tolist()},
    "varying.webm": {"times": np.cumsum(np.arange(60) % 5 + 1).tolist()},
    "no_times.avi": {},
    "no_times.h264": {},
    "stream.ts": {},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=10:open-gop=1:log-level=none"}},
}


def noisy_images(count: int) -> list[np.ndarray]:
    """Frames of which each differs from all others, whatever an encoder makes of them."""
    rng = np.random.default_rng(0)
    return [
        np.clip(numbered_image(number, 96, 64) + rng.integers(-27, 28, (64, 96, 3)), 0, 255).astype(np.uint8)
        for number in range(count)
    ]


def damage(path: Path, number: int) -> None:
    """Overwrite what a packet of a video holds; its container stays as it is."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0])]
    content = path.read_bytes()
    assert packets[number] in content
    path.write_bytes(content.replace(packets[number], b"\xff" * len(packets[number])))


def assert_same_frames(path: Path) -> None:
    """Check that frames which are decoded alone are those of decoding in sequence, bit by bit."""
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
        found = dict(decode_frames(path, index, numbers))
        assert list(found) == sorted(numbers)
        for number, frame in found.items():
            np.testing.assert_array_equal(frame.to_ndarray(), in_sequence[number - 1], err_msg=str(numbers))


@pytest.mark.parametrize("name", FILES)
def test_single_frames_are_those_of_decoding_in_sequence(name, tmp_path):
    write_video(tmp_path / name, noisy_images(60), **FILES[name])
    assert_same_frames(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_single_frames_after_the_start_of_an_edit_list(name, tmp_path):
    write_video(tmp_path / "whole.mp4", noisy_images(63), options={"g": "8"})
    remux(tmp_path / "whole.mp4", tmp_path / name, shift=1)
    assert index_frames(tmp_path / name).count < 63
    assert_same_frames(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_what_is_not_needed_is_not_decoded(name, tmp_path):
    path = tmp_path / name
    write_video(path, noisy_images(60))
    content = path.read_bytes()
    damage(path, 12)
    numbers = [1, 58]
    found = dict(decode_frames(path, index_frames(path), numbers))
    path.write_bytes(content)
    intact = [frame.to_ndarray() for frame in decode(path)]
    for number in numbers:
        np.testing.assert_array_equal(found[number].to_ndarray(), intact[number - 1])


def test_a_folder_is_searched_for_videos_and_frame_folders(clips, tmp_path):
    assert find_videos(clips) == [clips / "a.mp4", clips / "c", clips / "more" / "b.webm"]
    assert find_videos(clips / "c") == [clips / "c"]
    (tmp_path / "back").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(clips)
    assert len(find_videos(tmp_path)) == 3


def test_frames_are_numbered_from_wherever_a_folder_starts(clips, tmp_path):
    folder = tmp_path / "from_{0}"
    folder.mkdir()
    for number in range(20):
        source = clips / "c" / f"img_{number + 1:05d}.jpg"
        (folder / f"a{{}}_{number}.jpg").write_bytes(source.read_bytes())
    moved, original = open_video(folder), open_video(clips / "c")
    assert moved.num_frames == 20
    for number, frame in original.read([1, 10, 20]).items():
        assert moved.read([number])[number].tobytes() == frame.tobytes()


def test_batches_keep_the_order_and_bad_videos_are_named(ask, clips, tmp_path):
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
    assert f"{broken}: truncated" in errors[0]
    assert f"{videos[3]}: cannot be read (No such file" in errors[1]
    answers = json.loads((tmp_path / "answers.json").read_text())["videos"]
    assert [answer["video"] for answer in answers] == [str(video) for video in videos]
    assert ["error" in answer for answer in answers] == [False, True, False, True, False]
    # A clip's answer does not depend on its company.
    alone = json.loads(ask(videos[2], "--json", "-").stdout)["videos"][0]["top"]
    np.testing.assert_allclose(
        [best["probability"] for best in answers[2]["top"]],
        [best["probability"] for best in alone],
        atol=1e-6,
    )


def test_a_program_that_ends_does_not_wait_for_videos_that_no_thread_has_begun(clips):
    load_clips = runpy.run_path(str(REPOSITORY / "test_video.py"))["load_clips"]
    released = threading.Event()
    begun = []

    def transform(frames: list[Image.Image], label: int, _: None) -> tuple[np.ndarray, int]:
        begun.append(label)
        if len(begun) > 30:
            released.wait()
        return np.zeros((4, 1, 1, 3), np.uint8), label

    batches = load_clips([clips / "c"] * 60, 4, transform, [0.5], 30)
    assert len(next(batches)) == 30
    threading.Timer(0.5, released.set).start()
    batches.close()  # as by Ctrl-C, while at most 16 threads load the second batch
    assert len(begun) <= 30 + 16


def test_names_from_a_file_and_no_names_at_all(ask, clips, tmp_path):
    weights = save_model(tmp_path / "bare.pth.tar", 6, own=True)
    asked = ask(clips / "a.mp4", weights=weights)
    assert "classes are numbered" in asked.stdout.splitlines()[1]
    assert set(re.findall(r"-> (.*)", asked.stdout)) < {f"class {label}" for label in range(6)}
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {label}\n" for label in range(6)))
    named = ask(clips / "a.mp4", "--categories", names, weights=weights)
    assert re.findall(r"-> .* (\d)", named.stdout) == re.findall(r"-> .* (\d)", asked.stdout)
    assert str(names) in named.stdout.splitlines()[1]
    names.write_text("one\ntwo\n")
    assert_one_line_error(
        ask(clips / "a.mp4", "--categories", names, weights=weights),
        "--categories",
        "has 2 names",
        "6 classes",
    )


def test_one_frame_is_repeated_and_a_turned_video_is_seen_upright(ask, tmp_path):
    write_video(tmp_path / "one.mp4", 1)
    asked = ask(tmp_path / "one.mp4", "--json", "-")
    assert asked.returncode == 0
    assert "1 frame" in asked.stderr
    assert json.loads(asked.stdout)["videos"][0]["frames"] == [1] * 8
    write_video(tmp_path / "turned.mp4", 12, turn=90)
    assert ask(tmp_path / "turned.mp4").returncode == 0
    assert open_video(tmp_path / "turned.mp4").read([3])[3].size == (64, 96)


def test_frames_of_8k(ask, tmp_path):
    write_blank(tmp_path / "8k.mkv", 7680, 4320, "libx264", "yuv420p")
    assert ask(tmp_path / "8k.mkv").returncode == 0
    write_blank(tmp_path / "huge.avi", 12000, 8000, "mjpeg", "yuvj420p")
    assert_one_line_error(ask(tmp_path / "huge.avi"), "12000 x 8000 pixels")


@pytest.mark.parametrize("kind", ["broken", "empty", "audio", "no videos", "missing", "gap", "mix", "locked"])
def test_what_is_not_a_video_is_refused(kind, ask, tmp_path):
    path = tmp_path / "a.mkv"
    if kind == "broken":
        path.write_bytes(b"not a video" * 100)
        words = ["not a video"]
    elif kind == "empty":
        path.write_bytes(b"")
        words = ["empty file"]
    elif kind == "audio":
        write_audio(path)
        words = ["no video stream"]
    elif kind == "no videos":
        path.mkdir()
        (path / "notes.txt").write_text("none")
        words = ["has no videos"]
    elif kind == "missing":
        words = ["No such file"]
    elif kind == "locked":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        write_video(path, 3)
        path.chmod(0)
        words = ["Permission denied"]
    else:
        write_frames(path, 4, (54, 40), "{:05d}.jpg", 1, np.random.default_rng(0))
        if kind == "gap":
            (path / "00002.jpg").unlink()
            words = ["00002.jpg is missing"]
        else:
            (path / "b00001.jpg").write_bytes((path / "00001.jpg").read_bytes())
            words = ["images of one name"]
    assert_one_line_error(ask(path), path, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rendered_output", "{}/nowhere/a.mp4"], ["--rendered_output", "nowhere is not a folder"]),
        (["--rendered_output", "{}/a.mov"], ["must end in .mp4, .gif or .png"]),
        (["--rendered_output", "{}/there.png"], ["there.png: already exists"]),
        (["--json", "{}/nowhere/a.json"], ["--json", "nowhere is not a folder"]),
        (["--json", "{}/there.png"], ["there.png: already exists"]),
        (["--json", "{0}/a.png", "--rendered_output", "{0}/../{0.name}/a.png"], ["also the file of --rend"]),
        (["--num_segments", "4"], ["contradicts", "num_segments 8"]),
        (["--categories", "{}/none.txt"], ["none.txt: no such file"]),
        ([""], ["is empty"]),
    ],
)
def test_options_that_cannot_work(options, words, ask, clips, tmp_path):
    (tmp_path / "there.png").write_text("old")
    asked = ask(clips / "a.mp4", *[option.format(tmp_path) for option in options])
    assert_one_line_error(asked, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]
    assert (tmp_path / "there.png").read_text() == "old"


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_json_to_full_stdout_fails(weights, clips):
    arguments = ["--weights", weights, clips / "a.mp4", "--json", "-"]
    done = run("test_video.py", *arguments, env=ON_CPU, prepare=fill_stdout)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --json -: ")


def test_only_a_single_video_is_rendered(ask, clips, tmp_path):
    asked = ask(clips / "a.mp4", clips / "c", "--rendered_output", tmp_path / "a.mp4")
    assert_one_line_error(asked, "single video")


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".PNG"])
def test_the_answer_is_drawn(suffix, ask, clips, tmp_path):
    out = tmp_path / f"out{suffix}"
    asked = ask(clips / "a.mp4", "--rendered_output", out)
    assert asked.returncode == 0, asked.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # and nothing beside it
    if suffix == ".PNG":
        assert Image.open(out).width == 1200
        return
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert frames[0].width == 320
        assert frames[0].height % 2 == 0
        if suffix == ".mp4":
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert float(stream.average_rate) == pytest.approx(12)
            assert len(frames) == 30
        else:
            assert len(frames) / 2.5 <= 10  # of 2.5 seconds
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
def test_captions_are_complete_on_frames_of_any_size(size, label):
    caption = Caption(size, Answer(label, 0.5))
    image = caption.draw(Image.new("RGB", size, (0, 90, 0)))
    assert image.size == caption.size
    assert image.width >= 320
    letters = (np.asarray(image) > 128).all(axis=2)
    rows, columns = np.flatnonzero(letters.any(axis=1)), np.flatnonzero(letters.any(axis=0))
    # Nothing touches an edge, so nothing is cut.
    assert rows[0] > 0 and rows[-1] < image.height - 1
    assert columns[0] > 0 and columns[-1] < image.width - 1
    assert columns[-1] - columns[0] > image.width / 12


def test_bars_are_as_long_as_the_classes_are_probable(clips):
    video = open_video(clips / "a.mp4")
    top = [Answer(LONG, 0.5), Answer("x" * 200, 0.25), Answer("c", 0.0)]
    sheet = np.asarray(answer_sheet(video, [1, 5, 9], top)).astype(int)
    is_bar = (np.abs(sheet - (31, 97, 160)) < 2).all(axis=2)
    lengths = is_bar[:, 600:].sum(axis=1)
    assert set(lengths[lengths > 150].tolist()) == {181}
    assert 91 in lengths


def test_a_video_that_is_damaged_later_leaves_no_picture(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, noisy_images(200))
    damage(path, 190)
    video = open_video(path)
    with pytest.raises(UserError, match="damaged"):
        render(tmp_path / "out.mp4", video, [1], [Answer("a", 0.5)])
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_building_a_model_to_load_weights_draws_no_random_numbers(weights):
    saved = torch.load(weights, weights_only=True)
    state_dict = {name.removeprefix("module."): value for name, value in saved["state_dict"].items()}
    before = torch.get_rng_state()
    build_model(describe_model({"state_dict": state_dict}, weights), 8, 32, weights)
    assert torch.equal(torch.get_rng_state(), before)
