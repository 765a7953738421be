"""Exported models: by the docs' commands, checked, with what they say about themselves, and evaluated."""

import io
import json
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
import torch
from helpers import REPOSITORY, assert_one_line_error, call, finish, run, small_run
from video_files import write_video

from classes import released_categories
from inference.export import FORMATS, Exported
from inference.onnx_model import OnnxModel
from models import BLOCKS, TemporalModel
from tools.export import TOLERANCE, check
from utils.cli import UserError


def make_model(kind: str = "GST", classes: int = 4, seed: int = 0) -> TemporalModel:
    """A model whose scores differ between clips and classes."""
    torch.manual_seed(seed)
    model = TemporalModel(classes, 4, kind, "resnet14", input_size=48)
    torch.nn.init.normal_(model.new_fc.weight, 0, 0.3)
    return model.eval()


def commands(program: str) -> list[list[str]]:
    """The words after the program in each of the page's commands of it."""
    lines = (REPOSITORY / "docs" / "DEPLOYMENT.md").read_text().splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith(f"python {program} ")]


def exporting(file: str) -> list[str]:
    """The page's command that writes this file."""
    (words,) = (words for words in commands("tools/export.py") if words[words.index("--out") + 1] == file)
    return words


def succeed(done: CompletedProcess[str]) -> CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done


def printed_program(done: CompletedProcess[str]) -> str:
    """What the tool prints to run the file."""
    return "import json" + done.stdout.partition("\nimport json")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authors_root: Path) -> Path:
    """A working folder with what the page's commands name: FILE, of a real run, DATA and clip.webm."""
    home = tmp_path_factory.mktemp("export")
    (home / "DATA").symlink_to(authors_root)
    run_of_main = small_run(authors_root, home / "runs", dataset="somethingv2")
    succeed(run("main.py", *run_of_main, "--pretrained", "none", "--input_size", 48))
    (best,) = (home / "runs").rglob("*_best.pth.tar")
    best.rename(home / "FILE")
    write_video(home / "clip.webm", 12)
    return home


@pytest.fixture(scope="module")
def exported(folder: Path) -> CompletedProcess[str]:
    """The page's first command, which leaves model.onnx in `folder`."""
    return succeed(run("tools/export.py", *exporting("model.onnx"), cwd=folder))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose FILE has the form of the released ones; its tensors may be of C2D or TSM."""
    home = tmp_path_factory.mktemp("released")
    content = {"epoch": 1, "arch": "resnet14", "best_prec1": torch.tensor(50.0)}
    tensors = make_model("TSM", 174).state_dict()
    content["state_dict"] = {f"module.{name}": value for name, value in tensors.items()}
    torch.save(content, home / "FILE")
    return home


RELEASED = ["--type", "TSM", "--num_segments", 4, "--input_size", 48]


def test_an_own_checkpoint_as_onnx(exported, folder):
    assert "checked: 32 clips" in exported.stdout
    program = finish([sys.executable, "-c", printed_program(exported)], cwd=folder)
    names = (folder / "DATA/somethingv2/category.txt").read_text().splitlines()
    assert succeed(program).stdout.strip() in names

    # What is shipped, evaluated by the page's commands, beside the checkpoint.
    scores = {}
    for weights in ("FILE", "model.onnx"):
        (words,) = commands("test_models.py")
        words = [weights if word == "model.onnx" else word for word in words]
        file = f"{weights}.npz"
        done = succeed(run("test_models.py", *words, "-j", 1, "--save_scores", file, cwd=folder))
        scores[weights] = np.load(folder / file)["scores"]
        (result,) = (line for line in done.stdout.splitlines() if line.startswith("Testing Results"))
        assert "Prec@1" in result
    assert "ONNX" in done.stdout
    largest = np.abs(scores["FILE"]).max()
    np.testing.assert_allclose(scores["model.onnx"], scores["FILE"], rtol=0, atol=1e-4 * largest)
    (words,) = commands("test_video.py")
    answer = succeed(run("test_video.py", *words, cwd=folder)).stdout
    words[words.index("model.onnx")] = "FILE"
    expected = succeed(run("test_video.py", *words, cwd=folder)).stdout
    assert answer.partition("RESULT")[2] == expected.partition("RESULT")[2] != ""


def test_a_released_checkpoint_as_onnx_with_pixels_and_probabilities(released, folder, monkeypatch):
    monkeypatch.chdir(released)
    done = succeed(call("tools/export.py", *exporting("pixels.onnx"), *RELEASED))
    program = printed_program(done)
    assert "uint8" in program
    assert succeed(finish([sys.executable, "-c", program], cwd=released)).stdout.strip() in (
        released_categories()
    )

    file = released / "pixels.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 4, 64, 32, 3), dtype=np.uint8)
    mean, std = (np.float32(values) for values in (TemporalModel.input_mean, TemporalModel.input_std))
    clips = torch.from_numpy(((np.float32(pixels) / 255 - mean) / std).transpose(0, 1, 4, 2, 3))
    with torch.inference_mode():
        expected = make_model("TSM", 174)(clips).softmax(dim=1).numpy()
    (found,) = OnnxModel(file).session.run(None, {"clips": pixels})
    np.testing.assert_allclose(found, expected, atol=1e-5)

    monkeypatch.chdir(folder)
    views = ["clip.webm", "--test_crops", 10]
    answers = [
        succeed(call("test_video.py", "--weights", weights, *views, *options)).stdout.partition("RESULT")[2]
        for weights, options in ((file, ()), (released / "FILE", RELEASED))
    ]
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize(
    ("kind", "form", "how"),
    [("pt2", "own", call), ("torchscript", "released", run)],
    ids=("pt2", "torchscript"),
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_pytorchs_formats(kind, form, how, folder, released, monkeypatch):
    home, options = (folder, []) if form == "own" else (released, RELEASED)
    monkeypatch.chdir(home)
    place = {} if how is call else {"cwd": home}
    done = succeed(how("tools/export.py", *exporting(f"model.{kind}"), *options, **place))
    space, output = {}, io.StringIO()
    with redirect_stdout(output):
        exec(printed_program(done), space)
    names = released_categories() if form == "released" else space["metadata"]["categories"]
    assert output.getvalue().strip() in names
    assert space["metadata"]["options"]["num_segments"] == 4
    if form == "released":
        clips = torch.randn(3, 4, 3, 96, 64)
        with torch.inference_mode():
            torch.testing.assert_close(space["model"](clips), make_model("TSM", 174)(clips))


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind not in ("GST", "TSM")])
def test_the_other_types(kind):
    model = make_model(kind)
    exported, form = Exported(model), FORMATS["onnx"]
    assert check(model, exported, form.load(form.save(exported, {})), kind) < TOLERANCE


def test_what_differs_does_not_pass_the_check():
    model = make_model()
    other = make_model()
    with torch.no_grad():
        other.new_fc.bias += 0.1
    with pytest.raises(UserError, match="FILE: exported, its scores would differ by .* %"):
        check(model, Exported(model), other, "FILE")
    with torch.no_grad():
        other.new_fc.bias[:] = model.new_fc.bias + 1e4 * torch.eye(4)[2]
    with pytest.raises(UserError, match="so would its answers"):
        check(model, Exported(model), other, "FILE")


def test_a_model_without_finite_scores_leaves_no_file(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.new_fc.weight.fill_(3e38)
    torch.save(model.state_dict(), tmp_path / "wild.pth")
    words = ["--weights", tmp_path / "wild.pth", "--format", "torchscript", "--num_segments", 4]
    done = call("tools/export.py", *words, "--input_size", 32)
    assert_one_line_error(done, "wild.pth", "not finite")
    assert [path.name for path in tmp_path.iterdir()] == ["wild.pth"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "a.best.pth.tar"
    torch.save(make_model().state_dict(), path)
    return path


def test_the_name_of_the_file(weights, tmp_path):
    done = call("tools/export.py", "--weights", weights, "--format", "torchscript", "--input_size", 32)
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "a.best.torchscript"
    assert f"exported: {file}" in done.stdout
    before = file.read_bytes()
    again = call("tools/export.py", "--weights", weights, "--format", "torchscript")
    assert_one_line_error(again, "--out", file, "already exists")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "model.pth"], [".onnx"]),
        (["--out", "none/model.onnx"], ["--out", "none"]),
        (["--weights", "missing.pth"], ["missing.pth", "no such file"]),
        (["--weights", "text.pth"], ["text.pth", "is not a checkpoint"]),
        (["--format", "tflite"], ["--format"]),
        (["--type", "C3D"], ["--type C3D"]),
        (["--num_segments", "0"], ["--num_segments"]),
        (["--format", "pt2", "--input_size", "32"], ["--format pt2", "33 x 33"]),
    ],
)
def test_what_cannot_be_exported_is_refused(words, told, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("text")
    before = sorted(tmp_path.iterdir())
    assert_one_line_error(call("tools/export.py", "--weights", weights, *words), *told)
    assert sorted(tmp_path.iterdir()) == before


def test_without_the_packages(weights, exported, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = call("tools/export.py", "--weights", weights)
    assert_one_line_error(done, "pip install onnx onnxruntime onnxscript")
    assert not weights.with_name("a.best.onnx").exists()
    done = call("test_video.py", "--weights", folder / "model.onnx", folder / "clip.webm")
    assert_one_line_error(done, "pip install onnxruntime")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--amp", "bf16"], ["--amp", "model.onnx"]),
        (["--fast"], ["--fast"]),
        (["--compile"], ["--compile"]),
        (["--save_features", "new.npz"], ["--save_features"]),
        (["--num_segments", 8], ["--num_segments 8", "num_segments 4"]),
        (["--type", "TSM"], ["--type TSM", "GST"]),
    ],
)
def test_options_that_do_not_go_with_onnx(words, told, exported, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = call("test_models.py", *commands("test_models.py")[0], *words)
    assert_one_line_error(done, *told)


def test_other_onnx_files_are_refused(exported, folder, tmp_path):
    def refused(content: bytes, *words: object) -> None:
        file.write_bytes(content)
        assert_one_line_error(call("test_video.py", "--weights", file, folder / "clip.webm"), file, *words)

    file = tmp_path / "model.onnx"
    assert_one_line_error(call("test_video.py", "--weights", file, folder / "clip.webm"), "no such file")
    content = (folder / "model.onnx").read_bytes()
    refused(content[:1000], "damaged")
    refused(b"", "damaged")
    model = onnx.load_from_string(content)
    (entry,) = model.metadata_props
    metadata = json.loads(entry.value)

    def with_facts(**other: object) -> bytes:
        entry.value = json.dumps(metadata | other)
        return model.SerializeToString()

    refused(with_facts(num_class=5), "5 classes")
    refused(with_facts(options=metadata["options"] | {"num_segments": 8}), "8 frames")
    refused(with_facts(preprocess=True), "graph")
    refused(with_facts(categories=["one"]), "1 categories")
    for name in ("type", "arch", "num_segments", "input_size"):
        options = {key: value for key, value in metadata["options"].items() if key != name}
        refused(with_facts(options=options), f"do not say its {name}")
    refused(with_facts(softmax="no"), "softmax")
    entry.value = "[1]"
    refused(model.SerializeToString(), "metadata")
    del model.metadata_props[:]
    refused(model.SerializeToString(), "tools/export.py")
    assert_one_line_error(call("tools/analyze.py", "--weights", folder / "model.onnx"), "exported model")
