"""Decode a folder of videos into the frame folders that `main.py` reads.

Each video becomes a folder of the same name with a JPEG for every frame, numbered from 1. Subfolders, such as
one for each class, are kept. A folder is filled under another name and renamed when it is complete. So the
program may be killed at any time; a rerun skips the finished videos.

The frames are those of TRN-pytorch's script, `ffmpeg -vf scale=256:256 -q:v 0`: bicubic scaling, and 4:2:0
JPEGs with the same quantisation tables. There is one intended difference: every frame of the video appears
exactly once, while ffmpeg repeats and drops frames if the frame rate varies.
"""

import argparse
import io
import json
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets_video import dataset_name, layout
from frames.sources import find_videos
from frames.video import FrameConverter, VideoError, decode, display_size
from utils.cli import Parser, UserError, number_type, pluralize, printable, run_program
from utils.files import read_text, write_files
from utils.pool import cores, map_in_processes, progress_bar

SETTINGS_FILE = ".extract_frames.json"
FAILURES_FILE = "extract_failures.txt"

# The MPEG-1 intra matrix at scale 2: the tables of ffmpeg's `-q:v 2` (it raises 0 and 1 to 2). They lose less
# than the JPEG standard's tables at the same file size.
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
Something-Something v2 or Diving48, your own data, and any other folder:
  python tools/extract_frames.py --videos 20bn-something-something-v2 --dataset somethingv2 --root_path data
  python tools/extract_frames.py --videos my_videos --dataset my_data --root_path data
  python tools/extract_frames.py --videos my_videos --out my_frames --short_side 256

After that, tools/process_dataset.py makes the lists. Press Ctrl-C to stop; repeat the command to continue.
"""


class Settings(NamedTuple):
    """Options for the conversion of videos to JPEGs, which must be the same for a whole output folder."""

    short_side: int | None
    native: bool
    image_tmpl: str


def main() -> int:
    args = parse_args()
    names = layout(args.dataset)
    out = Path(args.root_path) / args.dataset / names.frames if args.dataset else Path(args.out)
    settings = Settings(args.short_side, args.native, names.template)
    source = Path(args.videos)
    if not source.exists():
        raise UserError(f"--videos {source}: no such file or folder")
    videos = [path for path in find_videos(source) if not path.is_dir()]
    if not videos:
        raise UserError(f"--videos {source}: contains only frame folders, no video files")
    if source in videos:
        source = source.parent
    videos = [str(path.relative_to(source)) for path in videos]
    counts = Counter(map(frame_folder, videos))
    usable = [name for name in videos if counts[frame_folder(name)] == 1]
    reason = "another video would fill the same folder; rename one"
    failures = dict.fromkeys(set(videos) - set(usable), reason)
    try:
        prepare_folder(out, settings)
        # A folder gets its name when it is complete.
        first = settings.image_tmpl.format(1)
        todo = [name for name in usable if not (out / frame_folder(name) / first).is_file()]
        with progress_bar(len(usable), initial=len(usable) - len(todo)) as bar:
            task = partial(extract_video, source, out, settings)
            for name, reason in map_in_processes(task, todo, args.workers):
                bar.update()
                if reason:
                    failures[name] = reason
        remove_leftovers(out)
        report = out / FAILURES_FILE
        if failures:
            lines = [f"{printable(name)}\t{failures[name]}\n" for name in sorted(failures)]
            write_files({report: "".join(lines)})
        else:
            report.unlink(missing_ok=True)
    except OSError as error:  # of the output folder: errors of single videos are in the report
        culprit = printable(error.filename or "writing")
        raise UserError(
            f"{out}: stopped ({culprit}: {error.strerror}); rerun to continue (only one run at a time)"
        ) from None
    for name in sorted(failures):
        print(f"{printable(name)}: {failures[name]}", file=sys.stderr)
    num_before = len(usable) - len(todo)
    num_now = len(videos) - num_before - len(failures)
    print(
        f"{out}: {pluralize(len(videos), 'video')}, {num_now} extracted now, "
        f"{num_before} before, {len(failures)} failed" + (f", see {report}" if failures else "")
    )
    return 1 if failures else 0


def parse_args() -> argparse.Namespace:
    parser = Parser("Decode videos into a folder of JPEG frames for each, numbered from 1.", _EPILOG)
    where = parser.add_argument_group("input and output")
    where.add_argument(
        "--videos",
        metavar="DIR",
        required=True,
        help="folder of video files, with or without subfolders; or one video file",
    )
    where.add_argument(
        "--dataset",
        metavar="NAME",
        type=dataset_name,
        help="place and name the frames as main.py expects them: somethingv2, diving48 or any other name",
    )
    where.add_argument(
        "--root_path", metavar="DIR", help="with --dataset: the folder with one folder for each data set"
    )
    where.add_argument("--out", metavar="DIR", help="instead of --dataset: the folder for the frame folders")
    frames = parser.add_argument_group("frames")
    size = frames.add_mutually_exclusive_group()
    size.add_argument(
        "--short_side",
        metavar="N",
        type=number_type(int, 1, 16384),
        help="scale the shorter side to N pixels and keep the aspect ratio "
        "(default: 256 x 256, aspect ratio not kept, as in the published recipe)",
    )
    size.add_argument("--native", action="store_true", help="keep the size at which players show the video")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=number_type(int, 1, 1024),
        default=cores(),
        help="processes, each decoding one video at a time (default: one per core, here %(default)s)",
    )
    args = parser.parse_args()
    if bool(args.dataset) == bool(args.out) or bool(args.dataset) != bool(args.root_path):
        raise UserError("use either --dataset and --root_path, or --out")
    return args


def frame_folder(video: str) -> Path:
    """The folder of a video's frames, below the output folder."""
    return Path(video).with_name(Path(video).stem)


def prepare_folder(out: Path, settings: Settings) -> None:
    """Make the output folder. Refuse an existing one with other settings, or from another program."""
    out.mkdir(parents=True, exist_ok=True)
    file, current = out / SETTINGS_FILE, settings._asdict()
    if not file.exists():
        if any(path.is_dir() for path in out.glob("[!.]*")):
            raise UserError(f"{out}: contains folders from another program; use a new folder")
        write_files({file: json.dumps(current, indent=2) + "\n"})
        return
    previous = dict.fromkeys(current) | json.loads(read_text(file))
    changes = [
        f"--{key} {previous[key]} (now {current[key]})" for key in current if previous[key] != current[key]
    ]
    if changes:
        raise UserError(
            f"{out}: its frames were made with {', '.join(changes)}; use the same options or a new folder"
        )


def remove_leftovers(out: Path) -> None:
    """Remove the unfinished folders of killed processes."""
    for leftover in [path for path in out.glob(".*.part") if path.is_dir()]:
        # Renamed first. Otherwise, a process that still writes to it could give an incomplete folder its
        # final name.
        doomed = leftover.with_name(f".{uuid.uuid4().hex}.part")
        leftover.rename(doomed)
        shutil.rmtree(doomed)


def extract_video(source: Path, out: Path, settings: Settings, name: str) -> str | None:
    """Extract one video into a folder of the same name.

    Returns:
        None, or the reason why this video has no frames.
    """
    part, folder = out / f".{uuid.uuid4().hex}.part", out / frame_folder(name)
    part.mkdir()
    try:
        for number, jpeg in enumerate(read_jpegs(source / name, settings), start=1):
            (part / settings.image_tmpl.format(number)).write_bytes(jpeg)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            part.rename(folder)
        except OSError as error:
            return f"cannot create its frame folder {printable(folder)} ({error.strerror})"
    except VideoError as error:
        return str(error)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return None


def read_jpegs(video: Path, settings: Settings) -> Iterator[bytes]:
    """Yield a video's frames in display order, as JPEG files.

    Raises:
        VideoError: the video cannot be decoded to its end.
    """
    to_image = None
    for frame in decode(video):
        if to_image is None:  # all frames get the size of the first one, even if the video's size changes
            width, height = display_size(frame)
            scale = Fraction(settings.short_side, min(width, height)) if settings.short_side else 1
            keeps_aspect = settings.native or settings.short_side
            size = (round(width * scale), round(height * scale)) if keeps_aspect else (256, 256)
            to_image = FrameConverter(size)
        buffer = io.BytesIO()
        to_image(frame).save(buffer, "JPEG", subsampling="4:2:0", qtables=[_FFMPEG_Q2, _FFMPEG_Q2])
        yield buffer.getvalue()


if __name__ == "__main__":
    run_program(main)
