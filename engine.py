"""The two loops: one epoch of training, one pass of evaluation."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from frames.resize import DecodedClips, resize_clips
from inference.fuse import compile_model, compiler_errors, float32_convolutions
from models import TemporalModel
from training.optim import set_learning_rate
from utils.cli import log
from utils.distributed import World
from utils.metrics import ClipMeters, ProgressLog, Result, average_views, batch_sums, summarise
from utils.precision import DTYPES

if TYPE_CHECKING:  # at run time this module needs nothing but torch, torchvision, numpy, pillow and tqdm
    from dataset import Batch
    from training.run import TrainState


class PixelModel(nn.Module):
    """A model with its input and precision: normalises pixels and calls the model under autocast.

    Autocast is entered here and not by the caller, because the threads of DataParallel do not inherit its
    dtype.

    Input:  uint8, batch x frames x height x width x channel (RGB)
    Output: float32, batch x classes (logits)

    Args:
        model: takes batch x frames x channel x height x width; has `input_mean` and `input_std`.
        amp: a key of `utils.precision.DTYPES`, for autocast; 'off' computes in the type of the weights.
    """

    def __init__(self, model: TemporalModel, amp: str = "off") -> None:
        super().__init__()
        self.model = model
        self.amp = amp
        for name in ("input_mean", "input_std"):
            values = torch.tensor(getattr(model, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        clips = clips.permute(0, 1, 4, 2, 3).float().div(255).sub(self.input_mean).div(self.input_std)
        dtype = None if self.amp == "off" else DTYPES[self.amp]
        with torch.autocast(clips.device.type, dtype=dtype, enabled=self.amp != "off"):
            return self.model(clips).float()


class Step(NamedTuple):
    """A step of `train_one_epoch`.

    Attributes:
        clips: the clips of its first batch; None if all clips of the step are excluded.
        labels: their labels.
        curves: named values for TensorBoard, for the steps that are logged.
    """

    clips: torch.Tensor | None
    labels: torch.Tensor | None
    curves: dict[str, float]


def train_one_epoch(
    model: nn.Module, loader: "Iterable[Batch]", state: "TrainState", args: Namespace
) -> Iterator[Step]:
    """Train for an epoch, or for the rest of it (paper, section 4.2).

    Args:
        model: the `PixelModel` around `state.model`, wrapped for several devices (`World.wrap`).
        loader: the batches of this process from `state.step` on.
        state: state of the run. After each step, its `step` is the number of finished steps.
        args: options of main.py.

    Yields:
        Each finished step.

    Raises:
        DivergedError: the loss is not finite. It is checked at the logged steps and before saving.
    """
    world, optimizer, scaler = state.world, state.optimizer, state.scaler
    num_steps = len(state.batch_sizes)
    model.train()
    if args.freeze_bn:
        freeze_batch_norm(model)
    batches = iter(loader)
    progress = ProgressLog(world, f"epoch {state.epoch}", state.step, num_steps)
    for step in progress:
        batch_sizes = state.batch_sizes[step]
        if not batch_sizes:  # all clips of the step are excluded
            state.step = step + 1
            yield Step(None, None, {})
            continue

        # The learning rate changes within an epoch; dropout depends on the seed and the step alone.
        rate = set_learning_rate(optimizer, args, state.epoch + step / num_steps)
        torch.manual_seed(derive_seed(args.seed, state.epoch, step, world.rank))

        # Forward and backward, for each batch of the step
        optimizer.zero_grad()
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        first_batch = None
        for number in range(len(batch_sizes)):
            with progress.loading():
                batch = next(batches)
            clips, labels = to_device(batch, world.device)
            first_batch = first_batch or (clips, labels)
            # The processes exchange gradients in the last batch of the step only.
            is_last = number == len(batch_sizes) - 1
            without_exchange = model.no_sync() if world.size > 1 and not is_last else nullcontext()
            with without_exchange, compiler_errors(), world.lost_process():
                logits = model(clips)
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                # DistributedDataParallel averages the gradients of the processes. For the gradient of the
                # mean loss over the step's clips, each process's sum is multiplied by
                # (number of processes) / (clips of the step over all processes).
                scaler.scale(loss * (world.size / sum(batch_sizes))).backward()
            sums += batch_sums(loss.detach(), logits.detach(), labels)

        # Clip the gradient and update the weights
        scaler.unscale_(optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip_gradient)
        scaler.step(optimizer)
        scaler.update()

        # Log. Reading a value waits for the GPU, so that happens every `print_freq` steps only.
        state.finish_step(step, sums, gradient_norm)
        progress.update(sum(batch_sizes))
        curves = {}
        if step % args.print_freq == 0:
            state.watch.check()
            title = f"Epoch: [{state.epoch}][{step}/{num_steps}], lr: {rate:.5f}"
            curves = progress.log(title, state.describe_progress(), args.epochs - state.epoch - 1)
            curves |= state.last_averages() | {"lr": rate, "gradient_norm": float(gradient_norm)}
        yield Step(*first_batch, {f"train/{name}": value for name, value in curves.items()})


class Predictor:
    """The inference core: computes the logits of a batch of clips, averaged over the views of each video.

    Float32 convolutions are computed in float32, without TF32.

    Args:
        model: a fused model (`inference.fuse.fuse`) or an `OnnxModel`.
        world: the devices.
        compiled: whether to compile the model. The last digits of the logits differ then.
        mirrored: see `utils.metrics.average_views`.
        max_clips: the most clips to compute at once. A video may have more views than that.
        with_features: also return the input of the classifier.
    """

    def __init__(
        self,
        model: TemporalModel,
        world: World,
        compiled: bool = False,
        mirrored: Sequence[int] | None = None,
        max_clips: int | None = None,
        with_features: bool = False,
    ) -> None:
        self.device = world.device
        self.model = world.wrap(PixelModel(model).eval())
        if compiled:
            compile_model(self.model)
        self.mirrored = mirrored
        self.max_clips = max_clips
        self.features = _ClassifierInputs(model, world.devices) if with_features else None

    @torch.inference_mode()
    @float32_convolutions()
    def __call__(self, clips: torch.Tensor | DecodedClips) -> list[torch.Tensor]:
        """Compute the logits of clips.

        Args:
            clips: uint8, videos x (views x) frames x height x width x channel; or decoded clips.

        Returns:
            The logits, videos x classes, on the device; with `with_features` also the features.

        Raises:
            UserError: the model cannot be compiled.
        """
        (clips,) = to_device([clips], self.device)
        shape = clips.shape[:-4]  # videos, or videos x views
        has_views = len(shape) == 2
        outputs: list[list[torch.Tensor]] = []
        for part in clips.flatten(0, len(shape) - 1).split(self.max_clips or shape.numel()):
            with compiler_errors():
                logits = self.model(part)
            outputs.append([logits, self.features.take_means()] if self.features else [logits])
        logits, *features = map(torch.cat, zip(*outputs, strict=True))
        if has_views:
            logits = average_views(logits.unflatten(0, shape), self.mirrored)
            features = [values.unflatten(0, shape).mean(dim=1) for values in features]
        return [logits, *features]


def evaluate(
    loader: DataLoader,
    predictor: Predictor,
    world: World,
    print_freq: int,
    should_stop: Callable[[], int] | None = None,
) -> Result | None:
    """Score every video of a list once.

    Args:
        loader: the batches of this process (`dataset.evaluation_batches`).
        predictor: computes the logits.
        world: this process and the others.
        print_freq: log a line every so many batches.
        should_stop: called after each batch; a number other than 0 in any process stops the evaluation.

    Returns:
        The same result in every process, in the order of the list; None if stopped.
    """
    meters = ClipMeters(World(0, 1, world.devices))  # of this process, for the log
    outputs: list[tuple[torch.Tensor, ...]] = []
    batches = iter(loader)
    num_batches = world.all_reduce_max(len(loader))[0]
    progress = ProgressLog(world, "test", 0, num_batches)
    for step in progress:
        if step < len(loader):  # another process may have one batch more
            clips, labels = next(batches)
            logits, *features = predictor(clips)
            has_labels = bool((labels >= 0).all())
            labels = labels.to(world.device, non_blocking=True)
            if has_labels:
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                meters.update(batch_sums(loss, logits, labels))
            outputs.append((logits, labels, *features))
        progress.update(0)
        if step % print_freq == 0 and world.is_main:
            averages = f"\t{meters}" if has_labels else ""
            log.info(f"Test: [{step}/{num_batches}]\tTime {progress.batch_time}{averages}")
        if should_stop and world.all_reduce_max(should_stop())[0]:
            return None
    shares = world.all_gather([tuple(tensor.cpu() for tensor in output) for output in outputs])
    in_order = [share[step] for step in range(num_batches) for share in shares if step < len(share)]
    return summarise(*(torch.cat(tensors) for tensors in zip(*in_order, strict=True)))


def to_device(batch: "Batch", device: torch.device) -> list[torch.Tensor]:
    """Copy a batch to the device while a GPU still computes the one before, and resize it there if needed.

    Args:
        batch: clips, and possibly labels.
        device: the model's.

    Returns:
        The clips (uint8, batch x (views x) frames x height x width x channel), and the labels.
    """
    clips, *labels = batch
    is_decoded = isinstance(clips, DecodedClips)
    tensors = [clips.pixels if is_decoded else clips, *labels]
    if device.type == "cuda":
        stream = _copy_stream(device)
        with torch.cuda.stream(stream):
            tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for tensor in tensors:
            tensor.record_stream(computing)
    pixels, *labels = tensors
    return [resize_clips(clips._replace(pixels=pixels)) if is_decoded else pixels, *labels]


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalise with batch norm's running statistics in training, and keep them (mmaction2's `norm_eval`)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def derive_seed(*numbers: int) -> int:
    """A seed for torch that differs for each combination of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class _ClassifierInputs:
    """Keeps the input of the classifier of each call, on each device that has a share of the batch.

    Args:
        model: a hook is added to its classifier; DataParallel copies it to the replicas.
        devices: the devices that share a batch, in order.
    """

    def __init__(self, model: TemporalModel, devices: Sequence[torch.device]) -> None:
        self.num_segments = model.num_segments
        self.devices = devices
        self.shares: dict[torch.device, torch.Tensor] = {}
        model.classifier.register_forward_pre_hook(self._keep)

    def _keep(self, classifier: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.shares[inputs[0].device] = inputs[0]

    def take_means(self) -> torch.Tensor:
        """The mean over the frames of each clip of the last call: clips x features, float32."""
        shares = [self.shares.pop(device) for device in self.devices if device in self.shares]
        frames = torch.cat([share.to(self.devices[0]) for share in shares]).float()
        return frames.unflatten(0, (-1, self.num_segments)).mean(dim=1)
