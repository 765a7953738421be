"""Clip transforms against torchvision and PIL, and the label that travels along."""

from collections import Counter

import numpy as np
import pytest
import torchvision.transforms as published
from PIL import Image

from classes import NEVER, mirrored_labels
from transforms import (
    GroupCenterCrop,
    GroupMultiScaleCrop,
    GroupRandomHorizontalFlip,
    GroupScale,
    evaluation_transform,
    training_transform,
)

# Width x height: as the data sets have them, odd ones, both ways up, a square, small ones.
SIZES = [(427, 240), (131, 101), (240, 427), (256, 256), (57, 39)]

# Mirroring swaps 1 and 5, and class 3 has no partner.
CATEGORIES = [
    "Holding something",
    "Pushing something from left to right",
    "Opening something",
    "Turning the camera left while filming something",
    "Unfolding something",
    "Pushing something from right to left",
]


def noise(width: int, height: int, count: int = 3, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    shape = (count, height, width, 3)
    return [Image.fromarray(frame) for frame in rng.integers(256, size=shape, dtype=np.uint8)]


def in_two_passes(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's resize in the order that it always had before Pillow 13."""
    frame = frame.resize((size[0], frame.height), Image.Resampling.BILINEAR)
    return frame.resize(size, Image.Resampling.BILINEAR)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def arrays(frames: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in frames])


# Validation and test.


@pytest.mark.parametrize(("scale", "crop"), [(256, 224), (54, 48)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_evaluation_equals_torchvision(size, scale, crop):
    frames = noise(*size)
    reference = published.Compose([published.Resize(scale), published.CenterCrop(crop)])
    clip, label = evaluation_transform(crop)(frames, 7, rng())
    assert label == 7
    assert clip.shape == (3, crop, crop, 3)
    assert np.array_equal(clip, arrays([reference(frame) for frame in frames]))


def test_scale_center_crop_equals_both():
    for width, height in rng().integers(20, 500, size=(20, 2)).tolist():
        frames = noise(width, height, count=1)
        expected, _ = GroupCenterCrop(56)(GroupScale(64)(frames, 0, rng())[0], 0, rng())
        clip, _ = evaluation_transform(56)(frames, 0, rng())
        assert np.array_equal(clip, arrays(expected)), (width, height)


# Training: the crop.


@pytest.mark.parametrize("size", [(427, 240), (131, 101), (240, 427)], ids=str)
def test_multi_scale_crop_equals_pillow(size):
    frames = noise(*size)
    crop = GroupMultiScaleCrop(64)
    for seed in range(5):
        box = crop.sample_box(*size, rng(seed))
        result, label = crop(frames, 4, rng(seed))
        assert label == 4
        expected = [in_two_passes(frame.crop(box), (64, 64)) for frame in frames]
        assert np.array_equal(arrays(result), arrays(expected))


@pytest.mark.parametrize("size", [(427, 240), (256, 256)], ids=str)
def test_multi_scale_crop_boxes(size):
    width, height = size
    short = min(size)
    sides = [int(short * scale) for scale in (1, 0.875, 0.75, 0.66)]
    crop = GroupMultiScaleCrop(32)  # far from every side, so that none is snapped to it
    generator = rng()
    boxes = Counter(crop.sample_box(width, height, generator) for _ in range(6000))

    assert all(0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height for box in boxes)
    pairs = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    assert len(pairs) == 10
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == pairs

    places = {pair: set() for pair in pairs}
    for left, top, right, bottom in boxes:
        places[right - left, bottom - top].add((left, top))
    for (crop_width, crop_height), found in places.items():
        x, y = (width - crop_width) // 4, (height - crop_height) // 4
        grid = {(0, 0), (4 * x, 0), (0, 4 * y), (4 * x, 4 * y), (2 * x, 2 * y)}  # corners and centre
        grid |= {(0, 2 * y), (4 * x, 2 * y), (2 * x, 4 * y), (2 * x, 0)}  # middles of the edges
        grid |= {(x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y)}  # between centre and corners
        assert found == grid
        assert len(grid) == (13 if x and y else len(grid))
    # Every size as likely as every other: 6000 draws of 10 have a standard deviation of 23.
    drawn = Counter()
    for (left, top, right, bottom), times in boxes.items():
        drawn[right - left, bottom - top] += times
    assert all(abs(times - 600) < 120 for times in drawn.values())


def test_crop_snaps_to_input_size():
    """240 * .875 is 210, 2 away from 212: such a crop is not scaled, as published."""
    generator = rng()
    boxes = [GroupMultiScaleCrop(212).sample_box(427, 240, generator) for _ in range(500)]
    assert {right - left for left, _, right, _ in boxes} == {240, 212, 180, 158}
    boxes = [GroupMultiScaleCrop(213).sample_box(427, 240, generator) for _ in range(500)]
    assert {right - left for left, _, right, _ in boxes} == {240, 210, 180, 158}


# Training: the flip.


def test_flip_mirrors_and_swaps_label():
    frames = noise(9, 6)
    flip = GroupRandomHorizontalFlip([0, 5, 2, 3, 4, 1])
    outcomes = Counter()
    generator = rng()
    for _ in range(400):
        result, label = flip(frames, 1, generator)
        mirrored = label == 5
        assert flip.has_mirrored == mirrored
        expected = arrays(frames)[:, :, ::-1] if mirrored else arrays(frames)
        assert label in (1, 5)
        assert np.array_equal(arrays(result), expected)
        outcomes[mirrored] += 1
    assert abs(outcomes[True] - 200) < 50  # five standard deviations


# Presets.


def test_training_transform():
    transform = training_transform(32, mirrored_labels(CATEGORIES))
    frames = noise(60, 44)
    generator = rng()
    assert {transform(frames, 3, generator)[1] for _ in range(40)} == {3}
    for seed in range(10):  # crop first, then flip, from the one generator
        generator = rng(seed)
        cropped, _ = GroupMultiScaleCrop(32)(frames, 1, generator)
        expected, expected_label = GroupRandomHorizontalFlip([0, 5, 2, NEVER, 4, 1])(cropped, 1, generator)
        clip, label = transform(frames, 1, rng(seed))
        assert label == expected_label
        assert np.array_equal(clip, arrays(expected))
