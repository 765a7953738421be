"""Make the videos of docs/OWN_DATA.md: drawn people who wave, clap, jump, sit, stand up and step aside.

    python docs/make_gestures.py DIR

DIR gets videos/GESTURE/personNN_N.mp4, with more clips of some gestures than of others, and new/*.mp4 with
other people. All clips of a person have the same room, clothes and place, as if cut from one recording.
"""

import math
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import Parser, non_negative_int, positive_int, run_program

# Gesture -> clips of each person.
GESTURES = {"clap": 3, "jump": 2, "sit_down": 1, "stand_up": 1, "step_left": 1, "step_right": 1, "wave": 4}
NEW = ("clap", "sit_down", "step_left")
WIDTH, HEIGHT, FPS = 160, 120, 15
SKIN = ((245, 215, 190), (225, 180, 145), (165, 115, 80), (105, 70, 50))
SCALE = 2  # drawn larger, then reduced


def pose(gesture: str, progress: float, swing: float, side: int) -> list[tuple[str, float, list]]:
    """Compute the limbs of a person, in units of the person's height; (0, 0) is between the feet.

    `progress` is that of a gesture with an end (0 to 1), `swing` of a repeated one (-1 to 1). `side` is the
    arm that waves (-1 or 1).

    Returns:
        Colour, width and points of each limb, from the back to the front.
    """
    sinks = {"sit_down": progress, "stand_up": 1 - progress}.get(gesture, 0.0) * 0.2
    rises = 0.12 * abs(swing) if gesture == "jump" else 0.0
    shift = {"step_left": -0.35, "step_right": 0.35}.get(gesture, 0.0) * (progress - 0.5)
    stride = 0.08 * math.sin(math.pi * progress) if gesture.startswith("step") else 0.0
    hip, neck, knee = 0.45 - sinks + rises, 0.8 - sinks + rises, 0.08 + 0.5 * sinks
    limbs = []
    for foot in (-1, 1):
        bent, sole = (shift + foot * knee, (hip + rises) / 2), (shift + foot * (stride + 0.09), rises)
        limbs.append(("trousers", 0.09, [(shift, hip), bent, sole]))
    for arm in (-1, 1):
        elbow, hand = (shift + arm * 0.17, neck - 0.17), (shift + arm * 0.19, neck - 0.34)
        if gesture == "wave" and arm == side:
            elbow, hand = (arm * 0.2, neck - 0.02), (arm * (0.22 + 0.1 * swing), neck + 0.18)
        elif gesture == "clap":
            elbow, hand = (arm * 0.2, neck - 0.14), (arm * (0.13 + 0.12 * swing), neck - 0.05)
        elif gesture == "jump":
            elbow, hand = (arm * 0.2, neck - 0.1), (arm * 0.28, neck - 0.2 + 0.25 * abs(swing))
        limbs += [("shirt", 0.07, [(shift, neck - 0.03), elbow]), ("skin", 0.06, [elbow, hand])]
    return [*limbs, ("shirt", 0.17, [(shift, hip), (shift, neck)]), ("skin", 0.15, [(shift, neck + 0.1)])]


def draw_clip(gesture: str, person: np.random.Generator, clip: np.random.Generator) -> list[np.ndarray]:
    """Draw a clip. The generator `person` has the same state for all clips of a person."""
    width, height = WIDTH * SCALE, HEIGHT * SCALE
    wall = person.integers(90, 200, 3) + person.integers(-25, 26, (4, 6, 3))
    room = Image.fromarray(wall.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    shirt, trousers, floor, poster = (tuple(person.integers(low, low + 110, 3)) for low in (100, 0, 60, 80))
    colours = {"shirt": shirt, "trousers": trousers, "skin": SKIN[person.integers(len(SKIN))]}
    unit = height * person.uniform(0.65, 0.78)  # height of the person
    x, ground = width * person.uniform(0.4, 0.6), height * person.uniform(0.9, 0.97)
    left, top = width * person.uniform(0, 0.8), height * person.uniform(0, 0.3)
    ImageDraw.Draw(room).rectangle((0, ground - 0.08 * height, width, height), fill=floor)
    ImageDraw.Draw(room).rectangle((left, top, left + 0.15 * width, top + 0.3 * height), fill=poster)

    side, speed, noise = clip.choice([-1, 1]), clip.uniform(1.5, 2.5), clip.uniform(3, 9)
    num_frames = int(clip.integers(24, 41))
    start, end = clip.uniform(0, 0.2), clip.uniform(0.8, 1)
    x += clip.normal(0, 3)
    frames = []
    for time in np.linspace(0, 1, num_frames):
        progress = float(np.clip((time - start) / (end - start), 0, 1))
        picture = room.copy()
        draw = ImageDraw.Draw(picture)
        for colour, thickness, points in pose(gesture, progress, math.sin(2 * math.pi * speed * time), side):
            pixels = [(x + unit * px, ground - unit * py) for px, py in points]
            if len(pixels) > 1:
                draw.line(pixels, fill=colours[colour], width=int(thickness * unit), joint="curve")
            else:
                (px, py), radius = pixels[0], unit * thickness / 2
                draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=colours[colour])
        pixels = np.asarray(picture.reduce(SCALE)) + clip.normal(0, noise, (HEIGHT, WIDTH, 1))
        frames.append(pixels.clip(0, 255).astype(np.uint8))
    return frames


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """Write an H.264 video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--people", type=positive_int, default=20, help="number of people in videos/")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="random seed")
    args = parser.parse_args()
    labels = {name: label for label, name in enumerate(GESTURES)}

    def write(name: str, gesture: str, person: int, clip: int) -> None:
        seeds = (args.seed, person), (args.seed, person, labels[gesture], clip)
        write_video(args.folder / name, draw_clip(gesture, *map(np.random.default_rng, seeds)))

    for person in range(args.people):
        for gesture, clips in GESTURES.items():
            for clip in range(clips):
                write(f"videos/{gesture}/person{person:02d}_{clip}.mp4", gesture, person, clip)
    for person, gesture in enumerate(NEW, start=1000):
        write(f"new/{gesture}.mp4", gesture, person, 0)


if __name__ == "__main__":
    run_program(main)
