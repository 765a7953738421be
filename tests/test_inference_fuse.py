"""`inference/fuse.py`: the same numbers from folded norms, other layouts, 2D kernels and compiled code."""

import copy
import operator
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, call
from synthetic import make_dataset
from torch import nn
from torch.nn import functional

import models
from baselines import C2DBottleneck
from engine import PixelModel
from gst import GSTBottleneck
from inference.fuse import PointwiseConv3d, fuse, to_channels_last, use_2d_kernels
from models import TemporalModel
from resnet_gst import DEPTHS
from training.checkpoint import save_checkpoint
from utils.cli import UserError
from utils.precision import has_instructions

pytestmark = pytest.mark.usefixtures("two_blocks")

CPU = torch.device("cpu")
BASELINES = [kind for kind in models.BLOCKS if kind != "GST"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_model(segments=3, classes=5, **kwargs):
    """A model whose batch norms have an effect; those of an untrained model have none in evaluation."""
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


def relative(value, expected):
    """The norm of the difference, relative to the norm."""
    return float((value - expected).norm() / expected.norm())


def has_state(model, state_dict):
    """Whether a model's state dict equals another bit for bit: names, order, shapes and values."""
    own = model.state_dict()
    return list(own) == list(state_dict) and all(torch.equal(own[name], state_dict[name]) for name in own)


def has_3d_kernels(model):
    return any(type(module) is nn.Conv3d for module in model.modules())


# ---------------------------------------------------------------------------------------------------------
# oneDNN's fused operators


def operations(module):
    """The functions and modules that a rewritten bottleneck calls, in order."""
    return [node.target for node in module.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize("kwargs", [{"beta": 2}, {"beta": 1}, *({"model": kind} for kind in BASELINES)])
@torch.inference_mode()
def test_onednn_computes_relu_and_sum(kwargs):
    model, clips = make_model(**kwargs).eval(), torch.randn(2, 3, 3, 32, 32)
    before = clips.clone()
    plain, fused = fuse(model, CPU, plain=True), fuse(model, CPU)
    logits, expected = fused(clips), plain(clips)
    assert relative(logits, expected) < 1e-5
    assert torch.equal(fused(clips), logits)
    assert torch.equal(clips, before)
    for block in fused.base_model.layer1[0], fused.base_model.layer4[0]:
        assert not {"relu", functional.relu, operator.add, operator.iadd} & set(operations(block))


class KeepsSum(C2DBottleneck):
    """The sum, the shortcut and a convolution's output are used twice."""

    fusable_norms = C2DBottleneck.fusable_norms

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn1(self.conv1(x))
        out = self.relu(out) + out
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out))))) + shortcut
        return torch.relu(out + shortcut) + out


class GlobalContext(C2DBottleneck):
    """A term of the sum has the size of one position; a convolution is called with a keyword."""

    fusable_norms = {"bn1": ("conv1",), "bn3": ("conv3",)}

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__(inplanes, planes, stride, downsample)
        self.context = nn.Conv3d(planes, planes, kernel_size=1)

    def reduce(self, x):
        return self.conv1(input=x)

    def aggregate(self, x):
        out = self.relu(self.conv2(x))
        return self.context(out.mean(dim=(2, 3, 4), keepdim=True)) + out


class DependsOnValues(C2DBottleneck):
    fusable_norms = C2DBottleneck.fusable_norms

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("block", [KeepsSum, GlobalContext, DependsOnValues])
@torch.inference_mode()
def test_onednn_with_other_blocks(monkeypatch, block):
    """Tensors that are used later are not overwritten; a block that cannot be traced is not changed."""
    monkeypatch.setitem(models.BLOCKS, block.__name__, block)
    model, clips = make_model(model=block.__name__).eval(), torch.randn(2, 3, 3, 32, 32)
    fused = fuse(model, CPU)
    assert relative(fused(clips), model(clips)) < 1e-5
    assert isinstance(fused.base_model.layer1[0], DependsOnValues) == (block is DependsOnValues)


@torch.inference_mode()
def test_plain_form_without_the_operators(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model, clips = make_model().eval(), torch.randn(2, 3, 3, 32, 32)
    assert torch.equal(fuse(model, CPU)(clips), fuse(model, CPU, plain=True)(clips))


# ---------------------------------------------------------------------------------------------------------
# Folded norms


@pytest.mark.parametrize(("alpha", "beta", "dropout"), [(4, 2, 0.3), (4, 1, 0), (8, 2, 0.3)])
@torch.no_grad()
def test_fused_logits(alpha, beta, dropout):
    model, clips = make_model(alpha=alpha, beta=beta, dropout=dropout).eval(), torch.randn(2, 3, 3, 32, 32)
    expected = model(clips)
    assert expected.std(0).min() > 0.01, "logits that hardly differ would prove nothing"
    assert relative(fuse(model, CPU)(clips), expected) < 1e-5
    assert 1e-5 < relative(fuse(model, CPU, torch.bfloat16)(clips), expected) < 2e-2


def test_fuse_copies():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, CPU, torch.bfloat16)
    assert has_state(model, before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    assert not any(isinstance(module, nn.BatchNorm3d) for module in fused.modules())
    assert not list(fused.buffers())  # no running statistics
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert own.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in fused.parameters())


@torch.no_grad()
def test_unusual_norms_and_biases():
    model, clips = make_model(), torch.randn(2, 3, 3, 32, 32)
    block = model.base_model.layer1[0]
    block.bn1 = nn.BatchNorm3d(64, affine=False)
    block.conv3 = nn.Conv3d(64, 256, 1)
    model.base_model.layer4[0].bn3 = nn.BatchNorm3d(2048, track_running_stats=False)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert relative(fuse(model, CPU)(clips), model.eval()(clips)) < 1e-5


class ReluFirst(GSTBottleneck):
    """A block whose norms follow on ReLUs, without a declaration."""

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn1(self.relu(self.conv1(x)))
        parts = out.split(self.path_inputs, dim=1)
        out = self.bn2(self.relu(torch.cat((self.conv2(parts[0]), self.Tconv(parts[-1])), dim=1)))
        return self.bn3(self.relu(self.conv3(out))) + shortcut


@torch.no_grad()
def test_undeclared_norms_are_kept(monkeypatch):
    monkeypatch.setitem(models.BLOCKS, "ReluFirst", ReluFirst)
    model, clips = make_model(model="ReluFirst").eval(), torch.randn(2, 3, 3, 32, 32)
    fused = fuse(model, CPU)
    norms = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm3d)]
    assert norms == [f"base_model.layer{stage}.0.bn{norm}" for stage in (1, 4) for norm in (1, 2, 3)]
    assert relative(fused(clips), model(clips)) < 1e-5


class WrongOrder(ReluFirst):
    fusable_norms = GSTBottleneck.fusable_norms


class IdentityConvolution(C2DBottleneck):
    """The convolution before the norm starts as the identity."""

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__(inplanes, planes, stride, downsample)
        self.conv_t = nn.Conv3d(planes, planes, (3, 1, 1), padding=(1, 0, 0), groups=planes, bias=False)
        nn.init.dirac_(self.conv_t.weight, planes)

    def aggregate(self, x):
        return self.conv_t(self.conv2(x))


class ZeroBranch(IdentityConvolution):
    """A residual convolution before the norm starts as zero."""

    def __init__(self, *args):
        super().__init__(*args)
        nn.init.zeros_(self.conv_t.weight)

    def aggregate(self, x):
        out = self.conv2(x)
        return out + self.conv_t(out)


class Gate(C2DBottleneck):
    """A gate between convolution and norm starts as 1."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gate = nn.Parameter(torch.zeros(()))

    def aggregate(self, x):
        return self.conv2(x) * (1 + self.gate)


@pytest.mark.parametrize("block", [WrongOrder, IdentityConvolution, ZeroBranch, Gate])
def test_wrong_declaration_is_found(monkeypatch, block):
    monkeypatch.setitem(models.BLOCKS, "Wrong", block)
    model = TemporalModel(5, 3, "Wrong", "resnet14", input_size=32)
    with pytest.raises(UserError, match="fusable_norms"):
        fuse(model, CPU, torch.bfloat16)


# ---------------------------------------------------------------------------------------------------------
# Kernels and layout


@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": (1, 3, 3), "groups": 2},
        {"kernel_size": 3, "dilation": (2, 1, 1), "padding": (2, 1, 1)},
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
def test_2d_kernels_of_one_convolution(kwargs):
    model, clips = nn.Sequential(nn.Conv3d(4, 6, **kwargs)), torch.randn(2, 4, 7, 8, 8)
    expected = model(clips)
    use_2d_kernels(model)
    assert has_3d_kernels(model) == ("bias" not in kwargs)  # those above have no 2D form
    torch.testing.assert_close(model(clips), expected)


def logits_and_gradients(model, clips):
    clips = clips.clone().requires_grad_()
    logits = model(clips)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"logits": logits.detach(), "clips": clips.grad} | gradients


# The edges in time: no neighbour, one, both.
@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("beta", [1, 2])
def test_2d_kernels_gradients(frames, beta):
    # In float64, so that only a mistake makes a difference.
    model = make_model(frames, beta=beta, dropout=0).double()
    clips = torch.randn(2, frames, 3, 64, 64, dtype=torch.float64)
    other = copy.deepcopy(model)
    to_channels_last(other, CPU)
    use_2d_kernels(other)
    assert has_state(other, model.state_dict())
    assert not has_3d_kernels(other)
    expected, values = logits_and_gradients(model, clips), logits_and_gradients(other, clips)
    assert values.keys() == expected.keys()
    for name, value in values.items():  # the logits are averaged in float32
        assert relative(value, expected[name]) < 1e-6, name


@torch.no_grad()
def test_fused_model_is_independent_of_training_kernels():
    """So that validation during training has the logits of a later evaluation."""
    model, clips = make_model(), torch.randn(2, 3, 3, 64, 64)
    expected = fuse(model, CPU)(clips)
    to_channels_last(model, CPU)
    use_2d_kernels(model)
    assert torch.equal(fuse(model, CPU)(clips), expected)


def test_one_thread_computes_pointwise_convolutions_as_products(monkeypatch):
    """PyTorch computes them without oneDNN: slowly."""
    model, clips = make_model(dropout=0).double(), torch.randn(2, 3, 3, 64, 64, dtype=torch.float64)
    other = copy.deepcopy(model)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    to_channels_last(other, CPU, for_training=True)
    kinds = {type(module) for module in other.modules() if getattr(module, "kernel_size", 0) == (1, 1, 1)}
    assert PointwiseConv3d in kinds
    assert nn.Conv3d not in kinds
    assert has_state(other, model.state_dict())
    expected, values = logits_and_gradients(model, clips), logits_and_gradients(other, clips)
    for name, value in values.items():
        assert relative(value, expected[name]) < 1e-6, name
    assert torch.equal(fuse(other.float(), CPU)(clips.float()), fuse(model.float(), CPU)(clips.float()))


def test_training_kernels_with_avx2(monkeypatch):
    def trains_in_3d():
        model = make_model()
        to_channels_last(model, CPU, for_training=True)
        return has_3d_kernels(model)

    assert trains_in_3d() == (torch.backends.cpu.get_cpu_capability() != "AVX2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not trains_in_3d()


@pytest.mark.usefixtures("two_threads")  # with one thread, torch computes 1x1x1 convolutions in NCTHW
def test_channels_last_stays_through_the_network():
    """If one layer returned another layout, the others would copy, or take slow kernels."""
    model, clips = make_model(dropout=0), torch.randn(2, 3, 3, 64, 64)
    plain = copy.deepcopy(model)
    to_channels_last(model, CPU)
    assert has_state(model, plain.state_dict())
    layouts = {"forward": [], "backward": []}

    def look(module, args, output):
        if output.ndim == 5:
            layouts["forward"].append(output.stride(1) == 1)
            output.register_hook(lambda gradient: layouts["backward"].append(gradient.stride(1) == 1))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    values, expected = logits_and_gradients(model, clips), logits_and_gradients(plain, clips)
    assert len(layouts["forward"]) == 11 + 9 + 7 + 2  # convolutions, batch norms, ReLUs and empty stages
    assert all(layouts["forward"])
    # The exception is the last ReLU's gradient, which comes from the average over height and width.
    assert layouts["backward"].count(False) == 1
    assert relative(values["logits"], expected["logits"]) < 1e-5
    for name, value in values.items():  # batch norm over few values magnifies rounding
        assert relative(value, expected[name]) < 2e-2, name


# ---------------------------------------------------------------------------------------------------------
# Memory of the process

# Prints resident megabytes before, with and after a tensor of 200 MB.
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


@pytest.mark.slow
def test_freed_memory_is_kept():
    if platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists():
        pytest.skip("needs glibc and /proc")
    command = [sys.executable, "-c", MEMORY]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    has_compiler, *lines = process.stdout.splitlines()
    assert has_compiler == "False"  # its import takes most of a second
    before, with_it, after = map(int, lines[0].split())
    assert before + 180 < with_it
    assert after < with_it - 180, "without the switch, it is returned to the system"
    before, with_it, after = map(int, lines[1].split())
    assert before + 180 < with_it < after + 20


# ---------------------------------------------------------------------------------------------------------
# Compilation: two clips in every batch, so that each function is compiled once


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """Compile quickly. torch keeps g++'s precompiled header for later runs, and nothing else."""
    if not shutil.which("g++") or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("needs a C++ compiler and Python's headers")
    from torch._inductor import config

    # Optimising takes most of the time, vectors half of the rest.
    quick = config.patch({"aot_inductor.debug_compile": True, "cpp.vec_isa_ok": False})
    with pytest.MonkeyPatch.context() as patch, quick:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield config


@pytest.mark.slow
def test_compiled_step_is_the_eager_step(compiler):
    """With the same dropout masks: other masks change the gradients by more."""
    model, clips = make_model(2), torch.randint(256, (2, 2, 64, 64, 3), dtype=torch.uint8)
    model.base_model.layer4 = nn.Identity()  # which would take most of the time
    model.new_fc = nn.Linear(256, 5)
    gradients = []
    # PyTorch's functions instead of C++, which the evaluation below compiles. Older releases always compile.
    with compiler.patch({"fallback_by_default": True} if hasattr(compiler, "fallback_by_default") else {}):
        for compiled in (False, True):
            pixel_model = PixelModel(copy.deepcopy(model), compiled=compiled).train()
            torch.manual_seed(1)
            pixel_model(clips).sum().backward()
            gradients.append(torch.cat([value.grad.flatten() for value in pixel_model.parameters()]))
    assert relative(*gradients) < 1e-2


@pytest.mark.slow
def test_precision_and_compilation_of_an_evaluation(compiler, tmp_path, monkeypatch):
    monkeypatch.setitem(DEPTHS, "resnet14", (0, 0, 0, 1))  # compiles one block
    root = make_dataset(tmp_path / "data", train=2, val=2, frames=6)
    weights = tmp_path / "model.pth.tar"
    options = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2}
    save_checkpoint(weights, {"state_dict": make_model(8, 4, input_size=64).state_dict(), "options": options})

    def evaluate(*more):
        """Scores, and precision from the log."""
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        data = ("--dataset", "somethingv1", "--root_path", root, "-j", 0, "-b", 2, "--input_size", 64)
        process = call("test_models.py", "--weights", weights, *data, "--save_scores", path, *more)
        assert process.returncode == 0, process.stderr
        precision = re.search(r"batch of \d+; (.*)", process.stdout)[1]
        return torch.from_numpy(np.load(path)["scores"]), re.sub(r" \(.*\)", "", precision)

    expected, precision = evaluate()
    assert precision == "float32"
    for options, expected_precision in (
        ("--compile", "float32, compiled"),
        ("--fast", "bf16" if has_instructions(CPU, "bf16") else "float32"),
        ("--amp=bf16", "bf16"),
    ):
        scores, precision = evaluate(options)
        assert precision == expected_precision
        low, high = (1e-4, 2e-2) if precision == "bf16" else (0, 1e-5)
        assert low <= relative(scores, expected) < high


@pytest.mark.slow
def test_broken_compiler_is_one_line(compiler, tmp_path, monkeypatch):
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\necho 'a.cpp:1: fatal error: no such file' >&2\necho ended >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make_model(1, dropout=0)
    model.base_model.layer1 = model.base_model.layer4 = nn.Identity()  # it is not compiled anyway
    model.base_model.fc = nn.Linear(64, 5)
    clips = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8)
    patch = compiler.patch({"cpp.cxx": (None, str(failing))})
    with patch, torch.inference_mode(), pytest.raises(UserError) as error:
        PixelModel(model, compiled=True).eval()(clips)
    assert re.fullmatch(r"--compile: .*", str(error.value))  # "." matches no line break
