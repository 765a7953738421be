"""Losses and accuracies over clips, and averages for the log."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from utils.cli import UserError, log
from utils.distributed import World

# The metrics that can select the best checkpoint.
METRICS = {"prec1": "Prec@1", "mean_class": "mean class accuracy"}


class AverageMeter:
    """The last value and the average of a quantity."""

    def __init__(self) -> None:
        self.val = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, value: float) -> None:
        self.val = value
        self.sum += value
        self.count += 1

    @property
    def avg(self) -> float:
        """The average so far; 0 before the first value."""
        return self.sum / max(1, self.count)

    def __str__(self) -> str:
        return f"{self.val:.3f} ({self.avg:.3f})"


def peak_memory(device: torch.device) -> float:
    """The peak memory of the tensors on a GPU, or of this process, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class ProgressLog:
    """Progress bar, times and log lines of a loop. Iterating over it yields the numbers of the steps."""

    def __init__(self, world: World, title: str, first_step: int, num_steps: int) -> None:
        self.device = world.device
        self.bar = tqdm(
            range(first_step, num_steps),
            desc=title,
            initial=first_step,
            total=num_steps,
            disable=None if world.is_main else True,
            leave=False,
        )
        self.batch_time, self.data_time = AverageMeter(), AverageMeter()
        self.steps_left = num_steps - first_step
        self.num_steps = num_steps
        self.num_clips = 0
        self.waited = 0.0
        self.start = self.end = time.perf_counter()

    def __iter__(self) -> Iterator[int]:
        return iter(self.bar)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Measure the time of the `with` block as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def update(self, num_clips: int) -> None:
        """End a step of `num_clips` clips over all processes."""
        now = time.perf_counter()
        self.batch_time.update(now - self.end)
        self.data_time.update(self.waited)
        self.end, self.waited = now, 0.0
        self.num_clips += num_clips
        self.steps_left -= 1

    def log(self, title: str, averages: str, epochs_left: int) -> dict[str, float]:
        """Log a line about the last step, and return times (s) and speed for TensorBoard."""
        speed = self.num_clips / (time.perf_counter() - self.start)
        steps_in_run = self.steps_left + epochs_left * self.num_steps
        left, left_in_run = (
            timedelta(seconds=round(steps * self.batch_time.avg)) for steps in (self.steps_left, steps_in_run)
        )
        log.info(
            f"{title}\tTime {self.batch_time}\tData {self.data_time}\t{averages}\t{speed:.1f} clips/s\t"
            f"left {left} in the epoch, {left_in_run} in the run\tmemory {peak_memory(self.device):.2f} GB"
        )
        times = {"step_time": self.batch_time.avg, "data_time": self.data_time.avg}
        return times | {"clips_per_second": speed}


class ClipMeters:
    """Loss, top-1 and top-5 accuracy (percent) over the clips of all processes: of the last step, and so far.

    The sums stay on the device: updates do not wait for the device, reading does.
    """

    def __init__(self, world: World, totals: list[float] | None = None) -> None:
        self.world = world
        self.last = torch.zeros(4, dtype=torch.float64, device=world.device)
        self.total = torch.tensor(totals or [0.0] * 4, dtype=torch.float64, device=world.device)

    def update(self, sums: torch.Tensor) -> None:
        """Add a step: the result of `batch_sums`, summed over its batches."""
        self.last = self.world.all_reduce_sum(sums)
        self.total += self.last

    @property
    def totals(self) -> list[float]:
        """The sums over all clips so far, and the number of clips."""
        return self.total.tolist()

    def __str__(self) -> str:
        last, total = averages(self.last.tolist()), averages(self.totals)
        lines = (("Loss", "loss", ".4f"), ("Prec@1", "prec1", ".3f"), ("Prec@5", "prec5", ".3f"))
        return "\t".join(f"{title} {last[key]:{form}} ({total[key]:{form}})" for title, key, form in lines)


def averages(totals: list[float]) -> dict[str, float]:
    """Compute loss and accuracies (percent) from the sums of `ClipMeters.totals`."""
    count = max(totals[3], 1)  # it is 0 if all remaining clips of an epoch are excluded
    return {name: total / count for name, total in zip(("loss", "prec1", "prec5"), totals, strict=False)}


def format_result(loss: float, prec1: float, prec5: float) -> str:
    """Format the result of an epoch for the log."""
    return f"Results: Prec@1 {prec1:.3f} Prec@5 {prec5:.3f} Loss {loss:.5f}"


def batch_sums(loss_sum: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A batch's sums over clips: loss, 100 for each top-1 and each top-5 hit, 1 for each clip."""
    hits = top_k_hits(logits, labels)
    ones = torch.ones_like(labels)
    return torch.stack([loss_sum, 100 * hits[:, 0].sum(), 100 * hits.sum(), ones.sum()]).double()


def average_views(logits: torch.Tensor, mirrored: Sequence[int] | None = None) -> torch.Tensor:
    """Average the logits of a video (videos x views x classes) over its views (TSM's test program).

    `mirrored` maps each class to its class in a mirrored clip, or -1; None if no view is mirrored. The second
    half of the views mirror the first half. In a mirrored view, a class gets the score of its mirrored class.
    A class without one gets the score of the unmirrored view.
    """
    if mirrored is not None:
        classes = torch.tensor(mirrored, device=logits.device)
        plain, flipped = logits.chunk(2, dim=1)
        flipped = torch.where(classes < 0, plain, flipped[..., classes.clamp(min=0)])
        logits = torch.cat([plain, flipped], dim=1)
    return logits.mean(dim=1)


def top_k_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compare the five best classes, best first, with the label: batch x min(5, classes), bool."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return best == labels[:, None]


class Result(NamedTuple):
    """The result of an evaluation. Accuracies are in percent."""

    scores: np.ndarray  # clips x classes, before softmax, float32
    labels: np.ndarray  # one per clip; -1 if the list has no labels. Loss and accuracies are then nan.
    prec1: float
    prec5: float
    mean_class: float  # mean of `class_prec1`
    loss: float  # mean cross entropy
    class_prec1: dict[int, float]  # top-1 accuracy of each class that has clips, by label
    features: np.ndarray | None = None  # input of the classifier, clips x features, if it was requested

    @property
    def has_labels(self) -> bool:
        """Whether the clips have labels."""
        return bool((self.labels >= 0).all())

    def averages(self) -> dict[str, float]:
        """The loss and the accuracies, by name."""
        return {name: getattr(self, name) for name in ("loss", "prec1", "prec5", "mean_class")}

    def __str__(self) -> str:
        if not self.has_labels:
            return "Testing Results: no accuracy, because the list has no labels"
        return f"Testing {format_result(self.loss, self.prec1, self.prec5)}"


def check_result(result: Result, path: str | Path) -> None:
    """Refuse an evaluation of the checkpoint `path` whose scores are not finite."""
    if not np.isfinite(result.scores).all():
        raise UserError(f"{path}: its logits are not finite, so the accuracy is meaningless; try --amp off")


def summarise(scores: torch.Tensor, labels: torch.Tensor, features: torch.Tensor | None = None) -> Result:
    """Compute loss and accuracies over clips; see `Result` for the arguments."""
    arrays = scores.numpy(), labels.numpy()
    feature_array = None if features is None else features.numpy()
    if (labels < 0).any():
        return Result(*arrays, *[math.nan] * 4, class_prec1={}, features=feature_array)
    hits = top_k_hits(scores, labels).numpy()
    per_class = {int(label): 100 * hits[(labels == label).numpy(), 0].mean() for label in labels.unique()}
    return Result(
        *arrays,
        prec1=100 * float(hits[:, 0].mean()),
        prec5=100 * float(hits.any(1).mean()),
        mean_class=float(np.mean([*per_class.values()])),
        loss=float(functional.cross_entropy(scores.double(), labels)),
        class_prec1=per_class,
        features=feature_array,
    )
