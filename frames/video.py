"""Decode video files frame by frame, and refuse incomplete ones.

Any problem with a file raises `VideoError`, so that a program can report it and continue.
"""

import itertools
import os
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image

from utils.files import open_regular

# Suffixes of the containers below.
# fmt: off
SUFFIXES = (
    ".webm", ".mkv", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mj2", ".avi", ".divx", ".mpg", ".mpeg",
    ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".f4v", ".asf", ".wmv", ".ogv", ".ogm", ".ivf",
    ".h264", ".264", ".avc", ".hevc", ".h265", ".265",
)
# fmt: on

# Only these, because libavformat also decodes text files and images, and playlists that open other files.
_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,ivf"

# Containers and codecs with one frame per packet and exact frame times. Times in avi files are not exact.
_EXACT_CONTAINERS = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
_EXACT_CODECS = ("h264", "hevc", "vp9", "av1")

# Without this option, PyAV before version 19 refuses a video whose title is not UTF-8.
_ANY_TITLE = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

# Tables from limited range to JPEG's full range (ITU-T T.871, section 7), for Y, Cb and Cr. swscale would
# round chroma down, which shifts every colour by half a step.
_LUMA = [min(max(round((value - 16) * 255 / 219), 0), 255) for value in range(256)]
_CHROMA = [min(max(round((value - 128) * 255 / 224) + 128, 0), 255) for value in range(256)]
_FULL_RANGE = (_LUMA, _CHROMA, _CHROMA)

_WORTH_A_SEEK = 16  # up to this number of frames, decoding is faster than seeking

_EBML = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_MP4_BOXES = b"ftyp moov mdat moof mfra sidx styp free skip wide uuid meta pdin".split()


class VideoError(Exception):
    """A video whose frames must not be used; the message is the reason."""


class FrameIndex(NamedTuple):
    """The frames of a video and their times.

    Attributes:
        count: number of frames that `decode` yields.
        size: `display_size` of the first frame.
        time_base: in seconds.
        rate: frames per second, from the container or on average.
        times: times of the frames, increasing, in units of `time_base`; None if the file has no such times.
        keys: numbers (from 1) of frames where decoding can start.
    """

    count: int
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    times: np.ndarray | None = None
    keys: np.ndarray = np.array([], dtype=int)

    def seconds(self) -> np.ndarray:
        """Times of all frames since the first one, in seconds."""
        if self.times is None:
            return np.arange(self.count) / float(self.rate)
        return (self.times - self.times[0]) * float(self.time_base)


def is_video(path: Path) -> bool:
    """Whether a file has a video's suffix."""
    return path.suffix.lower() in SUFFIXES


def decode(video: Path) -> Iterator[av.VideoFrame]:
    """Yield every frame of a video file once, in display order.

    Only video containers are accepted, and no other file is opened. Decoding uses one thread. The frames have
    the video's pixel format, value range, orientation and size: see `display_size` and `FrameConverter`.

    Raises:
        VideoError: not a video, no video stream, or incomplete.
    """
    count = 0
    try:
        with _opened(video) as (container, stream):
            for frame in _intact_frames(container, stream):
                count += 1
                yield frame
    except Exception as error:
        raise _reason(error, count) from None
    if not count:
        raise VideoError("contains no frames")


def index_frames(video: Path) -> FrameIndex:
    """Find the frames of a video from its packets if each contains one frame, otherwise by decoding it.

    Packets are exact for common codecs in mp4 and webm files. They do not show whether a frame is damaged.
    Packets before the first frame that can be decoded, as in a stream that was joined midway, are ignored.

    Raises:
        VideoError: see `decode`.
    """
    packets: list[tuple[int | None, bool]] = []
    first = None
    try:
        with _opened(video) as (container, stream):
            time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate or Fraction(25)
            is_exact = container.format.name in _EXACT_CONTAINERS
            is_exact = is_exact and stream.codec_context.codec.canonical_name in _EXACT_CODECS
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise VideoError(f"damaged or truncated after frame {len(packets)}")
                if not first and (first := next(iter(packet.decode()), None)):
                    first.opaque = stream.sample_aspect_ratio
                # Discarded packets lie before the start of an mp4's edit list.
                if packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.is_keyframe))
    except Exception as error:
        raise _reason(error, len(packets) if first else 0) from None
    if not first:
        raise VideoError("contains no frames")
    metadata = (display_size(first), time_base, rate)
    times = [time for time, _ in packets]
    # The fields of an interlaced frame can have a packet each.
    is_exact = is_exact and not first.interlaced_frame
    if is_exact and None not in [first.pts, *times] and len(set(times)) == len(times):
        times = np.array(sorted(time for time in times if time >= first.pts))
        keys = sorted(time for time, is_key in packets if is_key and time >= first.pts)
        return FrameIndex(len(times), *metadata, times, np.searchsorted(times, keys) + 1)
    times = [frame.pts for frame in decode(video)]
    is_increasing = None not in times and times == sorted(set(times))
    return FrameIndex(len(times), *metadata, np.array(times) if is_increasing else None)


def decode_frames(
    video: Path, index: FrameIndex, numbers: Collection[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield selected frames of a video, identical to those of `decode`, and decode few others.

    Decoding starts at the last key frame before a frame. If the frames have no times, or the decoder does not
    return a frame with the expected time, all frames are decoded in sequence.

    Args:
        index: from `index_frames`.
        numbers: frame numbers in display order, from 1.

    Raises:
        VideoError: see `decode`. Damage is only noticed in frames that are decoded.
    """
    remaining = deque(sorted(set(numbers)))
    if index.times is not None:
        with suppress(VideoError, av.FFmpegError):  # decoding in sequence reports what is wrong
            for number, frame in _seek_frames(video, index, list(remaining)):
                yield number, frame
                remaining.popleft()
    if not remaining:
        return
    number = 0
    with closing(decode(video)) as frames:
        for number, frame in enumerate(frames, start=1):
            if number == remaining[0]:
                yield number, frame
                remaining.popleft()
                if not remaining:
                    return
    raise VideoError(f"only {number} of {index.count} frames can be decoded")


def _seek_frames(video: Path, index: FrameIndex, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    position = 0  # number of the last decoded frame
    with _opened(video) as (container, stream):
        frames = _intact_frames(container, stream)
        for number in numbers:
            before = np.searchsorted(index.keys, number, side="right")
            key = int(index.keys[before - 1]) if before else 0
            if key - position > _WORTH_A_SEEK:
                container.seek(int(index.times[key - 1]), stream=stream)
                frames = _intact_frames(container, stream)
                # Frames before the key frame, as in an open GOP, may refer to frames that are not decoded.
                for frame in frames:
                    if frame.pts == index.times[key - 1] and frame.key_frame:
                        frames = itertools.chain([frame], frames)
                        break
                position = key - 1
            while position < number:
                frame = next(frames, None)
                position += 1
                if frame is None or frame.pts != index.times[position - 1]:
                    raise VideoError(f"frame {position} is not where its packet is")
            yield number, frame


def _intact_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    count = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise VideoError(f"damaged or truncated after frame {count}")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise VideoError(f"damaged after frame {count}")
            count += 1
            frame.opaque = stream.sample_aspect_ratio  # for `display_size`; frames do not have it in PyAV
            yield frame


@contextmanager
def _opened(video: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video for decoding in one thread, and check its length."""
    with open_regular(video) as file:
        check_length(file)
        file.seek(0)
        whitelist = {"format_whitelist": _CONTAINERS}
        with av.open(file, container_options=whitelist, **_ANY_TITLE) as container:
            stream = container.streams.best("video")
            # libavformat also reports the cover of an audio file as a video stream.
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise VideoError("no video stream")
            if stream.codec_context is None:
                raise VideoError("no decoder for its video stream")
            stream.codec_context.options = {"max_pixels": str(Image.MAX_IMAGE_PIXELS)}
            # One thread, because programs decode several videos in parallel.
            stream.codec_context.thread_count = 1
            yield container, stream


def _reason(error: Exception, count: int) -> VideoError:
    """Make the error for a video of which `count` frames could be read."""
    if isinstance(error, VideoError):
        return error
    if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
        return VideoError(f"cannot be read ({error.strerror})")
    # PyAV raises many kinds of errors for damaged bytes.
    after = f"damaged or truncated after frame {count}"
    return VideoError(after if count else "not a video, or damaged at its beginning")


def check_length(file: BinaryIO) -> None:
    """Compare a file's length with what its container declares.

    The demuxers do not notice a truncated file: in a truncated webm, every remaining frame decodes without an
    error. The containers consist of nested boxes that begin with their lengths, so it suffices to follow the
    outer ones (webm and mkv: RFC 8794; mp4 and mov: ISO/IEC 14496-12; avi: RIFF). Other containers are not
    checked.

    Raises:
        OSError: it cannot be read.
        VideoError: empty, or shorter than declared.
    """
    length = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if not length:
        raise VideoError("empty file")
    if start[:4] == _EBML:
        end = _webm_end(file, length)
    elif start[4:] in _MP4_BOXES:
        end = _mp4_end(file, length)
    elif start[:4] == b"RIFF":
        size = int.from_bytes(start[4:], "little")
        end = 8 + size if size < 2**32 - 1 else length  # unknown if the file was written to a pipe
    else:
        return
    if end > length:
        raise VideoError(f"truncated: {length} bytes of at least {end}")


def _webm_end(file: BinaryIO, length: int) -> int:
    position, end = 0, length
    while position < end:
        file.seek(position)
        # An identifier and a size, whose lengths follow from their leading zero bits. If the header is cut
        # off, the padding moves the position beyond the end of the file.
        head = file.read(12).ljust(12, b"\xff")
        size_at = 9 - head[0].bit_length()
        body_at = size_at + 9 - head[size_at].bit_length() if size_at <= 4 else 0
        if not size_at < body_at <= size_at + 8:
            raise VideoError(f"damaged at byte {position}")
        unknown = (1 << 7 * (body_at - size_at)) - 1
        size = int.from_bytes(head[size_at:body_at], "big") & unknown
        position += body_at
        # Descend into the segment and into elements of unknown size; skip the others.
        if head[:size_at] == _EBML_SEGMENT:
            if size != unknown:
                end = position + size
            if end > length:
                return end
        elif size != unknown:
            position += size
    return position


def _mp4_end(file: BinaryIO, length: int) -> int:
    position = 0
    while position + 8 <= length:
        file.seek(position)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        # 0 means "to the end of the file". Other data may follow the last box.
        if size < 8 or kind not in _MP4_BOXES:
            break
        position += size
    return position


def display_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Width and height at which players show a frame from `decode`, in pixels, before they rotate it.

    The width differs from the stored one if pixels are not square (anamorphic video).
    """
    return max(1, round(frame.width * (frame.opaque or 1))), frame.height


def _transposition(frame: av.VideoFrame) -> Image.Transpose | None:
    """Read from a frame's display matrix how to rotate and mirror it; (x, y) becomes (ax + cy, bx + dy)."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    method = Image.Transpose
    if abs(a) + abs(d) >= abs(b) + abs(c):
        methods = [None, method.FLIP_TOP_BOTTOM, method.FLIP_LEFT_RIGHT, method.ROTATE_180]
        return methods[2 * (a < 0) + (d < 0)]
    methods = [method.TRANSPOSE, method.ROTATE_270, method.ROTATE_90, method.TRANSVERSE]
    return methods[2 * (b < 0) + (c < 0)]


class FrameConverter:
    """Converts the frames of one video to upright images of one size.

    Frames are converted directly to JPEG's BT.601 colours, not to RGB first. This saves half of the work
    after decoding, and one rounding.

    Args:
        size: width and height, in pixels, before players rotate the frame; see `display_size`.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._scaler = VideoReformatter()  # prepared once for all frames

    def __call__(self, frame: av.VideoFrame) -> Image.Image:
        """Scale a frame bicubically, and rotate and mirror it as players do.

        Returns:
            YCbCr, 8 bits, full range, without chroma subsampling. A rotation by 90 degrees swaps width and
            height.

        Raises:
            VideoError: it cannot be scaled.
        """
        try:
            scaled = self._scaler.reformat(
                frame,
                *self.size,
                format="yuv444p",
                dst_color_range=frame.color_range or ColorRange.MPEG,
                dst_colorspace=Colorspace.ITU601,
                interpolation=Interpolation.BICUBIC,
                threads=1,
            )
        except Exception as error:  # many kinds: pixel formats that cannot be converted, no memory
            raise VideoError(f"cannot be scaled to {self.size[0]} x {self.size[1]} ({error})") from None
        channels = [Image.frombuffer("L", self.size, p, "raw", "L", p.line_size, 1) for p in scaled.planes]
        if frame.color_range != ColorRange.JPEG:
            channels = [image.point(table) for image, table in zip(channels, _FULL_RANGE, strict=True)]
        image = Image.merge("YCbCr", channels)
        method = _transposition(frame)
        return image if method is None else image.transpose(method)
