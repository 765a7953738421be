"""Write a small motion data set in the somethingv1 layout, to try main.py and test_models.py without data.

    python tools/make_demo_data.py DIR
    python main.py --dataset somethingv1 --root_path DIR ...

A textured shape moves left or right, up or down, nearer or farther in front of a random background.
The clips of a class are drawn like those of its partner and played backwards, so the single frames
of the two have the same distribution: only a model that looks at their order tells them apart.

A seed gives the same pixels wherever the random numbers of NumPy are the same; the JPEG files are
the same, byte for byte, for the same versions of NumPy and Pillow.
"""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets_video import LAYOUTS, TRAIN_LISTS, VAL_LISTS
from utils.cli import Parser, UserError, run_program
from utils.files import read_text

DATASET = "somethingv1"

# class name -> (what changes, whether the clip is played backwards); partners differ in the latter only.
CLASSES = {
    "Moving something away from the camera": ("size", True),
    "Moving something down": ("y", False),
    "Moving something towards the camera": ("size", False),
    "Moving something up": ("y", True),
    "Pulling something from left to right": ("x", False),
    "Pulling something from right to left": ("x", True),
}

# The object stays in the middle of the frame: in the smallest training crop (0.66 of the short side,
# in a corner) it may leave the picture, but its direction still shows.
WIDTH, HEIGHT = 84, 64
MIN_FRAMES, MAX_FRAMES = 12, 30
TRAIN_CLIPS_PER_CLASS, VAL_CLIPS_PER_CLASS = 80, 24

CAMERA_SHAKE = 1  # pixels, each way
CAMERA_NOISE = 8  # grey levels, each way
SPRITE_SIZE = 40  # pixels; about the largest size at which the object is seen

# shape -> (corners, distance of every second corner from the centre, the first being at 1)
SHAPES = {"disc": (36, 1.0), "triangle": (3, 1.0), "square": (4, 1.0), "hexagon": (6, 1.0), "star": (10, 0.5)}

SETTINGS_FILE = "demo_data.json"


def draw_path(rng: np.random.Generator, name: str, frames: int) -> np.ndarray:
    """Draw where the object is in every frame of a clip.

    Args:
        rng: the source of randomness. In the same state, it gives a class and its partner the same
            path, once forwards and once backwards.
        name: a key of `CLASSES`.
        frames: the clip's length.

    Returns:
        frames x 4: centre x, centre y and radius in pixels, and the rotation in radians.
    """
    changes, backwards = CLASSES[name]
    # The object rests, moves, and rests again, with a speed that may grow or fall.
    begin, end = rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0)
    progress = np.clip((np.linspace(0.0, 1.0, frames) - begin) / (end - begin), 0.0, 1.0)
    bend = rng.uniform(1.0, 1.5)
    # Growing and falling are equally likely: a mirrored clip is then a clip of the partner, too.
    progress = progress**bend if rng.random() < 0.5 else 1 - (1 - progress) ** bend

    x = WIDTH / 2 + rng.uniform(-5, 5) + rng.uniform(-4, 4) * (progress - 0.5)
    y = HEIGHT / 2 + rng.uniform(-5, 5) + rng.uniform(-4, 4) * (progress - 0.5)
    radius = rng.uniform(8, 13) * rng.uniform(0.9, 1.1) ** (progress - 0.5)
    rotation = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.6, 0.6) * progress
    if changes == "x":
        x += rng.uniform(26, 40) * (progress - 0.5)
    elif changes == "y":
        y += rng.uniform(24, 34) * (progress - 0.5)
    else:
        radius *= rng.uniform(2.0, 3.0) ** (progress - 0.5)

    path = np.stack([x, y, radius, rotation], axis=1)
    return path[::-1] if backwards else path


def render_clip(rng: np.random.Generator, path: np.ndarray) -> list[Image.Image]:
    """Draw a clip: a new object in front of a new background, moving along `path` (see `draw_path`)."""
    # Something bright in front of something dim and nearly grey: the clips are for small networks
    # that start from scratch, whose few minutes are for the motion, not for finding the object.
    background_colour = rng.integers(40, 90) + rng.integers(-15, 16, size=3)
    object_colour = rng.permutation([255, rng.integers(100, 256), rng.integers(0, 256)])

    margin = 2 * CAMERA_SHAKE
    background = _texture(rng, background_colour, (WIDTH + margin, HEIGHT + margin), cells=9, contrast=25)
    sprite = _texture(rng, object_colour, (SPRITE_SIZE, SPRITE_SIZE), cells=4, contrast=40)
    sprite.putalpha(_shape_mask(SHAPES[list(SHAPES)[rng.integers(len(SHAPES))]]))

    frames = []
    for x, y, radius, rotation in path:
        left, top = rng.integers(0, margin + 1, size=2).tolist()
        frame = background.crop((left, top, left + WIDTH, top + HEIGHT))
        # The camera moves the object along with the background. `transform` wants, for each pixel
        # of the frame, the place in the sprite that it shows.
        x, y = x + CAMERA_SHAKE - left, y + CAMERA_SHAKE - top
        scale = SPRITE_SIZE / (2 * radius)
        cos, sin = scale * math.cos(rotation), scale * math.sin(rotation)
        middle = SPRITE_SIZE / 2
        affine = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
        placed = sprite.transform(
            (WIDTH, HEIGHT), Image.Transform.AFFINE, affine, resample=Image.Resampling.BILINEAR
        )
        frame.paste(placed, mask=placed)
        noise = rng.integers(-CAMERA_NOISE, CAMERA_NOISE + 1, size=(HEIGHT, WIDTH, 1), dtype=np.int16)
        noisy = np.clip(np.asarray(frame, dtype=np.int16) + noise, 0, 255)
        frames.append(Image.fromarray(noisy.astype(np.uint8)))
    return frames


def make_dataset(folder: Path, seed: int) -> None:
    """Write lists, categories, frames and the settings into `folder`, which is there and empty."""
    frame_root, template, _ = LAYOUTS[DATASET]
    (folder / "category.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    video = 0
    splits = ((TRAIN_LISTS[0], TRAIN_CLIPS_PER_CLASS), (VAL_LISTS[0], VAL_CLIPS_PER_CLASS))
    for split, (list_file, clips_per_class) in enumerate(splits):
        lines = []
        for clip in range(clips_per_class * len(CLASSES)):
            # Every clip has its own stream, and no validation clip shares one with a training clip.
            rng = np.random.default_rng([seed, split, clip])
            video += 1
            label = clip % len(CLASSES)
            length = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
            path = draw_path(rng, list(CLASSES)[label], length)
            video_folder = folder / frame_root / str(video)
            video_folder.mkdir(parents=True)
            for number, frame in enumerate(render_clip(rng, path), start=1):
                frame.save(video_folder / template.format(number), quality=90)
            lines.append(f"{video} {length} {label}\n")
        (folder / list_file).write_text("".join(lines), encoding="utf-8")
    _settings_path(folder).write_text(json.dumps(_settings(seed), indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Make the data set, unless it already exists.

    Raises:
        UserError: something else is in its place, or it cannot be written.
    """
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(summary, details)
    parser.add_argument(
        "dir", metavar="DIR", help=f"where to make the folder {DATASET}: main.py's --root_path"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips")
    args = parser.parse_args()
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")

    target = Path(args.dir) / DATASET
    # A hidden sibling becomes the data set at the very end: an interrupted run leaves nothing that
    # looks complete.
    partial = target.with_name(f".{DATASET}.{os.getpid()}.partial")
    try:
        if os.path.lexists(target):
            _check_same(target, args.seed)
            print(f"{target}: the demo data of seed {args.seed} already exists")
            return 0
        start = time.perf_counter()
        partial.mkdir(parents=True)
        try:
            make_dataset(partial, args.seed)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error})") from None
    print(
        f"{target}: {TRAIN_CLIPS_PER_CLASS * len(CLASSES)} training and {VAL_CLIPS_PER_CLASS * len(CLASSES)} "
        f"validation clips of {len(CLASSES)} classes, made in {time.perf_counter() - start:.1f} s"
    )
    return 0


def _settings(seed: int) -> dict:
    """What makes two data sets the same; a change of the drawing above needs a new version."""
    return {"made_by": "tools/make_demo_data.py", "version": 1, "seed": seed}


def _settings_path(folder: Path) -> Path:
    return folder / SETTINGS_FILE


def _check_same(target: Path, seed: int) -> None:
    """Raise UserError unless `target` is what this program would write."""
    try:
        found = json.loads(read_text(_settings_path(target)))
    except (UserError, ValueError, RecursionError):
        raise UserError(f"{target}: is there and is not the demo data; choose another DIR") from None
    if found != _settings(seed):
        raise UserError(
            f"{target}: holds demo data with other settings ({json.dumps(found)}, not "
            f"{json.dumps(_settings(seed))}); remove it or choose another DIR"
        )


def _texture(
    rng: np.random.Generator, colour: np.ndarray, size: tuple[int, int], cells: int, contrast: int
) -> Image.Image:
    """A smooth random pattern around a colour; `size` is width and height in pixels."""
    values = colour + rng.integers(-contrast, contrast + 1, size=(cells, cells, 3))
    coarse = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def _shape_mask(shape: tuple[int, float]) -> Image.Image:
    corners, inner = shape
    fine = 4 * SPRITE_SIZE  # drawn larger and reduced, for smooth edges
    mask = Image.new("L", (fine, fine))
    points = []
    for corner in range(corners):
        distance = (1.0 if corner % 2 == 0 else inner) * 0.97 * fine / 2
        angle = 2 * math.pi * corner / corners
        points.append((fine / 2 + distance * math.cos(angle), fine / 2 + distance * math.sin(angle)))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(4)


if __name__ == "__main__":
    run_program(main)
