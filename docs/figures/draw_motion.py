"""Draw the first validation clip of each class of a data set.

python tools/make_motion_dataset.py DATA --dataset motion3 --level 3 --size 64 64
python docs/figures/draw_motion.py DATA motion3 docs/figures/motion.jpg
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dataset import open_videos
from datasets_video import return_dataset
from reports.plots import SheetRow, contact_sheet
from utils.cli import Parser, run_program
from utils.files import check_writable_file


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("data", help="--root_path of main.py")
    parser.add_argument("dataset", help="--dataset of main.py")
    parser.add_argument("picture", help="file to write")
    args = parser.parse_args()
    check_writable_file(args.picture)
    paths = return_dataset(args.dataset, args.data, for_training=False)
    videos = open_videos(paths, 8, transform=None)
    rows = {}
    for number in range(len(videos)):
        frames, label = videos[number]
        rows.setdefault(label, SheetRow(frames, [paths.categories[label]]))
    contact_sheet([row for _, row in sorted(rows.items())], width=600).save(args.picture)


if __name__ == "__main__":
    run_program(main)
