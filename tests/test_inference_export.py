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
from inference.onnx_model import OnnxModel
from models import BLOCKS, TemporalModel
from tools import export
from tools.export import TOLERANCE, check
from utils.cli import UserError, log

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
def folder(tmp_path_factory: pytest.TempPathFactory, authors_root: Path) -> Path:
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
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_steps_are_logged_before_they_begin(weights, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(log, "info", lambda line: lines.append(line))
    monkeypatch.setitem(
        FORMATS, "onnx", (lambda *_: lines.append("saves") or b"", lambda content: make_model())
    )
    main_with = ["tools/export.py", "--weights", str(weights), *map(str, RELEASED[2:])]
    monkeypatch.setattr(sys, "argv", main_with)
    export.main()
    words = [line.split()[0] for line in lines[1:]]
    assert words == ["exporting", "saves", "comparing", "checked:", "exported:"]


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
@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind not in ("GST", "TSM")])
def test_other_types(kind):
    model = make_model(kind)
    exported, (save, load) = Exported(model), FORMATS["onnx"]
    assert check(model, exported, load(save(exported, {})), kind) < TOLERANCE


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


def test_existing_file_is_kept(weights, tmp_path):
    file = tmp_path / "a.best.pt2"  # the default name
    file.write_text("precious")
    process = call("tools/export.py", "--weights", weights, "--format", "pt2", "--input_size", 64)
    assert_one_line_error(process, "--out", file)
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--out", "model.pth"], ".onnx"),
        (["--out", "none/model.onnx"], "none"),
        (["--weights", "missing.pth"], "missing.pth"),
        (["--weights", "text.pth"], "text.pth"),
        (["--format", "tflite"], "--format"),
        (["--type", "C3D"], "--type C3D"),
        (["--num_segments", "0"], "--num_segments"),
        (["--format", "pt2", "--input_size", "32"], "--format pt2"),
    ],
)
def test_wrong_options(options, culprit, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("text")
    before = sorted(tmp_path.iterdir())
    assert_one_line_error(call("tools/export.py", "--weights", weights, *options), culprit)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_packages(weights, exported, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    process = call("tools/export.py", "--weights", weights)
    assert_one_line_error(process, "pip install onnx onnxruntime onnxscript")
    process = call("test_video.py", "--weights", exported, folder / "clip.webm")
    assert_one_line_error(process, "pip install onnxruntime")


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--amp", "bf16"], "--amp"),
        (["--fast"], "--fast"),
        (["--compile"], "--compile"),
        (["--save_features", "new.npz"], "--save_features"),
        (["--num_segments", 8], "--num_segments 8"),
        (["--type", "TSM"], "--type TSM"),
    ],
)
def test_options_without_onnx_support(options, culprit, exported, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert_one_line_error(call("test_models.py", *commands("test_models.py")[0], *options), culprit)


def test_other_onnx_files(exported, folder, tmp_path):
    file = tmp_path / "model.onnx"
    model = onnx.load_from_string(exported.read_bytes())
    entry = model.metadata_props[0]
    del model.metadata_props[1:]  # the checksum
    metadata = json.loads(entry.value)

    def with_metadata(content: object) -> bytes:
        entry.value = json.dumps(content)
        return model.SerializeToString()

    contents = [
        exported.read_bytes()[:1000],
        b"",
        with_metadata(metadata | {"num_class": 5}),
        with_metadata(metadata | {"options": metadata["options"] | {"num_segments": 8}}),
        with_metadata(metadata | {"preprocess": True}),
        with_metadata([1]),
    ]
    del model.metadata_props[:]
    contents.append(model.SerializeToString())
    assert_one_line_error(call("test_video.py", "--weights", file, folder / "clip.webm"), file)
    for content in contents:
        file.write_bytes(content)
        assert_one_line_error(call("test_video.py", "--weights", file, folder / "clip.webm"), file)
    assert_one_line_error(call("tools/analyze.py", "--weights", exported), exported)


def test_onnx_pins_no_memory(exported, folder, monkeypatch):
    """A GPU computes nothing of an ONNX file."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("pinned"))
    succeed(call("test_models.py", *commands("test_models.py")[0], "-j", 0))


def test_flipped_bit_in_onnx_is_refused(exported, tmp_path):
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="model.onnx"):
        OnnxModel(damaged)


def with_metadata(exported: Path, path: Path, metadata: str) -> Path:
    model = onnx.load(exported)
    del model.metadata_props[:]
    model.metadata_props.add(key="metadata", value=metadata)
    onnx.save(model, path)
    return path


def test_onnx_has_its_own_mean_and_std(exported, tmp_path):
    (metadata,) = (p.value for p in onnx.load(exported).metadata_props if p.key == "metadata")
    changed = json.loads(metadata) | {"input_mean": [0.1, 0.2, 0.3], "input_std": [1.0, 2.0, 3.0]}
    model = OnnxModel(with_metadata(exported, tmp_path / "own.onnx", json.dumps(changed)))
    assert (model.input_mean, model.input_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
