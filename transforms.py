"""Transforms of clips: functions of frames, label and random generator that return frames and label.

Transforms get the label because mirroring a clip can change its class. All random numbers come from the
caller's generator.

The frames are Pillow images, or a single `frames.resize.Outline`, which records the transforms so that the
device can apply them to all frames. A transform must therefore do the same to all frames, and keep their
number and order (see `VideoDataSet.sample_indices`). Transforms that change colours need `--resize workers`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from classes import NEVER
from frames.resize import Frame, NeedsPixelsError, Outline, resize

Frames = list[Frame]


def scaled_size(frame: Frame, short: int) -> tuple[int, int]:
    """Width and height after scaling a frame's short side to `short` pixels (torchvision's `Resize`)."""
    width, height = frame.size
    return short * width // min(width, height), short * height // min(width, height)


class GroupScale:
    """Scale the frames' short side to `size` pixels, bilinearly (torchvision's `Resize`)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, frames: Frames, label: int, rng: np.random.Generator) -> tuple[Frames, int]:
        size = scaled_size(frames[0], self.size)
        return [resize(frame, size) for frame in frames], label


class GroupCenterCrop:
    """Crop the centre square of `size` pixels (torchvision's `CenterCrop`)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, frames: Frames, label: int, rng: np.random.Generator) -> tuple[Frames, int]:
        width, height = frames[0].size
        left = round((width - self.size) / 2)
        top = round((height - self.size) / 2)
        return [frame.crop((left, top, left + self.size, top + self.size)) for frame in frames], label


class GroupScaleCenterCrop:
    """`GroupScale` and `GroupCenterCrop` in one step, which computes fewer pixels."""

    def __init__(self, scale_size: int, crop_size: int) -> None:
        self.scale_size = scale_size
        self.crop_size = crop_size

    def __call__(self, frames: Frames, label: int, rng: np.random.Generator) -> tuple[Frames, int]:
        width, height = scaled_size(frames[0], self.scale_size)
        left, top = round((width - self.crop_size) / 2), round((height - self.crop_size) / 2)
        box = (left, top, left + self.crop_size, top + self.crop_size)
        return [resize(frame, (width, height), box) for frame in frames], label


class GroupOverSample:
    """Crop several squares of `size` pixels: all frames of the first crop, then of the next.

    The crops are on TSM's grid, whose steps are a quarter of the free space, rounded down.

    Args:
        size: height and width of a crop, in pixels; at most the frames' short side.
        num_crops: 3: left, centre and right, or top, centre and bottom of portrait frames (TSM's
            `GroupFullResSample`); 5: the corners and the centre; 10: these five, then their mirror images.
    """

    def __init__(self, size: int, num_crops: int) -> None:
        self.size = size
        self.num_crops = num_crops

    def __call__(self, frames: Frames, label: int, rng: np.random.Generator) -> tuple[Frames, int]:
        width, height = frames[0].size
        x, y = (width - self.size) // 4, (height - self.size) // 4
        if self.num_crops > 3:
            steps = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2)]
        elif width < height:
            steps = [(2, 0), (2, 2), (2, 4)]
        else:
            steps = [(0, 2), (2, 2), (4, 2)]
        boxes = [(i * x, j * y, i * x + self.size, j * y + self.size) for i, j in steps]
        crops = [frame.crop(box) for box in boxes for frame in frames]
        if self.num_crops == 10:
            crops += [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in crops]
        return crops, label


class GroupMultiScaleCrop:
    """Crop at one of 13 fixed positions and one of several scales, and resize to a square (TSN, section 3.2).

    Width and height of the crop are the frame's short side times a scale. The two scales are equal or
    neighbours in the list, so the aspect ratio changes only slightly.

    Args:
        input_size: height and width of the result, in pixels.
        scales: fractions of the short side.
    """

    def __init__(self, input_size: int, scales: tuple[float, ...] = (1, 0.875, 0.75, 0.66)) -> None:
        self.input_size = input_size
        self.scales = scales

    def __call__(self, frames: Frames, label: int, rng: np.random.Generator) -> tuple[Frames, int]:
        box = self.sample_box(*frames[0].size, rng)
        size = (self.input_size, self.input_size)
        return [resize(frame.crop(box), size) for frame in frames], label

    def sample_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Sample a crop of a frame: left, top, right and bottom, in pixels."""
        short = min(width, height)
        sizes = [max(1, int(short * scale)) for scale in self.scales]
        # As published: a crop within 2 pixels of the input size gets that size, and is not scaled.
        own = min(self.input_size, short)
        sizes = [own if abs(size - self.input_size) < 3 else size for size in sizes]
        pairs = [(w, h) for i, h in enumerate(sizes) for j, w in enumerate(sizes) if abs(i - j) <= 1]
        crop_width, crop_height = pairs[rng.integers(len(pairs))]
        x, y = (width - crop_width) // 4, (height - crop_height) // 4  # TSN's grid
        corners_and_edges = [(i * x, j * y) for i in (0, 2, 4) for j in (0, 2, 4)]
        positions = corners_and_edges + [(i * x, j * y) for i in (1, 3) for j in (1, 3)]
        left, top = positions[rng.integers(len(positions))]
        return left, top, left + crop_width, top + crop_height


class GroupRandomHorizontalFlip:
    """Mirror a clip with probability 0.5, and change its label to that of the mirrored class.

    `mirrored` has the new label of each label, or `NEVER` (`classes.mirrored_labels`). `has_mirrored` says
    whether the last clip was mirrored.
    """

    def __init__(self, mirrored: Sequence[int]) -> None:
        self.mirrored = mirrored
        self.has_mirrored = False

    def __call__(self, frames: Frames, label: int, rng: np.random.Generator) -> tuple[Frames, int]:
        self.has_mirrored = rng.random() < 0.5 and self.mirrored[label] != NEVER
        if not self.has_mirrored:
            return frames, label
        return [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in frames], self.mirrored[label]


class Stack:
    """Stack frames into one uint8 array: frames x height x width x channel (RGB). Outlines do not change."""

    def __call__(
        self, frames: Frames, label: int, rng: np.random.Generator
    ) -> tuple[np.ndarray | list[Outline], int]:
        if isinstance(frames[0], Outline):
            return frames, label
        clip = np.empty((len(frames), frames[0].height, frames[0].width, 3), np.uint8)
        for array, frame in zip(clip, frames, strict=True):
            array[:] = frame
        return clip, label


class Compose:
    """Apply transforms in sequence."""

    def __init__(self, *transforms: Callable) -> None:
        self.transforms = transforms

    @property
    def has_mirrored(self) -> bool:
        """Whether the last clip was mirrored."""
        return any(getattr(transform, "has_mirrored", False) for transform in self.transforms)

    def __call__(
        self, frames: Frames, label: int, rng: np.random.Generator
    ) -> tuple[np.ndarray | list[Outline], int]:
        for transform in self.transforms:
            frames, label = transform(frames, label, rng)
        return frames, label


def training_transform(input_size: int, mirrored: Sequence[int]) -> Compose:
    """Make the published augmentation: multi-scale crop, and horizontal flip with label swap."""
    return Compose(
        GroupMultiScaleCrop(input_size),
        GroupRandomHorizontalFlip(mirrored),
        Stack(),
    )


def evaluation_transform(input_size: int, num_crops: int = 1, full_res: bool = False) -> Compose:
    """Make the published evaluation transform: scale the short side (to 256 for input size 224) and crop.

    Args:
        input_size: height and width of the crops, in pixels.
        num_crops: 1 for a centre crop; see `GroupOverSample` for other values.
        full_res: make the crops as large as the short side of the scaled frame (TSM).
    """
    scale_size = input_size * 256 // 224
    crop_size = scale_size if full_res else input_size
    if num_crops == 1:
        return Compose(GroupScaleCenterCrop(scale_size, crop_size), Stack())
    return Compose(GroupScale(scale_size), GroupOverSample(crop_size, num_crops), Stack())


def needs_pixels(transform: Compose) -> bool:
    """Whether a transform fails on outlines. It is called 200 times because it may be random."""
    outline = Outline.of(320, 240)
    try:
        for seed in range(200):
            transform([outline], 0, np.random.default_rng(seed))
    except NeedsPixelsError:
        return True
    return False
