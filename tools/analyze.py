"""Show where a trained GST uses time: the share of the temporal path in the input of each block's conv3.

    python tools/analyze.py --weights FILE

The contribution of a channel is its absolute scale in bn2 times the norm of its kernel in conv3. The share of
a block is the sum of the contributions of the temporal channels, divided by the sum of all contributions. The
relative share is this share divided by 1/alpha, the share of the channels: above 1, the block prefers the
temporal path. The paper finds (section on visualisation) that low layers use static cues and high layers use
dynamic cues. The control is an untrained model of the same form, whose relative shares are close to 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from gst import GSTBottleneck
from inference.load import load_model
from models import TemporalModel
from utils.cli import Parser, UserError, run_program


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("--weights", required=True, metavar="FILE", help="a GST checkpoint")
    args = parser.parse_args()
    model, spec, *_ = load_model(args.weights)
    if spec.type != "GST":
        raise UserError(f"--weights {args.weights}: is a {spec.type} model; only GST has a temporal path")
    torch.manual_seed(0)
    control = temporal_shares(TemporalModel(1, 1, spec.type, spec.arch, spec.alpha, spec.beta))
    shares = temporal_shares(model)

    print("| block | temporal share, % | relative share | relative share, untrained |")
    print("|---|---|---|---|")
    for name, share in shares.items():
        relative = f"{spec.alpha * share:.2f} | {spec.alpha * control[name]:.2f}"
        print(f"| {name} | {100 * share:.1f} | {relative} |")


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


if __name__ == "__main__":
    run_program(main)
