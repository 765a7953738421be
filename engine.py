"""One epoch of training, one pass of evaluation; where a batch moves to the device and is normalised."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import Batch
from frames.resize import DecodedClips, resize_clips
from inference.fuse import check_fused, compile_model, compiler_errors, float32_convolutions, fuse
from models import TemporalModel
from training.optim import learning_rate
from training.run import Interruption
from utils.cli import log
from utils.distributed import World
from utils.metrics import (
    AverageMeter,
    ClipMeters,
    LossWatch,
    Result,
    average_views,
    averages,
    batch_sums,
    duration,
    peak_memory,
    summarise,
)
from utils.precision import DTYPES


def to_device(batch: Batch, device: torch.device) -> list[torch.Tensor]:
    """Move a batch to the device, to a GPU while it still computes what it was given before; resize it there.

    Args:
        batch: of a `dataset.ClipLoader`, with or without labels.
        device: where the model is.

    Returns:
        The clips (uint8, batch x (views x) frames x height x width x channel), and their labels.
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
    moved, *labels = tensors
    return [resize_clips(clips._replace(pixels=moved)) if is_decoded else moved, *labels]


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def to_input(clips: torch.Tensor, model: TemporalModel) -> torch.Tensor:
    """Normalise clips by ImageNet's mean and standard deviation.

    Args:
        clips: uint8, batch x frames x height x width x channel (RGB), on the model's device.
        model: whose `input_mean` and `input_std` to use.

    Returns:
        float32, batch x frames x channel x height x width.
    """
    mean, std = (_per_channel(values, clips.device) for values in (model.input_mean, model.input_std))
    return clips.permute(0, 1, 4, 2, 3).float().div_(255).sub_(mean).div_(std)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # Once per device: a GPU would have to be waited for at every copy.
    return torch.tensor(values, device=device).view(3, 1, 1)


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in training: float32 with 'off', else mixed with bfloat16 or float16."""
    dtype = None if amp == "off" else DTYPES[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


class Step(NamedTuple):
    """What `train_one_epoch` has to say after a step.

    Args:
        done: steps of the epoch that are done.
        curves: named values for TensorBoard, for the steps that are logged.
    """

    done: int
    curves: dict[str, float]


def train_one_epoch(
    model: nn.Module,
    core: TemporalModel,
    loader: Iterable[list[torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    meters: ClipMeters,
    watch: LossWatch,
    world: World,
    args: Namespace,
    amp: str,
    epoch: int,
    sizes: Sequence[Sequence[int]],
    first_step: int = 0,
    show: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Iterator[Step]:
    """Train for an epoch, or what is left of it (paper, section 4.2).

    Args:
        model: what to call: `core`, or what shares the work of `core` among devices.
        core: the model itself.
        loader: of the batches of this process, from `first_step` on.
        optimizer: with the groups of `TemporalModel.get_optim_policies`.
        scaler: of the loss; enabled for fp16 only.
        meters: of the epoch.
        watch: to be checked before the weights are saved; it is checked at every logged step.
        world: of this process.
        args: of the training program.
        amp: 'off', 'bf16' or 'fp16'.
        epoch: from 0.
        sizes: for each step of the epoch, the clips in each of its batches, over all processes.
        first_step: the step to start at.
        show: called with the clips and labels of the first batch, before they train.

    Yields:
        After each step what there is to say about it.

    Raises:
        DivergedError: the loss is not finite.
    """
    steps = len(sizes)
    batch_time, data_time = AverageMeter(), AverageMeter()
    skipped = torch.zeros((), device=world.device)
    model.train()
    if args.freeze_bn:
        freeze_batch_norm(core)
    batches = iter(loader)
    progress = tqdm(
        range(first_step, steps),
        desc=f"epoch {epoch}",
        initial=first_step,
        total=steps,
        unit="step",
        disable=None if world.is_main else True,
        leave=False,
    )
    began = end = time.perf_counter()
    num_clips = 0
    for step in progress:
        if not sizes[step]:  # all its clips are excluded
            yield Step(step + 1, {})
            continue

        # The learning rate of the step, and a dropout that depends on seed and step alone.
        rate = learning_rate(args, epoch + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]
        torch.manual_seed(derive_seed(args.seed, epoch, step, world.rank))

        # Forward and backward, for each batch of the step.
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        waited = 0.0
        optimizer.zero_grad()
        for number in range(len(sizes[step])):
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            clips, labels = to_device(batch, world.device)
            if show:
                show(clips, labels)
                show = None
            # The processes need not exchange gradients before the step's last batch.
            is_last = number == len(sizes[step]) - 1
            alone = model.no_sync() if world.size > 1 and not is_last else nullcontext()
            with alone, compiler_errors(), world.lost_process():
                with autocast(amp, world.device):
                    logits = model(to_input(clips, core)).float()
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                # The mean over the step's clips, given that the processes' gradients are averaged.
                scaler.scale(loss * (world.size / sum(sizes[step]))).backward()
            sums += batch_sums(loss.detach(), logits.detach(), labels)

        # The step itself, its gradient's norm clipped.
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(core.parameters(), args.clip_gradient)
        scaler.step(optimizer)
        scaler.update()

        # What the log says of it; whatever would have to wait for a GPU, at logged steps only.
        meters.update(sums)
        if scaler.is_enabled():  # a gradient beyond fp16's range is part of finding the scale
            skipped += ~norm.isfinite()
            watch.add(step, meters.last[0])
        else:
            watch.add(step, meters.last[0] + norm)
        data_time.update(waited)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        num_clips += sum(sizes[step])
        curves = {}
        if step % args.print_freq == 0:
            watch.check()
            speed = num_clips / (time.perf_counter() - began)
            left = steps - step - 1
            left_in_run = left + steps * (args.epochs - epoch - 1)
            more = f"\tskipped {int(skipped)}" if scaler.is_enabled() else ""
            log.info(
                f"Epoch: [{epoch}][{step}/{steps}], lr: {rate:.5f}\t"
                f"Time {batch_time}\tData {data_time}\t{meters}{more}\t{speed:.1f} clips/s\t"
                f"left {duration(left * batch_time.avg)} in the epoch, "
                f"{duration(left_in_run * batch_time.avg)} in the run\t"
                f"memory {peak_memory(world.device):.2f} GB"
            )
            loss, prec1, prec5 = averages(meters.last.tolist())
            curves = {"loss": loss, "prec1": prec1, "prec5": prec5, "lr": rate, "gradient_norm": float(norm)}
            curves |= {"step_time": batch_time.avg, "data_time": data_time.avg, "clips_per_second": speed}
        yield Step(step + 1, {f"train/{name}": value for name, value in curves.items()})


def freeze_batch_norm(model: nn.Module) -> None:
    """Let a model in training use batch norm's statistics and not update them (mmaction2's `norm_eval`)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def derive_seed(*numbers: int) -> int:
    """A seed for torch, another one for each combination of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@float32_convolutions()
def evaluate(
    loader: DataLoader,
    model: TemporalModel,
    world: World,
    amp: str,
    print_freq: int,
    interruption: Interruption | None = None,
    compiled: bool = False,
    mirrored: Sequence[int] | None = None,
    with_features: bool = False,
    max_clips: int | None = None,
) -> Result | None:
    """Score every video once, with the model's fused form (see `inference.fuse.fuse`).

    Where a video has several views, its scores are the mean over them (`utils.metrics.average_views`).

    Args:
        loader: of the batches of `dataset.evaluation_batches`.
        model: stays as it is.
        world: of this process.
        amp: 'off', 'bf16' or 'fp16', the precision of all that is computed.
        print_freq: log a line every so many batches.
        interruption: its `number` is looked at after every batch: 0, or give up.
        compiled: whether to compile the fused form; its last digits differ.
        mirrored: see `utils.metrics.average_views`.
        with_features: keep what the classifier gets, too.
        max_clips: the most views that are computed together; a video may have more.

    Returns:
        The same in every process, the videos in the order of the list; None if interrupted.

    Raises:
        UserError: the fused form's logits differ from the model's, or it cannot be compiled.
    """
    batch_time = AverageMeter()
    meters = ClipMeters(World(0, 1, world.devices))  # a glimpse for the log, of this process's clips
    found = []
    world.broadcast_buffers(model)
    fused = fuse(model, world.device, DTYPES[amp])
    called = world.wrap(fused)
    if compiled:
        compile_model(called)
    classifier_inputs = _ClassifierInputs(fused, world.devices) if with_features else None
    batches = iter(loader)
    num_batches = world.all_reduce_max(len(loader))[0]
    end = time.perf_counter()
    for step in tqdm(
        range(num_batches), desc="test", unit="batch", disable=None if world.is_main else True, leave=False
    ):
        if step < len(loader):  # another process may have one batch more
            batch = next(batches)
            has_labels = bool((batch[1] >= 0).all())  # before it moves to a GPU
            clips, labels = to_device(batch, world.device)
            shape = clips.shape[:-4]  # videos, or videos x views
            parts = clips.flatten(0, 1).split(max_clips or shape.numel()) if len(shape) == 2 else [clips]
            results: list[list[torch.Tensor]] = []  # of each part: logits, and features if wanted
            for number, part in enumerate(parts):
                inputs = to_input(part, fused)
                if step == number == 0:
                    check_fused(model, fused, inputs)
                with torch.inference_mode(), compiler_errors():
                    results.append([called(inputs).float()])
                    if classifier_inputs:
                        results[-1].append(classifier_inputs.take_means())
            with torch.inference_mode():
                logits, *features = map(torch.cat, zip(*results, strict=True))
                if len(shape) == 2:
                    logits = average_views(logits.unflatten(0, shape), mirrored)
                    features = [values.unflatten(0, shape).mean(dim=1) for values in features]
                if has_labels:
                    loss = functional.cross_entropy(logits, labels, reduction="sum")
                    meters.update(batch_sums(loss, logits, labels))
            found.append((logits, labels, *features))
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % print_freq == 0 and world.is_main:  # another one may have had no clip yet
            so_far = f"\t{meters}" if has_labels else ""
            log.info(f"Test: [{step}/{num_batches}]\tTime {batch_time}{so_far}")
        if interruption and world.all_reduce_max(interruption.number)[0]:
            return None
    shares = world.all_gather([tuple(tensor.cpu() for tensor in batch) for batch in found])
    in_order = [share[step] for step in range(num_batches) for share in shares if step < len(share)]
    return summarise(*(torch.cat(tensors) for tensors in zip(*in_order, strict=True)))


class _ClassifierInputs:
    """Keeps what reaches the classifier in a call of a model, on each device that has a share of it.

    Args:
        model: a hook is added to its classifier, and to that of DataParallel's replicas.
        devices: that share a batch, in their order.
    """

    def __init__(self, model: TemporalModel, devices: Sequence[torch.device]) -> None:
        self.num_segments = model.num_segments
        self.devices = devices
        self.shares: dict[torch.device, torch.Tensor] = {}
        model.classifier.register_forward_pre_hook(self._keep)

    def _keep(self, classifier: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.shares[inputs[0].device] = inputs[0]

    def take_means(self) -> torch.Tensor:
        """Each clip's mean over its frames in the last call: clips x features, float32."""
        shares = [self.shares.pop(device) for device in self.devices if device in self.shares]
        frames = torch.cat([share.to(self.devices[0]) for share in shares]).float()
        return frames.unflatten(0, (-1, self.num_segments)).mean(dim=1)
