"""Determine from a checkpoint its model configuration and the order of its classes."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from classes import match_categories, mirrored_labels, released_categories, remap_labels, without_brackets
from gst import ALPHAS, BETAS
from models import BLOCKS, PUBLISHED_NAMES, block_kwargs
from resnet_gst import DEPTHS
from utils.cli import UserError, log, printable

if TYPE_CHECKING:  # it imports decoders, which torch.hub does not need
    from dataset import VideoDataSet


class ModelSpec(NamedTuple):
    """The configuration of a model."""

    type: str
    arch: str
    alpha: int | None
    beta: int | None
    num_class: int
    has_dropout: bool
    consensus: str


def describe_model(checkpoint: dict[str, Any], path: str | Path, kind: str | None = None) -> ModelSpec:
    """Determine the configuration of a checkpoint's model; `kind` decides between `possible_types`."""
    types = possible_types(checkpoint, path)
    kind = kind if kind in types else next(iter(types))
    arch = checkpoint.get("options", {}).get("arch") or _find_arch(checkpoint["state_dict"], path)
    name, num_class = find_classifier(checkpoint["state_dict"], path)
    split = (types[kind].get("alpha"), types[kind].get("beta"))
    consensus = checkpoint.get("options", {}).get("consensus", "mean")
    return ModelSpec(kind, arch, *split, num_class, name == "new_fc", consensus)


def possible_types(checkpoint: dict[str, Any], path: str | Path) -> dict[str, dict[str, int]]:
    """Find the types of block that a checkpoint may have, with their alpha and beta.

    There are several only if the checkpoint has no options: C2D and TSM have the same tensors.
    """
    options = checkpoint.get("options", {})
    types = list(BLOCKS)
    if "type" in options:
        types = [PUBLISHED_NAMES.get(options["type"], options["type"])]
        if types[0] not in BLOCKS:
            raise UserError(f"{path}: type {printable(types[0])} is not one of {', '.join(BLOCKS)}")
        names = block_kwargs(types[0])
        if set(names) <= options.keys():
            return {types[0]: {name: options[name] for name in names}}

    # Compare the tensors of the first block with those of each type.
    prefix = "base_model.layer1.0."
    shapes = {
        name.removeprefix(prefix): tensor.shape
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix) and "downsample" not in name
    }
    choices = {"alpha": ALPHAS, "beta": BETAS}
    candidates = {}
    for kind in types:
        names = block_kwargs(kind)
        for values in itertools.product(*(choices[name] for name in names)):
            kwargs = dict(zip(names, values, strict=True))
            with torch.device("meta"):
                block = BLOCKS[kind](64, 64, **kwargs)
            if {name: tensor.shape for name, tensor in block.state_dict().items()} == shapes:
                candidates[kind] = kwargs
    if not candidates:
        raise UserError(f"{path}: is not a model of this code (the types of block are {', '.join(BLOCKS)})")
    return candidates


def _find_arch(state_dict: dict[str, torch.Tensor], path: str | Path) -> str:
    """Determine the arch from the number of blocks in each stage."""
    stages = [f"base_model.layer{stage}." for stage in (1, 2, 3, 4)]
    depths = tuple(len({name.split(".")[2] for name in state_dict if name.startswith(s)}) for s in stages)
    for arch in DEPTHS:
        if DEPTHS[arch] == depths:
            return arch
    raise UserError(f"{path}: is not a model of this code: no arch has {depths} blocks ({', '.join(DEPTHS)})")


def find_classifier(state_dict: dict[str, torch.Tensor], path: str | Path) -> tuple[str, int]:
    """The name of the classifier and its number of classes."""
    name = "new_fc" if "new_fc.weight" in state_dict else "base_model.fc"
    weight = state_dict.get(f"{name}.weight")
    if weight is None:
        raise UserError(f"{path}: is not a model of this code: has no classifier '{name}.weight'")
    return name, len(weight)


def class_names(checkpoint: dict[str, Any], path: str | Path) -> list[str] | None:
    """The names of a checkpoint's classes, in the order of its classifier; None if they are unknown.

    A released checkpoint has no names. If it has 174 classes, they are Something-Something's, sorted.
    """
    if "categories" in checkpoint:
        return checkpoint["categories"]
    released = released_categories()
    return released if len(released) == find_classifier(checkpoint["state_dict"], path)[1] else None


def find_labels(checkpoint: dict[str, Any], categories: list[str], path: str | Path) -> np.ndarray:
    """Match the classes of a data set with those of a checkpoint, by name.

    Returns:
        For each label of the data set, the label of the checkpoint.
    """
    num_class = find_classifier(checkpoint["state_dict"], path)[1]
    if num_class != len(categories):
        raise UserError(f"{path} has {num_class} classes, but category.txt has {len(categories)}")
    names = class_names(checkpoint, path)
    permutation = match_categories(categories, names) if names else None
    if permutation is None and "categories" in checkpoint:
        own_names = {without_brackets(name) for name in categories}
        unknown = [name for name in names if without_brackets(name) not in own_names]
        raise UserError(f"{path} has the class '{printable((unknown or names)[0])}', unlike category.txt")
    # A checkpoint without names may have 174 classes other than Something-Something's.
    return np.array(range(num_class) if permutation is None else permutation)


def map_labels(
    dataset: "VideoDataSet", checkpoint: dict[str, Any], categories: list[str], path: str | Path
) -> np.ndarray:
    """Change the labels of a data set to those of a checkpoint, and return `find_labels`."""
    permutation = find_labels(checkpoint, categories, path)
    same = int((permutation == np.arange(len(permutation))).sum())
    if same < len(permutation):
        log.info(
            f"category.txt has the classes of {path} in a different order "
            f"({same} of {len(permutation)} in the same place): labels are mapped by name"
        )
    dataset.labels = remap_labels(dataset.labels, permutation)
    return permutation


def find_mirrored(checkpoint: dict[str, Any], categories: list[str], path: str | Path) -> list[int]:
    """The label that each of a checkpoint's classes has when a clip is mirrored, or `classes.NEVER`.

    If the checkpoint lacks them, they follow from its class names, or else from the data set's.
    """
    return checkpoint.get("mirrored") or mirrored_labels(class_names(checkpoint, path) or categories)


def check_categories(checkpoint: dict[str, Any], categories: list[str], path: str | Path) -> None:
    """Check that a checkpoint has the data set's classes in the same order, so that training can continue."""
    labels = find_labels(checkpoint, categories, path)
    if labels.tolist() != sorted(labels) or checkpoint.get("categories", categories) != categories:
        raise UserError(f"{path}: its classes differ from category.txt in order or spelling")
