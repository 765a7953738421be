"""Checkpoints: save them completely or not at all, and load what others saved."""

import glob
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config
from torch.overrides import TorchFunctionMode
from typing_extensions import NotRequired, TypedDict

from classes import NEVER, match_categories, mirrored_labels, released_categories, without_brackets
from datasets_video import SOURCES
from gst import ALPHAS, BETAS
from models import BLOCKS, MAX_INPUT_SIZE, MAX_SEGMENTS, PUBLISHED_NAMES, TemporalModel, block_kwargs
from resnet_gst import DEPTHS
from utils.cli import UserError, log, printable
from utils.files import link, open_regular, staged, write_atomically
from utils.precision import DTYPES

# What a zip ends with: a signature, numbers, and the length of the comment that may follow (APPNOTE 4.3.16).
_ZIP_END, _ZIP_END_LENGTH = b"PK\5\6", 22
_ZIP_START = b"PK\3\4"
# The comment of a checkpoint: the checksum of all that comes before the checksum itself.
_SEAL = b"sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
# In the header of a safetensors file: the plain values of a checkpoint as JSON, and a checksum of all of it.
_FACTS, _FACTS_SEAL = "gst", "gst_sha256"

# The types of the values in a checkpoint that are not tensors, and their ranges.
Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[int, Field(ge=1, lt=2**53)]
Percent = Annotated[float, Field(ge=0, le=100)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@with_config(_STRICT | ConfigDict(extra="forbid"))
class HistoryRow(TypedDict):
    """An epoch of a run, a row of its CSV file; what was not measured is left out."""

    epoch: Count
    lr: NonNegative
    train_loss: float
    train_prec1: Percent
    train_prec5: Percent
    val_loss: NotRequired[float]
    val_prec1: NotRequired[Percent]
    val_prec5: NotRequired[Percent]
    val_mean_class: NotRequired[Percent]


@with_config(_STRICT | ConfigDict(extra="allow"))
class SavedOptions(TypedDict, total=False):
    """The options that a checkpoint was trained with, of which these decide about something later."""

    type: str
    arch: str
    alpha: Positive | None  # None for a type of block without
    beta: Positive | None
    num_segments: Annotated[int, Field(ge=1, le=MAX_SEGMENTS)]
    input_size: Annotated[int, Field(ge=32, le=MAX_INPUT_SIZE)]
    dropout: Share
    batch_size: Positive
    accumulate: Positive
    sync_bn: bool
    freeze_bn: bool
    epochs: Positive
    lr: NonNegative
    lr_schedule: Literal["step", "cosine"]
    lr_steps: list[Positive]
    warmup_epochs: NonNegative
    lr_mult_new: Annotated[float, Field(gt=0)]
    momentum: Share
    weight_decay: NonNegative
    clip_gradient: NonNegative
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    amp: Literal[tuple(DTYPES)]
    source: Literal[SOURCES]


@with_config(_STRICT | ConfigDict(extra="forbid"))
class _Momentum(TypedDict, total=False):
    momentum_buffer: torch.Tensor | None


@with_config(_STRICT | ConfigDict(extra="allow"))
class _Group(TypedDict):
    params: list[Count]


@with_config(_STRICT)
class _Optimizer(TypedDict):
    state: dict[Count, _Momentum]
    param_groups: list[_Group]


@with_config(_STRICT | ConfigDict(extra="allow"))
class Saved(TypedDict, total=False):
    """The content of a checkpoint; a released one has the first four, and only the first is always there.

    A clean one, of tools/convert_checkpoint.py, says what there is to say of its weights, and has
    `num_class` and `source_sha256` for readers without this code.
    """

    state_dict: dict[str, torch.Tensor]
    epoch: Count
    arch: str
    best_prec1: Percent
    step: Count
    options: SavedOptions
    categories: list[str]
    num_class: Positive
    source_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the file that it was made from
    mirrored: list[Annotated[int, Field(ge=-1)]]  # what a label becomes in a mirror; -1: never mirrored
    data: Annotated[int, Field(ge=0, lt=2**32)]
    val_data: Annotated[int, Field(ge=0, lt=2**32)]
    excluded: list[str]
    num_devices: Positive
    new_classifier: bool
    run: str
    optimizer: _Optimizer
    scaler: dict[str, NonNegative]
    totals: Annotated[list[NonNegative], Field(min_length=4, max_length=4)]
    history: list[HistoryRow]


# What other code has saved is not taken from a checkpoint.
_OWN = ("optimizer", "scaler", "totals", "history")


class UnreadableError(UserError):
    """A file that cannot be read, whatever is in it."""


class ModelSpec(NamedTuple):
    """Which model a checkpoint is of."""

    type: str
    arch: str
    alpha: int | None
    beta: int | None
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
    _seal(buffer)
    sealed = buffer.getvalue()
    if best:
        write_atomically(best, sealed)
    with staged({path: best or sealed}):
        if keep > 1 and path.exists():
            _keep_older(path, keep)


def safetensors_bytes(content: dict[str, Any]) -> bytes:
    """A file of safetensors: a checkpoint's state dict, and the plain values as JSON in the header."""
    state_dict = content["state_dict"]
    plain = json.dumps({name: value for name, value in content.items() if name != "state_dict"})
    metadata = {"format": "pt", _FACTS: plain, _FACTS_SEAL: _digest(plain, state_dict)}
    return safetensors.torch.save(state_dict, metadata)


def _read_safetensors(content: bytes, path: str | Path) -> dict[str, Any]:
    """Read what `safetensors_bytes` wrote, or another's file of safetensors as a bare state dict.

    Raises:
        UserError: its checksum is wrong.
        Exception: it is damaged in another way.
    """
    state_dict = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if not metadata.keys() & {_FACTS, _FACTS_SEAL}:
        return state_dict
    plain = metadata.get(_FACTS, "")
    if metadata.get(_FACTS_SEAL) != _digest(plain, state_dict):
        raise UserError(f"{path}: is damaged (a checksum in it is wrong)")
    return json.loads(plain) | {"state_dict": state_dict}


def _digest(plain: str, state_dict: dict[str, torch.Tensor]) -> str:
    """A checksum of a checkpoint's plain values and its tensors, whatever their order in a file."""
    sha256 = hashlib.sha256(plain.encode())
    for name, tensor in sorted(state_dict.items()):
        sha256.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def _seal(file: io.BytesIO) -> None:
    """Add the checksum of a file of torch.save to it, as the comment that a zip may have at its end."""
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_LENGTH.to_bytes(2, "little") + _SEAL)
    with file.getbuffer() as content:
        digest = hashlib.sha256(content).hexdigest()
    file.write(digest.encode())


def _is_intact(file: BinaryIO) -> bool:
    """Whether a file's checksums, if it has any, are right.

    torch.save's zip has one for each tensor, which torch.load does not look at, and none for its directory.
    """
    is_zip = file.read(len(_ZIP_START)) == _ZIP_START
    size = file.seek(0, os.SEEK_END)
    ends = {}
    for comment in (0, _SEAL_LENGTH):
        file.seek(max(0, size - _ZIP_END_LENGTH - comment))
        end = file.read(_ZIP_END_LENGTH)
        ends[comment] = end[:4] == _ZIP_END and end[-2:] == comment.to_bytes(2, "little")
    if ends[_SEAL_LENGTH]:
        file.seek(0)
        sha256, left = hashlib.sha256(), size - 64
        while left:
            piece = file.read(min(left, 1 << 20))
            sha256.update(piece)
            left -= len(piece)
        return file.read() == sha256.hexdigest().encode()
    if ends[0]:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    return not is_zip  # torch's format before 1.6, without any checksum


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def all_checkpoints(path: Path) -> list[Path]:
    """Those of `save_checkpoint` that are there, the newest first."""
    numbered = path.parent.glob(glob.escape(path.name) + ".*")
    numbered = [file for file in numbered if file.name[len(path.name) + 1 :].isdecimal()]
    older = sorted(numbered, key=lambda file: int(file.suffix[1:]))
    return ([path] if path.exists() else []) + older


def damaged_checkpoints(path: Path) -> list[Path]:
    """Those that `set_aside_newer` has renamed."""
    return sorted(path.parent.glob(glob.escape(path.name) + ".damaged*"))


def set_aside_newer(path: Path, good: Path) -> None:
    """Rename the damaged checkpoints that are newer than the good one, so that no save replaces the good one.

    Args:
        path: see `save_checkpoint`.
        good: one of `all_checkpoints`.
    """
    files = all_checkpoints(path)
    for file in files[: files.index(good)]:
        taken = [file.name.rpartition("damaged")[2] for file in damaged_checkpoints(path)]
        number = max((int(number) for number in taken if number.isdecimal()), default=0) + 1
        file.rename(path.with_name(f"{path.name}.damaged{number}"))
        log.info(f"{file}: set aside as {path.name}.damaged{number}")


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
        except UnreadableError:  # of a disk that is away for a moment: nothing says that the file is damaged
            raise
        except UserError as error:
            log.info(f"{error}; looking for the one before it")
    if files:
        raise UserError(f"{path}: none of its {len(files)} checkpoints can be loaded")
    return None


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read a file of torch (new or old format) or safetensors, onto the CPU and without running code in it.

    Raises:
        UserError: there is no such file, it is damaged, or it needs code to be run.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            if not _is_intact(file):
                raise UserError(f"{path}: is damaged (a checksum in it is wrong) or incomplete")
            file.seek(0)
            is_safetensors = file.read(9)[8:] == b"{"  # after its length, the header of safetensors is JSON
            file.seek(0)
            if is_safetensors:
                content = _read_safetensors(file.read(), path)
            else:
                warnings.simplefilter("ignore")  # of pickle protocols; an error says what matters of it
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        if code:
            raise UserError(
                f"{path}: refused, because loading it would run code in it ({printable(code.group(1))}); "
                "save its state_dict alone and use that"
            ) from None
        raise UserError(
            f"{path}: is not a checkpoint, is damaged, or was saved with another pickle protocol than "
            "torch.save's own (2), which cannot be read without running code in it"
        ) from None
    except UserError:
        raise
    except Exception as error:  # whatever bytes can make torch.load raise; the file is at fault
        reason = printable((str(error).splitlines() or [""])[0])
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def is_onnx(path: str | Path) -> bool:
    """Whether a file is taken for an exported ONNX model, by its name."""
    return Path(path).suffix.lower() == ".onnx"


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint: this code's, a clean one, one that the GST authors released, or a bare state dict.

    Returns:
        The published form, `state_dict` with keys without `module.` and `_orig_mod.`, and `best_prec1`, if
        there, a float.

    Raises:
        UserError: see `read_tensors`; or there is no state dict in it.
    """
    if Path(path).suffix.lower() in (".onnx", ".pt2", ".torchscript"):
        raise UserError(
            f"{path}: is an exported model; this needs the checkpoint (test_models.py and test_video.py also "
            "take .onnx)"
        )
    content = read_tensors(path)
    if "state_dict" not in content:
        content = {"state_dict": content}
    state_dict = content["state_dict"]
    _check_tensors(state_dict, path)
    # DataParallel and DistributedDataParallel add `module.`, torch.compile `_orig_mod.`, in either order.
    content["state_dict"] = {re.sub(r"^(module\.|_orig_mod\.)+", "", k): v for k, v in state_dict.items()}
    best = content.get("best_prec1")
    if type(best) is int or (isinstance(best, torch.Tensor) and best.numel() == 1):
        content["best_prec1"] = float(best)  # a tensor, as the authors' code saved it
    if "options" not in content:
        content = {name: value for name, value in content.items() if name not in _OWN}
    check_schema(Saved, content, "", path)
    check_schema(dict[str, JsonValue], content.get("options", {}), "options.", path)
    _check_finite(content["state_dict"], path)
    if content.get("optimizer", {}).get("state"):
        _check_momentum(content, path)
    return content


def check_schema(schema: Any, value: dict[str, Any], prefix: str, path: str | Path) -> None:
    """Check the types and ranges of what a file holds.

    Args:
        schema: a `TypedDict`, or another type that pydantic knows.
        value: what the file holds.
        prefix: of the names in the message.
        path: the file, for the message.

    Raises:
        UserError: names the first value that cannot be right.
    """
    try:
        TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = printable(prefix + ".".join(map(str, first["loc"])))
        raise UserError(
            f"{path}: its '{place}' cannot be right ({first['msg']}; it is {printable(first['input'])})"
        ) from None


def _check_tensors(state_dict: Any, path: str | Path) -> None:
    if not isinstance(state_dict, dict) or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise UserError(f"{path}: has no state dict of tensors")
    if not all(isinstance(name, str) for name in state_dict):
        raise UserError(f"{path}: its state dict has a key that is not a tensor's name")


def _check_finite(tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    for name, tensor in tensors.items():
        try:
            is_finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        except RuntimeError:  # sparse, quantised, without data
            raise UserError(f"{path}: '{printable(name)}' is not an ordinary tensor") from None
        if not is_finite:
            raise UserError(f"{path}: '{printable(name)}' has values that are not finite")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UserError(f"{path}: '{printable(name)}' has variances below 0")


def _check_momentum(content: dict[str, Any], path: str | Path) -> None:
    """Check that the optimizer's state is of the parameters, as far as their shapes say."""
    states = content["optimizer"]["state"]
    momentum = {f"momentum {number}": state.get("momentum_buffer") for number, state in states.items()}
    known = Counter(value.shape for value in content["state_dict"].values())
    if any(value is None for value in momentum.values()) or (
        Counter(value.shape for value in momentum.values()) - known
    ):
        raise UserError(f"{path}: its optimizer's momentum does not have the shapes of its parameters")
    if not all(value.is_floating_point() for value in momentum.values()):
        raise UserError(f"{path}: its optimizer's momentum does not hold floating point numbers")
    _check_finite(momentum, path)


def read_pretrained(choice: str, arch: str) -> tuple[str, dict[str, Any]]:
    """Get weights to start from: a 2D ResNet's, or a checkpoint's of GST.

    Args:
        choice: 'imagenet' for torchvision's `IMAGENET1K_V1`, from its cache or the network; or a file.
        arch: which ResNet, for 'imagenet'.

    Returns:
        Where they came from, and what `load_checkpoint` gives.

    Raises:
        UserError: they cannot be had.
    """
    if choice != "imagenet":
        return choice, load_checkpoint(choice)
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
    return f"ImageNet weights {cached.name}", load_checkpoint(cached)


def describe_model(saved: dict[str, Any], path: str | Path, kind: str | None = None) -> ModelSpec:
    """Find out which model a checkpoint is of.

    Args:
        saved: what `load_checkpoint` gave. Where it has no options, as a released one, its tensors say which.
        path: the file it came from, for the message.
        kind: the type of block that is expected. It decides where there are no options and several types have
            these tensors, as C2D and TSM do; otherwise the first of them in `BLOCKS` is taken.

    Raises:
        UserError: it is of no known model.
    """
    state_dict, options = saved["state_dict"], saved.get("options", {})
    head = "new_fc" if "new_fc.weight" in state_dict else "base_model.fc"
    if "type" in options:
        kind = PUBLISHED_NAMES.get(options["type"], options["type"])
        if kind not in BLOCKS:
            raise UserError(f"{path}: its type of block, {printable(kind)}, is none of {', '.join(BLOCKS)}")
    if "type" in options and {"arch", *block_kwargs(kind)} <= options.keys():
        arch, split = options["arch"], {name: options[name] for name in block_kwargs(kind)}
    else:
        arch, fitting = _read_arch(state_dict, path), _fitting_blocks(state_dict, path)
        kind = kind if kind in fitting else next(iter(fitting))
        split = fitting[kind]
    num_class = _tensor(state_dict, f"{head}.weight", 2, path).shape[0]
    if saved.get("num_class", num_class) != num_class:
        raise UserError(f"{path}: says {saved['num_class']} classes, but its classifier has {num_class}")
    return ModelSpec(
        kind, arch, split.get("alpha"), split.get("beta"), num_class, has_dropout=head == "new_fc"
    )


def possible_types(saved: dict[str, Any], path: str | Path) -> list[str]:
    """The types of block that a checkpoint may be of: several only where nothing but its tensors says it.

    Raises:
        UserError: it is of no known model.
    """
    if "type" in saved.get("options", {}):
        return [describe_model(saved, path).type]
    return list(_fitting_blocks(saved["state_dict"], path))


def _read_arch(state_dict: dict[str, torch.Tensor], path: str | Path) -> str:
    """Read a model's arch from the number of its blocks."""
    _tensor(state_dict, "base_model.conv1.weight", 5, path)
    blocks = tuple(
        len({name.split(".")[2] for name in state_dict if name.startswith(f"base_model.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    arch = next((arch for arch, layers in DEPTHS.items() if layers == blocks), None)
    if arch is None:
        raise UserError(f"{path}: its {blocks} blocks are those of no known arch ({', '.join(DEPTHS)})")
    return arch


def _fitting_blocks(state_dict: dict[str, torch.Tensor], path: str | Path) -> dict[str, dict[str, int]]:
    """Find the types of block whose tensors a model's first block has, each with its alpha and beta."""
    first = "base_model.layer1.0."
    found = {name: value.shape for name, value in state_dict.items() if name.startswith(first)}
    found = {name: shape for name, shape in found.items() if "downsample" not in name}
    fitting: dict[str, dict[str, int]] = {}
    differing: list[list[str]] = []
    for kind, block in BLOCKS.items():
        names = block_kwargs(kind)
        for values in itertools.product(*({"alpha": ALPHAS, "beta": BETAS}[name] for name in names)):
            split = dict(zip(names, values, strict=True))
            with torch.device("meta"):
                tensors = block(64, 64, **split).state_dict()
            known = {first + name: tensor.shape for name, tensor in tensors.items()}
            if known == found:
                fitting[kind] = split
            differing.append(sorted(name for name in known | found if known.get(name) != found.get(name)))
    if not fitting:
        culprit = min(differing, key=len)[0]  # as seen from the closest
        problem = f"has '{printable(culprit)}' of a shape" if culprit in found else f"lacks '{culprit}'"
        raise UserError(
            f"{path}: is not a model of this code: {problem}, unlike every type of block ({', '.join(BLOCKS)})"
        )
    return fitting


def _tensor(state_dict: dict[str, torch.Tensor], name: str, dims: int, path: str | Path) -> torch.Tensor:
    tensor = state_dict.get(name)
    if tensor is None or tensor.ndim != dims or 0 in tensor.shape:
        raise UserError(f"{path}: is not a model of this code: it has no {dims}-dimensional tensor '{name}'")
    return tensor


def read_settings(args: Namespace, spec: ModelSpec, options: dict[str, Any]) -> tuple[int, int]:
    """Read the number of segments and the input size from the checkpoint, else from the command line.

    Raises:
        UserError: an option contradicts the checkpoint.
    """
    known = {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    known |= {name: options[name] for name in ("num_segments", "input_size") if name in options}
    for name, value in known.items():
        given = getattr(args, name)
        if given is not None and given != value:
            has = f"no {name}" if value is None else f"{name} {value}"
            raise UserError(f"--{name} {given} contradicts {args.weights}, which has {has}")
    return known.get("num_segments", args.num_segments or 8), known.get("input_size", args.input_size or 224)


def model_line(saved: dict[str, Any], model: TemporalModel, num_class: int, path: str | Path) -> str:
    """A line for the log: which model a checkpoint is of, and what it is evaluated on."""
    unsaid = "" if "options" in saved else ", which the file does not say (--num_segments, --input_size)"
    frames = f"{model.num_segments} frames of {model.input_size} x {model.input_size}"
    return f"{path}: {model.description}, {num_class} classes, {frames}{unsaid}"


def describe_type(saved: dict[str, Any], spec: ModelSpec, args: Namespace) -> str:
    """A line for the log where a checkpoint's tensors leave its type of block open; empty otherwise."""
    types = possible_types(saved, args.weights)
    if len(types) == 1 or args.type:
        return ""
    return f"its tensors may be of {' or '.join(types)}: taken for {spec.type}; --type decides"


def build_model(spec: ModelSpec, num_segments: int, input_size: int, path: str | Path) -> TemporalModel:
    """Build the model that a checkpoint is of; its weights hold whatever was in memory until they are loaded.

    Raises:
        UserError: what the checkpoint says cannot be.
    """
    try:
        with _NoRandomStart():
            return TemporalModel(
                spec.num_class,
                num_segments,
                spec.type,
                spec.arch,
                spec.alpha,
                spec.beta,
                dropout=0.3 if spec.has_dropout else 0,  # the published rate; evaluation has none
                input_size=input_size,
            )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


class _NoRandomStart(TorchFunctionMode):
    """Leave out the random numbers of `torch.nn.init`, which take time and which weights then replace."""

    # Some of its functions come here themselves, of others the method that they call.
    _DRAWS = ("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_")

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


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
        is_whole = not own[name].is_floating_point()  # the counters of batch norm
        if state_dict[name].is_complex() or not (is_whole or state_dict[name].is_floating_point()):
            # Copied, it would lose what lies behind the point, or the imaginary part.
            raise UserError(f"{path}: '{name}' holds {state_dict[name].dtype}, not {own[name].dtype}")
    for name in state_dict:
        if name not in own:
            raise UserError(f"{path}: has a tensor '{printable(name)}' that the model does not have")
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:  # not an ordinary tensor: sparse, quantised, without data
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: its tensors cannot be copied ({reason})") from None


def load_start(
    model: TemporalModel, saved: dict[str, Any], places: list[int] | None, path: str | Path
) -> None:
    """Start a model from another checkpoint: its backbone, and its classifier if the classes are the same.

    Args:
        model: changed in place. It may have dropout where the checkpoint has none, or the other way round.
        saved: what `load_checkpoint` gave.
        places: for each class of the model its place in the checkpoint's classifier; None to leave the
            model's classifier as it is initialised.
        path: the checkpoint's file, for messages.

    Raises:
        UserError: a tensor does not fit.
    """
    head = "new_fc." if describe_model(saved, path).has_dropout else "base_model.fc."
    own_head = "base_model.fc." if model.new_fc is None else "new_fc."
    state_dict = {name: value for name, value in saved["state_dict"].items() if not name.startswith(head)}
    own_classifier = model.classifier.state_dict()
    for name, own in own_classifier.items():
        value = own if places is None else saved["state_dict"].get(f"{head}{name}")
        if value is not None:
            state_dict[f"{own_head}{name}"] = value
    load_weights(model, state_dict, path)
    if places is not None:
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                parameter.copy_(parameter[places])


def class_names(saved: dict[str, Any], path: str | Path) -> list[str] | None:
    """The names of a checkpoint's classes, in the order of its classifier.

    Args:
        saved: what `load_checkpoint` gave. A released one has no names; with 174 classes it has
            Something-Something's, sorted.
        path: its file, for the message.

    Returns:
        None if nothing says them.

    Raises:
        UserError: it has another number of names than of classes.
    """
    num_class = describe_model(saved, path).num_class
    if "categories" not in saved:
        released = released_categories()
        return released if len(released) == num_class else None
    if len(saved["categories"]) != num_class:
        raise UserError(
            f"{path}: names {len(saved['categories'])} categories, but its classifier has {num_class}"
        )
    return saved["categories"]


def find_labels(saved: dict[str, Any], categories: list[str], path: str | Path) -> np.ndarray:
    """Find out which outputs of a checkpoint's classifier are a data set's classes, to evaluate it.

    Args:
        saved: what `load_checkpoint` gave.
        categories: the data set's class names, in any order.
        path: the checkpoint's file, for messages.

    Returns:
        For each label of the data set the checkpoint's.

    Raises:
        UserError: the classes differ in number or, where the checkpoint knows them, in names.
    """
    num_class = describe_model(saved, path).num_class
    if num_class != len(categories):
        raise UserError(f"{path} is for {num_class} classes, but category.txt has {len(categories)}")
    names = class_names(saved, path)
    places = match_categories(categories, names) if names else None
    if places is None and "categories" in saved:
        known = {without_brackets(name) for name in categories}
        unknown = [label for label, name in enumerate(names) if without_brackets(name) not in known]
        differing = [label for label, name in enumerate(names) if name != categories[label]]
        raise _other_class(path, names, categories, (unknown or differing)[0])
    # Without names in it, a checkpoint of 174 other classes may be right.
    return np.array(range(num_class) if places is None else places)


def find_mirrored(saved: dict[str, Any], categories: list[str], path: str | Path) -> list[int]:
    """Find out what each of a checkpoint's classes becomes when a clip is mirrored.

    Args:
        saved: what `load_checkpoint` gave.
        categories: the data set's class names, for a checkpoint whose own are not known.
        path: the checkpoint's file, for the message.

    Returns:
        For each output of the classifier another one, or `NEVER`: as in the checkpoint's training, or by the
        names if it does not say.

    Raises:
        UserError: what the checkpoint says cannot be.
    """
    names = class_names(saved, path) or categories
    mirrored = saved["mirrored"] if "mirrored" in saved else mirrored_labels(names)
    is_right = len(mirrored) == len(names) > max(mirrored)
    # Mirrored twice, a clip is what it was.
    if not is_right or any(
        partner != NEVER and mirrored[partner] != label for label, partner in enumerate(mirrored)
    ):
        raise UserError(f"{path}: its 'mirrored' is not for the {len(names)} classes that it has")
    return mirrored


def describe_labels(labels: np.ndarray, path: str | Path) -> str:
    """A line for the log where `find_labels` found the classes in another order; empty for the same one."""
    same = int((labels == np.arange(len(labels))).sum())
    if same == len(labels):
        return ""
    return (
        f"category.txt has the classes of {path} in another order "
        f"({same} of {len(labels)} in the same place): labels are mapped by name"
    )


def check_categories(saved: dict[str, Any], categories: list[str], path: str | Path) -> None:
    """Check that a checkpoint's classes are the data set's, in the same order, to train it further.

    Args:
        saved: what `load_checkpoint` gave.
        categories: the data set's class names.
        path: the checkpoint's file, for the message.

    Raises:
        UserError: they differ in number or, where the checkpoint knows them, in names or order.
    """
    labels = find_labels(saved, categories, path)
    names = saved.get("categories", categories)
    for label, (old, new) in enumerate(zip(names, categories, strict=True)):
        if labels[label] != label or old != new:
            raise _other_class(path, class_names(saved, path), categories, label)


def _other_class(path: str | Path, names: list[str], categories: list[str], label: int) -> UserError:
    old, new = printable(names[label]), printable(categories[label])
    return UserError(f"{path} has '{old}' as class {label}, but category.txt has '{new}'")
