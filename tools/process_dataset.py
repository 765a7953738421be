"""Make the lists that `main.py` finds by itself from a data set's annotations, and its frames or videos.

Into `<root_path>/<dataset>/`:

    category.txt            a class a line; Something-v1 and Jester: sorted, as TRN-pytorch's script does;
                            v2: in the order of the numbers in labels.json; Diving48: the vocabulary's;
                            own data: sorted, or as they are in the file in place
    train_videofolder.txt   name  frames  label
    val_videofolder.txt
    test_videofolder.txt    name  frames: no one outside knows the labels of these videos
    process_report.txt      kind <tab> list <tab> name <tab> what, for all that was noticed

The numbers of frames are those of the frame folders, or of the videos, where the packets are counted and a
sample is decoded to compare. Diving48's annotations give the first and the last
frame of each video too. A list cannot say where to start, so that a start other than 0 is a
problem; a video that continues after the end is cut there by its number of frames; one
that ends earlier is noted. (A difference of one does not count: it depends on whether the end
is meant to be included.)

`--check` prints lines of the same form and writes nothing.
"""

import argparse
import os
import stat
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classes import check_name, describe_order, read_categories
from datasets_video import (
    LAYOUTS,
    MIN_FRAMES,
    SOURCES,
    TRAIN_LISTS,
    VAL_LISTS,
    VIDEO_SUFFIXES,
    dataset_name,
    find_dataset,
    find_source,
    layout,
    return_dataset,
)
from frames.images import ImageError, open_image, read_image
from frames.video import VideoError, count_frames, decode, is_video
from utils.annotations import (
    TEST_LIST,
    TRAIN_LIST,
    VAL_LIST,
    Lists,
    Video,
    make_lists,
    read_annotations,
    read_class_folders,
    read_csv,
    read_test_list,
)
from utils.cli import (
    Parser,
    UserError,
    non_negative_int,
    number_type,
    pluralize,
    printable,
    run_program,
    uninterrupted,
)
from utils.files import check_writable_file, check_writable_folder, write_texts
from utils.pool import cores, progress_bar, worker_pool

REPORT_FILE = "process_report.txt"

# So many videos are decoded to their ends, to know that counting packets is counting frames.
_SAMPLE = 50

_EPILOG = """\
Own data, in a folder for each class (my_videos/CLASS/VIDEO), or with a CSV; then main.py can train on it:
  python tools/process_dataset.py --dataset my_data --root_path data --videos my_videos
  python tools/process_dataset.py --dataset my_data --root_path data --videos my_videos --annotations my.csv

After unpacking and, unless clips are to come straight from videos, extracting the frames:
  python tools/process_dataset.py --dataset somethingv1 --root_path data --annotations .
  python tools/process_dataset.py --dataset somethingv2 --root_path data --annotations labels
  python tools/process_dataset.py --dataset diving48 --root_path data --annotations .
  python tools/process_dataset.py --dataset jester --root_path data --annotations .

Before a long training, or with lists from elsewhere:
  python tools/process_dataset.py --dataset somethingv2 --root_path data --check

The same, but every frame is read as in training; then a file of the videos to leave out:
  python tools/process_dataset.py --dataset somethingv2 --root_path data --check --decode_all > check.txt
  grep '^problem' check.txt | cut -f3 | sort -u > exclude.txt
"""


class Finding(NamedTuple):
    """A line of the report. A `problem` keeps a video from being used, a `note` does not."""

    kind: str
    list_name: str
    folder: str
    what: str

    def __str__(self) -> str:
        try:
            # As it is, so that it can be cut out and used; a list can carry it, so it fits into a line.
            folder = check_name(self.folder)
        except ValueError:
            folder = printable(self.folder)
        return f"{self.kind}\t{self.list_name}\t{folder}\t{self.what}"


def main() -> int:
    args = parse_args()
    folder = Path(args.root_path) / args.dataset
    if args.check:
        return check_lists(args, *find_source(find_dataset(args.dataset, args.root_path), args.source))
    return write_lists(args, folder)


def parse_args() -> argparse.Namespace:
    parser = Parser("Make, or check, the lists of a data set whose frames or videos are in place.", _EPILOG)
    data = parser.add_argument_group("the data")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        type=dataset_name,
        required=True,
        help=f"the name main.py has for it: {', '.join(sorted(LAYOUTS))}, or a name of yours for own data",
    )
    data.add_argument(
        "--root_path",
        metavar="DIR",
        required=True,
        help="the folder that holds a folder for each data set, as for main.py",
    )
    data.add_argument(
        "--videos",
        metavar="DIR",
        help="a folder of videos, to which the data set's folder gets a link. For own data without "
        "--annotations it holds a folder for each class (DIR/CLASS/VIDEO); without --videos, the data set's "
        "own folder of frames or videos does",
    )
    data.add_argument(
        "--source",
        choices=SOURCES,
        help="count the frames of frame folders or of video files "
        "(default: whichever is there; frames if both are, as main.py)",
    )
    data.add_argument(
        "--annotations",
        metavar="DIR|FILE",
        help="the folder that holds the downloaded annotation files, under their own names; for own data, a "
        "CSV with the header video,label or video,label,split (train, val or test)",
    )
    data.add_argument(
        "--val_fraction",
        metavar="F",
        type=number_type(float, 0, 1, above=True, below=True),
        help="own data without a split: the share of each class that is drawn for validation (default: 0.2)",
    )
    data.add_argument(
        "--seed", metavar="N", type=non_negative_int, help="likewise: seed of that draw (default: 0)"
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--check",
        action="store_true",
        help="check the lists that are there against the frames or videos, and change nothing",
    )
    run.add_argument(
        "--decode_all",
        action="store_true",
        help="read every frame of every listed video completely, as training does, and name each that cannot "
        "be read or has another size than the first of its folder; of videos, count the decoded frames "
        f"(default: the first and last frame; of videos the first, and all of a sample of {_SAMPLE})",
    )
    run.add_argument(
        "--skip_missing",
        action="store_true",
        help="leave videos with a problem out of the lists (default: write no lists if there are any)",
    )
    run.add_argument(
        "--workers",
        metavar="N",
        type=number_type(int, 1, 1024),
        default=cores(),
        help="processes that look into the frames or videos (default: one per core, here %(default)s)",
    )
    args = parser.parse_args()
    is_named = args.dataset in LAYOUTS
    drawn = {"--val_fraction": args.val_fraction, "--seed": args.seed}
    drawn = [name for name, value in drawn.items() if value is not None]
    if args.check:
        made = {"--annotations": args.annotations, "--videos": args.videos}
        made |= {"--skip_missing": args.skip_missing}
        if given := [name for name, value in made.items() if value] + drawn:
            raise UserError(f"--check: looks at the lists that are there; leave out {' and '.join(given)}")
    if is_named and not args.check and not args.annotations:
        raise UserError("--annotations: needed to make lists (to check those that are there: --check)")
    if is_named and drawn:
        raise UserError(f"{drawn[0]}: is for own data; the annotations of {args.dataset} have its lists")
    return args


def write_lists(args: argparse.Namespace, folder: Path) -> int:
    """Read the annotations, look into the frames or videos, write the lists."""
    for name in (*TRAIN_LISTS[1:], *VAL_LISTS[1:]):
        if (folder / name).exists():
            raise UserError(f"{folder / name}: main.py would find two lists; move this one away")
    # Before the work, and so that none is replaced if another cannot be.
    for name in ("category.txt", TRAIN_LIST, VAL_LIST, TEST_LIST, REPORT_FILE):
        if folder.is_dir():
            check_writable_file(folder / name)
    if args.videos and not Path(args.videos).is_dir():
        raise UserError(f"--videos {args.videos}: is not a folder")
    source, place = _find_place(args, folder)
    if args.dataset in LAYOUTS:
        categories, annotated = read_annotations(args.dataset, Path(args.annotations))
        others = []
    else:
        categories, annotated, others = read_own(args, folder, source, place)
    if args.videos:
        link_videos(Path(args.videos), folder)
    lists, findings = examine(args.dataset, annotated, source, place, args.workers, args.decode_all)
    findings += [Finding("note", "-", name, "is not a video") for name in others]
    order = _order_notes(folder / "category.txt")  # of the one that is replaced
    findings += order
    total = sum(map(len, annotated.values()))
    problems = [finding for finding in findings if finding.kind == "problem"]
    report = {folder / REPORT_FILE: "".join(f"{finding}\n" for finding in findings)}
    empty = next((name for name in annotated if not _has_clips(lists[name])), None)
    if problems and (empty or not args.skip_missing):
        _write(folder, report)
        first = problems[0]
        advice = f"none is left for {empty}" if args.skip_missing else "--skip_missing leaves them out"
        raise UserError(
            f"{folder / REPORT_FILE}: {pluralize(len(problems), 'problem')} with {pluralize(total, 'video')}, "
            f"the first with {printable(first.folder)} ({first.what}); no list was written; {advice}"
        )
    if empty:
        raise UserError(f"{folder / empty}: was not written; none of its videos has {MIN_FRAMES} frames")
    texts = {folder / "category.txt": "".join(f"{name}\n" for name in categories)}
    for name, videos in lists.items():
        texts[folder / name] = "".join(_line(video) for video in videos)
    changes = {path: _change(path, text) for path, text in texts.items()}
    _write(folder, report | {path: text for path, text in texts.items() if changes[path] != "unchanged"})
    for note in order:
        print(note)
    print(f"{source}: {place}")
    print(f"{folder / 'category.txt'}: {len(categories)} classes, {changes[folder / 'category.txt']}")
    for name, videos in lists.items():
        of = f"{len(videos)} of " if len(videos) < len(annotated[name]) else ""
        count = f"{of}{pluralize(len(annotated[name]), 'video')}"
        print(f"{folder / name}: {count}, {changes[folder / name]}")
    notes = pluralize(len(findings) - len(problems), "note")
    print(f"{folder / REPORT_FILE}: {pluralize(len(problems), 'problem')}, {notes}")
    return 0


def read_own(
    args: argparse.Namespace, folder: Path, source: str, place: Path
) -> tuple[list[str], Lists, list[str]]:
    """Read the class folders or the CSV of own data.

    Returns:
        The class names, the videos of each list, and names of what lies among them but is no video.
    """
    others: list[str] = []
    if args.annotations:
        videos = read_csv(Path(args.annotations))
        if videos[0].list_name and (args.val_fraction is not None or args.seed is not None):
            option = "--seed" if args.val_fraction is None else "--val_fraction"
            raise UserError(f"{option}: {args.annotations} has a column 'split', so nothing is drawn")
    elif args.videos:
        videos, others = read_class_folders(Path(args.videos), "videos")
    else:
        videos, others = read_class_folders(place, source)
    file = folder / "category.txt"
    known = read_categories(file) if os.path.lexists(file) else None
    fraction = 0.2 if args.val_fraction is None else args.val_fraction
    return *make_lists(videos, known, file, fraction, args.seed or 0), others


def _find_place(args: argparse.Namespace, folder: Path) -> tuple[str, Path]:
    """What the frames are counted in: one of `SOURCES`, and its folder."""
    frames = folder / layout(args.dataset).frames
    if args.videos and args.source != "frames" and (args.source or not frames.is_dir()):
        return "videos", Path(args.videos)
    return find_source(find_dataset(args.dataset, args.root_path), args.source)


def link_videos(videos: Path, folder: Path) -> None:
    """Make the data set's folder of videos a link to `videos`, unless it is that already.

    Raises:
        UserError: it is another folder, or cannot be made.
    """
    link = folder / layout(folder.name).videos
    if os.path.lexists(link):
        if not link.exists() or not link.samefile(videos):
            raise UserError(
                f"{link}: already exists and is not {videos}; move it away, or leave --videos out to use it"
            )
        return
    check_writable_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    link.symlink_to(videos.resolve())


def check_lists(args: argparse.Namespace, source: str, place: Path) -> int:
    """Compare the lists that are there with the frames or videos; print all that is wrong."""
    # torch, which comes with it, takes seconds; only this needs it.
    from dataset import read_list

    folder = place.parent
    present = [name for name in (*TRAIN_LISTS, *VAL_LISTS, TEST_LIST) if os.path.lexists(folder / name)]
    for name in present:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is not a file")
    has_train_list = any(name in present for name in TRAIN_LISTS)
    paths = return_dataset(args.dataset, args.root_path, for_training=has_train_list, source=source)

    def read(path: Path, may_lack_labels: bool = False) -> list[Video]:
        records = read_list(path, len(paths.categories), may_lack_labels)
        return [Video(record.path, record.label, record.num_frames) for record in records]

    lists = {path.name: read(path) for path in (paths.train_list, paths.val_list) if path}
    if TEST_LIST in present:
        path = folder / TEST_LIST
        # The test videos of the others never have labels, and may have any name.
        lists[TEST_LIST] = read_test_list(path) if args.dataset in LAYOUTS else read(path, True)
    usable, findings = examine(args.dataset, lists, source, place, args.workers, args.decode_all)
    findings += _order_notes(folder / "category.txt")
    for finding in findings:
        print(finding)
    print(f"{source}: {place}")
    for name, videos in lists.items():
        print(f"{folder / name}: {pluralize(len(videos), 'video')}")
    problems = sum(finding.kind == "problem" for finding in findings)
    print(f"{pluralize(problems, 'problem')}, {pluralize(len(findings) - problems, 'note')}")
    empty = next((name for name in lists if not _has_clips(usable[name])), None)
    if empty and not problems:
        raise UserError(f"{folder / empty}: none of its videos has {MIN_FRAMES} frames")
    return 1 if problems else 0


def examine(
    dataset: str, lists: Lists, source: str, place: Path, workers: int, decode_all: bool
) -> tuple[Lists, list[Finding]]:
    """Look into the frame folder or the file of every video, in parallel.

    Args:
        dataset: its name.
        lists: list name -> videos, as annotated or listed.
        source: one of `SOURCES`.
        place: the folder that holds the frame folders or videos.
        workers: number of processes.
        decode_all: read every listed frame.

    Returns:
        The lists with the number of frames to use, without the videos that have a problem; and
        all that was found.
    """
    listed: dict[str, int | None] = {}
    for video in (video for videos in lists.values() for video in videos):
        listed[video.folder] = max(video.frames or 0, listed.get(video.folder) or 0) or None
    if source == "frames":
        look = partial(look_into_folder, place, layout(dataset).template, decode_all)
        looked = look_into(look, {name: (name, count) for name, count in listed.items()}, workers)
    else:
        looked = look_into_videos(place, list(listed), workers, decode_all)
    usable: Lists = {name: [] for name in lists}
    findings = []
    seen: dict[str, str] = {}
    for name, videos in lists.items():
        for video in videos:
            found, problems = looked[video.folder]
            if video.folder in seen:
                problems = [f"is already in {seen[video.folder]}"]
            seen.setdefault(video.folder, name)
            use, kind, what = _frames_to_use(dataset, source, video, found)
            findings += [Finding("problem", name, video.folder, problem) for problem in problems]
            # Where the frames cannot be counted, the reason has been told.
            if kind and found:
                findings.append(Finding(kind, name, video.folder, what))
            if not problems and kind != "problem":
                usable[name].append(video._replace(frames=use))
    return usable, findings + _unlisted(source, place, set(seen))


def look_into(
    look: Callable[..., tuple[int, list[str]]], jobs: dict[str, tuple[Any, Any]], workers: int
) -> dict[str, tuple[int, list[str]]]:
    """Call `look` in processes.

    Args:
        look: `look_into_folder` or `look_into_video`, but for their last two arguments.
        jobs: name of a video -> these arguments.
        workers: number of processes.
    """
    looked = {}
    # In chunks: a message between two processes takes as long as looking into a folder.
    chunk = min(32, -(-len(jobs) // (4 * workers)) or 1)
    try:
        with worker_pool(workers) as pool, progress_bar(len(jobs)) as bar:
            with uninterrupted():
                results = pool.map(look, *zip(*jobs.values(), strict=True), chunksize=chunk)
            # Closed at the end, as by Ctrl-C, it takes back what no process has begun.
            with closing(results):
                for name, result in zip(jobs, results, strict=True):
                    looked[name] = result
                    bar.update()
    except BrokenProcessPool:
        raise UserError("--workers: a process was ended from outside (out of memory?); try fewer") from None
    return looked


def look_into_videos(
    place: Path, names: list[str], workers: int, decode_all: bool
) -> dict[str, tuple[int, list[str]]]:
    """Find the file of each video, count its frames and check it; see `look_into_video`."""
    files_of = cache(_files_of)
    looked: dict[str, tuple[int, list[str]]] = {}
    files: dict[str, Path] = {}
    for name in names:
        folder, _, stem = f"{place}/{name}".rpartition("/")
        there = files_of(folder).get(stem, [])
        usable = [file for file in there if Path(file).suffix in _SUFFIXES]
        if len(usable) == 1:
            files[name] = Path(folder, usable[0])
        elif usable:
            looked[name] = 0, [f"{' and '.join(map(printable, usable))} would have the same name; rename one"]
        else:
            looked[name] = 0, [_no_video(folder, there)]
    order, size = sorted(files), min(_SAMPLE, len(files))
    sample = {order[i * len(order) // size] for i in range(size)}
    jobs = {name: (decode_all or name in sample, file) for name, file in files.items()}
    return looked | look_into(partial(look_into_video, decode_all), jobs, workers)


# As frames/sources.py looks for them.
_SUFFIXES = [*VIDEO_SUFFIXES, *map(str.upper, VIDEO_SUFFIXES)]


def _files_of(folder: str) -> dict[str, list[str]]:
    """The names in a folder by what comes before their suffixes."""
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, of a folder with 220,000
            names.setdefault(Path(name).stem, []).append(name)
    except OSError:
        pass
    return names


def _no_video(folder: str, there: list[str]) -> str:
    paths = (Path(folder, name) for name in there)
    other = next((path.name for path in paths if not path.is_dir() and is_video(path)), None)
    if other:
        return (
            f"{printable(other)} is not one of {', '.join(VIDEO_SUFFIXES)}; convert it, or extract the frames "
            "(tools/extract_frames.py)"
        )
    return f"no video ({', '.join(VIDEO_SUFFIXES)})"


def look_into_video(decode_all: bool, is_decoded: bool, file: Path) -> tuple[int, list[str]]:
    """Count the frames of a video file, and check that it is complete and its first frame can be decoded.

    Args:
        decode_all: count the frames by decoding them.
        is_decoded: decode them all, and compare their number with that of the packets.
        file: the video.

    Returns:
        Their number, 0 if the file cannot be used, and what is wrong with it.
    """
    try:
        decoded = sum(1 for _ in decode(file)) if is_decoded else None
        count = decoded if decode_all else count_frames(file)
    except VideoError as error:
        return 0, [f"{printable(file.name)}: {error}"]
    if decoded not in (None, count):
        return 0, [
            f"{printable(file.name)}: has {count} frames by its packets, but {decoded} when decoded; "
            "--decode_all counts by decoding"
        ]
    return count, []


def look_into_folder(
    frames: Path, template: str, decode_all: bool, folder: str, listed: int | None
) -> tuple[int, list[str]]:
    """Count the frames of a folder, and check that they are numbered 1, 2, 3 and so on without a gap.

    Args:
        frames: the folder that holds the frame folders.
        template: file name of a frame.
        decode_all: read every frame as training does; otherwise the first and the last are decoded.
        folder: name of the frame folder.
        listed: how many of its frames are used; None for all.

    Returns:
        Their number, 0 if there is none or they are not numbered so; and what is wrong with them.
    """
    path = f"{frames}/{folder}"  # as dataset.py puts it together
    try:
        names = {entry.name for entry in Path(path).iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        return 0, ["no folder" if isinstance(error, FileNotFoundError) else f"no folder ({error.strerror})"]
    if not names:
        return 0, ["empty folder"]
    expected = [template.format(number) for number in range(1, len(names) + 1)]
    gap = next((name for name in expected if name not in names), None)
    count, problems = len(names), []
    if gap:
        stranger = printable(min(names.difference(expected)))
        count, problems = 0, [f"{len(names)} files, but no {gap}; there is {stranger}"]
    if decode_all:
        used = sorted(name for name in names if _is_used(name, template, listed))
        return count, problems + _read_all(path, used)
    if not gap:
        last = expected[min(listed or count, count) - 1]
        problems = [problem for name in dict.fromkeys((expected[0], last)) for problem in _decode(path, name)]
    return count, problems


def _is_used(name: str, template: str, listed: int | None) -> bool:
    """Whether a file is a frame that is listed."""
    digits = Path(name).stem
    is_number = digits.isascii() and digits.isdecimal()
    number = int(digits) if is_number else 0
    return template.format(number) == name and 1 <= number <= (listed or number)


def _decode(folder: str, name: str) -> list[str]:
    """Decode a frame to know whether that works."""
    try:
        with open_image(f"{folder}/{name}") as image:
            # libjpeg then reads the whole file, but computes an eighth of the pixels.
            image.draft("L", (1, 1))
            image.load()
    except ImageError as error:
        return [f"{name} cannot be decoded ({printable(error.reason)})"]
    return []


def _read_all(folder: str, names: list[str]) -> list[str]:
    """Read frames as training does, and say which cannot be used together."""
    problems = []
    first = None
    for name in names:
        try:
            size = read_image(f"{folder}/{name}").size
        except ImageError as error:
            problems.append(f"{name} cannot be decoded ({printable(error.reason)})")
            continue
        first = first or (name, size)
        if size != first[1]:
            problems.append("{} is {} x {}, not {} x {} like {}".format(name, *size, *first[1], first[0]))
    return problems


def _unlisted(source: str, place: Path, listed: set[str]) -> list[Finding]:
    """Find the folders, and the videos, that stand in no list."""
    # A listed name may be a path.
    known = {name.split("/")[0] for name in listed}
    findings = []
    for path in sorted(place.iterdir()):
        name = path.stem if source == "videos" and path.suffix in _SUFFIXES else path.name
        if name in known or name.startswith("."):
            continue
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:  # such as a loop of symbolic links
            findings.append(Finding("note", "-", path.name, f"cannot be looked into ({error.strerror})"))
            continue
        if is_folder or name != path.name:
            thing = "folder" if is_folder else "video"
            findings.append(Finding("note", "-", path.name, f"{thing} without a label"))
    return findings


def _order_notes(path: Path) -> list[Finding]:
    """A note if a category.txt that is there has well-known classes in an order of its own."""
    try:
        what = describe_order(read_categories(path))
    except UserError:  # there is none, or a better one takes its place
        return []
    return [Finding("note", path.name, "-", what)] if what else []


def _has_clips(videos: list[Video]) -> bool:
    """Whether main.py can use a list: it leaves shorter videos out."""
    return any(video.frames >= MIN_FRAMES for video in videos)


def _frames_to_use(dataset: str, source: str, video: Video, found: int) -> tuple[int, str, str]:
    """How many of the `found` frames to list, and what the report says of it: kind and text."""
    thing = "folder" if source == "frames" else "video"
    if video.start > 0:
        return (
            0,
            "problem",
            f"starts at frame {video.start}, which a list cannot say; cut the video there",
        )
    if video.frames is not None and found < video.frames:
        return 0, "problem", f"the list says {video.frames} frames, the {thing} has {found}"
    if video.frames is not None and found > video.frames:
        # Only the lists of Diving48 may stop before the video does.
        kind = "note" if dataset == "diving48" else "problem"
        return video.frames, kind, f"the list says {video.frames} frames, the {thing} has {found}"
    if video.end is not None and found > video.end + 1:
        return video.end, "note", f"the {thing} has {found} frames, the annotation ends at {video.end}"
    if video.end is not None and found < video.end - 1:
        return found, "note", f"the {thing} has {found} of the annotation's {video.end} frames"
    return found, "", ""


def _write(folder: Path, texts: dict[Path, str]) -> None:
    try:
        write_texts(texts)
    except OSError as error:  # a full disk does not name a file
        raise UserError(f"{folder}: the lists or the report cannot be written ({error.strerror})") from None


def _line(video: Video) -> str:
    label = "" if video.label is None else f" {video.label}"
    return f"{video.folder} {video.frames}{label}\n"


def _change(path: Path, text: str) -> str:
    if not path.exists():
        return "new"
    return "unchanged" if path.read_bytes() == text.encode() else "replaced"


if __name__ == "__main__":
    run_program(main)
