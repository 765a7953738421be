"""A model that tools/export.py has written as ONNX, for the programs that evaluate a checkpoint."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, JsonValue, with_config
from torch import nn
from typing_extensions import NotRequired, TypedDict

from models import TemporalModel
from inference.load import is_onnx
from training.checkpoint import Positive, SavedOptions, check_schema, load_checkpoint
from utils.cli import UserError, printable
from utils.distributed import World
from utils.files import open_regular

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# The name of the graph's only input.
INPUT = "clips"
# The name under which an exported file has the metadata about its model, a text in JSON.
FACTS = "metadata"
_NEEDED = ("type", "arch", "num_segments", "input_size")
# Options of the programs that an ONNX file has nothing for.
_REFUSED = ("amp", "compile", "fast", "gpus", "save_features")


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
class Facts(TypedDict):
    """What an exported file says about its model."""

    description: str
    options: SavedOptions  # the model's, all of `_NEEDED`, and what else decides an evaluation
    num_class: Positive
    input_mean: list[float]  # of the pixels' channels, divided by 255
    input_std: list[float]
    preprocess: bool  # whether the graph normalises pixels
    softmax: bool  # whether it gives probabilities
    categories: NotRequired[list[str]]
    mirrored: NotRequired[list[Annotated[int, Field(ge=-1)]]]  # as in a checkpoint


def open_weights(args: Namespace, world: World) -> tuple[dict[str, Any], "OnnxModel | None", World]:
    """Open the file that `--weights` names, a checkpoint or an exported ONNX model.

    Args:
        args: of a program.
        world: of this process.

    Returns:
        What `load_checkpoint` gives, for an ONNX model with its classifier's shape as the only tensor; the
        ONNX model, or None; and the world that computes, which has the CPU alone for an ONNX model.

    Raises:
        UserError: it cannot be used, or an option does not go with it.
    """
    if not is_onnx(args.weights):
        return load_checkpoint(args.weights), None, world
    for name in _REFUSED:
        if getattr(args, name, None) not in (None, False, "off"):
            raise UserError(
                f"--{name}: does not go with an ONNX file ({args.weights}), which gives scores in float32 on "
                "the CPU and nothing else; use the checkpoint"
            )
    model = OnnxModel(args.weights)
    return model.saved, model, replace(world, devices=[torch.device("cpu")])


class OnnxModel(nn.Module):
    """An exported model that is called like the `TemporalModel` that it was made of.

    Input:  batch x num_segments x 3 x height x width, float32, normalised by `input_mean` and `input_std`
    Output: batch x num_class logits; of a file with softmax in it the logarithms of its probabilities,
            which are logits, too

    Args:
        path: the file.

    Raises:
        UserError: it cannot be read, or tools/export.py has not written it; or onnxruntime is missing.
    """

    scale_size = TemporalModel.scale_size  # a property of `input_size`

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.session, metadata = _read(path)
        self.takes_pixels = metadata["preprocess"]
        self.gives_probabilities = metadata["softmax"]
        self.input_mean, self.input_std = TemporalModel.input_mean, TemporalModel.input_std
        if self.takes_pixels:  # then the normalised values are the pixels' own, from 0 to 255
            self.input_mean, self.input_std = (0.0,) * 3, (1 / 255,) * 3
        options = metadata["options"]
        self.num_segments, self.input_size = options["num_segments"], options["input_size"]
        self.description = f"{metadata['description']}, ONNX"
        classifier = torch.empty(metadata["num_class"], 1, device="meta")
        self.saved = {
            name: metadata[name] for name in ("options", "categories", "mirrored") if name in metadata
        }
        self.saved["state_dict"] = {"base_model.fc.weight": classifier}

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        if self.takes_pixels:
            clips = clips.round().to(torch.uint8).permute(0, 1, 3, 4, 2)
        scores = outputs_of(self.session, clips)
        if self.gives_probabilities:
            scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores


def open_session(content: bytes) -> "InferenceSession":
    """Open an ONNX model, to be computed on the CPU with as many threads as torch uses.

    Raises:
        UserError: onnxruntime is not installed.
    """
    try:
        import onnxruntime  # optional
    except ImportError:
        raise UserError("ONNX needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised anyway
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def outputs_of(session: "InferenceSession", clips: torch.Tensor) -> torch.Tensor:
    """The output of an exported model for its input."""
    (output,) = session.run(None, {INPUT: np.ascontiguousarray(clips.numpy())})
    return torch.from_numpy(output)


def _read(path: str | Path) -> tuple["InferenceSession", dict[str, Any]]:
    """Open a file, and read what tools/export.py has written about it."""
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        session = open_session(content)
    except UserError:
        raise
    except Exception as error:  # whatever bytes can make onnxruntime raise; the file is at fault
        reason = printable((str(error).splitlines() or [""])[0])
        raise UserError(f"{path}: is not an ONNX model, or is damaged ({reason})") from None
    try:
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[FACTS])
    except (KeyError, ValueError):
        raise UserError(f"{path}: was not written by tools/export.py: its metadata has no {FACTS}") from None
    check_schema(Facts, metadata, f"{FACTS}.", path)
    check_schema(dict[str, JsonValue], metadata["options"], f"{FACTS}.options.", path)
    for name in _NEEDED:
        if name not in metadata["options"]:
            raise UserError(f"{path}: its {FACTS} do not say its {name}")
    frames, num_class = metadata["options"]["num_segments"], metadata["num_class"]
    clips = [None, frames, None, None, 3] if metadata["preprocess"] else [None, frames, 3, None, None]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = [[size if isinstance(size, int) else None for size in one.shape] for one in (*inputs, *outputs)]
    if found != [clips, [None, num_class]] or inputs[0].name != INPUT:
        raise UserError(f"{path}: its graph is not for clips of {frames} frames and {num_class} classes")
    return session, metadata
