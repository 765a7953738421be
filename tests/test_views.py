"""Several crops and clips of a video, and what an evaluation writes and says of videos without labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_one_line_error, call
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset, write_video
from test_models_program import MEAN, STD, filled_model, wrapped
from torch.nn import functional
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from video_files import write_video as write_video_file

from classes import NEVER, mirrored_labels
from dataset import VideoDataSet, clip_fractions
from engine import evaluate
from frames.sources import VideoFiles
from inference.fuse import fuse
from loader import ClipLoader
from models import TemporalModel
from transforms import GroupOverSample, evaluation_transform
from utils.distributed import World

WORLD = World(0, 1, [torch.device("cpu")])
# The last class has a direction and no partner: its clips are never mirrored.
NAMES = (*CATEGORIES, "Turning the camera left while filming something")
MIRRORED = [2, 1, 0, 3, NEVER]
SCALE, SIZE, SEGMENTS = 36, 32, 4
# Of the videos: the first is shorter than its segments, the last is higher than wide.
LENGTHS = (3, 12, 21)
# For each number of clips: fractions of a segment.
FRACTIONS = {1: [1 / 2], 2: [1 / 2, 0], 3: [1 / 2, 0, 1 / 4], 4: [1 / 2, 0, 1 / 6, 2 / 6]}
# In quarters of the room that is left.
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
def run(root: Path, weights: Path) -> Callable:
    def run(*args: object, weights: Path = weights, root: Path = root):
        data = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
        return call("test_models.py", *data, *args)

    return run


@pytest.fixture
def succeed(run) -> Callable[..., list[str]]:
    def succeed(*args: object, **kwargs: Path) -> list[str]:
        done = run(*args, **kwargs)
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
    """For each video the logits of each view, evaluated alone: `{(crop, clip, is mirrored): logits}`."""
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
            if num_crops == 1:  # the published crop, not the grid's centre, which is rounded down
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
    """Scores of videos, where `mirrored` says that mirrored views count, too."""
    found = []
    for logits in views:
        scores = []
        for (crop, clip, flipped), own in logits.items():
            if not flipped:
                scores.append(own.numpy())
            elif mirrored is not None:
                as_is = logits[crop, clip, False]
                pairs = enumerate(mirrored)
                scores.append([float(as_is[c] if other == NEVER else own[other]) for c, other in pairs])
        found.append(np.mean(scores, axis=0, dtype=np.float64))
    return np.stack(found)


# Which pixels, which frames.


@pytest.mark.parametrize("size", [(57, 40), (40, 57), (36, 36), (36, 39), (80, 32)], ids=str)
@pytest.mark.parametrize("num_crops", [3, 5, 10])
def test_crops_lie_on_the_grid_of_tsm(size, num_crops):
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


def test_clips_take_the_middle_the_beginning_and_what_lies_between():
    for num_clips, fractions in FRACTIONS.items():
        np.testing.assert_allclose(clip_fractions(num_clips), fractions, rtol=1e-12)
    assert expected_frames(40, 0.5) == [6, 16, 26, 36]
    assert expected_frames(3, 0) == [1, 1, 2, 3]


def test_an_item_has_a_view_for_each_crop_and_clip_and_decodes_each_frame_once(tmp_path):
    """The frames of a video file and those of a folder are the same."""
    (tmp_path / "videos").mkdir()
    write_video_file(tmp_path / "videos" / "a.mkv", 9, width=60, height=40)
    folder = tmp_path / "frames" / "a"
    folder.mkdir(parents=True)
    for number, frame in VideoFiles(str(tmp_path / "videos")).read("a", range(1, 10)).items():
        frame.image().save(folder / f"{number:05d}.png")
    (tmp_path / "list.txt").write_text("a 9 1\n")

    read: list[int] = []

    class Recording(VideoFiles):
        def read(self, name, numbers):
            read.extend(numbers)
            return super().read(name, numbers)

    def item(source: str, num_crops: int, num_clips: int) -> np.ndarray:
        template = None if source == "videos" else "{:05d}.png"
        transform = evaluation_transform(SIZE, num_crops)
        videos = VideoDataSet(
            *(tmp_path / source, tmp_path / "list.txt", SEGMENTS, template, 1, transform, False, True),
            num_class=2,
            num_clips=num_clips,
        )
        if source == "videos":
            videos.source = Recording(str(tmp_path / source))
        return videos[0][0]

    clip = item("videos", 1, 1)
    assert clip.shape == (SEGMENTS, SIZE, SIZE, 3)
    read.clear()
    views = item("videos", 10, 3)
    # Nine frames: some are in several clips.
    assert sorted(read) == sorted({n for fraction in FRACTIONS[3] for n in expected_frames(9, fraction)})
    assert views.shape == (30, SEGMENTS, SIZE, SIZE, 3)
    np.testing.assert_array_equal(views, item("frames", 10, 3))
    # All clips of a crop, then those of the next; the mirrored crops last.
    np.testing.assert_array_equal(views[15:], views[:15, ..., ::-1, :])
    for number, fraction in enumerate(FRACTIONS[3]):
        for place, frame in enumerate(expected_frames(9, fraction)):
            image = Image.open(folder / f"{frame:05d}.png")
            for crop, expected in enumerate(crops_by_hand(image, CORNERS, SIZE)):
                np.testing.assert_array_equal(views[3 * crop + number, place], np.asarray(expected))


# Scores.


@pytest.mark.parametrize(
    ("num_crops", "num_clips", "full_res"),
    [(3, 1, False), (1, 4, False), (5, 2, True), (10, 3, False), (1, 1, True)],
)
def test_scores_are_the_mean_of_the_views_evaluated_alone(
    scores, succeed, model, root, num_crops, num_clips, full_res
):
    options = ("--test_crops", num_crops, "--num_clips", num_clips, *["--full_res"] * full_res)
    found = scores(*options)
    views = views_by_hand(model, root, num_crops, num_clips, SCALE if full_res else SIZE)
    expected = average(views, MIRRORED if num_crops == 10 else None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(found - scores()).max() > 0.01, "views that are all alike would prove nothing"


def test_the_log_says_which_views_and_the_result_what_they_give(succeed):
    lines = succeed("--test_crops", 10, "--num_clips", 2, "--full_res")
    assert "somethingv1: 3 videos from frames, 10 crops x 2 clips of 36 x 36 each" in lines
    assert "mirrored crops: swap the scores of 2 classes, do not count for 1" in lines
    assert lines[-2].startswith("3 videos, ")
    lines = succeed("--num_clips", 3, "-b", 6, "-p", 1)
    assert sum(line.startswith("Test: [") and "/2]" in line for line in lines) == 2, "6 views are 2 videos"
    assert "somethingv1: 3 videos from frames, 1 crop x 3 clips of 32 x 32 each" in lines
    assert not any("mirrored" in line for line in lines)


def test_ten_crops_of_symmetric_frames_agree_with_five(scores, tmp_path, model):
    root = make_dataset(tmp_path / "data", train=0, val=2, frames=4, size=(72, 36), categories=NAMES)
    for path in (root / "somethingv1").glob("*/*/*.jpg"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:, 36:] = pixels[:, 35::-1]
        Image.fromarray(pixels).save(path.with_suffix(".png"))  # JPEG is not symmetric
        path.unlink()
    data = ("--image_tmpl", "{:05d}.png")
    five = scores(*data, "--test_crops", 5, root=root)
    ten = scores(*data, "--test_crops", 10, root=root)
    tolerance = {"rtol": 0, "atol": 2e-6 * np.abs(five).max()}
    np.testing.assert_allclose(ten[:, [1, 3, 4]], five[:, [1, 3, 4]], **tolerance)
    for label in (0, 2):  # of each other's mirror images, which a symmetric clip shows equally
        np.testing.assert_allclose(ten[:, label], (five[:, 0] + five[:, 2]) / 2, **tolerance)
    assert np.abs(five[:, 0] - five[:, 2]).min() > 0.01


def test_mirrored_classes_are_those_of_the_checkpoint_in_its_order(scores, tmp_path, model, root, weights):
    ten = ("--test_crops", 10)
    own = scores(*ten)
    views = views_by_hand(model, root, 10, 1)
    # A checkpoint without names: category.txt's.
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    bare = scores(*ten, "--input_size", SIZE, "--num_segments", SEGMENTS, weights=tmp_path / "bare.pth")
    np.testing.assert_array_equal(bare, own)
    # Another order than category.txt's, and pairs of its own.
    names = [NAMES[label] for label in (4, 2, 1, 3, 0)]
    torch.save(wrapped(model, categories=names), tmp_path / "other.pth")
    found = scores(*ten, weights=tmp_path / "other.pth")
    assert mirrored_labels(names) == [NEVER, 4, 2, 3, 1]
    expected = average(views, [NEVER, 4, 2, 3, 1])[:, [4, 2, 1, 3, 0]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    given = [0, NEVER, 3, 2, 4]
    torch.save(wrapped(model, categories=names, mirrored=given), tmp_path / "given.pth")
    found = scores(*ten, weights=tmp_path / "given.pth")
    expected = average(views, given)[:, [4, 2, 1, 3, 0]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("mirrored", [[0, 1], [0, 1, 2, 3, 5], [], [1, 2, 0, 3, 4], [0, 0, 2, 3, 4]])
def test_mirrored_classes_that_cannot_be_are_refused(run, tmp_path, model, mirrored):
    torch.save(wrapped(model, categories=list(NAMES), mirrored=mirrored), tmp_path / "a.pth")
    done = run("--test_crops", 10, weights=tmp_path / "a.pth")
    assert_one_line_error(done, tmp_path / "a.pth", "'mirrored'", "5 classes")


def test_no_more_views_are_computed_together_than_clips_in_a_batch(model, root):
    videos = VideoDataSet(
        root / "somethingv1" / FRAMES["somethingv1"][0],
        root / "somethingv1" / "val_videofolder.txt",
        SEGMENTS,
        "{:05d}.jpg",
        transform=evaluation_transform(SIZE),
        random_shift=False,
        test_mode=True,
        num_class=5,
        num_clips=3,
    )
    sizes = []
    hook = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        found = evaluate(ClipLoader(videos, [[0], [1], [2]], 0), model, WORLD, "off", 20, max_clips=2)
    finally:
        hook.remove()
    assert max(sizes) == 2
    expected = average(views_by_hand(model, root, 1, 3))
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "args", [("--test_crops", 2), ("--num_clips", 0), ("--num_clips", 101), ("--num_clips", "all")], ids=str
)
def test_unknown_views_are_refused(run, args):
    assert_one_line_error(run(*args), args[0].lstrip("-"), args[1])


# Features.


def test_features_are_what_the_classifier_gets_and_change_no_score(succeed, tmp_path, model, root):
    views = ("--test_crops", 3, "--num_clips", 2)
    for name, options in (("one", ()), ("views", views)):
        alone, both = tmp_path / f"{name}_alone.npz", tmp_path / f"{name}.npz"
        features = tmp_path / f"{name}_features.npz"
        succeed(*options, "--save_scores", alone)
        lines = succeed(*options, "--save_scores", both, "--save_features", features)
        assert f"features: {features}" in lines
        with np.load(alone) as one, np.load(both) as other, np.load(features) as content:
            assert sorted(content) == ["classes", "features", "labels", "videos"]
            np.testing.assert_array_equal(other["scores"], one["scores"])
            for array in ("labels", "videos", "classes"):
                np.testing.assert_array_equal(content[array], one[array])
            assert content["classes"].tolist() == list(NAMES)
            assert (content["features"].shape, content["features"].dtype) == ((3, 2048), np.float32)
            # The classifier is linear: of the mean of features it makes the mean of the logits.
            again = functional.linear(torch.from_numpy(content["features"]), *model.classifier.parameters())
            np.testing.assert_allclose(again.detach(), one["scores"], rtol=0, atol=1e-5)


# Predictions and submissions.


def test_videos_without_labels_get_predictions(succeed, tmp_path, root):
    labelled, unlabelled = tmp_path / "labelled.npz", tmp_path / "unlabelled.npz"
    succeed("--save_scores", labelled)
    (tmp_path / "list.txt").write_text("1 3\n2 12\n3 21\n" * 4)
    lines = succeed("--val_list", tmp_path / "list.txt", "--save_scores", unlabelled)
    expected = torch.from_numpy(np.load(labelled)["scores"])
    best = expected.softmax(1).max(1)
    predictions = [
        f"{probability:.3f} -> {NAMES[label]}  ({video})"
        for video, probability, label in zip((1, 2, 3), best.values, best.indices, strict=True)
    ]
    assert [line for line in lines if " -> " in line] == (predictions * 4)[:10]
    assert "… and 2 more" in lines
    assert not any("Prec@" in line or "accuracy 0" in line or "nan" in line for line in lines)
    with np.load(unlabelled) as content:
        assert content["labels"].tolist() == [-1] * 12


def test_a_submission_has_the_five_best_labels_of_category_txt(succeed, tmp_path, model, root):
    """In another order than the checkpoint's; of the name of a video, its last part is the id."""
    other = make_dataset(tmp_path / "data", train=0, val=3, folder="a;b/{}", categories=NAMES[::-1])
    paths = tmp_path / "scores.npz", tmp_path / "out.csv"
    for form in ("labelled", "unlabelled"):
        lines = "".join(f"a;b/{number} 10{' 1' * (form == 'labelled')}\n" for number in (1, 2, 3))
        (other / "somethingv1" / "val_videofolder.txt").write_text(lines)
        said = succeed("--save_scores", paths[0], "--submission", paths[1], root=other)
        assert f"submission: {paths[1]}" in said
        with np.load(paths[0]) as content:
            assert content["classes"].tolist() == list(NAMES[::-1])
            best = (-content["scores"]).argsort(1)
        rows = [line.split(";") for line in paths[1].read_text().splitlines()]
        assert [row[0] for row in rows] == ["1", "2", "3"]
        assert [list(map(int, row[1:])) for row in rows] == best.tolist()
        for path in paths:
            path.unlink()


def test_videos_with_the_same_id_cannot_be_submitted(run, tmp_path, root):
    for other in ("./1", "1"):
        (tmp_path / "list.txt").write_text(f"1 3\n{other} 3\n")
        done = run("--val_list", tmp_path / "list.txt", "--submission", tmp_path / "out.csv")
        assert_one_line_error(done, "--submission", "'1'", f"'{other}'", "same id")
    assert not (tmp_path / "out.csv").exists()


def test_outputs_are_refused_before_anything_else(run, tmp_path):
    there = tmp_path / "there.npz"
    there.write_text("precious")
    (tmp_path / "there.csv").write_text("precious")
    for option, file, word in (
        ("--save_features", there, "already exists"),
        ("--submission", tmp_path / "there.csv", "already exists"),
        ("--submission", tmp_path / "out.npz", ".csv"),
        ("--save_features", tmp_path / "out.csv", ".npz"),
        ("--save_features", tmp_path / "none" / "out.npz", "is not a folder"),
    ):
        done = run(option, file, weights=tmp_path / "no checkpoint")
        assert_one_line_error(done, f"{option} {file}", word)
    new, same = tmp_path / "new.npz", tmp_path / "." / "new.npz"
    done = run("--save_scores", new, "--save_features", same, weights=tmp_path / "no checkpoint")
    assert_one_line_error(done, "--save_features", "--save_scores")
    assert there.read_text() == (tmp_path / "there.csv").read_text() == "precious"
