"""Image files: which are read, and what becomes of their pixels."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from utils.cli import UserError
from utils.files import open_regular

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
        return f"{self.path}: cannot be read as an image ({self.reason})"


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open an image; whatever is wrong with it, here or while it is decoded, is an error that names it.

    Raises:
        ImageError: it cannot be read or decoded, is of a format or mode that is not taken, or is too large.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
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


def read_image(path: str) -> Image.Image:
    """Read an image as RGB.

    Grey images and palettes are expanded, transparency is dropped, and CMYK and YCbCr are converted, all as
    Pillow's `convert` does it.

    Raises:
        ImageError: see `open_image`.
    """
    with open_image(path) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
