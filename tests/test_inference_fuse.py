"""inference/fuse.py and the options that use it: the same numbers as the baseline, whatever computes it."""

import copy
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start_ranks
from helpers import REPOSITORY, assert_one_line_error, call, run, small_run
from resume_harness import NAME, differences, what_is_left
from synthetic import make_dataset
from torch import nn

import models
import opts
import test_models
from engine import freeze_batch_norm, to_input
from gst import GSTBottleneck
from inference.fuse import (
    check_fused,
    compile_model,
    compiler_errors,
    fuse,
    to_channels_last,
    use_2d_kernels,
)
from models import TemporalModel
from utils.cli import UserError, run_program
from utils.distributed import init_distributed
from utils.precision import has_instructions

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def filled(segments=3, classes=5, **kwargs):
    """A model whose batch norms do something: an untrained one's can be left out, in evaluation."""
    model = TemporalModel(classes, segments, backbone="resnet14", **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def relative(found, expected):
    """The norm of the difference, as a part of the norm."""
    return float((found - expected).norm() / expected.norm())


def same_state(model, before):
    """Whether a model's state dict is this one to the last bit, in names, order, shapes and values."""
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


# ---------------------------------------------------------------------------------------------------------
# The fused form.


@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize(("alpha", "beta"), [(4, 2), (4, 1), (8, 2)])
@torch.no_grad()
def test_the_deployed_form_gives_the_logits_of_the_model(alpha, beta, dropout):
    model, clips = filled(alpha=alpha, beta=beta, dropout=dropout).eval(), torch.randn(2, 3, 3, 32, 32)
    expected = model(clips)
    assert expected.std(0).min() > 0.01, "logits that hardly differ would prove nothing"
    assert relative(fuse(model, CPU)(clips), expected) < 1e-5
    half = fuse(model, CPU, torch.bfloat16)(clips)  # given float32, as it is everywhere
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), expected) < 2e-2


def test_the_deployed_form_is_a_copy_without_batch_norm_and_gradients():
    model = filled()  # as in the middle of training
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, CPU, torch.bfloat16)
    assert same_state(model, before)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    assert not any("Norm" in type(module).__name__ for module in fused.modules())
    assert not list(fused.buffers())  # no statistics are left
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert ours.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in fused.parameters())


@torch.no_grad()
def test_batch_norm_over_all_processes_is_folded_as_any_other():
    model, clips = filled().eval(), torch.randn(2, 3, 3, 32, 32)
    expected = model(clips)
    assert (
        relative(fuse(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), CPU)(clips), expected)
        < 1e-5
    )


class ReluFirst(GSTBottleneck):
    """A block in another order, whose norms follow on ReLUs."""

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn1(self.relu(self.conv1(x)))
        shares = out.split(self.path_inputs, dim=1)
        out = self.bn2(self.relu(torch.cat((self.conv2(shares[0]), self.Tconv(shares[-1])), dim=1)))
        return self.bn3(self.relu(self.conv3(out))) + shortcut


class WronglyDeclared(ReluFirst):
    """The same, with a declaration that is wrong."""

    fusable_norms = GSTBottleneck.fusable_norms

    def forward(self, x):
        return super().forward(x)


@torch.no_grad()
def test_a_norm_is_folded_only_where_the_block_itself_says_so(monkeypatch):
    monkeypatch.setitem(models.BLOCKS, "ReluFirst", ReluFirst)
    model, clips = filled(model="ReluFirst").eval(), torch.randn(2, 3, 3, 32, 32)
    fused = fuse(model, CPU)
    left = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm3d)]
    assert left == [f"base_model.layer{stage}.0.bn{norm}" for stage in (1, 2, 3, 4) for norm in (1, 2, 3)]
    assert relative(fused(clips), model(clips)) < 1e-5
    check_fused(model, fused, clips)


def test_norms_without_weights_or_statistics_and_biases_of_convolutions_are_kept():
    model, clips = filled(), torch.randn(2, 3, 3, 32, 32)
    block = model.base_model.layer1[0]
    block.bn1 = nn.BatchNorm3d(64, affine=False)
    block.conv3 = nn.Conv3d(64, 256, 1)
    model.base_model.layer2[0].bn3 = nn.BatchNorm3d(512, track_running_stats=False)
    with torch.no_grad():
        assert relative(fuse(model, CPU)(clips), model.eval()(clips)) < 1e-5


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_an_evaluation_whose_deployed_form_differs_is_an_error(monkeypatch, trn_root, tmp_path, amp):
    monkeypatch.setitem(models.BLOCKS, "Wrong", WronglyDeclared)
    process = call("main.py", *small_run(trn_root, tmp_path, "--type", "Wrong", "--amp", amp, "-b", 4))
    if not has_instructions(CPU, amp):
        warning, process.stderr = process.stderr.split("\n", 1)
        assert warning.startswith("warning: this CPU has no instructions for bf16")
    assert_one_line_error(process, "fused", "fusable_norms")
    share = float(re.search(r"by (\S+) %", process.stderr)[1])
    assert share > 1
    model = filled(model="Wrong")
    modes = [module.training for module in model.modules()]
    with pytest.raises(UserError, match="fusable_norms"):
        check_fused(model, fuse(model, CPU, torch.bfloat16), torch.randn(2, 3, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes


def test_another_type_of_block_needs_one_place(monkeypatch, trn_root, tmp_path):
    """A line in the table of types: it trains, resumes, and evaluates to what validation said."""
    monkeypatch.setitem(models.BLOCKS, "ReluFirst", ReluFirst)
    more = ("--type", "ReluFirst", "-b", 4, "--lr", 0.002, "--resume", "auto")
    for epochs in (1, 2):
        process = call("main.py", *small_run(trn_root, tmp_path, *more, "--epochs", epochs))
        assert process.returncode == 0, process.stderr
    assert "at epoch 1, step 0" in process.stdout
    weights = (
        tmp_path / "checkpoint" / "ReluFirst_somethingv1_resnet14_alpha4_beta2_segment4_checkpoint.pth.tar"
    )
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", trn_root, "-j", 0)
    tested = call("test_models.py", *options)
    assert tested.returncode == 0, tested.stderr
    said = [line for line in process.stdout.splitlines() if line.startswith("Testing Results")]
    assert said[-1] in tested.stdout
    assert "ReluFirst resnet14" in tested.stdout
    assert_one_line_error(call("test_models.py", *options, "--type", "GST"), "--type GST", "ReluFirst")
    monkeypatch.delitem(models.BLOCKS, "ReluFirst")
    assert_one_line_error(call("test_models.py", *options), weights, "ReluFirst")


# ---------------------------------------------------------------------------------------------------------
# Kernels and layout.


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": (1, 3, 3), "groups": 2},
        {"kernel_size": 3, "dilation": (2, 1, 1), "padding": (2, 1, 1)},
        {"kernel_size": (1, 3, 3), "dilation": (1, 2, 2)},
        {"kernel_size": (5, 1, 1), "padding": (2, 0, 0)},
        {"kernel_size": (3, 1, 1)},
        {"kernel_size": 3, "padding": 1, "stride": (2, 1, 1)},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "stride": (1, 2, 2), "bias": True},
        {"kernel_size": 3, "padding": 1, "bias": True},
    ],
)
@torch.no_grad()
def test_2d_kernels_leave_what_they_do_not_compute(how):
    model, clips = nn.Sequential(nn.Conv3d(4, 6, **how)), torch.randn(2, 4, 7, 8, 8)
    expected = model(clips)
    use_2d_kernels(model)
    assert (type(model[0]) is not nn.Conv3d) == ("bias" in how)
    torch.testing.assert_close(model(clips), expected)


def gradients_of(model, clips):
    """Logits, and the gradients of the clips and of each parameter, by name."""
    clips = clips.clone().requires_grad_()
    logits = model(clips)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.detach(), gradients | {"clips": clips.grad}


# The edges of time: no neighbour, one, both.
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("beta", [1, 2])
def test_2d_kernels_compute_the_same_and_have_the_same_gradients(frames, beta):
    # In float64, where nothing but a mistake makes a difference.
    model = filled(frames, beta=beta, dropout=0).double()
    clips = torch.randn(2, frames, 3, 64, 64, dtype=torch.float64)
    other = copy.deepcopy(model)
    use_2d_kernels(other)
    assert same_state(other, model.state_dict())
    assert not any(type(module) is nn.Conv3d for module in other.modules())
    logits, gradients = gradients_of(model, clips)
    found_logits, found = gradients_of(other, clips)
    assert relative(found_logits, logits) < 1e-10
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert relative(found[name], gradient) < 1e-8, name


@pytest.mark.parametrize("frames", [1, 2, 3])
@torch.no_grad()
def test_2d_kernels_of_a_deployed_model_compute_the_same(frames):
    """Its convolutions have biases, which the frames beyond the edges must not bring along."""
    fused = fuse(filled(frames), CPU).double()
    assert all(module.bias is not None for module in fused.modules() if isinstance(module, nn.Conv3d))
    clips = torch.randn(2, frames, 3, 64, 64, dtype=torch.float64)
    expected = fused(clips)
    use_2d_kernels(fused)
    assert not any(type(module) is nn.Conv3d for module in fused.modules())
    assert relative(fused(clips), expected) < 1e-10


def test_training_takes_2d_kernels_where_a_cpu_has_no_avx512(monkeypatch):
    def takes_2d_kernels(for_training: bool) -> bool:
        model = filled()
        to_channels_last(model, CPU, for_training)
        return not any(type(module) is nn.Conv3d for module in model.modules())

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert [takes_2d_kernels(for_training) for for_training in (False, True)] == [False, True]
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert takes_2d_kernels(True) == (torch.backends.cpu.get_cpu_capability() == "AVX2")


@torch.no_grad()
def test_a_model_is_deployed_in_one_way_whatever_it_was_trained_with():
    """So that its validation, in training, has the logits of a later evaluation."""
    model, clips = filled(), torch.randn(2, 3, 3, 64, 64)
    expected = fuse(model, CPU)(clips)
    use_2d_kernels(model)
    assert torch.equal(fuse(model, CPU)(clips), expected)


@pytest.mark.usefixtures("two_threads")
def test_channels_last_stays_from_the_first_layer_to_the_last_and_back():
    # With one thread, torch computes 1x1 convolutions of few clips in another way, which is always NCTHW.
    """One layer that gave another layout would have the others copy, or take slow kernels."""
    # Sizes of more than one, since strides of others mean nothing.
    model, clips = filled(dropout=0), torch.randn(2, 3, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    plain = copy.deepcopy(model)
    to_channels_last(model, CPU)
    assert same_state(model, before)
    weights = [value for value in model.parameters() if value.ndim == 5]
    assert all(value.is_contiguous(memory_format=torch.channels_last_3d) for value in weights)

    looked_at, strange = [], []

    def watch(name, module):
        def look(way, tensor):
            looked_at.append((way, name))
            if tensor.stride(1) != 1:
                strange.append((way, name))

        def hook(module, args, output):
            if output.ndim == 5:
                look("forward", args[0])
                look("forward", output)
                output.register_hook(lambda gradient: look("backward", gradient))

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if not list(module.children()):
            watch(name, module)
    found_logits, found = gradients_of(model, clips)
    assert len(looked_at) == 3 * (21 + 17 + 13 + 1)  # convolutions, batch norms, ReLUs, and the pool
    # Where the average over height and width begins; the ReLU before it puts it right.
    assert strange == [("backward", "base_model.layer4.0.relu")]

    logits, gradients = gradients_of(plain, clips)
    assert relative(found_logits, logits) < 1e-5
    for name, gradient in gradients.items():
        # Batch norm of few values lets a difference in the last digit grow.
        assert relative(found[name], gradient) < 2e-2, name


# ---------------------------------------------------------------------------------------------------------
# The process and its machine.

# Resident megabytes, of which a tensor takes 200.
MEMORY = """
import resource
import sys
import torch
from utils import distributed

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

print("torch._dynamo" in sys.modules)
for keep in (False, True):
    if keep:
        distributed.keep_freed_memory()
    before = resident()
    tensor = torch.ones(50 << 20)
    with_it = resident()
    del tensor
    print(before, with_it, resident())
"""


@pytest.fixture(scope="module")
def memory():
    """What a process says before and after it is told to keep freed memory."""
    if platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists():
        pytest.skip("glibc's switch, watched in /proc")
    command = [sys.executable, "-c", MEMORY]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return process.stdout.splitlines()


def test_freed_memory_is_kept(memory):
    before, with_it, after = map(int, memory[1].split())
    assert before + 180 < with_it
    assert after < with_it - 180, "by default it goes back to the system"
    before, with_it, kept = map(int, memory[2].split())
    assert before + 180 < with_it < kept + 20


def test_runs_without_compile_do_not_load_the_compiler(memory):
    """Which takes most of a second, and makes a folder in the one for temporary files."""
    assert memory[0] == "False"


# ---------------------------------------------------------------------------------------------------------
# Compiled. Clips in twos everywhere, so that each way of computing them is compiled once.

COMPILED = ("--compile", "--channels_last")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """What makes this process, and the programs given it, compile for one thread and without leftovers."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not shutil.which(os.environ.get("CXX", "g++")) or not headers.exists():
        pytest.skip("needs a C++ compiler and Python's headers")
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")), "OMP_NUM_THREADS": "1"}
    env["TORCHINDUCTOR_VEC_ISA_OK"] = "0"  # kernels without vectors take half the time to compile
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        from torch._inductor import config

        # It reads the environment when it is first imported; torch 2.6's does not know this variable.
        if "TORCHINDUCTOR_VEC_ISA_OK" in Path(config.__file__).read_text(encoding="utf-8"):
            patch.setattr(config.cpp, "vec_isa_ok", False)
        yield env
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("speed"), train=8, val=2, frames=6)


def test_a_compiled_model_has_the_logits_gradients_and_masks_of_an_eager_one(compiler):
    model = filled(4, 4, dropout=0.3)
    to_channels_last(model, CPU)
    compiled = copy.deepcopy(model)
    compile_model(compiled)
    assert same_state(compiled, model.state_dict())
    clips = to_input(torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8), model)

    def pass_through(network, seed):
        network.zero_grad()
        torch.manual_seed(seed)
        logits = network(clips)
        logits.square().sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        return logits.detach(), gradient

    logits, gradient = pass_through(model, 1)
    other_logits, other_gradient = pass_through(copy.deepcopy(model), 2)
    found_logits, found_gradient = pass_through(compiled, 1)
    assert relative(found_logits, logits) < 1e-4
    assert relative(other_logits, logits) > 1e-2  # other masks are no rounding
    # Batch norm of few values lets a difference in the last digit grow.
    assert relative(found_gradient, gradient) < 2e-2 < 0.1 < relative(other_gradient, gradient)
    assert list(compiled.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_batch_norm_stays_frozen_when_compiled(compiler):
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    nn.init.constant_(model[1].running_mean, 0.5)
    compiled = copy.deepcopy(model)
    compile_model(compiled)
    clips = torch.randn(2, 3, 2, 8, 8)
    found = []
    for network in (model, compiled):
        network.train()
        freeze_batch_norm(network)
        logits = network(clips)
        logits.square().sum().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in network.parameters())])
        assert torch.equal(network[1].running_mean, torch.full((4,), 0.5))
        assert torch.equal(network[1].num_batches_tracked, torch.tensor(0))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def command(root, out, *more):
    """main.py's command line for a run of two epochs that begins or goes on."""
    size = ("--input_size", 64, "-b", 2)
    return small_run(root, out, *size, "--lr", 0.001, "--epochs", 2, "--resume", "auto", *more)


def losses_of(process):
    """Of each step and each evaluation of a run, in their order."""
    assert process.returncode == 0, process.stderr
    return [float(loss) for loss in re.findall(r"^(?:Epoch|Testing).*?Loss ([\d.]+)", process.stdout, re.M)]


def half_done(out, folder):
    """A folder with what the run in `out` had saved after the first of its two epochs."""
    (folder / "checkpoint").mkdir(parents=True)
    for name in ("checkpoint", "best"):
        ours = folder / "checkpoint" / f"{NAME}_{name}.pth.tar"
        shutil.copy(f"{checkpoint_of(out)}.1", ours)
    assert torch.load(ours, weights_only=True)["epoch"] == 1
    return folder


def checkpoint_of(out):
    return out / "checkpoint" / f"{NAME}_checkpoint.pth.tar"


def count_graphs():
    """How many this process has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def runs(compiler, root, tmp_path_factory):
    """A compiled run and a plain one: where they write, their losses, and what they have compiled."""
    found = {}
    for name, more in (("compiled", COMPILED), ("plain", ())):
        torch.compiler.reset()
        out, graphs = tmp_path_factory.mktemp(name), count_graphs()
        losses = losses_of(call("main.py", *command(root, out, *more)))
        found[name] = Namespace(out=out, losses=losses, more=more, graphs=count_graphs() - graphs)
    return found


def test_a_compiled_run_trains_as_an_eager_one(runs):
    assert runs["compiled"].graphs == 1  # training, once for both epochs; validation is never compiled
    assert runs["plain"].graphs == 0
    plain = runs["plain"].losses
    assert len(plain) == 2 * (4 + 1)
    assert np.std(plain[:4]) > 0.01, "weights that hardly change would prove nothing"
    assert runs["compiled"].losses == pytest.approx(plain, rel=2e-2)


def test_on_the_cpu_every_run_is_channels_last(runs):
    for name in ("compiled", "plain"):
        saved = torch.load(checkpoint_of(runs[name].out), weights_only=True)  # which keeps layouts
        tensors = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
        tensors += saved["state_dict"].values()
        kernels = [tensor for tensor in tensors if tensor.ndim == 5]
        assert len(kernels) == 2 * 21
        assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)


def test_a_compiled_run_that_is_resumed_ends_as_one_that_was_not(compiler, runs, root, tmp_path):
    """In a new process, as after a crash: it computes with what the other one has compiled."""
    out = half_done(runs["compiled"].out, tmp_path / "out")
    process = run("main.py", *command(root, out, *COMPILED), env=compiler)
    assert losses_of(process) == runs["compiled"].losses[5:]
    assert differences(what_is_left(runs["compiled"].out), what_is_left(out)) == []


@pytest.mark.parametrize(("first", "then"), [("compiled", "plain"), ("plain", "compiled")])
def test_a_run_continues_with_or_without_compile(runs, root, tmp_path, first, then):
    """It is no part of the recipe: the same is computed."""
    out = half_done(runs[first].out, tmp_path / "out")
    process = call("main.py", *command(root, out, *runs[then].more))
    assert "\nresumed " in process.stdout
    assert losses_of(process) == pytest.approx(runs[first].losses[5:], rel=2e-2)


@pytest.fixture(scope="module")
def torchrun_losses(compiler, root, tmp_path_factory):
    """Of two processes that compile, with as many clips each as one has above, but without dropout."""
    line = command(root, tmp_path_factory.mktemp("torchrun"), "--dropout", 0, "-b", 4, *COMPILED)
    done = [rank.finish() for rank in start_ranks(2, "main.py", *line, env=compiler)]
    assert done[1].returncode == 0, done[1].stderr
    return losses_of(done[0])


def test_two_processes_that_compile_train_as_one_that_does_not(torchrun_losses, root, tmp_path):
    """One that gathers the gradients of two batches is the same to batch norm and to the weights."""
    one = losses_of(call("main.py", *command(root, tmp_path, "--dropout", 0, "-b", 2, "--accumulate", 2)))
    assert len(one) == 2 * (2 + 1)
    # Not the losses of the evaluations: each process has running statistics of its own clips.
    steps = [0, 1, 3, 4]
    assert [torchrun_losses[n] for n in steps] == pytest.approx([one[n] for n in steps], rel=1e-3)


@pytest.fixture
def scores(compiler, runs, root, tmp_path, monkeypatch, capsys):
    """Run test_models.py in this process, on the compiled run's checkpoint; gives the
    scores, the line about the device, and the number of graphs compiled."""

    def score(*more):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        line = ("--weights", checkpoint_of(runs["compiled"].out), "--dataset", "somethingv1")
        line += ("--root_path", root, "-j", 0, "--save_scores", path, *more)
        monkeypatch.setattr(sys, "argv", ["test_models.py", *map(str, line)])
        torch.compiler.reset()
        graphs = count_graphs()
        with pytest.raises(SystemExit) as ended:
            run_program(test_models.main, opts.testing_parser().parse_args)
        told = capsys.readouterr()
        assert ended.value.code in (0, None), told.err
        with np.load(path) as content:
            return torch.from_numpy(content["scores"]), told.out.splitlines()[1], count_graphs() - graphs

    return score


def test_fast_evaluation_gives_the_scores_of_the_default(scores):
    expected, line, graphs = scores()
    assert line.endswith("; float32 (as published)")
    assert graphs == 0
    fast = "bf16, compiled" if has_instructions(CPU, "bf16") else "float32, compiled"
    for more, told in (
        (("--compile",), "float32, compiled"),
        (("--fast", "--amp", "off"), "float32, compiled"),
        (("--fast",), fast),
        (("--amp", "bf16"), "bf16"),
    ):
        found, line, graphs = scores(*more)
        assert re.sub(r" \(.*\)", "", line.split("; ")[-1]) == told
        assert graphs == ("compiled" in told)
        low, high = (1e-4, 2e-2) if "bf16" in told else (0, 1e-5)
        assert low <= relative(found, expected) < high


def test_several_gpus_in_one_process_are_not_compiled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="^--compile .*torchrun"):
        init_distributed(None, compiled=True)
    assert len(init_distributed([1], compiled=True).devices) == 1


def test_a_compiler_that_does_not_work_is_reported_in_one_line(compiler, tmp_path, monkeypatch):
    from torch._inductor import config

    model, clips = filled(1, dropout=0), torch.randn(2, 1, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    compile_model(model)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", (None, "/bin/false"))
    with pytest.raises(UserError) as refused, torch.inference_mode(), compiler_errors():
        model.eval()(clips)
    assert re.fullmatch("--compile: .*C.. compiler.*/bin/false.*", str(refused.value))  # "." is no new line
    # One that is there, but fails in the middle.
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\n" + FAILING)
    failing.chmod(0o755)
    monkeypatch.setattr(config.cpp, "cxx", (None, str(failing)))
    with pytest.raises(UserError) as refused, torch.inference_mode(), compiler_errors():
        model.eval()(clips)
    assert re.fullmatch(r"--compile: .*\(a.cpp:1: fatal error: Python.h: No such file\)", str(refused.value))
    assert same_state(model, before)


FAILING = """
case "$*" in *--version* | *-v) exec "${CXX:-g++}" "$@" ;; esac
echo "a.cpp:1: fatal error: Python.h: No such file" >&2
echo "compilation terminated." >&2
exit 1
"""
