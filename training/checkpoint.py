"""Save checkpoints atomically, and load those of this code and of other training code."""

import errno
import glob
import io
import json
import re
import sys
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterable
from contextlib import redirect_stderr
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch.utils._pytree import tree_map_only

from models import TemporalModel
from training.describe import find_classifier
from utils.cli import UserError, log, printable
from utils.files import open_regular, staged

# Names under which training code stores state dicts, in order of preference.
_STATE_DICTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
)
# Types that other training code stores next to its tensors: options, and numpy scalars under both names.
_SAFE_GLOBALS = [Namespace, np.dtype, *(type(np.dtype(name)) for name in ("bool", "i4", "i8", "f4", "f8"))]
for _core in ("core", "_core"):
    _SAFE_GLOBALS.append((np.float64(0).__reduce__()[0], f"numpy.{_core}.multiarray.scalar"))


# Saving


def save_checkpoint(path: Path, content: dict[str, Any], keep: int = 1, best: Path | None = None) -> None:
    """Save a checkpoint of tensors and plain values atomically, see `utils.files.staged`.

    Args:
        content: what `load_checkpoint` returns.
        keep: number of files to keep; older ones become `path`.1, `path`.2 and so on.
        best: also save the checkpoint under this name; after an error, neither is saved.
    """
    buffer = io.BytesIO()
    # As CPU tensors, so that any program can open it on a machine without a GPU.
    torch.save(tree_map_only(torch.Tensor, torch.Tensor.cpu, content), buffer)
    with staged(dict.fromkeys([best, path] if best else [path], buffer.getvalue())):
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep))]
        for newer, older in reversed([*zip(names, names[1:], strict=False)]):
            if newer.exists():
                newer.replace(older)


def all_checkpoints(path: Path) -> list[Path]:
    """The existing files of `save_checkpoint`, newest first."""
    numbered = path.parent.glob(f"{glob.escape(path.name)}.*")
    numbered = [file for file in numbered if file.suffix[1:].isdecimal() and file.stem == path.name]
    older = sorted(numbered, key=lambda file: int(file.suffix[1:]))
    return ([path] if path.exists() else []) + older


# Loading


def load_newest(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest intact checkpoint of a run, if there is one; return its file and content.

    Newer files, which are damaged, get the suffix `.damaged`, unless all are damaged.
    """
    damaged = []
    for file in all_checkpoints(path):
        try:
            content = load_checkpoint(file)
        except UserError as error:
            log.info(f"{error}; trying the previous checkpoint")
            damaged.append(file)
            continue
        for other in damaged:
            other.replace(f"{other}.damaged")
        return file, content
    if damaged:
        raise UserError(f"{path}: none of its {len(damaged)} checkpoints can be loaded")
    return None


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read a file of torch (new or old format) or safetensors onto the CPU, without running code in it."""
    try:
        with (
            open_regular(path) as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_SAFE_GLOBALS),
        ):
            warnings.simplefilter("ignore")  # about pickle protocols; errors are reported below
            start = file.read(9)
            if start[8:] == b"{":  # safetensors: the length of a JSON header, and the header
                return _read_safetensors(path)
            if start.startswith(b"PK\3\4"):  # torch.load does not check the checksums of the zip
                with zipfile.ZipFile(file) as archive:
                    if damaged := archive.testzip():
                        raise UserError(f"{path}: is damaged (wrong checksum of {printable(damaged)})")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:  # of any type, for damaged files
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a wrong position in the zip
            raise
        if code := re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error)):
            raise UserError(
                f"{path}: refused, because loading it would run code in it ({printable(code[1])}); "
                "save its tensors alone: torch.save(model.state_dict(), FILE)"
            ) from None
        raise UserError(f"{path}: is not a checkpoint, or is damaged") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains a {type(content).__name__}, not a state dict")
    return content


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    # Clean files of tools/convert_checkpoint.py store the other values as JSON.
    return json.loads(metadata.get("gst", "{}")) | {"state_dict": state_dict}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of main.py, a clean file, a released checkpoint, or a file of other training code.

    Returns:
        The `state_dict`, whose names have no prefix such as `module.`, and what else the file has: `epoch`,
        `step`, `best_prec1`, `options`, `categories`, `mirrored` (label of each class in mirrored clips) and
        the state of training; for a file of other training code `origin`, which says what was loaded.
    """
    if Path(path).suffix.lower() in (".onnx", ".pt2"):
        raise UserError(f"{path}: is an exported model; use the checkpoint")
    content = read_tensors(path)
    if "state_dict" not in content or not isinstance(content.get("options"), dict):
        content = _from_other_code(content, path)
    prefix = _find_prefix(content["state_dict"])
    content["state_dict"] = {
        name.removeprefix(prefix): value for name, value in content["state_dict"].items()
    }
    for name, tensor in content["state_dict"].items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: '{printable(name)}' has values that are not finite")
    return content


def _from_other_code(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Find the state dict in a file that does not store this code's options, and strip its prefix."""
    names = [name for name, value in content.items() if isinstance(value, dict) and _tensors(value)]
    name = next((name for name in _STATE_DICTS if name in names), names[0] if names else None)
    if name not in _STATE_DICTS and len(names) > 1:
        raise UserError(f"{path}: contains several state dicts ({', '.join(map(printable, names))})")
    tensors = _tensors(content if name is None else content[name])
    if not tensors:
        raise UserError(f"{path}: contains no state dict of tensors")
    prefix = _find_prefix(tensors)
    state_dict = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    checkpoint: dict[str, Any] = {"state_dict": state_dict}
    epoch, best = content.get("epoch"), content.get("best_prec1")
    if isinstance(epoch, int) and epoch >= 0:
        checkpoint["epoch"] = epoch
    if isinstance(best, torch.Tensor | np.floating | int | float):  # the authors' code saved a tensor
        checkpoint["best_prec1"] = float(best)
    num_ignored = len(tensors) - len(state_dict)
    # DataParallel and DistributedDataParallel add `module.`, torch.compile adds `_orig_mod.`.
    has_usual_names = name in (None, "state_dict") and re.fullmatch(r"(module\.|_orig_mod\.)*", prefix)
    if num_ignored or not has_usual_names:
        checkpoint["origin"] = (
            f"took {len(state_dict)} tensors from '{printable(name or 'the file')}' with the prefix "
            f"'{printable(prefix)}', ignored {num_ignored} others"
        )
    return checkpoint


def _tensors(content: dict[Any, Any]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _find_prefix(names: Iterable[str]) -> str:
    """Find the prefix of the first ResNet among names of tensors, such as `module.` or `backbone.`."""
    for name in names:
        prefix = name.removesuffix("conv1.weight")
        if prefix != name and f"{prefix}layer1.0.conv1.weight" in names:
            return prefix.removesuffix("base_model.")
    return ""


def read_pretrained(choice: str, arch: str) -> tuple[str, dict[str, Any]]:
    """Read initial weights: torchvision's ImageNet weights of an arch (downloaded once), or those of a file.

    Returns:
        A description of the source for the log, and the checkpoint (see `load_checkpoint`).
    """
    if choice != "imagenet":
        checkpoint = load_checkpoint(choice)
        origin = checkpoint.get("origin")
        return f"{choice} ({origin})" if origin else choice, checkpoint
    import torchvision  # takes a second to import

    weights = torchvision.models.get_model_weights(arch).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cached.exists():
        try:
            with redirect_stderr(sys.stdout):  # stderr is for errors
                torch.hub.load_state_dict_from_url(
                    weights.url, progress=sys.stdout.isatty(), check_hash=True, weights_only=True
                )
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"ImageNet weights of {arch} cannot be downloaded ({printable(error)}); save {weights.url} "
                f"as {cached}, or use --pretrained FILE, or --pretrained none for random weights"
            ) from None
    return f"ImageNet weights {cached.name}", load_checkpoint(cached)


# Weights


def load_weights(model: TemporalModel, state_dict: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load a complete state dict."""
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        reason = printable(str(error).splitlines()[1].strip())
        raise UserError(f"{path}: its tensors do not match the model: {reason}") from None


def load_from_checkpoint(
    model: TemporalModel, checkpoint: dict[str, Any], class_permutation: list[int] | None, path: str | Path
) -> None:
    """Initialise a model from a checkpoint: its backbone, and its classifier if the classes are the same.

    `class_permutation` maps each class of the model to its index in the checkpoint's classifier; None keeps
    the model's classifier. Model and checkpoint may differ in dropout.
    """
    head = f"{find_classifier(checkpoint['state_dict'], path)[0]}."
    model_head = "base_model.fc." if model.new_fc is None else "new_fc."
    state_dict = {
        name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(head)
    }
    for name, value in model.classifier.state_dict().items():
        if class_permutation is not None:
            value = checkpoint["state_dict"][head + name][class_permutation]
        state_dict[model_head + name] = value
    load_weights(model, state_dict, path)
