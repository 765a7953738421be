"""Ask a checkpoint what happens in a video; `python test_video.py -h` lists the options.

python test_video.py --weights FILE clip.webm
python test_video.py --weights FILE clips/ --json answers.json
python test_video.py --weights FILE clip.webm --rendered_output clip_answer.mp4
"""

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Read when torch is loaded. Where other programs keep the cores busy, OpenMP's threads otherwise spin while
# they wait for each other, and an answer takes four times as long; on a quiet machine it changes nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from tqdm import tqdm

from classes import CATEGORIES, read_categories
from dataset import clip_fractions, spread_frames
from engine import to_device, to_input
from frames.sources import FrameFolder, VideoFile, find_videos, open_video
from inference.fuse import check_fused, float32_convolutions, fuse
from inference.onnx_model import OnnxModel, open_weights
from models import TemporalModel
from opts import evaluation_batch_size, video_parser
from reports.render import Answer, check_rendered_output, render
from inference.load import build_model
from training.checkpoint import describe_type, load_weights, model_line, read_settings
from training.describe import class_names, describe_model, find_mirrored
from transforms import Compose, evaluation_transform
from utils.cli import UserError, log, printable, run_program
from utils.distributed import World, init_distributed
from utils.files import check_new_file, write_atomically, writing
from utils.metrics import average_views
from utils.pool import cores
from utils.precision import DTYPES, emulation_warning, evaluation_precision

NUM_ANSWERS = 5


class Clip(NamedTuple):
    """What the model sees of a video.

    Attributes:
        video: the video.
        numbers: of the frames, from 1; those of the first clip come first.
        pixels: uint8, views x frames x height x width x RGB, the views as in `VideoDataSet`.
    """

    video: FrameFolder | VideoFile
    numbers: list[int]
    pixels: np.ndarray


def main(args: Namespace) -> int:
    """Print the best classes of each video.

    Args:
        args: from `opts.video_parser`.

    Returns:
        The exit status: 1 if a video could not be used.

    Raises:
        UserError: something that the user can mend.
    """
    world = init_distributed(args.gpus)
    if world.size > 1:
        raise UserError("test_video.py is one process, which can use several GPUs: start it without torchrun")
    is_quiet = args.json == "-"  # stdout is for the JSON alone
    if args.json and not is_quiet:
        check_new_file(args.json, "--json")

    # Videos: those that cannot be used are named, the others go on.
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
            raise UserError(
                f"--rendered_output: is for a single video, but {len(videos) + len(errors)} are given"
            )
    if not videos:
        return 1

    # Model: what it is and how it is computed is read from the checkpoint, as test_models.py does.
    saved, exported, world = open_weights(args, world)
    spec = describe_model(saved, args.weights, args.type)
    options = saved.get("options", {})
    num_segments, input_size = read_settings(args, spec, options)
    names, source = find_names(saved, spec.num_class, args)
    precision = evaluation_precision(args.amp, options.get("amp", "off"), world.device)
    batch_size = evaluation_batch_size(args.batch_size, options.get("batch_size"), len(world.devices))
    if warning := emulation_warning(precision, world.device):
        log.warning(warning)
    model = exported or build_model(spec, num_segments, input_size, args.weights)
    if not is_quiet:
        log.info(model_line(saved, model, spec.num_class, args.weights))
        if line := describe_type(saved, spec, args):
            log.info(line)
        log.info(f"class names: {source}; {precision}")
    if not exported:
        load_weights(model, saved["state_dict"], args.weights)
    model.to(world.device)

    # Answers, in the order of the videos.
    answers: list[dict[str, Any]] = []
    num_views = args.test_crops * args.num_clips
    transform = evaluation_transform(input_size, args.test_crops, args.full_res)
    batches = load_clips(
        videos, num_segments, transform, clip_fractions(args.num_clips), max(1, batch_size // num_views)
    )
    mirrored = find_mirrored(saved, names, args.weights) if args.test_crops == 10 else None
    with tqdm(total=len(videos), unit="video", disable=None, leave=False) as progress:
        for clip, logits in classify(model, world, DTYPES[precision.amp], batches, batch_size, mirrored):
            progress.update()
            if isinstance(clip, UserError):
                path = videos[len(answers)]
                errors[str(path)] = report(clip)
                answers.append({"video": str(path), "error": errors[str(path)]})
                continue
            name = str(clip.video.path)
            if not logits.isfinite().all():
                raise UserError(
                    f"{args.weights}: its scores of {printable(name)} are not finite; try --amp off"
                )
            best = logits.softmax(dim=0).topk(min(NUM_ANSWERS, spec.num_class))
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            if clip.video.num_frames < num_segments:
                log.warning(
                    f"warning: {printable(name)}: has {clip.video.num_frames} frames and the model sees "
                    f"{num_segments}: some are repeated"
                )
            if not is_quiet:
                log.info(f"RESULT ON {printable(name)}")
                for label, probability in top:
                    log.info(f"{probability:.3f} -> {printable(names[label])}")
            answers.append(
                {
                    "video": name,
                    "frames": clip.numbers,
                    "top": [
                        {"label": label, "class": names[label], "probability": probability}
                        for label, probability in top
                    ],
                }
            )
            if args.rendered_output:
                drawn = [Answer(names[label], probability) for label, probability in top]
                render(Path(args.rendered_output), clip.video, clip.numbers, drawn)
                if not is_quiet:
                    log.info(f"rendered: {args.rendered_output}")

    if args.json:
        metadata = spec._asdict() | {"num_segments": num_segments, "input_size": input_size}
        metadata |= {"weights": args.weights, "class_names": source, "precision": precision.amp}
        answers += [
            {"video": path, "error": error} for path, error in errors.items() if Path(path) not in videos
        ]
        write_json(args.json, {"model": metadata, "videos": answers})
    return 1 if errors else 0


def report(error: UserError) -> str:
    """Say on stderr why a video cannot be used, while the program continues."""
    log.error("error: %s", error)
    return str(error)


def find_names(saved: dict[str, Any], num_class: int, args: Namespace) -> tuple[list[str], str]:
    """Find the names of a checkpoint's classes.

    Returns:
        The names, in the order of its classifier, and where they come from, for the log.

    Raises:
        UserError: `--categories` cannot be read, or does not fit the checkpoint.
    """
    if args.categories:
        names = read_categories(Path(args.categories))
        if len(names) != num_class:
            raise UserError(
                f"--categories {args.categories}: has {len(names)} names, but {args.weights} has {num_class} "
                "classes"
            )
        return names, args.categories
    names = class_names(saved, args.weights)
    if names is None:
        numbers = [f"class {label}" for label in range(num_class)]
        return (
            numbers,
            "none known, so classes are numbered from 0 (--categories FILE names them)",
        )
    if "categories" in saved:
        return names, "from the checkpoint"
    return (
        names,
        f"{CATEGORIES.name}/something.txt, since the checkpoint has none and {num_class} classes",
    )


def load_clips(
    videos: Sequence[Path], num_segments: int, transform: Compose, fractions: Sequence[float], batch_size: int
) -> Iterator[list[Clip | UserError]]:
    """Load the clips of videos in batches; while one is computed, threads load the next.

    Args:
        videos: their paths.
        num_segments: frames in a clip.
        transform: makes the crops.
        fractions: of the clips of a video, see `dataset.clip_fractions`.
        batch_size: videos in a batch.

    Yields:
        In place of a video that cannot be used, the error that says why.
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
        try:
            ahead = [pool.submit(load, path) for path in batches[0]]
            for following in [*batches[1:], []]:
                clips = [future.result() for future in ahead]
                ahead = [pool.submit(load, path) for path in following]
                yield clips
        finally:  # Ctrl-C does not wait for those that no thread has begun
            pool.shutdown(cancel_futures=True)


@float32_convolutions()
def classify(
    model: TemporalModel | OnnxModel,
    world: World,
    dtype: torch.dtype,
    batches: Iterator[list[Clip | UserError]],
    max_clips: int,
    mirrored: Sequence[int] | None,
) -> Iterator[tuple[Clip | UserError, torch.Tensor | None]]:
    """Compute the logits of clips, with the model's fused form (see `inference.fuse.fuse`).

    Args:
        model: on the device.
        world: of this process.
        dtype: of all that is computed.
        batches: of `load_clips`.
        max_clips: how many views to compute together.
        mirrored: see `utils.metrics.average_views`.

    Yields:
        Each clip and its logits, or the error in its place and None.

    Raises:
        UserError: the fused form's logits differ from the model's.
    """
    fused = fuse(model, world.device, dtype)
    called = world.wrap(fused)
    is_checked = False
    for batch in batches:
        clips = [clip for clip in batch if isinstance(clip, Clip)]
        logits = iter(())
        if clips:
            stacked = torch.from_numpy(np.stack([clip.pixels for clip in clips]))
            found = []
            for part in to_device([stacked], world.device)[0].flatten(0, 1).split(max_clips):
                inputs = to_input(part, fused)
                if not is_checked:
                    # A corner of one clip, since on a CPU the whole would take as long as the answer.
                    check_fused(model, fused, inputs[:1, ..., :64, :64])
                    is_checked = True
                with torch.inference_mode():
                    found.append(called(inputs).float())
            logits = iter(average_views(torch.cat(found).unflatten(0, stacked.shape[:2]), mirrored).cpu())
        for clip in batch:
            yield clip, next(logits) if isinstance(clip, Clip) else None


def write_json(file: str, content: dict[str, Any]) -> None:
    """Write answers as JSON to a file, completely or not at all, or to stdout if it is '-'.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(content, indent=1) + "\n"
    with writing("--json", file):
        if file == "-":
            print(text, end="")
        else:
            write_atomically(Path(file), text.encode())


if __name__ == "__main__":
    run_program(main, lambda: video_parser().parse_args())
