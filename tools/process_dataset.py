"""Make the lists that `main.py` reads, from a data set's annotations and its frames or videos.

Your own data, one folder per class (my_videos/CLASS/VIDEO) or a CSV:
  python tools/process_dataset.py --dataset my_data --root_path data --videos my_videos
  python tools/process_dataset.py --dataset my_data --root_path data --videos my_videos --annotations my.csv

Downloaded data sets (somethingv1, somethingv2, diving48, jester), after unpacking and, optionally,
tools/extract_frames.py:
  python tools/process_dataset.py --dataset somethingv1 --root_path data --annotations .

Before a long training run, decode every frame, and list the videos to leave out:
  python tools/process_dataset.py --dataset somethingv2 --root_path data --check --decode_all > check.txt
  grep '^problem' check.txt | cut -f3 | sort -u > exclude.txt

Files in <root_path>/<dataset>:
  category.txt                  a class name per line: v2 and Diving48 in the official order, others sorted
                                (your own: as in an existing category.txt)
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
from classes import describe_order
from datasets_video import (
    FRAME_NAMES,
    LAYOUTS,
    SOURCES,
    TRAIN_LISTS,
    VideoRecord,
    dataset_name,
    find_dataset,
    find_source,
    layout,
    link_videos,
    read_frame_names,
    return_dataset,
)
from frames.sources import FrameFolder, VideoFiles
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
from utils.files import check_writable_folder, write_files, writing
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
        help=f"as for main.py: {', '.join(sorted(LAYOUTS))}, or any other name for your own data",
    )
    data.add_argument("--root_path", metavar="DIR", required=True, help="the folder of all data sets")
    data.add_argument(
        "--videos", metavar="DIR", help="a folder of videos, to be linked into the data set's folder"
    )
    data.add_argument(
        "--annotations",
        metavar="DIR|FILE",
        help="the folder of the downloaded annotation files; for your own data, a CSV with the columns video "
        "and label and, optionally, split (train, val or test) and group",
    )
    data.add_argument(
        "--source", choices=SOURCES, help="use frames or videos (default: frames if both exist)"
    )
    data.add_argument(
        "--val_fraction",
        metavar="F",
        type=number_type(float, 0, 1, above=True, below=True),
        default=0.2,
        help="your own data without a split: share of each class to draw for validation",
    )
    data.add_argument(
        "--group_column", metavar="NAME", help="CSV: column of groups to keep together (default: group)"
    )
    data.add_argument(
        "--group",
        metavar="REGEX",
        type=_regex,
        help="take the group of a video from its name: the match of REGEX, or of its first capture group",
    )
    data.add_argument(
        "--seed", metavar="N", type=non_negative_int, default=0, help="seed for splitting your own data"
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
    if args.videos and not Path(args.videos).is_dir():
        raise UserError(f"--videos {args.videos}: is not a folder")
    has_frames = (folder / layout(args.dataset).frames).is_dir()
    if args.videos and (args.source == "videos" or not (args.source or has_frames)):
        source, place = "videos", Path(args.videos)
    else:
        source, place = find_source(find_dataset(args.dataset, args.root_path), args.source)
    findings: list[Finding] = []
    if args.dataset in LAYOUTS:
        categories, annotated = read_annotations(args.dataset, Path(args.annotations))
    else:
        data = read_own_data(args, folder, source, place)
        categories = data.categories
        annotated = make_lists(data, args.val_fraction, args.seed)
        findings += [Finding("note", "-", "-", what) for what in describe_split(data, annotated)]
    findings += _order_notes(categories)
    check_writable_folder(folder)
    if args.videos:
        link_videos(Path(args.videos), folder)
    for note in findings:
        print(note)

    frame_names = find_frame_names(folder, place, annotated) if source == "frames" else ("", 1)
    lists, more = examine(args, annotated, source, place, *frame_names)
    findings += more
    problems = [finding for finding in findings if finding.kind == "problem"]
    texts = {folder / REPORT_FILE: "".join(f"{finding}\n" for finding in findings)}
    if problems and not args.skip_missing:
        write_files(texts)
        raise UserError(
            f"{folder / REPORT_FILE}: {pluralize(len(problems), 'problem')}; the first: "
            f"{printable(problems[0].video)} ({problems[0].what}); no list was written; --skip_missing "
            "leaves such videos out"
        )
    if source == "frames" and frame_names != read_frame_names(folder):
        content = dict(zip(("image_tmpl", "first_frame"), frame_names, strict=True))
        texts[folder / FRAME_NAMES] = json.dumps(content) + "\n"
    texts[folder / "category.txt"] = "".join(f"{name}\n" for name in categories)
    for name, records in lists.items():
        lines = [f"{path} {count}" + (f" {label}" if label >= 0 else "") for path, count, label in records]
        texts[folder / name] = "".join(f"{line}\n" for line in lines)
    with writing("", folder):
        write_files(texts)

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
    """Read the class folders or the CSV of the user's own data."""
    category_file = folder / "category.txt"
    top = Path(args.videos or place)
    if args.annotations:
        data = read_csv(Path(args.annotations), top, SUFFIXES, category_file, args.group_column)
    else:
        is_clip = Path.is_dir if source == "frames" and not args.videos else is_video
        data = read_class_folders(top, is_clip, category_file)
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
    findings += _order_notes(paths.categories)
    for finding in findings:
        print(finding)
    print(f"{source}: {place}")
    for name, records in lists.items():
        print(f"{folder / name}: {pluralize(len(records), 'video')}")
    problems = sum(finding.kind == "problem" for finding in findings)
    print(f"{pluralize(problems, 'problem')}, {pluralize(len(findings) - problems, 'note')}")
    return 1 if problems else 0


def find_frame_names(folder: Path, place: Path, lists: Lists) -> tuple[str, int]:
    """Find the names of the frames: as recorded (see `read_frame_names`), or as in the first frame folder."""
    template, first = read_frame_names(folder)
    paths = (place / record.path for records in lists.values() for record in records)
    path = next((path for path in paths if path.is_dir() and any(path.iterdir())), None)
    if path is None or (path / template.format(first)).exists():
        return template, first
    frames = FrameFolder(path)
    return frames.template, frames.first


def print_counts(categories: list[str], lists: Lists) -> None:
    """Print the number of clips of each class, or only of the largest and the smallest classes."""
    train, val = (Counter(record.label for record in lists.get(name, [])) for name in (TRAIN_LIST, VAL_LIST))
    order = sorted(range(len(categories)), key=lambda label: -train[label])
    print("clips per class (training, validation):")
    for label in order if len(order) <= 30 else order[:5] + order[-5:]:
        print(f"  {printable(categories[label])}: {train[label]}, {val[label]}")


def examine(
    args: argparse.Namespace, lists: Lists, source: str, place: Path, template: str, first: int
) -> tuple[Lists, list[Finding]]:
    """Look into every video; return the lists without the videos that have a problem, and all findings."""
    records = {record.path: record for records in lists.values() for record in records}
    first_name = template.format(first) if source == "frames" else None
    look = partial(look_into, place, first_name, args.decode_all)
    results = {}
    with progress_bar(len(records)) as bar:
        for record, result in map_in_processes(look, list(records.values()), args.workers):
            results[record.path] = result
            bar.update()
    usable: Lists = {name: [] for name in lists}
    findings = []
    list_of: dict[str, str] = {}
    for name, records in lists.items():
        for record in records:
            count, problem = results[record.path]
            expected = record.num_frames
            # Diving48's annotations may end before the video. The list has all frames of a video file.
            may_end_before = args.dataset == "diving48" and source == "frames"
            is_unexpected = count < expected or (count > expected and not may_end_before)
            if record.path in list_of:
                problem = f"is already in {list_of[record.path]}"
            elif not problem and args.check and is_unexpected:
                problem = f"the list says {expected} frames, but there are {count}"
            elif not problem and not args.check and expected and abs(count - expected) > 1:
                what = f"there are {count} frames, but the annotation ends at {expected}"
                findings.append(Finding("note", name, record.path, what))
            list_of.setdefault(record.path, name)
            if problem:
                findings.append(Finding("problem", name, record.path, problem))
            else:
                end = count if source == "videos" else min(count, expected or count)
                usable[name].append(record._replace(num_frames=end))
    return usable, findings


def look_into(place: Path, first_name: str | None, decode_all: bool, record: VideoRecord) -> tuple[int, str]:
    """Count the frames of a video, and find out whether it can be used.

    Args:
        place: the folder of the frame folders or video files.
        first_name: file name of the first frame; None for video files.
        decode_all: decode all frames that are used; otherwise the first and the last one of a folder.
        record: the video. Its `num_frames` are used; 0 for all.

    Returns:
        The number of frames, and the problem (empty if there is none).
    """
    try:
        if first_name is None:
            path = Path(VideoFiles(str(place)).path(record.path))
            return sum(1 for _ in decode(path)) if decode_all else index_frames(path).count, ""
        frames = FrameFolder(place / record.path)
        if (name := frames.template.format(frames.first)) != first_name:
            raise UserError(f"{printable(frames.path)}: begins with {printable(name)}, not with {first_name}")
        last = min(record.num_frames or frames.num_frames, frames.num_frames)
        for _ in frames.frames(range(1, last + 1) if decode_all else {1, last}):
            pass
        return frames.num_frames, ""
    except (UserError, VideoError) as error:
        return 0, str(error)


def _order_notes(categories: list[str]) -> list[Finding]:
    what = describe_order(categories)
    return [Finding("note", "category.txt", "-", what)] if what else []


if __name__ == "__main__":
    run_program(main)
