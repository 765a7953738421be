"""Losses and accuracies over clips, and averages for the log."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from utils.distributed import World


class AverageMeter:
    """The last value and the average of a quantity."""

    def __init__(self) -> None:
        self.val = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, value: float) -> None:
        """Add a value."""
        self.val = value
        self.sum += value
        self.count += 1

    @property
    def avg(self) -> float:
        """The average so far; 0 before the first value."""
        return self.sum / max(1, self.count)

    def __str__(self) -> str:
        return f"{self.val:.3f} ({self.avg:.3f})"


class ClipMeters:
    """Loss, top-1 and top-5 accuracy (percent): of the last step, and over all clips so far.

    The sums stay on the device, so that adding to them waits for nothing; reading them does.

    Args:
        world: whose processes' clips are counted together.
        totals: sums to go on from, as `totals` gave them.
    """

    def __init__(self, world: World, totals: list[float] | None = None) -> None:
        self.world = world
        self.last = torch.zeros(4, dtype=torch.float64, device=world.device)
        self.total = torch.tensor(totals or [0.0] * 4, dtype=torch.float64, device=world.device)

    def update(self, sums: torch.Tensor) -> None:
        """Add a step: the sum over its batches of what `batch_sums` gives."""
        self.last = self.world.sum(sums)
        self.total += self.last

    @property
    def totals(self) -> list[float]:
        """The sums over all clips so far, and the number of clips."""
        return self.total.tolist()

    def __str__(self) -> str:
        names = ("Loss {:.4f} ({:.4f})", "Prec@1 {:.3f} ({:.3f})", "Prec@5 {:.3f} ({:.3f})")
        pairs = zip(averages(self.last.tolist()), averages(self.totals), strict=True)
        return "\t".join(name.format(*pair) for name, pair in zip(names, pairs, strict=True))


def averages(totals: list[float]) -> tuple[float, float, float]:
    """Loss, top-1 and top-5 accuracy (percent) over the clips of such sums."""
    loss, prec1, prec5, count = totals
    return loss / count, prec1 / count, prec5 / count


def batch_sums(loss_sum: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A batch's sums over clips: loss, 100 for each top-1 and each top-5 hit, 1 for each clip."""
    hits = top_k_hits(logits, labels)
    ones = torch.ones_like(labels)
    return torch.stack([loss_sum, 100 * hits[:, 0].sum(), 100 * hits.sum(), ones.sum()]).double()


def top_k_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each of a clip's five best classes, best first, is its label: batch x min(5, classes), bool."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return best == labels[:, None]


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


def summarise(scores: torch.Tensor, labels: torch.Tensor) -> Result:
    """Compute an evaluation's figures over clips.

    Args:
        scores: clips x classes, raw.
        labels: one for each clip.
    """
    hits = top_k_hits(scores, labels).numpy()
    per_class = [100 * hits[(labels == label).numpy(), 0].mean() for label in labels.unique()]
    return Result(
        scores=scores.numpy(),
        labels=labels.numpy(),
        prec1=100 * float(hits[:, 0].mean()),
        prec5=100 * float(hits.any(1).mean()),
        mean_class=float(np.mean(per_class)),
        loss=float(functional.cross_entropy(scores.double(), labels)),
    )
