"""Which precision a run computes in, and that a checkpoint has one accuracy, whoever evaluates it.

ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, which torch reads when it first computes, make any x86 CPU one
without bfloat16 instructions; so these are real processes.
"""

import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, assert_one_line_error, call, finish, run
from synthetic import make_dataset

from utils.precision import emulation_warning, evaluation_precision, has_instructions, training_precision

CPU = torch.device("cpu")
WITHOUT_BF16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
SMALL = ("--arch", "resnet14", "--input_size", 32, "--num_segments", 4, "--epochs", 1, "-b", 5, "--lr", 0.001)

needs_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the variables are for x86 CPUs"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """12 training and 7 validation clips; all longer than the number of segments."""
    return make_dataset(tmp_path_factory.mktemp("precision"), train=12, val=7, frames=(9, 13))


def data(root):
    return ("--dataset", "somethingv1", "--root_path", root, "-j", 0)


def train(root, out, *more, env=None):
    command = ("main.py", *data(root), "--checkpoint_dir", out, *SMALL, *more)
    process = run(*command, env=env) if env else call(*command)
    assert process.returncode == 0, process.stderr
    return process


def line_of(process, start):
    return next(line for line in process.stdout.splitlines() if line.startswith(start))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="compares with what Linux says")
@needs_x86
def test_the_cpu_is_asked(tmp_path):
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split()
    ask = tmp_path / "ask.py"
    ask.write_text(
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import torch; from utils.precision import has_instructions\n"
        "print(has_instructions(torch.device('cpu'), 'bf16'))"
    )
    by_itself = dict.fromkeys(WITHOUT_BF16, "")
    for env, expected in (
        (by_itself, bool({"avx512_bf16", "amx_bf16"}.intersection(flags))),
        (by_itself | {"ATEN_CPU_CAPABILITY": "avx2"}, False),
        (by_itself | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        (by_itself | {"ONEDNN_MAX_CPU_ISA": "avx512_core"}, False),
    ):
        process = finish(
            [sys.executable, ask], env=os.environ | env
        )  # torch 2.6 reads them when it is imported
        assert process.stdout == f"{expected}\n", process.stderr


def test_an_option_is_followed_and_a_checkpoint_is_kept():
    native = has_instructions(CPU, "bf16")
    assert training_precision(None, None, CPU).amp == "off"
    assert training_precision("auto", None, CPU).amp == ("bf16" if native else "off")
    for option in (None, "auto"):
        for saved in ("off", "bf16"):
            assert training_precision(option, saved, CPU).amp == saved
    for option in ("off", "bf16", "fp16"):
        assert training_precision(option, "bf16", CPU).amp == option
        assert evaluation_precision(option, "bf16", CPU).amp == option
    assert evaluation_precision(None, "off", CPU).amp == "off"
    assert evaluation_precision(None, "bf16", CPU).amp == ("bf16" if native else "off")
    assert evaluation_precision("auto", "off", CPU).amp == ("bf16" if native else "off")


def test_fp16_is_emulated_where_the_cpu_has_no_instructions_for_it():
    warning = emulation_warning(training_precision("fp16", None, CPU), CPU)
    assert (warning is None) == has_instructions(CPU, "fp16")
    assert emulation_warning(training_precision("off", None, CPU), CPU) is None


@needs_x86
def test_the_demos_options_train_in_float32_where_there_is_no_bfloat16(tmp_path):
    root = make_dataset(tmp_path / "data", train=6, val=2)
    makefile = (REPOSITORY / "Makefile").read_text()
    options = [
        re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE)[1].split() for name in ("MODEL", "RECIPE")
    ]
    assert options[0][options[0].index("--amp") :][:2] == ["--amp", "auto"]
    # 6 clips are one step for each epoch.
    recipe = [*options[0], *options[1], "--epochs", 2]
    process = run("main.py", *data(root), "--checkpoint_dir", tmp_path / "out", *recipe, env=WITHOUT_BF16)
    assert (process.returncode, process.stderr) == (0, "")
    reason = "float32 (--amp auto: this CPU has no bfloat16 instructions)"
    assert line_of(process, "precision:").startswith(
        f"precision: training in {reason}; validation in float32"
    )
    (file,) = (tmp_path / "out" / "checkpoint").glob("*_best.pth.tar")
    assert torch.load(file, weights_only=True)["options"]["amp"] == "off"


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_checkpoint_has_one_accuracy(root, tmp_path, amp):
    """What validation, `main.py -e` and `test_models.py` report, to the last digit."""
    trained = train(root, tmp_path, "--amp", amp)
    file = tmp_path / "checkpoint" / f"{NAME}_best.pth.tar"
    result = line_of(trained, "Testing Results:")
    loss = torch.load(file, weights_only=True)["history"][0]["val_loss"]
    assert f"Loss {loss:.5f}" in result
    again = call("main.py", *data(root), *SMALL[:-4], "-e", "--resume", file)
    scores = [tmp_path / "default.npz", tmp_path / "bf16.npz"]
    other = call("test_models.py", *data(root), "--weights", file, "--save_scores", scores[0])
    for process in (again, other):
        assert (process.returncode, process.stderr) == (0, "")
        assert line_of(process, "Testing Results:") == result
    found = call(
        "test_models.py", *data(root), "--weights", file, "--amp", "bf16", "--save_scores", scores[1]
    )
    # By the scores, since bf16 may change none of the printed digits.
    is_same = np.array_equal(*(np.load(path)["scores"] for path in scores))
    assert is_same == (amp == "bf16" and has_instructions(CPU, "bf16"))
    assert not is_same or line_of(found, "Testing Results:") == result


@needs_x86
def test_what_was_trained_in_bfloat16_on_a_cpu_without_it(tmp_path):
    """One warning where bf16 is asked for; `auto` keeps the checkpoint's; evaluation is in float32."""
    root = make_dataset(tmp_path / "data", train=2, val=2, frames=9)  # few clips, since emulation is slow
    first = train(root, tmp_path, "--amp", "bf16", env=WITHOUT_BF16)
    (warning,) = first.stderr.splitlines()
    assert re.fullmatch("warning: this CPU has no instructions for bf16, .*emulated.*--amp auto.*", warning)
    file = tmp_path / "checkpoint" / f"{NAME}_checkpoint.pth.tar"
    assert torch.load(file, weights_only=True)["options"]["amp"] == "bf16"

    evaluated = run("test_models.py", *data(root), "--weights", file, env=WITHOUT_BF16)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    reason = "float32 (trained in bf16, which this CPU has no instructions for)"
    assert line_of(evaluated, "device:").endswith(reason)
    assert line_of(evaluated, "Testing Results:") == line_of(first, "Testing Results:")

    more = ("--resume", "auto", "--epochs", 2)
    refused = call("main.py", *data(root), "--checkpoint_dir", tmp_path, *SMALL, *more, "--amp", "off")
    assert_one_line_error(refused, "amp bf16 (now off)")
    resumed = train(root, tmp_path, *more, "--amp", "auto", env=WITHOUT_BF16)
    assert "training in bf16 (as the checkpoint was trained, which this CPU" in resumed.stdout
    assert torch.load(file, weights_only=True)["options"]["amp"] == "bf16"


def test_a_precision_that_no_program_has_saved_is_one_line(root, tmp_path):
    train(root, tmp_path)
    file = tmp_path / "checkpoint" / f"{NAME}_best.pth.tar"
    content = torch.load(file, weights_only=True)
    for name, value in (("amp", "int3"), ("amp", ["bf16"]), ("batch_size", -1), ("batch_size", "24")):
        torch.save(content | {"options": content["options"] | {name: value}}, file)
        assert_one_line_error(call("test_models.py", *data(root), "--weights", file), file, name)
