"""Training, resuming and evaluating on the GPUs of this machine, if it has any."""

import ctypes
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start_ranks
from helpers import REPOSITORY, VISIBLE_GPUS, assert_one_line_error, run
from resume_harness import NAME, differences
from synthetic import make_dataset
from video_files import write_video


def count_gpus() -> int:
    """Ask a process of its own, since this one sees no GPU, unless there is no driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not Path("/dev/kfd").exists():  # AMD's driver
            return 0
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    command, env = [sys.executable, "-c", code], os.environ | VISIBLE_GPUS
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


GPUS = count_gpus()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(GPUS == 0, reason="needs a GPU")]
needs_two = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("gpu"), train=24, val=6, frames=6)


def training_options(root: Path, out: Path, *more: object) -> list[str]:
    options = (
        "--dataset somethingv1 --arch resnet14 --input_size 64 --num_segments 4 -b 8 --lr 0.001 -j 1 -p 1 "
        "--epochs 1"
    )
    return ["--root_path", str(root), "--checkpoint_dir", str(out), *options.split(), *map(str, more)]


def run_training(root: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return run("main.py", *training_options(root, out, *more), env=VISIBLE_GPUS)


def train(root: Path, out: Path, *more: object) -> str:
    """Train without an error; return the log."""
    process = run_training(root, out, *more)
    assert process.returncode == 0, process.stderr
    return process.stdout


def train_ranks(root: Path, out: Path, *more: object) -> str:
    """Train in two processes with a GPU each; return the log."""
    ranks = start_ranks(2, "main.py", *training_options(root, out, *more), env=VISIBLE_GPUS)
    done = [rank.finish() for rank in ranks]
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    return done[0].stdout


def losses(log: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^Epoch:.*Loss ([\d.]+)", log, re.MULTILINE)]


def checkpoint_of(out: Path, kind: str = "checkpoint") -> Path:
    return out / "checkpoint" / f"{NAME}_{kind}.pth.tar"


def load(out: Path) -> dict:
    return torch.load(checkpoint_of(out), weights_only=True)


def run_code(code: str) -> list[str]:
    """Run code in a process that sees the GPUs; return the words that it prints."""
    command, env = [sys.executable, "-c", code], os.environ | VISIBLE_GPUS
    process = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """A run on one GPU: its losses, and its best checkpoint."""
    out = tmp_path_factory.mktemp("plain")
    log = train(root, out, "--gpus", 0)
    assert "device: CPU" not in log
    return Namespace(losses=losses(log), weights=checkpoint_of(out, "best"))


# One GPU: training


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_deterministic_resume_is_bit_exact(root, tmp_path, amp):
    """With fp16, the scale of the loss continues, too."""
    options = ("--gpus", 0, "--deterministic", "--amp", amp)
    log = train(root, tmp_path / "whole", *options, "--epochs", 2)
    train(root, tmp_path / "parts", *options)
    resumed = train(root, tmp_path / "parts", *options, "--epochs", 2, "--resume", "auto")
    assert losses(resumed) == losses(log)[3:]
    one, other = load(tmp_path / "whole"), load(tmp_path / "parts")
    for part in ("state_dict", "optimizer", "scaler", "history"):
        assert differences(one[part], other[part]) == []


GRADIENTS = """
import torch
from torch.nn.functional import cross_entropy
from inference.fuse import to_channels_last
from models import TemporalModel

torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
torch.manual_seed(0)
clips, labels = torch.randn(4, 4, 3, 64, 64), torch.arange(4)
state_dict = TemporalModel(4, 4, backbone="resnet14", dropout=0).state_dict()

def gradient(device, dtype, channels_last=False):
    model = TemporalModel(4, 4, backbone="resnet14", dropout=0)
    model.load_state_dict(state_dict)
    model.to(device, dtype)
    if channels_last:
        to_channels_last(model, torch.device(device), for_training=True)
    cross_entropy(model(clips.to(device, dtype)), labels.to(device)).backward()
    return torch.cat([parameter.grad.flatten().double().cpu() for parameter in model.parameters()])

expected = gradient("cpu", torch.float64)
for channels_last in (False, True):
    found = gradient("cuda", torch.float32, channels_last)
    print(float((found - expected).norm() / expected.norm()))
"""


def test_gradients_equal_those_in_float64():
    for error in map(float, run_code(GRADIENTS)):  # NCTHW, channels last
        assert error < 1e-2


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(root, plain, tmp_path, amp):
    found = losses(train(root, tmp_path, "--gpus", 0, "--amp", amp))
    assert found == pytest.approx(plain.losses, rel=0.05)
    assert found != plain.losses


@pytest.mark.parametrize("more", [["--compile"], ["--compile", "--amp", "bf16"]], ids=["compile", "bf16"])
def test_compiled_training_follows_the_baseline(root, plain, tmp_path, more):
    assert losses(train(root, tmp_path, "--gpus", 0, *more)) == pytest.approx(plain.losses, rel=0.05)


def test_frozen_batch_norm_trains(root, plain, tmp_path):
    found = losses(train(root, tmp_path, "--gpus", 0, "--freeze_bn"))
    assert len(found) == len(plain.losses)
    assert all(np.isfinite(found))
    assert found != plain.losses


STEPS = """
import sys
from argparse import Namespace
import torch
from engine import PixelModel, train_one_epoch
from inference.fuse import to_channels_last
from models import TemporalModel
from training.optim import make_optimizer
from training.state import TrainState
from utils.distributed import init_distributed

num_steps = 220
world = init_distributed([0])
args = Namespace(lr=0.001, momentum=0.9, weight_decay=0, clip_gradient=20.0, seed=0, lr_schedule="step",
                 lr_steps=[], warmup_epochs=0, epochs=1, freeze_bn=False, print_freq=10**9)
model = TemporalModel(4, 2, backbone="resnet14").to(world.device)
to_channels_last(model, world.device, for_training=True)
scaler = torch.amp.GradScaler("cuda", enabled=False)
state = TrainState(model, make_optimizer(model, args), scaler, world, {})
state.batch_sizes = [[4]] * num_steps
batch = torch.zeros(4, 2, 64, 64, 3, dtype=torch.uint8).pin_memory(), torch.arange(4).pin_memory()
pixel_model = world.wrap(PixelModel(model, sys.argv[1]), for_training=True)
memory = []
for step in train_one_epoch(pixel_model, [batch] * num_steps, state, args):
    torch.cuda.set_sync_debug_mode("error")
    if state.step in (20, num_steps):
        memory += [torch.cuda.memory_allocated(), torch.cuda.memory_reserved()]
print(*memory)
"""


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_steps_do_not_wait_for_the_gpu_and_memory_stays_flat(amp):
    code = STEPS.replace("sys.argv[1]", repr(amp))
    allocated, reserved, allocated_later, reserved_later = map(int, run_code(code)[-4:])
    assert allocated_later == allocated
    assert reserved_later == reserved


RESIZE = """
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


def test_gpu_resizes_like_the_cpu(root, plain, tmp_path):
    run_code(RESIZE)
    found = losses(train(root, tmp_path, "--gpus", 0, "--resize", "workers"))
    assert found == pytest.approx(plain.losses, rel=1e-3)


def test_unreadable_frame_is_one_line(tmp_path):
    """On its way to a GPU a batch passes one more thread, which pins its memory."""
    root = make_dataset(tmp_path / "data", train=8, val=4, frames=3)
    frames = sorted((root / "somethingv1" / "20bn-something-something-v1" / "5").iterdir())
    for frame in frames:
        frame.write_bytes(b"")
    refused = run_training(root, tmp_path / "run", "--gpus", 0)
    assert_one_line_error(refused, "error: ", f"{frames[0].parent}/")


# One GPU: evaluation


def scores(root: Path, weights: Path, path: Path, env: dict[str, str], *more: object) -> np.ndarray:
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
    process = run("test_models.py", *options, "--save_scores", path, *more, env=env)
    assert process.returncode == 0, process.stderr
    with np.load(path) as content:
        return content["scores"]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("options", "tolerance"), [((), 1e-4), (("--fast",), 2e-2), (("--test_crops", 3), 1e-4)]
)
def test_evaluation_gives_the_scores_of_the_cpu(root, plain, tmp_path, options, tolerance):
    views = options if "--test_crops" in options else ()
    expected = scores(root, plain.weights, tmp_path / "cpu.npz", {}, *views)
    found = scores(root, plain.weights, tmp_path / "gpu.npz", VISIBLE_GPUS, "--gpus", 0, *options)
    assert relative(found, expected) < tolerance


def test_video_program_gives_the_scores_of_the_cpu(plain, tmp_path):
    """In float32, not in TF32."""
    write_video(tmp_path / "a.mp4", 30)
    results = []
    for name, env in (("cpu", {}), ("gpu", VISIBLE_GPUS)):
        options = ("--weights", plain.weights, tmp_path / "a.mp4", "--json", tmp_path / f"{name}.json")
        process = run("test_video.py", *options, env=env)
        assert process.returncode == 0, process.stderr
        text = (tmp_path / f"{name}.json").read_text()
        results.append([float(number) for number in re.findall(r"\d\.\d+(?:e-?\d+)?", text)])
    assert len(results[0]) > 2
    assert results[1] == pytest.approx(results[0], abs=1e-5)


FUSED = """
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


def test_fused_model_gives_the_logits_of_the_cpu():
    in_float32, in_bf16 = map(float, run_code(FUSED))
    assert in_float32 < 1e-4
    assert in_bf16 < 2e-2


# Two GPUs


@needs_two
def test_data_parallel_follows_one_gpu(root, plain, tmp_path):
    log = train(root, tmp_path / "run", "--gpus", 0, 1)
    assert "DataParallel" in log
    assert losses(log) == pytest.approx(plain.losses, rel=0.1)  # batch norm sees half the clips
    assert not any(name.startswith("module.") for name in load(tmp_path / "run")["state_dict"])
    refused = run_training(root, tmp_path / "compiled", "--gpus", 0, 1, "--compile")
    assert_one_line_error(refused, "--compile", "torchrun")


DTYPES = """
import torch
from engine import PixelModel
from inference.fuse import to_channels_last
from models import TemporalModel
from utils.distributed import init_distributed

world = init_distributed([0, 1])
model = TemporalModel(4, 2, backbone="resnet14").to(world.device)
to_channels_last(model, world.device, for_training=True)
seen = set()
def remember(module, inputs, output):
    seen.add(f"{output.device}:{output.dtype}")
model.base_model.layer4.register_forward_hook(remember)
ddp_model = world.wrap(PixelModel(model, "bf16"), for_training=True)
logits = ddp_model(torch.zeros(4, 2, 64, 64, 3, dtype=torch.uint8))
logits.sum().backward()
print(*sorted(seen))
"""


@needs_two
def test_data_parallel_computes_in_bf16():
    assert run_code(DTYPES) == ["cuda:0:torch.bfloat16", "cuda:1:torch.bfloat16"]


@needs_two
def test_data_parallel_evaluates_like_one_gpu(root, plain, tmp_path):
    options = ("--test_crops", 3, "--gpus")
    one, two = (
        scores(root, plain.weights, tmp_path / f"{len(gpus)}.npz", VISIBLE_GPUS, *options, *gpus)
        for gpus in ((0,), (0, 1))
    )
    assert relative(two, one) < 1e-5


@needs_two
def test_second_gpu_alone_leaves_the_first_alone(root, tmp_path):
    """`--gpus 1` makes no CUDA context on GPU 0, which may be someone else's."""
    words = ["main.py", *training_options(root, tmp_path, "--gpus", 1)]
    code = f"""
import runpy, sys, torch
sys.argv = {words!r}
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as stop:
    assert not stop.code
print("first:", torch._C._cuda_hasPrimaryContext(0), "second:", torch._C._cuda_hasPrimaryContext(1))
"""
    assert run_code(code)[-4:] == ["first:", "False", "second:", "True"]


@needs_two
@pytest.mark.parametrize("option", ["--sync_bn", "--freeze_bn"])
def test_two_processes_train_like_one(root, tmp_path, option):
    more = ("--dropout", 0, *(["--freeze_bn"] if option == "--freeze_bn" else []))
    expected = losses(train(root, tmp_path / "one", *more, "--gpus", 0))
    found = losses(train_ranks(root, tmp_path / "two", "--dropout", 0, option))
    assert found == pytest.approx(expected, rel=1e-2)


@needs_two
def test_two_processes_without_sync_bn_train(root, plain, tmp_path):
    found = losses(train_ranks(root, tmp_path))
    assert found == pytest.approx(plain.losses, rel=0.1)


@needs_two
def test_two_processes_evaluate_like_one(root, plain, tmp_path):
    one = scores(root, plain.weights, tmp_path / "one.npz", VISIBLE_GPUS, "--gpus", 0)
    options = ("--weights", plain.weights, "--dataset", "somethingv1", "--root_path", root, "-j", 0)
    ranks = start_ranks(
        2, "test_models.py", *options, "--save_scores", tmp_path / "two.npz", env=VISIBLE_GPUS
    )
    assert [rank.finish().returncode for rank in ranks] == [0, 0]
    with np.load(tmp_path / "two.npz") as content:
        assert relative(content["scores"], one) < 1e-5


@needs_two
def test_error_of_one_process_ends_both(tmp_path):
    """NCCL must not wait for the process that has ended."""
    root = make_dataset(tmp_path / "data", train=8, val=4, frames=3)
    frames = sorted((root / "somethingv1" / "20bn-something-something-v1" / "5").iterdir())
    for frame in frames:
        frame.write_bytes(b"")
    ranks = start_ranks(2, "main.py", *training_options(root, tmp_path / "run"), env=VISIBLE_GPUS)
    while all(rank.is_running for rank in ranks):
        ranks[0].wait(0.1)
    first = next(rank for rank in ranks if not rank.is_running)
    other = next(rank for rank in ranks if rank is not first)
    other.wait(10)
    other.kill()  # what torchrun does if it still waits for a collective
    assert_one_line_error(first.finish(), f"{frames[0].parent}/")
    other.finish()


@needs_two
def test_run_resumes_with_fewer_gpus(root, tmp_path):
    train_ranks(root, tmp_path)
    process = run_training(root, tmp_path, "--epochs", 2, "--resume", "auto", "--gpus", 0)
    assert process.returncode == 0, process.stderr
    (warning,) = process.stderr.splitlines()
    assert "1 devices" in warning
    assert len(load(tmp_path)["history"]) == 2
