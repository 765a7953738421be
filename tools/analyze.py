"""Show where in a trained GST the temporal path counts: its share in what each block's conv3 reads.

    python tools/analyze.py --weights FILE
    python tools/analyze.py --weights FILE --out DIR      # also draws DIR/share.png

A channel of bn2 varies in proportion to its scale, and conv3 passes it on with the kernel of that
channel, so a channel contributes the product of the absolute scale and of the kernel's norm. A block's
share is that of the temporal channels in the sum; the weight is this share divided by the temporal path's
share of the channels, 1/alpha: above 1 the block prefers it. The paper finds (section on visualisation)
that low layers weigh static and high layers dynamic cues. An untrained model of the same form is the
control: its weights are close to 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure

from gst import GSTBottleneck
from inference.load import build_model
from models import TemporalModel
from reports.plots import figure_png
from training.checkpoint import load_checkpoint, load_weights
from training.describe import describe_model
from utils.cli import Parser, UserError, log, run_program
from utils.files import check_writable_folder, write_atomically


def main() -> None:
    """Print the table, and draw the plot if that is asked for.

    Raises:
        UserError: the checkpoint is not one of GST, or the plot cannot be written.
    """
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(summary, details)
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint of GST")
    parser.add_argument("--out", metavar="DIR", help="folder for share.png (default: no plot)")
    args = parser.parse_args()
    if args.out:
        check_writable_folder(args.out, "--out")

    saved = load_checkpoint(args.weights)
    spec = describe_model(saved, args.weights)
    if spec.type != "GST":
        raise UserError(f"--weights {args.weights}: is a {spec.type} model; only GST has a temporal path")
    torch.manual_seed(0)
    model = build_model(spec, 1, 224, args.weights)  # the number of frames and their size do not matter here
    # Not that model, whose weights are not initialised, since the file's take their place.
    untrained = temporal_shares(TemporalModel(1, 1, spec.type, spec.arch, spec.alpha, spec.beta))
    load_weights(model, saved["state_dict"], args.weights)
    trained = temporal_shares(model)

    print("| block | temporal share, % | weight | weight, untrained |")
    print("|---|---|---|---|")
    for name, share in trained.items():
        weights = (spec.alpha * share, spec.alpha * untrained[name])
        print(f"| {name} | {100 * share:.1f} | {weights[0]:.2f} | {weights[1]:.2f} |")
    if args.out:
        picture = Path(args.out) / "share.png"
        shares = list(trained), list(trained.values()), list(untrained.values())
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(picture, figure_png(lambda: draw(*shares, spec.alpha)))
        log.info(f"plot: {picture}")


def temporal_shares(model: TemporalModel) -> dict[str, float]:
    """The share of the temporal path in what the conv3 of each block reads, from 0 to 1.

    Args:
        model: of the type GST.

    Returns:
        `{name of the block, such as layer1.0: share}`, from the lowest to the highest block.
    """
    shares = {}
    for name, block in model.base_model.named_modules():
        if isinstance(block, GSTBottleneck):
            kernels = block.conv3.weight.detach().double().flatten(1)  # outputs x channels
            contributions = block.bn2.weight.detach().double().abs() * kernels.norm(dim=0)
            temporal = contributions[-block.Tconv.out_channels :]  # the spatial channels come first
            shares[name] = float(temporal.sum() / contributions.sum())
    return shares


def draw(names: Sequence[str], trained: Sequence[float], untrained: Sequence[float], alpha: int) -> Figure:
    """Plot the shares over depth.

    Args:
        names: of the blocks, the lowest first.
        trained: shares, from 0 to 1.
        untrained: likewise.
        alpha: of the model; a line shows 1 / alpha, the temporal path's share of the channels.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    places = range(len(names))
    axes.axhline(100 / alpha, color="0.8", label="share of the channels")
    axes.plot(places, [100 * share for share in untrained], "o:", color="0.5", label="untrained")
    axes.plot(places, [100 * share for share in trained], "s-", color="black", label="trained")
    step = -(-len(names) // 16)  # not every block of a deep model has its name at the axis
    axes.set_xticks(places[::step], names[::step], rotation=45, ha="right")
    axes.set(xlabel="block", ylabel="temporal share of what conv3 reads, %")
    axes.set_ylim(0, 120 * max(1 / alpha, *trained, *untrained))
    axes.legend()
    return figure


if __name__ == "__main__":
    run_program(main)
