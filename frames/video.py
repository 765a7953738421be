"""Decode video files frame by frame, and refuse those that are incomplete.

Raises `VideoError` for whatever is wrong with a file, so that a program can report it and take the next.
"""

import itertools
import math
import os
from array import array
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image

from utils.files import open_regular

# Of a frame. Pillow's limit, beyond which the JPEGs would not be read; it also bounds the memory.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
_LIMIT = {"max_pixels": str(MAX_PIXELS)}

# A wrong time, such as a gap of days, would otherwise fill the disk with copies of one frame.
MAX_REPEATS = 1000

# Of the containers below. What is called otherwise may be a video, too: see `is_video`.
SUFFIXES = (
    *(
        ".webm",
        ".mkv",
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".3g2",
        ".mj2",
        ".avi",
        ".divx",
        ".mpg",
        ".mpeg",
    ),
    *(".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".flv", ".f4v", ".asf", ".wmv", ".ogv", ".ogm", ".ivf"),
    *(".h264", ".264", ".avc", ".hevc", ".h265", ".265"),
)

# From the video's range of values to JPEG's (ITU-T T.871, section 7), for Y, Cb and Cr. swscale would
# do it too, but rounds chroma down, which moves every colour by half a step.
_LUMA = [min(max(round((value - 16) * 255 / 219), 0), 255) for value in range(256)]
_CHROMA = [min(max(round((value - 128) * 255 / 224) + 128, 0), 255) for value in range(256)]
_FULL_RANGE = (_LUMA, _CHROMA, _CHROMA)

# libavformat also reads text as ASCII art, images as films of one frame, and playlists, which
# open further files: none of them is a video here.
_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,ivf"

# Before version 19, PyAV otherwise refuses a video whose title is not UTF-8.
_ANY_TITLE = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

# By how much the players turn a video, counterclockwise, because the camera was held so.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    -90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
}

_EBML = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_MP4_BOXES = b"ftyp moov mdat moof mfra sidx styp free skip wide uuid meta pdin".split()


class VideoError(Exception):
    """A video of which no frame is to be used; the message is the reason."""


def is_video(path: Path) -> bool:
    """Whether the name of a file ends like a video's, or the file begins like a webm, mkv, mp4, mov or avi.

    A damaged video is one of those. What cannot be read counts as a video, for the reason to be told.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            start = file.read(12)
    except OSError:
        return True
    # The first boxes of an mp4 or mov; some others have names that begin texts, too.
    is_mp4 = start[4:8] in (b"ftyp", b"moov", b"mdat", b"moof")
    return start[:4] == _EBML or is_mp4 or (start[:4], start[8:]) == (b"RIFF", b"AVI ")


def decode(video: Path) -> Iterator[av.VideoFrame]:
    """Yield every frame of a video file once, in the order of display.

    Only containers of films are tried, and nothing but this file is opened. Decoding takes one thread.

    Args:
        video: the file. It is closed when the iterator is exhausted or deleted.

    Yields:
        The frames as they are stored: not turned, in the video's own pixel format, range of values and size,
        which may change midway.

    Raises:
        VideoError: not a video, no video stream, incomplete, or its frames have more than `MAX_PIXELS`.
    """
    count = 0
    try:
        with _opened(video) as (container, stream):
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise VideoError(f"damaged or truncated after frame {count}")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise VideoError(f"damaged after frame {count}")
                    count += 1
                    yield frame
    except Exception as error:
        raise _reason(error, count) from None
    if not count:
        raise VideoError("no frame in it")


class FrameIndex(NamedTuple):
    """What a video's packets say of its frames, without decoding them.

    Args:
        count: frames that `decode` yields.
        size: width and height of the first one, in pixels, as it is stored.
        times: when each is shown, sorted; None where some have no time of their own.
        keys: the numbers, from 1, of the frames at which decoding can start; empty without times.
        time_base: unit of the times, in seconds.
        rate: frames per second, as the container says or as they are on average.
    """

    count: int
    size: tuple[int, int]
    times: np.ndarray | None
    keys: np.ndarray
    time_base: Fraction
    rate: Fraction


def count_frames(video: Path) -> int:
    """Count the frames that `decode` would yield: see `index_frames`."""
    return index_frames(video).count


def index_frames(video: Path) -> FrameIndex:
    """Read where a video's frames are, but decode the first one only.

    A packet holds one frame that is shown, in any order. Those that only help to decode others are not
    counted: what lies before the start that an mp4's edit list sets, and VP8's invisible frames. (VP9's share
    a packet with a frame that is shown.) Whether all packets can be decoded is not known then.

    Raises:
        VideoError: as `decode`, as far as the first frame and the length of the file tell.
    """
    times, keys = array("q"), array("q")
    has_times = True
    count = 0
    first = None
    try:
        with _opened(video) as (container, stream):
            is_vp8 = stream.codec_context.name == "vp8"
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise VideoError(f"damaged or truncated after frame {count}")
                first = first or next(iter(packet.decode()), None)
                is_shown = packet.size > 0 and not packet.is_discard
                # The bit show_frame: RFC 6386, section 9.1.
                if is_shown and not (is_vp8 and not memoryview(packet)[0] & 0x10):
                    count += 1
                    if packet.pts is None:
                        has_times = False
                    else:
                        times.append(packet.pts)
                        if packet.is_keyframe:
                            keys.append(packet.pts)
            time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
    except Exception as error:
        raise _reason(error, count if first else 0) from None
    if not first:
        raise VideoError("no frame in it")
    in_order = np.sort(np.array(times, dtype=np.int64))
    has_times = has_times and bool((np.diff(in_order) > 0).all())
    starts = np.sort(np.searchsorted(in_order, np.array(keys, dtype=np.int64)) + 1) if has_times else []
    return FrameIndex(
        count,
        (first.width, first.height),
        in_order if has_times else None,
        np.array(starts, dtype=np.int64),
        time_base,
        rate or Fraction(25),
    )


# Decoding so few frames takes less time than to seek and start anew.
_WORTH_A_SEEK = 16


def decode_frames(
    video: Path, index: FrameIndex, numbers: Collection[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield some frames of a video, the same as `decode` would, and decode little else.

    Where the packets' times say which frame is which, decoding starts at the last key frame before a frame.
    Everywhere else, and where the decoder does not return the frames that the packets announce, all frames
    are decoded in sequence.

    Args:
        video: the file.
        index: of `index_frames`.
        numbers: of the frames in the order of display, from 1.

    Yields:
        Number and frame, in the order of display.

    Raises:
        VideoError: see `decode`. What is not decoded may be damaged.
    """
    wanted = sorted(set(numbers))
    if index.times is not None:
        with suppress(_SeekError):
            for number, frame in _decode_from_keys(video, index, wanted):
                yield number, frame
                wanted = wanted[1:]
    if not wanted:
        return
    number = 0
    with closing(decode(video)) as frames:
        for number, frame in enumerate(frames, start=1):
            if number == wanted[0]:
                yield number, frame
                wanted = wanted[1:]
                if not wanted:
                    return
    raise VideoError(f"has only {number} frames that can be decoded, of {index.count}")


class _SeekError(Exception):
    """After a seek the decoder's frames are not those of the index."""


def _decode_from_keys(
    video: Path, index: FrameIndex, wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    number = 0  # of the frame decoded last; None after a seek
    try:
        with _opened(video) as (container, stream):
            frames = _intact_frames(container, stream)
            for target in wanted:
                key = index.keys[: np.searchsorted(index.keys, target, "right")][-1:]
                if key.size and int(key[0]) - number > _WORTH_A_SEEK:
                    container.seek(int(index.times[key[0] - 1]), stream=stream)
                    frames = _intact_frames(container, stream)
                    number = None
                while number != target:
                    frame = next(frames, None)
                    if frame is None or frame.pts is None:
                        raise _SeekError
                    found = int(np.searchsorted(index.times, frame.pts)) + 1
                    is_known = found <= index.count and index.times[found - 1] == frame.pts
                    if number is None:
                        # Frames before the key frame, as in an open GOP, need frames before the seek.
                        if not frame.key_frame or found not in index.keys:
                            continue
                        number = found - 1
                    if not is_known or found != number + 1 or found > target:
                        raise _SeekError
                    number = found
                yield target, frame
    except (av.FFmpegError, VideoError):
        raise _SeekError from None  # decoding in sequence says what is wrong, if it meets it


def _intact_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        for frame in packet.decode():
            if packet.is_corrupt or frame.is_corrupt:
                raise _SeekError
            yield frame


@contextmanager
def _opened(video: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video that is as long as it says; its frames are to be decoded by one thread."""
    with open_regular(video) as file:
        check_length(file)
        file.seek(0)
        whitelist = {"format_whitelist": _CONTAINERS}
        with av.open(file, container_options=whitelist, **_ANY_TITLE) as container:
            stream = container.streams.best("video")
            # The cover of a song is a video stream to libavformat.
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise VideoError("no video stream")
            if stream.codec_context is None:
                raise VideoError("no decoder for its video stream")
            check_pixels(stream.codec_context.width, stream.codec_context.height)
            # For streams whose size changes, or is not known before a frame is decoded.
            stream.codec_context.options = _LIMIT
            # Programs share the cores among several videos.
            stream.codec_context.thread_count = 1
            yield container, stream


def _reason(error: Exception, count: int) -> VideoError:
    """What is wrong with a video of which `count` frames could be read."""
    if isinstance(error, VideoError):
        return error
    if isinstance(error, av.FFmpegError):
        if not count:
            return VideoError("not a video, or damaged at its beginning")
        return VideoError(f"damaged or truncated after frame {count} ({error.strerror})")
    if isinstance(error, OSError):
        return VideoError(f"cannot be read ({error.strerror})")
    # Whatever bytes can make PyAV raise; the file is at fault.
    return VideoError(f"cannot be decoded after frame {count} ({_cause(error)})")


def check_length(file: BinaryIO) -> None:
    """Compare a file's length with what its container declares.

    The demuxers take a file that ends too early for one that ends: in a truncated webm every
    remaining frame decodes without an error. The containers are nested boxes that begin with their
    lengths, so following the outer ones to the end tells (webm and mkv: RFC 8794; mp4 and mov:
    ISO/IEC 14496-12; avi: RIFF). Containers of other kinds are not checked.

    Args:
        file: at its beginning.

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
        end = 8 + int.from_bytes(start[4:], "little")
    else:
        return
    if end > length:
        raise VideoError(f"truncated: {length} bytes of at least {end}")


def check_pixels(width: int, height: int) -> None:
    """Refuse frames that are too large to be meant.

    Raises:
        VideoError: so many pixels are more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise VideoError(f"frames of {width} x {height} pixels, which is more than {MAX_PIXELS}")


def resample(frames: Iterator[av.VideoFrame], fps: Fraction) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield frames with the number of instants 0, 1/fps, 2/fps, ... at which each is on the screen.

    A webm rounds times to milliseconds: being late by one, a frame is still in time.

    Args:
        frames: in the order of display, at least one, such as those of `decode`.
        fps: frames per second.

    Yields:
        Each frame, and how often it is shown: 0 where the next one follows before an instant.

    Raises:
        VideoError: a frame has no time, is shown before the one before it, or more than `MAX_REPEATS` times.
    """

    def seconds(frame: av.VideoFrame) -> Fraction:
        if frame.pts is None or frame.time_base is None:
            raise VideoError("a frame without a time, which --fps needs")
        return frame.pts * frame.time_base

    frame = next(frames)
    start = time = seconds(frame)
    shown = 0
    for number, following in enumerate(itertools.chain(frames, [None]), start=1):
        end = seconds(following) if following else time + (frame.duration or 0) * frame.time_base
        if end < time:
            raise VideoError(f"the time goes back after frame {number}, which --fps cannot follow")
        # At least one of the first, should the container not know how long it lasts.
        upto = max(shown, 1, math.ceil((end - start - Fraction(1, 1000)) * fps))
        if upto - shown > MAX_REPEATS:
            raise VideoError(
                f"--fps would repeat frame {number} {upto - shown} times (at most {MAX_REPEATS}); "
                f"it is shown for {float(end - time):g} s"
            )
        yield frame, upto - shown
        frame, time, shown = following, end, upto


def to_image(frame: av.VideoFrame, width: int, height: int, scaler: VideoReformatter) -> Image.Image:
    """Scale a frame, bicubically, to an upright image with the colours that JPEG has.

    JPEG's colours are BT.601. Going there directly, not by way of RGB, saves half of the work after
    decoding, and a rounding.

    Args:
        frame: of `decode`.
        width: in pixels, before the frame is turned as players turn it.
        height: likewise.
        scaler: the same for all frames of a video, which saves preparing it for each.

    Returns:
        YCbCr, 8 bits, full range, the chroma as large as the luma. Width and height are exchanged if
        the frame is turned by a quarter.

    Raises:
        VideoError: it cannot be scaled.
    """
    try:
        scaled = scaler.reformat(
            frame,
            width,
            height,
            format="yuv444p",
            dst_color_range=frame.color_range or ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU601,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
    except Exception as error:  # of many kinds, for pixel formats that cannot be converted or no memory
        raise VideoError(f"cannot be scaled to {width} x {height} ({_cause(error)})") from None
    size = width, height
    channels = [Image.frombuffer("L", size, p, "raw", "L", p.line_size, 1) for p in scaled.planes]
    if frame.color_range != ColorRange.JPEG:
        channels = [image.point(table) for image, table in zip(channels, _FULL_RANGE, strict=True)]
    image = Image.merge("YCbCr", channels)
    return image.transpose(_TURNS[frame.rotation]) if frame.rotation in _TURNS else image


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _webm_end(file: BinaryIO, length: int) -> int:
    position, end = 0, length
    while position < end:
        file.seek(position)
        # An identifier and a size, each as long as its leading zero bits tell. A header that the end
        # of the file cuts short is filled up, which takes the position beyond that end.
        head = file.read(12).ljust(12, b"\xff")
        size_at = 9 - head[0].bit_length()
        body_at = size_at + 9 - head[size_at].bit_length() if size_at <= 4 else 0
        if not size_at < body_at <= size_at + 8:
            raise VideoError(f"damaged at byte {position}")
        unknown = (1 << 7 * (body_at - size_at)) - 1
        size = int.from_bytes(head[size_at:body_at], "big") & unknown
        position += body_at
        # Into the segment, and into whatever was written before its size was known; past the rest.
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
        # 0 means "to the end of the file"; what is not a box may follow the last one.
        if size < 8 or kind not in _MP4_BOXES:
            break
        position += size
    return position
