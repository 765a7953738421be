"""Convert a checkpoint to a clean file with weights and metadata.

    python tools/convert_checkpoint.py --weights FILE --out gst.safetensors
    python tools/convert_checkpoint.py --weights FILE --out gst.pth --dtype bf16      # half the size

FILE is any checkpoint that test_models.py accepts, or a converted one. Files that do not store their options,
such as the released ones, need --num_segments. --dtype rounds the kernels of convolutions and classifier;
batch norm and biases (less than 1 % of the weights) stay in float32. Existing files are not overwritten.
"""

import hashlib
import io
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import safetensors.torch
import torch

from inference.load import LoadedModel, load_model
from opts import add_unstored_options
from utils.cli import Parser, UserError, log, run_program
from utils.files import check_new_file, write_new, writing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUFFIXES = (".pth", ".pth.tar", ".safetensors")
# The values and options of a checkpoint that are copied to a clean file.
KEPT = ("epoch", "best_prec1", "best_mean_class", "categories", "mirrored")
KEPT_OPTIONS = ("amp", "batch_size", "consensus", "source")


def main() -> None:
    args = parse_args()
    loaded = load_model(args.weights, args, allow_guess=False)
    if args.num_segments is None and "num_segments" not in loaded.options:
        raise UserError(f"{args.weights}: does not store its number of frames; use --num_segments")
    content = clean_content(loaded)
    content["source_sha256"] = hashlib.sha256(Path(args.weights).read_bytes()).hexdigest()
    state_dict = round_kernels(loaded.model.state_dict(), args.dtype)
    buffer = io.BytesIO()
    if args.out.endswith(".safetensors"):  # all other values are JSON in the header
        buffer.write(safetensors.torch.save(state_dict, {"format": "pt", "gst": json.dumps(content)}))
    else:
        torch.save(content | {"state_dict": state_dict}, buffer)
    with writing("--out", args.out):
        write_new(Path(args.out), buffer.getvalue())
    log.info(loaded.describe())
    log.info(f"{args.out}: {args.dtype}, {len(buffer.getvalue()) / 1e6:.1f} MB")


def parse_args() -> Namespace:
    """Read the command line, and check that the output can be written."""
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(summary, details)
    parser.add_argument("--weights", required=True, metavar="FILE", help="the checkpoint to convert")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"a new file: {', '.join(SUFFIXES)}")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="type of the kernels")
    add_unstored_options(parser, default_frames="needed")
    args = parser.parse_args()
    if not args.out.endswith(SUFFIXES):
        raise UserError(f"--out {args.out}: the name must end in {', '.join(SUFFIXES)}")
    check_new_file(args.out, "--out")
    return args


def clean_content(loaded: LoadedModel) -> dict[str, Any]:
    """The content of a clean file, without its tensors."""
    spec, model = loaded.spec, loaded.model
    options = {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"num_segments": model.num_segments, "input_size": model.input_size}
    options |= {name: loaded.options[name] for name in KEPT_OPTIONS if name in loaded.options}
    content = {name: loaded.checkpoint[name] for name in KEPT if name in loaded.checkpoint}
    return content | {"arch": spec.arch, "num_class": spec.num_class, "options": options}


def round_kernels(state_dict: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """Round the kernels in a state dict."""
    rounded = {}
    for name, value in state_dict.items():
        rounded[name] = value.to(DTYPES[dtype]) if value.ndim > 1 else value
        if not rounded[name].isfinite().all():
            raise UserError(f"--dtype {dtype}: cannot represent the values of '{name}'; try bf16")
    return rounded


if __name__ == "__main__":
    run_program(main)
