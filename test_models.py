"""Evaluate a checkpoint; `python test_models.py -h` lists the options.

python test_models.py --weights FILE --dataset somethingv2 --root_path DATA
torchrun --nproc_per_node=8 test_models.py --weights FILE --dataset somethingv2 --root_path DATA
"""

import csv
import io
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from classes import NEVER
from dataset import ClipLoader, check_excluded, evaluation_batches, open_videos, read_excluded, remap_labels
from datasets_video import return_dataset
from engine import evaluate
from frames.resize import decodes_only
from inference.onnx_model import OnnxModel, open_weights
from models import TemporalModel
from opts import evaluation_batch_size, testing_parser
from reports.report import check_report, write_report
from training.checkpoint import (
    build_model,
    describe_labels,
    describe_model,
    describe_type,
    find_labels,
    find_mirrored,
    load_weights,
    model_line,
    read_settings,
)
from transforms import evaluation_transform
from utils.cli import UserError, log, pluralize, printable, run_program
from utils.distributed import init_distributed
from utils.files import check_new_file, npz, write_atomically
from utils.metrics import Result, check_result
from utils.precision import emulation_warning, evaluation_precision

# The options that name a file to write, and its suffix.
OUTPUTS = {"save_scores": ".npz", "save_features": ".npz", "submission": ".csv"}
# Of videos without labels, in the log.
_MAX_PREDICTIONS = 10


def main(args: Namespace) -> None:
    """Evaluate a checkpoint on the validation list.

    Args:
        args: from `opts.testing_parser`.

    Raises:
        UserError: something that the user can mend.
    """
    compiled = args.compile or args.fast
    world = init_distributed(args.gpus, compiled=compiled)
    check_outputs(args)
    if args.report:
        check_report(Path(args.report))

    # Model: what it is and how it is computed is read from the checkpoint.
    saved, exported, world = open_weights(args, world)
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
        evaluation_transform(input_size, args.test_crops, args.full_res),
        test_mode=True,
        skip_missing=args.skip_missing,
        max_num=args.max_num,
        excluded=excluded,
        may_lack_labels=True,
        num_clips=args.num_clips,
    )
    if args.report and (dataset.labels < 0).any():
        raise UserError(f"--report: needs labels, and {paths.val_list} has none")
    dataset.labels = remap_labels(dataset.labels, labels)
    if world.is_main:
        check_excluded(excluded, [dataset])
    videos = [dataset.record(number).path for number in dataset.included]
    if args.submission:
        check_ids(videos)
    num_views = args.test_crops * args.num_clips
    batches = evaluation_batches(dataset.included, max(1, batch_size // num_views), world.rank, world.size)
    loader = ClipLoader(dataset, batches, args.workers, decodes_only(args.resize, world.device))

    model = exported or build_model(spec, num_segments, input_size, args.weights)
    if not exported:
        load_weights(model, saved["state_dict"], args.weights)
    described = model_line(saved, model, spec.num_class, args.weights)
    log.info(described)
    if line := describe_type(saved, spec, args):
        log.info(line)
    log.info(f"{world.describe(batch_size * world.size)}; {precision}{', compiled' if compiled else ''}")
    unit = "clip" if num_views == 1 else "video"
    source = "video files" if paths.source == "videos" else paths.source
    views = describe_views(args, model)
    log.info(f"{args.dataset}: {pluralize(len(videos), unit)} from {source}{views}")
    mirrored = find_mirrored(saved, paths.categories, args.weights) if args.test_crops == 10 else None
    if mirrored:
        num_swapped = sum(partner not in (NEVER, label) for label, partner in enumerate(mirrored))
        num_kept = mirrored.count(NEVER)
        log.info(f"mirrored crops: swap the scores of {num_swapped} classes, do not count for {num_kept}")

    model.to(world.device)

    # Evaluation
    began = time.perf_counter()
    result = evaluate(
        loader,
        model,
        world,
        precision.amp,
        args.print_freq,
        compiled=compiled,
        mirrored=mirrored,
        with_features=bool(args.save_features),
        max_clips=batch_size,
    )
    seconds = time.perf_counter() - began

    # Results, in the order of category.txt, whatever the checkpoint's is.
    found = result._replace(
        scores=result.scores[:, labels], labels=remap_labels(result.labels, np.argsort(labels))
    )
    failures = write_outputs(args, found, videos, paths.categories) if world.is_main else []
    if result.has_labels:
        log.info(f"Mean class accuracy {result.mean_class:.3f}")
    else:
        for line in describe_predictions(found.scores, videos, paths.categories):
            log.info(line)
    log.info(f"{pluralize(len(videos), unit)}, {len(videos) / seconds:.1f} {unit}s/s")
    log.info(f"{result}{dataset.coverage()}")
    check_result(result, args.weights)
    if args.report and world.is_main:
        write_report(Path(args.report), result, labels, paths.categories, dataset, described)
        log.info(f"report: {Path(args.report) / 'report.md'}")
    if failures:  # the figures are not lost with them
        raise UserError("; ".join(failures))


def check_outputs(args: Namespace) -> None:
    """Refuse output files that already exist, that cannot be written, or that are named twice.

    Raises:
        UserError: which, and why.
    """
    named: dict[Path, str] = {}
    for option, suffix in OUTPUTS.items():
        if file := getattr(args, option):
            check_new_file(file, f"--{option}", suffix)
            other = named.setdefault(Path(file).resolve(), option)
            if other != option:
                raise UserError(f"--{option} {file}: is also the file of --{other}")
            if args.report and Path(file).resolve().parent == Path(args.report).resolve():
                raise UserError(f"--{option} {file}: must not be in the folder of --report")


def describe_views(args: Namespace, model: TemporalModel | OnnxModel) -> str:
    """For the log: what is seen of each video; empty for one centre crop of one clip."""
    if args.test_crops == args.num_clips == 1 and not args.full_res:
        return ""
    crops = f"{args.test_crops} crop{'s' * (args.test_crops > 1)}"
    clips = f"{args.num_clips} clip{'s' * (args.num_clips > 1)}"
    size = model.scale_size if args.full_res else model.input_size
    return f", {crops} x {clips} of {size} x {size} each"


def check_ids(videos: Sequence[str]) -> None:
    """Refuse videos that a submission could not tell apart, because it names a video without its folders.

    Raises:
        UserError: names two of them.
    """
    named: dict[str, str] = {}
    for video in videos:
        name = Path(video).name
        if name in named:
            raise UserError(
                f"--submission: '{printable(named[name])}' and '{printable(video)}' would have the same id in it, "
                f"'{printable(name)}'"
            )
        named[name] = video


def write_outputs(
    args: Namespace, result: Result, videos: Sequence[str], categories: Sequence[str]
) -> list[str]:
    """Write the files that the options name.

    Args:
        args: with the options of `OUTPUTS`.
        result: of the evaluation, its classes in the order of `categories`.
        videos: names of the videos.
        categories: class names.

    Returns:
        For each file that cannot be written, which and why.
    """
    failures = []
    metadata = {"labels": result.labels, "videos": videos, "classes": categories}
    contents = {
        "save_scores": lambda: npz(scores=result.scores, **metadata),
        "save_features": lambda: npz(features=result.features, **metadata),
        "submission": lambda: submission(result.scores, videos),
    }
    for option, content in contents.items():
        if file := getattr(args, option):
            try:
                write_atomically(Path(file), content())
            except OSError as error:
                failures.append(f"--{option} {file}: cannot be written ({error.strerror})")
            else:
                log.info(f"{option.removeprefix('save_')}: {file}")
    return failures


def submission(scores: np.ndarray, videos: Sequence[str]) -> bytes:
    """A file in the form of Something-Something's challenge: the labels of each video's five best classes.

    Args:
        scores: videos x classes.
        videos: names of the videos; the last part of each is the video's id.
    """
    text = io.StringIO()
    lines = csv.writer(text, delimiter=";", lineterminator="\n")
    for video, own in zip(videos, scores, strict=True):
        lines.writerow([Path(video).name, *np.argsort(-own, kind="stable")[:5]])
    return text.getvalue().encode()


def describe_predictions(
    scores: np.ndarray, videos: Sequence[str], categories: Sequence[str]
) -> Iterator[str]:
    """For the log: what the first videos' best classes are, and their probabilities, as TRN prints them.

    Args:
        scores: videos x classes, before softmax.
        videos: names of the videos.
        categories: class names.
    """
    for video, own in zip(videos[:_MAX_PREDICTIONS], scores.astype(np.float64), strict=False):
        best = int(own.argmax())
        probability = 1 / np.exp(own - own[best]).sum()
        yield f"{probability:.3f} -> {printable(categories[best])}  ({printable(video)})"
    if len(videos) > _MAX_PREDICTIONS:
        yield f"… and {len(videos) - _MAX_PREDICTIONS} more"


if __name__ == "__main__":
    run_program(main, lambda: testing_parser().parse_args())
