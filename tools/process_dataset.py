"""Make the lists that `main.py` finds by itself from a data set's annotations and frame folders.

Into `<root_path>/<dataset>/`:

    category.txt            a class a line; Something-v1: sorted, as TRN-pytorch's script does;
                            v2: in the order of the numbers in labels.json; Diving48: the vocabulary's
    train_videofolder.txt   folder  frames  label
    val_videofolder.txt
    test_videofolder.txt    folder  frames: no one outside knows the labels of these videos
    process_report.txt      kind <tab> list <tab> folder <tab> what, for all that was noticed

The numbers of frames are those of the folders. Diving48's annotations give the first and the last
frame of each video too. A list cannot say where to start, so that a start other than 0 is a
problem; a folder that continues after the end is cut there by its number of frames; a folder
that ends earlier is noted. (A difference of one does not count: it depends on whether the end
is meant to be included.)

`--check` prints lines of the same form and writes nothing.
"""

import argparse
import os
import stat
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets_video import (
    LAYOUTS,
    MIN_FRAMES,
    TRAIN_LISTS,
    VAL_LISTS,
    check_name,
    describe_order,
    read_categories,
    return_dataset,
)
from utils.annotations import (
    TEST_LIST,
    TRAIN_LIST,
    VAL_LIST,
    Lists,
    Video,
    read_annotations,
    read_test_list,
)
from utils.cli import (
    Parser,
    UserError,
    check_writable_file,
    cores,
    number_type,
    run_program,
    shown,
    uninterrupted,
)
from utils.files import write_texts
from utils.images import ImageError, open_image, read_image
from utils.pool import progress_bar, worker_pool

REPORT_FILE = "process_report.txt"

_EPILOG = """\
After unpacking and, for the last two, extracting the frames:
  python tools/process_dataset.py --dataset somethingv1 --root_path data --annotations .
  python tools/process_dataset.py --dataset somethingv2 --root_path data --annotations labels
  python tools/process_dataset.py --dataset diving48 --root_path data --annotations .

Before a long training, or with lists from elsewhere:
  python tools/process_dataset.py --dataset somethingv2 --root_path data --check

The same, but every frame is read as training does; then a file of the videos to leave out:
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
            folder = shown(self.folder)
        return f"{self.kind}\t{self.list_name}\t{folder}\t{self.what}"


def main() -> int:
    args = parse_args()
    folder = Path(args.root_path) / args.dataset
    frames = folder / LAYOUTS[args.dataset][0]
    if not frames.is_dir():
        raise UserError(f"{frames}: no such folder; the frame folders of {args.dataset} belong there")
    return check_lists(args, frames) if args.check else make_lists(args, folder, frames)


def parse_args() -> argparse.Namespace:
    parser = Parser("Make, or check, the lists of a data set whose frame folders are in place.", _EPILOG)
    data = parser.add_argument_group("the data")
    data.add_argument("--dataset", choices=sorted(LAYOUTS), required=True, help="the name main.py has for it")
    data.add_argument(
        "--root_path",
        metavar="DIR",
        required=True,
        help="the folder that holds a folder for each data set, as for main.py",
    )
    data.add_argument(
        "--annotations",
        metavar="DIR",
        help="the folder that holds the downloaded annotation files, under their own names",
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--check",
        action="store_true",
        help="check the lists that are there against the frame folders, and change nothing",
    )
    run.add_argument(
        "--decode_all",
        action="store_true",
        help="with --check: read every frame of every listed video completely, as training does, and name "
        "each that cannot be read or has another size than the first of its folder",
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
        help="processes that look into the folders (default: one per core, here %(default)s)",
    )
    args = parser.parse_args()
    if args.check and (args.annotations or args.skip_missing):
        raise UserError("--check: looks at the lists only; leave out --annotations and --skip_missing")
    if args.decode_all and not args.check:
        raise UserError("--decode_all: only together with --check")
    if not args.check and not args.annotations:
        raise UserError("--annotations: needed to make lists (to check those that are there: --check)")
    return args


def make_lists(args: argparse.Namespace, folder: Path, frames: Path) -> int:
    """Read the annotations, look into the folders, write the lists."""
    for name in (*TRAIN_LISTS[1:], *VAL_LISTS[1:]):
        if (folder / name).exists():
            raise UserError(f"{folder / name}: main.py would find two lists; move this one away")
    # Before the work, and so that none is replaced if another cannot be.
    for name in ("category.txt", TRAIN_LIST, VAL_LIST, TEST_LIST, REPORT_FILE):
        check_writable_file(folder / name)
    categories, annotated = read_annotations(args.dataset, Path(args.annotations))
    lists, findings = examine(args.dataset, annotated, frames, args.workers)
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
            f"{folder / REPORT_FILE}: {len(problems)} problems with {total} videos, the first with "
            f"{shown(first.folder)} ({first.what}); no list was written; {advice}"
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
    print(f"{folder / 'category.txt'}: {len(categories)} classes, {changes[folder / 'category.txt']}")
    for name, videos in lists.items():
        of = f" of {len(annotated[name])}" if len(videos) < len(annotated[name]) else ""
        print(f"{folder / name}: {len(videos)}{of} videos, {changes[folder / name]}")
    print(f"{folder / REPORT_FILE}: {len(problems)} problems, {len(findings) - len(problems)} notes")
    return 0


def check_lists(args: argparse.Namespace, frames: Path) -> int:
    """Compare the lists that are there with the folders; print all that is wrong."""
    # torch, which comes with it, takes seconds; only this needs it.
    from dataset import read_list

    present = [
        name for name in (*TRAIN_LISTS, *VAL_LISTS, TEST_LIST) if os.path.lexists(frames.parent / name)
    ]
    for name in present:
        if not (frames.parent / name).is_file():
            raise UserError(f"{frames.parent / name}: is not a file")
    has_train_list = any(name in present for name in TRAIN_LISTS)
    paths = return_dataset(args.dataset, args.root_path, for_training=has_train_list)
    lists = {
        path.name: [
            Video(record.path, record.label, record.num_frames)
            for record in read_list(path, len(paths.categories))
        ]
        for path in (paths.train_list, paths.val_list)
        if path
    }
    if TEST_LIST in present:
        lists[TEST_LIST] = read_test_list(frames.parent / TEST_LIST)
    usable, findings = examine(args.dataset, lists, frames, args.workers, args.decode_all)
    findings += _order_notes(frames.parent / "category.txt")
    for finding in findings:
        print(finding)
    for name, videos in lists.items():
        print(f"{frames.parent / name}: {len(videos)} videos")
    problems = sum(finding.kind == "problem" for finding in findings)
    print(f"{problems} problems, {len(findings) - problems} notes")
    empty = next((name for name in lists if not _has_clips(usable[name])), None)
    if empty and not problems:
        raise UserError(f"{frames.parent / empty}: none of its videos has {MIN_FRAMES} frames")
    # The findings are what this is run for: lost ones must not pass for none.
    return 1 if problems or sys.stdout.is_lost else 0


def examine(
    dataset: str, lists: Lists, frames: Path, workers: int, decode_all: bool = False
) -> tuple[Lists, list[Finding]]:
    """Look into the frame folder of every video, in parallel.

    Args:
        dataset: a key of `LAYOUTS`.
        lists: list name -> videos, as annotated or listed.
        frames: the folder that holds the frame folders.
        workers: number of processes.
        decode_all: read every listed frame.

    Returns:
        The lists with the number of frames to use, without the videos that have a problem; and
        all that was found.
    """
    listed: dict[str, int | None] = {}
    for video in (video for videos in lists.values() for video in videos):
        listed[video.folder] = max(video.frames or 0, listed.get(video.folder) or 0) or None
    looked = look_into(listed, frames, LAYOUTS[dataset][1], workers, decode_all)
    usable: Lists = {name: [] for name in lists}
    findings = []
    seen: dict[str, str] = {}
    for name, videos in lists.items():
        for video in videos:
            found, problems = looked[video.folder]
            if video.folder in seen:
                problems = [f"is already in {seen[video.folder]}"]
            seen.setdefault(video.folder, name)
            use, kind, what = _frames_to_use(dataset, video, found)
            findings += [Finding("problem", name, video.folder, problem) for problem in problems]
            # Where the frames cannot be counted, the reason has been told.
            if kind and found:
                findings.append(Finding(kind, name, video.folder, what))
            if not problems and kind != "problem":
                usable[name].append(video._replace(frames=use))
    return usable, findings + _unlisted(frames, set(seen))


def look_into(
    listed: dict[str, int | None], frames: Path, template: str, workers: int, decode_all: bool
) -> dict[str, tuple[int, list[str]]]:
    """Count the frames of each folder and check them; see `look_into_folder`."""
    looked = {}
    # In chunks: a message between two processes takes as long as looking into a folder.
    chunk = 4 if decode_all else 32
    look = partial(look_into_folder, frames, template, decode_all)
    try:
        with worker_pool(workers) as pool, progress_bar(len(listed)) as bar:
            with uninterrupted():
                results = pool.map(look, listed, listed.values(), chunksize=chunk)
            # Closed at the end, as by Ctrl-C, it takes back what no process has begun.
            with closing(results):
                for folder, result in zip(listed, results, strict=True):
                    looked[folder] = result
                    bar.update()
    except BrokenProcessPool:
        raise UserError("--workers: a process was ended from outside (out of memory?); try fewer") from None
    return looked


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
        stranger = shown(min(names.difference(expected)))
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
        return [f"{name} cannot be decoded ({shown(error.reason)})"]
    return []


def _read_all(folder: str, names: list[str]) -> list[str]:
    """Read frames as training does, and say which cannot be used together."""
    problems = []
    first = None
    for name in names:
        try:
            size = read_image(f"{folder}/{name}").size
        except ImageError as error:
            problems.append(f"{name} cannot be decoded ({shown(error.reason)})")
            continue
        first = first or (name, size)
        if size != first[1]:
            problems.append("{} is {} x {}, not {} x {} like {}".format(name, *size, *first[1], first[0]))
    return problems


def _unlisted(frames: Path, listed: set[str]) -> list[Finding]:
    """Find the folders that stand in no list."""
    # A listed name may be a path.
    known = {folder.split("/")[0] for folder in listed}
    findings = []
    for path in sorted(frames.iterdir()):
        if path.name in known or path.name.startswith("."):
            continue
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:  # such as a loop of symbolic links
            findings.append(Finding("note", "-", path.name, f"cannot be looked into ({error.strerror})"))
            continue
        if is_folder:
            findings.append(Finding("note", "-", path.name, "folder without a label"))
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


def _frames_to_use(dataset: str, video: Video, found: int) -> tuple[int, str, str]:
    """How many of a folder's `found` frames to list, and what the report says of it: kind and text."""
    if video.start > 0:
        return (
            0,
            "problem",
            f"starts at frame {video.start}, which a list cannot say; cut the video there",
        )
    if video.frames is not None and found < video.frames:
        return 0, "problem", f"the list says {video.frames} frames, the folder has {found}"
    if video.frames is not None and found > video.frames:
        # Only the lists of Diving48 may stop before the folder does.
        kind = "note" if dataset == "diving48" else "problem"
        return video.frames, kind, f"the list says {video.frames} frames, the folder has {found}"
    if video.end is not None and found > video.end + 1:
        return video.end, "note", f"the folder has {found} frames, the annotation ends at {video.end}"
    if video.end is not None and found < video.end - 1:
        return found, "note", f"the folder has {found} of the annotation's {video.end} frames"
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
