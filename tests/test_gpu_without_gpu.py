"""Defects that only GPUs show, tested without one: with threads, patched device counts and fake tensors."""

import threading
from argparse import Namespace

import numpy as np
import pytest
import torch
from forked import REPOSITORY
from helpers import assert_one_line_error, run
from synthetic import make_dataset
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine import PixelModel, Predictor, train_one_epoch
from frames.resize import DecodedClips, resize_clips
from inference.fuse import fuse, to_channels_last
from models import TemporalModel
from training.optim import make_optimizer
from training.state import TrainState
from utils.cli import UserError, run_program
from utils.distributed import DataParallel, World, init_distributed, leave

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPTIONS = {
    "lr": 0.001,
    "momentum": 0.9,
    "weight_decay": 0,
    "clip_gradient": 20.0,
    "seed": 0,
    "lr_schedule": "step",
    "lr_steps": [],
    "warmup_epochs": 0,
    "epochs": 1,
    "freeze_bn": False,
    "print_freq": 9,
}


@pytest.fixture
def two_gpus(monkeypatch):
    """Two visible GPUs; the value lists the devices that become the current one."""
    devices = []
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", devices.append)
    return devices


def small_model():
    torch.manual_seed(0)
    return TemporalModel(5, 2, backbone="resnet14")


def pixels(videos=2, size=32):
    return torch.randint(0, 256, (videos, 2, size, size, 3), dtype=torch.uint8)


class OneThread(nn.Module):
    """Calls the model as DataParallel does: in a thread, under autocast with the default dtype."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, clips):
        enabled, outputs = torch.is_autocast_enabled("cpu"), []

        def work():
            with torch.autocast("cpu", enabled=enabled):
                outputs.append(self.module(clips))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return outputs[0]


def test_threads_train_in_the_requested_precision():
    model, dtypes = small_model(), []
    to_channels_last(model, CPU, for_training=True)
    model.base_model.layer1.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    args = Namespace(**OPTIONS)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, make_optimizer(model, args), scaler, World(0, 1, [CPU]), {})
    state.batch_sizes = [[2]]
    batch = [pixels(), torch.zeros(2, dtype=torch.long)]
    list(train_one_epoch(OneThread(PixelModel(model, "bf16")), [batch], state, args))
    assert dtypes == [torch.bfloat16]


def test_predictor_computes_without_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, allowed = fuse(small_model(), CPU), []
    model.register_forward_pre_hook(lambda module, inputs: allowed.append(torch.backends.cudnn.allow_tf32))
    Predictor(model, World(0, 1, [CPU]))(pixels())
    assert allowed == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("options", [{"sync_bn": True}, {"compiled": True}])
def test_several_gpus_in_one_process_are_refused(two_gpus, options):
    with pytest.raises(UserError, match="torchrun"):
        init_distributed(None, **options)
    assert init_distributed([1], **options).devices == two_gpus == [torch.device("cuda", 1)]


def test_single_process_selects_its_gpu(two_gpus):
    init_distributed([1])
    assert two_gpus == [torch.device("cuda", 1)]
    with pytest.raises(UserError, match="--gpus"):
        init_distributed([0, 0])


def test_replica_computes_in_channels_last():
    model = fuse(small_model().eval(), CUDA)
    expected = model(torch.ones(2, 2, 3, 64, 64))
    for weight in model.parameters():  # as in a replica: broadcast_coalesced loses the layout
        flat = torch._C._nn.flatten_dense_tensors([weight.data])
        weight.data = torch._C._nn.unflatten_dense_tensors(flat, [weight.data])[0]
    layouts = []
    model.base_model.layer1.register_forward_pre_hook(
        lambda module, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last_3d))
    )
    torch.testing.assert_close(model(torch.ones(2, 2, 3, 64, 64)), expected, rtol=0, atol=1e-6)
    assert layouts == [True]


def test_fused_model_has_no_3d_kernels():
    kinds = {type(module) for module in fuse(small_model(), CUDA, torch.bfloat16).modules()}
    assert not kinds & {nn.Conv3d, nn.MaxPool3d, nn.BatchNorm3d}


def test_training_on_gpus_uses_2d_kernels():
    model = small_model()
    to_channels_last(model, CUDA, for_training=True)
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {nn.Conv3d, nn.MaxPool3d}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = PixelModel(model, "bf16").to_empty(device="cuda")
        logits = fake(torch.empty(2, 2, 64, 64, 3, dtype=torch.uint8, device="cuda"))
        assert mode is not None
        assert (logits.shape, logits.dtype, logits.device.type) == ((2, 5), torch.float32, "cuda")


def decoded_clips(videos=3):
    rng = np.random.default_rng(0)
    shapes, arrays, start = [], [], 0
    for number in range(videos):
        height, width = 40 + 8 * number, 50 + number
        arrays.append(rng.integers(0, 256, 2 * height * width * 3, dtype=np.uint8))
        shapes.append([start, 2, height, width])
        start += arrays[-1].size
    views = [
        [[0, 0, width, height, 48, 40, 3, 4, number % 2]]
        for number, (_, _, height, width) in enumerate(shapes)
    ]
    order = np.array([[0, 1]] * videos)
    return DecodedClips(
        torch.from_numpy(np.concatenate(arrays)), np.array(shapes), order, np.array(views), 32, 2
    )


@pytest.mark.parametrize("batch", [pixels(3), decoded_clips()], ids=["pixels", "decoded"])
def test_data_parallel_scatters_uint8(monkeypatch, batch):
    model = DataParallel(PixelModel(small_model()))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking=False: self)
    shares, kwargs = model.scatter((batch,), {}, [0, 1])
    assert kwargs == [{}, {}]
    joined = torch.cat([resize_clips(s) if isinstance(s, DecodedClips) else s for (s,) in shares])
    assert torch.equal(joined, resize_clips(batch) if isinstance(batch, DecodedClips) else batch)


def test_devices_draw_different_dropout(monkeypatch):
    seeds = []
    monkeypatch.setattr("torch.cuda.device", lambda device: torch.no_grad())
    monkeypatch.setattr("torch.cuda.manual_seed", seeds.append)
    World(0, 1, [torch.device("cuda", number) for number in range(3)]).seed(0, 1, 2)
    assert len({*seeds, torch.initial_seed()}) == 3
    World(2, 4, [CPU]).seed(0, 1, 2)  # the third process of torchrun draws what the third GPU draws
    assert torch.initial_seed() == seeds[1]


def test_last_smaller_batch_is_not_compiled(monkeypatch):
    shapes = []
    monkeypatch.setattr(
        "engine.compile_function", lambda compute: lambda x: (shapes.append(len(x)), compute(x))[1]
    )
    model = PixelModel(small_model(), compiled=True).eval()
    sizes = [len(model(pixels(videos))) for videos in (2, 2, 1)]
    assert (sizes, shapes) == ([2, 2, 1], [2, 2])


def test_fp16_scale_that_only_falls_is_divergence():
    args = Namespace(**OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2e-3)
    state = TrainState(small_model(), make_optimizer(small_model(), args), scaler, World(0, 1, [CPU]), {})
    state.check_loss()
    scaler.scale(torch.ones(()))  # creates the scale
    scaler.update(9e-4)
    with pytest.raises(UserError, match="--lr"):
        state.check_loss()


@pytest.mark.parametrize("is_error", [True, False])
def test_process_group_is_destroyed_after_success_only(monkeypatch, is_error):
    calls = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: "destroy" not in calls)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setattr("os._exit", lambda status: calls.append(status))

    def main():
        if is_error:
            raise UserError("an unreadable frame")
        leave()

    with pytest.raises(SystemExit) as exit_:
        run_program(main)
    assert (calls, exit_.value.code) == (([1], 1) if is_error else (["destroy"], None))


PINNED = """
import os, resource, sys
sys.path[:0] = [{repository!r}]
import torch
from dataset import VideoDataSet
from loader import ClipLoader
from transforms import Stack
from utils.cli import run_program

def main():
    torch.cuda.is_available = torch.accelerator.is_available = lambda: True
    torch.accelerator.set_device_index = lambda index: None
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.current_accelerator = lambda *args, **kwargs: torch.device("cuda")
    torch.Tensor.pin_memory = lambda self, *args: self.clone()
    dataset = VideoDataSet({frames!r}, {list_file!r}, 4, "{{:05d}}.jpg", 1, Stack(), False, num_class=4)
    loader = ClipLoader(dataset, [[index % 4] for index in range(40)], 2)
    assert loader.pin_memory
    batches = iter(loader)
    next(batches)
    if sys.argv[1] == "kill":
        loader._iterator._workers[0].kill()
    else:
        limit = os.dup(0) + int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    for _ in batches:
        pass

run_program(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "culprit"),
    # The connection to a worker fails; a file that the worker sends does not arrive.
    [("0", "Too many open files"), ("4", "Too many open files"), ("kill", "was killed")],
)
def test_error_in_the_thread_that_pins_is_one_line(word, culprit, tmp_path):
    """torch would print its traceback, too."""
    root = make_dataset(tmp_path, train=0, val=4, frames=8) / "somethingv1"
    frames, list_file = root / "20bn-something-something-v1", root / "val_videofolder.txt"
    program = tmp_path / "program.py"
    values = {"repository": str(REPOSITORY), "frames": str(frames), "list_file": str(list_file)}
    program.write_text(PINNED.format(**values))
    assert_one_line_error(run(program, word), culprit)
