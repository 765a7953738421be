"""The weights that training starts from: a 2D ResNet's, or another checkpoint's."""

from argparse import Namespace
from collections import Counter
from typing import Any

from classes import match_categories
from models import TemporalModel
from resnet_gst import load_2d_weights
from training.checkpoint import load_start, load_weights, read_pretrained
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
    """Load the weights that training starts or continues with, in every process.

    Args:
        model: changed in place.
        args: options of main.py.
        checkpoint: content of the checkpoint to continue from; None for a new run.
        categories: class names of the data set.
        world: this process and the others.

    Returns:
        Whether the classifier started from scratch.

    Raises:
        UserError: the weights cannot be loaded, or do not fit.
    """
    if checkpoint:
        load_weights(model, checkpoint["state_dict"], args.resume)
        return checkpoint.get("new_classifier", False)
    if args.pretrained == "none":
        log.info("weights: random start")
        return True
    # The main process loads them; the others get them with the model's first broadcast.
    return world.broadcast(load_pretrained(model, args, categories) if world.is_main else None)


def load_pretrained(model: TemporalModel, args: Namespace, categories: list[str]) -> bool:
    """Load the weights of `--pretrained`.

    Args:
        model: changed in place.
        args: `pretrained` and the options of the model.
        categories: class names of the data set.

    Returns:
        Whether the classifier starts from scratch.

    Raises:
        UserError: the weights cannot be loaded, or do not fit.
    """
    source, start = read_pretrained(args.pretrained, args.arch)
    if not any(name.startswith("base_model.") for name in start["state_dict"]):
        try:
            loaded, kept = load_2d_weights(model.base_model, start["state_dict"])
        except ValueError as error:
            raise UserError(
                f"{source} {error}: it must be a 2D {args.arch}'s state dict or a checkpoint of this code"
            ) from None
        new = Counter(name.split(".", 2)[2] for name in kept if name.startswith("layer"))
        new = [f"{count} {name}" for name, count in new.items() if not name.endswith("num_batches_tracked")]
        log.info(f"{source}: {len(loaded)} tensors loaded, not {' and '.join([*new, 'the classifier'])}")
        return True
    spec = describe_model(start, source, args.type)
    names = ("type", "arch", "alpha", "beta")
    differing = [name for name in names if getattr(spec, name) not in (None, getattr(args, name))]
    if differing:
        values = ", ".join(f"{name} {getattr(spec, name)} (now {getattr(args, name)})" for name in differing)
        options = " ".join(f"--{name} {getattr(spec, name)}" for name in differing)
        raise UserError(f"--pretrained {source} is a model with {values}: give {options}")
    names = class_names(start, source)
    permutation = match_categories(categories, names) if names else None
    load_start(model, start, permutation, source)
    if permutation is None:
        reason = "its classes differ from category.txt" if names else "the file has no class names"
        log.info(f"{source}: backbone loaded; the classifier starts from scratch ({reason})")
    else:
        order = "" if permutation == sorted(permutation) else ", in another order"
        log.info(f"{source}: backbone and classifier loaded, the classes are the same{order}")
    return permutation is None
