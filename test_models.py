"""Evaluate a checkpoint: `python test_models.py -h` for the options."""

import io
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import opts
from dataset import (
    VideoDataSet,
    check_videos,
    evaluation_batches,
    make_loader,
)
from datasets_video import return_dataset
from engine import evaluate
from models import TemporalModel
from transforms import evaluation_transform
from utils.checkpoint import (
    ModelSpec,
    check_categories,
    describe_model,
    load_checkpoint,
    load_weights,
    saved_option,
)
from utils.cli import InputError, check_writable_file, run_program
from utils.deploy import keep_freed_memory
from utils.distributed import start
from utils.files import write_atomically
from utils.precision import emulation_warning, evaluation_precision


def main() -> None:
    """Evaluate as the command line says."""
    args = opts.testing_parser().parse_args()
    world = start(args.gpus)
    if world.device.type == "cpu":
        keep_freed_memory()
    if args.save_scores:
        check_output(Path(args.save_scores))
    saved = load_checkpoint(args.weights)
    spec = describe_model(saved["state_dict"], args.weights)
    num_segments, input_size = read_settings(args, spec, saved.get("options", {}))
    precision = evaluation_precision(
        args.amp or ("auto" if args.fast else None),
        saved_option(saved, "amp", args.weights) or "off",
        world.device,
    )
    trained_batch = saved_option(saved, "batch_size", args.weights)
    batch_size = opts.evaluation_batch_size(args.batch_size, trained_batch, len(world.devices))
    compiled = args.compile or args.fast
    if world.is_main and (warning := emulation_warning(precision, world.device)):
        print(warning, file=sys.stderr)

    paths = return_dataset(
        args.dataset, args.root_path, val_list=args.val_list, image_tmpl=args.image_tmpl, for_training=False
    )
    check_categories(saved, paths.categories, args.weights)
    dataset = VideoDataSet(
        paths.root_data,
        paths.val_list,
        num_segments,
        paths.prefix,
        random_shift=False,
        test_mode=True,
        num_class=len(paths.categories),
    )
    if args.max_num:
        dataset.keep(np.arange(min(args.max_num, len(dataset))))
    check_videos(dataset, args.skip_missing)

    model = build_model(spec, num_segments, input_size, args.weights)
    load_weights(model, saved["state_dict"], args.weights)
    dataset.transform = evaluation_transform(model.scale_size, model.crop_size)
    unsaid = "" if "options" in saved else ", which the file does not say (--num_segments, --input_size)"
    print(
        f"{args.weights}: {spec.arch}, alpha {spec.alpha}, beta {spec.beta}, {spec.num_class} classes, "
        f"{num_segments} frames of {input_size} x {input_size}{unsaid}"
    )
    print(f"{world.describe(batch_size)}; {precision}{', compiled' if compiled else ''}")

    model.to(world.device)
    began = time.perf_counter()
    batches = evaluation_batches(len(dataset), batch_size, world.rank, world.size)
    loader = make_loader(dataset, batches, args.workers)
    result = evaluate(loader, model, world, precision.amp, args.print_freq, compiled=compiled)
    seconds = time.perf_counter() - began
    scores_error = None
    if args.save_scores and world.is_main:
        videos = [dataset.record(number).path for number in range(len(dataset))]
        content = io.BytesIO()
        np.savez(content, scores=result.scores, labels=result.labels, videos=videos)
        try:
            write_atomically(Path(args.save_scores), content.getvalue())
        except OSError as error:
            scores_error = error
        else:
            print(f"scores: {args.save_scores}")
    print(f"Mean class accuracy {result.mean_class:.3f}")
    print(f"{len(dataset)} clips, {len(dataset) / seconds:.1f} clips/s")
    print(f"{result}{dataset.coverage()}")
    if scores_error:  # the figures are not lost with them
        raise InputError(f"--save_scores {args.save_scores}: cannot be written ({scores_error.strerror})")


def check_output(path: Path) -> None:
    """Refuse a file for the scores that already exists or that cannot be written.

    Raises:
        InputError: which, and why.
    """
    if path.suffix != ".npz":
        raise InputError(f"--save_scores {path}: the name must end in .npz")
    check_writable_file(path, "--save_scores")
    if path.exists():
        raise InputError(f"--save_scores {path}: already exists")


def read_settings(args: Namespace, spec: ModelSpec, options: dict[str, Any]) -> tuple[int, int]:
    """Tell the number of segments and the input size from the checkpoint, else from the command line.

    Raises:
        InputError: an option contradicts the checkpoint.
    """
    told = {"type": "GST", "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    told |= {name: options[name] for name in ("num_segments", "input_size") if name in options}
    for name, value in told.items():
        given = getattr(args, name)
        if given is not None and given != value:
            raise InputError(f"--{name} {given} contradicts {args.weights}, which has {name} {value}")
    settings = (
        told.get("num_segments", args.num_segments or 8),
        told.get("input_size", args.input_size or 224),
    )
    if not all(isinstance(value, int) and value > 0 for value in settings):
        raise InputError(f"{args.weights}: num_segments and input_size {settings} cannot be right")
    return settings


def build_model(spec: ModelSpec, num_segments: int, input_size: int, path: str) -> TemporalModel:
    """Build the model that a checkpoint is of.

    Raises:
        InputError: what the checkpoint says cannot be.
    """
    try:
        return TemporalModel(
            spec.num_class,
            num_segments,
            "GST",
            spec.arch,
            spec.alpha,
            spec.beta,
            dropout=0.5 if spec.has_dropout else 0,  # only whether it is there matters here
            input_size=input_size,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


if __name__ == "__main__":
    run_program(main)
