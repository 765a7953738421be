"""The options of `test_video.py` for answers over time and for its output."""

import argparse
from pathlib import Path

from utils.cli import UserError, non_negative_float, positive_float, positive_int
from utils.files import check_new_file, check_new_files, check_writable_folder

# Options that name a file to write, and its suffix.
FILES = {"json": "", "csv": ".csv", "save_scores": ".npz", "save_features": ".npz", "cam": ""}
PICTURES = (".png", ".mp4")
DEFAULT_LIVE_WINDOW = 4.0


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `test_video.py`."""
    time = parser.add_argument_group("answers over time")
    time.add_argument(
        "--window",
        metavar="SECONDS",
        type=positive_float,
        help=f"classify each window of this length (default: the whole video; {DEFAULT_LIVE_WINDOW:g} for "
        "streams)",
    )
    time.add_argument(
        "--stride", metavar="SECONDS", type=positive_float, help="window interval (default: half a window)"
    )
    time.add_argument(
        "--threshold",
        metavar="P",
        type=non_negative_float,
        help="leave out windows below this probability, and merge windows of one class into segments",
    )
    time.add_argument(
        "--camera", metavar="SOURCE", help="0, /dev/video0, rtsp://..., http(s)://..., or - for stdin"
    )
    time.add_argument("--reconnect", action="store_true", help="open a lost stream again, until Ctrl-C")
    output = parser.add_argument_group("output")
    output.add_argument("--topk", metavar="N", type=positive_int, default=5, help="classes per answer")
    output.add_argument(
        "--json", metavar="FILE|-", help="write the answers as JSON; - writes only the JSON to stdout"
    )
    output.add_argument("--csv", metavar="FILE.csv", help="write video, start, end, class, probability")
    output.add_argument(
        "--save_scores", metavar="FILE.npz", help="save scores as test_models.py does, one row per answer"
    )
    output.add_argument(
        "--save_features", metavar="FILE.npz", help="save the classifier's input, one row per answer"
    )
    output.add_argument(
        "--rendered_output",
        metavar="FILE|DIR/",
        help="the video with its best class (.mp4; this records a stream), or the frames that the model saw "
        "(.png; with --window, a plot of classes over time); for several videos, a folder of .mp4 files",
    )
    output.add_argument(
        "--cam",
        metavar="FILE.png|mp4",
        help="draw where the model sees evidence for the best class, in space and time; one video, one view",
    )


def check_answer_options(args: argparse.Namespace, is_live: bool) -> None:
    """Check the options of `add_answer_options` before the work begins, and fill in their defaults.

    Args:
        args: options of `test_video.py`.
        is_live: whether the input is a stream.

    Raises:
        UserError: an option contradicts another one, or a file cannot be written.
    """
    if is_live:
        for name in ("cam", "save_scores", "save_features"):
            if getattr(args, name):
                raise UserError(f"--{name}: is not supported for streams; record the stream and use the file")
        args.window = args.window or DEFAULT_LIVE_WINDOW
    elif args.reconnect:
        raise UserError("--reconnect: needs a stream")
    if args.window:
        args.stride = args.stride or args.window / 2
    elif args.stride or args.threshold is not None:
        raise UserError("--stride and --threshold need --window SECONDS")
    if is_live and args.stride > args.window:
        raise UserError(f"--stride {args.stride:g}: must be at most --window {args.window:g} for a stream")
    if args.cam and (args.window or args.test_crops * args.num_clips > 1):
        raise UserError("--cam: needs a single view; omit --window, --test_crops and --num_clips")
    check_new_files(args, FILES)
    if args.cam:
        _check_suffix("--cam", args.cam, PICTURES)


def rendered_files(args: argparse.Namespace, videos: list[Path], is_live: bool) -> list[Path | None]:
    """Choose and check the file of `--rendered_output` for each video.

    Raises:
        UserError: a file cannot be written, or several videos have the same file.
    """
    if not args.rendered_output:
        return [None] * len(videos)
    out = Path(args.rendered_output)
    if not (args.rendered_output.endswith("/") or out.is_dir()) or is_live:
        if len(videos) > 1:
            raise UserError(f"--rendered_output {out}: needs a single video, or a folder (DIR/)")
        _check_suffix("--rendered_output", out, PICTURES[1:] if is_live else PICTURES)
        check_new_file(out, "--rendered_output")
        return [out]
    check_writable_folder(out, "--rendered_output")
    files = [out / f"{video.resolve().name}.mp4" for video in videos]
    for number, file in enumerate(files):
        if file in files[:number] or file.exists():
            raise UserError(f"--rendered_output {file}: already exists, or two videos have this name")
    out.mkdir(parents=True, exist_ok=True)
    return list(files)


def _check_suffix(option: str, file: str | Path, suffixes: tuple[str, ...]) -> None:
    if Path(file).suffix.lower() not in suffixes:
        raise UserError(f"{option} {file}: the name must end in {' or '.join(suffixes)}")
