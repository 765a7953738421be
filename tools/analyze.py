"""Show where a trained GST uses time: the share of the temporal path in the input of each block's conv3.

    python tools/analyze.py --weights FILE
    python tools/analyze.py --weights FILE --out DIR      # also draws DIR/share.png

The contribution of a channel is its absolute scale in bn2 times the norm of its kernel in conv3. The share of
a block is the sum of the contributions of the temporal channels, divided by the sum of all contributions. The
weight is this share divided by 1/alpha, the share of the channels: above 1, the block prefers the temporal
path. The paper finds (section on visualisation) that low layers use static cues and high layers use dynamic
cues. The control is an untrained model of the same form, whose weights are close to 1.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure

from gst import GSTBottleneck
from inference.load import ModelOptions, load_model
from models import TemporalModel
from reports.plots import figure_png
from utils.cli import Parser, UserError, run_program
from utils.files import check_writable_folder, write_atomically


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint of GST")
    parser.add_argument("--out", metavar="DIR", help="folder for share.png (default: no plot)")
    args = parser.parse_args()
    if args.out:
        check_writable_folder(args.out, "--out")

    model, spec, *_ = load_model(args.weights, ModelOptions())
    if spec.type != "GST":
        raise UserError(f"--weights {args.weights}: is a {spec.type} model; only GST has a temporal path")
    torch.manual_seed(0)
    control = temporal_shares(TemporalModel(1, 1, spec.type, spec.arch, spec.alpha, spec.beta))
    shares = temporal_shares(model)

    print("| block | temporal share, % | weight | weight, untrained |")
    print("|---|---|---|---|")
    for name, share in shares.items():
        weights = f"{spec.alpha * share:.2f} | {spec.alpha * control[name]:.2f}"
        print(f"| {name} | {100 * share:.1f} | {weights} |")
    if args.out:
        picture = Path(args.out) / "share.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(picture, figure_png(lambda: draw(shares, control, spec.alpha)))
        print(f"plot: {picture}")


def temporal_shares(model: TemporalModel) -> dict[str, float]:
    """Compute the share (0 to 1) of the temporal path in the input of conv3, by the name of the block."""
    shares = {}
    for name, block in model.base_model.named_modules():
        if isinstance(block, GSTBottleneck):
            kernels = block.conv3.weight.detach().double().flatten(1)  # outputs x channels
            contributions = block.bn2.weight.detach().double().abs() * kernels.norm(dim=0)
            temporal = contributions[-block.Tconv.out_channels :]  # the spatial channels come first
            shares[name] = float(temporal.sum() / contributions.sum())
    return shares


def draw(shares: Mapping[str, float], control: Mapping[str, float], alpha: int) -> Figure:
    """Plot the shares of a trained model and of an untrained one over depth; a line shows 1/alpha."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 / alpha, color="0.8", label="share of the channels")
    for values, label, style in ((control, "untrained", "o:"), (shares, "trained", "s-")):
        axes.plot([100 * share for share in values.values()], style, color="black", label=label)
    axes.set_xticks(range(len(shares)), list(shares), rotation=90)
    axes.set(xlabel="block", ylabel="temporal share of the input of conv3, %")
    axes.set_ylim(0, 120 * max(1 / alpha, *shares.values(), *control.values()))
    axes.legend()
    return figure


if __name__ == "__main__":
    run_program(main)
