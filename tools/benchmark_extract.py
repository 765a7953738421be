"""Compare extract_frames.py with ffmpeg, one process per core, on the same videos in one run.

    python tools/benchmark_extract.py

needs Debian's package ffmpeg, or another. Without --videos it makes clips of Something-v2's kind:
427 x 240 VP9 at 12 frames a second, 36 to 54 frames, about 100 KB each. Both make 256 x 256 JPEGs
with the same quantisation; ffmpeg runs TRN-pytorch's command. They take turns; the times are from
the start of the first process to the end of the last, so they contain what starting costs.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np

from utils.cli import Parser, UserError, number_type, run_program
from utils.pool import cores

_TOOL = Path(__file__).with_name("extract_frames.py")


def main() -> None:
    args = parse_args()
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg: not found; install it to compare with it")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        videos = Path(args.videos) if args.videos else make_clips(work / "videos", args.clips)
        count = sum(path.is_file() for path in videos.iterdir())
        seconds: dict[str, list[tuple[float, float]]] = {}
        for number in range(args.rounds):
            for program, run in (("ffmpeg", run_ffmpeg), ("extract_frames.py", run_tool)):
                seconds.setdefault(program, []).append(measure(run, videos, work / "frames", args.workers))
                wall, cpu = seconds[program][-1]
                print(f"round {number + 1}: {program}: {wall:.2f} s, {cpu:.2f} s of the cores", flush=True)
        # The last run's, which was extract_frames.py.
        jpegs = [path.stat().st_size for path in (work / "frames").rglob("*.jpg")]
    print(f"\n{count} videos, {len(jpegs)} frames of {statistics.mean(jpegs) / 1e3:.1f} KB, ", end="")
    print(f"{args.workers} processes")
    print("\n| | clips/s | seconds of one core per clip |\n|---|---|---|")
    for program, runs in seconds.items():
        wall, cpu = (statistics.median(times) / count for times in zip(*runs, strict=True))
        print(f"| {program} | {1 / wall:.1f} | {cpu:.3f} |")
    ratios = [ff[0] / ours[0] for ff, ours in zip(*seconds.values(), strict=True)]
    print(f"\nextract_frames.py / ffmpeg, median of {args.rounds}: {statistics.median(ratios):.2f} x")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--videos", metavar="DIR", help="videos to use instead of made ones")
    source.add_argument(
        "--clips",
        metavar="N",
        type=number_type(int, 1, 10000),
        default=60,
        help="number of clips to make (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=number_type(int, 1, 100),
        default=5,
        help="how often each program runs (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=number_type(int, 1, 1024),
        default=cores(),
        help="processes (default: one per core, here %(default)s)",
    )
    return parser.parse_args()


def make_clips(folder: Path, count: int) -> Path:
    """Write clips of a disc that moves before a background, both textured, with a camera's noise."""
    folder.mkdir()
    rows, columns = np.mgrid[:160, :160] - 80
    disc = (rows**2 + columns**2 < 75**2)[..., None]
    for number in range(count):
        rng = np.random.default_rng(number)
        background = 128 + 45 * _texture(rng, 400, 640)
        thing = np.array([190, 140, 110]) + 30 * _texture(rng, 160, 160)
        frames = int(rng.integers(36, 55))
        places = np.clip(100 + rng.normal(0, 6, (frames, 2)).cumsum(axis=0), 0, (80, 260)).astype(int)
        camera = np.clip(60 + rng.normal(0, 1.2, (frames, 2)).cumsum(axis=0), 0, (160, 213)).astype(int)
        with av.open(str(folder / f"{number + 1}.webm"), "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=12)
            stream.width, stream.height, stream.pix_fmt = 427, 240, "yuv420p"
            stream.options = {"crf": "34", "b": "0", "deadline": "realtime", "cpu-used": "6"}
            for (top, left), (y, x) in zip(camera, places, strict=True):
                image = background[top : top + 240, left : left + 427].copy()
                image[y : y + 160, x : x + 160] = np.where(disc, thing, image[y : y + 160, x : x + 160])
                image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return folder


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colour noise with about the spectrum of photographs, height x width x 3, mean 0, deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    grey, *colours = (
        np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**1.2, s=(height, width))
        for _ in range(3)
    )
    texture = np.stack([grey, *(0.7 * grey + 0.3 * colour for colour in colours)], axis=-1)
    return (texture - texture.mean()) / texture.std()


def measure(
    run: Callable[[Path, Path, int], None], videos: Path, out: Path, workers: int
) -> tuple[float, float]:
    """Run one of the programs into a new folder; return the seconds it took, and those of the cores."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # Otherwise one would wait for the other's files to reach the disk.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    run(videos, out, workers)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_tool(videos: Path, out: Path, workers: int) -> None:
    """extract_frames.py with its defaults."""
    command = [sys.executable, _TOOL, "--videos", videos, "--out", out, "--workers", str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run_ffmpeg(videos: Path, out: Path, workers: int) -> None:
    """TRN-pytorch's command for each video, as many at a time as processes, with one thread each."""

    def extract(video: Path) -> None:
        folder = out / video.stem
        folder.mkdir(parents=True)
        command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", video, "-threads", "1"]
        command += ["-vf", "scale=256:256", "-q:v", "0", folder / "%06d.jpg"]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(extract, sorted(videos.iterdir())))


if __name__ == "__main__":
    run_program(main)
