"""Several crops and clips of a video; outputs of `test_models.py`; videos without labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset, write_video
from test_models_program import MEAN, STD, filled_model, wrapped
from torch.nn import functional
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from video_files import write_video as write_video_file

from classes import NEVER, mirrored_labels
from dataset import VideoDataSet, clip_fractions
from frames.sources import VideoFiles
from inference.fuse import fuse
from models import TemporalModel
from transforms import GroupOverSample, evaluation_transform

# The last class has a direction and no partner: its clips are never mirrored.
NAMES = (*CATEGORIES, "Turning the camera left while filming something")
MIRRORED = [2, 1, 0, 3, NEVER]
SCALE, SIZE, SEGMENTS = 36, 32, 4
# Lengths of the videos: the first is shorter than its segments, the last is higher than wide.
LENGTHS = (3, 12, 21)
# Number of clips -> their positions, as fractions of a segment.
FRACTIONS = {1: [1 / 2], 2: [1 / 2, 0], 3: [1 / 2, 0, 1 / 4], 4: [1 / 2, 0, 1 / 6, 2 / 6]}
# In quarters of the free space.
CORNERS = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2)]


@pytest.fixture(scope="module")
def model() -> TemporalModel:
    return filled_model(len(NAMES), num_segments=SEGMENTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: it is shared."""
    root = make_dataset(
        tmp_path_factory.mktemp("views"), train=0, val=2, frames=LENGTHS, size=(57, 40), categories=NAMES
    )
    home = root / "somethingv1"
    write_video(
        home / FRAMES["somethingv1"][0] / "3", 21, (40, 61), "{:05d}.jpg", 2, np.random.default_rng(4)
    )
    with (home / "val_videofolder.txt").open("a") as file:
        file.write("3 21 4\n")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, model: TemporalModel) -> Path:
    """Read only: it is shared."""
    path = tmp_path_factory.mktemp("weights") / "own.pth.tar"
    torch.save(wrapped(model, categories=list(NAMES)), path)
    return path


@pytest.fixture
def succeed(root, weights) -> Callable[..., list[str]]:
    def succeed(*args: object, weights: Path = weights, root: Path = root) -> list[str]:
        data = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
        done = call("test_models.py", *data, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return succeed


@pytest.fixture
def scores(succeed, tmp_path) -> Callable[..., np.ndarray]:
    def scores(*args: object, **kwargs: Path) -> np.ndarray:
        path = tmp_path / "out.npz"
        path.unlink(missing_ok=True)
        succeed("--save_scores", path, *args, **kwargs)
        return np.load(path)["scores"]

    return scores


def expected_frames(num_frames: int, fraction: float) -> list[int]:
    length = num_frames / SEGMENTS
    return [1 + int(length * fraction + length * segment) for segment in range(SEGMENTS)]


def crops_by_hand(frame: Image.Image, places: Sequence[tuple[int, int]], size: int) -> list[Image.Image]:
    frame = resize(frame, SCALE)
    x, y = (frame.width - size) // 4, (frame.height - size) // 4
    return [frame.crop((i * x, j * y, i * x + size, j * y + size)) for i, j in places]


@torch.inference_mode()
def views_by_hand(
    model: TemporalModel, root: Path, num_crops: int, num_clips: int, size: int = SIZE
) -> list[dict]:
    """For each video the logits of each view computed alone: `{(crop, clip, is mirrored): logits}`."""
    model = fuse(model, torch.device("cpu"))
    folder = root / "somethingv1" / FRAMES["somethingv1"][0]
    videos = []
    for video in sorted(folder.iterdir()):
        logits = {}
        for clip, fraction in enumerate(FRACTIONS[num_clips]):
            numbers = expected_frames(len(list(video.iterdir())), fraction)
            frames = [Image.open(next(video.glob(f"{number:05d}.*"))).convert("RGB") for number in numbers]
            is_tall = frames[0].height > frames[0].width
            three = [(2, 0), (2, 2), (2, 4)] if is_tall else [(0, 2), (2, 2), (4, 2)]
            places = three if num_crops == 3 else CORNERS
            if num_crops == 1:  # the published crop; the grid's centre is rounded down
                by_frame = [[center_crop(resize(frame, SCALE), size)] for frame in frames]
            else:
                by_frame = [crops_by_hand(frame, places, size) for frame in frames]
            for crop, images in enumerate(zip(*by_frame, strict=True)):
                pixels = torch.stack([(pil_to_tensor(image) / 255 - MEAN) / STD for image in images])
                for flipped in (False, True):
                    logits[crop, clip, flipped] = model((pixels.flip(-1) if flipped else pixels)[None])[0]
        videos.append(logits)
    return videos


def average(views: list[dict], mirrored: Sequence[int] | None = None) -> np.ndarray:
    """Scores of videos; mirrored views count if `mirrored` is given."""
    videos = []
    for logits in views:
        scores = []
        for (crop, clip, flipped), own in logits.items():
            if not flipped:
                scores.append(own.numpy())
            elif mirrored is not None:
                as_is = logits[crop, clip, False]
                pairs = enumerate(mirrored)
                scores.append([float(as_is[c] if other == NEVER else own[other]) for c, other in pairs])
        videos.append(np.mean(scores, axis=0, dtype=np.float64))
    return np.stack(videos)


# ---------------------------------------------------------------------------------------------------------
# Pixels and frames


@pytest.mark.parametrize("size", [(57, 40), (40, 57), (80, 32)], ids=str)
@pytest.mark.parametrize("num_crops", [3, 5, 10])
def test_crops_on_the_grid_of_tsm(size, num_crops):
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    frames = [Image.fromarray(np.stack([x, y, x * 0 + time], -1).astype(np.uint8)) for time in (0, 1)]
    crops, label = GroupOverSample(32, num_crops)(frames, 3, np.random.default_rng(0))
    assert label == 3
    assert {crop.size for crop in crops} == {(32, 32)}
    step_x, step_y = (width - 32) // 4, (height - 32) // 4
    places = [(0, 2), (2, 2), (4, 2)] if width >= height else [(2, 0), (2, 2), (2, 4)]
    places = places if num_crops == 3 else CORNERS
    expected = [(i * step_x, j * step_y, time) for i, j in places for time in (0, 1)]
    assert [crop.getpixel((0, 0)) for crop in crops[: len(expected)]] == expected
    mirrored = [(left + 31, top, time) for left, top, time in expected] if num_crops == 10 else []
    assert [crop.getpixel((0, 0)) for crop in crops[len(expected) :]] == mirrored


def test_positions_of_clips():
    for num_clips, fractions in FRACTIONS.items():
        np.testing.assert_allclose(clip_fractions(num_clips), fractions, rtol=1e-12)


def test_views_of_an_item(tmp_path, monkeypatch):
    """Views have an order, each frame is decoded once, and video files and frame folders give the same."""
    (tmp_path / "videos").mkdir()
    write_video_file(tmp_path / "videos" / "a.mkv", 9, width=60, height=40)
    folder = tmp_path / "frames" / "a"
    folder.mkdir(parents=True)
    for number, frame in VideoFiles(str(tmp_path / "videos")).read("a", range(1, 10)).items():
        frame.image().save(folder / f"{number:05d}.png")
    (tmp_path / "list.txt").write_text("a 9 1\n")
    decoded: list[int] = []
    read = VideoFiles.read
    monkeypatch.setattr(
        VideoFiles,
        "read",
        lambda self, name, numbers, count=None: decoded.extend(numbers) or read(self, name, numbers, count),
    )

    def views_from(source: str) -> np.ndarray:
        template = None if source == "videos" else "{:05d}.png"
        transform = evaluation_transform(SIZE, 10)
        videos = VideoDataSet(
            *(tmp_path / source, tmp_path / "list.txt", SEGMENTS, template, 1, transform, False, True),
            num_class=2,
            num_clips=3,
        )
        return videos[0][0]

    views = views_from("videos")
    # Nine frames: some are in several clips.
    assert sorted(decoded) == sorted({n for fraction in FRACTIONS[3] for n in expected_frames(9, fraction)})
    assert views.shape == (30, SEGMENTS, SIZE, SIZE, 3)
    np.testing.assert_array_equal(views, views_from("frames"))
    # All clips of a crop, then those of the next crop; the mirrored crops last.
    np.testing.assert_array_equal(views[15:], views[:15, ..., ::-1, :])
    for number, fraction in enumerate(FRACTIONS[3]):
        for position, frame in enumerate(expected_frames(9, fraction)):
            image = Image.open(folder / f"{frame:05d}.png")
            for crop, expected in enumerate(crops_by_hand(image, CORNERS, SIZE)):
                np.testing.assert_array_equal(views[3 * crop + number, position], np.asarray(expected))


# ---------------------------------------------------------------------------------------------------------
# Scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_crops", "num_clips", "full_res"),
    [(3, 4, False), (5, 1, True), (10, 2, False)],
)
def test_scores_are_the_mean_of_the_views(scores, model, root, num_crops, num_clips, full_res):
    options = ("--test_crops", num_crops, "--num_clips", num_clips, *["--full_res"] * full_res)
    # At most four views are computed at once.
    values = scores(*options, "-b", 4)
    views = views_by_hand(model, root, num_crops, num_clips, SCALE if full_res else SIZE)
    expected = average(views, MIRRORED if num_crops == 10 else None)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(values - scores()).max() > 0.01, "views that are all alike would prove nothing"


def test_log_of_views(succeed):
    lines = succeed("--test_crops", 10, "--num_clips", 2, "--full_res")
    assert "somethingv1: 3 videos from frames, 10 crops x 2 clips of 36 x 36 each" in lines
    assert any(line.startswith("mirrored crops: 2 classes swap") for line in lines)
    assert lines[-2].startswith("3 videos, ")
    lines = succeed("--num_clips", 3, "-b", 6, "-p", 1)
    assert sum(line.startswith("Test: [") and "/2]" in line for line in lines) == 2, "6 views are 2 videos"
    assert not any("mirrored" in line for line in lines)


def test_mirrored_classes_of_the_checkpoint(scores, tmp_path, model, root):
    ten = ("--test_crops", 10)
    views = views_by_hand(model, root, 10, 1)
    # A checkpoint without names has those of category.txt.
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    bare = scores(*ten, "--input_size", SIZE, "--num_segments", SEGMENTS, weights=tmp_path / "bare.pth")
    np.testing.assert_array_equal(bare, scores(*ten))
    # Other orders than that of category.txt, by the names or by the checkpoint's own pairs.
    names = [NAMES[label] for label in (4, 2, 1, 3, 0)]
    assert mirrored_labels(names) == [NEVER, 4, 2, 3, 1]
    for more, mirrored in (({}, [NEVER, 4, 2, 3, 1]), *(({"mirrored": m}, m) for m in [[0, NEVER, 3, 2, 4]])):
        torch.save(wrapped(model, categories=names, **more), tmp_path / "other.pth")
        values = scores(*ten, weights=tmp_path / "other.pth")
        expected = average(views, mirrored)[:, [4, 2, 1, 3, 0]]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


# ---------------------------------------------------------------------------------------------------------
# Outputs


def test_features_are_the_classifiers_input(succeed, tmp_path, model):
    views = ("--test_crops", 3, "--num_clips", 2, "-b", 4)
    alone, both, features = (tmp_path / f"{name}.npz" for name in ("alone", "both", "features"))
    succeed(*views, "--save_scores", alone)
    lines = succeed(*views, "--save_scores", both, "--save_features", features)
    assert f"features: {features}" in lines
    with np.load(alone) as one, np.load(both) as other, np.load(features) as content:
        assert sorted(content) == ["classes", "features", "labels", "videos"]
        np.testing.assert_array_equal(other["scores"], one["scores"])
        for array in ("labels", "videos", "classes"):
            np.testing.assert_array_equal(content[array], one[array])
        assert (content["features"].shape, content["features"].dtype) == ((3, 2048), np.float32)
        # The classifier is linear: the mean of features gives the mean of logits.
        logits = functional.linear(torch.from_numpy(content["features"]), *model.classifier.parameters())
        np.testing.assert_allclose(logits.detach(), one["scores"], rtol=0, atol=1e-5)


def test_predictions_without_labels(succeed, tmp_path):
    labelled, unlabelled = tmp_path / "labelled.npz", tmp_path / "unlabelled.npz"
    succeed("--save_scores", labelled)
    (tmp_path / "list.txt").write_text("1 3\n2 12\n3 21\n" * 4)
    lines = succeed("--val_list", tmp_path / "list.txt", "--save_scores", unlabelled)
    best = torch.from_numpy(np.load(labelled)["scores"]).softmax(1).max(1)
    predictions = [
        f"{probability:.3f} -> {NAMES[label]}  ({video})"
        for video, probability, label in zip((1, 2, 3), best.values, best.indices, strict=True)
    ]
    assert [line for line in lines if " -> " in line] == (predictions * 4)[:10]
    assert "… and 2 more" in lines
    assert not any("Prec@" in line or "accuracy 0" in line or "nan" in line for line in lines)
    with np.load(unlabelled) as content:
        assert content["labels"].tolist() == [-1] * 12


def test_submission(succeed, tmp_path):
    """The classes have the order of category.txt, and a video's id is the last part of its name."""
    other = make_dataset(tmp_path / "data", train=0, val=3, folder="a;b/{}", categories=NAMES[::-1])
    scores, file = tmp_path / "scores.npz", tmp_path / "out.csv"
    (other / "somethingv1" / "val_videofolder.txt").write_text("".join(f"a;b/{n} 10\n" for n in (1, 2, 3)))
    succeed("--save_scores", scores, "--submission", file, root=other)
    with np.load(scores) as content:
        assert content["classes"].tolist() == list(NAMES[::-1])
        best = (-content["scores"]).argsort(1)
    rows = [line.split(";") for line in file.read_text().splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [list(map(int, row[1:])) for row in rows] == best.tolist()
