"""frames/images.py: the images that are read, and their pixels."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from frames.images import read_frame
from utils.cli import UserError


def read_image(path):
    return read_frame(str(path)).image()


def png(width, height, bits, colours, rows):
    """The bytes of a PNG; `colours` is 0 for grey, 2 for RGB, 4 and 6 for these with alpha."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def noise(mode="RGB", size=(24, 16)):
    pixels = np.random.default_rng(3).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")],
        *[("L", "JPEG"), ("CMYK", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG")],
    ],
)
def test_formats_and_modes(tmp_path, mode, kind):
    path = tmp_path / "00001.jpg"
    noise(mode).save(path, kind)
    assert Image.open(path).mode == mode
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.array_equal(image, Image.open(path).convert("RGB"))


def test_transparency_is_dropped(tmp_path):
    path = tmp_path / "00001.png"
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(path)
    assert read_image(path).getpixel((0, 0)) == (10, 20, 30)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
BAD = {
    "an EPS": (EPS, "is not JPEG, PNG, WEBP or BMP"),
    "text": (b"not an image", "is not JPEG"),
    "nothing": (b"", "is not JPEG"),
    "16 bits of grey": (png(2, 1, 16, 0, b"\0\x12\xff\x12\xff"), "8 bits"),
    "a bomb": (png(20_000, 20_000, 8, 0, b""), "bomb"),
}


@pytest.mark.parametrize("name", BAD)
def test_others_are_refused(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / "00001.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as an image") as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file_is_refused(tmp_path, kind):
    path = tmp_path / "00001.jpg"
    noise().save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"00001\.jpg"):
        read_image(path)


def test_special_files_are_refused(tmp_path):
    pipe, folder, loop = (tmp_path / name for name in ("pipe.jpg", "folder.jpg", "loop.jpg"))
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    for path, words in (
        (pipe, "is a named pipe, not a file"),
        (folder, "is a folder, not a file"),
        (loop, "symbolic links"),
        (tmp_path / "none.jpg", "No such file"),
        ("/dev/zero", "is a device, not a file"),
    ):
        with pytest.raises(UserError, match=words):
            read_image(path)
