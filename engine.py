"""One epoch of training, one pass of evaluation; where a batch moves to the device and is normalised."""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import TemporalModel
from utils.cli import InputError
from utils.deploy import compile_model, compiler_errors, deploy, float32_convolutions
from utils.distributed import World
from utils.metrics import AverageMeter, ClipMeters, Result, averages, batch_sums, summarise
from utils.optim import learning_rate
from utils.precision import DTYPES


def to_device(batch: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Move a batch to the device; to a GPU while it still computes what it was given before."""
    if device.type != "cuda":
        return batch
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        moved = [tensor.to(device, non_blocking=True) for tensor in batch]
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(stream)
    for tensor in moved:
        tensor.record_stream(computing)
    return moved


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


class LossWatch:
    """Find out, without waiting for the device at every step, that the loss is not finite."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.pending: list[tuple[int, torch.Tensor]] = []

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Remember a step's loss."""
        self.pending.append((step, loss))

    def check(self) -> None:
        """Look at the losses since the last check.

        Raises:
            InputError: one of them is not finite; names the step and its clips.
        """
        losses = torch.stack([loss for _, loss in self.pending]).tolist() if self.pending else []
        for (step, _), loss in zip(self.pending, losses, strict=True):
            if not math.isfinite(loss):
                sampler, dataset = self.loader.batch_sampler, self.loader.dataset
                clips = [dataset.record(i).path for batch in sampler.batches_of(step) for i in batch]
                raise InputError(
                    f"epoch {sampler.epoch}, step {step}: the loss is {loss}, so training stops and nothing "
                    f"more is saved; try a smaller --lr. The clips of that step: {', '.join(clips)}"
                )
        self.pending.clear()


def train_steps(
    loader: DataLoader,
    model: nn.Module,
    core: TemporalModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    meters: ClipMeters,
    watch: LossWatch,
    options: Namespace,
    world: World,
    report: Callable[[int, dict[str, float]], None],
) -> Iterator[int]:
    """Train from the step that the loader's sampler stands at to the end of its epoch (paper, section 4.2).

    Args:
        loader: of `ClipSampler`'s batches, `--accumulate` of which make a step.
        model: what to call: `core`, or what shares the work of `core` among devices.
        core: the model itself.
        optimizer: with the groups of `TemporalModel.get_optim_policies`.
        scaler: of the loss; enabled for fp16 only.
        meters: of the epoch.
        watch: to be checked before the weights are saved.
        options: of the training program.
        world: of this process.
        report: called with the step, over all epochs, and named values for each logged line.

    Yields:
        The number of steps of the epoch that are done, after each step.

    Raises:
        InputError: the loss is not finite.
    """
    sampler = loader.batch_sampler
    epoch, steps = sampler.epoch, sampler.num_steps
    batch_time, data_time = AverageMeter(), AverageMeter()
    skipped = torch.zeros((), device=world.device)
    model.train()
    batches = iter(loader)
    progress = tqdm(
        range(sampler.first_step, steps),
        desc=f"epoch {epoch}",
        initial=sampler.first_step,
        total=steps,
        unit="step",
        disable=None if world.is_main else True,
        leave=False,
    )
    end = time.perf_counter()
    for step in progress:
        rate = learning_rate(options, epoch + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]
        # Dropout depends on seed and step, not on how many numbers were drawn before.
        torch.manual_seed(derive_seed(options.seed, epoch, step, world.rank))
        parts = sampler.batches_of(step)
        num_clips = sum(len(part) for part in parts)
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        waited = 0.0
        optimizer.zero_grad()
        for part in range(len(parts)):
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            clips, labels = to_device(batch, world.device)
            is_last = part == len(parts) - 1
            # The processes need not exchange gradients before the step's last batch.
            unshared = model.no_sync() if world.size > 1 and not is_last else nullcontext()
            with unshared, compiler_errors():
                with autocast(options.amp, world.device):
                    logits = model(to_input(clips, core)).float()
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                # The mean over the step's clips, given that the processes' gradients are averaged.
                scaler.scale(loss * (world.size / num_clips)).backward()
            sums += batch_sums(loss.detach(), logits.detach(), labels)
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(core.parameters(), options.clip_gradient)
        scaler.step(optimizer)
        scaler.update()

        meters.update(sums)
        if scaler.is_enabled():  # a gradient beyond fp16's range is part of finding the scale
            skipped += ~norm.isfinite()
            watch.add(step, meters.last[0])
        else:
            watch.add(step, meters.last[0] + norm)
        data_time.update(waited)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % options.print_freq == 0:
            watch.check()
            told = f"\tskipped {int(skipped)}" if scaler.is_enabled() else ""
            tqdm.write(
                f"Epoch: [{epoch}][{step}/{steps}], lr: {rate:.5f}\t"
                f"Time {batch_time}\tData {data_time}\t{meters}{told}"
            )
            loss, prec1, prec5 = averages(meters.last.tolist())
            values = {"loss": loss, "prec1": prec1, "prec5": prec5, "lr": rate, "gradient_norm": float(norm)}
            values |= {"step_time": batch_time.avg, "data_time": data_time.avg}
            report(epoch * steps + step, {f"train/{name}": value for name, value in values.items()})
        yield step + 1


def derive_seed(*numbers: int) -> int:
    """A seed for torch from numbers of which every combination shall give another one."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@float32_convolutions()
def evaluate(
    loader: DataLoader,
    model: TemporalModel,
    world: World,
    amp: str,
    print_freq: int,
    is_stopped: Callable[[], bool] = lambda: False,
    compiled: bool = False,
) -> Result | None:
    """Score every clip once, with the model's deployed form (see `utils.deploy.deploy`).

    Args:
        loader: of `dataset.evaluation_batches`.
        model: stays as it is.
        world: of this process.
        amp: 'off', 'bf16' or 'fp16', the precision of all that is computed.
        print_freq: log a line every so many batches.
        is_stopped: asked after every batch whether to give up.
        compiled: whether to compile the deployed form; its last digits differ.

    Returns:
        The same in every process, the clips in the order of the list; None if stopped.
    """
    batch_time = AverageMeter()
    meters = ClipMeters(World(0, 1, world.devices))  # a glimpse for the log, of this process's clips
    scores = []
    world.share_buffers(model)
    deployed = deploy(model, world.device, DTYPES[amp])
    called = world.place(deployed)
    if compiled:
        compile_model(called)
    batches = iter(loader)
    num_batches = world.max(len(loader))[0]
    end = time.perf_counter()
    for step in tqdm(
        range(num_batches), desc="test", unit="batch", disable=None if world.is_main else True, leave=False
    ):
        if step < len(loader):  # another process may have one batch more
            clips, labels = to_device(next(batches), world.device)
            with torch.inference_mode(), compiler_errors():
                logits = called(to_input(clips, deployed)).float()
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                meters.update(batch_sums(loss, logits, labels))
            scores.append(logits)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % print_freq == 0 and world.is_main:  # another one may have had no clip yet
            tqdm.write(f"Test: [{step}/{num_batches}]\tTime {batch_time}\t{meters}")
        if is_stopped():
            return None
    shares = world.gather([logits.cpu() for logits in scores])
    in_order = [share[step] for step in range(num_batches) for share in shares if step < len(share)]
    return summarise(torch.cat(in_order), torch.from_numpy(loader.dataset.labels))
