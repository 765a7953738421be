"""Print a Markdown table of every type of block: parameters, multiply-adds, and the paper's accuracies.

    python tools/model_table.py

The models are ResNet-50 with 174 classes and clips of 224 x 224. Multiply-adds are those of the convolutions
and the classifier for one clip; each frame costs the same. The paper's accuracies are top-1 in percent on
Something-v1 and v2, with one clip and one centre crop.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from models import BLOCKS, TemporalModel, block_kwargs, multiply_adds
from utils.cli import Parser, run_program

NUM_CLASS = 174
FRAMES = (8, 16)
SPLITS = {"alpha": (2, 4, 8), "beta": (2, 1)}
# Type, alpha, beta, frames -> top-1 accuracy on Something-v1 and Something-v2.
PUBLISHED = {
    ("GST", 4, 2, 8): (47.0, 61.6),
    ("GST", 4, 2, 16): (48.6, 62.6),
    ("GST", 4, 1, 8): (47.7, 62.0),
}


def main() -> None:
    Parser(__doc__.partition("\n")[0]).parse_args()
    heads = ["type", *SPLITS, "parameters", *(f"multiply-adds, {frames} frames" for frames in FRAMES)]
    heads += [f"paper, v1 / v2, {frames} frames" for frames in FRAMES]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for kind in BLOCKS:
        names = block_kwargs(kind)
        for values in itertools.product(*(SPLITS[name] for name in names)):
            split = dict(zip(names, values, strict=True))
            with torch.device("meta"):
                model = TemporalModel(NUM_CLASS, 1, kind, **split)
            parameters, macs = sum(p.numel() for p in model.parameters()), multiply_adds(model)
            cells = [kind, *(split.get(name, "") for name in SPLITS), f"{parameters / 1e6:.2f} M"]
            cells += [f"{frames * macs / 1e9:.1f} G" for frames in FRAMES]
            for frames in FRAMES:
                key = (kind, split.get("alpha"), split.get("beta"), frames)
                cells.append(" / ".join(map(str, PUBLISHED.get(key, ()))))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    run_program(main)
