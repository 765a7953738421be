"""Make a synthetic data set whose classes differ in motion: the demo, or a benchmark with three levels.

    python tools/make_motion_dataset.py DIR
    python tools/make_motion_dataset.py DIR --dataset motion3 --level 3 --train 100 --val 40
    python main.py --root_path DIR --dataset motion3 ...

In the demo, a textured shape moves left, right, up, down, nearer or farther in front of a random background.
Levels 1 to 3 add shapes that enter and leave at the sides, other shapes, a moving camera and changing light.
Noise, compression and uneven speed grow with the level.

Most classes are pairs: clips of one are clips of the other, played backwards. A single frame cannot
distinguish the two: a model must use the order of the frames. Some classes are also mirror
images of each other. At levels 1 to 3, cross and ring need no motion. motion_dataset.json lists the pairs.

The same seed gives the same pixels as long as NumPy's random numbers stay the same.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classes import mirrored_labels
from datasets_video import MOTION_SETTINGS, TRAIN_LISTS, VAL_LISTS, dataset_name, layout
from utils.cli import Parser, UserError, non_negative_int, number_type, positive_int, run_program
from utils.files import read_text

# class name -> (what changes, whether the clip is played backwards). A cross or a ring moves in any way.
CLASSES = {
    "Bringing something in from the left": ("in from left", False),
    "Bringing something in from the right": ("in from right", False),
    "Moving something away from the camera": ("size", True),
    "Moving something down": ("y", False),
    "Moving something towards the camera": ("size", False),
    "Moving something up": ("y", True),
    "Pulling something from left to right": ("x", False),
    "Pulling something from right to left": ("x", True),
    "Showing a cross": ("cross", False),
    "Showing a ring": ("ring", False),
    "Taking something out to the left": ("in from left", True),
    "Taking something out to the right": ("in from right", True),
}
STATIC = ("cross", "ring")
MOTIONS = ("x", "y", "size", "in from left", "in from right")
DEMO_MOTIONS = ("x", "y", "size")


class Level(NamedTuple):
    """Difficulty of a level. Ranges are in both directions."""

    distractors: int  # maximum number of other, smaller shapes, which move at random
    wander: float  # range of their motion, relative to the frame's short side
    pan: float  # range of the camera's motion, relative to the frame's short side
    pace: float  # range of the natural logarithm of the speed
    light: float  # relative change of brightness
    background: tuple[int, int]  # range of its mean grey level
    contrast: int  # of the background's texture, in grey levels
    noise: int  # of the camera, in grey levels
    quality: int  # of the JPEG files
    # Of the cross and the ring, if not random. With strong noise, a short training run learns only colours.
    colours: Mapping[str, tuple[int, int, int]]


LEVELS = {
    "demo": Level(0, 0, 0, 0.3, 0, (40, 90), 25, 8, 90, {}),
    "1": Level(1, 0.03, 0.03, 0.3, 0.1, (40, 90), 25, 8, 90, {}),
    "2": Level(3, 0.08, 0.1, 0.6, 0.25, (40, 120), 40, 16, 75, {}),
    "3": Level(
        4, 0.15, 0.2, 1.0, 0.4, (40, 150), 60, 28, 50, {"cross": (255, 20, 20), "ring": (20, 20, 255)}
    ),
}

# The object stays in the middle: even in the smallest training crop (0.66 of the short side, in a corner),
# its direction is visible.
SIZE = (84, 64)
# With three frames in each of 8 segments, the sampled frames of a class and of its partner also have the same
# distribution. Lengths with a remainder would break that.
NUM_FRAMES = 24

# shape -> (number of corners, distance of every second corner from the centre; the others: 1)
SHAPES = {"disc": (36, 1.0), "triangle": (3, 1.0), "square": (4, 1.0), "hexagon": (6, 1.0), "star": (10, 0.5)}


def draw_clip(
    rng: np.random.Generator, name: str, frames: int, size: tuple[int, int], level: Level
) -> list[Image.Image]:
    """Draw a clip of a class; `size` is width and height in pixels.

    From the same state of `rng`, a class and its partner get the same frames, forwards and backwards.
    """
    changes, backwards = CLASSES[name]
    shape = changes if changes in STATIC else list(SHAPES)[rng.integers(len(SHAPES))]
    if changes in STATIC:
        changes, backwards = MOTIONS[rng.integers(len(MOTIONS))], bool(rng.random() < 0.5)
    side = min(size)  # all lengths are relative to it

    # The object among the distractors; later ones cover earlier ones.
    colour = rng.permutation([255, rng.integers(100, 256), rng.integers(0, 256)])
    colour = np.array(level.colours.get(shape, colour))
    scene = [(_sprite(rng, shape, colour, side), draw_motion(rng, changes, frames, level.pace))]
    for _ in range(rng.integers(level.distractors + 1)):
        shape = list(SHAPES)[rng.integers(len(SHAPES))]
        colour = rng.permutation([220, rng.integers(60, 200), rng.integers(0, 200)])
        x, y = (rng.uniform(-0.45, 0.45) + level.wander * _wander(rng, frames) for _ in range(2))
        radius = np.full(frames, rng.uniform(0.05, 0.09))
        rotation = rng.uniform(0, 2 * math.pi) + _wander(rng, frames)
        thing = (_sprite(rng, shape, colour, side), np.stack([x, y, radius, rotation], axis=1))
        scene.insert(rng.integers(len(scene) + 1), thing)

    # Camera position, in pixels, and light.
    reach = level.pan * side
    camera = np.stack([reach * _wander(rng, frames) for _ in range(2)], axis=1)
    camera += rng.uniform(-1, 1, size=(frames, 2)) * side / 64  # shake
    margin = math.ceil(reach + side / 64) + 1
    light = 1 + level.light * _wander(rng, frames)
    grey = rng.integers(*level.background) + rng.integers(-15, 16, size=3)
    wide = (size[0] + 2 * margin, size[1] + 2 * margin)
    background = Image.blend(
        _texture(rng, grey, wide, cells=7, contrast=level.contrast),
        _texture(rng, grey, wide, cells=25, contrast=2 * level.contrast),
        0.4,
    )

    clip = []
    for number in range(frames):
        left, top = camera[number]
        frame = background.transform(
            size,
            Image.Transform.AFFINE,
            (1, 0, margin + left, 0, 1, margin + top),
            resample=Image.Resampling.BILINEAR,
        )
        for sprite, path in scene:
            x, y, radius, rotation = path[number]
            centre = (size[0] / 2 + side * x - left, size[1] / 2 + side * y - top)
            _paste(frame, sprite, centre, side * radius, rotation)
        noise = rng.integers(-level.noise, level.noise + 1, size=(size[1], size[0], 1))
        lit = np.asarray(frame, dtype=np.float64) * light[number] + noise
        clip.append(Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)))
    return clip[::-1] if backwards else clip


def draw_motion(rng: np.random.Generator, changes: str, frames: int, pace: float) -> np.ndarray:
    """Sample an object's path, always forwards.

    Returns:
        frames x 4: x and y relative to the frame's centre, the radius, and the rotation in radians. Lengths
        are relative to the frame's short side.
    """
    # The object rests, moves, and rests again. The distribution is symmetric in time, so that a mirrored clip
    # of moving left is a clip of moving right.
    begin, end = rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0)
    times = (np.arange(frames - 1) + 0.5) / (frames - 1)
    speed = np.exp(pace * _wander(rng, frames - 1)) * ((times > begin) & (times < end))
    progress = np.concatenate([[0.0], np.cumsum(speed) / speed.sum()])
    halfway = progress - 0.5

    x, y = (rng.uniform(-0.08, 0.08) + rng.uniform(-0.06, 0.06) * halfway for _ in range(2))
    radius = rng.uniform(0.13, 0.2) * rng.uniform(0.9, 1.1) ** halfway
    rotation = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.6, 0.6) * progress
    if changes == "x":
        x += rng.uniform(0.4, 0.62) * halfway
    elif changes == "y":
        y += rng.uniform(0.38, 0.54) * halfway
    elif changes == "size":
        radius *= rng.uniform(2.0, 3.0) ** halfway
    else:  # from outside of the middle square to the middle
        outside = rng.uniform(0.65, 0.75)
        x = (x + outside) * progress - outside
        x = -x if changes == "in from right" else x
    return np.stack([x, y, radius, rotation], axis=1)


def _wander(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A smooth random curve between -1 and 1, distributed symmetrically in sign and time."""
    turns, phase = rng.uniform(0.25, 1.0), rng.uniform(0, 2 * math.pi)
    return rng.uniform(0.3, 1.0) * np.sin(2 * math.pi * turns * np.linspace(-0.5, 0.5, frames) + phase)


def class_names(level: str) -> list[str]:
    """The classes of a level, in the order of their labels."""
    return [name for name, (changes, _) in CLASSES.items() if level != "demo" or changes in DEMO_MOTIONS]


def make_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Content of the settings file. Increase the version when the drawing changes."""
    names = class_names(args.level)
    mirrored = enumerate(mirrored_labels(names))
    reversed_pairs = [
        [name, other]
        for name, other in itertools.product(names, names)
        if CLASSES[name] == (CLASSES[other][0], False) and CLASSES[other][1]
    ]
    return {
        "made_by": "tools/make_motion_dataset.py",
        "version": 2 if args.level in ("demo", "3") else 1,
        "level": args.level,
        "train": args.train,
        "val": args.val,
        "size": args.size,
        "seed": args.seed,
        "reversed_pairs": reversed_pairs,
        "mirrored_pairs": [[names[one], names[other]] for one, other in mirrored if one < other],
        "static": [name for name in names if CLASSES[name][0] in STATIC],
    }


def make_dataset(folder: Path, args: argparse.Namespace) -> None:
    """Write lists, categories, frames and the settings into an empty folder."""
    names = class_names(args.level)
    files = layout(args.dataset)
    (folder / "category.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    level = LEVELS[args.level]
    video = 0
    splits = ((TRAIN_LISTS[0], args.train), (VAL_LISTS[0], args.val))
    for split, (list_file, clips_per_class) in enumerate(splits):
        lines = []
        for clip in range(clips_per_class * len(names)):
            # Each clip has its own random stream, different in training and validation.
            rng = np.random.default_rng([args.seed, split, clip])
            video += 1
            label = clip % len(names)
            video_folder = folder / files.frames / str(video)
            video_folder.mkdir(parents=True)
            frames = draw_clip(rng, names[label], NUM_FRAMES, args.size, level)
            for number, frame in enumerate(frames, start=1):
                frame.save(video_folder / files.template.format(number), quality=level.quality)
            lines.append(f"{video} {NUM_FRAMES} {label}\n")
        (folder / list_file).write_text("".join(lines), encoding="utf-8")
    text = json.dumps(make_settings(args), indent=2) + "\n"
    (folder / MOTION_SETTINGS).write_text(text, encoding="utf-8")


def main() -> int:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("dir", metavar="DIR", help="the folder of all data sets: main.py's --root_path")
    parser.add_argument(
        "--dataset", type=dataset_name, default="somethingv1", metavar="NAME", help="name of the data set"
    )
    parser.add_argument("--level", choices=LEVELS, default="demo", help="difficulty")
    parser.add_argument(
        "--train", type=positive_int, default=80, metavar="N", help="training clips per class"
    )
    parser.add_argument(
        "--val", type=positive_int, default=24, metavar="N", help="validation clips per class"
    )
    parser.add_argument(
        "--size",
        type=number_type(int, 32, 1024),
        nargs=2,
        default=list(SIZE),
        metavar=("W", "H"),
        help="width and height of the frames in pixels",
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="random seed")
    args = parser.parse_args()
    target = Path(args.dir) / args.dataset
    if os.path.lexists(target):
        settings = target / MOTION_SETTINGS
        if not settings.is_file() or json.loads(read_text(settings)) != make_settings(args):
            raise UserError(f"{target}: already exists, with different settings; choose another --dataset")
        print(f"{target}: already exists, with these settings")
        return 0
    # Renamed at the end, so that an interrupted run leaves no folder that looks complete.
    partial = target.with_name(f".{args.dataset}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make_dataset(partial, args)
    partial.rename(target)
    count = len(class_names(args.level))
    print(
        f"{target}: {args.train * count} training and {args.val * count} validation clips of {count} classes"
    )
    return 0


def _texture(
    rng: np.random.Generator, colour: np.ndarray, size: tuple[int, int], cells: int, contrast: int
) -> Image.Image:
    """Draw a smooth random pattern around a colour; `size` is width and height in pixels."""
    values = colour + rng.integers(-contrast, contrast + 1, size=(cells, cells, 3))
    coarse = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def _sprite(rng: np.random.Generator, shape: str, colour: np.ndarray, side: int) -> Image.Image:
    """Draw a textured shape, about as large as in a frame with this short side."""
    size = side * 40 // 64
    sprite = _texture(rng, colour, (size, size), cells=4, contrast=40)
    sprite.putalpha(shape_mask(shape, size))
    return sprite


def shape_mask(shape: str, size: int) -> Image.Image:
    """Draw a shape: white on black, `size` x `size` pixels, with smooth edges."""
    fine = 4 * size
    mask = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(mask)
    if shape == "cross":
        draw.rectangle((0.38 * fine, 0, 0.62 * fine, fine), fill=255)
        draw.rectangle((0, 0.38 * fine, fine, 0.62 * fine), fill=255)
    elif shape == "ring":
        draw.ellipse((0.02 * fine, 0.02 * fine, 0.98 * fine, 0.98 * fine), fill=255)
        draw.ellipse((0.26 * fine, 0.26 * fine, 0.74 * fine, 0.74 * fine), fill=0)
    else:
        corners, inner = SHAPES[shape]
        points = []
        for corner in range(corners):
            distance = (1.0 if corner % 2 == 0 else inner) * 0.97 * fine / 2
            angle = 2 * math.pi * corner / corners
            points.append((fine / 2 + distance * math.cos(angle), fine / 2 + distance * math.sin(angle)))
        draw.polygon(points, fill=255)
    return mask.reduce(4)


def _paste(
    frame: Image.Image, sprite: Image.Image, centre: tuple[float, float], radius: float, rotation: float
) -> None:
    """Draw a sprite into a frame; lengths in pixels, the rotation in radians."""
    # `transform` needs the position in the sprite for each pixel of the frame.
    (x, y), size = centre, sprite.size[0]
    scale = size / (2 * radius)
    cos, sin = scale * math.cos(rotation), scale * math.sin(rotation)
    middle = size / 2
    affine = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    placed = sprite.transform(frame.size, Image.Transform.AFFINE, affine, resample=Image.Resampling.BILINEAR)
    frame.paste(placed, mask=placed)


if __name__ == "__main__":
    run_program(main)
