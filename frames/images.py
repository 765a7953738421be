"""Image files: which are read, and what becomes of their pixels."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from utils.cli import UserError, printable
from utils.files import open_regular, read_regular

# Pillow opens many more, some by starting other programs (an EPS is run by Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# What `convert("RGB")` does with these is well defined; with 16 bits it cuts values off.
MODES = ("RGB", "L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr")

# Pillow only warns of images beyond its limit for what must be an attack, and reads them up to twice that.
warnings.filterwarnings("ignore", module="PIL")  # of what it reads all the same
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageError(UserError):
    """An image that is not to be used.

    Args:
        path: its file.
        reason: why.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # as a process that loads clips hands them on
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path, 500)}: cannot be read as an image ({self.reason})"


@contextmanager
def open_image(path: str, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image; whatever is wrong with it, here or while it is decoded, is an error that names it.

    Args:
        path: its file.
        data: what is in the file, if that has been read.

    Raises:
        ImageError: it cannot be read or decoded, is of a format or mode that is not taken, or is too large.
    """
    try:
        with (
            open_regular(path) if data is None else io.BytesIO(data) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            # Of a PNG's colours Pillow would take the upper 8 bits; only its decoder's argument tells.
            is_deep = image.format == "PNG" and any(str(tile[3]).endswith(";16B") for tile in image.tile)
            if image.mode not in MODES or is_deep:
                mode = f"{image.mode} with 16 bits" if is_deep else image.mode
                raise ValueError(f"its mode is {mode}; convert it to 8 bits a channel")
            yield image
    except UnidentifiedImageError:
        reason = f"is none of {', '.join(FORMATS)}"
    except Exception as error:  # whatever bytes can make Pillow raise; the file is at fault
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    else:
        return
    raise ImageError(path, reason)


class DecodedFrame:
    """A frame whose pixels are there.

    Args:
        image: in RGB.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.size = image.size

    def image(self) -> Image.Image:
        """The frame as Pillow's image, in RGB."""
        return self._image

    def write(self, place: np.ndarray) -> None:
        """Write the pixels into an array: uint8, height x width x 3 (RGB)."""
        place[:] = self._image


class JPEGFrame:
    """A frame that is read, but not decoded.

    Simplejpeg uses libjpeg-turbo, as Pillow does, and gives the same pixels, decoded to where they are
    needed. What it refuses is decoded by Pillow, or refused in its words.

    Args:
        path: the file.
        data: what is in it.
        size: width and height, in pixels.
    """

    def __init__(self, path: str, data: bytes, size: tuple[int, int]) -> None:
        self._path = path
        self._data = data
        self.size = size

    def image(self) -> Image.Image:
        """The frame as Pillow's image, in RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        width, height = self.size
        pixels = np.empty((height, width, 3), np.uint8)
        self.write(pixels)
        return Image.fromarray(pixels)

    def write(self, place: np.ndarray) -> None:
        """Write the pixels into an array: uint8, height x width x 3 (RGB), contiguous.

        Raises:
            ImageError: it cannot be decoded.
        """
        try:
            simplejpeg.decode_jpeg(self._data, colorspace="RGB", buffer=place)
        except ValueError:
            place[:] = _decode(self._path, self._data)


SourceFrame = DecodedFrame | JPEGFrame  # read, and decoded or not


def read_frame(path: str) -> SourceFrame:
    """Read an image, and decode it if it is not a common JPEG.

    Raises:
        ImageError: see `open_image`.
    """
    try:
        data = read_regular(path, limit=_MAX_JPEG)
    except OSError as error:
        raise ImageError(path, error.strerror) from None
    if data and data.startswith(b"\xff\xd8"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return DecodedFrame(_decode(path, data))
        # Pillow has limits of its own, and inverts Adobe's CMYK.
        if colours in ("Gray", "YCbCr", "RGB") and width * height <= Image.MAX_IMAGE_PIXELS:
            return JPEGFrame(path, data, (width, height))
    return DecodedFrame(_decode(path, data))


_MAX_JPEG = 2**26  # bytes; a frame of 89 million pixels has less


def _decode(path: str, data: bytes | None) -> Image.Image:
    with open_image(path, data) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def read_image(path: str) -> Image.Image:
    """Read an image as RGB.

    Grey images and palettes are expanded, transparency is dropped, and CMYK and YCbCr are converted, all as
    Pillow's `convert` does it.

    Raises:
        ImageError: see `open_image`.
    """
    return read_frame(path).image()
