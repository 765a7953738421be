"""tools/convert_checkpoint.py: clean files and the released form, from trained and released checkpoints."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from helpers import assert_one_line_error, call, files_limited_to, small_run
from synthetic import CATEGORIES

from models import TemporalModel
from training.checkpoint import load_checkpoint

TOOL = "tools/convert_checkpoint.py"
SEGMENTS = ("--num_segments", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, trn_root) -> Path:
    """The best checkpoint of a small run of main.py. Read only: it is shared."""
    out = tmp_path_factory.mktemp("run")
    done = call("main.py", *small_run(trn_root, out, "-b", 2, "--pretrained", "none"))
    assert done.returncode == 0, done.stderr
    (best,) = (out / "checkpoint").glob("*_best.pth.tar")
    return best


@pytest.fixture(scope="module")
def released(tmp_path_factory, trained) -> Path:
    """The same weights in the form that the authors released. Read only: it is shared."""
    state_dict = torch.load(trained, weights_only=True)["state_dict"]
    state_dict = {f"module.{name}": value for name, value in state_dict.items()}
    content = {"epoch": 3, "arch": "resnet14", "state_dict": state_dict, "best_prec1": torch.tensor(61.5)}
    path = tmp_path_factory.mktemp("released") / "released.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def convert(weights: Path, out: Path, *options: object) -> Path:
    done = call(TOOL, "--weights", weights, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: " in done.stdout.splitlines()[-1]
    return out


def scores(weights: Path, root: Path, *options: object) -> np.ndarray:
    """The scores that test_models.py saves for a checkpoint."""
    file = weights.with_name(f"{weights.name}.npz")
    words = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "--save_scores", file)
    done = call("test_models.py", *words, "-j", 0, *options)
    assert done.returncode == 0, done.stderr
    with np.load(file) as content:
        return content["scores"]


@pytest.mark.slow
def test_converted_file_has_the_same_scores(trained, released, trn_root, tmp_path):
    own = scores(trained, trn_root, "--amp", "off")
    clean = convert(trained, tmp_path / "own.safetensors")
    assert np.array_equal(scores(clean, trn_root, "--amp", "off"), own)
    other = convert(released, tmp_path / "released.pth", *SEGMENTS, "--input_size", 32)
    assert np.array_equal(scores(other, trn_root, "-b", 2), own)
    half = convert(clean, tmp_path / "half.safetensors", "--dtype", "bf16")
    assert scores(half, trn_root) == pytest.approx(own, rel=0.05, abs=0.01)


@pytest.mark.parametrize(
    ("dtype", "kind", "suffix"), [("bf16", torch.bfloat16, ".pth"), ("fp16", torch.float16, ".safetensors")]
)
def test_only_kernels_are_rounded(trained, tmp_path, dtype, kind, suffix):
    before = load_checkpoint(trained)["state_dict"]
    file = convert(trained, tmp_path / f"half{suffix}", "--dtype", dtype)
    after = load_checkpoint(file)["state_dict"]
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value.to(kind) if value.ndim > 1 else value), name
    assert file.stat().st_size < 0.55 * sum(value.numel() * 4 for value in before.values())


def test_metadata_of_a_clean_file(trained, released, tmp_path):
    file = convert(trained, tmp_path / "own.safetensors")
    with safetensors.safe_open(file, "pt") as reader:  # a reader without this code
        metadata = json.loads(reader.metadata()["gst"])
    before = load_checkpoint(trained)
    assert metadata == {
        "arch": "resnet14",
        "num_class": 4,
        "options": {
            **{"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 4, "input_size": 32},
            **{"amp": "off", "batch_size": 2, "consensus": "mean", "source": "frames"},
        },
        "categories": list(CATEGORIES),
        "mirrored": before["mirrored"],
        "epoch": before["epoch"],
        "best_prec1": before["best_prec1"],
        "source_sha256": hashlib.sha256(trained.read_bytes()).hexdigest(),
    }
    again = load_checkpoint(convert(file, tmp_path / "own.pth"))
    del again["state_dict"]
    assert again == metadata | {"source_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--out", "gst.onnx"], "--out gst.onnx"),
        (["--out", "gst.pth", "--num_segments", 8], "--num_segments 8"),
        (["--out", "gst.pth", "--type", "C2D"], "--type C2D"),
        (["--out", "taken.pth"], "--out taken.pth"),
    ],
)
def test_wrong_option_is_refused(trained, tmp_path, monkeypatch, options, culprit):
    monkeypatch.chdir(tmp_path)
    Path("taken.pth").write_text("mine")
    assert_one_line_error(call(TOOL, "--weights", trained, *options), culprit)
    assert [file.name for file in tmp_path.iterdir()] == ["taken.pth"]
    assert Path("taken.pth").read_text() == "mine"


def test_nothing_is_guessed(released, tmp_path):
    out, bare = tmp_path / "out.pth", tmp_path / "bare.pth"
    assert_one_line_error(call(TOOL, "--weights", released, "--out", out), released, "--num_segments")
    torch.save(TemporalModel(4, 4, "TSM", "resnet14").state_dict(), bare)
    refused = call(TOOL, "--weights", bare, "--out", out, *SEGMENTS)
    assert_one_line_error(refused, bare, "C2D or TSM")
    assert not out.exists()
    content = load_checkpoint(convert(bare, out, *SEGMENTS, "--type", "TSM"))
    assert content["options"] == {"type": "TSM", "arch": "resnet14", "num_segments": 4, "input_size": 224}


def test_failed_conversion_leaves_nothing(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["base_model.layer4.0.conv3.weight"] += 1e5
    torch.save(content, tmp_path / "large.pth")
    for suffix in (".pth", ".safetensors"):
        out = tmp_path / f"out{suffix}"
        refused = call(TOOL, "--weights", tmp_path / "large.pth", "--out", out, "--dtype", "fp16")
        assert_one_line_error(refused, "--dtype fp16", "base_model.layer4.0.conv3.weight")
        with files_limited_to(1 << 20):
            done = call(TOOL, "--weights", trained, "--out", out)
        assert_one_line_error(done, f"--out {out}: ")
    assert [file.name for file in tmp_path.iterdir()] == ["large.pth"]
