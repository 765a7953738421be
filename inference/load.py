"""Load a model from a checkpoint of this code, a released one, a bare state dict, or an ONNX file."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.overrides import TorchFunctionMode

from inference.fuse import fuse
from inference.onnx_model import OnnxModel
from models import TemporalModel
from training.checkpoint import load_checkpoint, load_weights
from training.describe import ModelSpec, describe_model, possible_types
from utils.cli import UserError
from utils.distributed import World
from utils.precision import DTYPES, Precision, evaluation_precision

# The options of a model that a file may store.
NO_OPTIONS = Namespace(type=None, arch=None, alpha=None, beta=None, num_segments=None, input_size=None)


class LoadedModel(NamedTuple):
    """A model and the file that it was loaded from.

    Attributes:
        model: in evaluation mode; on the CPU in float32, except after `load_fused`.
        spec: the model configuration.
        checkpoint: the content of the file, see `load_checkpoint`.
        is_type_guessed: whether the tensors fit several types of block, and neither file nor user names one.
    """

    model: TemporalModel | OnnxModel
    spec: ModelSpec
    checkpoint: dict[str, Any]
    path: str | Path
    is_type_guessed: bool

    @property
    def options(self) -> dict[str, Any]:
        """The options that the checkpoint was trained with; empty if the file does not have them."""
        return self.checkpoint.get("options", {})

    def describe(self) -> str:
        """Describe the model in one line for the log."""
        model = self.model
        frames = f"{model.num_segments} frames of {model.input_size} x {model.input_size}"
        line = f"{self.path}: {model.description}, {self.spec.num_class} classes, {frames}"
        if not self.options:
            line += ", not stored in the file (--num_segments, --input_size)"
        if "origin" in self.checkpoint:
            line += f"; {self.checkpoint['origin']}"
        if self.is_type_guessed:
            types = " or ".join(possible_types(self.checkpoint, self.path))
            line += f"; its tensors fit {types}; using {self.spec.type} (override with --type)"
        return line


def load_model(
    path: str | Path,
    options: Namespace = NO_OPTIONS,
    allow_onnx: bool = False,
    allow_guess: bool = True,
) -> LoadedModel:
    """Load a model in evaluation mode on the CPU.

    Args:
        path: a checkpoint (see `load_checkpoint`) or an ONNX file from tools/export.py.
        options: the user's options, which must not contradict the file; see `NO_OPTIONS`. Without sizes in
            either, the model has the published 8 frames of 224 x 224.
        allow_onnx: whether an ONNX file is accepted.
        allow_guess: whether to guess the type of block if the tensors fit several types.

    Raises:
        UserError: the file cannot be used, or an option contradicts it.
    """
    onnx_model = OnnxModel(path) if allow_onnx and Path(path).suffix.lower() == ".onnx" else None
    checkpoint = onnx_model.checkpoint if onnx_model else load_checkpoint(path)
    spec = describe_model(checkpoint, path, options.type)
    types = possible_types(checkpoint, path)
    is_type_guessed = options.type is None and len(types) > 1
    if is_type_guessed and not allow_guess:
        raise UserError(f"{path}: its tensors fit {' or '.join(types)}; specify the type")
    num_segments, input_size = _check_options(options, spec, checkpoint.get("options", {}), path)
    if onnx_model:
        return LoadedModel(onnx_model.eval(), spec, checkpoint, path, is_type_guessed)
    try:
        with _NoInitialisation():
            model = TemporalModel(
                *(spec.num_class, num_segments, spec.type, spec.arch, spec.alpha, spec.beta),
                dropout=0.3 if spec.has_dropout else 0,  # any rate above 0 gives the same names of tensors
                input_size=input_size,
                consensus=spec.consensus,
            )
    except ValueError as error:  # for example a consensus from other code
        raise UserError(f"{path}: {error}") from None
    load_weights(model, checkpoint["state_dict"], path)
    return LoadedModel(model.eval(), spec, checkpoint, path, is_type_guessed)


def load_fused(
    path: str | Path,
    options: Namespace,
    world: World,
    amp: str | None = None,
    plain: bool = False,
) -> tuple[LoadedModel, Precision]:
    """Load a model and fuse it for evaluation on a device.

    Args:
        path: see `load_model`; ONNX is accepted.
        options: see `load_model`.
        world: the model runs on its first device, which must be the CPU for an ONNX file.
        amp: a key of `DTYPES`, 'auto', or None for the precision of training.
        plain: see `fuse`.

    Returns:
        The fused model on the device, and the precision it computes in.

    Raises:
        UserError: see `load_model`.
    """
    loaded = load_model(path, options, allow_onnx=True)
    precision = evaluation_precision(amp, loaded.options.get("amp", "off"), world.device)
    model = fuse(loaded.model, world.device, DTYPES[precision.amp], plain).to(world.device)
    return loaded._replace(model=model), precision


class _NoInitialisation(TorchFunctionMode):
    """Skip the random initialisation of `torch.nn.init`, which takes half a second."""

    FUNCTIONS = ("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_")

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) in self.FUNCTIONS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _check_options(
    options: Namespace, spec: ModelSpec, checkpoint_options: dict[str, Any], path: str | Path
) -> tuple[int, int]:
    """Check the user's options against the file, and return the number of segments and the input size."""
    file_options = {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    file_options["consensus"] = spec.consensus
    for name in ("num_segments", "input_size"):
        if name in checkpoint_options:
            file_options[name] = checkpoint_options[name]
    for name, value in file_options.items():
        option = getattr(options, name, None)  # only main.py has --consensus
        if option is not None and option != value:
            description = f"no {name}" if value is None else f"{name} {value}"
            raise UserError(f"--{name} {option} contradicts {path}, which has {description}")
    num_segments = file_options.get("num_segments", options.num_segments or 8)
    input_size = file_options.get("input_size", options.input_size or 224)
    return num_segments, input_size
