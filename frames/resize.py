"""Bilinear resize of frames, with Pillow or on any device, with identical pixels.

Pillow's resize has two passes, one along each axis. In each, a pixel is a sum of source pixels times
weights in 22-bit fixed point, rounded to 8 bits. Before version 13, the horizontal pass was always first,
and the published models were trained that way. Later versions choose the order by the sizes. Therefore this
module calls Pillow once for each pass.

Loader processes either resize with Pillow, or only decode and send frames and views (`DecodedClips`) to
`resize_clips` on the model's device.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from utils.cli import UserError

BILINEAR = Image.Resampling.BILINEAR
Box = tuple[int, int, int, int]  # left, top, right and bottom, in pixels
BITS = 22  # fractional bits of a weight: Pillow's PRECISION_BITS


def resize(frame: "Frame", size: tuple[int, int], box: Box | None = None) -> "Frame":
    """Resize a frame to a width and height in pixels, horizontally first, and crop a box of the result."""
    if isinstance(frame, Outline):
        return frame.resize(size).crop(box) if box else frame.resize(size)
    frame = frame.resize((size[0], frame.height), BILINEAR)
    if not box:
        return frame.resize(size, BILINEAR)
    # The vertical pass computes only the columns of the box.
    left, top, right, bottom = box
    columns = frame.crop((left, 0, right, frame.height))
    return columns.resize((right - left, size[1]), BILINEAR).crop((0, top, right - left, bottom))


def decodes_only(resize: str | None, device: torch.device) -> bool:
    """Whether the workers only decode and the device resizes: by default (without `--resize`) if it is a GPU.

    On a CPU, Pillow is faster because it uses vector instructions.
    """
    return device.type == "cuda" if resize is None else resize == "device"


class View(NamedTuple):
    """A box in the frames of a video, which is resized, cropped and optionally mirrored.

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


class NeedsPixelsError(UserError, AttributeError):
    """A transform needs the pixels of a frame."""


@dataclass(frozen=True)
class Outline:
    """A frame without pixels, which records the transforms that are applied to it.

    It has the methods of `PIL.Image.Image` that move pixels. Transforms that change pixel values need real
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
        raise NeedsPixelsError(
            f"an outline has no {name}: transforms that change colours need --resize workers"
        )

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.pixels  # does not exist: raises `NeedsPixelsError`

    def crop(self, box: Box) -> "Outline":
        """See `PIL.Image.Image.crop`. Not supported after mirroring."""
        left, top, right, bottom = box
        if self.view.mirrored or not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            raise ValueError(f"cannot crop {box} out of {self}")
        x, y = self.view.x + left, self.view.y + top
        return replace(self, width=right - left, height=bottom - top, view=self.view._replace(x=x, y=y))

    def resize(self, size: tuple[int, int]) -> "Outline":
        """See `resize`. Not supported after mirroring or another resize."""
        view = self.view
        if (view.width, view.height) != (view.right - view.left, view.bottom - view.top) or view.mirrored:
            raise ValueError(f"cannot resize {self} again")
        left, top = view.left + view.x, view.top + view.y
        view = View(left, top, left + self.width, top + self.height, *size, 0, 0, 0)
        return Outline(*size, view)

    def transpose(self, method: Image.Transpose) -> "Outline":
        """See `PIL.Image.Image.transpose`. Supports only left-right flips."""
        if method != Image.Transpose.FLIP_LEFT_RIGHT:
            raise ValueError(f"cannot turn {self}")
        return replace(self, view=self.view._replace(mirrored=1 - self.view.mirrored))


Frame = Image.Image | Outline


class DecodedClips(NamedTuple):
    """A batch of clips with decoded frames, before the transforms.

    Attributes:
        pixels: uint8, the distinct frames of all videos in sequence, each height x width x 3 (RGB).
        shapes: videos x 4: for each video, the start of its frames in `pixels`, their number, height and
            width.
        order: videos x frames: for each frame of the clip, its index among the distinct frames.
        views: videos x crops x 9: see `View`.
        size: height and width of the result, in pixels.
        length: frames of a clip; a row of `order` with more frames has several clips.
    """

    pixels: torch.Tensor
    shapes: np.ndarray
    order: np.ndarray
    views: np.ndarray
    size: int
    length: int

    def to(self, device: torch.device, non_blocking: bool = False) -> "DecodedClips":
        """Copy the pixels to a device."""
        return self._replace(pixels=self.pixels.to(device, non_blocking=non_blocking))

    def chunk(self, number: int) -> list["DecodedClips"]:
        """Split the videos into `number` parts or fewer, as `torch.Tensor.chunk` does."""
        size = -(-len(self.shapes) // number)
        starts = [*self.shapes[::size, 0].tolist(), len(self.pixels)]
        parts = []
        for index, (start, end) in enumerate(pairwise(starts)):
            own = slice(index * size, (index + 1) * size)
            shapes = self.shapes[own] - np.array([start, 0, 0, 0])
            arrays = (shapes, self.order[own], self.views[own])
            parts.append(DecodedClips(self.pixels[start:end], *arrays, self.size, self.length))
        return parts


Batch = list[torch.Tensor | DecodedClips]  # clips, and in training and evaluation their labels

# Maximum size of an intermediate result of `resize_clips`, in bytes. It bounds the memory on a GPU, and fits
# into the cache of a CPU. Larger batches are computed in parts.
_MAX_BYTES = {"cuda": 1 << 30, "cpu": 1 << 22}


def resize_clips(clips: DecodedClips) -> torch.Tensor:
    """Crop and resize the views of decoded frames, on the device of `clips.pixels`.

    All frames of a batch are computed together. With separate operations for each clip, a GPU would spend
    more time on their launch than on their computation.

    Returns:
        uint8, videos x (views x) frames x height x width x 3. The pixels are those of the transforms with
        Pillow, bit for bit. All clips of the first crop come before those of the next.
    """
    if clips.pixels.numel() > 3 * 2**31:  # the indices below have 32 bits
        raise UserError("--resize device: a batch has over 2 billion pixels; use --resize workers")
    # The taps of each view of each video, and the start of each row of its frames in `pixels`.
    all_columns: list[_Taps] = []
    all_rows: list[_Taps] = []
    all_starts: list[np.ndarray] = []
    for (start, _, height, width), order, views in zip(clips.shapes, clips.order, clips.views, strict=True):
        for view in (View(*map(int, values)) for values in views):
            columns = _taps(view.right - view.left, view.width, view.x, clips.size, bool(view.mirrored))
            rows = _taps(view.bottom - view.top, view.height, view.y, clips.size, False)
            in_frame = (view.top + np.arange(rows.low, rows.high)) * width + view.left
            all_starts.append(start // 3 + order[:, None] * height * width + in_frame)
            all_columns.append(columns)
            all_rows.append(rows)
    # Pad all views to the same shape, with unused rows and with taps of weight 0.
    num_rows = max(starts.shape[1] for starts in all_starts)
    starts = np.stack([np.pad(b, ((0, 0), (0, num_rows - b.shape[1])), "edge") for b in all_starts])
    x_first = np.stack([taps.first for taps in all_columns])
    y_first = np.stack([taps.first - taps.low for taps in all_rows])
    x_weights, y_weights = _stack_weights(all_columns), _stack_weights(all_rows)

    # Copy all arrays to the device at once.
    arrays = (starts, x_first, x_weights, y_first, y_weights)
    flat = torch.from_numpy(np.concatenate([values.astype(np.int32).ravel() for values in arrays]))
    parts = flat.to(clips.pixels.device).split([values.size for values in arrays])
    tensors = [part.view(values.shape) for part, values in zip(parts, arrays, strict=True)]
    num_taps = max(x_weights.shape[-1], y_weights.shape[-1])
    step = max(1, _MAX_BYTES[clips.pixels.device.type] // (starts[0].size * clips.size * 3 * 4 * num_taps))
    end = 3 * (int(starts.max() + x_first.max()) + x_weights.shape[-1])
    pixels = functional.pad(clips.pixels, (0, max(0, end - len(clips.pixels))))
    resized = [_resize_views(pixels, *part) for part in zip(*(t.split(step) for t in tensors), strict=True)]

    num_views = clips.views.shape[1] * clips.order.shape[1] // clips.length
    batch = [len(clips.shapes)] if num_views == 1 else [len(clips.shapes), num_views]
    return torch.cat(resized).view(*batch, clips.length, clips.size, clips.size, 3)


def _resize_views(
    pixels: torch.Tensor,
    starts: torch.Tensor,
    x_first: torch.Tensor,
    x_weights: torch.Tensor,
    y_first: torch.Tensor,
    y_weights: torch.Tensor,
) -> torch.Tensor:
    """Resize some views, first horizontally (only the rows that are used), then vertically.

    Args:
        pixels: uint8, height x width x RGB of all frames in sequence.
        starts: views x frames x rows: index of the first pixel of each row.
        x_first: views x size: the first pixel of each column's taps, relative to the start of the row.
        x_weights: views x size x taps.
        y_first: views x size: the first row of each output row's taps.
        y_weights: views x size x taps.

    Returns:
        uint8, views x frames x size x size x 3.
    """
    views, frames, num_rows = starts.shape
    size = x_first.shape[1]
    indices = starts[..., None] + x_first[:, None, None]
    windows = _windows(pixels, 3, x_weights.shape[2]).index_select(0, indices.view(-1))
    rows = _weigh(windows.view(views, frames * num_rows, size, -1, 3), x_weights[:, None, ..., None])

    starts = torch.arange(0, views * frames * num_rows, num_rows, dtype=torch.int32, device=pixels.device)
    indices = starts.view(views, frames, 1) + y_first[:, None]
    taps = y_weights.shape[2]
    rows = functional.pad(rows.flatten(), (0, taps * size * 3))
    windows = _windows(rows, size * 3, taps).index_select(0, indices.view(-1))
    resized = _weigh(windows.view(views, frames, size, taps, size * 3), y_weights[:, None, ..., None])
    return resized.view(views, frames, size, size, 3)


def _windows(values: torch.Tensor, step: int, taps: int) -> torch.Tensor:
    """View values as overlapping windows of `taps` pieces of `step` values: windows x (taps * step)."""
    number = len(values) // step - taps + 1
    return values.as_strided((number, taps * step), (step, 1), values.storage_offset())


def _weigh(windows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over the taps (the second-to-last dimension) in fixed point, and round to uint8."""
    # Unlike in Pillow, no clipping is needed: the weights are not negative and their sum is 1.
    sums = windows[..., 0, :] * weights[..., 0, :]
    for tap in range(1, windows.shape[-2]):
        sums.addcmul_(windows[..., tap, :], weights[..., tap, :])
    return sums.add_(1 << BITS - 1).bitwise_right_shift_(BITS).byte()


class _Taps(NamedTuple):
    """A pass of the resize along one axis: `size` pixels, each a weighted sum of consecutive source pixels.

    Attributes:
        first: size: the first source pixel of each sum.
        weights: size x taps, in fixed point.
        low, high: the range of the source pixels that are used.
    """

    first: np.ndarray
    weights: np.ndarray
    low: int
    high: int


def _stack_weights(all_taps: list[_Taps]) -> np.ndarray:
    """Stack the weights of several views. Views with fewer taps are padded with zeros."""
    most = max(taps.weights.shape[1] for taps in all_taps)
    return np.stack([np.pad(taps.weights, ((0, 0), (0, most - taps.weights.shape[1]))) for taps in all_taps])


@lru_cache(1024)  # training needs a few dozen entries, evaluation two for each frame size
def _taps(length: int, scaled: int, start: int, size: int, mirrored: bool) -> _Taps:
    """Pillow's weights for the pixels `start` to `start + size` of `length` pixels resized to `scaled`."""
    scale = length / scaled
    reach = max(scale, 1.0)  # support of the bilinear filter
    centres = (np.arange(start, start + size) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), length)
    pixels = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(1 - np.abs((pixels - centres[:, None] + 0.5) * (1 / reach)), 0)
    weights[pixels >= last[:, None]] = 0
    # `cumsum` adds the weights one by one, as Pillow does.
    weights = (0.5 + weights / np.cumsum(weights, axis=1)[:, -1:] * (1 << BITS)).astype(np.int32)
    if length == scaled:  # Pillow skips this pass
        first, weights = np.arange(start, start + size), np.full((size, 1), 1 << BITS, dtype=np.int32)
        last = first + 1
    if mirrored:
        first, weights, last = first[::-1], weights[::-1], last[::-1]
    return _Taps(first, weights, int(first.min()), int(last.max()))
