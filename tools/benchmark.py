"""Measure this code's forms of the model and of the loader against the published ones.

    python tools/benchmark.py
    python tools/benchmark.py --only inference --frames 8 16 --compile
    CUDA_VISIBLE_DEVICES= python tools/benchmark.py     # the CPU of a machine with a GPU

The results are Markdown tables. The published model is float32, eager, NCTHW, with PyTorch's defaults (TF32
convolutions on GPUs). The published loader is that of TSN-pytorch: PIL images, whole frames resized, stacked
to an array, converted to a float tensor, normalised channel by channel.

The forms of a comparison take turns in one process: in every round each runs once, in alternating order. The
speed-up is published / form: the ratio of the fastest calls, and the median of the ratios within a round.
Multiply-adds (MAC) are those of the convolutions and the classifier, three times as many in a training step.
The matmul rate is that of square matrices in the form's precision, measured in the same rounds.

bf16 is measured where the device has instructions for it. Where openvino and onnxruntime are installed,
inference on a CPU also measures the exported ONNX file, whose export takes half a minute
(pip install openvino onnx onnxruntime onnxscript).
"""

import argparse
import copy
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import ClipLoader, VideoDataSet
from inference.export import Exported, to_onnx
from inference.fuse import compile_model, float32_convolutions, fuse, to_channels_last
from models import TemporalModel, multiply_adds
from resnet_gst import DEPTHS
from transforms import (
    GroupCenterCrop,
    GroupMultiScaleCrop,
    GroupRandomHorizontalFlip,
    GroupScale,
    evaluation_transform,
    training_transform,
)
from utils.cli import Parser, positive_int, run_program
from utils.distributed import keep_freed_memory
from utils.precision import DTYPES, has_instructions

MODELS = {"GST": 2, "GST-Large": 1}  # name -> beta
NUM_CLASS = 174
DEFAULT_BATCH_SIZE = {"cpu": {"inference": 2, "training": 2}, "cuda": {"inference": 64, "training": 24}}
MATMUL = {"cpu": (2048, 1), "cuda": (8192, 10)}  # height and width of the matrices, products in a call
FRAME_SIZES = {"v1": (176, 100), "v2": (427, 240)}  # width and height
NUM_FRAMES = 45  # v2's median
V2_VIDEOS = 220_847


class Form(NamedTuple):
    """One of the ways to compute the same thing.

    Attributes:
        name: in the table.
        run: computes a batch.
        precision: 'float32', 'tf32' or 'bf16'; empty if throughput is not reported.
    """

    name: str
    run: Callable[[], Any]
    precision: str = ""


def main() -> None:
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        keep_freed_memory()
    bf16 = "with" if has_instructions(device, "bf16") else "without"
    print(f"{name}, {bf16} bf16 instructions, torch {torch.__version__}", flush=True)
    for section in args.only:
        SECTIONS[section](args, device)


def parse_args() -> argparse.Namespace:
    parser = Parser(*__doc__.split("\n\n", 1))
    sections = ["inference", "training", "loader"]
    add = parser.add_argument
    add("--only", nargs="+", choices=tuple(SECTIONS), default=sections, help="sections to measure")
    add("--frames", nargs="+", type=positive_int, default=[8], metavar="N", help="frames of a clip")
    add("--rounds", type=positive_int, default=7, metavar="N", help="calls of each form")
    batch_size = "clips in a batch (default: on a CPU 2, on a GPU 64 for inference and 24 for training)"
    add("-b", "--batch-size", type=positive_int, metavar="N", help=batch_size)
    add("--compile", action="store_true", help="also measure compiled models; a minute each on a CPU")
    add("--arch", choices=tuple(DEPTHS), default="resnet50", help="backbone")
    add("--input_size", type=positive_int, default=224, metavar="PIXELS", help="height and width of a clip")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------
# Measuring


def compare(
    title: str, forms: list[Form], clips: int, rounds: int, device: torch.device, macs: float = 0
) -> None:
    """Measure forms in turns, and print their rows of the table.

    Args:
        title: what they compute.
        forms: the published one first.
        clips: number of clips in a batch.
        rounds: number of calls of each form.
        device: where they compute.
        macs: multiply-adds of a clip; 0 if throughput is not reported.
    """
    calls = {form.name: form.run for form in forms}
    calls |= {form.precision: matmul(form.precision, device) for form in forms if form.precision}
    for run in calls.values():
        run()  # compiles, and warms up
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(rounds), desc=title, unit="round", leave=False, disable=None):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            seconds[name].append(measure(calls[name], device))

    published = seconds[forms[0].name]
    size, products = MATMUL[device.type]
    for form in forms:
        own = seconds[form.name]
        row = [f"{1e3 * value / clips:.1f}" for value in (min(own), statistics.median(own))]
        row += [f"{min(published) / min(own):.2f}", f"{median_ratio(published, own):.2f}"]
        if macs:
            ratio = median_ratio(seconds[form.precision], own)
            share = ratio * clips * macs / (products * size**3)
            row += [f"{clips * macs / statistics.median(own) / 1e9:.0f}", f"{100 * share:.0f} %"]
        if macs and device.type == "cuda":
            row.append(f"{peak_memory(form.run, device):.2f}")
        print_row(title, form.name, *row)


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def measure(run: Callable[[], Any], device: torch.device) -> float:
    """The seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(run: Callable[[], Any], device: torch.device) -> float:
    """The memory of one call on a GPU at its peak, in GB."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e9


def matmul(precision: str, device: torch.device) -> Callable[[], None]:
    """Make the products of square matrices that the share of the matmul rate refers to."""
    size, products = MATMUL[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def run() -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for _ in range(products):
            a @ b
        torch.backends.cuda.matmul.allow_tf32 = False

    return run


def print_row(*cells: str) -> None:
    """Print a line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def print_header(*columns: str) -> None:
    """Print the first lines of a table."""
    columns = ("", "form", "ms a clip, min", "median", "speed-up, min", "median", *columns)
    print()
    print_row(*columns)
    print_row(*["---"] * len(columns))


# ------------------------------------------------------------------------------------------------------
# Models


def measure_models(args: argparse.Namespace, device: torch.device, purpose: str) -> None:
    """Measure 'inference' or 'training' of each model."""
    print_header("GMAC/s", "of the matmul rate", *(["peak GB"] if device.type == "cuda" else []))
    batch_size = args.batch_size or DEFAULT_BATCH_SIZE[device.type][purpose]
    for name, beta in MODELS.items():
        for frames in args.frames:
            torch.manual_seed(0)
            model = TemporalModel(
                NUM_CLASS, frames, backbone=args.arch, beta=beta, input_size=args.input_size
            )
            clips = torch.randn(batch_size, frames, 3, args.input_size, args.input_size, device=device)
            forms = model_forms(model.to(device), clips, purpose, args.compile)
            if purpose == "inference" and device.type == "cpu" and importlib.util.find_spec("openvino"):
                forms += exported_forms(model, clips)
            macs = multiply_adds(model) * (1 if purpose == "inference" else 3)
            compare(f"{purpose}, {name}, {frames} frames", forms, batch_size, args.rounds, device, macs)


def precisions(device: torch.device) -> dict[str, str]:
    """The precisions that a device has instructions for: name -> key of `DTYPES`."""
    return {"float32": "off"} | ({"bf16": "bf16"} if has_instructions(device, "bf16") else {})


def model_forms(model: TemporalModel, clips: torch.Tensor, purpose: str, with_compiled: bool) -> list[Form]:
    """The model as published and as the programs run it, for 'inference' or 'training'."""
    device, is_training = clips.device, purpose == "training"
    default = "tf32" if device.type == "cuda" else "float32"  # PyTorch's, which training leaves as it is
    make_call = training_step if is_training else forward_pass
    forms = [Form("published", make_call(copy.deepcopy(model), clips), default)]
    for name, amp in precisions(device).items():
        for is_compiled in (False, True) if with_compiled else (False,):
            fast = copy.deepcopy(model) if is_training else fuse(model.eval(), device, DTYPES[amp])
            if is_training:
                to_channels_last(fast, device, for_training=True)
            if is_compiled:
                compile_model(fast)
            title = f"{name}, {'channels last' if is_training else 'fused'}{', compiled' * is_compiled}"
            precision = default if is_training and name == "float32" else name
            forms.append(Form(title, make_call(fast, clips, amp), precision))
    return forms


def forward_pass(model: TemporalModel, clips: torch.Tensor, amp: str | None = None) -> Callable[[], None]:
    """Make a forward pass of a fused model, or with `amp` None of the published one."""
    model.eval()

    def run() -> None:
        with torch.inference_mode(), float32_convolutions() if amp else nullcontext():
            model(clips)

    return run


def training_step(model: TemporalModel, clips: torch.Tensor, amp: str = "off") -> Callable[[], None]:
    """Make a step of SGD with a clipped gradient (paper, section 4.2)."""
    labels = torch.randint(NUM_CLASS, clips.shape[:1], device=clips.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=3e-4)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(clips.device.type, DTYPES[amp], enabled=amp != "off"):
            logits = model(clips)
        functional.cross_entropy(logits.float(), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimizer.step()

    return run


def exported_forms(model: TemporalModel, clips: torch.Tensor) -> list[Form]:
    """The exported ONNX file, run by ONNX Runtime and by OpenVINO."""
    import onnxruntime
    import openvino

    content = to_onnx(Exported(model), {})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: clips.numpy()}
    forms = [Form("float32, ONNX Runtime", partial(session.run, None, inputs), "float32")]
    core = openvino.Core()
    graph = core.read_model(content)
    graph.reshape(list(clips.shape))
    for name in precisions(clips.device):
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        hints["INFERENCE_PRECISION_HINT"] = "f32" if name == "float32" else name
        compiled = core.compile_model(graph, "CPU", hints)
        forms.append(Form(f"{name}, OpenVINO", partial(compiled, [clips.numpy()]), name))
    return forms


# ------------------------------------------------------------------------------------------------------
# Loader and start-up


class TSNClips(VideoDataSet):
    """Clips as TSN-pytorch makes them: frames * 3 x height x width, float32, normalised in the loader."""

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        record, rng = self.record(key), np.random.default_rng(key)
        folder, label = Path(self.list_file).parent / record.path, record.label
        numbers = self.sample_indices(record.num_frames, rng)
        frames = [Image.open(folder / f"{number:05d}.jpg").convert("RGB") for number in numbers]
        for transform in self.transform:
            frames, label = transform(frames, label, rng)
        stacked = np.concatenate([np.array(frame) for frame in frames], axis=2)
        clip = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (values * len(frames) for values in (TemporalModel.input_mean, TemporalModel.input_std))
        for channel, m, s in zip(clip, mean, std, strict=True):
            channel.sub_(m).div_(s)
        return clip, label


def make_videos(root: Path, size: tuple[int, int], videos: int) -> Path:
    """Write frame folders of smooth noise, and their list, whose path is returned.

    The JPEGs have 6 KB at v1's size and 30 KB at v2's, like those of the data sets.
    """
    rng = np.random.default_rng(0)
    width, height = size
    for video in range(videos):
        folder = root / f"video{video}"
        folder.mkdir(parents=True)
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        scene = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        for number in range(NUM_FRAMES):
            frame = np.clip(scene + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
            Image.fromarray(frame).save(folder / f"{number + 1:05d}.jpg", quality=80)
    path = root / "list.txt"
    path.write_text("".join(f"video{video} {NUM_FRAMES} {video % NUM_CLASS}\n" for video in range(videos)))
    return path


def open_clips(kind: type[VideoDataSet], path: Path, transform: Any, is_training: bool) -> VideoDataSet:
    """Open a list of clips of 8 frames."""
    kwargs = {"transform": transform, "random_shift": is_training, "num_class": NUM_CLASS}
    return kind(path.parent, path, 8, "{:05d}.jpg", **kwargs)


def measure_loaders(args: argparse.Namespace, device: torch.device) -> None:
    """Measure on one core what the loader processes do for each clip."""
    num_clips = 24
    batches = np.arange(num_clips).reshape(3, -1).tolist()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print_header()
    for name, size in FRAME_SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make_videos(Path(folder), size, num_clips)
            for is_training in (False, True):
                forms = loader_forms(path, is_training, batches)
                title = f"loader, {name}, {'training' if is_training else 'evaluation'}"
                compare(title, forms, num_clips, args.rounds, torch.device("cpu"))
    torch.set_num_threads(threads)


def loader_forms(path: Path, is_training: bool, batches: list[list[int]]) -> list[Form]:
    """TSN's loader, and this code's with each place of the resize."""
    steps = (GroupScale(256), GroupCenterCrop(224))
    transform = evaluation_transform(224)
    if is_training:
        steps = (GroupMultiScaleCrop(224), GroupRandomHorizontalFlip(range(NUM_CLASS)))
        transform = training_transform(224, range(NUM_CLASS))
    published = DataLoader(open_clips(TSNClips, path, steps, is_training), batch_sampler=batches)
    forms = [Form("published", partial(list, published))]
    clips = open_clips(VideoDataSet, path, transform, is_training)
    for resize in ("workers", "device"):
        loader = ClipLoader(clips, batches, 0, decode_only=resize == "device")
        forms.append(Form(f"--resize {resize}", partial(list, loader)))
    return forms


def measure_startup(args: argparse.Namespace, device: torch.device) -> None:
    """Measure reading and checking a list of v2's size, on a tree with each video's first and last frame."""
    with tempfile.TemporaryDirectory() as root:
        for video in range(V2_VIDEOS):
            folder = Path(root) / str(video)
            folder.mkdir()
            (folder / "00001.jpg").touch()
            (folder / "00040.jpg").touch()
        path = Path(root) / "list.txt"
        path.write_text("".join(f"{video} 40 {video % NUM_CLASS}\n" for video in range(V2_VIDEOS)))
        start = time.perf_counter()
        videos = open_clips(VideoDataSet, path, None, is_training=True)
        read = time.perf_counter()
        videos.find_missing()
        checked = time.perf_counter()
    print(f"\n{V2_VIDEOS} videos in the file cache: list read in {read - start:.1f} s, ", end="")
    print(f"folders checked in {checked - read:.1f} s", flush=True)


SECTIONS = {
    "inference": partial(measure_models, purpose="inference"),
    "training": partial(measure_models, purpose="training"),
    "loader": measure_loaders,
    "startup": measure_startup,
}


if __name__ == "__main__":
    run_program(main)
