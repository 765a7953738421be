"""utils/precision.py: the precision of a run, and one accuracy per checkpoint in all programs.

torch reads ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA when it first computes, so these tests start processes.
"""

import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, assert_one_line_error, call, finish, run, small_run
from resume_harness import NAME
from synthetic import make_dataset

from inference.fuse import to_channels_last
from models import TemporalModel
from utils.precision import evaluation_precision, has_instructions, training_precision, warn_if_emulated

CPU = torch.device("cpu")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are for x86 CPUs")


def train(root, out, *more, env=None):
    process = run("main.py", *small_run(root, out, "-b", 5, "--lr", 0.001, *more), env=env)
    assert process.returncode == 0, process.stderr
    return process


def line_of(process, start):
    return next(line for line in process.stdout.splitlines() if line.startswith(start))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="compares with Linux")
@needs_x86
def test_cpu_instructions_are_detected():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split()
    ask = "import torch, utils.precision as p; print(p.has_instructions(torch.device('cpu'), 'bf16'))"
    assert has_instructions(CPU, "bf16") != {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    process = finish([sys.executable, "-c", ask], cwd=REPOSITORY, env=os.environ | AVX2)
    assert process.stdout == "False\n", process.stderr


def test_precision_follows_option_then_checkpoint(caplog):
    native = "bf16" if has_instructions(CPU, "bf16") else "off"
    assert training_precision(None, None, CPU).amp == "off"
    assert training_precision("auto", None, CPU).amp == native
    assert training_precision("auto", "bf16", CPU).amp == "bf16"
    assert training_precision("off", "bf16", CPU).amp == evaluation_precision("off", "bf16", CPU).amp == "off"
    assert evaluation_precision(None, "off", CPU).amp == "off"
    assert (
        evaluation_precision(None, "bf16", CPU).amp == evaluation_precision("auto", "off", CPU).amp == native
    )
    warn_if_emulated(training_precision("fp16", None, CPU), CPU)
    assert bool(caplog.messages) != has_instructions(CPU, "fp16")


def test_bf16_gradients_over_two_frames():
    """oneDNN's 3D kernels leave uninitialised memory in them on CPUs with AVX512-BF16."""
    model = TemporalModel(5, 2, backbone="resnet14")
    to_channels_last(model, CPU, for_training=True)
    conv = model.base_model.layer2[0].Tconv
    clips = torch.randn(2, 64, 2, 28, 28).to(memory_format=torch.channels_last_3d)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        out = conv.to(dtype)(clips.to(dtype))
        sizes = [size for size in (64, 1000, 5000, 20000, 100000, 300000, 1000000) for _ in range(3)]
        freed = [torch.full((size,), torch.nan) for size in sizes]
        del freed
        (gradient,) = torch.autograd.grad(
            out, conv.weight, torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype)
        )
        gradients.append(gradient.float())
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()


@pytest.mark.slow
def test_checkpoint_has_one_accuracy(tmp_path):
    """Validation in training, `main.py -e` and `test_models.py` report the same digits."""
    root = make_dataset(tmp_path / "data", train=12, val=7, frames=(9, 13))
    result = line_of(train(root, tmp_path, "--amp", "bf16"), "Testing Results:")
    file = tmp_path / "checkpoint" / f"{NAME}_best.pth.tar"
    options = ("--root_path", root, "-j", 0)
    for process in (
        call("main.py", *small_run(root, tmp_path, "-e", "--resume", file)),
        call("test_models.py", *options, "--weights", file),
    ):
        assert (process.returncode, process.stderr) == (0, "")
        assert line_of(process, "Testing Results:") == result


@pytest.mark.slow
@needs_x86
def test_bf16_without_instructions(tmp_path):
    """Training is emulated after a warning, evaluation is in float32, and a resumed run stays in bf16."""
    root = make_dataset(tmp_path / "data", train=2, val=2, frames=9)
    first = train(root, tmp_path, "--amp", "bf16", env=AVX2)
    assert re.search("^warning: .* bf16.*emulated.*--amp auto", first.stderr)
    file = tmp_path / "checkpoint" / f"{NAME}_checkpoint.pth.tar"
    evaluated = run("test_models.py", "--root_path", root, "-j", 0, "--weights", file, env=AVX2)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert "float32 (trained in bf16" in line_of(evaluated, "device:")
    assert line_of(evaluated, "Testing Results:") == line_of(first, "Testing Results:")

    resume = ("--epochs", 2, "--resume", "auto", "-b", 5, "--lr", 0.001)
    refused = call("main.py", *small_run(root, tmp_path, *resume, "--amp", "off"))
    assert_one_line_error(refused, "amp bf16 (now off)")
    train(root, tmp_path, *resume, "--amp", "auto", env=AVX2)
    assert torch.load(file, weights_only=True)["options"]["amp"] == "bf16"
