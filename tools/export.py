"""Export a trained model as a file that runs without this repository: ONNX or PyTorch's .pt2.

    python tools/export.py --weights FILE
    python tools/export.py --weights FILE --preprocess --softmax
    python tools/export.py --weights FILE --format pt2 --out model.pt2

The file contains the fused model (batch norm folded into the convolutions) in float32, the class names and a
description of the model. It accepts any number of clips larger than 32 x 32, with a fixed number of frames.
It is written only if its scores agree with those of the model. docs/DEPLOYMENT.md shows how to run it.
"""

import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from inference.export import FORMATS, Exported
from inference.load import LoadedModel, load_model
from models import TemporalModel
from opts import add_unstored_options
from training.describe import class_names
from utils.cli import Parser, UserError, log, run_program
from utils.distributed import keep_freed_memory
from utils.files import check_new_file, write_new, writing

# The largest difference between the scores of the file and of the model, relative to the largest score.
TOLERANCE = 1e-4


def main() -> None:
    """Export a checkpoint.

    Raises:
        UserError: the checkpoint cannot be used, the file cannot be written, or its scores differ from the
            model's.
    """
    args = parse_args()
    args.format = args.format or ("pt2" if str(args.out).endswith(".pt2") else "onnx")
    # The name of a checkpoint without its suffixes.
    stem = re.sub(r"(?<=.)(\.(pth|pt|ckpt|safetensors))?(\.tar)?$", "", Path(args.weights).name)
    out = Path(args.out or Path(args.weights).with_name(f"{stem}.{args.format}"))
    check_new_file(out, "--out", f".{args.format}")
    keep_freed_memory()

    loaded = load_model(args.weights, args)
    log.info(loaded.describe())
    exported = Exported(loaded.model, args.preprocess, args.softmax)
    save, load = FORMATS[args.format]
    log.info(f"exporting as {args.format}; this takes seconds to minutes")
    content = save(exported, make_metadata(loaded, args))
    log.info(f"comparing the scores of the file ({len(content) / 1e6:.1f} MB) with the checkpoint's")
    difference = check(loaded.model, exported, load(content), args.weights)
    log.info(f"checked: same top classes; scores differ by at most {difference:.1g} of the largest score")
    with writing("--out", out):
        write_new(out, content)
    log.info(f"exported: {out}; docs/DEPLOYMENT.md shows how to run it")


def parse_args() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a checkpoint of main.py or a released one"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: the suffix of --out, or onnx")
    parser.add_argument("--out", metavar="FILE", help="default: the checkpoint's name with another suffix")
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="take uint8 pixels, batch x frames x height x width x RGB, and normalise them (default: "
        "normalised float32, batch x frames x RGB x height x width)",
    )
    parser.add_argument("--softmax", action="store_true", help="return probabilities (default: logits)")
    add_unstored_options(parser)
    return parser.parse_args()


def make_metadata(loaded: LoadedModel, args: Namespace) -> dict[str, Any]:
    """Describe the model for the exported file."""
    model, spec = loaded.model, loaded.spec
    names = {"batch_size", "source", "consensus"} & loaded.options.keys()
    options = {name: loaded.options[name] for name in sorted(names)}
    options |= {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    options |= {"num_segments": model.num_segments, "input_size": model.input_size}
    metadata = {
        "description": model.description,
        "options": options,
        "num_class": spec.num_class,
        "input_mean": list(model.input_mean),
        "input_std": list(model.input_std),
        "preprocess": args.preprocess,
        "softmax": args.softmax,
    }
    if categories := class_names(loaded.checkpoint, args.weights):
        metadata["categories"] = categories
    if "mirrored" in loaded.checkpoint:
        metadata["mirrored"] = loaded.checkpoint["mirrored"]
    return metadata


def check(
    model: TemporalModel,
    exported: Exported,
    run_file: Callable[[torch.Tensor], torch.Tensor],
    path: str | Path,
) -> float:
    """Compare the output of the file (`run_file`) with the model, on random clips of two sizes.

    Returns:
        The largest difference between scores, relative to the largest score.

    Raises:
        UserError: scores differ by more than `TOLERANCE` or are not finite, or top classes differ.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.input_size
    other_size = size // 32 * 32 + 32
    largest = 0.0
    for clips, width in ((1, size), (3, size), (1, other_size)):
        shape = (clips, model.num_segments, size, width, 3)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        normalised = exported.normalise(pixels)
        with torch.inference_mode():
            expected = model(normalised)
            expected = expected.softmax(dim=1) if exported.softmax else expected
            scores = run_file(pixels if exported.preprocess else normalised)
        difference = float((scores - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE or not torch.equal(scores.argmax(dim=1), expected.argmax(dim=1)):
            raise UserError(
                f"{path}: not exported, because the scores of the exported model are not finite or differ "
                f"from the checkpoint's (by {100 * difference:.2g} % of the largest, or in the top class)"
            )
        largest = max(largest, difference)
    return largest


if __name__ == "__main__":
    run_program(main)
