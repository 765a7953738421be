"""Read image files as RGB."""

import io
import warnings
from contextlib import suppress

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from utils.cli import UserError, printable
from utils.files import open_regular, read_regular

# Pillow supports more formats, some by running other programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Modes that `convert("RGB")` handles well; it clips 16-bit grey values.
MODES = ("RGB", "L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr")

# By default, Pillow only warns about images up to twice as large as its limit.
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageError(UserError):
    """An image that cannot be used, and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # so that it can be pickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path, 500)}: cannot be read as an image ({self.reason})"


class DecodedFrame:
    """A decoded frame, from an RGB image."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.size = image.size

    def image(self) -> Image.Image:
        """The frame as an RGB image."""
        return self._image

    def write(self, array: np.ndarray) -> None:
        """Write the pixels into an array: uint8, height x width x 3 (RGB)."""
        array[:] = self._image


class JPEGFrame:
    """A JPEG that has been read, but not decoded.

    simplejpeg uses libjpeg-turbo, like Pillow, and decodes the same pixels directly into an array. If it
    refuses a file, Pillow decodes or refuses it.

    Args:
        path: the file.
        data: its contents.
        size: width and height, in pixels.
    """

    def __init__(self, path: str, data: bytes, size: tuple[int, int]) -> None:
        self._path = path
        self._data = data
        self.size = size

    def image(self) -> Image.Image:
        """The frame as an RGB image.

        Raises:
            ImageError: it cannot be decoded.
        """
        width, height = self.size
        pixels = np.empty((height, width, 3), np.uint8)
        self.write(pixels)
        return Image.fromarray(pixels)

    def write(self, array: np.ndarray) -> None:
        """Write the pixels into a contiguous array: uint8, height x width x 3 (RGB).

        Raises:
            ImageError: it cannot be decoded.
        """
        try:
            simplejpeg.decode_jpeg(self._data, colorspace="RGB", buffer=array)
        except ValueError:
            array[:] = _decode(self._path, self._data)


SourceFrame = DecodedFrame | JPEGFrame


def read_frame(path: str) -> SourceFrame:
    """Read an image, and decode it unless it is a common JPEG.

    Pillow's `convert` expands grey images and palettes, drops transparency, and converts CMYK and YCbCr.

    Raises:
        ImageError: it cannot be read or decoded, has an unsupported format or mode, or is too large.
    """
    try:
        data = read_regular(path, limit=_MAX_JPEG)
    except OSError as error:
        raise ImageError(path, error.strerror) from None
    if data and data.startswith(b"\xff\xd8"):
        # Other JPEGs are decoded by Pillow, which refuses damage, limits the size and inverts Adobe's CMYK.
        with suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("Gray", "YCbCr", "RGB") and width * height <= Image.MAX_IMAGE_PIXELS:
                return JPEGFrame(path, data, (width, height))
    return DecodedFrame(_decode(path, data))


_MAX_JPEG = 2**26  # bytes; frames within Pillow's limit are smaller


def _decode(path: str, data: bytes | None) -> Image.Image:
    """Decode an image with Pillow, from its contents if they have been read."""
    try:
        file = open_regular(path) if data is None else io.BytesIO(data)
        with file, Image.open(file, formats=FORMATS) as image:
            if image.mode not in MODES:
                raise ValueError(f"its mode is {image.mode}; convert it to 8 bits per channel")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        reason = f"is none of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow raises many kinds of errors for damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise ImageError(path, reason)
