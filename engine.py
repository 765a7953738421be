"""One training epoch and one evaluation pass; where batches reach the device and are normalised."""

import math
import time
from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import TemporalModel


class AverageMeter:
    """The last value and the average of a quantity, over clips (or steps).

    Tensors are summed where they are, so that updating waits for no device; reading does.
    """

    def __init__(self) -> None:
        self._last: torch.Tensor | float = 0.0
        self._sum: torch.Tensor | float = 0.0
        self._count = 0

    def update(self, value: torch.Tensor | float, n: int = 1) -> None:
        """Add a value that is the average over `n` clips."""
        self._last = value
        self._sum = self._sum + value * n
        self._count += n

    @property
    def val(self) -> float:
        """The last value."""
        return float(self._last)

    @property
    def avg(self) -> float:
        """The average so far; 0 before the first value."""
        return float(self._sum) / max(1, self._count)


class ClipMeters:
    """Loss, top-1 and top-5 accuracy (percent) over clips."""

    def __init__(self) -> None:
        self.loss, self.prec1, self.prec5 = AverageMeter(), AverageMeter(), AverageMeter()

    def update(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: its mean loss, and its logits (batch x classes) and labels for the accuracy."""
        hits = top_k_hits(logits, labels)
        self.loss.update(loss.detach().double(), len(labels))
        self.prec1.update(100 * hits[:, :1].any(1).double().mean(), len(labels))
        self.prec5.update(100 * hits.any(1).double().mean(), len(labels))

    def __str__(self) -> str:
        return (
            f"Loss {self.loss.val:.4f} ({self.loss.avg:.4f})\t"
            f"Prec@1 {self.prec1.val:.3f} ({self.prec1.avg:.3f})\t"
            f"Prec@5 {self.prec5.val:.3f} ({self.prec5.avg:.3f})"
        )


class Result(NamedTuple):
    """An evaluation: raw scores (clips x classes, float32), labels, and what follows from them.

    Accuracies are in percent; `mean_class` is the mean over classes of each class's top-1 accuracy.
    """

    scores: np.ndarray
    labels: np.ndarray
    prec1: float
    prec5: float
    mean_class: float
    loss: float

    def __str__(self) -> str:
        return f"Testing Results: Prec@1 {self.prec1:.3f} Prec@5 {self.prec5:.3f} Loss {self.loss:.5f}"


def top_k_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each of a clip's five best classes, best first, is its label: batch x min(5, classes), bool."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return best == labels[:, None]


def to_input(clips: torch.Tensor, model: TemporalModel, device: torch.device) -> torch.Tensor:
    """Move clips to the device and normalise them by ImageNet's mean and standard deviation.

    Args:
        clips: uint8, batch x frames x height x width x channel (RGB).
        model: whose `input_mean` and `input_std` to use.
        device: where to.

    Returns:
        float32, batch x frames x channel x height x width.
    """
    clips = clips.to(device, non_blocking=True).permute(0, 1, 4, 2, 3).float().div_(255)
    mean = torch.tensor(model.input_mean, device=device).view(3, 1, 1)
    std = torch.tensor(model.input_std, device=device).view(3, 1, 1)
    return clips.sub_(mean).div_(std)


def learning_rate(options: Namespace, epoch: float) -> float:
    """The rate at a moment of training.

    Args:
        options: `lr`, `lr_schedule`, `lr_steps`, `warmup_epochs`, `epochs`.
        epoch: epochs since the start, a fraction within an epoch.

    Returns:
        With 'step', `lr` divided by 10 at each of `lr_steps` (paper, section 4.2); with 'cosine',
        `lr` falling to 0 on half a cosine (arXiv 1608.03983). Before that a linear warm-up from
        0 over the first `warmup_epochs`.
    """
    if epoch < options.warmup_epochs:
        return options.lr * epoch / options.warmup_epochs
    if options.lr_schedule == "cosine":
        done = (epoch - options.warmup_epochs) / (options.epochs - options.warmup_epochs)
        return options.lr * 0.5 * (1 + math.cos(math.pi * done))
    return options.lr * 0.1 ** sum(int(epoch) >= step for step in options.lr_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each parameter group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


def train_epoch(
    loader: DataLoader,
    model: nn.Module,
    core: TemporalModel,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    options: Namespace,
    device: torch.device,
    report: Callable[[int, dict[str, float]], None],
) -> ClipMeters:
    """Train one epoch (paper, section 4.2).

    Args:
        loader: of the epoch's batches.
        model: what to call: `core`, or what shares the work of `core` among devices.
        core: the model itself.
        optimizer: with the groups of `TemporalModel.get_optim_policies`.
        epoch: counted from 0.
        options: of the training program.
        device: where batches go.
        report: called with the step and named values whenever a line is logged.

    Returns:
        Averages over the epoch's clips.
    """
    batch_time, data_time = AverageMeter(), AverageMeter()
    meters = ClipMeters()
    model.train()
    bar = tqdm(loader, desc=f"epoch {epoch}", unit="batch", disable=None, leave=False)
    end = time.perf_counter()
    for step, (clips, labels) in enumerate(bar):
        data_time.update(time.perf_counter() - end)
        rate = learning_rate(options, epoch + step / len(loader))
        set_learning_rate(optimizer, rate)
        # Dropout depends on seed and step alone, not on how many numbers were drawn before.
        torch.manual_seed(np.random.SeedSequence((options.seed, epoch, step + 1)).generate_state(1).item())
        labels = labels.to(device, non_blocking=True)
        with autocast(options.amp, device):
            logits = model(to_input(clips, core, device)).float()
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(core.parameters(), options.clip_gradient)
        optimizer.step()

        meters.update(loss, logits.detach(), labels)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % options.print_freq == 0:
            tqdm.write(
                f"Epoch: [{epoch}][{step}/{len(loader)}], lr: {rate:.5f}\t"
                f"Time {batch_time.val:.3f} ({batch_time.avg:.3f})\t"
                f"Data {data_time.val:.3f} ({data_time.avg:.3f})\t{meters}"
            )
            report(
                epoch * len(loader) + step,
                {
                    "train/loss": meters.loss.val,
                    "train/prec1": meters.prec1.val,
                    "train/prec5": meters.prec5.val,
                    "train/lr": rate,
                    "train/gradient_norm": float(norm),
                    "time/step": batch_time.avg,
                    "time/data": data_time.avg,
                },
            )
    return meters


def evaluate(
    loader: DataLoader,
    model: nn.Module,
    core: TemporalModel,
    device: torch.device,
    amp: str = "off",
    print_freq: int = 20,
) -> Result:
    """Score every clip once, one clip per video.

    Args:
        loader: of the clips, in the order in which the scores are wanted.
        model: what to call: `core`, or what shares the work of `core` among devices.
        core: the model itself.
        device: where batches go.
        amp: see `autocast`.
        print_freq: log a line every so many batches.
    """
    batch_time = AverageMeter()
    meters = ClipMeters()
    scores, labels_seen = [], []
    model.eval()
    bar = tqdm(loader, desc="test", unit="batch", disable=None, leave=False)
    end = time.perf_counter()
    for step, (clips, labels) in enumerate(bar):
        with torch.inference_mode(), autocast(amp, device):
            logits = model(to_input(clips, core, device)).float().cpu()
        meters.update(functional.cross_entropy(logits, labels), logits, labels)
        scores.append(logits)
        labels_seen.append(labels)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % print_freq == 0:
            tqdm.write(
                f"Test: [{step}/{len(loader)}]\tTime {batch_time.val:.3f} ({batch_time.avg:.3f})\t{meters}"
            )
    return summarise(torch.cat(scores), torch.cat(labels_seen))


def summarise(scores: torch.Tensor, labels: torch.Tensor) -> Result:
    """Compute an evaluation's figures over clips.

    Args:
        scores: clips x classes, raw.
        labels: one for each clip.
    """
    hits = top_k_hits(scores, labels).numpy()
    per_class = [100 * hits[labels == label, 0].mean() for label in labels.unique()]
    return Result(
        scores=scores.numpy(),
        labels=labels.numpy(),
        prec1=100 * float(hits[:, 0].mean()),
        prec5=100 * float(hits.any(1).mean()),
        mean_class=float(np.mean(per_class)),
        loss=float(functional.cross_entropy(scores.double(), labels)),
    )


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The context for a forward pass: float32 with 'off', mixed with bfloat16 with 'bf16'."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")
