"""Classify videos; `python test_video.py -h` lists the options. See docs/VIDEOS.md.

python test_video.py --weights FILE clip.webm
python test_video.py --weights FILE clips/ --json answers.json
python test_video.py --weights FILE film.mp4 --window 4 --csv answers.csv
python test_video.py --weights FILE --camera 0
"""

import json
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

# OpenMP reads this when torch is imported. Otherwise its threads would spin while they wait for each other,
# and an answer would take four times as long if other programs use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from tqdm import tqdm

from classes import CATEGORIES, read_categories
from engine import Predictor
from frames.sources import find_videos
from frames.stream import is_live
from inference.answers import (
    answers_npz,
    csv_rows,
    describe_video,
    log_window,
    make_answer,
    merge_windows,
    warn_about_gaps,
)
from inference.clips import Clip, ClipFormat, Failure, load_clips, load_windows
from inference.draw import draw_activation, draw_answers
from inference.live import watch
from inference.load import LoadedModel, load_fused
from inference.onnx_model import choose_devices
from inference.options import check_answer_options, rendered_files
from opts import evaluation_batch_size, video_parser
from training.describe import class_names, find_mirrored
from transforms import evaluation_transform
from utils.cli import UserError, log, printable, run_program
from utils.distributed import World, init_distributed
from utils.files import write_new, writing
from utils.precision import DTYPES, warn_if_emulated

# Source of the class names of a checkpoint of 174 classes without names.
SOMETHING = f"{CATEGORIES.name}/something.txt"


def main(args: Namespace) -> int:
    """Print the best classes of each video, of its windows, or of a stream.

    Args:
        args: options from `opts.video_parser`.

    Returns:
        The exit status: 1 if a video could not be used.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    world = choose_devices(args.weights, args, init_distributed(args.gpus))
    if world.size > 1:
        raise UserError("test_video.py uses all GPUs in one process; start it without torchrun")
    if args.json == "-":
        log.setLevel(logging.WARNING)  # stdout has only the JSON

    # Videos: an error is reported for each that cannot be used, and the others are classified
    if args.camera:
        args.videos.append(f"/dev/video{args.camera}" if args.camera.isdecimal() else args.camera)
    sources = args.videos
    live = [source for source in sources if args.camera or is_live(source)]
    if not sources or (live and len(sources) > 1):
        raise UserError("expected videos or folders, or a single stream")
    check_answer_options(args, bool(live))
    paths: list[Path] = []
    errors: list[dict[str, Any]] = []
    for source in [] if live else sources:
        try:
            paths += find_videos(Path(source))
        except UserError as error:
            errors.append({"video": source, "error": report(error)})
    rendered = rendered_files(args, [*paths, *(Path(error["video"]) for error in errors)], bool(live))
    if args.cam and len(paths) + len(errors) > 1:
        raise UserError("--cam: needs a single video")
    if not paths and not live:
        return 1

    # Model: its configuration, its precision and the batch size are read from the checkpoint
    amp = args.amp or ("auto" if args.fast else None)
    loaded, precision = load_fused(args.weights, args, world, amp)
    model = loaded.model
    if args.cam and loaded.spec.consensus != "mean":
        raise UserError("--cam: needs a model with --consensus mean")
    names, names_source = find_names(loaded, args)
    warn_if_emulated(precision, world.device)
    log.info(loaded.describe())
    log.info(f"class names: {names_source}; {precision}")
    mirrored = find_mirrored(loaded.checkpoint, names, args.weights) if args.test_crops == 10 else None
    batch_size = evaluation_batch_size(args.batch_size, loaded.options.get("batch_size"), len(world.devices))
    predictor = Predictor(model, world, False, mirrored, batch_size, bool(args.save_features))

    # Answers, in the order of the videos and of time
    transform = evaluation_transform(model.input_size, args.test_crops, args.full_res)
    clip_format = ClipFormat(model.num_segments, args.num_clips, transform)
    videos_in_batch = max(1, batch_size // (args.test_crops * args.num_clips))
    rows: list[list[np.ndarray]] = []
    clips: list[tuple[str, float, float]] = []
    if live:
        videos, status = watch(args, live[0], predictor, clip_format, names)
    else:
        if args.window:
            batches = load_windows(paths, clip_format, videos_in_batch, args.window, args.stride)
        else:
            batches = load_clips(paths, clip_format, videos_in_batch)
        videos = []
        for index, group in groupby(classify(predictor, batches), key=lambda pair: pair[0].index):
            video, new_rows = answer_video(args, paths[index], group, loaded, world, names, rendered[index])
            videos.append(video)
            if args.save_scores or args.save_features:
                rows += new_rows
                parts = video.get("windows", [{"start": 0.0, "end": video.get("duration")}])
                clips += [(video["video"], part["start"], part["end"]) for part in parts[: len(new_rows)]]
        videos += errors
        status = int(any("error" in video for video in videos))

    metadata = loaded.spec._asdict()
    del metadata["has_dropout"]
    metadata |= {"num_segments": model.num_segments, "input_size": model.input_size}
    metadata |= {"weights": args.weights, "class_names": names_source}
    metadata |= {"precision": str(DTYPES[precision.amp]).removeprefix("torch.")}
    write_outputs(args, {"model": metadata, "first_frame": 1, "videos": videos}, rows, clips, names)
    return status


def report(error: UserError) -> str:
    """Log why a video cannot be used; the program continues."""
    log.error("error: %s", error)
    return str(error)


def find_names(loaded: LoadedModel, args: Namespace) -> tuple[list[str], str]:
    """Find the names of a model's classes, and their source for the log.

    Raises:
        UserError: `--categories` cannot be read, or does not fit the model.
    """
    num_class = loaded.spec.num_class
    if args.categories:
        names = read_categories(Path(args.categories))
        if len(names) != num_class:
            raise UserError(f"--categories: has {len(names)} names, but the model has {num_class} classes")
        return names, args.categories
    if names := class_names(loaded.checkpoint, args.weights):
        return names, "from the checkpoint" if "categories" in loaded.checkpoint else SOMETHING
    return [f"class {label}" for label in range(num_class)], "unknown (use --categories FILE)"


def classify(
    predictor: Predictor, batches: Iterator[list[Clip | Failure]]
) -> Iterator[tuple[Clip | Failure, list[torch.Tensor]]]:
    """Compute the outputs of a predictor for clips.

    Yields:
        Each clip with its logits and possibly its features, each failure with an empty list.
    """
    with tqdm(unit="clip", disable=None, leave=False) as progress:
        for batch in batches:
            pixels = [item.pixels for item in batch if isinstance(item, Clip)]
            outputs = iter(())
            if pixels:
                outputs = zip(*(t.cpu() for t in predictor(torch.from_numpy(np.stack(pixels)))), strict=True)
            for item in batch:
                progress.update()
                yield item, list(next(outputs)) if isinstance(item, Clip) else []


def answer_video(
    args: Namespace,
    path: Path,
    group: Iterator[tuple[Clip | Failure, list[torch.Tensor]]],
    loaded: LoadedModel,
    world: World,
    names: Sequence[str],
    rendered: Path | None,
) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Print and draw the answers of a video.

    Args:
        args: options of test_video.py.
        group: its clips with their outputs, see `classify`.
        names: class names.
        rendered: file of `--rendered_output`.

    Returns:
        The video and its answers in the format of the JSON output, and the outputs of each clip.
    """
    video: dict[str, Any] = {"video": str(path)}
    windows, rows, error = [], [], None
    for item, outputs in group:
        if isinstance(item, Failure):
            error = report(item.error)
            continue
        clip = item
        if not windows:
            log.info(f"RESULT ON {printable(path)}")
        windows.append(make_answer(clip, outputs[0], names, args.topk, args.weights))
        rows.append([output.numpy() for output in outputs])
        if args.window and args.threshold is None:
            log_window(windows[-1])
    if windows:
        video = describe_video(clip.video)
        if args.window:
            video["windows"] = windows
        else:
            video |= {name: windows[0][name] for name in ("frames", "times", "top")}
            for best in windows[0]["top"]:
                log.info(f"{best['probability']:.3f} -> {printable(best['class'])}")
            warn_about_gaps(clip, loaded.model.num_segments)
        if args.threshold is not None:
            video["segments"] = merge_windows(windows, args.threshold)
            for segment in video["segments"]:
                log_window(segment | {"top": [segment]})
        if rendered and not error:
            try:
                draw_answers(rendered, clip, windows, rows, names, args.window, args.threshold)
                log.info(f"rendered: {rendered}")
            except UserError as failure:  # a frame that the model has not seen
                error = report(failure)
        if args.cam and not error:
            predictor = Predictor(loaded.model, replace(world, devices=world.devices[:1]))
            draw_activation(Path(args.cam), clip, windows[0]["top"][0], loaded.model, predictor)
            log.info(f"class activation: {args.cam}")
    return video | ({"error": error} if error else {}), rows


def write_outputs(
    args: Namespace,
    content: dict[str, Any],
    rows: Sequence[Sequence[np.ndarray]],
    clips: Sequence[tuple[str, float, float]],
    names: Sequence[str],
) -> None:
    """Write the files of --csv, --save_scores, --save_features and --json.

    Raises:
        UserError: a file cannot be written.
    """
    contents: dict[str, bytes] = answers_npz(rows, clips, names) if rows else {}
    contents["csv"] = csv_rows(content["videos"])
    contents["json"] = (json.dumps(content, indent=1) + "\n").encode()
    for option, data in contents.items():
        if file := getattr(args, option):
            with writing(f"--{option}", file):
                if file == "-":
                    print(data.decode(), end="", flush=True)
                    continue
                write_new(Path(file), data)
            log.info(f"{option.removeprefix('save_')}: {file}")


if __name__ == "__main__":
    run_program(main, lambda: video_parser().parse_args())
