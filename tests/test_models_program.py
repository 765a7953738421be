"""`test_models.py`: released and own checkpoints, the result line, scores, refusals."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ON_CPU, assert_one_line_error, call, files_limited_to, run
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset
from torch.nn import functional
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from video_files import write_video

from classes import released_categories
from models import TemporalModel

RESULT = re.compile(
    r"Testing Results: Prec@1 (\d+\.\d{3}) Prec@5 (\d+\.\d{3}) Loss (\d+\.\d{5})( \(\d+ of \d+ videos\))?"
)
# Lengths of the videos of this module; each is another case of sampling 8 or 4 frames.
LENGTHS = (3, 5, 7, 12, 10, 9)
# The frames that the published test program takes from such videos, from 1.
SAMPLED_OF_8 = {
    3: [1, 1, 1, 2, 2, 3, 3, 3],
    5: [1, 1, 2, 3, 3, 4, 5, 5],
    7: [1, 2, 3, 4, 4, 5, 6, 7],
    12: [1, 3, 4, 6, 7, 9, 10, 12],
    10: [1, 2, 4, 5, 6, 7, 9, 10],
    9: [1, 2, 3, 4, 6, 7, 8, 9],
}
SAMPLED_OF_4 = {
    3: [1, 2, 2, 3],
    5: [1, 2, 4, 5],
    7: [1, 3, 5, 7],
    12: [2, 5, 8, 11],
    10: [2, 4, 7, 9],
    9: [2, 4, 6, 8],
}
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def filled_model(classes: int = 4, seed: int = 0, **kwargs) -> TemporalModel:
    """A model whose scores differ between clips and classes."""
    torch.manual_seed(seed)
    model = TemporalModel(classes, **({"num_segments": 8, "backbone": "resnet14", "input_size": 32} | kwargs))
    torch.nn.init.normal_(model.classifier.weight, 0, 0.3)
    return model.eval()


@torch.inference_mode()
def direct_scores(
    model: TemporalModel, folders: Sequence[Path], frames: Sequence[list[int]], template: str
) -> np.ndarray:
    """Scores by the model and torchvision: read, scale, crop and normalise."""
    clips = []
    for folder, numbers in zip(folders, frames, strict=True):
        images = [Image.open(folder / template.format(number)).convert("RGB") for number in numbers]
        images = [center_crop(resize(image, model.scale_size), model.input_size) for image in images]
        clips.append(torch.stack([(pil_to_tensor(image) / 255 - MEAN) / STD for image in images]))
    return torch.cat([model(clip[None]) for clip in clips]).numpy()


def wrapped(model: TemporalModel, **more: object) -> dict[str, object]:
    """A checkpoint of main.py, as far as an evaluation reads it."""
    options = {"num_segments": model.num_segments, "input_size": model.input_size}
    content = {"epoch": 1, "arch": "resnet14", "state_dict": model.state_dict(), "best_prec1": 50.0}
    return content | {"options": options, "categories": list(CATEGORIES)} | more


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A small somethingv1 with videos of various lengths. Read only: it is shared."""
    folder = tmp_path_factory.mktemp("lengths")
    return make_dataset(folder, train=0, val=len(LENGTHS), frames=LENGTHS, size=(54, 40), seed=5)


@pytest.fixture(scope="module")
def model() -> TemporalModel:
    return filled_model()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, model) -> Path:
    """An own checkpoint of `model`. Read only: it is shared."""
    path = tmp_path_factory.mktemp("weights") / "own.pth.tar"
    torch.save(wrapped(model), path)
    return path


@pytest.fixture
def program(root, weights) -> Callable[..., subprocess.CompletedProcess[str]]:
    def program(*args: object, weights: Path = weights, root: Path = root):
        data = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
        return call("test_models.py", *data, *args)

    return program


@pytest.fixture
def evaluate(program) -> Callable[..., list[str]]:
    """Run the program successfully, and return its lines."""

    def evaluate(*args: object, **kwargs: Path) -> list[str]:
        process = program(*args, **kwargs)
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    return evaluate


@pytest.fixture
def scores(evaluate, tmp_path) -> Callable[..., np.ndarray]:
    """Run the program successfully, and return the scores that it saves."""

    def scores(*args: object, **kwargs: Path) -> np.ndarray:
        path = tmp_path / "scores.npz"
        path.unlink(missing_ok=True)
        evaluate("--save_scores", path, *args, **kwargs)
        with np.load(path) as content:
            return content["scores"]

    return scores


def video_folders(root: Path, dataset: str = "somethingv1") -> list[Path]:
    folder = root / dataset / FRAMES[dataset][0]
    return sorted(folder.iterdir(), key=lambda video: int(video.name))


def sampled_scores(model: TemporalModel, root: Path, sampled: dict[int, list[int]]) -> np.ndarray:
    frames = [sampled[length] for length in LENGTHS]
    return direct_scores(model, video_folders(root), frames, FRAMES["somethingv1"][1])


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with size and time of the last change of files."""
    paths = {path: path.stat() for path in folder.rglob("*")}
    return {str(p): (0, 0) if p.is_dir() else (s.st_size, s.st_mtime_ns) for p, s in paths.items()}


RELEASE = """
import sys, torch
content = torch.load(sys.argv[1])
torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
torch.save(content, sys.argv[2], _use_new_zipfile_serialization=False)
"""


@pytest.mark.slow
def test_released_checkpoint(tmp_path):
    """Old format, `module.` keys, tensors of a GPU, the best accuracy as a tensor; in one command."""
    categories = [f"Doing thing {number}" for number in range(174)]
    root = make_dataset(
        tmp_path / "data", "somethingv2", "authors", train=1, val=2, frames=(9, 5, 30), categories=categories
    )
    model = filled_model(174, backbone="resnet50", input_size=224)
    state_dict = {f"module.{name}": value for name, value in model.state_dict().items()}
    content = {"epoch": 68, "arch": "resnet50", "state_dict": state_dict, "best_prec1": torch.tensor(61.6)}
    plain, released = tmp_path / "plain.pth", tmp_path / "GST_somethingv2_best.pth.tar"
    torch.save(content, plain)
    subprocess.run([sys.executable, "-c", RELEASE, str(plain), str(released)], check=True)
    locations = set()
    torch.load(released, map_location=lambda storage, location: locations.add(location) or storage)
    assert locations == {"cuda:0"}
    assert released.read_bytes()[:2] != b"PK"

    folders = video_folders(root, "somethingv2")[1:]
    numbers = [SAMPLED_OF_8[5], [2, 6, 10, 14, 17, 21, 25, 29]]
    expected = torch.from_numpy(direct_scores(model, folders, numbers, FRAMES["somethingv2"][1]))
    order = expected.argsort(1, descending=True)
    labels = torch.tensor([order[0, 0], order[1, 4]])  # the best, and the last among five
    lines = [
        f"{folder.name}\t{frames}\t{label}\n"
        for folder, frames, label in zip(folders, (5, 30), labels, strict=True)
    ]
    (root / "somethingv2" / "valid.txt").write_text("".join(lines))

    (tmp_path / "home").mkdir()
    before = snapshot(tmp_path)
    process = run(
        "test_models.py",
        *("--weights", released, "--dataset", "somethingv2", "--root_path", root),
        cwd=tmp_path / "home",
        env=ON_CPU | {"HOME": str(tmp_path / "home")},
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert snapshot(tmp_path) == before, "it writes nothing"
    lines = process.stdout.splitlines()
    assert "resnet50, alpha 4, beta 2, 174 classes, 8 frames of 224 x 224" in lines[0]
    assert "somethingv2: 2 clips from frames" in lines
    assert "Mean class accuracy 50.000" in lines
    match = RESULT.fullmatch(lines[-1])
    assert match.group(1, 2, 4) == ("50.000", "100.000", None)
    assert float(match[3]) == pytest.approx(float(functional.cross_entropy(expected, labels)), rel=1e-4)


def test_scores_and_result_line(evaluate, tmp_path, root, model):
    path = tmp_path / "out.npz"
    before = snapshot(root)
    lines = evaluate("--save_scores", path)
    assert snapshot(root) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.npz"]
    with np.load(path) as content:  # without allow_pickle
        assert sorted(content) == ["classes", "labels", "scores", "videos"]
        assert content["classes"].tolist() == list(CATEGORIES)
        scores, labels, videos = content["scores"], content["labels"], content["videos"]
    assert videos.tolist() == [folder.name for folder in video_folders(root)]
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    expected = sampled_scores(model, root, SAMPLED_OF_8)
    assert expected.std(0).min() > 0.05, "scores that hardly differ would prove nothing"
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)

    hits = scores.argmax(1) == labels
    exponentials = np.exp(scores.astype(np.float64))
    loss = -np.log(exponentials[np.arange(6), labels] / exponentials.sum(1)).mean()
    per_class = np.mean([hits[labels == label].mean() for label in range(4)])
    assert f"scores: {path}" in lines
    assert lines[-3] == f"Mean class accuracy {100 * per_class:.3f}"
    assert lines[-2].startswith("6 clips, ")
    assert lines[-1] == f"Testing Results: Prec@1 {100 * hits.mean():.3f} Prec@5 100.000 Loss {loss:.5f}"


def test_scores_do_not_depend_on_batch_or_workers(scores):
    expected = scores("-b", 6)
    for args in (("-b", 1), ("-b", 2, "-j", 2)):
        np.testing.assert_allclose(scores(*args), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_forms_of_checkpoints(scores, tmp_path, dropout):
    model = filled_model(dropout=dropout)
    state_dict = model.state_dict()
    assert ("base_model.fc.weight" in state_dict) == (dropout == 0)
    parallel = {f"module.{name}": value for name, value in state_dict.items()}
    own, path = tmp_path / "own.pth", tmp_path / "other.pth"
    torch.save(wrapped(model), own)
    expected = scores(weights=own)
    published = {"epoch": 3, "arch": "resnet14", "state_dict": parallel, "best_prec1": torch.tensor(50.0)}
    for content in (state_dict, published):
        torch.save(content, path, _use_new_zipfile_serialization=content is state_dict)
        np.testing.assert_array_equal(scores("--input_size", 32, weights=path), expected)


def test_settings_from_file_options_or_defaults(evaluate, tmp_path, root, scores):
    model = filled_model(num_segments=4, input_size=64, alpha=8, beta=1)
    bare, own = tmp_path / "bare.pth", tmp_path / "own.pth"
    torch.save(model.state_dict(), bare)
    lines = evaluate("--max_num", 1, weights=bare)
    assert "resnet14, alpha 8, beta 1, 4 classes, 8 frames of 224 x 224" in lines[0]
    expected = sampled_scores(model, root, SAMPLED_OF_4)
    args = ("--num_segments", 4, "--input_size", 64)
    np.testing.assert_allclose(scores(*args, weights=bare), expected, rtol=1e-4, atol=1e-4)
    torch.save(wrapped(model), own)
    np.testing.assert_allclose(scores(weights=own), expected, rtol=1e-4, atol=1e-4)


def test_options_that_contradict_the_file(program, evaluate, weights):
    wrong = {"arch": "resnet50", "alpha": 8, "num_segments": 4}
    for name, value in wrong.items():
        assert_one_line_error(program(f"--{name}", value), f"--{name} {value}", weights)
    right = {"arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "input_size": 32, "type": "GST"}
    evaluate("--max_num", 1, *(word for name, value in right.items() for word in (f"--{name}", value)))


def test_checkpoints_that_do_not_fit(program, tmp_path, model):
    """One of each kind; `test_training_checkpoint.py` has the kinds of damage."""
    path = tmp_path / "a.pth"
    for changes in ({"new_fc.bias": torch.ones(5)}, {"more": torch.ones(1)}):
        torch.save(model.state_dict() | changes, path)
        assert_one_line_error(program(weights=path), path, *changes)
    path.write_bytes(path.read_bytes()[:-1000])
    for wrong in (path, tmp_path, tmp_path / "missing.pth"):
        assert_one_line_error(program(weights=wrong), wrong)


def test_other_categories(program, evaluate, tmp_path, model, weights):
    root = make_dataset(tmp_path / "data", val=2, train=0)
    file = root / "somethingv1" / "category.txt"
    left, holding, right, dropping = CATEGORIES
    for names, culprits in (
        ([*CATEGORIES, "Doing nothing"], ("category.txt",)),
        ([left, holding, right, "Throwing"], (f"'{dropping}'", "category.txt")),
    ):
        file.write_text("\n".join(names) + "\n")
        assert_one_line_error(program(root=root), weights, *culprits)
    # A released checkpoint of four classes has no names.
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    evaluate("--input_size", 32, root=root, weights=tmp_path / "bare.pth")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["released", "own"])
def test_class_order_does_not_change_results(evaluate, tmp_path, form):
    names = released_categories()
    model = filled_model(174, seed=2, num_segments=4)
    content = wrapped(model, categories=names)
    if form == "released":
        content = {name: content[name] for name in ("epoch", "arch", "state_dict")}
    torch.save(content, tmp_path / "a.pth")
    root = make_dataset(tmp_path / "data", train=0, val=6, frames=5, size=(36, 32), categories=names)
    labels_file = root / "somethingv1" / "val_videofolder.txt"

    def results(name: str) -> tuple[list[str], dict[str, np.ndarray]]:
        options = ("--num_segments", 4, "--input_size", 32, "-b", 4, "--save_scores", tmp_path / name)
        lines = evaluate(*options, weights=tmp_path / "a.pth", root=root)
        with np.load(tmp_path / name) as file:
            return lines, dict(file)

    # Labels that make the three accuracies different.
    best = (-results("first.npz")[1]["scores"]).argsort(1)
    labels = [best[0, 0], best[1, 0], best[2, 0], best[3, 3], best[4, 9], best[5, 9]]
    list_text = "".join(f"{number} 5 {label}\n" for number, label in enumerate(labels, start=1))
    labels_file.write_text(list_text)
    expected, expected_file = results("sorted.npz")
    assert RESULT.fullmatch(expected[-1]).group(1, 2) == ("50.000", "66.667")
    assert not any("a different order" in line for line in expected)

    bracketed = [name.replace("something", "[something]") for name in names]
    by_brackets = sorted(range(174), key=bracketed.__getitem__)
    shuffled = np.random.default_rng(0).permutation(174).tolist()
    for number, (own, order) in enumerate([(bracketed, by_brackets), (names, shuffled)]):
        (root / "somethingv1" / "category.txt").write_text("".join(f"{own[label]}\n" for label in order))
        numbered = enumerate(labels, start=1)
        labels_file.write_text("".join(f"{video} 5 {order.index(label)}\n" for video, label in numbered))
        lines, file = results(f"{number}.npz")
        assert sum("a different order" in line for line in lines) == 1
        assert (lines[-1], lines[-3]) == (expected[-1], expected[-3])
        # The scores have the order of category.txt.
        np.testing.assert_array_equal(file["scores"], expected_file["scores"][:, order])
        assert [order[label] for label in file["labels"]] == expected_file["labels"].tolist() == labels


def test_missing_videos(program, evaluate, tmp_path):
    root = make_dataset(tmp_path / "data", val=6, train=0)
    assert RESULT.fullmatch(evaluate(root=root)[-1])[4] is None
    _, second, third, *_ = video_folders(root)
    for frame in second.iterdir():
        frame.unlink()
    second.rmdir()
    (third / "00010.jpg").unlink()
    assert_one_line_error(program(root=root), second, third / "00010.jpg", "--skip_missing")
    output = tmp_path / "scores.npz"
    lines = evaluate("--skip_missing", "--save_scores", output, root=root)
    assert any("2 of 6 videos" in line and str(second) in line for line in lines[:-1])
    assert lines[-2].startswith("4 clips, ")
    assert RESULT.fullmatch(lines[-1])[4] == " (4 of 6 videos)"
    with np.load(output) as content:
        assert content["videos"].tolist() == ["1", "4", "5", "6"]
        assert content["labels"].tolist() == [0, 3, 0, 1]
    lines = evaluate("--skip_missing", "--max_num", 3, root=root)  # the first three
    assert RESULT.fullmatch(lines[-1])[4] == " (1 of 6 videos)"


def test_output_files_are_checked_first(program, tmp_path):
    there = tmp_path / "there.npz"
    there.write_text("precious")
    for option, path in (
        ("--save_scores", there),
        ("--save_features", tmp_path / "scores.txt"),
        ("--submission", tmp_path / "none" / "out.csv"),
    ):
        # Before the checkpoint is read, so before an evaluation that may take hours.
        assert_one_line_error(program(option, path, weights=tmp_path / "none.pth"), option, path)
    new, inside = tmp_path / "new.npz", tmp_path / "report" / "per_class.csv"
    twice = program("--save_scores", new, "--save_features", new, weights=tmp_path / "none.pth")
    assert_one_line_error(twice, "--save_features", new, "--save_scores")
    inside.parent.mkdir()
    done = program("--submission", inside, "--report", inside.parent, weights=tmp_path / "none.pth")
    assert_one_line_error(done, "--submission", inside, "--report")
    inside.parent.rmdir()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


def test_full_disk_keeps_the_result(program, tmp_path):
    path = tmp_path / "scores.npz"
    with files_limited_to(500):
        process = program("--save_scores", path)
    assert_one_line_error(process, path)
    assert list(tmp_path.iterdir()) == []
    assert any(RESULT.fullmatch(line) for line in process.stdout.splitlines())


def test_unreadable_frame_is_named(program, tmp_path, weights):
    root = make_dataset(tmp_path / "data", val=3, train=0, frames=8)
    frame = video_folders(root)[1] / "00004.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    assert_one_line_error(program(root=root), frame)
    frame.write_text("no picture")
    # In worker processes, whose exceptions arrive as text.
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 2, "-b", 1)
    process = run("test_models.py", *options, env=ON_CPU)
    assert_one_line_error(process, frame)
    assert "Testing Results" not in process.stdout
    frame.unlink()
    assert_one_line_error(program(root=root), frame)


def test_wrong_paths_and_devices(program):
    for args, culprit in (
        (["--gpus", 99], "--gpus 99"),
        (["--val_list", "/none/list.txt"], "/none/list.txt"),
        (["--root_path", "/none"], "/none"),
        (["--image_tmpl", "frame.jpg"], "--image_tmpl"),
    ):
        assert_one_line_error(program(*args), culprit)


def test_listed_count_is_compared_with_the_video(program, tmp_path):
    home = tmp_path / "somethingv1"
    (home / "videos").mkdir(parents=True)
    write_video(home / "videos" / "a.mp4", 12)
    (home / "category.txt").write_text("".join(f"{name}\n" for name in CATEGORIES))
    for count in (11, 13):
        (home / "val_videofolder.txt").write_text(f"a {count} 0\n")
        process = program("--source", "videos", root=tmp_path)
        assert_one_line_error(process, "a.mp4", f"the {count} frames in the list")
