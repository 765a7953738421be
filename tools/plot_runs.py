"""Compare training runs: loss, top-1 accuracy and learning rate over the epochs, in one picture.

python tools/plot_runs.py runs/log/A.csv runs/log/B.csv
python tools/plot_runs.py seed*/log/*.csv --out seeds.png
"""

import csv
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reports.plots import draw_curves, figure_png
from utils.cli import Parser, UserError, printable, run_program
from utils.files import check_new_file, read_text, write_files, writing

COLUMNS = ("epoch", "lr", "train_loss", "train_prec1", "val_loss", "val_prec1")


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("logs", nargs="+", metavar="CSV", help="log/<name>.csv of a run")
    parser.add_argument("--out", default="runs.png", metavar="FILE", help="the picture, a new .png file")
    args = parser.parse_args()
    check_new_file(args.out, "--out", ".png")
    runs = {path.removesuffix(".csv"): read_log(path) for path in args.logs}
    for name in [name for name, rows in runs.items() if not rows]:
        print(f"{printable(name)}: skipped, no epoch has finished yet")
        del runs[name]
    if not runs:
        raise UserError("no run has finished an epoch yet")
    picture = figure_png(lambda: draw_curves(runs))
    with writing("--out", args.out):
        write_files({Path(args.out): picture})
    print(f"plot: {args.out}")


def read_log(path: str) -> list[dict[str, float]]:
    """Read the CSV file of a run.

    Returns:
        For each finished epoch the values of `COLUMNS`; values that were not measured are missing.

    Raises:
        UserError: the file cannot be read, or is not the log of a run.
    """
    table = csv.DictReader(io.StringIO(read_text(path)))
    try:
        return [{name: float(row[name]) for name in COLUMNS if row[name]} for row in table]
    except (csv.Error, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}, line {table.line_num}: not the log of a run ({printable(error)})") from None


if __name__ == "__main__":
    run_program(main)
