"""Compare this repository's fast forms with the plain ones, on this machine, in one run.

    python tools/benchmark.py
    python tools/benchmark.py --only inference --json inference.json
    python tools/benchmark.py --only startup
    CUDA_VISIBLE_DEVICES= python tools/benchmark.py

It measures the GPU if there is one; the last command the CPU even so.

The plain model is the repository's own in float32, eager, NCTHW, with PyTorch's own handling of memory. The
plain loader is TSN-pytorch's: PIL images, whole frames resized, stacked to an array, to a float tensor,
normalised channel by channel. Each form is compared with the plain one of the same process; they take
turns, and the ratio is the median over the rounds of the ratios within a round.

On a GPU the plain model's convolutions are in TF32, PyTorch's default, which evaluation does without.

Multiply-adds are those of convolutions and classifier; a training step has three times as many. They
are also given as a share of what the machine does in products of square matrices of the form's
precision, the fastest of three sizes in the same run. Memory is what a call takes at its peak
beyond what the process had before.
"""

import argparse
import gc
import io
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import PIL
import torch
from common import check_output, whole_number
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from dataset import ClipSampler, VideoDataSet, evaluation_batches, make_loader
from distributed import World, start
from engine import autocast, evaluate, to_device, to_input
from errors import run_program
from main import make_optimizer
from models import TemporalModel
from opts import Parser, cores
from speed import (
    compile_model,
    deploy,
    float32_convolutions,
    has_bf16,
    keep_freed_memory,
    to_channels_last,
)
from transforms import (
    GroupCenterCrop,
    GroupMultiScaleCrop,
    GroupRandomHorizontalFlip,
    GroupScale,
    evaluation_transform,
    training_transform,
)

MODELS = {"GST": 2, "GST-Large": 1}  # name -> beta
NUM_CLASS = 174
FRAME_SIZES = {"v1": (176, 100), "v2": (427, 240)}
PARTS = ("loader", "inference", "training", "end-to-end")
V2_VIDEOS = 220_847
PLAIN = "plain: float32, eager, NCTHW"
TSN_LOADER = "plain: TSN's loader"

Row = dict[str, Any]


def main() -> None:
    args = parse_args()
    if args.json:
        check_output(args.json, "--json")
    world = start(None)
    device = world.device
    torch.manual_seed(0)
    rates = {dtype: matmul_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    machine = {
        "device": world.describe(args.batch_size or default_batch_size(device)),
        "bf16 instructions": has_bf16(device),
        "GMAC/s float32": rates[torch.float32] / 1e9,
        "GMAC/s bf16": rates[torch.bfloat16] / 1e9,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }
    for name, value in machine.items():
        print(f"{name}: {value:.0f}" if isinstance(value, float) else f"{name}: {value}")
    rows: list[Row] = []
    for part in args.only:
        if part in ("inference", "training"):
            compare_models = compare_inference if part == "inference" else compare_training
            for name, beta in MODELS.items():
                for frames in args.frames:
                    rows += compare_models(
                        f"{part}, {name}, {frames} frames", beta, frames, args, device, rates
                    )
        elif part == "loader":
            rows += compare_loaders(args)
        elif part == "startup":
            measure_start()
            measure_worker_memory()
        else:
            rows += compare_end_to_end(args, world)
    print_table(rows)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    count = whole_number(1, 1000)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*PARTS, "startup"),
        default=PARTS,
        help="measure these (default: all but startup)",
    )
    parser.add_argument(
        "--frames", nargs="+", type=count, default=[8, 16], metavar="N", help="frames of the models' clips"
    )
    parser.add_argument(
        "--rounds", type=count, default=7, metavar="N", help="times that each form is measured"
    )
    parser.add_argument(
        "-b",
        "--batch-size",
        type=count,
        metavar="N",
        help="clips in a batch (default: 2 on a CPU, on a GPU 24 in training, and in inference the best "
        "of 8, 16, 32, 64, 128, for each form; 8 for the loaders, 4 or 64 end to end)",
    )
    parser.add_argument(
        "--compile_training",
        action="store_true",
        help="measure compiled training on a CPU too, which takes a minute for each model",
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers, those of each round too")
    return parser.parse_args()


def default_batch_size(device: torch.device) -> int:
    return 2 if device.type == "cpu" else 24


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds per second of the fastest of three sizes of square matrices."""
    rates = []
    for size in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        times = [measure(lambda a=a, b=b: a @ b, device) for _ in range(5)]
        rates.append(size**3 / statistics.median(times))
    return max(rates)


def measure(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_memory(run: Callable[[], Any], device: torch.device, keep: bool) -> float:
    """GB that a call takes at its peak beyond what was taken before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    keep_freed_memory(False)
    keep_freed_memory(keep)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A size of this process in GB, from the line of this name."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) * 1024 / 1e9


def compare(
    what: str,
    forms: dict[str, Callable[[], Any]],
    clips: dict[str, int],
    rounds: int,
    device: torch.device,
    with_memory: bool = True,
) -> list[Row]:
    """Measure forms in turns.

    Args:
        what: name of the comparison.
        forms: the plain one first. Only the others keep freed memory (see `speed.keep_freed_memory`).
        clips: how many a call of each form computes.
        rounds: how often each form is measured.
        device: where they run.
        with_memory: whether to measure its peak, too.
    """
    plain = next(iter(forms))
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(rounds):
        for form, run in forms.items():
            keep_freed_memory(form != plain)
            if number == 0:
                run()  # compiles, and warms up
            run()  # fills the memory that is kept
            seconds[form].append(measure(run, device) / clips[form])
    rows = []
    for form, run in forms.items():
        ratios = [a / b for a, b in zip(seconds[plain], seconds[form], strict=True)]
        row: Row = {"what": what, "form": form, "clips": clips[form]}
        row |= {"seconds per clip": statistics.median(seconds[form]), "ratio": statistics.median(ratios)}
        if with_memory:
            row["peak GB"] = peak_memory(run, device, form != plain)
        rows.append(row | {"rounds": seconds[form]})
        print(
            f"{what}: {form}: {1e3 * row['seconds per clip']:.1f} ms a clip, {row['ratio']:.2f} x", flush=True
        )
    return rows


def add_rates(rows: list[Row], macs: float, rates: dict[torch.dtype, float]) -> list[Row]:
    """Add multiply-adds per second, and their share of the rate in the form's precision."""
    for row in rows:
        rate = macs / row["seconds per clip"]
        best = rates[torch.bfloat16 if "bf16" in row["form"] else torch.float32]
        row |= {"GMAC/s": rate / 1e9, "share": rate / best}
    return rows


def count_macs(model: TemporalModel, frames: int) -> float:
    """Multiply-adds of a forward pass of one clip."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, frames, 3, 224, 224, device=model.base_model.conv1.weight.device))
    return counter.get_total_flops() / 2


def compare_inference(
    what: str,
    beta: int,
    frames: int,
    args: argparse.Namespace,
    device: torch.device,
    rates: dict[torch.dtype, float],
) -> list[Row]:
    plain = TemporalModel(NUM_CLASS, frames, beta=beta).to(device).eval()
    macs = count_macs(plain, frames)
    models = {
        PLAIN: plain,
        "default: float32, deployed": deploy(plain, device),
        "bf16, deployed": deploy(plain, device, torch.bfloat16),
        "bf16, deployed, compiled (--fast)": deploy(plain, device, torch.bfloat16),
    }
    compile_model(models["bf16, deployed, compiled (--fast)"])
    sizes = [args.batch_size or 2]
    if device.type == "cuda" and not args.batch_size:
        sizes = [8, 16, 32, 64, 128]

    def runner(model: TemporalModel, size: int) -> Callable[[], torch.Tensor]:
        clips = torch.randn(size, frames, 3, 224, 224, device=device)

        def run() -> torch.Tensor:
            with torch.inference_mode(), nullcontext() if model is plain else float32_convolutions():
                return model(clips)

        return run

    def seconds_per_clip(model: TemporalModel, size: int) -> float:
        run = runner(model, size)
        run()
        run()
        return measure(run, device) / size

    clips = {form: min(sizes, key=partial(seconds_per_clip, model)) for form, model in models.items()}
    forms = {form: runner(model, clips[form]) for form, model in models.items()}
    return add_rates(compare(what, forms, clips, args.rounds, device), macs, rates)


def compare_training(
    what: str,
    beta: int,
    frames: int,
    args: argparse.Namespace,
    device: torch.device,
    rates: dict[torch.dtype, float],
) -> list[Row]:
    size = args.batch_size or default_batch_size(device)
    clips = torch.randint(0, 256, (size, frames, 224, 224, 3), dtype=torch.uint8)
    labels = torch.randint(0, NUM_CLASS, (size,))
    if device.type == "cuda":
        clips, labels = clips.pin_memory(), labels.pin_memory()

    def runner(amp: str = "off", is_fast: bool = True, compiled: bool = False) -> Callable[[], None]:
        torch.manual_seed(0)
        model = TemporalModel(NUM_CLASS, frames, beta=beta).to(device).train()
        if is_fast:
            to_channels_last(model, device)
        if compiled:
            compile_model(model)
        optimizer = make_optimizer(model, Namespace(lr=0.001, momentum=0.9, weight_decay=3e-4))
        for group in optimizer.param_groups if not is_fast else ():
            group["fused"] = False

        def run() -> None:
            moved, target = to_device([clips, labels], device)
            optimizer.zero_grad()
            with autocast(amp, device):
                logits = model(to_input(moved, model)).float()
            functional.cross_entropy(logits, target).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
            optimizer.step()

        return run

    forms = {
        PLAIN: runner(is_fast=False),
        "float32, channels last": runner(),
        "bf16, channels last": runner("bf16"),
    }
    if device.type == "cuda" or args.compile_training:
        forms["bf16, channels last, compiled"] = runner("bf16", compiled=True)
    macs = 3 * count_macs(TemporalModel(NUM_CLASS, frames, beta=beta), frames)
    return add_rates(compare(what, forms, dict.fromkeys(forms, size), args.rounds, device), macs, rates)


class TSNClips(VideoDataSet):
    """Clips made the way of TSN-pytorch: frames * 3 x height x width, float32, normalised in the loader."""

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        record, rng = self.record(key), np.random.default_rng((self.seed, key))
        numbers = self.sample_indices(record.num_frames, rng)
        frames = [Image.open(self.frame_path(record, number)).convert("RGB") for number in numbers]
        label = record.label
        for transform in self.transform:
            frames, label = transform(frames, label, rng)
        stacked = np.concatenate([np.array(frame) for frame in frames], axis=2)
        clip = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (values * len(frames) for values in (TemporalModel.input_mean, TemporalModel.input_std))
        for channel, m, s in zip(clip, mean, std, strict=True):
            channel.sub_(m).div_(s)
        return clip, label


def make_videos(root: Path, size: tuple[int, int], videos: int, frames: int = 16) -> Path:
    """Write frame folders of smooth noise that drifts, and their list, which is returned."""
    rng = np.random.default_rng(0)
    width, height = size
    lines = []
    for video in range(videos):
        folder = root / f"video{video}"
        folder.mkdir(parents=True)
        coarse = rng.integers(0, 256, (height // 8 + 2, (width + frames) // 8 + 2, 3), dtype=np.uint8)
        scene = Image.fromarray(coarse).resize((width + frames, height + 8), Image.Resampling.BICUBIC)
        for number in range(frames):
            frame = np.asarray(scene.crop((number, 0, number + width, height))).astype(int)
            frame = np.clip(frame + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
            Image.fromarray(frame).save(folder / f"{number + 1:05d}.jpg", quality=85)
        lines.append(f"video{video} {frames} {video % NUM_CLASS}\n")
    path = root / "list.txt"
    path.write_text("".join(lines))
    return path


def open_clips(kind: type[VideoDataSet], videos: Path, transform: Any, is_training: bool) -> VideoDataSet:
    return kind(
        videos.parent,
        videos,
        8,
        "{:05d}.jpg",
        transform=transform,
        random_shift=is_training,
        num_class=NUM_CLASS,
    )


def compare_loaders(args: argparse.Namespace) -> list[Row]:
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    batch_size = args.batch_size or 8
    count, rows = 3 * batch_size, []
    for name, size in FRAME_SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            videos = make_videos(Path(folder), size, count)
            for purpose, is_training in (("evaluation", False), ("training", True)):
                steps: Sequence[Any] = (GroupScale(256), GroupCenterCrop(224))
                fast: Any = evaluation_transform(256, 224)
                if is_training:
                    steps = (GroupMultiScaleCrop(224), GroupRandomHorizontalFlip({}, []))
                    fast = training_transform(224, {}, [])
                batches = evaluation_batches(count, batch_size)
                plain_loader = DataLoader(
                    open_clips(TSNClips, videos, steps, is_training), batch_sampler=batches
                )
                fast_loader = make_loader(open_clips(VideoDataSet, videos, fast, is_training), batches, 0)
                forms = {
                    TSN_LOADER: lambda loader=plain_loader: list(loader),
                    "fast": lambda loader=fast_loader: list(loader),
                }
                what = f"loader, one core, {name} ({size[0]} x {size[1]}), {purpose}"
                rows += compare(what, forms, dict.fromkeys(forms, count), args.rounds, cpu, with_memory=False)
    torch.set_num_threads(threads)
    return rows


def compare_end_to_end(args: argparse.Namespace, world: World) -> list[Row]:
    device = world.device
    batch_size = args.batch_size or (4 if device.type == "cpu" else 64)
    count = 8 * batch_size
    model = TemporalModel(NUM_CLASS, 8).to(device).eval()
    batches = evaluation_batches(count, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        videos = make_videos(Path(folder), FRAME_SIZES["v1"], count)
        steps = (GroupScale(256), GroupCenterCrop(224))
        plain_set = open_clips(TSNClips, videos, steps, is_training=False)
        fast_set = open_clips(VideoDataSet, videos, evaluation_transform(256, 224), is_training=False)
        plain_loader = DataLoader(plain_set, batch_sampler=batches, num_workers=cores())

        def run_plain() -> float:
            hits = 0
            with torch.inference_mode():
                for clips, labels in plain_loader:
                    hits += (model(clips.to(device)).argmax(1).cpu() == labels).sum().item()
            return hits / count

        def run_fast(amp: str) -> float:
            loader = make_loader(fast_set, batches, cores())
            with redirect_stdout(io.StringIO()):  # its log
                return evaluate(loader, model, world, amp, count).prec1

        forms = {
            TSN_LOADER + ", float32, eager, NCTHW": run_plain,
            "default": lambda: run_fast("off"),
            "--amp bf16": lambda: run_fast("bf16"),
        }
        what = f"end to end, {count} clips of v1's size, GST, 8 frames"
        return compare(
            what, forms, dict.fromkeys(forms, count), min(3, args.rounds), device, with_memory=False
        )


def measure_start() -> None:
    """Time reading and checking a list of v2's size, on a tree with each video's first and last frame."""
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for video in range(V2_VIDEOS):
            home = Path(folder) / str(video)
            home.mkdir()
            for number in (1, 40):
                (home / f"{number:05d}.jpg").touch()
            lines.append(f"{video} 40 {video % NUM_CLASS}\n")
        path = Path(folder) / "list.txt"
        path.write_text("".join(lines))
        began = time.perf_counter()
        videos = open_clips(VideoDataSet, path, None, is_training=True)
        read = time.perf_counter()
        missing = videos.find_missing()
        checked = time.perf_counter()
    print(f"start-up, {len(videos)} videos, {len(missing)} missing, tree in the file cache: ", end="")
    print(f"list read in {read - began:.1f} s, folders checked in {checked - read:.1f} s", flush=True)


def measure_worker_memory() -> None:
    """Tell the memory of a loader's worker, with few and with many records."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_videos(Path(folder), FRAME_SIZES["v1"], 24)
        lines = path.read_text().splitlines(keepends=True)
        for count in (2_000, V2_VIDEOS):
            path.write_text("".join(lines[number % len(lines)] for number in range(count)))
            videos = open_clips(VideoDataSet, path, training_transform(224, {}, []), is_training=True)
            loader = make_loader(videos, ClipSampler(count, 8, seed=0), 1)
            batches, sizes = iter(loader), []
            for batch in range(250):
                next(batches)
                if batch in (20, 249):
                    worker = multiprocessing.active_children()[0].pid
                    lines_of = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
                    private = (line.split()[1] for line in lines_of if line.startswith("Private_Dirty"))
                    sizes.append(int(next(private)) * 1024 / 1e6)
            after = f"{sizes[0]:.0f} MB after 21 batches of 8, {sizes[1]:.0f} MB after 250"
            print(f"a worker's own memory, {count} records: {after}", flush=True)
            del batches, loader


def print_table(rows: list[Row]) -> None:
    if not rows:
        return
    print("\n| | form | batch | ms a clip | plain / form | GMAC/s | of the matmul rate | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["what"], row["form"], str(row["clips"]), f"{1e3 * row['seconds per clip']:.1f}"]
        cells.append(f"{row['ratio']:.2f}")
        cells.append(f"{row['GMAC/s']:.0f}" if "GMAC/s" in row else "")
        cells.append(f"{100 * row['share']:.0f} %" if "share" in row else "")
        cells.append(f"{row['peak GB']:.2f}" if "peak GB" in row else "")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    run_program(main)
