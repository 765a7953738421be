"""Write a trained model as a file that runs without this repository: ONNX, PyTorch's .pt2, or TorchScript.

    python tools/export.py --weights FILE
    python tools/export.py --weights FILE --preprocess --softmax
    python tools/export.py --weights FILE --format pt2 --out model.pt2

It holds the fused model, batch norm folded into the convolutions, in float32. The number of clips and
their height and width are free (multiples of 32, in .pt2 from 64 on); the number of frames is the model's.
Class names and metadata are stored in it. Before the file is written its scores for 32 clips are compared with
the model's. Then a few lines of Python say how to run it. See docs/DEPLOYMENT.md.
"""

import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional
from tqdm import tqdm

from engine import to_input
from inference.export import FORMATS, Exported
from inference.onnx_model import Facts
from models import TemporalModel
from opts import add_unsaid_options
from training.checkpoint import (
    ModelSpec,
    build_model,
    class_names,
    describe_model,
    describe_type,
    load_checkpoint,
    load_weights,
    model_line,
    read_settings,
)
from utils.cli import Parser, UserError, log, run_program
from utils.distributed import keep_freed_memory
from utils.files import check_new_file, write_atomically, writing

# The largest difference between the scores of the file and of the model, as a share of the largest score.
TOLERANCE = 1e-4
# The clips that are compared, in batches of these sizes.
BATCHES = (1, 3, 4, 8, 8, 8)
# What a checkpoint's options say about its evaluation, the model aside.
_OPTIONS = ("num_segments", "input_size", "batch_size", "source")


def main() -> None:
    """Export a checkpoint.

    Raises:
        UserError: something that the user can mend, or the file would not compute what the model does.
    """
    args = parse_args()
    suffix = FORMATS[args.format].suffix
    # A checkpoint's name ends in .pth.tar, or in one of them.
    out = args.out or str(Path(args.weights).with_name(_stem(args.weights) + suffix))
    check_new_file(out, "--out", suffix)

    # Model
    saved = load_checkpoint(args.weights)
    spec = describe_model(saved, args.weights, args.type)
    num_segments, input_size = read_settings(args, spec, saved.get("options", {}))
    smallest = FORMATS[args.format].min_size
    if input_size < smallest:
        raise UserError(
            f"--format {args.format}: is for clips of {smallest} x {smallest} pixels or more, and those of "
            f"{args.weights} are {input_size} x {input_size}; use another format"
        )
    model = build_model(spec, num_segments, input_size, args.weights)
    load_weights(model, saved["state_dict"], args.weights)
    model.eval()
    log.info(model_line(saved, model, spec.num_class, args.weights))
    if line := describe_type(saved, spec, args):
        log.info(line)

    # File: made, checked, and only then written.
    keep_freed_memory()
    exported = Exported(model, args.preprocess, args.softmax)
    metadata = describe(saved, spec, model, args)
    content = FORMATS[args.format].save(exported, metadata)
    difference = check(model, exported, FORMATS[args.format].load(content), args.weights)
    log.info(
        f"checked: {sum(BATCHES)} clips have the model's best class, and scores that differ by at most "
        f"{difference:.1g} of the largest"
    )
    with writing("--out", out):
        write_atomically(Path(out), content)
    log.info(f"exported: {out} ({len(content) / 1e6:.1f} MB); to run it:")
    print(f"\n{instructions(args.format, out, exported, metadata)}", end="")


def parse_args() -> Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(summary, details)
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint, own or released")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx needs the packages onnx, onnxruntime, onnxscript",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file to write (default: the checkpoint's name, with another suffix)",
    )
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="take pixels, uint8, batch x frames x height x width x RGB, and normalise them (default: "
        "normalised float32, batch x frames x RGB x height x width)",
    )
    parser.add_argument("--softmax", action="store_true", help="give probabilities (default: logits)")
    add_unsaid_options(parser)
    return parser.parse_args()


def _stem(weights: str) -> str:
    """The name of a checkpoint without what says that it is one."""
    return re.sub(r"(?<=.)(\.(pth|pt|ckpt|safetensors))?(\.tar)?$", "", Path(weights).name)


def describe(saved: dict[str, Any], spec: ModelSpec, model: TemporalModel, args: Namespace) -> Facts:
    """What the file says about its model."""
    known = {name: saved["options"][name] for name in _OPTIONS if name in saved.get("options", {})}
    known |= {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    known |= {"num_segments": model.num_segments, "input_size": model.input_size}
    metadata: Facts = {
        "description": model.description,
        "options": known,
        "num_class": spec.num_class,
        "input_mean": list(model.input_mean),
        "input_std": list(model.input_std),
        "preprocess": args.preprocess,
        "softmax": args.softmax,
    }
    if names := class_names(saved, args.weights):
        metadata["categories"] = names
    if "mirrored" in saved:
        metadata["mirrored"] = saved["mirrored"]
    return metadata


def check(
    model: TemporalModel,
    exported: Exported,
    call: Callable[[torch.Tensor], torch.Tensor],
    path: str | Path,
) -> float:
    """Compare what was exported with the model itself: on 32 clips of its input size, and on one of another.

    Args:
        model: the model, in evaluation mode.
        exported: whose input and output the file has.
        call: computes what is in the file.
        path: the checkpoint, for messages.

    Returns:
        The largest difference, as a share of the largest score.

    Raises:
        UserError: scores differ by more than `TOLERANCE`, best classes differ, or a score is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.input_size
    other = (size // 32 * 32 + 32, size // 32 * 32 + 64)
    shapes = [(number, size, size) for number in BATCHES] + [(1, *other)]
    differences = []
    for number, height, width in tqdm(shapes, desc="check", unit="batch", disable=None, leave=False):
        pixels = make_clips(number, model.num_segments, height, width, generator)
        normalised = to_input(pixels, model)
        with torch.inference_mode():
            expected = model(normalised)
            expected = expected.softmax(dim=1) if exported.softmax else expected
            found = call(pixels if exported.preprocess else normalised)
        if not expected.isfinite().all():
            raise UserError(f"{path}: its scores are not finite; nothing is exported")
        differences.append(float((found - expected).abs().max() / expected.abs().max()))
        has_same_best = torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
        if not (differences[-1] <= TOLERANCE and has_same_best):
            raise UserError(
                f"{path}: exported, its scores would differ by {100 * differences[-1]:.2g} % of the largest"
                f"{'' if has_same_best else ', and so would its answers'}; nothing is exported"
            )
    return max(differences)


def make_clips(number: int, frames: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Random clips, uint8, number x frames x height x width x 3: coarse patterns on each clip's colour."""
    patterns = torch.rand(number, frames, 3, 5, 5, generator=generator)
    colours = torch.rand(number, 1, 3, 1, 1, generator=generator)
    coarse = (patterns + colours).mul_(255 / 2).flatten(0, 1)
    images = functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)
    return images.permute(0, 2, 3, 1).unflatten(0, (number, frames)).contiguous()


_RUN = {
    "onnx": """\
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({file!r})
metadata = json.loads(session.get_modelmeta().custom_metadata_map["metadata"])
clips = np.zeros({shape}, np.{dtype})  # {values}
({scores},) = session.run(None, {{"clips": clips}})
print({answer})
""",
    "pt2": """\
import json
import torch

extra = {{"metadata": ""}}
model = torch.export.load({file!r}, extra_files=extra).module()
metadata = json.loads(extra["metadata"])
clips = torch.zeros({shape}, dtype=torch.{dtype})  # {values}
with torch.inference_mode():
    {scores} = model(clips)
print({answer})
""",
    "torchscript": """\
import json
import torch

extra = {{"metadata": ""}}
model = torch.jit.load({file!r}, _extra_files=extra)
metadata = json.loads(extra["metadata"])
clips = torch.zeros({shape}, dtype=torch.{dtype})  # {values}
with torch.inference_mode():
    {scores} = model(clips)
print({answer})
""",
}


def instructions(kind: str, file: str, exported: Exported, metadata: Facts) -> str:
    """A program in Python that runs an exported file.

    Args:
        kind: its format.
        file: its path.
        exported: what is in it.
        metadata: of the model.
    """
    size = metadata["options"]["input_size"]
    scores = "probabilities" if exported.softmax else "logits"
    best = f"{scores}[0].argmax()"
    return _RUN[kind].format(
        file=file,
        shape=exported.input_shape(1, size, size),
        dtype="uint8" if exported.preprocess else "float32",
        values="RGB, 0 to 255" if exported.preprocess else "RGB, (pixel / 255 - input_mean) / input_std",
        scores=scores,
        answer=f'metadata["categories"][{best}]' if "categories" in metadata else best,
    )


if __name__ == "__main__":
    run_program(main)
