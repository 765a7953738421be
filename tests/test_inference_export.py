"""Exported models, by the commands and programs in docs/DEPLOYMENT.md; and their evaluation."""

import json
import re
import shlex
import sys
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
import torch
from helpers import REPOSITORY, assert_one_line_error, call, finish, small_run
from video_files import write_video

from inference.export import FORMATS, Exported
from inference.onnx_model import SEAL, OnnxModel, seal
from models import TemporalModel
from tools.export import TOLERANCE, check
from utils.cli import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_blocks")]

PAGE = (REPOSITORY / "docs" / "DEPLOYMENT.md").read_text(encoding="utf-8")
# The checkpoint below has the form of the released ones, and tensors that fit C2D and TSM.
RELEASED = ["--type", "TSM", "--num_segments", 4, "--input_size", 48]


def make_model(kind: str = "GST", classes: int = 4) -> TemporalModel:
    """A model whose scores differ between clips and classes."""
    torch.manual_seed(0)
    model = TemporalModel(classes, 4, kind, "resnet14", input_size=48)
    torch.nn.init.normal_(model.new_fc.weight, 0, 0.3)
    return model.eval()


def commands(program: str) -> list[list[str]]:
    """The words after the program in each of the page's commands."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"python {program} ")]
    return [shlex.split(line)[2:] for line in lines]


def export_command(file: str) -> list[str]:
    """The page's command that writes this file."""
    (words,) = (words for words in commands("tools/export.py") if file in words)
    return words


def page_program(file: str) -> str:
    """The page's Python program that runs this file, for clips of the size used here."""
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = next(text for text in programs if file in text)
    return program.replace("8, 3, 224, 224", "4, 3, 48, 48")


def succeed(process: CompletedProcess[str]) -> CompletedProcess[str]:
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authors_root: Path, two_blocks: None) -> Path:
    """A working folder with the files in the page's commands: FILE of a run, DATA and clip.webm."""
    home = tmp_path_factory.mktemp("export")
    (home / "DATA").symlink_to(authors_root)
    options = small_run(authors_root, home / "runs", dataset="somethingv2")
    succeed(call("main.py", *options, "--pretrained", "none", "--input_size", 48))
    (best,) = (home / "runs").rglob("*_best.pth.tar")
    content = torch.load(best, weights_only=True)
    torch.nn.init.normal_(content["state_dict"]["new_fc.weight"], 0, 0.3)  # scores that depend on the clip
    torch.save(content, home / "FILE")
    write_video(home / "clip.webm", 12)
    return home


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The file of the page's first command. Read only: it is shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        succeed(call("tools/export.py", *export_command("model.onnx")))
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, two_blocks: None) -> Path:
    home = tmp_path_factory.mktemp("released")
    tensors = make_model("TSM", 174).state_dict()
    content = {"epoch": 1, "arch": "resnet14", "best_prec1": torch.tensor(50.0)}
    content["state_dict"] = {f"module.{name}": value for name, value in tensors.items()}
    torch.save(content, home / "FILE")
    return home


def test_onnx_program(exported, folder):
    process = succeed(finish([sys.executable, "-c", page_program("model.onnx")], cwd=folder))
    names = (folder / "DATA/somethingv2/category.txt").read_text().splitlines()
    assert process.stdout.strip() in names
    assert str(REPOSITORY) not in str(exported.read_bytes())


def test_onnx_evaluation(exported, folder, monkeypatch):
    """By the page's commands, compared with the checkpoint's."""
    monkeypatch.chdir(folder)
    scores, answers = {}, {}
    for weights in ("FILE", "model.onnx"):
        ((evaluate,), (ask,)) = (
            [[weights if word == "model.onnx" else word for word in words] for words in commands(program)]
            for program in ("test_models.py", "test_video.py")
        )
        process = succeed(call("test_models.py", *evaluate, "-j", 0, "--save_scores", f"{weights}.npz"))
        assert "Testing Results: Prec@1" in process.stdout
        scores[weights] = np.load(f"{weights}.npz")["scores"]
        answers[weights] = succeed(call("test_video.py", *ask)).stdout.partition("RESULT")[2]
    assert "ONNX" in process.stdout
    largest = np.abs(scores["FILE"]).max()
    np.testing.assert_allclose(scores["model.onnx"], scores["FILE"], rtol=0, atol=1e-4 * largest)
    assert answers["model.onnx"] == answers["FILE"] != ""


def test_page_program_from_a_video_to_names(exported, folder, tmp_path):
    (tmp_path / "classify.py").write_text(page_program("import av"))
    expected = []
    for turn in (0, 90):
        video, answers = tmp_path / f"{turn}.mp4", tmp_path / f"{turn}.json"
        write_video(video, 31, width=320, height=180, turn=turn)
        process = succeed(finish([sys.executable, "classify.py", exported, video], cwd=tmp_path))
        lines = [line.split(" -> ") for line in process.stdout.splitlines()]
        succeed(call("test_video.py", "--weights", folder / "FILE", video, "--json", answers))
        (answer,) = json.loads(answers.read_text())["videos"]
        assert [name for _, name in lines] == [best["class"] for best in answer["top"]]
        expected.append([best["probability"] for best in answer["top"]])
        np.testing.assert_allclose([float(p) for p, _ in lines], expected[-1], rtol=0, atol=1e-3)
    assert np.abs(np.subtract(*expected)).max() > 0.01, "scores that hardly differ would prove nothing"


def test_onnx_with_pixels_and_probabilities(released, folder, monkeypatch):
    monkeypatch.chdir(released)
    succeed(call("tools/export.py", *export_command("pixels.onnx"), *RELEASED))
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 4, 64, 32, 3), dtype=np.uint8)
    mean, std = (np.float32(values) for values in (TemporalModel.input_mean, TemporalModel.input_std))
    clips = torch.from_numpy(((np.float32(pixels) / 255 - mean) / std).transpose(0, 1, 4, 2, 3))
    with torch.inference_mode():
        expected = make_model("TSM", 174)(clips).softmax(dim=1).numpy()
    (probabilities,) = OnnxModel("pixels.onnx").session.run(None, {"clips": pixels})
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)

    views = [folder / "clip.webm", "--test_crops", 10]
    answers = [
        succeed(call("test_video.py", "--weights", weights, *views, *options)).stdout.partition("RESULT")[2]
        for weights, options in (("pixels.onnx", ()), ("FILE", RELEASED))
    ]
    assert answers[0] == answers[1] != ""


def test_pt2_program(released, monkeypatch, capsys):
    monkeypatch.chdir(released)
    succeed(call("tools/export.py", *export_command("model.pt2"), *RELEASED))
    names: dict[str, object] = {}
    exec(page_program("model.pt2"), names)
    assert capsys.readouterr().out.strip() in names["metadata"]["categories"]
    clips = torch.randn(3, 4, 3, 96, 64)
    with torch.inference_mode():
        torch.testing.assert_close(names["model"](clips), make_model("TSM", 174)(clips))


@pytest.mark.slow
def test_other_type():
    model = make_model("S3D")
    exported, (save, load) = Exported(model), FORMATS["onnx"]
    assert check(model, exported, load(save(exported, {})), "S3D") < TOLERANCE


@pytest.mark.parametrize("bias", [torch.full((4,), 0.1), 1e4 * torch.eye(4)[2], torch.full((4,), torch.nan)])
def test_check_refuses_other_scores(bias):
    model, other = make_model(), make_model()
    with torch.no_grad():
        other.new_fc.bias += bias
    with pytest.raises(UserError, match="FILE: not exported"):
        check(model, Exported(model), other, "FILE")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "a.best.pth.tar"
    torch.save(make_model().state_dict(), path)
    return path


def test_wrong_options(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text.pth", "a.best.pt2"):
        (tmp_path / name).write_text("text")
    before = sorted(tmp_path.iterdir())
    for options, culprit in (
        (["--out", "model.pth"], ".onnx"),
        (["--out", "none/model.onnx"], "none"),
        (["--weights", "text.pth"], "text.pth"),
        (["--type", "C3D"], "--type C3D"),
        (["--format", "pt2"], "a.best.pt2"),  # the default name exists
    ):
        assert_one_line_error(call("tools/export.py", "--weights", weights, *options), culprit)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_packages(weights, exported, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    process = call("tools/export.py", "--weights", weights)
    assert_one_line_error(process, "pip install onnx onnxruntime onnxscript")
    process = call("test_video.py", "--weights", exported, folder / "clip.webm")
    assert_one_line_error(process, "pip install onnxruntime")


def test_options_without_onnx_support(exported, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for options, culprit in (
        (["--amp", "bf16"], "--amp"),
        (["--compile"], "--compile"),
        (["--save_features", "new.npz"], "--save_features"),
        (["--num_segments", 8], "--num_segments 8"),
    ):
        assert_one_line_error(call("test_models.py", *commands("test_models.py")[0], *options), culprit)
    process = call("main.py", "--root_path", "data", "-e", "--resume", exported, "--compile")
    assert_one_line_error(process, "--compile", exported)


def test_other_onnx_files(exported, folder, tmp_path):
    file = tmp_path / "model.onnx"
    content = exported.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for other in (content[:1000], b"", flipped, content[: -len(SEAL) - 64]):
        file.write_bytes(other)
        with pytest.raises(UserError, match=r"model\.onnx: was not written by"):
            OnnxModel(file)
    assert_one_line_error(call("test_video.py", "--weights", file, folder / "clip.webm"), file)
    assert_one_line_error(call("tools/analyze.py", "--weights", exported), exported)


def test_onnx_has_its_own_mean_and_std(exported, tmp_path):
    model = onnx.load(exported)
    metadata = json.loads(model.metadata_props[0].value)
    changed = metadata | {"input_mean": [0.1, 0.2, 0.3], "input_std": [1.0, 2.0, 3.0]}
    del model.metadata_props[:]
    model.metadata_props.add(key="metadata", value=json.dumps(changed))
    (tmp_path / "own.onnx").write_bytes(seal(model.SerializeToString()))
    model = OnnxModel(tmp_path / "own.onnx")
    assert (model.input_mean, model.input_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
