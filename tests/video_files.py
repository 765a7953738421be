"""Write small video files whose frames show their number, and read it back."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

_BITS = 6


def numbered_image(number: int, width: int, height: int) -> np.ndarray:
    """An RGB image (height x width x 3, uint8) that shows a number below 64 as black and white columns."""
    column = np.arange(width) * _BITS // width
    bits = (number >> column & 1).astype(np.uint8)
    image = np.repeat(np.repeat(bits[None, :, None] * 200 + 28, height, axis=0), 3, axis=2)
    # Motion, so that B-frames are used.
    top = number * 3 % max(1, height - height // 4)
    image[top : top + height // 4, :, 1] //= 2
    return image


def read_number(image: Image.Image) -> int:
    """The number that a frame of any size shows."""
    grey = np.asarray(image.convert("RGB"), dtype=float)[:, :, 0].mean(axis=0)
    centres = ((np.arange(_BITS) + 0.5) * len(grey) / _BITS).astype(int)
    return int(sum(1 << bit for bit, centre in enumerate(centres) if grey[centre] > 128))


def write_video(
    path: Path,
    frames: int | Sequence[np.ndarray] = 12,
    *,
    width: int = 96,
    height: int = 64,
    codec: str | None = None,
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    index_first: bool = True,
    turn: int = 0,
    colorspace: int | None = None,
    color_range: int | None = None,
    title: str = "",
    options: dict[str, str] | None = None,
) -> None:
    """Write a video: VP9 for .webm, H.264 with B-frames for .mp4 and .mkv.

    `frames` is the number of frames, which show 1, 2, 3 and so on; or RGB images. `times` are in twelfths of
    a second. `index_first` puts an mp4's index (moov) before the data. Players turn the video by `turn`
    degrees counterclockwise. `colorspace` and `color_range` are libavutil's numbers.
    """
    if isinstance(frames, int):
        frames = [numbered_image(number, width, height) for number in range(1, frames + 1)]
    height, width = frames[0].shape[:2]
    codec = codec or ("libvpx-vp9" if path.suffix == ".webm" else "libx264")
    container_options = {"movflags": "+faststart"} if path.suffix == ".mp4" and index_first else {}
    with av.open(str(path), "w", options=container_options) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 12)
        stream.codec_context.thread_count = 1
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if turn:
            stream.set_display_rotation(turn)
        fast = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {"preset": "veryfast"}
        stream.options = {"crf": "12", "b": "0", "g": "10"} | fast | (options or {})
        for image, time in zip(frames, times or range(len(frames)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.pts, frame.time_base = time, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def remux(
    source: Path, target: Path, *, shift: int = 0, hides_key_frames: bool = False, first: int = 0
) -> None:
    """Copy the encoded frames of a video into another container, without the `first` packets.

    With `shift`, all times become earlier by seconds: an mp4 then starts in the middle, by its edit list.
    With `hides_key_frames`, key frames of VP8 and VP9 are invisible, as encoders make reference frames.
    """
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        stream = container.streams.video[0]
        copied = copy.add_stream_from_template(stream)
        show_frame = 0x10 if stream.codec_context.name == "vp8" else 0x02
        for number, packet in enumerate(container.demux(stream)):
            if not packet.size or number < first:
                continue
            content = bytearray(packet)
            if hides_key_frames and packet.is_keyframe:
                content[0] &= ~show_frame
            changed = av.Packet(bytes(content))
            changed.is_keyframe, changed.time_base = packet.is_keyframe, packet.time_base
            changed.pts, changed.dts = (int(at - shift / packet.time_base) for at in (packet.pts, packet.dts))
            changed.stream = copied
            copy.mux(changed)


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b, c, d) into the track header of an mp4."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # version, flags, times, track, duration, layer, volume
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_audio(path: Path) -> None:
    """Write a file with a second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 48000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path: Path, keep: float) -> None:
    """Truncate a file to a share of its length."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def damage(path: Path, number: int) -> None:
    """Overwrite the content of a packet of a video."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0])]
    content = path.read_bytes()
    assert packets[number] in content
    path.write_bytes(content.replace(packets[number], b"\xff" * len(packets[number])))
