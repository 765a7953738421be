"""Plot the training loss of the faster variants and of float32, over the demo's 400 steps.

    make demo
    python docs/figures/plot_losses.py demo/data docs/figures/losses.png

The program runs main.py with the demo's recipe: in float32 with three seeds, and in each variant with the
first seed. The differences between seeds show the noise. This takes some minutes on a CPU.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from matplotlib.figure import Figure

from utils.cli import Parser, UserError, run_program
from utils.files import check_writable_file

MAIN = Path(__file__).resolve().parents[2] / "main.py"
# Model and recipe of `make demo`, with one validation at the end and every step in the log.
RECIPE = "--arch resnet14 --input_size 48 --epochs 5 -b 6 --lr 0.006 --lr_schedule cosine --eval-freq 5 -p 1"
WINDOW = 40  # steps averaged for a point of a curve
SEEDS = (0, 1, 2)
FORMS = ("--amp bf16", "--compile", "--amp bf16 --compile")


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("data", help="folder that tools/make_motion_dataset.py wrote")
    parser.add_argument("picture", help="file to write")
    args = parser.parse_args()
    check_writable_file(args.picture)
    seeds = [read_losses(args.data, f"--seed {seed}") for seed in SEEDS]
    forms = {options: read_losses(args.data, options) for options in FORMS}
    print(f"float32, seeds {SEEDS}: up to {np.ptp(seeds, axis=0).max():.3f} apart")
    for name, losses in forms.items():
        print(f"{name}: up to {np.abs(losses - seeds[0]).max():.3f} from float32 of the same seed")
    draw(seeds, forms, args.picture)


def read_losses(data: str, options: str) -> np.ndarray:
    """Train, and return the mean loss of `WINDOW` steps, from step `WINDOW` on.

    Raises:
        UserError: the training failed.
    """
    print(f"training: {options}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(MAIN), *RECIPE.split(), *options.split()]
        command += ["--dataset", "somethingv1", "--root_path", data, "--checkpoint_dir", folder]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise UserError(f"main.py {options}: {process.stderr.strip()}")
    losses = [float(loss) for loss in re.findall(r"^Epoch:.*Loss ([\d.]+)", process.stdout, re.MULTILINE)]
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, mode="valid")


def draw(seeds: list[np.ndarray], forms: dict[str, np.ndarray], picture: str) -> None:
    """Draw all curves into one picture."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(WINDOW, WINDOW + len(seeds[0]))
    for seed, losses in zip(SEEDS, seeds, strict=True):
        style = {"color": "0.75"} if seed else {"color": "black", "linewidth": 2.5}
        axes.plot(steps, losses, label=f"float32, seed {seed}", **style)
    for (name, losses), style in zip(forms.items(), ("-", "--", ":"), strict=True):
        axes.plot(steps, losses, style, label=f"{name}, seed 0")
    axes.set(xlabel="step", ylabel=f"training loss, mean of {WINDOW} steps", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    run_program(main)
