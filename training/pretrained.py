"""The initial weights of training, from a 2D ResNet or another checkpoint."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from classes import match_categories
from models import TemporalModel
from resnet_gst import load_2d_weights, start_tensors
from training.checkpoint import load_from_checkpoint, load_weights, read_pretrained
from training.describe import class_names, describe_model
from utils.cli import UserError, log
from utils.distributed import World


def load_initial_weights(
    model: TemporalModel,
    args: Namespace,
    checkpoint: dict[str, Any] | None,
    categories: list[str],
    world: World,
) -> bool:
    """Load the weights of a checkpoint to resume from, or else the weights of `--pretrained`.

    Returns:
        Whether the classifier started from scratch.
    """
    if checkpoint:
        load_weights(model, checkpoint["state_dict"], args.resume)
        return checkpoint.get("new_classifier", False)
    if args.pretrained == "none":
        log.info("weights: random initialisation")
        if args.freeze:
            log.warning("warning: --freeze: the frozen weights are random")
        return True
    # Only the main process loads the weights; `World.wrap` broadcasts them.
    return world.broadcast(load_pretrained(model, args, categories) if world.is_main else None)


def load_pretrained(model: TemporalModel, args: Namespace, categories: list[str]) -> bool:
    """Load the weights of `--pretrained`, and return whether the classifier starts from scratch."""
    source, start = read_pretrained(args.pretrained, args.arch)
    if not any(name.startswith("base_model.") for name in start["state_dict"]):
        try:
            loaded_names, other_names = load_2d_weights(model.base_model, start["state_dict"])
        except ValueError as error:
            raise UserError(
                f"{source} {error}: it must be a 2D {args.arch}'s state dict or a checkpoint of this code"
            ) from None
        new = [*_count_tensors(name for name in other_names if name.startswith("layer")), "the classifier"]
        log.info(f"{source}: {len(loaded_names)} tensors loaded; new: {', '.join(new)}")
        return True
    spec = describe_model(start, source, args.type)
    names = ("arch", "alpha", "beta") if spec.type == args.type else ("arch",)
    differences = [name for name in names if getattr(spec, name) not in (None, getattr(args, name))]
    if differences:
        options = " ".join(f"--{name} {getattr(spec, name)}" for name in differences)
        raise UserError(f"--pretrained {source} is a different model: use {options}")
    if spec.type != args.type:
        start["state_dict"], line = fit_backbone(model, start["state_dict"])
        log.info(f"{source}: type {spec.type}, not {args.type}; {line}")
    names = class_names(start, source)
    permutation = match_categories(categories, names) if names else None
    load_from_checkpoint(model, start, permutation, source)
    if permutation is None:
        reason = "its classes differ from category.txt" if names else "the file has no class names"
        log.info(f"{source}: backbone loaded; the classifier starts from scratch ({reason})")
    else:
        order = "" if permutation == sorted(permutation) else ", in a different order"
        log.info(f"{source}: backbone and classifier loaded, the classes are the same{order}")
    return permutation is None


def fit_backbone(
    model: TemporalModel, state_dict: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str]:
    """Adapt the state dict of another type of block to a model, and describe it for the log.

    A tensor of the backbone is taken from the checkpoint if it has the same name and shape there. Otherwise
    it is taken from `start_from_2d` of its block, or else from the model. The classifier is the checkpoint's.
    """
    start = {f"base_model.{name}": value for name, value in start_tensors(model.base_model).items()}
    head = ("new_fc.", "base_model.fc.")
    own = {name: value for name, value in (model.state_dict() | start).items() if not name.startswith(head)}
    matches = {
        name: value
        for name, value in state_dict.items()
        if name.startswith(head) or (name in own and own[name].shape == value.shape)
    }
    new = _count_tensors(name.partition(".")[2] for name in own.keys() - matches.keys())
    unused = _count_tensors(name.partition(".")[2] for name in state_dict.keys() - matches.keys())
    num_loaded = len(own.keys() & matches.keys())
    description = f"{num_loaded} tensors loaded; new: {', '.join(new) or 'none'}"
    return own | matches, f"{description}; only in the file: {', '.join(unused) or 'none'}"


def _count_tensors(names: Iterable[str]) -> list[str]:
    """Count tensors such as 'layer1.0.conv1.weight' by their names within a block."""
    counts = Counter(name.split(".", 2)[-1] for name in sorted(names))
    return [f"{count} {name}" for name, count in counts.items() if not name.endswith("num_batches_tracked")]
