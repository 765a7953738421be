"""A model exported as ONNX by tools/export.py, for the programs that evaluate a checkpoint."""

import hashlib
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import TemporalModel
from utils.cli import UserError
from utils.distributed import World

# The name of the graph's only input.
INPUT = "clips"
# Exported files have a JSON text with this name, see `tools.export.make_metadata`.
METADATA = "metadata"
# The last entry of a file's metadata in protobuf's encoding (field 14): 'sha256', and 64 hexadecimal digits.
SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"


def choose_devices(path: str | Path, args: Namespace, world: World) -> World:
    """Restrict a program to the CPU if its model is an ONNX file.

    Args:
        path: the file of the model.
        args: options of the program.
        world: the devices of this process.

    Raises:
        UserError: an option that an ONNX file does not support.
    """
    if Path(path).suffix.lower() != ".onnx":
        return world
    for name in ("amp", "compile", "fast", "gpus", "save_features", "cam"):
        if getattr(args, name, None) not in (None, False, "off"):
            raise UserError(
                f"--{name}: is not supported with {path}, which computes in float32 on the CPU; "
                "use the checkpoint"
            )
    return replace(world, devices=[torch.device("cpu")])


class OnnxModel(nn.Module):
    """An exported model with the interface of `TemporalModel`.

    Input:  batch x num_segments x 3 x height x width, float32, normalised by `input_mean` and `input_std`
    Output: batch x num_class logits. For a file with softmax: the logarithms of its probabilities.

    Raises:
        UserError: the file was not written by tools/export.py, or onnxruntime is missing.
    """

    scale_size = TemporalModel.scale_size  # a property that reads `input_size`

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.session, metadata = _read(path)
        self.takes_pixels = metadata["preprocess"]
        self.gives_probabilities = metadata["softmax"]
        self.input_mean, self.input_std = tuple(metadata["input_mean"]), tuple(metadata["input_std"])
        if self.takes_pixels:  # makes the normalised values equal to the pixels, from 0 to 255
            self.input_mean, self.input_std = (0.0,) * 3, (1 / 255,) * 3
        options = metadata["options"]
        self.num_segments, self.input_size = options["num_segments"], options["input_size"]
        self.description = f"{metadata['description']}, ONNX"
        # What a checkpoint of this model would contain. Its only tensor is the classifier's, without data.
        self.checkpoint = {
            name: metadata[name] for name in ("options", "categories", "mirrored") if name in metadata
        }
        classifier = torch.empty(metadata["num_class"], 1, device="meta")
        self.checkpoint["state_dict"] = {"base_model.fc.weight": classifier}

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        if self.takes_pixels:
            clips = clips.round().to(torch.uint8).permute(0, 1, 3, 4, 2)
        scores = run_session(self.session, clips)
        if self.gives_probabilities:
            scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores


def seal(content: bytes) -> bytes:
    """Append a checksum to an ONNX file, as another entry of its metadata."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def open_session(content: bytes) -> Any:
    """Open an ONNX model as an `onnxruntime.InferenceSession` on the CPU, with torch's number of threads.

    Raises:
        UserError: onnxruntime is not installed.
    """
    try:
        import onnxruntime  # optional
    except ImportError:
        raise UserError("ONNX needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, clips: torch.Tensor) -> torch.Tensor:
    """Compute the output of an exported model."""
    (output,) = session.run(None, {INPUT: np.ascontiguousarray(clips.numpy())})
    return torch.from_numpy(output)


def _read(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Open a file from tools/export.py, and read its metadata."""
    content = Path(path).read_bytes()
    if content != seal(content[: -len(SEAL) - 64]):
        raise UserError(f"{path}: was not written by tools/export.py, or is damaged (no valid checksum)")
    session = open_session(content)
    return session, json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
