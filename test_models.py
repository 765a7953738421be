"""Evaluate a checkpoint; `python test_models.py -h` lists the options.

python test_models.py --weights FILE --dataset somethingv2 --root_path DATA
torchrun --nproc_per_node=8 test_models.py --weights FILE --dataset somethingv2 --root_path DATA
"""

import io
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from dataset import ClipLoader, check_excluded, evaluation_batches, open_videos, read_excluded, renumber
from datasets_video import return_dataset
from engine import evaluate
from opts import evaluation_batch_size, testing_parser
from transforms import evaluation_transform
from utils.checkpoint import (
    ModelSpec,
    build_model,
    describe_labels,
    describe_model,
    find_labels,
    load_checkpoint,
    load_weights,
    possible_types,
)
from utils.cli import UserError, check_writable_file, log, run_program
from utils.distributed import init_distributed
from utils.files import write_atomically
from utils.metrics import check_result
from utils.precision import emulation_warning, evaluation_precision
from utils.report import check_report, write_report


def main(args: Namespace) -> None:
    """Evaluate a checkpoint on the validation list.

    Args:
        args: from `opts.testing_parser`.

    Raises:
        UserError: something that the user can mend.
    """
    compiled = args.compile or args.fast
    world = init_distributed(args.gpus, compiled=compiled)
    if args.save_scores:
        check_output(Path(args.save_scores))
    if args.report:
        check_report(Path(args.report))

    # Model: what it is and how it is computed is read from the checkpoint.
    saved = load_checkpoint(args.weights)
    spec = describe_model(saved, args.weights, args.type)
    options = saved.get("options", {})
    num_segments, input_size = read_settings(args, spec, options)
    precision = evaluation_precision(
        args.amp or ("auto" if args.fast else None),
        options.get("amp", "off"),
        world.device,
    )
    batch_size = evaluation_batch_size(args.batch_size, options.get("batch_size"), len(world.devices))
    if world.is_main and (warning := emulation_warning(precision, world.device)):
        log.warning(warning)

    # Data
    paths = return_dataset(
        args.dataset,
        args.root_path,
        val_list=args.val_list,
        image_tmpl=args.image_tmpl,
        for_training=False,
        source=args.source,
        preferred=options.get("source", "frames"),
    )
    labels = find_labels(saved, paths.categories, args.weights)
    if line := describe_labels(labels, args.weights):
        log.info(line)
    excluded = read_excluded(args.exclude) if args.exclude else []
    dataset = open_videos(
        paths,
        num_segments,
        evaluation_transform(input_size),
        test_mode=True,
        skip_missing=args.skip_missing,
        max_num=args.max_num,
        excluded=excluded,
        may_lack_labels=True,
    )
    if args.report and (dataset.labels < 0).any():
        raise UserError(f"--report: needs labels, and {paths.val_list} has none")
    dataset.labels = renumber(dataset.labels, labels)
    if world.is_main:
        check_excluded(excluded, [dataset])
    loader = ClipLoader(
        dataset, evaluation_batches(dataset.included, batch_size, world.rank, world.size), args.workers
    )

    model = build_model(spec, num_segments, input_size, args.weights)
    load_weights(model, saved["state_dict"], args.weights)
    unsaid = "" if "options" in saved else ", which the file does not say (--num_segments, --input_size)"
    described = f"{args.weights}: {model.description}, {spec.num_class} classes, "
    described += f"{num_segments} frames of {input_size} x {input_size}"
    log.info(described + unsaid)
    types = possible_types(saved, args.weights)
    if len(types) > 1 and args.type is None:
        log.info(f"its tensors may be of {' or '.join(types)}: taken for {spec.type}; --type decides")
    log.info(f"{world.describe(batch_size * world.size)}; {precision}{', compiled' if compiled else ''}")
    log.info(f"{args.dataset}: {len(dataset.included)} clips from {paths.source}")

    model.to(world.device)

    # Evaluation
    began = time.perf_counter()
    result = evaluate(loader, model, world, precision.amp, args.print_freq, compiled=compiled)
    seconds = time.perf_counter() - began
    scores_error = None
    if args.save_scores and world.is_main:
        videos = [dataset.record(number).path for number in dataset.included]
        content = io.BytesIO()
        # In the order of category.txt, whatever the checkpoint's is.
        scores, own_labels = result.scores[:, labels], renumber(result.labels, np.argsort(labels))
        np.savez(content, scores=scores, labels=own_labels, videos=videos)
        try:
            write_atomically(Path(args.save_scores), content.getvalue())
        except OSError as error:
            scores_error = error
        else:
            log.info(f"scores: {args.save_scores}")
    if result.has_labels:
        log.info(f"Mean class accuracy {result.mean_class:.3f}")
    log.info(f"{len(result.labels)} clips, {len(result.labels) / seconds:.1f} clips/s")
    log.info(f"{result}{dataset.coverage()}")
    check_result(result, args.weights)
    if args.report and world.is_main:
        write_report(Path(args.report), result, labels, paths.categories, dataset, described)
        log.info(f"report: {Path(args.report) / 'report.md'}")
    if scores_error:  # the figures are not lost with them
        raise UserError(f"--save_scores {args.save_scores}: cannot be written ({scores_error.strerror})")


def check_output(path: Path) -> None:
    """Refuse a file for the scores that already exists or that cannot be written.

    Raises:
        UserError: which, and why.
    """
    if path.suffix != ".npz":
        raise UserError(f"--save_scores {path}: the name must end in .npz")
    check_writable_file(path, "--save_scores")
    if path.exists():
        raise UserError(f"--save_scores {path}: already exists")


def read_settings(args: Namespace, spec: ModelSpec, options: dict[str, Any]) -> tuple[int, int]:
    """Read the number of segments and the input size from the checkpoint, else from the command line.

    Raises:
        UserError: an option contradicts the checkpoint.
    """
    known = {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    known |= {name: options[name] for name in ("num_segments", "input_size") if name in options}
    for name, value in known.items():
        given = getattr(args, name)
        if given is not None and given != value:
            has = f"no {name}" if value is None else f"{name} {value}"
            raise UserError(f"--{name} {given} contradicts {args.weights}, which has {has}")
    return known.get("num_segments", args.num_segments or 8), known.get("input_size", args.input_size or 224)


if __name__ == "__main__":
    run_program(main, lambda: testing_parser().parse_args())
