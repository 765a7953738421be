"""Make the lists that `main.py` reads, from a data set's annotations and its frames or videos.

Own data, one folder per class (my_videos/CLASS/VIDEO) or a CSV:
  python tools/process_dataset.py --dataset my_data --root_path data --videos my_videos
  python tools/process_dataset.py --dataset my_data --root_path data --videos my_videos --annotations my.csv

Downloaded data sets, after unpacking and, optionally, tools/extract_frames.py:
  python tools/process_dataset.py --dataset somethingv1 --root_path data --annotations .
  python tools/process_dataset.py --dataset somethingv2 --root_path data --annotations labels
  python tools/process_dataset.py --dataset diving48 --root_path data --annotations .
  python tools/process_dataset.py --dataset jester --root_path data --annotations .

Before a long training, decode every frame, and list the videos to leave out:
  python tools/process_dataset.py --dataset somethingv2 --root_path data --check --decode_all > check.txt
  grep '^problem' check.txt | cut -f3 | sort -u > exclude.txt

Files in <root_path>/<dataset>:
  category.txt                  a class name per line: v2 and Diving48 in the official order, others sorted
                                (own data: as in an existing category.txt)
  {train,val}_videofolder.txt   name  frames  label
  test_videofolder.txt          name  frames  (the official labels are not public)
  dataset.json                  the names of the frames, if they are unusual
  process_report.txt            problems and notes: kind <tab> list <tab> name <tab> what; --check prints them
"""

import argparse
import json
import re
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from annotations import (
    TEST_LIST,
    TRAIN_LIST,
    VAL_LIST,
    Lists,
    OwnData,
    describe_split,
    group_by_name,
    make_lists,
    read_annotations,
    read_class_folders,
    read_csv,
)
from classes import describe_order, read_categories
from datasets_video import (
    FRAME_NAMES,
    LAYOUTS,
    MIN_FRAMES,
    SOURCES,
    TRAIN_LISTS,
    VAL_LISTS,
    VIDEO_SUFFIXES,
    VideoRecord,
    dataset_name,
    find_dataset,
    find_source,
    layout,
    link_videos,
    read_frame_names,
    return_dataset,
)
from frames.images import ImageError, read_image
from frames.sources import FrameFolder, find_suffixes
from frames.video import SUFFIXES, VideoError, decode, index_frames, is_video
from utils.cli import (
    Parser,
    UserError,
    non_negative_int,
    number_type,
    pluralize,
    printable,
    run_program,
)
from utils.files import check_writable_folder, write_texts
from utils.pool import cores, map_in_processes, progress_bar

REPORT_FILE = "process_report.txt"


class Finding(NamedTuple):
    """A line of the report. A `problem` prevents the use of a video, a `note` does not."""

    kind: str
    list_name: str
    video: str
    what: str

    def __str__(self) -> str:
        # Names are escaped only if necessary, so that they can be used with --exclude.
        video = self.video if self.video.isprintable() else printable(self.video)
        return f"{self.kind}\t{self.list_name}\t{video}\t{self.what}"


def main() -> int:
    args = parse_args()
    folder = Path(args.root_path) / args.dataset
    return check_lists(args, folder) if args.check else write_lists(args, folder)


def parse_args() -> argparse.Namespace:
    parser = Parser(*__doc__.split("\n\n", 1))
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        type=dataset_name,
        required=True,
        help=f"as for main.py: {', '.join(sorted(LAYOUTS))}, or any other name for own data",
    )
    data.add_argument("--root_path", metavar="DIR", required=True, help="the folder of all data sets")
    data.add_argument(
        "--videos", metavar="DIR", help="a folder of videos, to be linked into the data set's folder"
    )
    data.add_argument(
        "--annotations",
        metavar="DIR|FILE",
        help="the folder of the downloaded annotation files; for own data, a CSV with the columns video, "
        "label and, optionally, split (train, val or test) and group",
    )
    data.add_argument(
        "--source", choices=SOURCES, help="use frames or videos (default: frames if both exist)"
    )
    data.add_argument(
        "--val_fraction",
        metavar="F",
        type=number_type(float, 0, 1, above=True, below=True),
        help="own data without a split: share of each class to draw for validation (default: 0.2)",
    )
    data.add_argument(
        "--group_column", metavar="NAME", help="CSV: videos of one group share a list (default: group)"
    )
    data.add_argument(
        "--group",
        metavar="REGEX",
        type=_regex,
        help="take the group of a video from its name: the match of REGEX, or of its first (...)",
    )
    data.add_argument(
        "--seed", metavar="N", type=non_negative_int, help="own data without a split: seed (default: 0)"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--check", action="store_true", help="compare existing lists with the frames or videos; write nothing"
    )
    run.add_argument(
        "--decode_all",
        action="store_true",
        help="decode every listed frame, and report damage and different sizes (default: the first and the "
        "last frame of a folder, the first of a video)",
    )
    run.add_argument(
        "--skip_missing",
        action="store_true",
        help="leave out videos with a problem (default: write no list if there is a problem)",
    )
    run.add_argument(
        "--workers",
        metavar="N",
        type=number_type(int, 1, 1024),
        default=cores(),
        help="number of processes (default: one per core, here %(default)s)",
    )
    args = parser.parse_args()
    own = ("val_fraction", "seed", "group", "group_column")
    unused = [f"--{name}" for name in own if getattr(args, name) is not None]
    if args.dataset in LAYOUTS and unused:
        raise UserError(f"{unused[0]}: {args.dataset} has an official split")
    if args.dataset in LAYOUTS and not (args.annotations or args.check):
        raise UserError("--annotations: required to make lists (to check existing ones: --check)")
    return args


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a regular expression ({error})") from None


def write_lists(args: argparse.Namespace, folder: Path) -> int:
    """Read the annotations, count the frames, write the lists."""
    for name in (TRAIN_LISTS[1], VAL_LISTS[1]):
        if (folder / name).exists():
            raise UserError(f"{folder / name}: main.py would find two lists; move this one away")
    if args.videos and not Path(args.videos).is_dir():
        raise UserError(f"--videos {args.videos}: is not a folder")
    has_frames = (folder / layout(args.dataset).frames).is_dir()
    if args.videos and (args.source == "videos" or not (args.source or has_frames)):
        source, place = "videos", Path(args.videos)
    else:
        source, place = find_source(find_dataset(args.dataset, args.root_path), args.source)
    notes = []
    if args.dataset in LAYOUTS:
        categories, annotated = read_annotations(args.dataset, Path(args.annotations))
    else:
        data = read_own_data(args, folder, source, place)
        categories = data.categories
        annotated = make_lists(data, args.val_fraction or 0.2, args.seed or 0)
        notes = [Finding("note", "-", "-", what) for what in describe_split(data, annotated)]
    check_writable_folder(folder)
    if args.videos:
        link_videos(Path(args.videos), folder)

    frame_names = find_frame_names(folder, place, annotated) if source == "frames" else ("", 1)
    lists, findings = examine(args, annotated, source, place, *frame_names)
    if args.dataset not in LAYOUTS:
        findings += [Finding("note", "-", name, "is not a video") for name in data.others]
    notes += _order_notes(folder / "category.txt")  # on the old file
    findings += notes
    problems = [finding for finding in findings if finding.kind == "problem"]
    texts = {folder / REPORT_FILE: "".join(f"{finding}\n" for finding in findings)}
    if problems and not args.skip_missing:
        write_texts(texts)
        raise UserError(
            f"{folder / REPORT_FILE}: {pluralize(len(problems), 'problem')}; the first: "
            f"{printable(problems[0].video)} ({problems[0].what}); no list was written; --skip_missing "
            "leaves such videos out"
        )
    for name, records in lists.items():
        if not any(record.num_frames >= MIN_FRAMES for record in records):
            raise UserError(f"{folder / name}: not written; no usable video has {MIN_FRAMES} frames")
    if source == "frames" and frame_names != read_frame_names(folder):
        content = dict(zip(("image_tmpl", "first_frame"), frame_names, strict=True))
        texts[folder / FRAME_NAMES] = json.dumps(content) + "\n"
    texts[folder / "category.txt"] = "".join(f"{name}\n" for name in categories)
    for name, records in lists.items():
        texts[folder / name] = "".join(map(_line, records))
    try:
        write_texts(texts)
    except OSError as error:  # the error of a full disk has no file name
        raise UserError(f"{folder}: lists and report cannot be written ({error.strerror})") from None

    for note in notes:
        print(note)
    print(f"{source}: {place}")
    print(f"{folder / 'category.txt'}: {len(categories)} classes")
    for name, records in lists.items():
        of = f"{len(records)} of " if len(records) < len(annotated[name]) else ""
        print(f"{folder / name}: {of}{pluralize(len(annotated[name]), 'video')}")
    print_counts(categories, lists)
    count = pluralize(len(findings) - len(problems), "note")
    print(f"{folder / REPORT_FILE}: {pluralize(len(problems), 'problem')}, {count}")
    return 0


def read_own_data(args: argparse.Namespace, folder: Path, source: str, place: Path) -> OwnData:
    """Read the class folders or the CSV of own data."""
    category_file = folder / "category.txt"
    top = Path(args.videos or place)
    if args.annotations:
        data = read_csv(Path(args.annotations), top, SUFFIXES, category_file, args.group_column)
        if data.list_of and not (args.val_fraction is None and args.seed is None):
            raise UserError(f"--val_fraction, --seed: {args.annotations} already has a split")
    else:
        is_clip = Path.is_dir if source == "frames" and not args.videos else is_video
        data = read_class_folders(top, is_clip, category_file)
        if args.group_column:
            raise UserError(f"--group_column {args.group_column}: needs a CSV (--annotations)")
    return data._replace(group_of=group_by_name(data.records, args.group)) if args.group else data


def check_lists(args: argparse.Namespace, folder: Path) -> int:
    """Compare existing lists with the frames or videos, and print problems and notes."""
    from dataset import read_list  # imports torch, which takes seconds

    source, place = find_source(find_dataset(args.dataset, args.root_path), args.source)
    has_train_list = any((folder / name).exists() for name in TRAIN_LISTS)
    paths = return_dataset(args.dataset, args.root_path, for_training=has_train_list, source=source)
    files = [path for path in (paths.train_list, paths.val_list) if path]
    lists = {path.name: read_list(path, len(paths.categories)) for path in files}
    if (folder / TEST_LIST).exists():
        lists[TEST_LIST] = read_list(folder / TEST_LIST, len(paths.categories), may_lack_labels=True)
    _, findings = examine(args, lists, source, place, paths.prefix or "", paths.first_frame)
    findings += _order_notes(folder / "category.txt")
    for finding in findings:
        print(finding)
    print(f"{source}: {place}")
    for name, records in lists.items():
        print(f"{folder / name}: {pluralize(len(records), 'video')}")
    problems = sum(finding.kind == "problem" for finding in findings)
    print(f"{pluralize(problems, 'problem')}, {pluralize(len(findings) - problems, 'note')}")
    return 1 if problems else 0


def find_frame_names(folder: Path, place: Path, lists: Lists) -> tuple[str, int]:
    """Find the names of the frames; see `read_frame_names`."""
    template, first = read_frame_names(folder)
    paths = (place / record.path for records in lists.values() for record in records)
    path = next((path for path in paths if path.is_dir() and any(path.iterdir())), None)
    if path is None or (path / template.format(first)).exists():
        return template, first
    with suppress(UserError):  # `examine` reports the problem
        frames = FrameFolder(path)
        template, first = frames.template, frames.first
    return template, first


def print_counts(categories: list[str], lists: Lists) -> None:
    """Print the numbers of clips of each class, or only of the largest and the smallest classes."""
    counts = [Counter(record.label for record in lists.get(name, [])) for name in (TRAIN_LIST, VAL_LIST)]
    order = sorted(range(len(categories)), key=lambda label: -counts[0][label])
    print("clips per class (training, validation):")
    for label in order if len(order) <= 30 else [*order[:5], None, *order[-5:]]:
        if label is None:
            print("  ...")
        else:
            print(f"  {printable(categories[label])}: {counts[0][label]}, {counts[1][label]}")


def examine(
    args: argparse.Namespace, lists: Lists, source: str, place: Path, template: str, first: int
) -> tuple[Lists, list[Finding]]:
    """Look into every video; return the lists without the videos that have a problem, and all findings."""
    records = {record.path: record for records in lists.values() for record in records}
    if not args.check:  # an annotation does not have the number of frames in the folder
        records = {name: record._replace(num_frames=0) for name, record in records.items()}
    if source == "frames":
        look = partial(look_into_folder, place, template, first, args.decode_all)
    else:
        look = partial(look_into_video, place, args.decode_all)
    results = {}
    # In chunks, because a message between two processes takes as long as listing a folder.
    chunksize = min(32, len(records) // (4 * args.workers) + 1)
    with progress_bar(len(records)) as bar:
        for record, result in map_in_processes(look, list(records.values()), args.workers, chunksize):
            results[record.path] = result
            bar.update()
    usable: Lists = {name: [] for name in lists}
    findings = []
    list_of: dict[str, str] = {}
    for name, records in lists.items():
        for record in records:
            num_existing, problems = results[record.path]
            if record.path in list_of:
                problems = [f"is already in {list_of[record.path]}"]
            list_of.setdefault(record.path, name)
            findings += [Finding("problem", name, record.path, problem) for problem in problems]
            count, kind, what = _frames_to_use(args, source, record, num_existing)
            if kind and num_existing:
                findings.append(Finding(kind, name, record.path, what))
            if not problems and kind != "problem":
                usable[name].append(record._replace(num_frames=count))
    return usable, findings


def look_into_video(place: Path, decode_all: bool, record: VideoRecord) -> tuple[int, list[str]]:
    """Count the frames of a video; return their number and what is wrong, such as a truncated file."""
    suffixes = find_suffixes(place, record.path)
    if not suffixes:
        return 0, [f"no video ({', '.join(VIDEO_SUFFIXES)})"]
    files = [Path(f"{place}/{record.path}{suffix}") for suffix in suffixes]
    name = printable(files[0].name)
    if len(files) > 1:
        return 0, [f"{name} and {printable(files[1].name)} have the same name; rename one"]
    try:
        return sum(1 for _ in decode(files[0])) if decode_all else index_frames(files[0]).count, []
    except VideoError as error:
        return 0, [f"{name}: {error}"]


def look_into_folder(
    place: Path, template: str, first: int, decode_all: bool, record: VideoRecord
) -> tuple[int, list[str]]:
    """Count the frames of a folder, and check that they are numbered without a gap.

    Args:
        place: the folder of the frame folders.
        template: file name of a frame.
        first: number of the first frame.
        decode_all: decode all frames that are used; otherwise the first and the last.
        record: the video. Its `num_frames` are used; 0 for all.

    Returns:
        The number of frames, and what is wrong with them.
    """
    folder = place / record.path
    try:
        files = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    except OSError as error:
        return 0, [f"no folder ({error.strerror})"]
    if not files:
        return 0, ["empty folder"]
    expected = [template.format(number) for number in range(first, first + len(files))]
    missing = next((frame for frame in expected if frame not in files), None)
    if missing:
        other = printable(min(files.difference(expected)))
        return 0, [f"{len(files)} files, but no {missing}; there is {other}"]
    used = expected[: record.num_frames or None]
    sizes: dict[str, tuple[int, int]] = {}
    problems = []
    for frame in used if decode_all else dict.fromkeys((used[0], used[-1])):
        try:
            sizes[frame] = read_image(f"{folder}/{frame}").size
        except ImageError as error:
            problems.append(f"{frame} cannot be decoded ({printable(error.reason)})")
            continue
        reference = next(iter(sizes))
        if sizes[frame] != sizes[reference]:
            size, other = ("{} x {}".format(*sizes[key]) for key in (frame, reference))
            problems.append(f"{frame} is {size}, not {other} like {reference}")
    return len(files), problems


def _order_notes(path: Path) -> list[Finding]:
    what = describe_order(read_categories(path)) if path.exists() else ""
    return [Finding("note", path.name, "-", what)] if what else []


def _frames_to_use(
    args: argparse.Namespace, source: str, record: VideoRecord, count: int
) -> tuple[int, str, str]:
    """Choose how many of `count` frames to list; also return kind and text of a finding, or empty."""
    thing, expected = "folder" if source == "frames" else "video", record.num_frames
    if args.check and count != expected:
        # Only the lists of Diving48 may have fewer frames than the video.
        kind = "note" if args.dataset == "diving48" and count > expected else "problem"
        return expected, kind, f"the list says {expected} frames, the {thing} has {count}"
    if expected and count > expected + 1:
        return expected, "note", f"the {thing} has {count} frames, the annotation ends at {expected}"
    if expected and count < expected - 1:
        return count, "note", f"the {thing} has {count} of the annotation's {expected} frames"
    return count, "", ""


def _line(record: VideoRecord) -> str:
    label = "" if record.label == -1 else f" {record.label}"
    return f"{record.path} {record.num_frames}{label}\n"


if __name__ == "__main__":
    run_program(main)
