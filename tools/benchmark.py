"""Compare the speed of this code's model and loader with that of the published ones.

    python tools/benchmark.py
    python tools/benchmark.py --only inference --frames 8 16

The results are Markdown tables. The published model is float32, eager, NCTHW, with PyTorch's defaults (TF32
convolutions on GPUs). The published loader is that of TSN-pytorch: it resizes whole PIL images, stacks them
in an array, converts the array to a float tensor, and normalises it.

The variants (column "form") take turns in one process: each runs once per round, in alternating order. The
speed-up is the published time divided by the variant's time, for the fastest calls and as the median over the
rounds. Multiply-adds are those of convolutions and classifier, times three in training. The matmul rate is
measured with square matrices in the same precision and the same rounds. bf16 is measured if the device has
instructions for it. If OpenVINO is installed, inference on a CPU also measures the exported ONNX file, which
takes a minute (pip install openvino onnx onnxruntime onnxscript).
"""

import argparse
import copy
import importlib.util
import itertools
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
from torchvision.transforms.functional import normalize
from tqdm import tqdm

import transforms
from dataset import VideoDataSet
from inference.export import Exported, to_onnx
from inference.fuse import float32_convolutions, fuse, to_channels_last
from loader import ClipLoader
from models import TemporalModel, multiply_adds
from resnet_gst import DEPTHS
from utils.cli import Parser, pluralize, positive_int, run_program
from utils.distributed import keep_freed_memory
from utils.precision import DTYPES, has_instructions

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODELS = {"GST": 2, "GST-Large": 1}  # name -> beta
NUM_CLASS = 174
BATCH_SIZE = 24 if DEVICE.type == "cuda" else 2
MATMUL_SIZE, NUM_MATMULS = (8192, 10) if DEVICE.type == "cuda" else (2048, 1)
FRAME_SIZES = {"v1": (176, 100), "v2": (427, 240)}  # width and height
NUM_FRAMES = 45  # v2's median
V2_VIDEOS = 220_847


class Form(NamedTuple):
    """One of the ways to compute a batch."""

    name: str
    run: Callable[[], Any]
    precision: str = ""  # 'float32', 'tf32' or 'bf16'; empty if throughput is not reported


def main() -> None:
    parser = Parser(*__doc__.split("\n\n", 1))
    add = parser.add_argument
    add("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS), help="sections to measure")
    add("--frames", nargs="+", type=positive_int, default=[8], metavar="N", help="frames of a clip")
    add("--rounds", type=positive_int, default=7, metavar="N", help="calls of each variant")
    add("-b", "--batch_size", type=positive_int, default=BATCH_SIZE, metavar="N", help="clips in a batch")
    add("--arch", choices=tuple(DEPTHS), default="resnet50", help="backbone")
    add("--input_size", type=positive_int, default=224, metavar="PIXELS", help="height and width of a clip")
    args = parser.parse_args()

    if DEVICE.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        keep_freed_memory()
        threads = pluralize(torch.get_num_threads(), "thread")
        name = f"CPU, {threads}, {torch.backends.cpu.get_cpu_capability()}"
    print(f"{name}, {' and '.join(precisions())}, torch {torch.__version__}")
    for section in args.only:
        print()
        SECTIONS[section](args)


# Measuring


def compare(title: str, forms: list[Form], clips: int, rounds: int, macs: float = 0) -> None:
    """Measure variants, which take turns, and print a row of the table for each.

    Args:
        title: name of the computation.
        forms: the variants; the published one is first.
        clips: number of clips in a batch.
        rounds: number of measurements.
        macs: multiply-adds of a clip; 0 if throughput is not reported.
    """
    calls = {form.name: form.run for form in forms}
    calls |= {form.precision: matmul(form.precision) for form in forms if form.precision}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(rounds + 1), desc=title, unit="round", leave=False, disable=None):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            calls[name]()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)

    times = {name: np.array(values) for name, values in seconds.items()}
    published = times[forms[0].name]
    for form in forms:
        own = times[form.name]
        cells = [f"{1e3 * value / clips:.1f}" for value in (own.min(), np.median(own))]
        cells += [f"{published.min() / own.min():.2f}", f"{np.median(published / own):.2f}"]
        if macs:
            rate = clips * macs / own
            matmul_rate = NUM_MATMULS * MATMUL_SIZE**3 / times[form.precision]
            cells += [f"{np.median(rate) / 1e9:.0f}", f"{100 * np.median(rate / matmul_rate):.0f} %"]
        print_row(title, form.name, *cells)


def matmul(precision: str) -> Callable[[], None]:
    """Make a function that multiplies square matrices, whose rate is the reference for the throughput."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, device=DEVICE).to(dtype)

    def run() -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for _ in range(NUM_MATMULS):
            a @ b
        torch.backends.cuda.matmul.allow_tf32 = False

    return run


def print_header(*more: str) -> None:
    """Print the first lines of a Markdown table."""
    columns = ("", "form", "ms a clip, min", "median", "speed-up, min", "median", *more)
    print_row(*columns)
    print_row(*["---"] * len(columns))


def print_row(*cells: str) -> None:
    """Print a line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


# Models


def measure_models(args: argparse.Namespace, purpose: str) -> None:
    """Measure 'inference' or 'training' of each model."""
    print_header("GMAC/s", "of the matmul rate")
    size = args.input_size
    for (name, beta), frames in itertools.product(MODELS.items(), args.frames):
        torch.manual_seed(0)
        model = TemporalModel(NUM_CLASS, frames, backbone=args.arch, beta=beta, input_size=size)
        clips = torch.randn(args.batch_size, frames, 3, size, size, device=DEVICE)
        forms = model_forms(model.to(DEVICE), clips, purpose)
        if purpose == "inference" and DEVICE.type == "cpu" and importlib.util.find_spec("openvino"):
            forms += exported_forms(model, clips)
        macs = multiply_adds(model) * (1 if purpose == "inference" else 3)
        compare(f"{purpose}, {name}, {frames} frames", forms, args.batch_size, args.rounds, macs)


def precisions() -> dict[str, str]:
    """The precisions for which the device has instructions: name -> key of `DTYPES`."""
    return {"float32": "off"} | ({"bf16": "bf16"} if has_instructions(DEVICE, "bf16") else {})


def model_forms(model: TemporalModel, clips: torch.Tensor, purpose: str) -> list[Form]:
    """Make the variants of a model for 'inference' or 'training': the published one, and this code's."""
    is_training = purpose == "training"
    default = "tf32" if DEVICE.type == "cuda" else "float32"  # PyTorch's default, which training keeps
    make_call = training_step if is_training else forward_pass
    forms = [Form("published", make_call(copy.deepcopy(model), clips), default)]
    for name, amp in precisions().items():
        if is_training:
            fast, title = copy.deepcopy(model), f"{name}, channels last"
            to_channels_last(fast, DEVICE, for_training=True)
        else:
            fast, title = fuse(model.eval(), DEVICE, DTYPES[amp]), f"{name}, fused"
        precision = default if is_training and name == "float32" else name
        forms.append(Form(title, make_call(fast, clips, amp), precision))
    return forms


def forward_pass(model: TemporalModel, clips: torch.Tensor, amp: str | None = None) -> Callable[[], None]:
    """Make a forward pass of a fused model; without `amp`, of the published model."""
    model.eval()

    def run() -> None:
        with torch.inference_mode(), float32_convolutions() if amp else nullcontext():
            model(clips)

    return run


def training_step(model: TemporalModel, clips: torch.Tensor, amp: str = "off") -> Callable[[], None]:
    """Make a step of SGD with a clipped gradient (paper, section 4.2)."""
    labels = torch.randint(NUM_CLASS, clips.shape[:1], device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=3e-4)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, DTYPES[amp], enabled=amp != "off"):
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
    graph = openvino.Core().read_model(content)
    graph.reshape(list(clips.shape))
    for name in precisions():
        hint = "f32" if name == "float32" else name
        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.compile_model(graph, "CPU", options)
        forms.append(Form(f"{name}, OpenVINO", partial(compiled, [clips.numpy()]), name))
    return forms


# Loader


class TSNClips(VideoDataSet):
    """Clips as in TSN-pytorch: frames * 3 x height x width, float32, normalised in the loader."""

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
        return normalize(clip, mean, std, inplace=True), label


def make_videos(root: Path, size: tuple[int, int], videos: int) -> Path:
    """Write frame folders and return the path of their list. A JPEG has 6 KB at v1's size, 30 KB at v2's."""
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
    """Open a list, for clips of 8 frames."""
    kwargs = {"transform": transform, "random_shift": is_training, "num_class": NUM_CLASS}
    return kind(path.parent, path, 8, "{:05d}.jpg", **kwargs)


def measure_loaders(args: argparse.Namespace) -> None:
    """Measure the work of the loader processes for each clip on one core."""
    batches = np.arange(24).reshape(3, 8).tolist()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print_header()
    for name, size in FRAME_SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make_videos(Path(folder), size, 24)
            for purpose in ("evaluation", "training"):
                forms = loader_forms(path, purpose == "training", batches)
                compare(f"loader, {name}, {purpose}", forms, 24, args.rounds)
    torch.set_num_threads(threads)


def loader_forms(path: Path, is_training: bool, batches: list[list[int]]) -> list[Form]:
    """Make the variants of the loader: TSN's, and this code's with each value of --resize."""
    steps = (transforms.GroupScale(256), transforms.GroupCenterCrop(224))
    transform = transforms.evaluation_transform(224)
    if is_training:
        steps = (transforms.GroupMultiScaleCrop(224), transforms.GroupRandomHorizontalFlip(range(NUM_CLASS)))
        transform = transforms.training_transform(224, range(NUM_CLASS))
    loader = DataLoader(open_clips(TSNClips, path, steps, is_training), batch_sampler=batches)
    forms = [Form("published", partial(list, loader))]
    clips = open_clips(VideoDataSet, path, transform, is_training)
    for resize in ("workers", "device"):
        loader = ClipLoader(clips, batches, 0, decode_only=resize == "device")
        forms.append(Form(f"--resize {resize}", partial(list, loader)))
    return forms


def measure_startup(args: argparse.Namespace) -> None:
    """Measure reading and checking a list of v2's size, on a tree with each video's first and last frame."""
    with tempfile.TemporaryDirectory() as root:
        for video in range(V2_VIDEOS):
            folder = Path(root, str(video))
            folder.mkdir()
            (folder / "00001.jpg").touch()
            (folder / "00040.jpg").touch()
        path = Path(root, "list.txt")
        path.write_text("".join(f"{video} 40 {video % NUM_CLASS}\n" for video in range(V2_VIDEOS)))
        start = time.perf_counter()
        videos = open_clips(VideoDataSet, path, None, is_training=True)
        print(f"list of {V2_VIDEOS} videos read: {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        videos.find_missing()
        print(f"folders checked, from the file cache: {time.perf_counter() - start:.1f} s")


SECTIONS = {
    "inference": partial(measure_models, purpose="inference"),
    "training": partial(measure_models, purpose="training"),
    "loader": measure_loaders,
    "startup": measure_startup,
}


if __name__ == "__main__":
    run_program(main)
