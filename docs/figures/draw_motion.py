"""Draw a contact sheet of a data set: frames of the first validation clip of each class.

python tools/make_motion_dataset.py DATA --dataset motion3 --level 3 --size 64 64
python docs/figures/draw_motion.py DATA motion3 docs/figures/motion.jpg
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from matplotlib.figure import Figure

from dataset import VideoDataSet
from datasets_video import return_dataset
from frames.images import read_image
from utils.cli import Parser, run_program
from utils.files import check_writable_file

FRAMES = 8


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("data", help="main.py's --root_path")
    parser.add_argument("dataset", help="its --dataset, of frames")
    parser.add_argument("picture", help="file to write")
    args = parser.parse_args()
    check_writable_file(args.picture)
    paths = return_dataset(args.dataset, args.data, for_training=False, source="frames")
    videos = VideoDataSet(
        paths.root_data,
        paths.val_list,
        FRAMES,
        paths.prefix,
        random_shift=False,
        num_class=len(paths.categories),
    )
    first = {videos.record(number).label: videos.record(number) for number in reversed(range(len(videos)))}

    columns = min(2, len(first))
    rows = -(-len(first) // columns)
    figure = Figure(figsize=(7 * columns, rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, (label, record) in zip(axes, sorted(first.items()), strict=False):
        indices = videos.sample_indices(record.num_frames, np.random.default_rng(0))
        files = [paths.root_data / record.path / paths.prefix.format(index) for index in indices]
        frames = [np.asarray(read_image(str(file))) for file in files]
        gap = ((0, 0), (0, 2), (0, 0))
        axis.imshow(np.hstack([np.pad(frame, gap, constant_values=255) for frame in frames]))
        axis.set_title(paths.categories[label], size=9, loc="left", pad=2)
    figure.savefig(args.picture, dpi=80)


if __name__ == "__main__":
    run_program(main)
