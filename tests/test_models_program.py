"""`test_models.py` as its users run it: released and own checkpoints, result line, scores, refusals."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Hostile, assert_one_line_error, call, files_limited_to, run
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset
from torch.nn import functional
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

import opts
import test_models
from classes import released_categories
from models import TemporalModel
from utils.cli import run_program

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
RESULT = re.compile(
    r"Testing Results: Prec@1 (\d+\.\d{3}) Prec@5 (\d+\.\d{3}) Loss (\d+\.\d{5})( \(\d+ of \d+ videos\))?"
)
# Of the data set of this module: each length is another case of sampling 8 or 4 frames.
LENGTHS = (3, 5, 7, 12, 10, 9)
# What the published test program takes of such videos (numbers from 1).
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
    """A model whose scores differ between clips and classes, as an untrained one's hardly do."""
    torch.manual_seed(seed)
    model = TemporalModel(classes, **({"num_segments": 8, "backbone": "resnet14", "input_size": 32} | kwargs))
    torch.nn.init.normal_((model.new_fc or model.base_model.fc).weight, 0, 0.3)
    return model.eval()


@torch.inference_mode()
def direct_scores(
    model: TemporalModel, folders: Sequence[Path], frames: Sequence[list[int]], template: str
) -> torch.Tensor:
    """Scores by none of our code but the model: torchvision reads, scales, crops and normalises."""
    clips = []
    for folder, numbers in zip(folders, frames, strict=True):
        images = [Image.open(folder / template.format(number)).convert("RGB") for number in numbers]
        images = [center_crop(resize(image, model.scale_size), model.crop_size) for image in images]
        clips.append(torch.stack([(pil_to_tensor(image) / 255 - MEAN) / STD for image in images]))
    return torch.cat([model(clip[None]) for clip in clips])


def wrapped(model: TemporalModel, **more: object) -> dict[str, object]:
    """A checkpoint as this code writes it, as far as an evaluation reads it."""
    options = {"num_segments": model.num_segments, "input_size": model.input_size}
    content = {"epoch": 1, "arch": "resnet14", "state_dict": model.state_dict(), "best_prec1": 50.0}
    return content | {"options": options, "categories": list(CATEGORIES)} | more


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A small somethingv1 with videos of all kinds of lengths. Read only: it is shared."""
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
def evaluate(monkeypatch, capsys, root, weights) -> Callable[..., list[str]]:
    """Run the program in this process, which spares importing torch. Gives its lines."""

    def call(*args: object, weights: Path = weights, root: Path = root) -> list[str]:
        line = ["test_models.py", "--weights", weights, "--dataset", "somethingv1", "--root_path", root]
        monkeypatch.setattr(sys, "argv", [*map(str, line), "-j", "0", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            run_program(test_models.main, opts.testing_parser().parse_args)
        told = capsys.readouterr()
        assert ended.value.code in (0, None), f"{ended.value.code}\n{told.err}"
        return told.out.splitlines()

    return call


@pytest.fixture
def refuse(monkeypatch, capsys, root, weights) -> Callable[..., str]:
    """Run the program in this process, which must refuse its input. Gives the message.

    Exceptions that a user would see as a traceback come through to the test.
    """

    def call(*args: object, weights: Path = weights, root: Path = root) -> str:
        line = ["test_models.py", "--weights", weights, "--dataset", "somethingv1", "--root_path", root]
        monkeypatch.setattr(sys, "argv", [*map(str, line), "-j", "0", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            run_program(test_models.main, opts.testing_parser().parse_args)
        told = capsys.readouterr()
        assert "Testing Results" not in told.out
        # sys.exit prints a text and makes the status 1; argparse prints by itself, and gives 2.
        message = ended.value.code if isinstance(ended.value.code, str) else told.err.rstrip("\n")
        assert message, f"not refused: {ended.value.code}\n{told.out}"
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return call


@pytest.fixture
def scores(evaluate, tmp_path) -> Callable[..., np.ndarray]:
    """Run the program, and give the scores that it saves."""

    def call(*args: object, **kwargs: Path) -> np.ndarray:
        path = tmp_path / "scores.npz"
        path.unlink(missing_ok=True)
        evaluate("--save_scores", path, *args, **kwargs)
        with np.load(path) as content:
            return content["scores"]

    return call


def video_folders(root: Path, dataset: str = "somethingv1") -> list[Path]:
    folder = root / dataset / FRAMES[dataset][0]
    return sorted(folder.iterdir(), key=lambda video: int(video.name))


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    """Everything below: folders, and files with size and time of the last change."""
    paths = {path: path.stat() for folder in folders for path in folder.rglob("*")}
    # A folder's own time tells of temporary files, too, that are gone again.
    return {str(p): (0, 0) if p.is_dir() else (s.st_size, s.st_mtime_ns) for p, s in paths.items()}


RELEASE = """
import sys, torch
content = torch.load(sys.argv[1])
torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
torch.save(content, sys.argv[2], _use_new_zipfile_serialization=False)
"""


def test_released_checkpoint_is_evaluated_by_the_one_line_command(tmp_path):
    """Old format, `module.` keys, tensors of a GPU, also the best accuracy; values checked independently."""
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
    plain.unlink()
    locations = set()
    saved = torch.load(released, map_location=lambda storage, place: locations.add(place) or storage)
    assert locations == {"cuda:0"}
    assert released.read_bytes()[:2] != b"PK"
    assert isinstance(saved["best_prec1"], torch.Tensor)

    folders = video_folders(root, "somethingv2")[1:]
    numbers = [SAMPLED_OF_8[5], [2, 6, 10, 14, 17, 21, 25, 29]]
    expected = direct_scores(model, folders, numbers, FRAMES["somethingv2"][1])
    order = expected.argsort(1, descending=True)
    labels = torch.tensor([order[0, 0], order[1, 4]])  # the best, and the last among five
    lines = [
        f"{folder.name}\t{frames}\t{label}\n"
        for folder, frames, label in zip(folders, (5, 30), labels, strict=True)
    ]
    (root / "somethingv2" / "valid.txt").write_text("".join(lines))

    for folder in ("here", "home"):
        (tmp_path / folder).mkdir()
    before = snapshot(tmp_path)
    process = run(
        "test_models.py",
        *("--weights", released, "--dataset", "somethingv2", "--root_path", root),
        cwd=tmp_path / "here",
        # No TMPDIR of this test: its path may be longer than a socket's between processes can be.
        env=NO_GPU | {"HOME": str(tmp_path / "home")},
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert snapshot(tmp_path) == before, "it writes only what it is told to"
    *_, model_line, _, source, _, per_class, clips, result = process.stdout.splitlines()
    assert "resnet50, alpha 4, beta 2, 174 classes, 8 frames of 224 x 224" in model_line
    assert source == "somethingv2: 2 clips from frames"
    assert per_class == "Mean class accuracy 50.000"
    assert re.fullmatch(r"2 clips, \d+\.\d clips/s", clips)
    match = RESULT.fullmatch(result)
    assert match, result
    assert match.group(1, 2, 4) == ("50.000", "100.000", None)
    assert float(match[3]) == pytest.approx(float(functional.cross_entropy(expected, labels)), rel=1e-4)


def test_saved_scores_are_the_models_and_give_the_result_line(evaluate, tmp_path, root, model, weights):
    path = tmp_path / "out.npz"
    before = snapshot(root, weights.parent)
    lines = evaluate("--save_scores", path)
    assert snapshot(root, weights.parent) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.npz"]
    with np.load(path) as content:  # without allow_pickle: nobody has to trust the file
        assert sorted(content) == ["classes", "labels", "scores", "videos"]
        assert content["classes"].tolist() == list(CATEGORIES)
        scores, labels, videos = content["scores"], content["labels"], content["videos"]
    folders = video_folders(root)
    assert videos.tolist() == [folder.name for folder in folders]
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    frames = [SAMPLED_OF_8[length] for length in LENGTHS]
    expected = direct_scores(model, folders, frames, FRAMES["somethingv1"][1]).numpy()
    assert expected.std(0).min() > 0.05, "scores that hardly differ would prove nothing"
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)

    hits = scores.argmax(1) == labels
    exponents = np.exp(scores.astype(np.float64))
    loss = -np.log(exponents[np.arange(6), labels] / exponents.sum(1)).mean()
    per_class = np.mean([hits[labels == label].mean() for label in range(4)])
    assert f"scores: {path}" in lines
    assert lines[-3] == f"Mean class accuracy {100 * per_class:.3f}"
    assert lines[-2].startswith("6 clips, ")
    assert lines[-1] == f"Testing Results: Prec@1 {100 * hits.mean():.3f} Prec@5 100.000 Loss {loss:.5f}"


def test_accuracies_count_clips_and_the_classes_mean_counts_classes(evaluate, tmp_path, scores):
    """Labels are chosen so that the three accuracies are all different."""
    categories = [f"Thing {number}" for number in range(9)]
    root = make_dataset(tmp_path / "data", val=5, train=0, categories=categories)
    torch.save(wrapped(filled_model(9, seed=1), categories=categories), tmp_path / "w.pth")
    order = (-scores(weights=tmp_path / "w.pth", root=root)).argsort(1)
    labels = [order[0, 0], order[1, 0], order[2, 4], order[3, 5], order[4, 8]]
    lines = "".join(f"{number} 10 {label}\n" for number, label in enumerate(labels, start=1))
    (root / "somethingv1" / "val_videofolder.txt").write_text(lines)
    hits = {label: [i < 2 for i, other in enumerate(labels) if other == label] for label in labels}
    per_class = 100 * np.mean([np.mean(own) for own in hits.values()])
    # A last batch of one clip: an average over batches would count it three times as much.
    *_, mean_class, _, result = evaluate("-b", 4, weights=tmp_path / "w.pth", root=root)
    assert mean_class == f"Mean class accuracy {per_class:.3f}"
    assert RESULT.fullmatch(result).group(1, 2) == ("40.000", "60.000")


def test_scores_do_not_depend_on_batch_or_workers(scores):
    expected = scores("-b", 6)
    assert len(expected) == 6
    for args in (("-b", 1), ("-b", 4), ("-b", 10**5), ("-b", 2, "-j", 2), ("-b", 4, "-j", 1)):
        np.testing.assert_allclose(scores(*args), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_every_form_and_either_head_gives_the_same_scores(scores, evaluate, tmp_path, dropout):
    model = filled_model(dropout=dropout)
    assert ("base_model.fc.weight" in model.state_dict()) == (dropout == 0)
    state_dict = model.state_dict()
    parallel = {f"module.{name}": value for name, value in state_dict.items()}
    own, path = tmp_path / "own.pth", tmp_path / "other.pth"
    torch.save(wrapped(model), own)
    expected = scores(weights=own)
    assert expected.std(0).min() > 0.05
    published = {"epoch": 3, "arch": "resnet14", "state_dict": parallel, "best_prec1": torch.tensor(50.0)}
    for content in (state_dict, parallel, published):
        for is_zip in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=is_zip)
            np.testing.assert_array_equal(scores("--input_size", 32, weights=path), expected)


def test_what_a_checkpoint_does_not_say_is_8_frames_of_224_or_given(evaluate, tmp_path, root, scores):
    model = filled_model()
    path, own = tmp_path / "bare.pth", tmp_path / "own.pth"
    torch.save(model.state_dict(), path)
    assert "8 frames of 224 x 224" in evaluate("--max_num", 1, weights=path)[0]
    args = ("--num_segments", 4, "--input_size", 64)
    lines = evaluate(*args, weights=path)
    assert "4 frames of 64 x 64" in lines[0]
    model = filled_model(num_segments=4, input_size=64)
    expected = direct_scores(
        model, video_folders(root), [SAMPLED_OF_4[length] for length in LENGTHS], FRAMES["somethingv1"][1]
    )
    np.testing.assert_allclose(scores(*args, weights=path), expected, rtol=1e-4, atol=1e-4)
    # Our own says it itself.
    torch.save(wrapped(model), own)
    assert "4 frames of 64 x 64" in evaluate("--max_num", 1, weights=own)[0]
    np.testing.assert_allclose(scores(weights=own), expected, rtol=1e-4, atol=1e-4)
    # One that says only the one.
    torch.save(wrapped(model, options={"num_segments": 4}), own)
    assert "4 frames of 64 x 64" in evaluate("--max_num", 1, "--input_size", 64, weights=own)[0]


@pytest.mark.parametrize(("alpha", "beta"), [(2, 1), (8, 2)])
def test_alpha_and_beta_come_from_the_file(evaluate, tmp_path, alpha, beta):
    path = tmp_path / "a.pth"
    torch.save(filled_model(alpha=alpha, beta=beta).state_dict(), path)
    lines = evaluate("--input_size", 32, "--max_num", 1, weights=path)
    assert f"resnet14, alpha {alpha}, beta {beta}, 4 classes" in lines[0]


def test_options_that_contradict_the_file_are_refused(refuse, evaluate, weights):
    wrong = {"arch": "resnet50", "alpha": 8, "beta": 1, "num_segments": 4, "input_size": 224}
    right = {"arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "input_size": 32}
    for name, value in wrong.items():
        message = refuse(f"--{name}", value)
        for word in (f"--{name} {value}", weights, f"{name} {right[name]}"):
            assert str(word) in message
    evaluate("--max_num", 1, "--type", "GST", *(word for pair in right.items() for word in flag(*pair)))


def flag(name: str, value: object) -> tuple[str, str]:
    return f"--{name}", str(value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_segments": "8", "input_size": 32},
        {"num_segments": 8.0, "input_size": 32},
        {"num_segments": 0, "input_size": 32},
        {"num_segments": 8, "input_size": None},
        {"num_segments": 8, "input_size": 16},
    ],
)
def test_a_checkpoints_options_that_cannot_work_are_refused(refuse, tmp_path, model, options):
    torch.save(wrapped(model, options=options), tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in refuse(weights=tmp_path / "a.pth")


def test_checkpoints_that_do_not_fit_are_refused_with_their_path(refuse, tmp_path, model):
    """Each once through the program; the kinds of damage are test_checkpoint's."""
    path = tmp_path / "a.pth"
    state_dict = model.state_dict()
    block = "base_model.layer1.0."
    for changed, word in (
        ({"new_fc.bias": torch.ones(5)}, "'new_fc.bias' has shape (5,), not (4,)"),
        ({f"{block}Tconv.weight": torch.ones(3, 32, 3, 3, 3)}, "a.pth"),
        ({f"{block}conv2.weight": torch.ones(48, 16, 1, 3, 3)}, f"{block}conv2.weight"),
        ({"base_model.layer1.1.bn1.bias": torch.ones(64)}, "(2, 1, 1, 1)"),
        ({"more": torch.ones(1)}, "'more'"),
    ):
        torch.save(state_dict | changed, path)
        message = refuse(weights=path)
        assert str(path) in message
        assert word in message
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path}: is damaged" in refuse(weights=path)
    assert f"{tmp_path}: " in refuse(weights=tmp_path)


def test_other_categories_than_the_checkpoints_are_refused(refuse, evaluate, tmp_path, model, weights):
    root = make_dataset(tmp_path / "data", val=2, train=0)
    file = root / "somethingv1" / "category.txt"
    left, holding, right, dropping = CATEGORIES
    for names, words in (
        ([*CATEGORIES, "Doing nothing"], ("4 classes", "category.txt has 5")),
        ([left, holding, right, "Throwing"], (f"'{dropping}'", "'Throwing'", "class 3")),
        ([dropping, holding, left, "Throwing"], (f"'{right}'", "class 2", f"'{left}'")),
    ):
        file.write_text("\n".join(names) + "\n")
        message = refuse(root=root)
        for word in (str(weights), *words):
            assert word in message
    # A released checkpoint of four classes knows their number alone.
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    evaluate("--input_size", 32, root=root, weights=tmp_path / "bare.pth")


def reorder(root: Path, names: Sequence[str], order: Sequence[int]) -> None:
    """Give the classes another order, and remap_labels the validation list: class `order[n]` becomes `n`."""
    home = root / "somethingv1"
    (home / "category.txt").write_text("".join(f"{names[label]}\n" for label in order))
    lines = [line.split() for line in (home / "val_videofolder.txt").read_text().splitlines()]
    lines = [f"{video} {frames} {order.index(int(label))}\n" for video, frames, label in lines]
    (home / "val_videofolder.txt").write_text("".join(lines))


@pytest.mark.parametrize("form", ["released", "own"])
def test_the_order_of_the_classes_does_not_change_a_digit(evaluate, tmp_path, form):
    names = released_categories()
    model = filled_model(174, seed=2, num_segments=4)
    content = wrapped(model, categories=names)
    if form == "released":
        state_dict = {f"module.{name}": value for name, value in model.state_dict().items()}
        content = {"epoch": 3, "arch": "resnet14", "state_dict": state_dict, "best_prec1": torch.tensor(50.0)}
    torch.save(content, tmp_path / "a.pth")
    root = make_dataset(tmp_path / "data", train=0, val=6, frames=5, size=(36, 32), categories=names)
    size = ("--num_segments", 4, "--input_size", 32, "-b", 4)

    def results(name: str) -> tuple[list[str], dict[str, np.ndarray]]:
        file = tmp_path / f"{name}.npz"
        lines = evaluate(*size, "--save_scores", file, weights=tmp_path / "a.pth", root=root)
        with np.load(file) as saved:
            return lines, dict(saved)

    # Labels that make the three accuracies different.
    best = (-results("any")[1]["scores"]).argsort(1)
    labels = [best[0, 0], best[1, 0], best[2, 0], best[3, 3], best[4, 9], best[5, 9]]
    lines = "".join(f"{number} 5 {label}\n" for number, label in enumerate(labels, start=1))
    (root / "somethingv1" / "val_videofolder.txt").write_text(lines)
    expected, saved = results("sorted")
    assert RESULT.fullmatch(expected[-1]).group(1, 2) == ("50.000", "66.667")
    assert not any("another order" in line for line in expected)

    bracketed = [name.replace("something", "[something]") for name in names]
    by_brackets = sorted(range(174), key=bracketed.__getitem__)
    third = np.random.default_rng(0).permutation(174).tolist()
    sorted_list = (root / "somethingv1" / "val_videofolder.txt").read_text()
    for way, (own, order) in enumerate([(bracketed, by_brackets), (names, by_brackets), (names, third)]):
        (root / "somethingv1" / "val_videofolder.txt").write_text(sorted_list)
        reorder(root, own, order)
        lines, found = results(f"{way}")
        assert sum("in another order" in line and "mapped by name" in line for line in lines) == 1
        assert lines[-1] == expected[-1]
        assert lines[-3] == expected[-3]  # mean class accuracy
        # The scores are those of category.txt's classes.
        np.testing.assert_array_equal(found["scores"], saved["scores"][:, order])
        assert [order[label] for label in found["labels"]] == saved["labels"].tolist() == labels


def test_missing_videos_stop_it_or_are_reported_in_the_result_line(refuse, evaluate, tmp_path):
    root = make_dataset(tmp_path / "data", val=6, train=0)
    first, second, third, *_ = video_folders(root)
    expected = evaluate(root=root)
    assert RESULT.fullmatch(expected[-1])[4] is None
    for frame in second.iterdir():
        frame.unlink()
    second.rmdir()
    (third / "00010.jpg").unlink()
    message = refuse(root=root)
    for word in ("2 of 6 videos", second, third / "00010.jpg", "--skip_missing"):
        assert str(word) in message
    output = tmp_path / "scores.npz"
    lines = evaluate("--skip_missing", "--save_scores", output, root=root)
    assert any("2 of 6 videos" in line and str(second) in line for line in lines[:-1])
    assert lines[-2].startswith("4 clips, ")
    assert RESULT.fullmatch(lines[-1])[4] == " (4 of 6 videos)"
    with np.load(output) as content:
        assert content["videos"].tolist() == ["1", "4", "5", "6"]
        assert content["labels"].tolist() == [0, 3, 0, 1]
    # The first three videos hold both that are missing.
    lines = evaluate("--skip_missing", "--max_num", 3, root=root)
    assert RESULT.fullmatch(lines[-1])[4] == " (1 of 6 videos)"
    for folder in video_folders(root):
        (folder / "00001.jpg").unlink()
    assert "5 of 5 videos" in refuse("--skip_missing", "--val_list", short_list(tmp_path, root), root=root)


def short_list(folder: Path, root: Path) -> Path:
    """A list of the videos whose folders are there."""
    path = folder / "list.txt"
    path.write_text("".join(f"{video.name} 10 0\n" for video in video_folders(root)))
    return path


def test_max_num_takes_the_first_videos_and_says_so(evaluate, scores):
    everything = scores("-b", 2)
    np.testing.assert_array_equal(scores("-b", 2, "--max_num", 4), everything[:4])
    assert RESULT.fullmatch(evaluate("--max_num", 4)[-1])[4] == " (4 of 6 videos)"
    for enough in (6, 100):
        lines = evaluate("--max_num", enough)
        assert lines[-2].startswith("6 clips, ")
        assert RESULT.fullmatch(lines[-1])[4] is None


def test_a_scores_file_that_cannot_be_written_is_refused_before_anything_else(refuse, tmp_path):
    there, text = tmp_path / "there.npz", tmp_path / "text"
    there.write_text("precious")
    text.write_text("")
    (tmp_path / "folder.npz").mkdir()
    cases = {
        there: "already exists",
        tmp_path / "folder.npz": "is not a file",
        tmp_path / "scores.txt": ".npz",
        tmp_path / "scores": ".npz",
        tmp_path / "none" / "scores.npz": tmp_path / "none",
        text / "scores.npz": text,
    }
    before = snapshot(tmp_path)
    for path, word in cases.items():
        # Refused before the checkpoint is looked for, so before an evaluation that may take hours.
        message = refuse("--save_scores", path, weights=tmp_path / "no checkpoint")
        assert f"--save_scores {path}" in message
        assert str(word) in message
    assert snapshot(tmp_path) == before
    assert there.read_text() == "precious"


def test_a_full_disk_costs_the_scores_but_not_the_result(monkeypatch, capsys, tmp_path, root, weights):
    path = tmp_path / "scores.npz"
    line = ["--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0]
    monkeypatch.setattr(sys, "argv", ["test_models.py", *map(str, line), "--save_scores", str(path)])
    with files_limited_to(500), pytest.raises(SystemExit) as ended:
        run_program(test_models.main, opts.testing_parser().parse_args)
    said = capsys.readouterr()
    assert (ended.value.code, said.err.count("\n")) == (1, 1)
    assert f"--save_scores {path}" in said.err
    assert "File too large" in said.err
    assert list(tmp_path.iterdir()) == []
    assert any(RESULT.fullmatch(line) for line in said.out.splitlines())


def test_an_unreadable_frame_stops_it_with_its_path(refuse, tmp_path, weights):
    """A worker's exception comes wrapped in its traceback, so once with workers, in real processes."""
    root = make_dataset(tmp_path / "data", val=3, train=0, frames=8)
    frame = video_folders(root)[1] / "00004.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    assert str(frame) in refuse(root=root)
    frame.write_text("no picture")
    process = run(
        "test_models.py",
        *("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 2, "-b", 1),
        env=NO_GPU,
    )
    assert_one_line_error(process, f"error: {frame}: ")
    assert process.returncode == 1
    assert "Testing Results" not in process.stdout
    frame.unlink()  # in the middle: no check at the start sees it
    assert str(frame) in refuse(root=root)


def test_a_hostile_checkpoint_is_refused_and_not_run(refuse, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "hostile.pth"
    torch.save(wrapped(filled_model(), more=Hostile(marker)), path, pickle_protocol=4)
    assert refuse(weights=path).startswith(f"error: {path}: ")
    assert not marker.exists()


def test_a_missing_checkpoint_is_one_line(tmp_path, root):
    """In a process of its own, where the message and the status are what Python makes of them."""
    missing = tmp_path / "none.pth"
    process = run("test_models.py", "--weights", missing, "--dataset", "somethingv1", "--root_path", root)
    assert_one_line_error(process, f"error: {missing}: no such file")
    assert (process.returncode, process.stdout) == (1, "")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--bogus"], "--bogus"),
        (["--max_nu", "3"], "--max_nu"),
        (["--arch", "resnet18"], "resnet18"),
        (["--type", "TSN"], "TSN"),
        (["--max_num", "0"], "--max_num"),
        (["--num_segments", "4.5"], "--num_segments"),
        (["--input_size", "31"], "--input_size"),
        (["-b", "0"], "--batch-size"),
        (["-j", "-1"], "--workers"),
        (["--dataset", "kinetics"], "kinetics: no such folder"),
        (["--amp", "int8"], "int8"),
        (["--gpus", "99"], "--gpus 99"),
        (["--val_list", "/none/list.txt"], "/none/list.txt: no such file"),
        (["--root_path", "/none"], "/none"),
        (["--image_tmpl", "frame.jpg"], "--image_tmpl frame.jpg"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(refuse, args, word):
    assert word in refuse(*args)


def test_required_options_are_named(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    process = call("test_models.py")
    assert_one_line_error(process, "--weights", "--dataset", "--root_path")
    assert process.returncode == 2
    assert os.linesep not in process.stderr.rstrip("\n")
