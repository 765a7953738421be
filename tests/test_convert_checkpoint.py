"""tools/convert_checkpoint.py: clean files and the released form, of own and released checkpoints."""

import hashlib
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from forked import REPOSITORY
from helpers import Hostile, assert_one_line_error, call, files_limited_to, run, small_run
from reference.fill import fill_state_dict
from synthetic import CATEGORIES
from video_files import write_video

from models import TemporalModel
from training.checkpoint import load_checkpoint, safetensors_bytes
from utils.cli import UserError

TOOL = "tools/convert_checkpoint.py"
REFERENCE = Path(__file__).parent / "reference"
SEGMENTS = ("--num_segments", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, trn_root) -> Path:
    """The best checkpoint of a small run of main.py. Read only: it is shared."""
    out = tmp_path_factory.mktemp("run")
    done = run("main.py", *small_run(trn_root, out, "-b", 2, "--pretrained", "none"))
    assert done.returncode == 0, done.stderr
    (best,) = (out / "checkpoint").glob("*_best.pth.tar")
    return best


@pytest.fixture(scope="module")
def released(tmp_path_factory, trained) -> Path:
    """The same weights in the form that the authors released. Read only: it is shared."""
    state_dict = torch.load(trained, weights_only=True)["state_dict"]
    state_dict = {f"module.{name}": value for name, value in state_dict.items()}
    content = {"epoch": 3, "arch": "resnet14", "state_dict": state_dict, "best_prec1": torch.tensor(61.6)}
    path = tmp_path_factory.mktemp("released") / "released.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def converted(weights: Path, out: Path, *options: object) -> Path:
    done = call(TOOL, "--weights", weights, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: " in done.stdout.splitlines()[-1]
    return out


def scores(weights: Path, root: Path, *options: object) -> np.ndarray:
    """What test_models.py saves for a checkpoint."""
    file = weights.with_name(f"{weights.name}.npz")
    words = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "--save_scores", file)
    done = run("test_models.py", *words, "-j", 0, *options)
    assert done.returncode == 0, done.stderr
    with np.load(file) as content:
        return content["scores"]


def test_evaluation_does_not_see_the_conversion(trained, released, trn_root, tmp_path):
    own = scores(trained, trn_root, "--amp", "off")
    clean = converted(trained, tmp_path / "own.safetensors")
    assert np.array_equal(scores(clean, trn_root, "--amp", "off"), own)
    other = converted(released, tmp_path / "released.pth", *SEGMENTS, "--input_size", 32)
    assert np.array_equal(scores(other, trn_root, "-b", 2), own)
    half = converted(clean, tmp_path / "half.safetensors", "--dtype", "bf16")
    assert scores(half, trn_root) == pytest.approx(own, rel=0.05, abs=0.01)


def test_the_commands_of_the_docs(trained, released, tmp_path):
    text = (REPOSITORY / "docs" / "CHECKPOINTS.md").read_text(encoding="utf-8")
    commands = [
        line.split() for line in text.splitlines() if line.startswith(f"python {TOOL} --weights FILE")
    ]
    assert len(commands) == 4
    for number, command in enumerate(commands):
        words = command[2 : command.index("#") if "#" in command else None]
        source = released if "--num_segments" in words else trained
        folder = tmp_path / str(number)
        folder.mkdir()
        done = run(TOOL, *[source if word == "FILE" else word for word in words], cwd=folder)
        assert done.returncode == 0, done.stderr
        assert [file.name for file in folder.iterdir()] == [words[words.index("--out") + 1]]


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_is_for_kernels(trained, tmp_path, dtype, kind, suffix):
    before = load_checkpoint(trained)["state_dict"]
    file = converted(trained, tmp_path / f"half{suffix}", "--dtype", dtype)
    after = load_checkpoint(file)["state_dict"]
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value.to(kind) if value.ndim > 1 else value), name
    size = sum(value.numel() * 4 for value in before.values())
    assert file.stat().st_size < 0.55 * size


def test_a_file_says_what_it_is(trained, released, tmp_path):
    file = converted(trained, tmp_path / "own.safetensors")
    with safetensors.safe_open(file, "pt") as reader:  # as a service reads it, without this code
        metadata = json.loads(reader.metadata()["gst"])
    same = load_checkpoint(converted(file, tmp_path / "own.pth"))
    before = load_checkpoint(trained)
    assert metadata == {
        "arch": "resnet14",
        "num_class": 4,
        "options": {
            **{"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 4, "input_size": 32},
            **{"amp": "off", "batch_size": 2, "source": "frames"},
        },
        "categories": list(CATEGORIES),
        "mirrored": before["mirrored"],
        "epoch": before["epoch"],
        "best_prec1": before["best_prec1"],
        "source_sha256": hashlib.sha256(trained.read_bytes()).hexdigest(),
    }
    del same["state_dict"]
    assert same == metadata | {"source_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    metadata = load_checkpoint(converted(released, tmp_path / "released.pth", *SEGMENTS))
    del metadata["state_dict"], metadata["source_sha256"]
    options = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 4, "input_size": 224}
    said = {"epoch": 3, "best_prec1": torch.tensor(61.6).item()}
    assert metadata == said | {"arch": "resnet14", "num_class": 4, "options": options}


def test_every_program_reads_it(trained, trn_root, tmp_path):
    file = converted(trained, tmp_path / "own.safetensors", "--dtype", "fp16")
    started = run("main.py", *small_run(trn_root, tmp_path / "run", "-b", 2, "--pretrained", file))
    assert f"{file}: backbone and classifier loaded" in started.stdout, started.stderr
    assert started.returncode == 0
    write_video(tmp_path / "video.mp4", 6, width=48, height=32)
    asked = run("test_video.py", "--weights", file, tmp_path / "video.mp4")
    assert asked.returncode == 0, asked.stderr
    assert f"{file}: GST resnet14, alpha 4, beta 2, 4 classes, 4 frames of 32 x 32" in asked.stdout
    assert sum(f"-> {name}" in asked.stdout for name in CATEGORIES) == 4
    analyzed = run("tools/analyze.py", "--weights", file)
    assert (analyzed.returncode, analyzed.stderr) == (0, "")
    scored = run("main.py", *small_run(trn_root, tmp_path, "-b", 2), "-e", "--resume", file)
    assert scored.returncode == 0, scored.stderr


@pytest.mark.parametrize("beta", [2, 1])
def test_the_released_form_is_what_the_authors_code_loads(tmp_path, beta):
    expected = json.loads((REFERENCE / f"state_dict_resnet50_alpha4_beta{beta}.json").read_text())
    model = TemporalModel(174, 8, beta=beta)
    fill_state_dict(model.state_dict())
    bare = tmp_path / "bare.pth"
    torch.save(model.state_dict(), bare)
    clean = converted(bare, tmp_path / "clean.safetensors", "--num_segments", 8)
    bare.unlink()
    file = converted(clean, tmp_path / "released.pth.tar", "--released")
    assert not zipfile.is_zipfile(file)
    content = torch.load(file, weights_only=True)
    assert (content["epoch"], content["arch"], content["best_prec1"]) == (0, "resnet50", 0.0)
    assert content.keys() == {"epoch", "arch", "state_dict", "best_prec1"}
    found = [(name, list(value.shape)) for name, value in content["state_dict"].items()]
    assert found == [(f"module.{name}", shape) for name, shape in expected.items()]
    # As their programs load it.
    other = torch.nn.DataParallel(TemporalModel(174, 8, beta=beta))
    other.load_state_dict(content["state_dict"])
    for name, value in model.state_dict().items():
        assert torch.equal(other.module.state_dict()[name], value), name
    for path in (clean, file):
        path.unlink()


def test_the_released_form_keeps_epoch_and_accuracy(trained, tmp_path):
    out = tmp_path / "released.pth.tar"
    done = run(TOOL, "--weights", trained, "--out", out, "--released")
    assert done.returncode == 0
    assert done.stderr == "warning: the authors' code has no GST resnet14, only GST with resnet50\n"
    before, after = (load_checkpoint(path) for path in (trained, out))
    assert {"epoch", "arch", "best_prec1", "state_dict"} == after.keys()
    assert all(after[name] == before[name] for name in ("epoch", "arch", "best_prec1"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "gst.onnx"], ["--out gst.onnx", ".safetensors"]),
        (["--out", "gst.safetensors", "--released"], ["--out gst.safetensors", "--released"]),
        (["--out", "gst.pth", "--released", "--dtype", "bf16"], ["--dtype bf16"]),
        (["--out", "gst.pth", "--num_segments", 8], ["--num_segments 8 contradicts"]),
        (["--out", "gst.pth", "--type", "C2D"], ["--type C2D contradicts"]),
        (["--out", "missing/gst.pth"], ["--out missing/gst.pth", "is not a folder"]),
        (["--out", "taken.pth"], ["--out taken.pth: already exists"]),
    ],
)
def test_what_cannot_be_converted_is_refused(trained, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    Path("taken.pth").write_text("mine")
    assert_one_line_error(call(TOOL, "--weights", trained, *options), *words)
    assert [file.name for file in tmp_path.iterdir()] == ["taken.pth"]
    assert Path("taken.pth").read_text() == "mine"


def test_what_nobody_has_said_must_be_given(released, tmp_path):
    out = tmp_path / "out.pth"
    refused = call(TOOL, "--weights", released, "--out", out)
    assert_one_line_error(refused, released, "how many frames", "--num_segments")
    bare = tmp_path / "bare.pth"
    torch.save(TemporalModel(4, 4, "TSM", "resnet14").state_dict(), bare)
    refused = call(TOOL, "--weights", bare, "--out", out, *SEGMENTS)
    assert_one_line_error(refused, bare, "C2D or TSM", "--type")
    assert not out.exists()
    content = load_checkpoint(converted(bare, out, *SEGMENTS, "--type", "TSM"))
    assert content["options"] == {"type": "TSM", "arch": "resnet14", "num_segments": 4, "input_size": 224}


def test_bad_checkpoints_are_refused(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    del content["optimizer"]
    bad = {name: tmp_path / f"{name}.pth" for name in ("missing", "hostile", "lacking", "large", "classes")}
    torch.save(Hostile(tmp_path / "ran"), bad["hostile"])
    name = "base_model.layer4.0.conv3.weight"
    without = {key: value for key, value in content["state_dict"].items() if key != name}
    torch.save(content | {"state_dict": without}, bad["lacking"])
    torch.save(content | {"state_dict": without | {name: content["state_dict"][name] + 1e5}}, bad["large"])
    torch.save(content | {"num_class": 5}, bad["classes"])
    out = tmp_path / "out.safetensors"
    for what, words in (
        ("missing", ["no such file"]),
        ("hostile", ["would run code"]),
        ("lacking", [name]),
        ("large", [name, "--dtype fp16", "bf16"]),
        ("classes", ["5 classes", "4"]),
    ):
        refused = run(TOOL, "--weights", bad[what], "--out", out, "--dtype", "fp16")
        assert_one_line_error(refused, bad[what], *words)
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_nothing(trained, tmp_path):
    for name in ("out.pth", "out.safetensors"):
        with files_limited_to(1 << 20):
            done = call(TOOL, "--weights", trained, "--out", tmp_path / name)
        assert_one_line_error(done, f"--out {tmp_path / name}: cannot be written", "too large")
    assert list(tmp_path.iterdir()) == []


# The form itself


def small_content() -> dict[str, object]:
    state_dict = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "bn.num_batches_tracked": torch.tensor(7)}
    state_dict["fc.weight"] = torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16)
    return {"state_dict": state_dict, "epoch": 3, "options": {"num_segments": 16}, "categories": ["ü", "b"]}


def assert_is_small_content(found: dict[str, object]) -> None:
    expected = small_content()
    tensors = found.pop("state_dict")
    for name, value in expected.pop("state_dict").items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    assert found == expected


def test_safetensors_give_back_what_was_saved(tmp_path):
    file = tmp_path / "any.name"
    file.write_bytes(safetensors_bytes(small_content()))
    assert_is_small_content(load_checkpoint(file))


def test_any_damage_to_safetensors_is_detected(tmp_path):
    whole, file = safetensors_bytes(small_content()), tmp_path / "damaged.safetensors"
    rng = random.Random(0)
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    same = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            found = load_checkpoint(file)
        except UserError as error:
            assert str(file) in str(error)
            continue
        same += 1
        assert_is_small_content(found)
    assert same < 20  # the padding of the header and the name of the format decide nothing


def test_safetensors_of_others_are_bare_state_dicts(tmp_path):
    file = tmp_path / "other.safetensors"
    state_dict = {"module.fc.bias": torch.tensor([0.5, -1.0])}
    for metadata in (None, {"format": "pt", "author": "somebody"}):
        safetensors.torch.save_file(state_dict, file, metadata)
        (content,) = load_checkpoint(file).values()
        assert torch.equal(content["fc.bias"], state_dict["module.fc.bias"])
