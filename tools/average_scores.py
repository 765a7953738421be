"""Average the scores of several models, for example one with 8 frames and one with 16.

    python tools/average_scores.py gst8.npz gst16.npz
    python tools/average_scores.py gst8.npz gst16.npz gst_large8.npz --weights 1 2 1 --save_scores all.npz

The program prints the accuracies of each file and of the average. The files are written by
`test_models.py --save_scores`. Videos are matched by name, in any order.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import Parser, UserError, non_negative_float, pluralize, printable, run_program
from utils.files import check_new_file, npz, write_new, writing
from utils.metrics import summarise


class Scores(NamedTuple):
    """The arrays in a file from `test_models.py --save_scores`; all labels are -1 if they are unknown."""

    scores: np.ndarray
    labels: np.ndarray
    videos: np.ndarray
    classes: np.ndarray


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("files", nargs="+", metavar="FILE.npz", help="from test_models.py --save_scores")
    parser.add_argument(
        "--weights",
        type=non_negative_float,
        nargs="+",
        metavar="W",
        help="weights of the files in their order; only the ratios matter (default: equal weights)",
    )
    parser.add_argument("--save_scores", metavar="FILE.npz", help="write the average in the same format")
    args = parser.parse_args()
    if args.save_scores:
        check_new_file(args.save_scores, "--save_scores", ".npz")
    if args.weights and (len(args.weights) != len(args.files) or not any(args.weights)):
        raise UserError(f"--weights: needs {pluralize(len(args.files), 'number')}, not all of them 0")

    first = read_scores(args.files[0])
    files = [reorder_videos(read_scores(path), first, path, args.files[0]) for path in args.files]
    scores = np.average([file.scores for file in files], axis=0, weights=args.weights)
    average = first._replace(scores=scores.astype(np.float32))
    for name, file in zip([*args.files, "average"], [*files, average], strict=True):
        result = summarise(torch.from_numpy(file.scores), torch.from_numpy(file.labels))
        mean_class = f" Mean class {result.mean_class:.3f}" if result.has_labels else ""
        print(f"{printable(name)}: {result}{mean_class}")
    if args.save_scores:
        with writing("--save_scores", args.save_scores):
            write_new(Path(args.save_scores), npz(**average._asdict()))
        print(f"scores: {args.save_scores}")


def read_scores(path: str) -> Scores:
    """Read a file from `test_models.py --save_scores`."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return Scores(**{name: content[name] for name in Scores._fields})
    except OSError:
        raise
    except Exception:  # np.load raises many kinds of errors for a damaged file
        raise UserError(f"{path}: was not written by test_models.py --save_scores, or is damaged") from None


def reorder_videos(file: Scores, first: Scores, path: str, first_path: str) -> Scores:
    """Reorder the videos of a file as in the first file; videos, classes and labels must be the same."""
    if file.classes.tolist() != first.classes.tolist():
        raise UserError(f"{path}: its classes are not those of {first_path}, or are in a different order")
    rows = {video: row for row, video in enumerate(file.videos.tolist())}
    if len(rows) < len(file.videos):
        raise UserError(f"{path}: has several rows for a video, for example from test_video.py --window")
    differences = rows.keys() ^ set(first.videos.tolist())
    if differences:
        video = printable(min(differences))
        raise UserError(f"{path}: does not have the videos of {first_path}: only one file has '{video}'")
    order = [rows[video] for video in first.videos.tolist()]
    labels = file.labels[order]
    if (labels != first.labels).any():
        video = printable(first.videos[np.argmax(labels != first.labels)])
        raise UserError(f"{path}: video '{video}' has a different label in {first_path}")
    return first._replace(scores=file.scores[order])


if __name__ == "__main__":
    run_program(main)
