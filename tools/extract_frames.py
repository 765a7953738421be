"""Decode a folder of videos into the frame folders that `main.py` reads.

Each video becomes a folder of its name with a JPEG for every frame, numbered from 1; those in a
subfolder, such as a class's, are put into a subfolder of the same name. A folder
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
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from av.video.reformatter import VideoReformatter

from datasets_video import check_folder, check_template, dataset_name, layout
from frames.video import VideoError, check_pixels, decode, is_video, resample, to_image
from utils.cli import (
    Parser,
    UserError,
    number_type,
    one_line,
    pluralize,
    printable,
    run_program,
    uninterrupted,
)
from utils.files import check_writable_file, check_writable_folder, read_text, write_texts
from utils.pool import cores, progress_bar, worker_pool

SETTINGS_FILE = ".extract_frames.json"
FAILURES_FILE = "extract_failures.txt"

# libjpeg's limit for each side of an image, in pixels.
_JPEG_SIDE = 65500

# What a file system answers if it is the name of a folder that it cannot have.
_NAME_ERRORS = {
    *(errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
}

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

Something-Something v1 and Jester come as frames, there is nothing to extract.

Own data, in a folder for each class (my_videos/CLASS/VIDEO) or as a CSV says:
  python tools/extract_frames.py --videos my_videos --dataset my_data --root_path data

Into any other folder:
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


class Found(NamedTuple):
    """What a folder of videos holds; all names are relative to it.

    Attributes:
        videos: their files, sorted.
        refused: name -> why it cannot be looked at, of files and folders.
        skipped: files and folders that are hidden, or are no videos.
    """

    videos: list[str]
    refused: dict[str, str]
    skipped: list[str]


def main() -> int:
    args = parse_args()
    names = layout(args.dataset)
    out = Path(args.root_path) / args.dataset / names.frames if args.dataset else Path(args.out)
    settings = Settings(
        short_side=args.short_side,
        native=args.native,
        quality=args.quality,
        fps=str(args.fps) if args.fps else None,
        image_tmpl=args.image_tmpl or names.template,
    )
    source, found = look_up(Path(args.videos))
    check_writable_folder(out, "--out" if args.out else "")
    if out.exists() and out.samefile(source):
        raise UserError(f"{out}: holds the videos; give another folder for the frames")
    failures = found.refused | check_names(found.videos)
    usable = [name for name in found.videos if name not in failures]
    extracted = 0
    try:
        prepare_folder(out, settings)
        todo = [name for name in usable if not is_done(out, settings, name)]
        with progress_bar(len(usable), initial=len(usable) - len(todo)) as bar:
            for name, reason in failures.items():
                bar.write(_line(name, reason), file=sys.stderr)
            task = partial(extract_video, source, out, settings)
            for name, reason in run_in_processes(task, todo, args.workers):
                bar.update()
                if reason:
                    failures[name] = reason
                    bar.write(_line(name, reason), file=sys.stderr)
                else:
                    extracted += 1
        remove_leftovers(out)
        write_report(out / FAILURES_FILE, failures)
    except OSError as error:
        # What concerns a single video is a reason in the report; this concerns the output folder.
        raise UserError(f"{out}: stopped, {_cause(error)}; the same command continues from here") from None
    if found.skipped:
        print(f"{source}: skipped {_some(found.skipped)} (hidden, or not a video)")
    before = len(usable) - len(todo)
    print(
        f"{out}: {pluralize(extracted + before + len(failures), 'video')}, {extracted} extracted now, "
        f"{before} before, {len(failures)} failed" + (f", see {out / FAILURES_FILE}" if failures else "")
    )
    return 1 if failures else 0


def parse_args() -> argparse.Namespace:
    parser = Parser("Decode videos into a folder of JPEG frames for each, numbered from 1.", _EPILOG)
    where = parser.add_argument_group("from where to where")
    where.add_argument(
        "--videos",
        metavar="DIR",
        required=True,
        help="the folder that holds the video files, in folders of their own or not; or one video file",
    )
    where.add_argument(
        "--dataset",
        metavar="NAME",
        type=dataset_name,
        help="place and name the frames as main.py expects them of this data set: somethingv2, diving48 or a "
        "name of yours",
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
        type=number_type(_fraction, 0, 1000, above=True),
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
        if len(os.fsencode(args.image_tmpl.format(10**9))) > 255:
            raise UserError(f"--image_tmpl {printable(args.image_tmpl)}: is too long for the name of a file")
    return args


def look_up(videos: Path) -> tuple[Path, Found]:
    """Find what is to be extracted: the videos in a folder, or a single one.

    Returns:
        The folder that holds them, and what is in it.

    Raises:
        UserError: there is no such folder or file, or no video in it.
    """
    try:
        is_folder = stat.S_ISDIR(videos.stat().st_mode)
    except OSError as error:
        raise UserError(f"--videos {videos}: cannot be read ({error.strerror})") from None
    if not is_folder:
        return videos.parent, Found([videos.name], {}, [])
    found = find_videos(videos)
    if not found.videos and not found.refused:
        skipped = f" but {_some(found.skipped)}" if found.skipped else ""
        raise UserError(f"--videos {videos}: has no videos in it{skipped}; name the folder that holds them")
    return videos, found


def find_videos(top: Path) -> Found:
    """Look for videos in a folder and in all folders in it.

    Each folder is looked into once, however many links lead there. Frame folders of this program are not.

    Raises:
        UserError: the folder itself cannot be read.
    """
    found = Found([], {}, [])
    known: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        name = os.path.relpath(error.filename, top)
        if name == ".":
            raise UserError(f"--videos {top}: cannot be read ({error.strerror})")
        found.refused[name] = f"cannot be read ({error.strerror})"

    for place, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        name = os.path.relpath(place, top)
        other = known.setdefault(os.path.realpath(place), name)
        hidden = [entry for entry in folders if entry.startswith(".")]
        folders[:] = sorted(set(folders).difference(hidden))
        if other != name:
            found.refused[name] = f"is the same folder as {'--videos' if other == '.' else printable(other)}"
        elif SETTINGS_FILE in files:
            found.skipped.append(name)
        else:
            for entry in [*hidden, *files]:
                usable = not entry.startswith(".") and is_video(Path(place, entry))
                (found.videos if usable else found.skipped).append(str(Path(name, entry)))
            continue
        folders.clear()
    found.videos.sort()
    found.skipped.sort()
    return found


def frame_folder(video: str) -> Path:
    """The folder of a video's frames, below the output folder."""
    return Path(video).with_name(Path(video).stem)


def check_names(videos: list[str]) -> dict[str, str]:
    """Find videos whose frame folder would not be theirs alone, or could not stand in a list.

    Args:
        videos: names as in `Found`.

    Returns:
        Their names, and why they are not extracted.
    """
    reasons: dict[str, str] = {}
    video_of: dict[Path, str] = {}
    shared = {
        parent for place in {Path(name).parent for name in videos} for parent in (place, *place.parents)
    }
    for name in videos:
        folder = frame_folder(name)
        other = video_of.setdefault(folder, name)
        if other != name:
            reasons[name] = f"would fill the same folder as {printable(other)}; rename one"
            reasons.setdefault(other, f"would fill the same folder as {printable(name)}; rename one")
        elif folder in shared:
            reasons[name] = (
                f"would fill a folder that holds other videos' frames, {printable(folder)}; rename it"
            )
        elif folder.name.startswith(".") or folder.parts[0].lower() == FAILURES_FILE:
            reasons[name] = (
                f"would fill a folder named {printable(folder)}, which is not for frames; rename it"
            )
        elif not _can_be_listed(str(folder)):
            reasons[name] = (
                "cannot stand in a list (control characters, not UTF-8, or space at an end); rename it"
            )
    return reasons


def prepare_folder(out: Path, settings: Settings) -> None:
    """Make the output folder; in one that is there, check the settings.

    Raises:
        UserError: the frames in it were made with other settings, or by another program; or it is no folder.
        OSError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a link that leads nowhere
        raise UserError(f"{out}: cannot be made a folder ({printable(error.filename)} is none)") from None
    check_writable_file(out / FAILURES_FILE)
    file, now = out / SETTINGS_FILE, asdict(settings)
    if not file.exists() and not file.is_symlink():
        if any(path.is_dir() for path in out.glob("[!.]*")):
            raise UserError(f"{out}: holds folders made by another program; give a new folder")
        write_texts({file: json.dumps(now, indent=2) + "\n"})
        return
    try:
        before = json.loads(read_text(file))
        different = [
            f"--{key} {printable(before[key])} (now {printable(now[key])})"
            for key in now
            if before[key] != now[key]
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: is damaged; extract into a new folder") from None
    if different:
        raise UserError(
            f"{out}: its frames were made with {', '.join(different)}; give the same options or a new folder"
        )


def is_done(out: Path, settings: Settings, name: str) -> bool:
    """Whether a video's frames are there: their folder gets its name with all of them in it."""
    return (out / frame_folder(name) / settings.image_tmpl.format(1)).is_file()


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
    # Handed out twice, if another video killed the process between finishing this one and saying so.
    if is_done(out, settings, name):
        return None
    part = out / f".{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        for number, jpeg in enumerate(read_jpegs(source / name, settings), start=1):
            (part / settings.image_tmpl.format(number)).write_bytes(jpeg)
        return _give_name(part, out / frame_folder(name))
    except VideoError as error:
        return str(error)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_jpegs(video: Path, settings: Settings) -> Iterator[bytes]:
    """Yield a video's frames in the order of display, as JPEG files.

    Raises:
        VideoError: the video cannot be decoded to its end, or its frames cannot become JPEGs.
    """
    quality = {"quality": settings.quality} if settings.quality else {"qtables": [_FFMPEG_Q2, _FFMPEG_Q2]}
    frames = decode(video)
    repeated = resample(frames, Fraction(settings.fps)) if settings.fps else ((frame, 1) for frame in frames)
    scaler = VideoReformatter()
    size = None
    for frame, times in repeated:
        # A video whose size changes midway keeps the first frame's.
        size = size or _target_size(settings, frame.width, frame.height)
        image = to_image(frame, *size, scaler)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", subsampling="4:2:0", **quality)
        yield from itertools.repeat(buffer.getvalue(), times)


def _target_size(settings: Settings, width: int, height: int) -> tuple[int, int]:
    if not settings.native and not settings.short_side:
        return 256, 256
    scale = Fraction(settings.short_side, min(width, height)) if settings.short_side else 1
    size = round(width * scale), round(height * scale)
    if max(size) > _JPEG_SIDE:
        raise VideoError(
            f"frames of {size[0]} x {size[1]} pixels, but no side of a JPEG exceeds {_JPEG_SIDE}"
        )
    check_pixels(*size)
    return size


def _give_name(part: Path, folder: Path) -> str | None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.rename(folder)
    except OSError as error:
        if error.errno not in _NAME_ERRORS:
            raise
        return f"{printable(folder)} cannot be made its frame folder ({error.strerror})"
    return None


def write_report(path: Path, failures: dict[str, str]) -> None:
    """Write a line for each failed video, sorted, `name<tab>reason`, escaped; without failures, no report."""
    if failures:
        lines = [f"{_escaped(name)}\t{_escaped(failures[name])}\n" for name in sorted(failures)]
        write_texts({path: "".join(lines)})
    else:
        path.unlink(missing_ok=True)


def _ended(handed_out: dict[Future, str]) -> Iterator[tuple[str, str | None]]:
    done, _ = wait(handed_out, return_when=FIRST_COMPLETED)
    for future in done:
        result = future.result()
        yield handed_out.pop(future), result


def _cause(error: OSError) -> str:
    culprit = printable(error.filename or "writing")
    if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
        return f"{error.strerror}: {culprit}; is a second run at work there?"
    return f"{error.strerror}: {culprit}"


def _line(name: str, reason: str) -> str:
    return f"{printable(name)}: {one_line(reason)}"


def _escaped(text: str) -> str:
    return one_line(text).replace("\t", "\\t")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


def _can_be_listed(name: str) -> bool:
    try:
        check_folder(name)
    except ValueError:
        return False
    return True


def _fraction(text: str) -> Fraction:
    if "e" in text.lower():  # 1e999999999 would be computed digit by digit
        raise ValueError
    return Fraction(text)


if __name__ == "__main__":
    run_program(main)
