"""Read image files as RGB."""

import io
import warnings
from contextlib import suppress

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from utils.cli import UserError, printable
from utils.files import open_regular

# Pillow supports more formats, some by running other programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Modes that `convert("RGB")` handles well; it clips 16-bit grey values.
MODES = ("RGB", "L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr")

# By default, Pillow only warns about images up to twice as large as its limit.
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class SourceFrame:
    """A frame that has been read, but perhaps not decoded.

    simplejpeg uses libjpeg-turbo, like Pillow, and decodes the same pixels directly into an array. If it
    refuses a file, Pillow decodes or refuses it.

    Args:
        source: an RGB image, or the contents of a JPEG.
        size: width and height, in pixels.
        path: the file, for messages.
    """

    def __init__(self, source: Image.Image | bytes, size: tuple[int, int], path: str = "") -> None:
        self._source = source
        self._path = path
        self.size = size

    def image(self) -> Image.Image:
        """The frame as an RGB image.

        Raises:
            UserError: it cannot be decoded.
        """
        if isinstance(self._source, Image.Image):
            return self._source
        width, height = self.size
        pixels = np.empty((height, width, 3), np.uint8)
        self.write(pixels)
        return Image.fromarray(pixels)

    def write(self, array: np.ndarray) -> None:
        """Write the pixels into a contiguous array: uint8, height x width x 3 (RGB).

        Raises:
            UserError: it cannot be decoded.
        """
        if isinstance(self._source, Image.Image):
            array[:] = self._source
            return
        try:
            simplejpeg.decode_jpeg(self._source, colorspace="RGB", buffer=array)
        except ValueError:
            array[:] = _decode(self._path, self._source)


def read_frame(path: str) -> SourceFrame:
    """Read an image, and decode it unless it is a common JPEG.

    Pillow's `convert` expands grey images and palettes, drops transparency, and converts CMYK and YCbCr.

    Raises:
        UserError: it cannot be read or decoded, has an unsupported format or mode, or is too large.
    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    if data.startswith(b"\xff\xd8"):
        # Pillow decodes other JPEGs: it refuses damaged files, limits the size and inverts Adobe's CMYK.
        with suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("Gray", "YCbCr", "RGB") and width * height <= Image.MAX_IMAGE_PIXELS:
                return SourceFrame(data, (width, height), path)
    image = _decode(path, data)
    return SourceFrame(image, image.size)


def _decode(path: str, data: bytes) -> Image.Image:
    """Decode an image with Pillow."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise ValueError(f"its mode is {image.mode}; convert it to 8 bits per channel")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        reason = f"is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    except Exception as error:  # Pillow raises many kinds of errors for damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise _unreadable(path, reason)


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(f"{printable(path, 500)}: cannot be read as an image ({reason})")
