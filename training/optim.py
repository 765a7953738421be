"""The optimizer and the learning rate schedule (paper, section 4.2)."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from models import TemporalModel
from utils.cli import UserError, log


def make_optimizer(
    model: TemporalModel, args: Namespace, classifier_lr_mult: float = 1.0
) -> torch.optim.Optimizer:
    """SGD with the model's parameter groups (paper, section 4.2); see `TemporalModel.get_optim_policies`."""
    groups = [
        group | {"lr": args.lr * group["lr_mult"], "weight_decay": args.weight_decay * group["decay_mult"]}
        for group in model.get_optim_policies(classifier_lr_mult)
    ]
    is_on_gpu = next(model.parameters()).device.type == "cuda"
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum, fused=is_on_gpu or None)


def learning_rate(options: Namespace, epoch: float) -> float:
    """Compute the learning rate.

    After `warmup_epochs` of linear warmup from 0, 'step' divides `lr` by 10 at each of `lr_steps` (paper,
    section 4.2), and 'cosine' decays it to 0 along a half cosine (arXiv 1608.03983).

    `epoch` is the time since the start of training in epochs, with fractions.
    """
    if epoch < options.warmup_epochs:
        return options.lr * epoch / options.warmup_epochs
    if options.lr_schedule == "cosine":
        done = (epoch - options.warmup_epochs) / (options.epochs - options.warmup_epochs)
        return options.lr * 0.5 * (1 + math.cos(math.pi * done))
    return options.lr * 0.1 ** sum(int(epoch) >= step for step in options.lr_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, options: Namespace, epoch: float) -> float:
    """Set the learning rate of every parameter group, times its `lr_mult`, and return the rate itself."""
    rate = learning_rate(options, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
    return rate


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    checkpoint: dict[str, Any],
    path: str | Path,
) -> None:
    """Load momentum and loss scale from a checkpoint, if it has them."""
    if "optimizer" not in checkpoint:
        log.info(f"{path} has no optimizer state: momentum starts from zero")
        return
    # Learning rates and weight decays come from the options, not from the file.
    groups = optimizer.state_dict()["param_groups"]
    loaded = checkpoint["optimizer"]
    if [group["params"] for group in groups] != [group["params"] for group in loaded["param_groups"]]:
        raise UserError(f"{path}: its optimizer has different parameter groups")
    optimizer.load_state_dict({"state": loaded["state"], "param_groups": groups})
    scaler.load_state_dict(checkpoint.get("scaler", scaler.state_dict()))
    for parameter, state in optimizer.state.items():
        momentum = state.get("momentum_buffer")
        if momentum is not None:
            # The memory layout may differ.
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
