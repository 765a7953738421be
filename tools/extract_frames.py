"""Decode a folder of videos into the frame folders that `main.py` reads.

Each video becomes a folder of its name with a JPEG for every frame, numbered from 1. A folder
appears under its name only when it is complete (it is filled under another name, then renamed), so
the program may be killed at any moment and started again: what is finished is skipped.

The frames are what TRN-pytorch's script makes with `ffmpeg -vf scale=256:256 -q:v 0`: bicubic
scaling, and 4:2:0 JPEGs with the same quantisation tables. One difference is on purpose: every
frame of the video appears exactly once, where ffmpeg repeats and drops frames if the frame rate
varies.
"""

import argparse
import errno
import io
import itertools
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
from av.video.reformatter import VideoReformatter

from datasets_video import LAYOUTS, check_template
from utils.cli import Parser, UserError, cores, number_type, run_program, uninterrupted
from utils.files import write_texts
from utils.pool import progress_bar, worker_pool
from utils.video import VideoError, decode, resample, to_image

SETTINGS_FILE = ".extract_frames.json"
FAILURES_FILE = "extract_failures.txt"

# The MPEG-1 intra matrix at scale 2: the tables of ffmpeg's `-q:v 2`, and of 0 and 1, which it
# raises to 2. They err less than the JPEG standard's tables do at the same file size.
_FFMPEG_Q2 = [
    *(8, 4, 4, 5, 6, 6, 7, 8),
    *(4, 4, 5, 6, 6, 7, 8, 9),
    *(4, 5, 6, 6, 7, 8, 8, 9),
    *(5, 5, 6, 6, 7, 8, 9, 10),
    *(5, 6, 6, 7, 8, 8, 10, 12),
    *(6, 6, 7, 8, 8, 10, 12, 14),
    *(6, 6, 7, 8, 9, 11, 14, 17),
    *(6, 7, 8, 9, 11, 14, 17, 20),
]

_EPILOG = """\
Something-Something v2 (.webm):
  python tools/extract_frames.py --videos 20bn-something-something-v2 --dataset somethingv2 --root_path data

Diving48 (.mp4):
  python tools/extract_frames.py --videos rgb --dataset diving48 --root_path data

Something-Something v1 comes as frames, there is nothing to extract.

Any other folder of videos:
  python tools/extract_frames.py --videos my_videos --out my_frames --short_side 256

After that, tools/process_dataset.py makes the lists. To stop, press Ctrl-C; the same command
continues where it was stopped, however it was stopped.
"""


@dataclass(frozen=True)
class Settings:
    """What the JPEGs depend on, besides the video.

    Attributes:
        short_side: pixels of the shorter side, the aspect being kept.
        native: keep the video's size. With neither of the two: 256 x 256, aspect not kept.
        quality: JPEG quality, 1 to 100; None for the quantisation tables of ffmpeg's `-q:v 2`.
        fps: frames per second to resample to; None for every frame once.
        image_tmpl: file name of a frame, such as `{:06d}.jpg`.
    """

    short_side: int | None
    native: bool
    quality: int | None
    fps: str | None
    image_tmpl: str


def main() -> int:
    args = parse_args()
    out = Path(args.root_path) / args.dataset / LAYOUTS[args.dataset][0] if args.dataset else Path(args.out)
    settings = Settings(
        short_side=args.short_side,
        native=args.native,
        quality=args.quality,
        fps=str(args.fps) if args.fps else None,
        image_tmpl=LAYOUTS[args.dataset][1] if args.dataset else args.image_tmpl or "{:05d}.jpg",
    )
    source = Path(args.videos)
    videos, subfolders = find_videos(source)
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: holds the videos; give another folder for the frames")
    failures: dict[str, str] = {}
    try:
        prepare_folder(out, settings)
        todo = [name for name in videos if not (out / Path(name).stem).is_dir()]
        with progress_bar(len(videos), initial=len(videos) - len(todo)) as bar:
            task = partial(extract_video, source, out, settings)
            for name, reason in run_in_processes(task, todo, args.workers):
                bar.update()
                if reason:
                    failures[name] = reason
                    bar.write(f"{name}: {reason}", file=sys.stderr)
        remove_leftovers(out)
        write_report(out / FAILURES_FILE, failures)
    except OSError as error:
        # What concerns a single video is a reason in the report; this concerns the output folder.
        raise UserError(f"{out}: stopped, {_cause(error)}; the same command continues from here") from None
    if subfolders:
        print(f"{source}: {subfolders} folders in it were not looked into")
    print(
        f"{out}: {len(videos)} videos, {len(todo) - len(failures)} extracted now, "
        f"{len(videos) - len(todo)} before, {len(failures)} failed"
        + (f", see {out / FAILURES_FILE}" if failures else "")
    )
    return 1 if failures else 0


def parse_args() -> argparse.Namespace:
    parser = Parser(
        "Decode a folder of videos into a folder of JPEG frames for each, numbered from 1.", _EPILOG
    )
    where = parser.add_argument_group("from where to where")
    where.add_argument("--videos", metavar="DIR", required=True, help="the folder that holds the video files")
    where.add_argument(
        "--dataset",
        choices=["somethingv2", "diving48"],
        help="place and name the frames as main.py expects them of this data set",
    )
    where.add_argument(
        "--root_path",
        metavar="DIR",
        help="with --dataset: the folder that holds, or will hold, a folder for each data set",
    )
    where.add_argument("--out", metavar="DIR", help="instead of --dataset: the folder for the frame folders")
    where.add_argument(
        "--image_tmpl",
        metavar="NAME",
        help="with --out: the file name of a frame (default: {:05d}.jpg)",
    )
    frames = parser.add_argument_group("the frames")
    size = frames.add_mutually_exclusive_group()
    size.add_argument(
        "--short_side",
        metavar="N",
        type=number_type(int, 1, 16384),
        help="scale the shorter side to N pixels and keep the aspect "
        "(default: 256 x 256, aspect not kept, as in the published recipe)",
    )
    size.add_argument("--native", action="store_true", help="keep the video's own size")
    frames.add_argument(
        "--quality",
        metavar="Q",
        type=number_type(int, 1, 100),
        help="JPEG quality, 1 to 100 (default: the tables of ffmpeg's -q:v 2, as in the published "
        "recipe; close to 94, in smaller files)",
    )
    frames.add_argument(
        "--fps",
        metavar="F",
        type=number_type(Fraction, 0, 1000, above=True),
        help="resample to F frames a second, by repeating and leaving out frames "
        "(default: every frame of the video once)",
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--workers",
        metavar="N",
        type=number_type(int, 1, 1024),
        default=cores(),
        help="processes, each decoding one video at a time (default: one per core, here %(default)s)",
    )
    args = parser.parse_args()
    if bool(args.dataset) == bool(args.out):
        raise UserError("give either --dataset and --root_path, or --out")
    if args.dataset and not args.root_path:
        raise UserError(f"--dataset {args.dataset}: needs --root_path, the folder for the data sets")
    if args.out and args.root_path:
        raise UserError("--root_path: goes with --dataset; --out is itself the folder for the frames")
    if args.dataset and args.image_tmpl:
        raise UserError(f"--image_tmpl: goes with --out; the names of {args.dataset}'s frames are fixed")
    if args.image_tmpl:
        check_template(args.image_tmpl, suffixes=(".jpg", ".jpeg"))
    return args


def find_videos(folder: Path) -> tuple[list[str], int]:
    """List the names of the files in a folder, sorted, and count its subfolders; hidden ones aside.

    Raises:
        UserError: no such folder, no file in it, or two files would fill the same frame folder.
    """
    try:
        with os.scandir(folder) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        raise UserError(f"--videos {folder}: cannot be read ({error.strerror})") from None
    videos = sorted(name for name in is_folder if not is_folder[name])
    if not videos:
        raise UserError(f"--videos {folder}: has no files in it; name the folder that holds the videos")
    video_of: dict[str, str] = {}
    for name in videos:
        other = video_of.setdefault(Path(name).stem, name)
        if other != name:
            raise UserError(f"--videos {folder}: {other} and {name} would fill the same folder; rename one")
    return videos, len(is_folder) - len(videos)


def prepare_folder(out: Path, settings: Settings) -> None:
    """Make the output folder; in one that is there, check the settings.

    Raises:
        UserError: the frames in it were made with other settings, or by another program.
        OSError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    now = asdict(settings)
    try:
        before = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
        different = [f"--{key} {before[key]} (now {now[key]})" for key in now if before[key] != now[key]]
    except FileNotFoundError:
        if any(path.is_dir() for path in out.glob("[!.]*")):
            raise UserError(f"{out}: holds folders made by another program; give a new folder") from None
        write_texts({out / SETTINGS_FILE: json.dumps(now, indent=2) + "\n"})
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out / SETTINGS_FILE}: is damaged; extract into a new folder") from None
    else:
        if different:
            raise UserError(
                f"{out}: its frames were made with {', '.join(different)}; "
                "give the same options or a new folder"
            )


def remove_leftovers(out: Path) -> None:
    """Remove what killed processes have left half done."""
    for leftover in list(out.glob(".*.part")):
        if leftover.is_dir():
            # Renamed first: should a process of the stopped run still be writing, its next frame fails.
            # Otherwise it could complete a folder from which files were removed, and give it its name.
            doomed = leftover.with_name(f".{uuid.uuid4().hex}.part")
            leftover.rename(doomed)
            shutil.rmtree(doomed)
        else:
            leftover.unlink()


def run_in_processes(
    task: Callable[[str], str | None], videos: Iterable[str], workers: int
) -> Iterator[tuple[str, str | None]]:
    """Call `task` for each video, as many at a time as `workers`; yield what it returned, in any order.

    Two videos per process are handed out at a time, so memory does not grow with their number.
    Where a process dies (a decoder's crash, or the system is out of memory), those handed out
    are done again one at a time, so that only the culprit fails.
    """
    waiting = iter(videos)
    while True:
        handed_out: dict[Future, str] = {}
        pool = worker_pool(workers)
        try:
            for name in waiting:
                try:
                    with uninterrupted():
                        handed_out[pool.submit(task, name)] = name
                except BrokenProcessPool:
                    waiting = itertools.chain([name], waiting)
                    raise
                if len(handed_out) == 2 * workers:
                    yield from _ended(handed_out)
            while handed_out:
                yield from _ended(handed_out)
            return
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
        for name in handed_out.values():
            with worker_pool(1) as pool:
                try:
                    with uninterrupted():
                        alone = pool.submit(task, name)
                    yield name, alone.result()
                except BrokenProcessPool:
                    yield name, "the process died of it: the decoder crashed, or memory ran out"


def extract_video(source: Path, out: Path, settings: Settings, name: str) -> str | None:
    """Extract one video into a folder of its name.

    Returns:
        None, or the reason why this video has no frames.

    Raises:
        OSError: the frames cannot be written.
    """
    folder = out / Path(name).stem
    # Handed out twice, if another video killed the process between finishing this one and saying so.
    if folder.is_dir():
        return None
    part = out / f".{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        for number, jpeg in enumerate(read_jpegs(source / name, settings), start=1):
            (part / settings.image_tmpl.format(number)).write_bytes(jpeg)
        part.rename(folder)
    except VideoError as error:
        return str(error)
    except av.FFmpegError as error:
        return f"cannot be scaled ({error.strerror})"
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return None


def read_jpegs(video: Path, settings: Settings) -> Iterator[bytes]:
    """Yield a video's frames in the order of display, as JPEG files.

    Raises:
        VideoError: the video cannot be decoded to its end.
    """
    quality = {"quality": settings.quality} if settings.quality else {"qtables": [_FFMPEG_Q2, _FFMPEG_Q2]}
    frames = decode(video)
    shown = resample(frames, Fraction(settings.fps)) if settings.fps else ((frame, 1) for frame in frames)
    scaler = VideoReformatter()
    size = None
    for frame, times in shown:
        # A video whose size changes midway keeps the first frame's.
        size = size or _target_size(settings, frame.width, frame.height)
        image = to_image(frame, *size, scaler)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", subsampling="4:2:0", **quality)
        yield from itertools.repeat(buffer.getvalue(), times)


def _target_size(settings: Settings, width: int, height: int) -> tuple[int, int]:
    if settings.native:
        return width, height
    if not settings.short_side:
        return 256, 256
    scale = Fraction(settings.short_side, min(width, height))
    return round(width * scale), round(height * scale)


def write_report(path: Path, failures: dict[str, str]) -> None:
    """Write a line for each failed video, sorted, `name<tab>reason`; without failures, no report."""
    if failures:
        write_texts({path: "".join(f"{name}\t{failures[name]}\n" for name in sorted(failures))})
    else:
        path.unlink(missing_ok=True)


def _ended(handed_out: dict[Future, str]) -> Iterator[tuple[str, str | None]]:
    done, _ = wait(handed_out, return_when=FIRST_COMPLETED)
    for future in done:
        result = future.result()
        yield handed_out.pop(future), result


def _cause(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
        return f"{error.strerror}: {error.filename}; is a second run at work there?"
    return f"{error.strerror}: {error.filename or 'writing'}"


if __name__ == "__main__":
    run_program(main)
