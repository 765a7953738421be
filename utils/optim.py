"""The optimizer, and its learning rate at every moment of training (paper, section 4.2)."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from models import TemporalModel
from utils.cli import UserError, log


def make_optimizer(model: TemporalModel, args: Namespace) -> torch.optim.Optimizer:
    """SGD with the model's parameter groups (paper, section 4.2)."""
    groups = [
        group | {"lr": args.lr * group["lr_mult"], "weight_decay": args.weight_decay * group["decay_mult"]}
        for group in model.get_optim_policies()
    ]
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)


def learning_rate(options: Namespace, epoch: float) -> float:
    """The learning rate at a moment of training.

    Args:
        options: `lr`, `lr_schedule`, `lr_steps`, `warmup_epochs`, `epochs`.
        epoch: epochs since the start, a fraction within an epoch.

    Returns:
        With 'step', `lr` divided by 10 at each of `lr_steps` (paper, section 4.2); with 'cosine',
        `lr` falling to 0 on half a cosine (arXiv 1608.03983). Before that a linear rise from 0
        over the first `warmup_epochs`.
    """
    if epoch < options.warmup_epochs:
        return options.lr * epoch / options.warmup_epochs
    if options.lr_schedule == "cosine":
        done = (epoch - options.warmup_epochs) / (options.epochs - options.warmup_epochs)
        return options.lr * 0.5 * (1 + math.cos(math.pi * done))
    return options.lr * 0.1 ** sum(int(epoch) >= step for step in options.lr_steps)


def load_optimizer(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, saved: dict[str, Any], path: str | Path
) -> None:
    """Continue with a checkpoint's momentum and loss scale, if it has them.

    Raises:
        UserError: they are of another optimizer.
    """
    if "optimizer" not in saved:
        log.info(f"{path} has no optimizer state: momentum starts from zero")
        return
    try:
        optimizer.load_state_dict(saved["optimizer"])
        for parameter, state in optimizer.state.items():
            if state.get("momentum_buffer") is not None:  # which may come in another layout
                state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])
        scaler.load_state_dict(saved.get("scaler", scaler.state_dict()))
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its optimizer state does not fit ({str(error).splitlines()[0]})") from None
