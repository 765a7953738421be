"""Convert a checkpoint to its weights and the metadata about them, or to the form that the authors released.

    python tools/convert_checkpoint.py --weights FILE --out gst.safetensors
    python tools/convert_checkpoint.py --weights FILE --out gst.pth --dtype bf16      # half the size
    python tools/convert_checkpoint.py --weights FILE --out gst.pth.tar --released    # for the authors' code

FILE is any checkpoint that test_models.py takes, also a converted one. A file that does not say for how many
frames it is, as the released ones, needs --num_segments. --dtype rounds the kernels of convolutions and
classifier; batch norm and biases, less than 1 % of the weights, stay in float32. Nothing is overwritten.
"""

import hashlib
import io
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from opts import add_unsaid_options
from training.checkpoint import (
    ModelSpec,
    build_model,
    class_names,
    describe_model,
    load_checkpoint,
    load_weights,
    model_line,
    possible_types,
    read_settings,
    safetensors_bytes,
    save_checkpoint,
)
from utils.cli import Parser, UserError, log, run_program
from utils.files import check_new_file, open_regular, write_atomically, writing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUFFIXES = (".pth", ".pth.tar", ".safetensors")
# What is kept of a checkpoint, and of its options: those that decide how it is evaluated.
KEPT = ("epoch", "best_prec1", "categories", "mirrored")
KEPT_OPTIONS = ("amp", "batch_size", "source")


def main() -> None:
    """Convert a checkpoint.

    Raises:
        UserError: the checkpoint is not a complete one, does not say enough, or the file cannot be written.
    """
    args = parse_args()
    saved = load_checkpoint(args.weights)
    with open_regular(args.weights) as file:
        source_sha256 = hashlib.sha256(file.read()).hexdigest()
    spec = describe_model(saved, args.weights, args.type)
    options = saved.get("options", {})
    num_segments, input_size = read_settings(args, spec, options)
    model = build_model(spec, num_segments, input_size, args.weights)
    load_weights(model, saved["state_dict"], args.weights)
    class_names(saved, args.weights)  # checks their number
    state_dict = model.state_dict()

    out = Path(args.out)
    if args.released:
        if (spec.type, spec.arch) != ("GST", "resnet50"):
            log.warning(f"warning: the authors' code has no {spec.type} {spec.arch}, only GST with resnet50")
        content = released_content(saved, spec, state_dict)
        buffer = io.BytesIO()
        # As the authors' torch wrote it, and every torch reads it.
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
        with writing("--out", out):
            write_atomically(out, buffer.getvalue())
    else:
        require_known(args, saved, spec)
        metadata = clean_facts(saved, spec) | {"source_sha256": source_sha256}
        metadata["options"] |= {"num_segments": num_segments, "input_size": input_size}
        content = metadata | {"state_dict": rounded(state_dict, args)}
        with writing("--out", out):
            if out.suffix == ".safetensors":
                write_atomically(out, safetensors_bytes(content))
            else:
                save_checkpoint(out, content)
    log.info(model_line(content if "options" in content else saved, model, spec.num_class, args.weights))
    form = "released form" if args.released else args.dtype
    log.info(f"{out}: {form}, {out.stat().st_size / 1e6:.1f} MB")


def parse_args() -> Namespace:
    """Read the command line, and refuse an output that cannot be written."""
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(summary, details)
    parser.add_argument("--weights", required=True, metavar="FILE", help="the checkpoint to convert")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"a new file: {', '.join(SUFFIXES)}")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the kernels (default: fp32)")
    parser.add_argument(
        "--released",
        action="store_true",
        help="write the form of the authors' files: keys with module., epoch, arch and best_prec1, float32, "
        "and nothing about the classes",
    )
    add_unsaid_options(parser, unsaid_frames="needed")
    args = parser.parse_args()
    if not args.out.endswith(SUFFIXES):
        raise UserError(f"--out {args.out}: the name must end in {', '.join(SUFFIXES)}")
    if args.released and args.out.endswith(".safetensors"):
        raise UserError(f"--out {args.out}: with --released the name must end in .pth or .pth.tar")
    if args.released and args.dtype not in (None, "fp32"):
        raise UserError(f"--dtype {args.dtype}: the released form is float32")
    args.dtype = args.dtype or "fp32"
    check_new_file(args.out, "--out")
    return args


def require_known(args: Namespace, saved: dict[str, Any], spec: ModelSpec) -> None:
    """Refuse to write down what nobody has said: later nothing would tell that it was a guess.

    Raises:
        UserError: names the option that says it.
    """
    types = possible_types(saved, args.weights)
    if args.type is None and len(types) > 1:
        raise UserError(
            f"{args.weights}: its tensors may be of {' or '.join(types)}, which it does not say; give --type"
        )
    if args.num_segments is None and "num_segments" not in saved.get("options", {}):
        raise UserError(f"{args.weights}: does not say for how many frames it is; give --num_segments")


def clean_facts(saved: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """What a clean file says of its weights, but for frames and their size.

    Args:
        saved: what `load_checkpoint` gave.
        spec: which model it is of.
    """
    split = {name: value for name in ("alpha", "beta") if (value := getattr(spec, name)) is not None}
    options = {"type": spec.type, "arch": spec.arch, **split}
    known = saved.get("options", {})
    options |= {name: known[name] for name in KEPT_OPTIONS if name in known}
    metadata = {name: saved[name] for name in KEPT if name in saved}
    return metadata | {"arch": spec.arch, "num_class": spec.num_class, "options": options}


def rounded(state_dict: dict[str, torch.Tensor], args: Namespace) -> dict[str, torch.Tensor]:
    """A state dict with its kernels rounded to `args.dtype`; all else stays as it is.

    Raises:
        UserError: a value is too large for this type.
    """
    converted = {}
    for name, value in state_dict.items():
        converted[name] = value.to(DTYPES[args.dtype]) if value.ndim > 1 else value
        if not converted[name].isfinite().all():
            raise UserError(
                f"--dtype {args.dtype}: cannot hold the values of '{name}' in {args.weights} "
                f"(up to {value.abs().max():.3g}); try bf16"
            )
    return converted


def released_content(
    saved: dict[str, Any], spec: ModelSpec, state_dict: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """What a file of the authors holds, all of which their programs read.

    Args:
        saved: what `load_checkpoint` gave; where it does not say epoch and accuracy, they are 0.
        spec: which model it is of.
        state_dict: its tensors, in the model's order.
    """
    return {
        "epoch": saved.get("epoch", 0),
        "arch": spec.arch,
        "state_dict": {f"module.{name}": value for name, value in state_dict.items()},
        "best_prec1": saved.get("best_prec1", 0.0),
    }


if __name__ == "__main__":
    run_program(main)
