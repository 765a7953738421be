"""The training loss: cross entropy with label smoothing, class weights and mixup, all off by default."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from frames.resize import DecodedClips, resize_clips
from utils.cli import UserError
from utils.files import read_text

Targets = list[tuple[torch.Tensor, float]]  # labels, and their weight in the loss


class TrainingLoss(nn.Module):
    """The loss of a batch, summed over its clips. For another loss, override `sum_over_clips`.

    Args:
        label_smoothing: share of each label that is spread evenly over all classes (arXiv 1512.00567).
        mixup: alpha of mixup (arXiv 1710.09412); 0 disables it.
        class_weights: factor on the loss of each class.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None)

    def mix(
        self, clips: torch.Tensor | DecodedClips, labels: torch.Tensor
    ) -> tuple[torch.Tensor | DecodedClips, Targets]:
        """Mix each clip with the previous one, with one random share per batch (mixup, as in torchvision).

        The clips are uint8, clips x frames x height x width x channel. Decoded clips are resized first.
        """
        if not self.mixup:
            return clips, [(labels, 1.0)]
        if isinstance(clips, DecodedClips):
            clips = resize_clips(clips.to(labels.device))
        # Drawn on the CPU, whose generator is seeded with seed, epoch and step.
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        mixed = torch.lerp(clips.roll(1, 0).float(), clips.float(), share).round().byte()
        return mixed, [(labels, share), (labels.roll(1), 1 - share)]

    def forward(self, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Compute the loss of a batch from its logits (clips x classes, float32) and the result of `mix`."""
        return sum(share * self.sum_over_clips(logits, labels) for labels, share in targets)

    def sum_over_clips(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the sum of the losses of all clips, with one label per clip."""
        return functional.cross_entropy(
            logits, labels, self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
        )


def find_class_weights(
    choice: str | None, labels: np.ndarray, categories: list[str], mirrored: list[int]
) -> list[float] | None:
    """Compute or read the factors of `--class_weights`: 'balanced', a file, or None for no weights.

    'balanced' factors are inversely proportional to the number of training clips of a class, where half of
    the clips are mirrored; their mean over all clips is 1.
    """
    if choice is None:
        return None
    if choice != "balanced":
        return read_class_weights(choice, categories)
    counts = np.bincount(labels, minlength=len(categories))
    partners = [label if partner < 0 else partner for label, partner in enumerate(mirrored)]
    counts = (counts + counts[partners]) / 2
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 0.5))
    return np.where(counts > 0, weights, 0).tolist()


def read_class_weights(path: str | Path, categories: list[str]) -> list[float]:
    """Read a file with a class name and its weight on each line; other classes have the weight 1."""
    weights = dict.fromkeys(categories, 1.0)
    for number, line in enumerate(read_text(path, "expected lines of 'class weight'").split("\n"), start=1):
        if not line.strip():
            continue
        name, _, value = line.strip().replace("\t", " ").rpartition(" ")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            value = "nan"
        if len(weights) > len(categories) or not 0 <= float(value) < math.inf:
            raise UserError(f"{path}, line {number}: expected a class of category.txt and a weight")
    return list(weights.values())
