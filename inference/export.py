"""Export a trained model as a file that runs without this repository: ONNX or PyTorch's .pt2."""

import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from inference.fuse import fuse
from inference.onnx_model import INPUT, METADATA, open_session, run_session, seal
from models import TemporalModel
from utils.cli import UserError


class Exported(nn.Module):
    """The module that is exported: the fused model, optionally with preprocessing and softmax.

    Input:  batch x num_segments x 3 x height x width, float32, normalised by the model's mean and std;
            with `preprocess` batch x num_segments x height x width x 3, uint8. RGB, frames in time order
    Output: batch x num_class logits; with `softmax` probabilities

    Args:
        model: on the CPU; it is not changed.
        preprocess: take pixels and normalise them.
        softmax: return probabilities.
    """

    def __init__(self, model: TemporalModel, preprocess: bool = False, softmax: bool = False) -> None:
        super().__init__()
        self.model = fuse(model, torch.device("cpu"), plain=True)
        self.preprocess = preprocess
        self.softmax = softmax
        self.register_buffer("mean", torch.tensor(model.input_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.input_std).view(3, 1, 1))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        logits = self.model(self.normalise(clips) if self.preprocess else clips)
        return logits.softmax(dim=1) if self.softmax else logits

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 pixels to the model's input, as `engine.PixelModel` does."""
        return (pixels.permute(0, 1, 4, 2, 3).float() / 255 - self.mean) / self.std


def to_onnx(module: Exported, metadata: dict[str, Any]) -> bytes:
    """Export as ONNX, with the metadata in the file's own metadata.

    Raises:
        UserError: a package is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401 - for the check
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install onnx onnxruntime onnxscript") from None
    program = torch.onnx.export(
        _export(module),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=["probabilities" if module.softmax else "logits"],
        dynamic_shapes=(_free_sizes(module),),
    )
    content = program.model_proto
    for node in content.graph.node:  # remove paths and line numbers of this source, see `_export`
        del node.metadata_props[:]
    content.metadata_props.add(key=METADATA, value=json.dumps(metadata))
    return seal(content.SerializeToString())


def to_pt2(module: Exported, metadata: dict[str, Any]) -> bytes:
    """Export by torch.export, with the metadata as an extra file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights on GPUs
        torch.export.save(_export(module), content, extra_files={METADATA: json.dumps(metadata)})
    return content.getvalue()


def load_onnx(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load the content of an ONNX file as a function."""
    return partial(run_session, open_session(content))


def load_pt2(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load the content of a .pt2 file as a function."""
    return torch.export.load(io.BytesIO(content)).module()


# Suffix of a format -> functions that save and load it.
FORMATS = {"onnx": (to_onnx, load_onnx), "pt2": (to_pt2, load_pt2)}


def _free_sizes(module: Exported) -> dict[int, str]:
    """The axes of the input that may have any size."""
    return (
        {0: "batch", 2: "height", 3: "width"} if module.preprocess else {0: "batch", 3: "height", 4: "width"}
    )


def _export(module: Exported) -> torch.export.ExportedProgram:
    frames = module.model.num_segments
    # The free sizes are different, and none is 1 or 3. Otherwise torch.export would infer a constraint.
    if module.preprocess:
        example = torch.zeros(2, frames, 64, 96, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(2, frames, 3, 64, 96)
    sizes = dict.fromkeys(_free_sizes(module), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=(sizes,), strict=False)
    for node in program.graph.nodes:  # remove paths and line numbers of this source
        node.meta.pop("stack_trace", None)
    return program
