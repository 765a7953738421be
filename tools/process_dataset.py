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
"""

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets_video import LAYOUTS, TRAIN_LISTS, VAL_LISTS, return_dataset
from utils.annotations import TEST_LIST, Lists, Video, read_annotations, read_test_list
from utils.cli import Parser, UserError, cores, number_type, run_program, uninterrupted
from utils.files import write_texts
from utils.images import ImageError, open_image
from utils.pool import progress_bar, worker_pool

REPORT_FILE = "process_report.txt"

_EPILOG = """\
After unpacking and, for the last two, extracting the frames:
  python tools/process_dataset.py --dataset somethingv1 --root_path data --annotations .
  python tools/process_dataset.py --dataset somethingv2 --root_path data --annotations labels
  python tools/process_dataset.py --dataset diving48 --root_path data --annotations .

Before a long training, or with lists from elsewhere:
  python tools/process_dataset.py --dataset somethingv2 --root_path data --check
"""


class Finding(NamedTuple):
    """A line of the report. A `problem` keeps a video from being used, a `note` does not."""

    kind: str
    list_name: str
    folder: str
    what: str


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
    if not args.check and not args.annotations:
        raise UserError("--annotations: needed to make lists (to check those that are there: --check)")
    return args


def make_lists(args: argparse.Namespace, folder: Path, frames: Path) -> int:
    """Read the annotations, look into the folders, write the lists."""
    for name in (*TRAIN_LISTS[1:], *VAL_LISTS[1:]):
        if (folder / name).exists():
            raise UserError(f"{folder / name}: main.py would find two lists; move this one away")
    categories, annotated = read_annotations(args.dataset, Path(args.annotations))
    lists, findings = examine(args.dataset, annotated, frames, args.workers)
    total = sum(map(len, annotated.values()))
    problems = [finding for finding in findings if finding.kind == "problem"]
    report = {folder / REPORT_FILE: "".join("\t".join(finding) + "\n" for finding in findings)}
    empty = next((name for name in annotated if not lists[name]), None)
    if problems and (empty or not args.skip_missing):
        write_texts(report)
        first = problems[0]
        advice = f"none is left for {empty}" if args.skip_missing else "--skip_missing leaves them out"
        raise UserError(
            f"{folder / REPORT_FILE}: {len(problems)} problems with {total} videos, the first with "
            f"{first.folder} ({first.what}); no list was written; {advice}"
        )
    texts = {folder / "category.txt": "".join(f"{name}\n" for name in categories)}
    for name, videos in lists.items():
        texts[folder / name] = "".join(_line(video) for video in videos)
    changes = {path: _change(path, text) for path, text in texts.items()}
    write_texts(report | {path: text for path, text in texts.items() if changes[path] != "unchanged"})
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

    has_train_list = any((frames.parent / name).is_file() for name in TRAIN_LISTS)
    paths = return_dataset(args.dataset, args.root_path, for_training=has_train_list)
    lists = {
        path.name: [
            Video(record.path, record.label, record.num_frames)
            for record in read_list(path, len(paths.categories))
        ]
        for path in (paths.train_list, paths.val_list)
        if path
    }
    test_list = frames.parent / TEST_LIST
    if test_list.is_file():
        lists[TEST_LIST] = read_test_list(test_list)
    _, findings = examine(args.dataset, lists, frames, args.workers)
    for finding in findings:
        print("\t".join(finding))
    for name, videos in lists.items():
        print(f"{frames.parent / name}: {len(videos)} videos")
    problems = sum(finding.kind == "problem" for finding in findings)
    print(f"{problems} problems, {len(findings) - problems} notes")
    return 1 if problems else 0


def examine(dataset: str, lists: Lists, frames: Path, workers: int) -> tuple[Lists, list[Finding]]:
    """Look into the frame folder of every video, in parallel.

    Args:
        dataset: a key of `LAYOUTS`.
        lists: list name -> videos, as annotated or listed.
        frames: the folder that holds the frame folders.
        workers: number of processes.

    Returns:
        The lists with the number of frames to use, without the videos that have a problem; and
        all that was found.
    """
    folders = list(dict.fromkeys(video.folder for videos in lists.values() for video in videos))
    looked = dict(zip(folders, look_into(folders, frames, LAYOUTS[dataset][1], workers), strict=True))
    usable: Lists = {name: [] for name in lists}
    findings = []
    seen: dict[str, str] = {}
    for name, videos in lists.items():
        for video in videos:
            found, problem = looked[video.folder]
            if video.folder in seen:
                problem = f"stands in {seen[video.folder]} already"
            seen.setdefault(video.folder, name)
            use, kind, what = _frames_to_use(dataset, video, found)
            if problem:
                kind, what = "problem", problem
            if kind:
                findings.append(Finding(kind, name, video.folder, what))
            if kind != "problem":
                usable[name].append(video._replace(frames=use))
    present = sorted(
        path.name for path in frames.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    findings += [Finding("note", "-", name, "folder without a label") for name in present if name not in seen]
    return usable, findings


def look_into(folders: list[str], frames: Path, template: str, workers: int) -> list[tuple[int, str]]:
    """Count the frames of each folder and check them; see `look_into_folder`."""
    results = []
    try:
        with worker_pool(workers) as pool, progress_bar(len(folders)) as bar:
            # In chunks: a message between two processes takes as long as looking into a folder.
            with uninterrupted():
                found = pool.map(partial(look_into_folder, frames, template), folders, chunksize=32)
            for result in found:
                results.append(result)
                bar.update()
    except BrokenProcessPool:
        raise UserError("--workers: a process was ended from outside (out of memory?); try fewer") from None
    return results


def look_into_folder(frames: Path, template: str, folder: str) -> tuple[int, str]:
    """Count the frames of a folder, and check that they are numbered 1, 2, 3 and so on without a gap.

    Returns:
        Their number, and what is wrong with them, empty if nothing is. The first and the last
        frame are decoded to know.
    """
    path = frames / folder
    try:
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        return 0, "no folder" if isinstance(error, FileNotFoundError) else f"no folder ({error.strerror})"
    if not names:
        return 0, "empty folder"
    expected = [template.format(number) for number in range(1, len(names) + 1)]
    gap = next((name for name in expected if name not in names), None)
    if gap:
        stranger = min(names.difference(expected))
        return 0, f"{len(names)} files, but no {gap}; there is {stranger}"
    for name in dict.fromkeys((expected[0], expected[-1])):
        try:
            with open_image(str(path / name)) as image:
                # libjpeg then reads the whole file, but computes an eighth of the pixels.
                image.draft("L", (1, 1))
                image.load()
        except ImageError as error:
            return 0, f"{name} cannot be decoded ({error.reason})"
    return len(names), ""


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


def _line(video: Video) -> str:
    label = "" if video.label is None else f" {video.label}"
    return f"{video.folder} {video.frames}{label}\n"


def _change(path: Path, text: str) -> str:
    if not path.exists():
        return "new"
    return "unchanged" if path.read_bytes() == text.encode() else "replaced"


if __name__ == "__main__":
    run_program(main)
