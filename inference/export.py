"""A trained model as a file that runs without this repository: ONNX, PyTorch's .pt2, or TorchScript."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from inference.fuse import fuse
from inference.onnx_model import FACTS, INPUT, Facts, open_session, outputs_of
from models import TemporalModel
from utils.cli import UserError


class Exported(nn.Module):
    """What is exported: the fused form of a model, and what is to be in the file around it.

    Input:  batch x num_segments x 3 x height x width, float32, normalised by the model's mean and std;
            with `preprocess` batch x num_segments x height x width x 3, uint8. RGB, frames in time order
    Output: batch x num_class logits; with `softmax` probabilities

    Args:
        model: on the CPU; stays as it is.
        preprocess: take pixels, and normalise them.
        softmax: give probabilities.
    """

    def __init__(self, model: TemporalModel, preprocess: bool = False, softmax: bool = False) -> None:
        super().__init__()
        self.model = fuse(model, torch.device("cpu"))
        self.preprocess = preprocess
        self.softmax = softmax
        self.register_buffer("mean", torch.tensor(model.input_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.input_std).view(3, 1, 1))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        if self.preprocess:  # as `engine.to_input` does it
            clips = (clips.permute(0, 1, 4, 2, 3).float() / 255 - self.mean) / self.std
        logits = self.model(clips)
        return logits.softmax(dim=1) if self.softmax else logits

    def input_shape(self, clips: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of the input for so many clips."""
        frames = self.model.num_segments
        return (clips, frames, height, width, 3) if self.preprocess else (clips, frames, 3, height, width)

    def example(self) -> torch.Tensor:
        """An input to trace with; none of its free sizes is 1, 3 or equal to another one."""
        return torch.zeros(self.input_shape(2, 64, 96), dtype=torch.uint8 if self.preprocess else None)


def to_onnx(module: Exported, metadata: Facts) -> bytes:
    """Export as ONNX; the metadata are in its metadata.

    Raises:
        UserError: one of the packages is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401 - for the check
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install onnx onnxruntime onnxscript") from None
    sizes = {0: "batch"} | dict(zip(_free(module)[1:], ("height", "width"), strict=True))
    with _quiet():
        program = torch.onnx.export(
            _program(module),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=["probabilities" if module.softmax else "logits"],
            dynamic_shapes=(sizes,),
        )
    content = program.model_proto
    for node in content.graph.node:  # where in this source it comes from, as in `_program`
        del node.metadata_props[:]
    content.metadata_props.add(key=FACTS, value=json.dumps(metadata))
    return content.SerializeToString()


def to_pt2(module: Exported, metadata: Facts) -> bytes:
    """Export as torch.export does; the metadata are an extra file in it."""
    content = io.BytesIO()
    with _quiet():
        torch.export.save(_program(module), content, extra_files={FACTS: json.dumps(metadata)})
    return content.getvalue()


def to_torchscript(module: Exported, metadata: Facts) -> bytes:
    """Export by torch.jit.trace; the metadata are an extra file in it."""
    content = io.BytesIO()
    with _quiet(), torch.inference_mode():
        traced = torch.jit.trace(module, module.example(), check_trace=False)
        torch.jit.save(traced, content, _extra_files={FACTS: json.dumps(metadata)})
    return content.getvalue()


def load_onnx(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load what `to_onnx` gave, to call it."""
    session = open_session(content)
    return lambda clips: outputs_of(session, clips)


def load_pt2(content: bytes) -> nn.Module:
    """Load what `to_pt2` gave, to call it."""
    with _quiet():
        return torch.export.load(io.BytesIO(content)).module()


def load_torchscript(content: bytes) -> nn.Module:
    """Load what `to_torchscript` gave, to call it."""
    with _quiet():
        return torch.jit.load(io.BytesIO(content))


class Format(NamedTuple):
    """A format of exported files.

    Attributes:
        suffix: of their names.
        min_size: the smallest height and width of a clip, in pixels.
        save: makes a file's content of the module and the metadata.
        load: makes something to call of the content.
    """

    suffix: str
    min_size: int
    save: Callable[[Exported, Facts], bytes]
    load: Callable[[bytes], Callable[[torch.Tensor], torch.Tensor]]


FORMATS = {
    "onnx": Format(".onnx", 32, to_onnx, load_onnx),
    # torch.export assumes that no size becomes 1 on the way, as 32 does.
    "pt2": Format(".pt2", 33, to_pt2, load_pt2),
    "torchscript": Format(".torchscript", 32, to_torchscript, load_torchscript),
}


def _free(module: Exported) -> tuple[int, int, int]:
    """The dimensions of the input that may have any size: clips, height and width."""
    return (0, 2, 3) if module.preprocess else (0, 3, 4)


def _program(module: Exported) -> torch.export.ExportedProgram:
    free = dict.fromkeys(_free(module), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), (module.example(),), dynamic_shapes=(free,), strict=False
        )
    for node in program.graph.nodes:  # the lines and folders of this source: of no use elsewhere
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's advice about its formats, and about packages that it can do without, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
