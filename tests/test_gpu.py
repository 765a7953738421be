"""Training, resuming and evaluating on the GPUs of this machine, if it has any."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import VISIBLE_GPUS, run
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


def train(root: Path, out: Path, *more: object) -> str:
    options = (
        f"--dataset somethingv1 --root_path {root} --checkpoint_dir {out} --arch resnet14 --input_size 64"
    )
    options += " --num_segments 4 -b 8 --lr 0.001 -j 1 -p 1"
    process = run("main.py", *options.split(), *more, env=VISIBLE_GPUS)
    assert process.returncode == 0, process.stderr
    return process.stdout


def losses(log: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^Epoch:.*Loss ([\d.]+)", log, re.MULTILINE)]


def test_a_resumed_run_goes_on_with_the_same_loss(root, tmp_path):
    whole = train(root, tmp_path / "whole", "--epochs", 2, "--gpus", 0)
    assert "device: CPU" not in whole
    train(root, tmp_path / "halves", "--epochs", 1, "--gpus", 0)
    second = train(root, tmp_path / "halves", "--epochs", 2, "--gpus", 0, "--resume", "auto")
    assert losses(second) == pytest.approx(losses(whole)[3:], rel=1e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(root, tmp_path, amp):
    expected = losses(train(root, tmp_path / "off", "--epochs", 1, "--gpus", 0))
    found = losses(train(root, tmp_path / amp, "--epochs", 1, "--gpus", 0, "--amp", amp))
    assert found == pytest.approx(expected, rel=0.05)


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
