"""Resize frames bilinearly with exactly Pillow's pixels: with Pillow, or on any device.

Pillow's resize has two passes, one along each axis. In each, a pixel is a sum of source pixels times
weights in 22-bit fixed point, rounded to 8 bits. Before version 13, the horizontal pass was always first,
and the published models were trained that way. Later versions choose the order by the sizes, so here each
pass is a call.

Loader processes resize with Pillow, or send decoded frames and the views to cut out of them
(`DecodedClips`) to `resize_clips` on the model's device.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

BILINEAR = Image.Resampling.BILINEAR
BITS = 22  # fractional bits of a weight: Pillow's PRECISION_BITS


class Axis(NamedTuple):
    """Resize along one axis: pixels `low` to `high` become `size` pixels, which are cropped from `offset` on.

    The result depends only on the pixels from `first` up to `last`.
    """

    size: int
    low: float
    high: float
    offset: int
    first: int
    last: int

    @classmethod
    def of(cls, length: int, scaled: int, crop: int) -> "Axis":
        """Resize `length` pixels to `scaled`, and crop the centre `crop` pixels."""
        offset = round((scaled - crop) / 2)
        scale = Fraction(length, scaled)
        # A window of Pillow's resize has the weights of the whole if its ends are exact in float32. So it is
        # extended until the denominators of the ends are powers of two.
        step = scale.denominator
        while step % 2 == 0:
            step //= 2
        start, stop = offset // step * step, -(-(offset + crop) // step) * step
        if any(end * scale != float(np.float32(end * scale)) for end in (start, stop)):
            start, stop = 0, scaled  # frames of many thousands of pixels
        low, high = start * scale, stop * scale
        reach = max(1, scale)  # support of the bilinear filter
        first, last = max(0, math.floor(low - reach)), min(length, math.ceil(high + reach))
        return cls(stop - start, float(low), float(high), offset - start, first, last)


def resize(frame: "Frame", size: tuple[int, int]) -> "Frame":
    """Resize a frame to a width and height in pixels, horizontally first."""
    if isinstance(frame, Outline):
        return frame.resize(size)
    return frame.resize((size[0], frame.height), BILINEAR).resize(size, BILINEAR)


def resize_and_crop(frame: "Frame", scaled: tuple[int, int], crop: int) -> "Frame":
    """Resize a frame and crop its centre, without computing pixels outside the crop.

    This takes 0.58 of the time of the whole resize for frames of 427 x 240, and 0.66 for 176 x 100 (256
    pixels, crop of 224; medians of 60 runs on 8 random frames, Pillow 13, one core of an AMD EPYC with
    AVX-512).

    Args:
        frame: of any size.
        scaled: width and height after the resize, in pixels; not below `crop`.
        crop: height and width of the result, in pixels.
    """
    if isinstance(frame, Outline):
        left, top = (round((length - crop) / 2) for length in scaled)
        return frame.resize(scaled).crop((left, top, left + crop, top + crop))
    columns = Axis.of(frame.width, scaled[0], crop)
    rows = Axis.of(frame.height, scaled[1], crop)
    height = rows.last - rows.first
    frame = frame.crop((0, rows.first, frame.width, rows.last))
    frame = frame.resize((columns.size, height), BILINEAR, (columns.low, 0, columns.high, height))
    if columns.size > crop:
        frame = frame.crop((columns.offset, 0, columns.offset + crop, height))
    box = (0, rows.low - rows.first, crop, rows.high - rows.first)
    frame = frame.resize((crop, rows.size), BILINEAR, box)
    return frame.crop((0, rows.offset, crop, rows.offset + crop)) if rows.size > crop else frame


def decodes_only(resize: str | None, device: torch.device) -> bool:
    """Whether the device resizes instead of the workers: by default (without `--resize`) on a GPU.

    A CPU would do the same work without Pillow's vector instructions.
    """
    return device.type == "cuda" if resize is None else resize == "device"


class View(NamedTuple):
    """A box of a video's frames, resized, cropped and perhaps mirrored.

    Attributes:
        left, top, right, bottom: the box, in the frame's pixels.
        width, height: size of the resized box.
        x, y: upper left corner of the crop, in resized pixels.
        mirrored: whether the crop is mirrored.
    """

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    x: int
    y: int
    mirrored: int


@dataclass(frozen=True)
class Outline:
    """A frame without pixels, which records the transforms that are applied to it.

    It has the methods of `PIL.Image.Image` that move pixels. Transforms that change their values need real
    frames.

    Attributes:
        width, height: current size, in pixels.
        view: the recorded transforms.
    """

    width: int
    height: int
    view: View

    @classmethod
    def of(cls, width: int, height: int) -> "Outline":
        """The outline of a whole frame."""
        return cls(width, height, View(0, 0, width, height, width, height, 0, 0, 0))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def __getattr__(self, name: str) -> None:
        raise AttributeError(
            f"an outline has no {name}: transforms that change colours need --resize workers"
        )

    @property
    def _is_resized(self) -> bool:
        view = self.view
        return (view.width, view.height) != (view.right - view.left, view.bottom - view.top)

    def crop(self, box: tuple[int, int, int, int]) -> "Outline":
        """See `PIL.Image.Image.crop`; only before mirroring."""
        left, top, right, bottom = box
        if self.view.mirrored or not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            raise ValueError(f"cannot crop {box} out of {self}")
        x, y = self.view.x + left, self.view.y + top
        return replace(self, width=right - left, height=bottom - top, view=self.view._replace(x=x, y=y))

    def resize(self, size: tuple[int, int]) -> "Outline":
        """See `resize`; only once, and before mirroring."""
        if self._is_resized or self.view.mirrored:
            raise ValueError(f"cannot resize {self} again")
        left, top = self.view.left + self.view.x, self.view.top + self.view.y
        view = View(left, top, left + self.width, top + self.height, *size, 0, 0, 0)
        return Outline(*size, view)

    def transpose(self, method: Image.Transpose) -> "Outline":
        """See `PIL.Image.Image.transpose`; only left-right flips."""
        if method != Image.Transpose.FLIP_LEFT_RIGHT:
            raise ValueError(f"cannot turn {self}")
        return replace(self, view=self.view._replace(mirrored=1 - self.view.mirrored))


Frame = Image.Image | Outline


class DecodedClips(NamedTuple):
    """A batch of clips with decoded frames, before the transforms.

    Attributes:
        pixels: uint8, the distinct frames of all videos one after the other, each height x width x 3 (RGB).
        shapes: videos x 4: for each video the start of its frames in `pixels`, their number, height and
            width.
        order: videos x frames: indices of the video's frames in the clip.
        views: videos x crops x 9: see `View`.
        size: height and width of the result, in pixels.
        length: frames of a clip; a video with more has several clips.
    """

    pixels: torch.Tensor
    shapes: np.ndarray
    order: np.ndarray
    views: np.ndarray
    size: int
    length: int


def resize_clips(clips: DecodedClips) -> torch.Tensor:
    """Cut the views out of decoded frames, on the device of `clips.pixels`.

    Returns:
        uint8, videos x (views x) frames x height x width x 3: exactly the pixels of the transforms with
        Pillow; all clips of the first crop before those of the next.
    """
    results = []
    for (start, count, height, width), order, views in zip(
        clips.shapes.tolist(), clips.order.tolist(), clips.views.tolist(), strict=True
    ):
        frames = clips.pixels[start : start + count * height * width * 3].view(count, height, width, 3)
        is_in_order = order == list(range(count))
        for view in views:
            resized = _cut(frames, View(*view), clips.size)
            results.append(resized if is_in_order else resized[order])
    num_views = clips.views.shape[1] * clips.order.shape[1] // clips.length
    batch = [len(clips.shapes)] if num_views == 1 else [len(clips.shapes), num_views]
    return torch.cat(results).view(*batch, clips.length, clips.size, clips.size, 3)


def _cut(frames: torch.Tensor, view: View, size: int) -> torch.Tensor:
    box = frames[:, view.top : view.bottom, view.left : view.right]
    device = frames.device
    columns = _taps(box.shape[2], view.width, view.x, size, bool(view.mirrored), device)
    rows = _taps(box.shape[1], view.height, view.y, size, False, device)
    return rows.apply(columns.apply(box[:, rows.first : rows.last], 2, 0), 1, rows.first)


class _Taps(NamedTuple):
    """One pass of the resize: `size` pixels along an axis, each a weighted sum of source pixels.

    Attributes:
        first, last: range of the source pixels.
        indices: taps x size: source pixels.
        weights: taps x size: their weights, in fixed point.
    """

    first: int
    last: int
    indices: torch.Tensor
    weights: torch.Tensor

    def apply(self, frames: torch.Tensor, axis: int, start: int) -> torch.Tensor:
        """Resize frames along an axis that begins at the source pixel `start`."""
        shape = [-1 if dim == axis else 1 for dim in range(frames.dim())]
        sums: torch.Tensor | None = None
        source = self.indices - start if start else self.indices
        for indices, weights in zip(source, self.weights, strict=True):
            if len(self.weights) == 1:  # not scaled
                return frames.index_select(axis, indices)
            part = frames.index_select(axis, indices).int().mul_(weights.view(shape))
            sums = part if sums is None else sums.add_(part)
        # The sums stay within 0 to 255, without clipping: weights are positive and sum to 1.
        return sums.add_(1 << BITS - 1).bitwise_right_shift_(BITS).byte()


@lru_cache(1024)  # training needs some dozens, evaluation two for each frame size
def _taps(length: int, scaled: int, start: int, size: int, mirrored: bool, device: torch.device) -> _Taps:
    """Pillow's weights for the pixels `start` to `start + size` when `length` pixels become `scaled`."""
    scale = length / scaled
    reach = max(scale, 1.0)  # support of the bilinear filter
    centres = (np.arange(start, start + size) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), length)
    indices = first + np.arange((last - first).max())[:, None]
    weights = np.maximum(1 - np.abs((indices - centres + 0.5) * (1 / reach)), 0)
    weights[indices >= last] = 0
    # The sum is cumulative, as in Pillow.
    weights = (0.5 + weights / np.cumsum(weights, axis=0)[-1] * (1 << BITS)).astype(np.int32)
    indices = np.minimum(indices, length - 1).astype(np.int32)
    if length == scaled:  # Pillow leaves this pass out, too
        indices, weights = np.arange(start, start + size, dtype=np.int32)[None], weights[:1]
    if mirrored:
        indices, weights = indices[:, ::-1], weights[:, ::-1]
    tensors = (torch.from_numpy(values.copy()).to(device) for values in (indices, weights))
    return _Taps(int(indices.min()), int(indices.max()) + 1, *tensors)
