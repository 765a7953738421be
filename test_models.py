"""Evaluate a checkpoint; `python test_models.py -h` lists the options.

python test_models.py --weights FILE --dataset somethingv2 --root_path DATA
torchrun --nproc_per_node=8 test_models.py --weights FILE --dataset somethingv2 --root_path DATA
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from classes import NEVER, remap_labels
from engine import Predictor, evaluate
from frames.resize import decodes_only
from inference.load import load_fused
from inference.onnx_model import OnnxModel, choose_devices
from loader import ClipLoader, evaluation_batches, open_evaluation
from models import TemporalModel
from opts import evaluation_batch_size, testing_parser
from reports.report import check_report, write_report
from training.describe import find_mirrored, map_labels
from transforms import evaluation_transform
from utils.cli import UserError, log, pluralize, printable, run_program
from utils.distributed import init_distributed
from utils.files import check_new_files, npz, to_csv, write_new, writing
from utils.metrics import Result, check_result
from utils.precision import warn_if_emulated

# Options that name a file to write, and its suffix.
OUTPUTS = {"save_scores": ".npz", "save_features": ".npz", "submission": ".csv"}
# Number of predictions to log if the list has no labels.
MAX_PREDICTIONS = 10


def main(args: Namespace) -> None:
    """Evaluate a checkpoint on the validation list.

    Args:
        args: options from `opts.testing_parser`.

    Raises:
        UserError: the checkpoint, the data or an option cannot be used.
    """
    world = choose_devices(args.weights, args, init_distributed(args.gpus, compiled=args.compile))
    check_outputs(args)

    # Model: its configuration, its precision and the batch size are read from the checkpoint
    amp = args.amp or ("auto" if args.fast else None)
    loaded, precision = load_fused(args.weights, args, world, amp, plain=args.compile)
    model, checkpoint = loaded.model, loaded.checkpoint
    warn_if_emulated(precision, world.device)
    log.info(loaded.describe())
    batch_size = evaluation_batch_size(args.batch_size, loaded.options.get("batch_size"), len(world.devices))
    log.info(f"{world.describe(batch_size * world.size)}; {precision}{', compiled' if args.compile else ''}")

    # Data
    paths, dataset = open_evaluation(
        args,
        model.num_segments,
        evaluation_transform(model.input_size, args.test_crops, args.full_res),
        loaded.options.get("source", "frames"),
        test_mode=True,
        max_num=args.max_num,
        may_lack_labels=True,
        num_clips=args.num_clips,
    )
    class_permutation = map_labels(dataset, checkpoint, paths.categories, args.weights)
    if args.report and (dataset.labels < 0).any():
        raise UserError(f"--report: needs labels, and {paths.val_list} has none")
    videos = [dataset.record(number).path for number in dataset.included]
    num_views = args.test_crops * args.num_clips
    unit = "clip" if num_views == 1 else "video"
    source = "video files" if paths.source == "videos" else paths.source
    log.info(f"{args.dataset}: {pluralize(len(videos), unit)} from {source}{describe_views(args, model)}")
    mirrored = None
    if args.test_crops == 10:
        mirrored = find_mirrored(checkpoint, paths.categories, args.weights)
        num_swapped = sum(other not in (NEVER, label) for label, other in enumerate(mirrored))
        num_kept = mirrored.count(NEVER)
        log.info(
            f"mirrored crops: {num_swapped} classes swap their scores, {num_kept} do not use these crops"
        )
    batches = evaluation_batches(dataset.included, max(1, batch_size // num_views), world.rank, world.size)
    decode_only = decodes_only(args.resize, world.device)
    loader = ClipLoader(dataset, batches, args.workers, decode_only)

    # Evaluation
    predictor = Predictor(model, world, args.compile, mirrored, batch_size, bool(args.save_features))
    start = time.perf_counter()
    result = evaluate(loader, predictor, world, args.print_freq)
    seconds = time.perf_counter() - start

    # Results, with the classes in the order of category.txt
    ordered = result._replace(
        scores=result.scores[:, class_permutation],
        labels=remap_labels(result.labels, np.argsort(class_permutation)),
    )
    try:
        if world.is_main:
            write_outputs(args, ordered, videos, paths.categories)
    finally:  # the accuracy is logged even if the disk is full
        if result.has_labels:
            log.info(f"Mean class accuracy {result.mean_class:.3f}")
        else:
            for line in describe_predictions(ordered.scores, videos, paths.categories):
                log.info(line)
        log.info(f"{pluralize(len(videos), unit)}, {len(videos) / seconds:.1f} {unit}s/s")
        log.info(f"{result}{dataset.coverage()}")
    check_result(result, args.weights)
    if args.report and world.is_main:
        write_report(Path(args.report), ordered, paths.categories, dataset, loaded.describe())
        log.info(f"report: {Path(args.report) / 'report.md'}")


def check_outputs(args: Namespace) -> None:
    """Refuse output files that already exist, cannot be written, or would replace each other.

    Raises:
        UserError: names the option.
    """
    check_new_files(args, OUTPUTS)
    if args.report:
        if args.submission and Path(args.report).resolve() in Path(args.submission).resolve().parents:
            raise UserError(f"--submission {args.submission}: is in the folder of --report")
        check_report(Path(args.report))


def describe_views(args: Namespace, model: TemporalModel | OnnxModel) -> str:
    """The views of each video for the log; empty for one centre crop of one clip."""
    if args.test_crops == args.num_clips == 1 and not args.full_res:
        return ""
    crops, clips = pluralize(args.test_crops, "crop"), pluralize(args.num_clips, "clip")
    size = model.scale_size if args.full_res else model.input_size
    return f", {crops} x {clips} of {size} x {size} each"


def write_outputs(args: Namespace, result: Result, videos: Sequence[str], categories: Sequence[str]) -> None:
    """Write the files of the options in `OUTPUTS`.

    Args:
        args: options of test_models.py.
        result: with the classes in the order of `categories`.
        videos: names of the videos.
        categories: class names.

    Raises:
        UserError: a file cannot be written.
    """
    metadata = {"labels": result.labels, "videos": videos, "classes": categories}
    contents: dict[str, Callable[[], bytes]] = {
        "save_scores": lambda: npz(scores=result.scores, **metadata),
        "save_features": lambda: npz(features=result.features, **metadata),
        "submission": lambda: submission(result.scores, videos),
    }
    for option, content in contents.items():
        if file := getattr(args, option):
            with writing(f"--{option}", file):
                write_new(Path(file), content())
            log.info(f"{option.removeprefix('save_')}: {file}")


def submission(scores: np.ndarray, videos: Sequence[str]) -> bytes:
    """The file format of Something-Something's challenge: the id and the five best labels of each video.

    Args:
        scores: videos x classes.
        videos: names of the videos, whose last part is the id.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    rows = ([Path(video).name, *labels] for video, labels in zip(videos, best, strict=True))
    return to_csv(rows, delimiter=";")


def describe_predictions(
    scores: np.ndarray, videos: Sequence[str], categories: Sequence[str]
) -> Iterator[str]:
    """The best class and its probability for the first videos, for the log, in TRN's format.

    Args:
        scores: videos x classes, before softmax.
        videos: names of the videos.
        categories: class names.
    """
    for video, video_scores in zip(videos[:MAX_PREDICTIONS], scores.astype(np.float64), strict=False):
        best = int(video_scores.argmax())
        probability = 1 / np.exp(video_scores - video_scores[best]).sum()
        yield f"{probability:.3f} -> {printable(categories[best])}  ({printable(video)})"
    if len(videos) > MAX_PREDICTIONS:
        yield f"… and {len(videos) - MAX_PREDICTIONS} more"


if __name__ == "__main__":
    parser = testing_parser()
    parser.epilog = "examples:\n" + __doc__.partition("\n\n")[2]
    run_program(main, parser.parse_args)
