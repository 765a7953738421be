"""Average the scores of several models, as of one with 8 frames and one with 16.

    python tools/average_scores.py gst8.npz gst16.npz
    python tools/average_scores.py gst8.npz gst16.npz gst_large8.npz --weights 1 2 1 --save_scores all.npz

The files are those of `test_models.py --save_scores`. Videos are matched by their names, in whatever order.
Prints the accuracies of each file and of the average.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import Parser, UserError, non_negative_float, printable, run_program
from utils.files import check_new_file, npz, open_regular, write_atomically, writing


class Scores(NamedTuple):
    """An evaluation's scores, as `test_models.py --save_scores` writes them.

    Attributes:
        scores: videos x classes, float.
        labels: of the videos, whole numbers; -1 for all of them if they are not known.
        videos: their names.
        classes: the names of the classes.
    """

    scores: np.ndarray
    labels: np.ndarray
    videos: np.ndarray
    classes: np.ndarray

    def accuracies(self) -> str:
        """Top-1, top-5 and mean class accuracy, in percent; or why there are none."""
        if (self.labels < 0).any():
            return "no accuracy, because the videos have no labels"
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, :5]
        hits = best == self.labels[:, None]
        per_class = [hits[self.labels == label, 0].mean() for label in np.unique(self.labels)]
        top1, top5, mean_class = (100 * np.mean(part) for part in (hits[:, 0], hits.any(1), per_class))
        return f"Prec@1 {top1:.3f} Prec@5 {top5:.3f} Mean class {mean_class:.3f}"


def main() -> None:
    """Average the files' scores, and print what they and the average give.

    Raises:
        UserError: something that the user can mend.
    """
    args = parse_args()
    if args.save_scores:
        check_new_file(args.save_scores, "--save_scores", ".npz")
    weights = args.weights or [1.0] * len(args.files)
    if len(weights) != len(args.files):
        raise UserError(f"--weights: has {len(weights)} numbers for {len(args.files)} files")
    if not 0 < sum(weights) < np.inf:
        raise UserError("--weights: their sum must be above 0 and finite")

    files = [read_scores(file) for file in args.files]
    first = files[0]
    total = np.zeros(first.scores.shape)
    for path, own, weight in zip(args.files, files, weights, strict=True):
        scores = match(own, first, path, args.files[0])
        total += weight / sum(weights) * (softmax(scores) if args.softmax else scores)
    average = first._replace(scores=total.astype(np.float32))

    names = [*map(printable, args.files), "average" + (" of probabilities" if args.softmax else "")]
    for name, own in zip(names, [*files, average], strict=True):
        print(f"{name}: {own.accuracies()}")
    if args.save_scores:
        with writing("--save_scores", args.save_scores):
            write_atomically(Path(args.save_scores), npz(**average._asdict()))
        print(f"scores: {args.save_scores}")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE.npz", help="of test_models.py --save_scores")
    parser.add_argument(
        "--weights",
        type=non_negative_float,
        nargs="+",
        metavar="W",
        help="of the files, in their order; only the ratios count (default: all the same)",
    )
    parser.add_argument(
        "--softmax", action="store_true", help="average the probabilities, not the scores before softmax"
    )
    parser.add_argument("--save_scores", metavar="FILE.npz", help="write the average, in the files' own form")
    return parser.parse_args()


def read_scores(path: str) -> Scores:
    """Read a file of `test_models.py --save_scores`.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as content:
            missing = set(Scores._fields) - set(content)
            if missing:
                raise UserError(
                    f"{path}: has no array '{min(missing)}'; is it from test_models.py --save_scores?"
                )
            found = Scores(**{name: np.asarray(content[name]) for name in Scores._fields})
            found.videos.tolist(), found.classes.tolist()  # fail if a character of a name cannot be one
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({printable(error.strerror or error)})") from None
    except UserError:
        raise
    except Exception:  # whatever bytes can make np.load raise; its own text advises to unpickle the file
        raise UserError(f"{path}: is not an npz file, or is damaged") from None
    scores, labels, videos, classes = found
    kinds = "".join(array.dtype.kind for array in found)
    is_matrix = scores.shape == (videos.size, classes.size) and scores.size > 0
    has_lists = labels.shape == videos.shape == (videos.size,) and classes.ndim == 1
    if kinds != "fiUU" or not is_matrix or not has_lists:
        told = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in found._asdict().items())
        raise UserError(f"{path}: its arrays do not fit each other ({told})")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if not np.isfinite(scores).all():
        video = videos[np.flatnonzero(~np.isfinite(scores).all(axis=1))[0]]
        raise UserError(f"{path}: the scores of video '{printable(video)}' are not finite")
    is_labelled = labels[0] >= 0
    if labels.max() >= len(classes) or labels.min() < -1 or ((labels >= 0) != is_labelled).any():
        raise UserError(f"{path}: its labels are not those of {len(classes)} classes")
    doubled = [video for video, count in Counter(videos.tolist()).items() if count > 1]
    if doubled:
        raise UserError(f"{path}: has video '{printable(doubled[0])}' more than once")
    return found._replace(scores=scores)


def match(own: Scores, first: Scores, path: str, first_path: str) -> np.ndarray:
    """Put a file's scores into the order of another file's videos.

    Args:
        own: of the file.
        first: of the other one.
        path: the file, for messages.
        first_path: the other one, likewise.

    Returns:
        Videos x classes.

    Raises:
        UserError: they are not of the same videos, classes and labels; it names what differs.
    """
    if len(own.classes) != len(first.classes):
        raise UserError(f"{path}: has {len(own.classes)} classes, but {first_path} has {len(first.classes)}")
    for label, (name, other) in enumerate(zip(own.classes, first.classes, strict=True)):
        if name != other:
            raise UserError(
                f"{path}: class {label} is '{printable(name)}', in {first_path} it is '{printable(other)}'"
            )
    row = {video: number for number, video in enumerate(own.videos.tolist())}
    for video, label in zip(first.videos.tolist(), first.labels, strict=True):
        if video not in row:
            raise UserError(f"{path}: has no video '{printable(video)}', which {first_path} has")
        if own.labels[row[video]] != label:
            raise UserError(
                f"{path}: the label of video '{printable(video)}' is {own.labels[row[video]]}, but in "
                f"{first_path} it is {label}"
            )
    more = sorted(row.keys() - set(first.videos.tolist()))
    if more:
        raise UserError(f"{first_path}: has no video '{printable(more[0])}', which {path} has")
    return own.scores[[row[video] for video in first.videos.tolist()]]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, in float64."""
    exponents = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    run_program(main)
