"""`test_video.py` over time: windows, segments, scores, features, timelines, class activation."""

import csv
import json
import re
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import assert_one_line_error, call
from PIL import Image
from synthetic import CATEGORIES
from video_files import damage, numbered_image, write_video

from engine import PixelModel
from frames.sources import open_video
from inference.answers import merge_windows
from inference.clips import ClipFormat, load_windows, plan_windows
from inference.draw import class_activation
from inference.load import load_model
from models import TemporalModel
from reports.timeline import heat
from tools import make_motion_dataset
from tools.make_motion_dataset import SIZE
from transforms import evaluation_transform

BILINEAR = Image.Resampling.BILINEAR
FORMAT = ClipFormat(8, 1, evaluation_transform(32))


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Five seconds, 60 frames. Read only: it is shared."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, 60)
    return path


@pytest.fixture
def ask(weights):
    def ask(*args, weights=weights):
        process = call("test_video.py", "--weights", weights, *args)
        assert process.returncode == 0, process.stderr
        return process

    return ask


# ---------------------------------------------------------------------------------------------------------
# Windows


@pytest.mark.parametrize(
    ("count", "seconds", "stride", "spans"),
    [
        (60, 2, 2, [(0, 2), (2, 4), (3, 5)]),  # the last window ends with the video
        (12, 2, 1, [(0, 1)]),
        (60, 1, 3, [(0, 1), (3, 4), (4, 5)]),
    ],
)
def test_plan_windows(count, seconds, stride, spans):
    windows = plan_windows(np.arange(count) / 12, 1 / 12, FORMAT, seconds, stride)
    np.testing.assert_allclose([(window.start, window.end) for window in windows], spans)
    for window in windows:
        first, last = window.start * 12 + 1, window.end * 12
        assert first <= min(window.numbers)
        assert max(window.numbers) <= last


def test_window_without_frames_has_the_frame_on_the_screen():
    times = np.array([0, 0.5, 9.0, 9.5])
    windows = plan_windows(times, 0.5, FORMAT, 2, 2)
    assert [window.numbers[0] for window in windows] == [1, 2, 2, 2, 3]


def test_windows_have_the_logits_of_cut_clips(ask, weights, film, tmp_path):
    views = ["--test_crops", 3, "--num_clips", 2]
    home = tmp_path / "own"
    spans = [(0, 2), (1, 3), (2, 4), (3, 5)]
    video = open_video(film)
    for number, (start, end) in enumerate(spans):
        folder = home / "frames" / str(number)
        folder.mkdir(parents=True)
        frames = video.read(range(start * 12 + 1, end * 12 + 1))
        for place, image in enumerate(frames.values(), start=1):
            image.save(folder / f"{place:05d}.png")
    (home / "category.txt").write_text("".join(f"{name}\n" for name in CATEGORIES))
    (home / "val_videofolder.txt").write_text("".join(f"{number} 24\n" for number in range(4)))
    data = ("--dataset", "own", "--root_path", tmp_path, "-j", 0, "--image_tmpl", "{:05d}.png")
    evaluated = tmp_path / "evaluated.npz"
    process = call("test_models.py", "--weights", weights, *data, *views, "--save_scores", evaluated)
    assert process.returncode == 0, process.stderr

    scores, answers = tmp_path / "scores.npz", tmp_path / "answers.json"
    options = ["--window", 2, *views, "-b", 6, "--save_scores", scores, "--json", answers]
    process = ask(film, *options)
    saved = np.load(scores)
    np.testing.assert_allclose(saved["scores"], np.load(evaluated)["scores"], rtol=0, atol=1e-5)
    assert list(zip(saved["start"], saved["end"], strict=True)) == spans
    assert saved["videos"].tolist() == [str(film)] * 4

    # Lines and JSON
    lines = [line for line in process.stdout.splitlines() if " -> " in line]
    (answer,) = json.loads(answers.read_text())["videos"]
    assert (answer["fps"], answer["duration"], answer["num_frames"]) == (12, 5, 60)
    for line, window, span in zip(lines, answer["windows"], spans, strict=True):
        assert (window["start"], window["end"]) == span
        np.testing.assert_allclose(window["times"], (np.array(window["frames"]) - 1) / 12, atol=1e-3)
        best = window["top"][0]
        assert line == f"{span[0]:.1f}-{span[1]:.1f} s  {best['probability']:.2f} -> {best['class']}"


# ---------------------------------------------------------------------------------------------------------
# A trained model

DIRECTIONS = ("Pulling something from left to right", "Pulling something from right to left")
CLIP_SECONDS, NUM_VAL = 2, 16
INPUT_SIZE = 48


def draw_frames(seed: list[int], label: int) -> list[Image.Image]:
    """Frames of a clip of `tools/make_motion_dataset.py`."""
    rng, level = np.random.default_rng(seed), make_motion_dataset.LEVELS["demo"]
    return make_motion_dataset.draw_clip(rng, DIRECTIONS[label], 12 * CLIP_SECONDS, SIZE, level)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint that knows the directions. Read only: it is shared."""
    root = tmp_path_factory.mktemp("trained")
    (root / "motion").mkdir()
    (root / "motion" / "category.txt").write_text("".join(f"{name}\n" for name in DIRECTIONS))
    for split, name, count in ((0, "train_videofolder.txt", 144), (1, "val_videofolder.txt", 2)):
        lines = []
        for clip in range(count):
            folder = root / "motion" / "frames" / f"{split}_{clip}"
            folder.mkdir(parents=True)
            images = draw_frames([split, clip], clip % 2)
            for place, image in enumerate(images, start=1):
                image.save(folder / f"{place:05d}.jpg", quality=90)
            lines.append(f"{folder.name} {len(images)} {clip % 2}\n")
        (root / "motion" / name).write_text("".join(lines))
    options = ("--dataset", "motion", "--root_path", root, "--image_tmpl", "{:05d}.jpg", "-j", 0)
    options += ("--arch", "resnet14", "--input_size", INPUT_SIZE, "--num_segments", 4, "--epochs", 3, "-b", 8)
    options += ("--lr", 0.02, "--lr_schedule", "cosine", "--weight_decay", 0.003, "--checkpoint_dir", root)
    process = call("main.py", *options)
    assert process.returncode == 0, process.stderr
    (last,) = root.rglob("*_checkpoint.pth.tar")
    return last


@pytest.mark.slow
@pytest.mark.timeout(400)  # it trains a model
def test_windows_of_concatenated_clips_are_right(ask, trained, tmp_path):
    for clip in range(NUM_VAL):
        for place, frame in enumerate(draw_frames([1, clip], clip % 2), start=1):
            frame.save(tmp_path / f"{12 * CLIP_SECONDS * clip + place:05d}.png")
    options = ("--window", 1.5, "--stride", 0.25, "--json", "-")
    (video,) = json.loads(ask(tmp_path, *options, weights=trained).stdout)["videos"]
    inside = [
        w for w in video["windows"] if w["end"] - w["start"] // CLIP_SECONDS * CLIP_SECONDS <= CLIP_SECONDS
    ]
    hits = [w["top"][0]["label"] == int(w["start"]) // CLIP_SECONDS % 2 for w in inside]
    assert len(hits) == 3 * NUM_VAL
    assert np.mean(hits) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_heat_lies_on_the_moving_object(trained, monkeypatch):
    """In frames three times as wide and high, because the map of a crop has only 2 x 2 positions."""
    paths, draw_motion = [], make_motion_dataset.draw_motion
    monkeypatch.setattr(
        make_motion_dataset, "draw_motion", lambda *args: paths.append(draw_motion(*args)) or paths[-1]
    )
    model = load_model(trained).model
    pixels = PixelModel(model).eval()
    (width, height), numbers = SIZE, [3, 9, 15, 21]
    scale = INPUT_SIZE / height
    size = [3 * side * INPUT_SIZE // height // 32 * 32 for side in SIZE]
    box = (0, 0, size[0] / scale, size[1] / scale)
    heat_inside, heat_total, areas = 0.0, 0.0, []
    for clip in range(16):
        label = clip % 2
        images = draw_frames([2, clip], label)
        frames = np.stack([np.asarray(images[number]) for number in numbers])
        path = (paths[-1][::-1] if label else paths[-1])[numbers]  # the second class is drawn backwards
        wide = np.pad(frames, ((0, 0), (height, height), (width, width), (0, 0)), mode="edge")
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(size, BILINEAR, box)) for frame in wide])
        maps = class_activation(model, pixels, torch.from_numpy(frames)[None], label).clamp_min(0).numpy()
        inside = np.zeros(frames.shape[:3], bool)
        for place, (x, y, radius, _) in enumerate(path):
            centre = 1.5 * np.array(SIZE) + height * np.array([x, y])
            left, top = (scale * (centre - height * radius)).astype(int)
            right, bottom = (scale * (centre + height * radius)).astype(int)
            inside[place, top:bottom, left:right] = True
        energy = np.stack([np.asarray(Image.fromarray(values).resize(size, BILINEAR)) for values in maps])
        heat_inside, heat_total = heat_inside + energy[inside].sum(), heat_total + energy.sum()
        areas.append(inside.mean())
    assert heat_inside / heat_total >= 3 * np.mean(areas)


# ---------------------------------------------------------------------------------------------------------
# Output


def test_memory_does_not_grow_with_the_video(tmp_path):
    peaks = []
    for count in (60, 480):
        path = tmp_path / f"{count}.mp4"
        write_video(path, [numbered_image(number % 64, 96, 64) for number in range(count)])
        tracemalloc.start()
        windows = sum(len(batch) for batch in load_windows([path], FORMAT, 4, 2, 1))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert windows == int(count / 12) - 1 + (count % 12 > 0)
    per_frame = 32 * 32 * 3  # bytes, of a crop
    assert peaks[1] - peaks[0] < 420 * per_frame / 2


def test_video_that_is_damaged_later_keeps_its_answers(weights, film, tmp_path):
    path = tmp_path / "damaged.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), dtype=np.uint8)
    write_video(path, list(noise))
    damage(path, 45)
    answers = tmp_path / "answers.json"
    process = call("test_video.py", "--weights", weights, path, film, "--window", 1, "--json", answers)
    assert_one_line_error(process, path)
    damaged, intact = json.loads(answers.read_text())["videos"]
    assert "damaged" in damaged["error"]
    assert [window["start"] for window in damaged["windows"]] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert len(intact["windows"]) == 9


def test_threshold_merges_windows():
    def window(start, label, probability):
        best = {"label": label, "class": "ab"[label], "probability": probability}
        return {"start": start, "end": start + 2, "top": [best]}

    windows = [window(0, 0, 0.9), window(1, 0, 0.7), window(2, 0, 0.4), window(3, 0, 0.6), window(4, 1, 0.8)]
    segments = merge_windows(windows, 0.5)
    assert [(segment["start"], segment["end"], segment["class"]) for segment in segments] == [
        (0, 3, "a"),
        (3, 5, "a"),
        (4, 6, "b"),
    ]
    assert segments[0]["probability"] == pytest.approx(0.8)


@pytest.mark.parametrize("options", [[], ["--window", 2], ["--window", 2, "--threshold", 0]])
def test_csv_and_json(options, ask, film, tmp_path):
    files = ("--csv", tmp_path / "answers.csv", "--json", tmp_path / "answers.json")
    process = ask(film, *options, "--topk", 2, *files)
    with (tmp_path / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "answers.json").read_text())
    lines = re.findall(r"([\d.]+)-([\d.]+) s  ([\d.]+) -> (.*)", process.stdout)
    assert [row["video"] for row in rows] == [str(film)] * len(rows)
    if options:
        assert [(float(a), float(b), name) for a, b, _, name in lines] == [
            (float(row["start"]), float(row["end"]), row["class"]) for row in rows
        ]
        return
    assert [(row["start"], row["end"]) for row in rows] == [("0.000", "5.000")]
    assert content["model"]["precision"] == "float32"
    assert "has_dropout" not in content["model"]
    assert content["first_frame"] == 1
    (video,) = content["videos"]
    assert len(video["top"]) == 2
    assert video["times"] == pytest.approx([(number - 1) / 12 for number in video["frames"]], abs=1e-3)


def test_long_video_names_the_option(ask, tmp_path):
    for seconds, is_long in ((20, False), (30, True)):
        path = tmp_path / f"{seconds}.mp4"
        write_video(path, 20, times=[number * 12 * seconds // 20 for number in range(20)])
        errors = ask(path).stderr
        assert ("3.8 s apart; --window" in errors) == bool(errors) == is_long


def test_features_and_scores_of_unlabelled_videos(ask, weights, film, tmp_path):
    files = {name: tmp_path / f"{name}.npz" for name in ("scores", "features")}
    ask(film.parent, "--save_scores", files["scores"], "--save_features", files["features"])
    scores, features = (np.load(files[name]) for name in files)
    model = load_model(weights).model
    logits = features["features"] @ model.classifier.weight.detach().numpy().T
    np.testing.assert_allclose(logits + model.classifier.bias.detach().numpy(), scores["scores"], atol=1e-4)
    assert scores["classes"].tolist() == list(CATEGORIES)
    assert scores["labels"].tolist() == [-1]


# ---------------------------------------------------------------------------------------------------------
# Pictures


def decode_movie(path):
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_image()).astype(int) for frame in container.decode(video=0)]


def test_captions_of_several_videos(ask, film, tmp_path):
    gif = tmp_path / "b.gif"
    images = [Image.fromarray(numbered_image(number, 96, 64)) for number in range(1, 13)]
    images[0].save(gif, save_all=True, append_images=images[1:], duration=100)
    names = tmp_path / "names.txt"
    names.write_text("a\nbb\nccc\ndddd\n")
    ask(film, gif, "--window", 1, "--rendered_output", f"{tmp_path}/new/", "--categories", names)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["b.gif.mp4", "film.mp4.mp4"]
    assert len(decode_movie(tmp_path / "new" / "b.gif.mp4")) == 12
    frames = decode_movie(tmp_path / "new" / "film.mp4.mp4")
    assert len(frames) == 60
    assert np.abs(frames[2][-20:] - frames[57][-20:]).max() > 100  # the captions
    cursors = [int(frame[1].sum(axis=1).argmax()) for frame in frames]  # white in the strip
    assert cursors == sorted(cursors)
    assert cursors[0] < 10 and cursors[-1] > 300


def test_timeline_is_plotted(ask, film, tmp_path):
    ask(film, "--window", 1, "--rendered_output", tmp_path / "a.png")
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert image.shape[1] > 1500
    assert len(np.unique(image[: image.shape[0] // 4].reshape(-1, 3), axis=0)) > 50  # frames above the plot


# ---------------------------------------------------------------------------------------------------------
# Class activation


@pytest.mark.parametrize("options", [{}, {"model": "TSM"}, {"dropout": 0}], ids=str)
def test_mean_of_class_activation_is_the_logit(options):
    torch.manual_seed(0)
    model = TemporalModel(5, 4, backbone="resnet14", input_size=64, **options).eval()
    torch.nn.init.normal_(model.classifier.weight, 0, 0.3)
    torch.nn.init.normal_(model.classifier.bias)
    pixels = PixelModel(model).eval()
    clip = torch.randint(0, 256, (1, 4, 64, 64, 3), dtype=torch.uint8)
    logits = pixels(clip)[0].detach()
    for label in range(5):
        maps = class_activation(model, pixels, clip, label)
        assert maps.shape == (4, 2, 2)
        logit = float(maps.mean()) + model.classifier.bias[label].item()
        assert logit == pytest.approx(logits[label].item(), rel=1e-5)


def test_heat_lies_where_the_activation_is():
    maps = np.full((2, 4, 4), -1.0)
    maps[1, 0, 3] = 2.0
    plain, hot = heat(np.full((2, 64, 64, 3), 100, np.uint8), maps)
    assert (np.asarray(plain) == 100).all()
    red = np.asarray(hot)[..., 0].astype(int) - 100
    assert red[:16, 48:].mean() > 10 * max(1, red[32:].mean(), red[:, :32].mean())


def test_cam_is_drawn(ask, film, tmp_path):
    for name in ("a.png", "a.mp4"):
        ask(film, "--cam", tmp_path / name)
    assert Image.open(tmp_path / "a.png").width == 1200
    frames = decode_movie(tmp_path / "a.mp4")
    assert len(frames) == 8
    # The bar of the frame is dark: it moves.
    dark = [int((frame[-60:].max(axis=2) < 60).sum(axis=0).argmax()) for frame in frames]
    assert dark == sorted(dark) and dark[0] < 56 <= 392 < dark[-1]
