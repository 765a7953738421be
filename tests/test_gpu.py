"""Training, resuming and evaluating on the GPUs of this machine, if it has any."""

import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from forked import start_ranks
from helpers import REPOSITORY, VISIBLE_GPUS, assert_one_line_error, run
from synthetic import make_dataset

NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"


def count_gpus() -> int:
    if not Path("/dev/nvidiactl").exists():
        return 0
    program = "import torch; print(torch.cuda.device_count())"
    command, env = [sys.executable, "-c", program], os.environ | VISIBLE_GPUS
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


GPUS = count_gpus()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="no GPU")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("gpu"), train=24, val=6, frames=6)


def training_options(root: Path, out: Path) -> list[str]:
    options = (
        f"--dataset somethingv1 --root_path {root} --checkpoint_dir {out} --arch resnet14 --input_size 64"
    )
    options += " --num_segments 4 -b 8 --lr 0.001 -j 1 -p 1"
    return options.split()


def run_training(root: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run("main.py", *training_options(root, out), *more, env=VISIBLE_GPUS)


def train(root: Path, out: Path, *more: object) -> str:
    process = run_training(root, out, *more)
    assert process.returncode == 0, process.stderr
    return process.stdout


def losses(log: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^Epoch:.*Loss ([\d.]+)", log, re.MULTILINE)]


def test_a_resumed_run_continues_with_the_same_loss(root, tmp_path):
    whole = train(root, tmp_path / "whole", "--epochs", 2, "--gpus", 0)
    assert "device: CPU" not in whole
    train(root, tmp_path / "halves", "--epochs", 1, "--gpus", 0)
    second = train(root, tmp_path / "halves", "--epochs", 2, "--gpus", 0, "--resume", "auto")
    assert losses(second) == pytest.approx(losses(whole)[3:], rel=1e-3)


def test_the_gpu_resizes_as_pillow_does(root, tmp_path):
    expected = losses(train(root, tmp_path / "workers", "--epochs", 1, "--gpus", 0, "--resize", "workers"))
    found = losses(train(root, tmp_path / "device", "--epochs", 1, "--gpus", 0))
    assert found == pytest.approx(expected, rel=1e-3)
    program = """
import numpy as np
import torch
from frames.resize import DecodedClips, resize_clips
for width, height in ((427, 240), (176, 100), (33, 90), (1, 7)):
    pixels = torch.randint(256, (2 * height * width * 3,), dtype=torch.uint8)
    shapes, order = np.array([[0, 2, height, width]]), np.array([[0, 1]])
    views = np.array([[[0, 0, width, height, 224, 224, 0, 0, 1]]])
    clips = DecodedClips(pixels, shapes, order, views, 224, 2)
    on_gpu = resize_clips(clips._replace(pixels=pixels.cuda()))
    assert torch.equal(on_gpu.cpu(), resize_clips(clips))
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=os.environ | VISIBLE_GPUS, check=True)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(root, tmp_path, amp):
    expected = losses(train(root, tmp_path / "off", "--epochs", 1, "--gpus", 0))
    found = losses(train(root, tmp_path / amp, "--epochs", 1, "--gpus", 0, "--amp", amp))
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "more",
    [["--channels_last"], ["--compile"], ["--channels_last", "--compile", "--amp", "bf16"]],
    ids=["channels_last", "compile", "all"],
)
def test_faster_training_follows_the_baseline(root, plain, tmp_path, more):
    found = losses(train(root, tmp_path, "--epochs", 1, "--gpus", 0, *more))
    assert found == pytest.approx(plain.losses, rel=0.05)


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory) -> Namespace:
    """A run on one GPU: its losses, and its best checkpoint."""
    out = tmp_path_factory.mktemp("plain")
    log = train(root, out, "--epochs", 1, "--gpus", 0)
    return Namespace(losses=losses(log), weights=out / "checkpoint" / f"{NAME}_best.pth.tar")


def scores(root: Path, weights: Path, path: Path, env: dict[str, str], *more: object) -> np.ndarray:
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
    process = run("test_models.py", *options, "--save_scores", path, *more, env=env)
    assert process.returncode == 0, process.stderr
    with np.load(path) as content:
        return content["scores"]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_evaluation_gives_the_scores_of_the_cpu(root, plain, tmp_path):
    on_cpu = scores(root, plain.weights, tmp_path / "cpu.npz", {})
    on_gpu = scores(root, plain.weights, tmp_path / "gpu.npz", VISIBLE_GPUS, "--gpus", 0)
    assert relative(on_gpu, on_cpu) < 1e-5


def test_fast_evaluation_gives_the_scores_of_the_default(root, plain, tmp_path):
    expected = scores(root, plain.weights, tmp_path / "plain.npz", VISIBLE_GPUS, "--gpus", 0)
    found = scores(root, plain.weights, tmp_path / "fast.npz", VISIBLE_GPUS, "--gpus", 0, "--fast")
    assert relative(found, expected) < 2e-2


# In a process of its own, because this one sees no GPU.
DEPLOYED = """
import torch
from torch import nn
from models import TemporalModel
from inference.fuse import fuse, float32_convolutions

torch.manual_seed(0)
model = TemporalModel(5, 4, backbone="resnet14").eval()
nn.init.normal_(model.new_fc.weight, 0, 0.1)
for module in model.modules():
    if isinstance(module, nn.BatchNorm3d):
        nn.init.normal_(module.bias, 0, 0.3)
        nn.init.normal_(module.running_mean, 0, 0.3)
        nn.init.uniform_(module.running_var, 0.5, 2)
clips, device = torch.randn(2, 4, 3, 64, 64), torch.device("cuda")
with torch.inference_mode(), float32_convolutions():
    expected = model(clips)
    for dtype in (torch.float32, torch.bfloat16):
        fused = fuse(model, device, dtype).to(device)
        assert not any(type(module) is nn.Conv3d for module in fused.modules()), "3D kernels are used"
        found = fused(clips.to(device)).float().cpu()
        print(float((found - expected).norm() / expected.norm()))
"""


def test_the_deployed_form_gives_the_logits_of_the_model_on_the_cpu():
    command = [sys.executable, "-c", DEPLOYED]
    env = os.environ | VISIBLE_GPUS
    process = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    in_float32, in_bf16 = map(float, process.stdout.split())
    assert in_float32 < 1e-5
    assert in_bf16 < 2e-2


def test_a_checkpoint_of_the_gpu_evaluates_on_the_cpu(root, tmp_path):
    train(root, tmp_path, "--epochs", 1, "--gpus", 0)
    weights = tmp_path / "checkpoint" / f"{NAME}_best.pth.tar"
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
    on_gpu, on_cpu = (run("test_models.py", *options, env=env) for env in (VISIBLE_GPUS, {}))
    assert on_gpu.returncode == on_cpu.returncode == 0, on_gpu.stderr + on_cpu.stderr
    results = [process.stdout.splitlines()[-1].split("Loss ") for process in (on_gpu, on_cpu)]
    assert results[0][0] == results[1][0]
    assert float(results[0][1]) == pytest.approx(float(results[1][1]), rel=1e-2)


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_data_parallel_trains_and_saves_keys_without_module(root, tmp_path):
    log = train(root, tmp_path, "--epochs", 1)
    assert "DataParallel" in log
    assert losses(log) == pytest.approx(
        losses(train(root, tmp_path / "one", "--epochs", 1, "--gpus", 0)), rel=0.1
    )


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_data_parallel_trains_channels_last_but_not_compiled(root, plain, tmp_path):
    several = ["--epochs", 2, "--gpus", 0, 1, "--channels_last"]
    log = train(root, tmp_path / "run", *several)
    assert "DataParallel" in log
    # Batch norm sees half the clips.
    assert losses(log)[:3] == pytest.approx(plain.losses, rel=0.1)
    refused = run_training(root, tmp_path / "compiled", *several, "--compile")
    assert_one_line_error(refused, "--compile", "torchrun")
    assert not (tmp_path / "compiled").exists()


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_two_processes_with_sync_bn_train_like_one(root, tmp_path):
    more = ("--epochs", 1, "--dropout", 0)
    expected = losses(train(root, tmp_path / "one", *more, "--gpus", 0))
    options = (*training_options(root, tmp_path / "two"), *more, "--sync_bn")
    done = [rank.finish() for rank in start_ranks(2, "main.py", *options, env=VISIBLE_GPUS)]
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert losses(done[0].stdout) == pytest.approx(expected, rel=1e-2)


def test_a_frame_that_cannot_be_read_is_reported_in_one_line(tmp_path):
    """On its way to a GPU a batch goes through one more thread, which pins its memory."""
    root = make_dataset(tmp_path / "data", train=8, val=4, frames=3)
    frames = sorted((root / "somethingv1" / "20bn-something-something-v1" / "5").iterdir())
    for frame in frames:
        frame.write_bytes(b"")
    refused = run_training(root, tmp_path / "run", "--epochs", 1, "--gpus", 0)
    assert_one_line_error(refused, "error: ", f"{frames[0].parent}/", "cannot be read as an image")


def test_frozen_batch_norm_trains(root, plain, tmp_path):
    found = losses(train(root, tmp_path, "--epochs", 1, "--gpus", 0, "--freeze_bn", "--channels_last"))
    assert len(found) == len(plain.losses)
    assert all(np.isfinite(found))
    assert found != plain.losses
