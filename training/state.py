"""Everything that changes during training."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from frames.resize import DecodedClips
from models import TemporalModel
from training.optim import load_optimizer
from utils.cli import UserError, log
from utils.distributed import World
from utils.metrics import METRICS, ClipMeters

# fp16's loss scale starts at 65536 and is halved after each step whose gradients are not finite.
MIN_SCALE = 1e-3


class Step(NamedTuple):
    """A step of `engine.train_one_epoch`: its first batch, and values for TensorBoard if it is logged."""

    clips: torch.Tensor | DecodedClips
    labels: torch.Tensor
    curves: dict[str, float]


class TrainState:
    """Everything that changes during training, in one object that is saved and loaded.

    Args:
        model: without wrappers.
        optimizer: SGD over the model's parameters.
        scaler: scales the loss; enabled for fp16 only.
        world: the processes of the run.
        metadata: saved in each checkpoint, see `Run.metadata`.
    """

    def __init__(
        self,
        model: TemporalModel,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        world: World,
        metadata: dict[str, Any],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.world = world
        self.metadata = metadata
        self.epoch = 0
        self.step = 0  # finished steps of the epoch
        self.batch_sizes: list[list[int]] = []  # of each step of the epoch, over all processes
        self.meters = ClipMeters(world)  # over the epoch so far
        self.losses: list[tuple[int, torch.Tensor]] = []  # of the steps that were not checked yet
        # The metric that selects the best checkpoint, a key of `METRICS`, and its highest value.
        self.metric = metadata.get("options", {}).get("best", "prec1")
        self.best = 0.0
        self.history: list[dict[str, Any]] = []  # a row of the CSV file for each epoch

    def describe_best(self) -> str:
        """Describe the best accuracy and its epoch for the log."""
        epochs = [row["epoch"] for row in self.history if row.get(f"val_{self.metric}") == self.best]
        return f"{METRICS[self.metric]} {self.best:.3f}" + (f" (epoch {epochs[0]})" if epochs else "")

    def finish_step(self, step: int, sums: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Count a step, without waiting for the device; `sums` are its `utils.metrics.batch_sums`."""
        self.step = step + 1
        self.meters.update(sums)
        loss = self.meters.last[0]
        if not self.scaler.is_enabled():  # gradients beyond fp16's range are normal while the scaler adapts
            loss = loss + gradient_norm
        self.losses.append((step, loss))

    def check_loss(self) -> None:
        """Refuse losses and gradients since the last call that are not finite. This waits for the device."""
        losses = [(step, float(loss)) for step, loss in self.losses]
        if self.scaler.is_enabled() and self.scaler.get_scale() < MIN_SCALE:
            losses.append((self.step - 1, math.nan))
        for step, loss in losses:
            if not math.isfinite(loss):
                raise UserError(
                    f"epoch {self.epoch}, step {step}: loss or gradient is {loss}; training stops without "
                    "saving; try a smaller --lr"
                )
        self.losses.clear()

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Append the epoch's row to the history and go to the next epoch."""
        self.history.append({"epoch": self.epoch} | row)
        self.epoch, self.step, self.meters = self.epoch + 1, 0, ClipMeters(self.world)

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint. See `check_loss` for errors."""
        self.check_loss()
        return self.metadata | {
            "epoch": self.epoch,
            "step": self.step,
            "state_dict": self.model.state_dict(),
            f"best_{self.metric}": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.meters.totals,
            "history": self.history,
        }

    def resume(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Load everything from a checkpoint except the weights, which the model already has.

        A released checkpoint has only epoch and best accuracy.
        """
        self.epoch, self.step = checkpoint.get("epoch", self.epoch), checkpoint.get("step", 0)
        self.meters = ClipMeters(self.world, checkpoint.get("totals"))
        self.best, self.history = checkpoint.get(f"best_{self.metric}", 0.0), checkpoint.get("history", [])
        load_optimizer(self.optimizer, self.scaler, checkpoint, path)
        log.info(f"resumed {path} at epoch {self.epoch}, step {self.step}, best {self.describe_best()}")
