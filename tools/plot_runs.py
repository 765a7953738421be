"""Compare training runs: loss, top-1 accuracy and learning rate over the epochs, in one picture.

    python tools/plot_runs.py runs/log/A.csv runs/log/B.csv
    python tools/plot_runs.py seed*/log/*.csv --out seeds.png

A run is named after its file, or by the path that was given where two files have one name.
"""

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reports.plots import draw_curves, figure_png
from utils.cli import Parser, UserError, printable, run_program
from utils.files import check_new_file, read_text, write_atomically, writing

COLUMNS = ("epoch", "lr", "train_loss", "train_prec1", "val_loss", "val_prec1")


def main() -> None:
    """Read the logs and draw them.

    Raises:
        UserError: one of them is not the log of a run that has an epoch, or the picture cannot be written.
    """
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(summary, details)
    parser.add_argument("logs", nargs="+", metavar="CSV", help="log/<name>.csv of a run")
    parser.add_argument("--out", default="runs.png", metavar="FILE", help="the picture, a new .png file")
    args = parser.parse_args()
    check_new_file(args.out, "--out", ".png")
    runs = {name: read_log(path) for name, path in zip(name_runs(args.logs), args.logs, strict=True)}
    picture = figure_png(lambda: draw_curves(runs))
    with writing("--out", args.out):
        write_atomically(Path(args.out), picture)
    print(f"plot: {args.out}")


def name_runs(paths: Sequence[str]) -> list[str]:
    """A name for each log: its file's without the suffix, or all paths where two have the same.

    Raises:
        UserError: a path is given twice.
    """
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: is given twice")
    names = [Path(path).stem for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def read_log(path: str) -> list[dict[str, float]]:
    """Read the CSV file of a run.

    Returns:
        For each epoch the values of `COLUMNS`; those that were not measured are left out.

    Raises:
        UserError: it cannot be read, is not such a file, or has no epoch yet.
    """
    table = csv.DictReader(io.StringIO(read_text(path)))
    rows: list[dict[str, float]] = []
    try:
        missing = set(COLUMNS) - set(table.fieldnames or [])
        if missing:
            raise UserError(
                f"{path}: is not the log of a run (log/<name>.csv); it lacks {', '.join(sorted(missing))}"
            )
        for row in table:
            where = f"{path}, line {table.line_num}"
            values = {name: row[name] for name in COLUMNS if row[name] or not name.startswith("val_")}
            rows.append({name: _number(value, f"{where}: {name}") for name, value in values.items()})
            if len(rows) > 1 and rows[-1]["epoch"] <= rows[-2]["epoch"]:
                raise UserError(f"{where}: epoch {printable(row['epoch'])} does not follow the one before it")
    except csv.Error as error:
        raise UserError(f"{path}, line {table.line_num + 1}: cannot be read ({error})") from None
    if not rows:
        raise UserError(f"{path}: has no epoch yet; try again when the run has finished its first one")
    return rows


def _number(text: str | None, what: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{what} '{printable(text or '')}' is not a number")
    return value


if __name__ == "__main__":
    run_program(main)
