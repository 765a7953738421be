"""Checkpoints: save them completely or not at all, and load what others saved."""

import glob
import io
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from contextlib import redirect_stderr
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gst import ALPHAS, BETAS
from models import TemporalModel
from resnet_gst import BLOCKS
from utils.cli import UserError, log
from utils.files import link, staged, write_atomically
from utils.precision import DTYPES


class ModelSpec(NamedTuple):
    """What a state dict's shapes say about its model."""

    arch: str
    alpha: int
    beta: int
    num_class: int
    has_dropout: bool


def _keep_older(path: Path, keep: int) -> None:
    for number in range(keep - 1, 1, -1):
        if _numbered(path, number - 1).exists():
            _numbered(path, number - 1).replace(_numbered(path, number))
    # Another name for the newest file, so that it stays under its own until the new one takes its place.
    second = _numbered(path, 1)
    if not link(path, second):
        shutil.copyfile(path, second)


def save_checkpoint(path: Path, content: dict[str, Any], keep: int = 1, best: Path | None = None) -> None:
    """Save a checkpoint of tensors and plain values, completely or not at all: see `utils.files.staged`.

    Args:
        path: the file.
        content: what `torch.save` takes and `load_checkpoint` gives back.
        keep: files to keep; the older ones become `path`.1, `path`.2 and so on.
        best: also save it under this name. It is written first, so that a run that is killed in between does
            the same again.

    Raises:
        OSError: it cannot be written; the newest stays as it is.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if best:
        write_atomically(best, buffer.getvalue())
    with staged({path: best or buffer.getvalue()}):
        if keep > 1 and path.exists():
            _keep_older(path, keep)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def all_checkpoints(path: Path) -> list[Path]:
    """Those of `save_checkpoint` that are there, the newest first."""
    numbered = path.parent.glob(glob.escape(path.name) + ".*")
    numbered = [file for file in numbered if file.name[len(path.name) + 1 :].isdecimal()]
    older = sorted(numbered, key=lambda file: int(file.suffix[1:]))
    return ([path] if path.exists() else []) + older


def load_newest(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest checkpoint that is not damaged; say which are.

    Returns:
        Its file and content; None if there is no checkpoint at all.

    Raises:
        UserError: there are some, and all are damaged.
    """
    files = all_checkpoints(path)
    for file in files:
        try:
            return file, load_checkpoint(file)
        except UserError as error:
            log.info(f"{error}; looking for the one before it")
    if files:
        raise UserError(f"{path}: none of its {len(files)} checkpoints can be loaded")
    return None


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read a file that torch saved, new or old format, onto the CPU and without running code in it.

    Raises:
        UserError: there is no such file, it is damaged, or it needs code to be run.
    """
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise UserError(f"{path}: is damaged, a check sum in it is wrong")  # torch.load does not look
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; an error says what matters of it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        if code:
            raise UserError(
                f"{path}: refused, because loading it would run code in it ({code.group(1)}); "
                "save its state_dict alone and use that"
            ) from None
        raise UserError(
            f"{path}: is not a checkpoint, is damaged, or was saved with another pickle protocol than "
            "torch.save's own (2), which cannot be read without running code in it"
        ) from None
    except UserError:
        raise
    except Exception as error:  # whatever bytes can make torch.load raise; the file is at fault
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint: this code's, one that the GST authors released, or a bare state dict.

    Returns:
        The published form, `state_dict` with keys without `module.` and `_orig_mod.`, and `best_prec1`, if
        there, a float.

    Raises:
        UserError: see `read_tensors`; or there is no state dict in it.
    """
    content = read_tensors(path)
    if "state_dict" not in content:
        content = {"state_dict": content}
    state_dict = content["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise UserError(f"{path}: has no state dict of tensors")
    if not all(isinstance(name, str) for name in state_dict):
        raise UserError(f"{path}: its state dict has a key that is not a tensor's name")
    for name, kind in (("options", dict), ("categories", list)):
        if name in content and not isinstance(content[name], kind):
            raise UserError(f"{path}: its '{name}' are a {type(content[name]).__name__}")
    # DataParallel and DistributedDataParallel add `module.`, torch.compile `_orig_mod.`, in either order.
    content["state_dict"] = {re.sub(r"^(module\.|_orig_mod\.)+", "", k): v for k, v in state_dict.items()}
    if "best_prec1" in content:
        try:
            content["best_prec1"] = float(content["best_prec1"])
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{path}: its 'best_prec1' is not a number") from None
    return content


def saved_option(saved: dict[str, Any], name: str, path: str | Path) -> Any:
    """What a checkpoint was trained with: 'amp' or 'batch_size'; None where it does not say.

    Raises:
        UserError: it says something that cannot be.
    """
    value = saved.get("options", {}).get(name)
    if value is None:
        return None
    is_right = value in list(DTYPES) if name == "amp" else type(value) is int and value > 0
    if not is_right:
        raise UserError(f"{path}: its option {name} is {str(value)[:200]!r}, which cannot be")
    return value


def read_pretrained(choice: str, arch: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Get a 2D ResNet's weights to start from.

    Args:
        choice: 'imagenet' for torchvision's `IMAGENET1K_V1`, from its cache or the network; or a file.
        arch: which ResNet, for 'imagenet'.

    Returns:
        Where they came from, and the state dict.

    Raises:
        UserError: they cannot be had.
    """
    if choice != "imagenet":
        return choice, read_tensors(choice)
    import torchvision  # takes a second, which most runs can do without

    weights = torchvision.models.get_model_weights(arch).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cached.exists():
        try:
            with redirect_stderr(sys.stdout):  # a download is not an error
                weights.get_state_dict(
                    progress=sys.stdout.isatty(), check_hash=True, map_location="cpu", weights_only=True
                )
        except (OSError, RuntimeError, HTTPException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"ImageNet weights of {arch} cannot be loaded ({reason}): "
                f"fetch {weights.url} and put it at {cached}, "
                "or give --pretrained FILE, or --pretrained none for a random start"
            ) from None
    return f"ImageNet weights {cached.name}", read_tensors(cached)


def describe_model(state_dict: dict[str, torch.Tensor], path: str | Path) -> ModelSpec:
    """Read from the tensors' shapes which model they are of.

    Args:
        state_dict: keys without `module.`.
        path: the file it came from, for the message.

    Raises:
        UserError: they are not a GST model's.
    """
    stem = state_dict.get("base_model.conv1.weight")
    spatial = state_dict.get("base_model.layer1.0.conv2.weight")
    temporal = state_dict.get("base_model.layer1.0.Tconv.weight")
    head = "new_fc" if "new_fc.weight" in state_dict else "base_model.fc"
    classifier = state_dict.get(f"{head}.weight")
    for name, tensor, dims in (
        ("base_model.conv1.weight", stem, 5),
        ("base_model.layer1.0.conv2.weight", spatial, 5),
        ("base_model.layer1.0.Tconv.weight", temporal, 5),
        (f"{head}.weight", classifier, 2),
    ):
        if tensor is None or tensor.ndim != dims or 0 in tensor.shape:
            raise UserError(f"{path}: is not a GST model: it has no {dims}-dimensional tensor '{name}'")
    blocks = tuple(
        len({name.split(".")[2] for name in state_dict if name.startswith(f"base_model.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    arch = next((arch for arch, layers in BLOCKS.items() if layers == blocks), None)
    if arch is None:
        raise UserError(f"{path}: its {blocks} blocks are those of no known arch ({', '.join(BLOCKS)})")
    planes = spatial.shape[0] + temporal.shape[0]
    alpha, beta = planes // temporal.shape[0], planes // temporal.shape[1]
    if alpha not in ALPHAS or beta not in BETAS:
        raise UserError(f"{path}: is not a GST model: its shapes say alpha {alpha} and beta {beta}")
    return ModelSpec(
        arch=arch,
        alpha=alpha,
        beta=beta,
        num_class=classifier.shape[0],
        has_dropout=head == "new_fc",
    )


def load_weights(model: TemporalModel, state_dict: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load a complete state dict, or say what does not fit.

    Raises:
        UserError: a tensor is missing, is not the model's, or has another shape.
    """
    own = model.state_dict()
    for name in own:
        if name not in state_dict:
            raise UserError(f"{path}: has no tensor '{name}'")
        if state_dict[name].shape != own[name].shape:
            raise UserError(
                f"{path}: '{name}' has shape {tuple(state_dict[name].shape)}, not {tuple(own[name].shape)}"
            )
    for name in state_dict:
        if name not in own:
            raise UserError(f"{path}: has a tensor '{name}' that the model does not have")
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:  # not an ordinary tensor: sparse, quantised, without data
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: its tensors cannot be copied ({reason})") from None


def check_categories(saved: dict[str, Any], categories: list[str], path: str | Path) -> None:
    """Check that a checkpoint's classes are the data set's.

    Args:
        saved: what `load_checkpoint` gave.
        categories: the data set's class names.
        path: the checkpoint's file, for the message.

    Raises:
        UserError: they differ in number or, where the checkpoint knows them, in names or order.
    """
    num_class = describe_model(saved["state_dict"], path).num_class
    if num_class != len(categories):
        raise UserError(f"{path} is for {num_class} classes, but category.txt has {len(categories)}")
    known = saved.get("categories", categories)
    if len(known) != num_class:
        raise UserError(f"{path}: names {len(known)} categories, but its classifier has {num_class}")
    for label, (old, new) in enumerate(zip(known, categories, strict=True)):
        if old != new:
            raise UserError(f"{path} has '{old}' as class {label}, but category.txt has '{new}'")
