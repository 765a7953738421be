"""Measure throughput of the optimised variants against a baseline, in one run.

    python tools/benchmark.py
    python tools/benchmark.py --only inference --json inference.json
    python tools/benchmark.py --only startup
    CUDA_VISIBLE_DEVICES= python tools/benchmark.py

The GPU is measured if there is one; the last command measures the CPU regardless. A default run takes at
most ten minutes on two cores with AVX2, and each section at most three minutes by itself: a section
has a time budget, and each of its comparisons stops after 7 rounds or when its part of the budget is
used, but not before 2 rounds. The table tells the number; --rounds sets it. Rows appear as they are
measured, and Ctrl-C keeps those that are there.

The baseline model is this repository's own in float32, eager, NCTHW. The baseline loader is TSN-pytorch's:
PIL images, whole frames resized, stacked to an array, to a float tensor, normalised channel by channel.
Baselines run in a process of their own, with the system's default memory allocation; the variants run in
the main process, set up as main.py and test_models.py do it. In each round baseline and variants
are measured one after the other; the speed-up is the median over the rounds of the ratios within a
round. Each of them warms up once before the rounds; on a GPU, which the two processes share, once more
in each round.

Precisions that the device has no instructions for are left out, since emulation is many times slower
than float32 (--emulated measures them). A CPU's capability can be limited as PyTorch and oneDNN do it:
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2. On a GPU the baseline's convolutions are in TF32,
PyTorch's default, which evaluation does without.

Exported models (tools/export.py) are measured on the CPU, in float32; ONNX is left out where onnxruntime is
not installed.

Multiply-adds (MAC) are those of convolutions and classifier; a training step has three times as many. They
are also given as a share of the throughput of square matrix products in the variant's precision, the
fastest of several sizes in the same run. Memory is the peak of a call beyond what was in use before it.
"""

import argparse
import ctypes
import gc
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import ClipLoader, ClipSampler, VideoDataSet, evaluation_batches
from engine import evaluate, to_device, train_one_epoch
from frames.resize import resize_clips
from inference.export import FORMATS, Exported
from inference.fuse import compile_model, float32_convolutions, fuse, to_channels_last
from models import TemporalModel, multiply_adds
from training.optim import make_optimizer
from transforms import (
    GroupCenterCrop,
    GroupMultiScaleCrop,
    GroupRandomHorizontalFlip,
    GroupScale,
    evaluation_transform,
    training_transform,
)
from utils.cli import Parser, UserError, number_type, run_program, uninterrupted
from utils.distributed import World, init_distributed
from utils.files import check_writable_file, write_texts
from utils.metrics import ClipMeters, LossWatch
from utils.pool import cores, worker_pool
from utils.precision import DTYPES, has_instructions

MODELS = {"GST": 2, "GST-Large": 1}  # name -> beta
NUM_CLASS = 174
FRAME_SIZES = {"v1": (176, 100), "v2": (427, 240)}
SECONDS = {
    "loader": 60,
    "inference": 130,
    "training": 120,
    "end-to-end": 90,
    "export": 60,
}  # a section's budget
WITH_MODELS = ("inference", "training", "end-to-end")
MIN_ROUNDS, MAX_ROUNDS = 2, 7
V2_VIDEOS = 220_847
BASELINE = "baseline: float32, eager, NCTHW"
TSN_LOADER = "baseline: TSN's loader"
COLUMNS = {  # title -> width
    "": 44,
    "variant": 42,
    "batch": 5,
    "ms a clip": 9,
    "speed-up": 8,
    "GMAC/s": 6,
    "of the matmul rate": 18,
    "peak GB": 7,
    "rounds": 6,
}

Row = dict[str, Any]


class Variant(NamedTuple):
    """What is measured: a call, and the number of clips that it computes."""

    run: Callable[[], Any]
    clips: int


class Comparison(NamedTuple):
    """A baseline and its variants.

    Attributes:
        what: its name.
        builders: name -> what makes the variant; the baseline is the first, and is made in another process.
        macs: multiply-adds of a clip; 0 if throughput is not reported in them.
        with_memory: whether to measure the peak of a call, too.
    """

    what: str
    builders: dict[str, Callable[[], Variant]]
    macs: float = 0.0
    with_memory: bool = False


def main() -> int:
    args = parse_args()
    if args.json:
        check_writable_file(args.json, "--json")
    device = init_distributed(None).device
    status = 0
    benchmark = Benchmark(args, device)
    try:
        benchmark.describe()
        for section in args.only:
            if section == "startup":
                measure_start()
                measure_worker_memory()
            else:
                benchmark.run_section(section)
    except KeyboardInterrupt:
        status = 130
        state = "the rows above were measured before" if benchmark.rows else "nothing had been measured"
        tqdm.write(f"interrupted: {state}")
    finally:
        benchmark.close()
    if args.json:
        content = {"machine": benchmark.machine, "rows": benchmark.rows}
        write_texts({Path(args.json): json.dumps(content, indent=2) + "\n"})
    return status


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    count = number_type(int, 1, 1000)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*SECONDS, "startup"),
        default=list(SECONDS),
        help="measure these sections (default: all but startup)",
    )
    parser.add_argument(
        "--frames", nargs="+", type=count, default=[8], metavar="N", help="frames of the models' clips"
    )
    parser.add_argument(
        "--rounds",
        type=count,
        metavar="N",
        help="rounds of each comparison, however long they take (default: "
        f"{MIN_ROUNDS} to {MAX_ROUNDS}, by the section's time budget)",
    )
    parser.add_argument(
        "-b",
        "--batch-size",
        type=count,
        metavar="N",
        help="clips in a batch (default: 2 on a CPU, on a GPU 24 in training, and in inference the best "
        "of 8, 16, 32, 64, 128, for each variant; 8 for the loaders, 4 or 64 end to end)",
    )
    parser.add_argument(
        "--emulated",
        action="store_true",
        help="measure bf16 even where the device has no instructions for it, which takes many minutes",
    )
    parser.add_argument(
        "--compile_training",
        action="store_true",
        help="measure compiled training on a CPU too, where compilation takes a minute for each model",
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers, those of each round too")
    return parser.parse_args()


class Benchmark:
    """A run: its rows, which are printed as they are measured, and the baseline's process."""

    def __init__(self, args: Namespace, device: torch.device) -> None:
        self.args = args
        self.device = device
        self.baseline = BaselineProcess()
        self.rows: list[Row] = []
        self.machine: dict[str, Any] = {}
        self.rates: dict[torch.dtype, float] = {}
        sections = [section for section in args.only if section in SECONDS]
        self.bar = tqdm(
            total=sum(SECONDS[section] for section in sections),
            disable=None if sections else True,
            smoothing=0,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left",
        )

    def describe(self) -> None:
        """Say what is measured with, and what is left out."""
        if self.device.type == "cpu":
            name = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        else:
            name = torch.cuda.get_device_name(self.device)
        has_bf16 = has_instructions(self.device, "bf16")
        self.machine |= {"device": name, "bf16 instructions": has_bf16}
        self.machine |= {"torch": torch.__version__, "pillow": PIL.__version__}
        if {"inference", "training"} & set(self.args.only):
            for amp in precisions(self.device, self.args.emulated):
                self.rates[DTYPES[amp]] = matmul_rate(self.device, DTYPES[amp])
                self.machine[f"GMAC/s {'float32' if amp == 'off' else amp}"] = self.rates[DTYPES[amp]] / 1e9
        for key, value in self.machine.items():
            tqdm.write(f"{key}: {value:.0f}" if isinstance(value, float) else f"{key}: {value}")
        if set(WITH_MODELS) & set(self.args.only) and not has_bf16 and not self.args.emulated:
            here = "this CPU" if self.device.type == "cpu" else "this GPU"
            tqdm.write(f"bf16 is left out: {here} has no instructions for it (--emulated measures it anyway)")

    def run_section(self, section: str) -> None:
        """Measure a section's comparisons, each in its part of what is left of the section's budget."""
        end, bar_start = time.perf_counter() + SECONDS[section], self.bar.n
        with tempfile.TemporaryDirectory() as folder:
            comparisons = SECTIONS[section](self.args, self.device, Path(folder))
            weight = SECONDS[section] / len(comparisons)
            for number, comparison in enumerate(comparisons):
                self.bar.set_description(comparison.what, refresh=False)
                seconds = (end - time.perf_counter()) / (len(comparisons) - number)
                self.compare(comparison, seconds, weight)
                self.show_progress(bar_start + (number + 1) * weight)

    def compare(self, comparison: Comparison, budget: float, weight: float) -> None:
        """Measure a comparison's variants in turns.

        Args:
            comparison: what.
            budget: seconds that all rounds and their preparation may take, if --rounds says nothing.
            weight: its part of the progress bar.
        """
        began, bar_start = time.perf_counter(), self.bar.n
        plain, *others = comparison.builders
        clips = {plain: self.baseline.call(build_baseline, comparison.builders[plain])}
        variants = {}
        for name in others:
            try:
                variant = comparison.builders[name]()
                variant.run()  # compiles, and warms up
            except UserError as error:
                tqdm.write(f"{comparison.what}: {name}: left out ({error})", file=sys.stderr)
                continue
            variants[name], clips[name] = variant, variant.clips

        rounds: list[dict[str, float]] = []
        longest = 0.0
        try:
            while not is_enough(len(rounds), self.args.rounds, longest, budget + began - time.perf_counter()):
                round_began = time.perf_counter()
                turn = {plain: self.baseline.call(time_baseline, self.device)}
                for name, variant in variants.items():
                    turn[name] = seconds_per_clip(variant, self.device)
                rounds.append(turn)
                longest = max(longest, time.perf_counter() - round_began)
                done = (time.perf_counter() - began) / max(budget, 1)
                if self.args.rounds:
                    done = len(rounds) / self.args.rounds
                self.show_progress(bar_start + weight * min(done, 0.95))
        except KeyboardInterrupt:
            for name in clips if rounds else ():
                self.add_row(comparison, name, clips[name], rounds)
            raise
        for name in clips:
            peak = None
            if comparison.with_memory and name == plain:
                peak = self.baseline.call(baseline_memory, self.device)
            elif comparison.with_memory:
                peak = peak_memory(variants[name].run, self.device)
            self.add_row(comparison, name, clips[name], rounds, peak)
        self.baseline.call(drop_baseline)

    def add_row(
        self,
        comparison: Comparison,
        name: str,
        clips: int,
        rounds: list[dict[str, float]],
        peak: float | None = None,
    ) -> None:
        """Print a variant's row of the table, and keep it."""
        plain = next(iter(comparison.builders))
        seconds = statistics.median(turn[name] for turn in rounds)
        ratio = statistics.median(turn[plain] / turn[name] for turn in rounds)
        row: Row = {"what": comparison.what, "form": name, "clips": clips}
        row |= {"seconds per clip": seconds, "ratio": ratio}
        if peak is not None:
            row["peak GB"] = peak
        if comparison.macs:
            rate = comparison.macs / seconds
            best = self.rates[torch.bfloat16 if "bf16" in name else torch.float32]
            row |= {"GMAC/s": rate / 1e9, "share": rate / best}
        row["rounds"] = [turn[name] for turn in rounds]
        with uninterrupted():  # in both or in none
            if not self.rows:
                tqdm.write("\n" + table_line(list(COLUMNS)))
                tqdm.write(f"|{'|'.join('-' * (width + 2) for width in COLUMNS.values())}|")
            tqdm.write(table_line(cells(row)))
            sys.stdout.flush()
            self.rows.append(row)

    def show_progress(self, seconds: float) -> None:
        """Move the bar to this part of the sections' budgets."""
        self.bar.n = seconds
        self.bar.refresh()

    def close(self) -> None:
        """Take the bar away, and end the baseline's process."""
        self.bar.close()
        self.baseline.close()


def is_enough(rounds: int, forced: int | None, longest: float, left: float) -> bool:
    """Whether to stop measuring.

    Args:
        rounds: how many there have been.
        forced: how many to measure; None for as many as there is time for.
        longest: seconds that a round takes.
        left: seconds that are left.
    """
    if forced:
        return rounds >= forced
    # Half a round more is kept for the peak memory of each variant.
    return rounds >= MAX_ROUNDS or (rounds >= MIN_ROUNDS and 1.5 * longest > left)


def cells(row: Row) -> list[str]:
    """A row's cells, in the order of `COLUMNS`."""
    return [
        row["what"],
        row["form"],
        str(row["clips"]),
        f"{1e3 * row['seconds per clip']:.1f}",
        f"{row['ratio']:.2f}",
        f"{row['GMAC/s']:.0f}" if "GMAC/s" in row else "",
        f"{100 * row['share']:.0f} %" if "share" in row else "",
        f"{row['peak GB']:.2f}" if "peak GB" in row else "",
        str(len(row["rounds"])),
    ]


def table_line(texts: Sequence[str]) -> str:
    """A line of a Markdown table, text to the left and numbers to the right."""
    padded = [
        text.ljust(width) if column < 2 else text.rjust(width)
        for column, (text, width) in enumerate(zip(texts, COLUMNS.values(), strict=True))
    ]
    return f"| {' | '.join(padded)} |"


# ---------------------------------------------------------------------------------------------------------
# Measuring, in this process and in the baseline's.


class BaselineProcess:
    """A process that never calls `keep_freed_memory`; it starts with the first call, and ends with ours."""

    def __init__(self) -> None:
        self.pool = worker_pool(1)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns there."""
        try:
            with uninterrupted():
                future = self.pool.submit(function, *args)
            return future.result()
        except BrokenProcessPool:
            raise UserError("the baseline's process died; if memory ran out, try --batch-size 1") from None

    def close(self) -> None:
        """End it, whatever it is doing."""
        for child in multiprocessing.active_children():
            child.kill()
        self.pool.shutdown()


_baselines: list[Variant] = []  # at most one, in the baseline's process


def build_baseline(builder: Callable[[], Variant]) -> int:
    """Make a baseline, and warm it up; returns the clips of a call."""
    # Else tqdm makes a semaphore of the system's, which is left when Ctrl-C ends this process.
    tqdm.set_lock(threading.RLock())
    drop_baseline()
    _baselines.append(builder())
    _baselines[0].run()
    return _baselines[0].clips


def time_baseline(device: torch.device) -> float:
    return seconds_per_clip(_baselines[0], device)


def baseline_memory(device: torch.device) -> float:
    return peak_memory(_baselines[0].run, device)


def drop_baseline() -> None:
    _baselines.clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def seconds_per_clip(variant: Variant, device: torch.device) -> float:
    """Seconds per clip of a call; on a GPU, whose memory the other process had, of a second one."""
    if device.type == "cuda":
        variant.run()
    seconds = measure(variant.run, device) / variant.clips
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the other process
    return seconds


def precisions(device: torch.device, emulated: bool) -> list[str]:
    """Those to measure, keys of `utils.precision.DTYPES`: float32, and bf16 where the device has it."""
    return ["off", "bf16"] if emulated or has_instructions(device, "bf16") else ["off"]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds per second of square matrices, of the fastest size."""
    rates = []
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        times = [measure(lambda a=a, b=b: a @ b, device)]
        if times[0] < 2:  # else it is emulated
            times += [measure(lambda a=a, b=b: a @ b, device) for _ in range(4)]
        rates.append(size**3 / statistics.median(times))
        if times[0] >= 2:
            break
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


def peak_memory(run: Callable[[], Any], device: torch.device) -> float:
    """GB that a call takes at its peak beyond what was taken before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what earlier calls have freed does not count as taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A size of this process in GB, from the line of this name."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) * 1024 / 1e9


# ---------------------------------------------------------------------------------------------------------
# Models.


def quiet_world(device: torch.device) -> World:
    """A world for the engine in which it prints no log and shows no progress: not the main process's."""
    return World(1, 1, [device])


def meta_model(beta: int, frames: int) -> TemporalModel:
    """A model without weights."""
    with torch.device("meta"):
        return TemporalModel(NUM_CLASS, frames, beta=beta)


def inference_variants(device: torch.device, emulated: bool) -> dict[str, tuple[str, bool]]:
    """Name -> precision, and whether it is compiled; those that this device is measured in."""
    variants = {BASELINE: ("off", False), "default: float32, fused": ("off", False)}
    fastest = precisions(device, emulated)[-1]
    if fastest == "bf16":
        variants["bf16, fused"] = ("bf16", False)
    name = "float32" if fastest == "off" else fastest
    return variants | {f"{name}, fused, compiled (--fast)": (fastest, True)}


def inference_comparisons(args: Namespace, device: torch.device, folder: Path) -> list[Comparison]:
    sizes = [args.batch_size or 2]
    if device.type == "cuda" and not args.batch_size:
        sizes = [8, 16, 32, 64, 128]
    comparisons = []
    for (model_name, beta), frames in itertools.product(MODELS.items(), args.frames):
        builders = {
            name: partial(inference_variant, beta, frames, amp, name != BASELINE, compiled, sizes, device)
            for name, (amp, compiled) in inference_variants(device, args.emulated).items()
        }
        macs = multiply_adds(meta_model(beta, frames))
        comparisons.append(
            Comparison(f"inference, {model_name}, {frames} frames", builders, macs, with_memory=True)
        )
    return comparisons


def inference_variant(
    beta: int,
    frames: int,
    amp: str,
    fused: bool,
    compiled: bool,
    sizes: list[int],
    device: torch.device,
) -> Variant:
    torch.manual_seed(0)
    model = TemporalModel(NUM_CLASS, frames, beta=beta).to(device).eval()
    if fused:
        model = fuse(model, device, DTYPES[amp])
    if compiled:
        compile_model(model)

    def of_size(size: int) -> Variant:
        clips = torch.randn(size, frames, 3, 224, 224, device=device)

        def run() -> torch.Tensor:
            with torch.inference_mode(), float32_convolutions() if fused else nullcontext():
                return model(clips)

        return Variant(run, size)

    def seconds(size: int) -> float:
        variant = of_size(size)
        variant.run()
        return seconds_per_clip(variant, device)

    return of_size(min(sizes, key=seconds) if len(sizes) > 1 else sizes[0])


def export_comparisons(args: Namespace, device: torch.device, folder: Path) -> list[Comparison]:
    size, cpu = args.batch_size or 2, torch.device("cpu")  # whatever the other sections are measured on
    comparisons = []
    for frames in args.frames:
        builders: dict[str, Callable[[], Variant]] = {
            name: partial(
                inference_variant, MODELS["GST"], frames, "off", name != BASELINE, False, [size], cpu
            )
            for name in (BASELINE, "default: float32, fused")
        }
        for kind in FORMATS:
            runtime = "onnxruntime" if kind == "onnx" else "torch"
            builders[f"exported: {kind}, run by {runtime}"] = partial(export_variant, kind, frames, size)
        comparisons.append(Comparison(f"export, CPU, GST, {frames} frames", builders))
    return comparisons


def export_variant(
    kind: str, frames: int, size: int, backbone: str = "resnet50", input_size: int = 224
) -> Variant:
    torch.manual_seed(0)
    exported = Exported(TemporalModel(NUM_CLASS, frames, backbone=backbone).eval())
    call = FORMATS[kind].load(FORMATS[kind].save(exported, {}))
    clips = torch.randn(size, frames, 3, input_size, input_size)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return call(clips)

    return Variant(run, size)


def training_variants(device: torch.device, emulated: bool, compiled: bool) -> dict[str, tuple[str, bool]]:
    """Name -> precision, and whether it is compiled; those that this device is measured in."""
    variants = {BASELINE: ("off", False), "float32, channels last": ("off", False)}
    fastest = precisions(device, emulated)[-1]
    if fastest == "bf16":
        variants["bf16, channels last"] = ("bf16", False)
    if compiled or device.type == "cuda":
        name = "float32" if fastest == "off" else fastest
        variants[f"{name}, channels last, compiled"] = (fastest, True)
    return variants


def training_comparisons(args: Namespace, device: torch.device, folder: Path) -> list[Comparison]:
    size = args.batch_size or (2 if device.type == "cpu" else 24)
    comparisons = []
    for (model_name, beta), frames in itertools.product(MODELS.items(), args.frames):
        variants = training_variants(device, args.emulated, args.compile_training)
        builders = {
            name: partial(training_variant, beta, frames, amp, name != BASELINE, compiled, size, device)
            for name, (amp, compiled) in variants.items()
        }
        macs = 3 * multiply_adds(meta_model(beta, frames))
        comparisons.append(
            Comparison(f"training, {model_name}, {frames} frames", builders, macs, with_memory=True)
        )
    return comparisons


def training_variant(
    beta: int,
    frames: int,
    amp: str,
    is_fast: bool,
    compiled: bool,
    size: int,
    device: torch.device,
    backbone: str = "resnet50",
    input_size: int = 224,
) -> Variant:
    torch.manual_seed(0)
    batch = [
        torch.randint(0, 256, (size, frames, input_size, input_size, 3), dtype=torch.uint8),
        torch.randint(0, NUM_CLASS, (size,)),
    ]
    if device.type == "cuda":
        batch = [tensor.pin_memory() for tensor in batch]
    model = TemporalModel(NUM_CLASS, frames, backbone=backbone, beta=beta).to(device)
    if is_fast:
        to_channels_last(model, device, for_training=True)
    if compiled:
        compile_model(model)
    steps = 100_000  # of the epoch, in which each call takes one
    options = Namespace(lr=0.001, momentum=0.9, weight_decay=3e-4, clip_gradient=20.0, seed=0)
    options.__dict__ |= {"lr_schedule": "step", "lr_steps": [], "warmup_epochs": 0, "epochs": 1}
    options.__dict__ |= {"freeze_bn": False, "print_freq": steps}  # only step 0 would be logged
    optimizer = make_optimizer(model, options)
    world = quiet_world(device)
    epoch = train_one_epoch(
        model,
        model,
        itertools.repeat(batch),
        optimizer,
        torch.amp.GradScaler(device.type, enabled=amp == "fp16"),
        ClipMeters(world),
        LossWatch(),
        world,
        options,
        amp,
        epoch=0,
        sizes=[[size]] * steps,
        first_step=1,
    )
    return Variant(partial(next, epoch), size)


# ---------------------------------------------------------------------------------------------------------
# Loaders.


class TSNClips(VideoDataSet):
    """Clips made the way of TSN-pytorch: frames * 3 x height x width, float32, normalised in the loader."""

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        record, rng = self.record(key), np.random.default_rng((self.seed, key))
        numbers = self.sample_indices(record.num_frames, rng)
        frames = [Image.open(self.source.path(record.path, number)).convert("RGB") for number in numbers]
        label = record.label
        for transform in self.transform:
            frames, label = transform(frames, label, rng)
        stacked = np.concatenate([np.array(frame) for frame in frames], axis=2)
        clip = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (values * len(frames) for values in (TemporalModel.input_mean, TemporalModel.input_std))
        for channel, m, s in zip(clip, mean, std, strict=True):
            channel.sub_(m).div_(s)
        return clip, label


def make_videos(root: Path, size: tuple[int, int], videos: int, encoded: bool = False) -> Path:
    """Write frame folders of smooth noise that drifts, and their list, which is returned.

    With `encoded`, also a VP9 file of each.
    """
    frames = 45  # v2's median
    rng = np.random.default_rng(0)
    width, height = size
    lines = []
    for video in range(videos):
        folder = root / f"video{video}"
        folder.mkdir(parents=True)
        coarse = rng.integers(0, 256, (height // 8 + 2, (width + frames) // 8 + 2, 3), dtype=np.uint8)
        scene = Image.fromarray(coarse).resize((width + frames, height + 8), Image.Resampling.BICUBIC)
        images = []
        for number in range(frames):
            frame = np.asarray(scene.crop((number, 0, number + width, height))).astype(int)
            frame = np.clip(frame + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
            path = folder / f"{number + 1:05d}.jpg"
            Image.fromarray(frame).save(path, quality=80)  # 30 KB at v2's size, as its JPEGs have
            images.append(frame)
        if encoded:
            encode(folder.with_suffix(".webm"), images)
        lines.append(f"video{video} {frames} {video % NUM_CLASS}\n")
    path = root / "list.txt"
    path.write_text("".join(lines))
    return path


def encode(path: Path, frames: list[np.ndarray]) -> None:
    """Write frames (height x width x 3, uint8) as VP9, with a key frame at the start alone, like v2's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "38", "b": "0", "g": "999", "deadline": "realtime", "cpu-used": "6"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def open_clips(
    kind: type[VideoDataSet],
    videos: Path,
    transform: Any,
    is_training: bool,
    image_tmpl: str | None = "{:05d}.jpg",
) -> VideoDataSet:
    return kind(
        videos.parent,
        videos,
        8,
        image_tmpl,
        transform=transform,
        random_shift=is_training,
        num_class=NUM_CLASS,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loader_comparisons(args: Namespace, device: torch.device, folder: Path) -> list[Comparison]:
    batch_size = args.batch_size or 8
    comparisons = []
    for name, size in FRAME_SIZES.items():
        videos = make_videos(folder / name, size, 3 * batch_size, encoded=name == "v2")
        for is_training in (False, True):
            builders = {TSN_LOADER: partial(tsn_loader, videos, is_training, batch_size)}
            templates = {"": "{:05d}.jpg"} | ({", VP9 files": None} if name == "v2" else {})
            for (source, template), place in itertools.product(templates.items(), ("workers", "device")):
                builders[f"--resize {place}{source}"] = partial(
                    loader_variant, videos, place, is_training, batch_size, template
                )
            purpose = "training" if is_training else "evaluation"
            what = f"loader, one core, {name} ({size[0]} x {size[1]}), {purpose}"
            comparisons.append(Comparison(what, builders))
        if device.type == "cuda":
            builders = {TSN_LOADER: partial(tsn_loader, videos, True, batch_size)}
            for workers in (4, 8, 16):
                builders[f"--resize device, {workers} workers"] = partial(
                    gpu_loader, videos, batch_size, workers, device
                )
            builders["resize on the GPU alone"] = partial(gpu_resize, videos, batch_size, device)
            comparisons.append(Comparison(f"loader to the GPU, {name}, training", builders))
    return comparisons


def tsn_loader(videos: Path, is_training: bool, batch_size: int) -> Variant:
    steps: Sequence[Any] = (GroupScale(256), GroupCenterCrop(224))
    if is_training:
        steps = (GroupMultiScaleCrop(224), GroupRandomHorizontalFlip(range(NUM_CLASS)))
    clips = open_clips(TSNClips, videos, steps, is_training)
    batches = evaluation_batches(range(len(clips)), batch_size)
    return all_batches(DataLoader(clips, batch_sampler=batches), len(clips))


def loader_variant(
    videos: Path, place: str, is_training: bool, batch_size: int, image_tmpl: str | None
) -> Variant:
    """What a worker does for a clip, in this process."""
    transform = training_transform(224, range(NUM_CLASS)) if is_training else evaluation_transform(224)
    clips = open_clips(VideoDataSet, videos, transform, is_training, image_tmpl)
    batches = evaluation_batches(range(len(clips)), batch_size)
    return all_batches(ClipLoader(clips, batches, 0, place == "device"), len(clips))


def all_batches(loader: DataLoader, count: int) -> Variant:
    def run() -> None:
        with one_thread():
            for _ in loader:
                pass

    return Variant(run, count)


def gpu_loader(videos: Path, batch_size: int, workers: int, device: torch.device) -> Variant:
    """Workers that decode, and the resize on the GPU."""
    clips = open_clips(VideoDataSet, videos, training_transform(224, range(NUM_CLASS)), is_training=True)
    batches = evaluation_batches(list(range(len(clips))) * 20, batch_size)
    loader = ClipLoader(clips, batches, workers, decode_only=True)

    def run() -> None:
        for batch in loader:
            to_device(batch, device)

    return Variant(run, 20 * len(clips))


def gpu_resize(videos: Path, batch_size: int, device: torch.device) -> Variant:
    clips = open_clips(VideoDataSet, videos, training_transform(224, range(NUM_CLASS)), is_training=True)
    decoded, _ = clips.decode(range(batch_size))
    decoded = decoded._replace(pixels=decoded.pixels.to(device))
    return Variant(partial(resize_clips, decoded), batch_size)


def end_to_end_comparisons(args: Namespace, device: torch.device, folder: Path) -> list[Comparison]:
    batch_size = args.batch_size or (4 if device.type == "cpu" else 64)
    count = (4 if device.type == "cpu" else 8) * batch_size
    videos = make_videos(folder / "videos", FRAME_SIZES["v1"], count)
    names = {"off": "default", "bf16": "--amp bf16"}
    builders: dict[str, Callable[[], Variant]] = {
        TSN_LOADER + ", float32, eager, NCTHW": partial(plain_evaluation, videos, count, batch_size, device)
    }
    for amp in precisions(device, args.emulated):
        for place in ("workers", "device"):
            builders[f"{names[amp]}, --resize {place}"] = partial(
                fast_evaluation, videos, count, batch_size, device, amp, place
            )
    what = f"end to end, GST, 8 frames, {count} clips (v1)"
    return [Comparison(what, builders)]


def plain_evaluation(videos: Path, count: int, batch_size: int, device: torch.device) -> Variant:
    torch.manual_seed(0)
    model = TemporalModel(NUM_CLASS, 8).to(device).eval()
    clips_of = open_clips(TSNClips, videos, (GroupScale(256), GroupCenterCrop(224)), is_training=False)
    batches = evaluation_batches(range(count), batch_size)
    loader = DataLoader(clips_of, batch_sampler=batches, num_workers=cores())

    def run() -> float:
        hits = 0
        with torch.inference_mode():
            for clips, labels in loader:
                hits += (model(clips.to(device)).argmax(1).cpu() == labels).sum().item()
        return 100 * hits / count

    return Variant(run, count)


def fast_evaluation(
    videos: Path, count: int, batch_size: int, device: torch.device, amp: str, place: str
) -> Variant:
    torch.manual_seed(0)
    model = TemporalModel(NUM_CLASS, 8).to(device).eval()
    dataset = open_clips(VideoDataSet, videos, evaluation_transform(224), is_training=False)

    def run() -> float:
        batches = evaluation_batches(range(count), batch_size)
        loader = ClipLoader(dataset, batches, cores(), place == "device")
        return evaluate(loader, model, quiet_world(device), amp, count).prec1

    return Variant(run, count)


SECTIONS = {
    "loader": loader_comparisons,
    "inference": inference_comparisons,
    "training": training_comparisons,
    "end-to-end": end_to_end_comparisons,
    "export": export_comparisons,
}


# ---------------------------------------------------------------------------------------------------------
# Start-up.


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
    """Tell the memory of a loader's worker, with few and with many records, and with video files."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_videos(Path(folder), FRAME_SIZES["v1"], 24, encoded=True)
        lines = path.read_text().splitlines(keepends=True)
        for count, source in ((2_000, "frames"), (V2_VIDEOS, "frames"), (2_000, "videos")):
            path.write_text("".join(lines[number % len(lines)] for number in range(count)))
            transform = training_transform(224, range(NUM_CLASS))
            template = "{:05d}.jpg" if source == "frames" else None
            videos = open_clips(VideoDataSet, path, transform, is_training=True, image_tmpl=template)
            loader = ClipLoader(videos, ClipSampler(count, 8, seed=0), 1)
            batches, sizes = iter(loader), []
            for batch in range(250):
                next(batches)
                if batch in (20, 249):
                    worker = multiprocessing.active_children()[0].pid
                    lines_of = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
                    private = (line.split()[1] for line in lines_of if line.startswith("Private_Dirty"))
                    sizes.append(int(next(private)) * 1024 / 1e6)
            after = f"{sizes[0]:.0f} MB after 21 batches of 8, {sizes[1]:.0f} MB after 250"
            print(f"a worker's own memory, {count} records, {source}: {after}", flush=True)
            del batches, loader


if __name__ == "__main__":
    run_program(main)
