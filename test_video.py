"""Classify videos; `python test_video.py -h` lists the options.

python test_video.py --weights FILE clip.webm
python test_video.py --weights FILE clips/ --json answers.json
python test_video.py --weights FILE clip.webm --rendered_output clip_answer.mp4
"""

import json
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# torch reads this when it is imported. While other programs use the cores, OpenMP's threads would otherwise
# spin when they wait for each other, and an answer would take four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from tqdm import tqdm

from classes import CATEGORIES, read_categories
from dataset import clip_fractions, spread_frames
from engine import Predictor
from frames.sources import FrameFolder, VideoFile, find_videos, open_video
from inference.load import LoadedModel, load_fused
from inference.onnx_model import choose_devices
from opts import evaluation_batch_size, video_parser
from reports.render import Answer, check_rendered_output, render
from training.describe import class_names, find_mirrored
from transforms import Compose, evaluation_transform
from utils.cli import UserError, log, printable, run_program
from utils.distributed import init_distributed
from utils.files import check_new_file, write_atomically, writing
from utils.pool import cores
from utils.precision import emulation_warning

NUM_ANSWERS = 5


class Clip(NamedTuple):
    """The part of a video that the model sees.

    Attributes:
        video: the video.
        numbers: of the frames, from 1; those of the first clip come first.
        pixels: uint8, views x frames x height x width x RGB, the views in the order of `VideoDataSet`.
    """

    video: FrameFolder | VideoFile
    numbers: list[int]
    pixels: np.ndarray


def main(args: Namespace) -> int:
    """Print the best classes of each video.

    Args:
        args: options from `opts.video_parser`.

    Returns:
        The exit status: 1 if a video could not be used.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    world = choose_devices(args, init_distributed(args.gpus))
    if world.size > 1:
        raise UserError("test_video.py is one process, which can use several GPUs: start it without torchrun")
    if args.json == "-":
        log.setLevel(logging.WARNING)  # stdout has nothing but the JSON
    elif args.json:
        check_new_file(args.json, "--json")

    # Videos: an error is reported for each that cannot be used, and the others are classified
    videos: list[Path] = []
    errors: dict[str, str] = {}
    for path in args.videos:
        try:
            videos += find_videos(path)
        except UserError as error:
            errors[str(path)] = report(error)
    if args.rendered_output:
        check_rendered_output(Path(args.rendered_output))
        if args.json and Path(args.json).resolve() == Path(args.rendered_output).resolve():
            raise UserError(f"--json {args.json}: is also the file of --rendered_output")
        if len(videos) + len(errors) > 1:
            raise UserError(f"--rendered_output: needs a single video, not {len(videos) + len(errors)}")
    if not videos:
        return 1

    # Model: its configuration, its precision and the batch size are read from the checkpoint
    loaded, precision = load_fused(args.weights, args, world, args.amp)
    model = loaded.model
    names, names_source = find_names(loaded, args)
    if warning := emulation_warning(precision, world.device):
        log.warning(warning)
    log.info(loaded.describe())
    log.info(f"class names: {names_source}; {precision}")

    # Answers, in the order of the videos
    mirrored = find_mirrored(loaded.checkpoint, names, args.weights) if args.test_crops == 10 else None
    batch_size = evaluation_batch_size(args.batch_size, loaded.options.get("batch_size"), len(world.devices))
    predictor = Predictor(model, world, mirrored=mirrored, max_clips=batch_size)
    transform = evaluation_transform(model.input_size, args.test_crops, args.full_res)
    videos_in_batch = max(1, batch_size // (args.test_crops * args.num_clips))
    batches = load_clips(
        videos, model.num_segments, transform, clip_fractions(args.num_clips), videos_in_batch
    )
    answers: list[dict[str, Any]] = []
    with tqdm(total=len(videos), unit="video", disable=None, leave=False) as progress:
        for clip, logits in classify(predictor, batches):
            progress.update()
            if isinstance(clip, UserError):
                path = str(videos[len(answers)])
                errors[path] = report(clip)
                answers.append({"video": path, "error": errors[path]})
                continue
            if not logits.isfinite().all():
                raise UserError(f"{args.weights}: its scores are not finite; try --amp off")
            answers.append(make_answer(clip, logits, names))
            log_answer(answers[-1], clip, model.num_segments)
            if args.rendered_output:
                drawn = [Answer(best["class"], best["probability"]) for best in answers[-1]["top"]]
                render(Path(args.rendered_output), clip.video, clip.numbers, drawn)
                log.info(f"rendered: {args.rendered_output}")

    if args.json:
        answers += [
            {"video": path, "error": error} for path, error in errors.items() if Path(path) not in videos
        ]
        metadata = loaded.spec._asdict()
        metadata |= {"num_segments": model.num_segments, "input_size": model.input_size}
        metadata |= {"weights": args.weights, "class_names": names_source, "precision": precision.amp}
        write_json(args.json, {"model": metadata, "videos": answers})
    return 1 if errors else 0


def report(error: UserError) -> str:
    """Log why a video cannot be used; the program continues."""
    log.error("error: %s", error)
    return str(error)


def find_names(loaded: LoadedModel, args: Namespace) -> tuple[list[str], str]:
    """Find the names of a model's classes.

    Returns:
        The names in the order of the classifier, and their source for the log.

    Raises:
        UserError: `--categories` cannot be read, or does not fit the model.
    """
    num_class = loaded.spec.num_class
    if args.categories:
        names = read_categories(Path(args.categories))
        if len(names) != num_class:
            raise UserError(
                f"--categories {args.categories}: has {len(names)} names, but {args.weights} has {num_class} "
                "classes"
            )
        return names, args.categories
    names = class_names(loaded.checkpoint, args.weights)
    if names is None:
        return [f"class {label}" for label in range(num_class)], "unknown (give them by --categories FILE)"
    if "categories" in loaded.checkpoint:
        return names, "from the checkpoint"
    return (
        names,
        f"{CATEGORIES.name}/something.txt, because the checkpoint has {num_class} classes and no names",
    )


def load_clips(
    videos: Sequence[Path], num_segments: int, transform: Compose, fractions: Sequence[float], batch_size: int
) -> Iterator[list[Clip | UserError]]:
    """Load the clips of videos in batches. Threads load the next batch while one is computed.

    Args:
        videos: their paths.
        num_segments: frames in a clip.
        transform: makes the crops.
        fractions: positions of the clips of a video, see `dataset.clip_fractions`.
        batch_size: videos in a batch.

    Yields:
        For each video its clip, or the error that says why it cannot be used.
    """

    def load(path: Path) -> Clip | UserError:
        try:
            video = open_video(path)
            spread = [spread_frames(video.num_frames, num_segments, fraction) for fraction in fractions]
            numbers = np.concatenate(spread).tolist()
            frames = video.read(list(dict.fromkeys(numbers)))
        except UserError as error:
            return error
        pixels, _ = transform([frames[number] for number in numbers], -1, None)
        return Clip(video, numbers, pixels.reshape(-1, num_segments, *pixels.shape[1:]))

    batches = [videos[start : start + batch_size] for start in range(0, len(videos), batch_size)]
    with ThreadPoolExecutor(min(16, cores())) as pool:
        futures = [pool.submit(load, path) for path in batches[0]]
        for next_batch in [*batches[1:], []]:
            clips = [future.result() for future in futures]
            futures = [pool.submit(load, path) for path in next_batch]
            yield clips


def classify(
    predictor: Predictor, batches: Iterator[list[Clip | UserError]]
) -> Iterator[tuple[Clip | UserError, torch.Tensor | None]]:
    """Compute the logits of clips.

    Args:
        predictor: computes the logits.
        batches: from `load_clips`.

    Yields:
        Each clip with its logits, or the error in its place with None.
    """
    for batch in batches:
        pixels = [clip.pixels for clip in batch if isinstance(clip, Clip)]
        logits = iter(predictor(torch.from_numpy(np.stack(pixels)))[0].cpu()) if pixels else iter(())
        for clip in batch:
            yield clip, next(logits) if isinstance(clip, Clip) else None


def make_answer(clip: Clip, logits: torch.Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The best classes of a clip, as the JSON has them."""
    best = logits.softmax(dim=0).topk(min(NUM_ANSWERS, len(names)))
    top = [
        {"label": label, "class": names[label], "probability": probability}
        for label, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return {"video": str(clip.video.path), "frames": clip.numbers, "top": top}


def log_answer(answer: dict[str, Any], clip: Clip, num_segments: int) -> None:
    """Print an answer, in TRN's format."""
    name = printable(answer["video"])
    if clip.video.num_frames < num_segments:
        log.warning(
            f"warning: {name}: has {clip.video.num_frames} frames, fewer than the model's {num_segments}: "
            "some are repeated"
        )
    log.info(f"RESULT ON {name}")
    for best in answer["top"]:
        log.info(f"{best['probability']:.3f} -> {printable(best['class'])}")


def write_json(file: str, content: dict[str, Any]) -> None:
    """Write answers as JSON to a file, or to stdout if it is '-'.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(content, indent=1) + "\n"
    with writing("--json", file):
        if file == "-":
            print(text, end="", flush=True)
        else:
            write_atomically(Path(file), text.encode())


if __name__ == "__main__":
    run_program(main, lambda: video_parser().parse_args())
