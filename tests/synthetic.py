"""Small data sets of JPEG frame folders, in the layouts that exist in the wild."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FRAMES = {
    "somethingv1": ("20bn-something-something-v1", "{:05d}.jpg"),
    "somethingv2": ("20bn-something-something-v2-frames", "{:06d}.jpg"),
    "diving48": ("frames", "{:05d}.jpg"),
}
# List names (training, validation) and the separator of their fields.
CONVENTIONS = {
    "trn": ("train_videofolder.txt", "val_videofolder.txt", " "),
    "authors": ("train.txt", "valid.txt", "\t"),
}
# One pair that mirroring swaps, and two classes that it leaves alone.
CATEGORIES = (
    "Pulling something from left to right",
    "Holding something",
    "Pulling something from right to left",
    "Dropping something onto something",
)


def make_dataset(
    root: Path,
    dataset: str = "somethingv1",
    convention: str = "trn",
    train: int = 8,
    val: int = 6,
    frames: int | Sequence[int] = 10,
    size: tuple[int, int] = (48, 40),
    categories: Sequence[str] = CATEGORIES,
    folder: str = "{}",
    seed: int = 0,
) -> Path:
    """Write a data set.

    Args:
        root: `--root_path` of the data set.
        dataset: its layout, a key of `FRAMES`.
        convention: 'trn' (TRN-pytorch's file names, spaces) or 'authors' (the GST authors', tabs).
        train: number of training videos.
        val: number of validation videos; their folders are numbered after the training ones.
        frames: number of frames of each video; a sequence is repeated.
        size: width and height of the frames.
        categories: class names; labels go through them in order.
        folder: name of a video's folder, with its number from 1.
        seed: seed of the pixels.

    Returns:
        `root`.
    """
    frame_folder, template = FRAMES[dataset]
    *list_names, separator = CONVENTIONS[convention]
    home = root / dataset
    (home / frame_folder).mkdir(parents=True)
    (home / "category.txt").write_text("".join(f"{name}\n" for name in categories), encoding="utf-8")
    rng = np.random.default_rng(seed)
    number = 0
    for list_name, videos in zip(list_names, (train, val), strict=True):
        lines = []
        for video in range(videos):
            count = frames if isinstance(frames, int) else frames[number % len(frames)]
            number += 1
            label = video % len(categories)
            name = folder.format(number)
            write_video(home / frame_folder / name, count, size, template, label, rng)
            lines.append(f"{name}{separator}{count}{separator}{label}\n")
        (home / list_name).write_text("".join(lines), encoding="utf-8")
    return root


def write_video(
    folder: Path, count: int, size: tuple[int, int], template: str, label: int, rng: np.random.Generator
) -> None:
    """Write the frames of a video: coarse noise around a colour that depends on the label."""
    folder.mkdir(parents=True)
    colour = np.random.default_rng(label).integers(40, 216, size=3)
    for number in range(1, count + 1):
        noise = rng.integers(-40, 41, size=(5, 6, 3)) + colour
        coarse = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        coarse.resize(size, Image.Resampling.BILINEAR).save(folder / template.format(number), quality=90)
