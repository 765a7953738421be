"""Evaluate a checkpoint: `python test_models.py -h` for the options."""

import io
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import opts
from checkpoint import check_categories, describe_model, load_checkpoint, load_weights, write_atomically
from dataset import VideoDataSet, check_videos, evaluation_batches, make_loader
from datasets_video import return_dataset
from distributed import start
from engine import evaluate
from errors import InputError, run_program
from models import TemporalModel
from transforms import evaluation_transform


def main() -> None:
    """Evaluate as the command line says."""
    args = opts.testing_parser().parse_args()
    world = start(args.gpus)
    if args.save_scores:
        check_output(Path(args.save_scores))
    saved = load_checkpoint(args.weights)
    model = build_model(args, saved)

    paths = return_dataset(
        args.dataset, args.root_path, val_list=args.val_list, image_tmpl=args.image_tmpl, for_training=False
    )
    check_categories(saved, paths.categories, args.weights)
    dataset = VideoDataSet(
        paths.root_data,
        paths.val_list,
        model.num_segments,
        paths.prefix,
        transform=evaluation_transform(model.scale_size, model.crop_size),
        random_shift=False,
        test_mode=True,
        num_class=len(paths.categories),
    )
    if args.max_num:
        dataset.keep(np.arange(min(args.max_num, len(dataset))))
    check_videos(dataset, args.skip_missing)
    print(world.describe(args.batch_size))

    began = time.perf_counter()
    batches = evaluation_batches(len(dataset), args.batch_size, world.rank, world.size)
    loader = make_loader(dataset, batches, args.workers)
    result = evaluate(loader, world.place(model), model, world, args.amp, args.print_freq)
    seconds = time.perf_counter() - began
    if args.save_scores and world.is_main:
        videos = [dataset.record(number).path for number in range(len(dataset))]
        content = io.BytesIO()
        np.savez(content, scores=result.scores, labels=result.labels, videos=videos)
        write_atomically(Path(args.save_scores), content.getvalue())
        print(f"scores: {args.save_scores}")
    print(f"Mean class accuracy {result.mean_class:.3f}")
    print(f"{len(dataset)} clips, {len(dataset) / seconds:.1f} clips/s")
    print(f"{result}{dataset.coverage()}")


def check_output(path: Path) -> None:
    """Refuse a file for the scores that is there already or that cannot be written.

    Raises:
        InputError: which, and why.
    """
    if path.suffix != ".npz":
        raise InputError(f"--save_scores {path}: the name must end in .npz")
    if path.exists():
        raise InputError(f"--save_scores {path}: is there already")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--save_scores {path}: cannot write to the folder {path.parent}")


def build_model(args: Namespace, saved: dict[str, Any]) -> TemporalModel:
    """Build the model that the checkpoint is of, with its weights.

    Raises:
        InputError: the checkpoint does not fit together, or an option contradicts it.
    """
    spec = describe_model(saved["state_dict"], args.weights)
    told = {"type": "GST", "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    told |= {name: saved["options"][name] for name in ("num_segments", "input_size") if "options" in saved}
    for name, value in told.items():
        given = getattr(args, name)
        if given is not None and given != value:
            raise InputError(f"--{name} {given} contradicts {args.weights}, which has {name} {value}")
    model = TemporalModel(
        spec.num_class,
        told.get("num_segments", args.num_segments or 8),
        "GST",
        spec.arch,
        spec.alpha,
        spec.beta,
        dropout=0.5 if spec.has_dropout else 0,  # only whether it is there matters here
        input_size=told.get("input_size", args.input_size or 224),
    )
    load_weights(model, saved["state_dict"], args.weights)
    print(
        f"{args.weights}: {spec.arch}, alpha {spec.alpha}, beta {spec.beta}, {spec.num_class} classes, "
        f"{model.num_segments} frames of {model.input_size} x {model.input_size}"
    )
    return model


if __name__ == "__main__":
    run_program(main)
