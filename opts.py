"""Command-line options of `main.py`, `test_models.py` and `test_video.py`.

`parser` is the parser of `main.py`, as in TSN, TRN, TSM and GST-video: `from opts import parser`.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from datasets_video import LAYOUTS, SOURCES, dataset_name
from gst import ALPHAS, BETAS
from inference.options import add_answer_options
from models import BLOCKS, CONSENSUS, MAX_INPUT_SIZE, MAX_SEGMENTS, PARTS, PUBLISHED_NAMES, block_kwargs
from resnet_gst import DEPTHS
from utils.cli import (
    Parser,
    UserError,
    non_negative_float,
    non_negative_int,
    number_type,
    positive_float,
    positive_int,
)
from utils.metrics import METRICS
from utils.pool import cores

FROM_CHECKPOINT = "The model configuration is read from the checkpoint; conflicting options are rejected."

# Backbones without ImageNet weights.
ARCHS_WITHOUT_WEIGHTS = ("resnet14", "resnet26")
PUBLISHED_BATCH_SIZE = 24
# Published recipes, as changes to the defaults. docs/TRAINING.md names the sources.
RECIPES: dict[str, dict[str, Any]] = {
    "somethingv1": {},
    "somethingv2": {},
    "diving48": {"batch_size": 12, "lr": 0.005, "lr_steps": [25]},
}
RECIPE_OPTIONS = ("lr", "lr_schedule", "lr_steps", "warmup_epochs", "epochs")
RECIPE_OPTIONS += ("momentum", "weight_decay", "clip_gradient", "dropout")

# Options that several parsers have.
TYPE: dict[str, Any] = {
    "type": lambda name: PUBLISHED_NAMES.get(name, name),
    "choices": BLOCKS,
    "help": "type of block: GST, or a baseline: C2D (frame by frame, as in TSN), C3D (3x3x3; also R3D), "
    "S3D (1x3x3, then 3x1x1), TSM (C2D with channels shifted in time)",
}
ARCH: dict[str, Any] = {"choices": DEPTHS, "help": "backbone; resnet14 and resnet26 are for small machines"}
ALPHA: dict[str, Any] = {"type": int, "choices": ALPHAS, "help": "GST: one in ALPHA channels is temporal"}
BETA: dict[str, Any] = {
    "type": int,
    "choices": BETAS,
    "help": "GST: each path reads one in BETA channels; 1: GST-Large",
}
NUM_SEGMENTS: dict[str, Any] = {"type": number_type(int, 1, MAX_SEGMENTS)}
INPUT_SIZE: dict[str, Any] = {"type": number_type(int, 32, MAX_INPUT_SIZE)}
FRACTION = number_type(float, 0, 1, below=True)
EVALUATION_AMP = "the default is the precision of training if the device has instructions for it"
FAST = "the precision that is fastest on this device: --amp auto, unless --amp is given"
EVALUATION_BATCH: dict[str, Any] = {
    "type": positive_int,
    "help": "clips per batch of each process (default: as in validation, the checkpoint's training batch, "
    f"at most {PUBLISHED_BATCH_SIZE}, per GPU)",
}
COMPILE = "with torch.compile; the first batch may take minutes; needs a C++ compiler"


def _comma_separated(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Make an argparse type for a list of choices, separated by commas."""

    def parse(text: str) -> list[str]:
        words = text.split(",")
        if unknown := [word for word in words if word not in choices]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not one of {', '.join(choices)}")
        return words

    return parse


def _add_data_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="somethingv1",
        metavar="NAME",
        type=dataset_name,
        help=f"name of the data set: {', '.join(LAYOUTS)}, or any other folder in --root_path that has "
        "category.txt, the lists, and frames/ or videos/",
    )
    group.add_argument("--root_path", default="../", metavar="DIR", help="folder that contains the data sets")
    group.add_argument(
        "--source",
        choices=SOURCES,
        help="read clips from frame folders or decode them from videos (default: the one that exists; if "
        "both exist, as in the checkpoint, or frames)",
    )
    group.add_argument("--val_list", metavar="FILE", help="validation list, instead of the data set's own")
    group.add_argument("--image_tmpl", metavar="TEMPLATE", help="file name of frames, such as {:05d}.jpg")
    group.add_argument("--skip_missing", action="store_true", help="skip missing and incomplete videos")
    group.add_argument("--exclude", metavar="FILE", help="skip the videos in this file, one name per line")
    return group


def _add_run_options(parser: argparse.ArgumentParser, amp: str, compiled: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("run")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    group.add_argument(
        "-j",
        "--workers",
        type=number_type(int, 0, 256),
        default=min(16, max(1, cores() // processes)),
        help="loader processes per torchrun process; by default its share of the cores, at most 16",
    )
    group.add_argument(
        "--resize",
        choices=("device", "workers"),
        help="where frames are resized; the pixels are the same (default: device on GPUs, workers on CPUs)",
    )
    _add_device_options(group, amp)
    group.add_argument("--compile", action="store_true", help=compiled)
    group.add_argument("-p", "--print-freq", type=positive_int, default=20, help="steps between log lines")
    return group


def _add_device_options(group: argparse._ArgumentGroup, amp: str) -> None:
    group.add_argument(
        "--gpus", type=non_negative_int, nargs="+", help="GPU indices (default: all visible GPUs, or the CPU)"
    )
    group.add_argument(
        "--amp",
        choices=("off", "bf16", "fp16", "auto"),
        help=f"precision: off is float32, {amp}; auto is bf16 if the device has bf16 instructions, else off",
    )


# ---------------------------------------------------------------------------------------------------------
# main.py

parser = Parser("Train GST or a baseline on frame folders or videos.")

data = _add_data_options(parser)
data.add_argument("--train_list", metavar="FILE", help="training list, instead of the data set's own")

model = parser.add_argument_group("model")
model.add_argument("--type", default="GST", **TYPE)
model.add_argument("--arch", default="resnet50", **ARCH)
model.add_argument("--alpha", default=4, **ALPHA)
model.add_argument("--beta", default=2, **BETA)
model.add_argument("--num_segments", default=8, help="frames per clip", **NUM_SEGMENTS)
model.add_argument("--input_size", default=224, help="height and width of the input in pixels", **INPUT_SIZE)
model.add_argument("--consensus", choices=CONSENSUS, default="mean", help="how to combine frame logits")
model.add_argument("--dropout", "--dp", type=FRACTION, default=0.3, help="dropout before the classifier")
model.add_argument(
    "--pretrained",
    metavar="imagenet|none|FILE",
    help="initial weights: torchvision's ImageNet weights, random ones, or a file with a 2D ResNet or a "
    "checkpoint of this code, whose classifier is loaded if its classes are the same (default: imagenet, "
    "or none for resnet14 and resnet26, which have no ImageNet weights)",
)
model.add_argument(
    "--freeze", type=_comma_separated(PARTS), metavar="PARTS", help=f"do not train: {', '.join(PARTS)}"
)

recipe = parser.add_argument_group("recipe (the defaults are the paper's)")
recipe.add_argument("--epochs", type=positive_int, default=70, help="number of epochs")
recipe.add_argument(
    "-b",
    "--batch-size",
    type=positive_int,
    default=PUBLISHED_BATCH_SIZE,
    help="training clips per batch, over all GPUs and processes; validation uses at most "
    f"{PUBLISHED_BATCH_SIZE} per GPU",
)
recipe.add_argument(
    "--accumulate", type=positive_int, default=1, help="batches per optimizer step; batch norm uses one batch"
)
norm = recipe.add_mutually_exclusive_group()
norm.add_argument(
    "--sync_bn", action="store_true", help="batch norm over all processes of torchrun; needs GPUs"
)
norm.add_argument("--freeze_bn", action="store_true", help="use fixed running statistics in batch norm")
recipe.add_argument("--lr", "--learning-rate", type=positive_float, default=0.01, help="learning rate")
recipe.add_argument(
    "--lr_mult_new", type=positive_float, default=1.0, help="learning rate multiplier of a new classifier"
)
recipe.add_argument(
    "--lr_schedule",
    choices=("step", "cosine"),
    default="step",
    help="divide the learning rate by 10 at --lr_steps, or decay it to 0 along a half cosine",
)
recipe.add_argument(
    "--lr_steps",
    type=positive_int,
    nargs="+",
    default=[50, 60],
    help="epochs at which the rate is divided by 10",
)
recipe.add_argument(
    "--warmup_epochs", type=non_negative_float, default=0.0, help="epochs of linear warmup from 0"
)
recipe.add_argument("--momentum", type=FRACTION, default=0.9, help="momentum of SGD")
recipe.add_argument("--weight_decay", "--wd", type=non_negative_float, default=3e-4, help="weight decay")
recipe.add_argument(
    "--clip-gradient", "--gd", type=positive_float, default=20.0, help="largest gradient norm"
)
recipe.add_argument("--label_smoothing", type=FRACTION, default=0.0, help="label smoothing factor")
recipe.add_argument("--mixup", type=non_negative_float, default=0.0, help="alpha of mixup; 0 disables it")
recipe.add_argument(
    "--class_weights", metavar="balanced|FILE", help="weights of the loss; FILE has lines of 'class weight'"
)
flips = recipe.add_mutually_exclusive_group()
flips.add_argument(
    "--flip_pairs",
    metavar="FILE",
    help="mirrored classes: two names per line, or one name that is never mirrored; other classes follow "
    "left/right and clockwise/counterclockwise in their names",
)
flips.add_argument("--no_flip", action="store_true", help="disable horizontal flips")
recipe.add_argument("--seed", type=number_type(int, 0, 2**63 - 1), default=0, help="random seed")

run = _add_run_options(
    parser,
    amp="as published; bf16 and fp16 are mixed precision (autocast)",
    compiled=f"compile the training steps {COMPILE}; validation is compiled only with --evaluate",
)
run.add_argument("--deterministic", action="store_true", help="use deterministic GPU kernels; slower")
run.add_argument("--store_name", default="", metavar="NAME", help="suffix of the run's name")
run.add_argument(
    "--checkpoint_dir", default="runs", metavar="DIR", help="folder for checkpoint/, log/ and tensorboard/"
)
start = run.add_mutually_exclusive_group()
start.add_argument(
    "--resume",
    metavar="FILE|auto",
    help="resume from this checkpoint; auto: from this run's newest intact checkpoint, or start a new run",
)
start.add_argument("--overwrite", action="store_true", help="delete an existing run of the same name first")
run.add_argument(
    "--start-epoch", type=non_negative_int, help="first epoch, if the checkpoint stores none (default: 0)"
)
run.add_argument("-e", "--evaluate", action="store_true", help="only evaluate the checkpoint of --resume")
run.add_argument("--save-freq", type=positive_int, help="steps between additional saves")
run.add_argument("--save-minutes", type=positive_float, default=30.0, help="minutes between additional saves")
run.add_argument("--keep", type=positive_int, default=2, help="checkpoints to keep besides the best one")
run.add_argument("--best", choices=METRICS, default="prec1", help="metric that selects the best checkpoint")
run.add_argument("-ef", "--eval-freq", type=positive_int, default=1, help="epochs between evaluations")


def parse_training_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line of `main.py`; `alpha` and `beta` are None for blocks without them."""
    args = parser.parse_args(words, argparse.Namespace(alpha=None, beta=None))
    if args.dataset not in RECIPES and args.lr_steps is parser.get_default("lr_steps"):
        args.lr_steps = [max(1, args.epochs * step // parser.get_default("epochs")) for step in args.lr_steps]
    for name in ("alpha", "beta"):
        value = getattr(args, name)
        if name in block_kwargs(args.type):
            setattr(args, name, value or parser.get_default(name))
        elif value is not None:
            raise UserError(f"--{name} {value}: type {args.type} has no {name}; omit it")
    has_weights = args.arch not in ARCHS_WITHOUT_WEIGHTS
    if args.pretrained is None:
        args.pretrained = "imagenet" if has_weights else "none"
    if args.pretrained == "imagenet" and not has_weights:
        raise UserError(f"--pretrained imagenet: {args.arch} has no ImageNet weights; use FILE or none")
    if args.evaluate and args.resume in (None, "auto"):
        raise UserError("--evaluate needs --resume FILE, the checkpoint to evaluate")
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch}: must be less than --epochs {args.epochs}")
    return args


def describe_recipe(args: argparse.Namespace) -> list[str]:
    """Describe for the log the clips per step, the learning rate, and how the published recipe differs."""
    published = {name: parser.get_default(name) for name in ("batch_size", *RECIPE_OPTIONS)}
    published |= RECIPES.get(args.dataset, {})
    clips = args.batch_size * args.accumulate
    line = f"{clips} clips per step, learning rate {args.lr:g}"
    if clips != published["batch_size"]:
        linear = published["lr"] * clips / published["batch_size"]
        line += f"; published: {published['lr']:g} for {published['batch_size']} clips; "
        line += f"the linear scaling rule gives --lr {linear:g}"
    if args.dataset not in RECIPES:
        steps = f", with --lr_steps {_format(args.lr_steps)}" if args.lr_schedule == "step" else ""
        return [f"{args.dataset}: no published recipe; the defaults are Something-Something's{steps}", line]
    changes = [
        f"--{name} {_format(published[name])} (now {_format(getattr(args, name))})"
        for name in RECIPE_OPTIONS
        if getattr(args, name) != published[name]
    ]
    return [f"{args.dataset}: its published recipe has {', '.join(changes)}", line] if changes else [line]


def _format(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value}"


# ---------------------------------------------------------------------------------------------------------
# test_models.py and test_video.py


def testing_parser() -> argparse.ArgumentParser:
    """Make the parser of `test_models.py`."""
    parser = Parser(
        "Evaluate a checkpoint: one clip per video and one centre crop, or the mean over several views.\n"
        f"{FROM_CHECKPOINT}"
    )
    _add_checkpoint_options(parser)
    _add_data_options(parser)
    run = _add_run_options(parser, amp=EVALUATION_AMP, compiled=f"compile the model {COMPILE}")
    run.add_argument("--fast", action="store_true", help=FAST)
    run.add_argument("-b", "--batch-size", **EVALUATION_BATCH)
    run.add_argument("--max_num", type=positive_int, help="number of videos to evaluate (default: all)")
    _add_view_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save_scores",
        metavar="FILE.npz",
        help="save scores (videos x classes, before softmax), labels, names of videos and classes",
    )
    output.add_argument(
        "--save_features",
        metavar="FILE.npz",
        help="save the classifier's input (videos x 2048, combined over frames like logits), labels, names",
    )
    output.add_argument(
        "--submission", metavar="FILE.csv", help="save lines 'id;a;b;c;d;e': the five best labels per video"
    )
    output.add_argument(
        "--report",
        metavar="DIR",
        help="save a report to this new or empty folder: accuracy per class, worst classes, mirrored pairs, "
        "confusion matrix, most confident mistakes; needs labels",
    )
    return parser


def video_parser() -> argparse.ArgumentParser:
    """Make the parser of `test_video.py`."""
    parser = Parser(
        f"Classify videos, parts of them, or a live stream; see docs/VIDEOS.md.\n{FROM_CHECKPOINT}"
    )
    parser.add_argument(
        "videos",
        nargs="*",
        metavar="VIDEO",
        help="a video file, a folder of numbered images, a folder with any of these at any depth, or a "
        "stream, see --camera",
    )
    checkpoint = _add_checkpoint_options(parser)
    checkpoint.add_argument(
        "--categories",
        metavar="FILE",
        help="class names, one per line, in the order of the classifier (default: those in the checkpoint; "
        "Something-Something's for a released checkpoint with 174 classes)",
    )
    _add_view_options(parser)
    add_answer_options(parser)
    run = parser.add_argument_group("run")
    _add_device_options(run, EVALUATION_AMP)
    run.add_argument("--fast", action="store_true", help=FAST)
    run.add_argument("-b", "--batch-size", **EVALUATION_BATCH)
    return parser


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("checkpoint")
    group.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint of main.py, a released one, a bare state dict, or an ONNX file of tools/export.py",
    )
    group.add_argument("--arch", **ARCH)
    group.add_argument("--alpha", **ALPHA)
    group.add_argument("--beta", **BETA)
    add_unstored_options(group)
    return group


def add_unstored_options(group: argparse._ActionsContainer, default_frames: str = "8") -> None:
    """Add the options for values that a checkpoint may lack to a parser with `--weights`."""
    ambiguous = "; for files whose tensors fit several types"
    group.add_argument("--type", **TYPE | {"help": TYPE["help"] + ambiguous})
    group.add_argument(
        "--num_segments", help=f"frames per clip; {default_frames} if not in the checkpoint", **NUM_SEGMENTS
    )
    group.add_argument(
        "--input_size", help="height and width of the input; 224 if not in the checkpoint", **INPUT_SIZE
    )
    group.set_defaults(arch=None, alpha=None, beta=None)


def _add_view_options(parser: argparse.ArgumentParser) -> None:
    views = parser.add_argument_group("views, whose scores are averaged")
    views.add_argument(
        "--test_crops",
        type=int,
        choices=(1, 3, 5, 10),
        default=1,
        help="1: centre; 3: left, centre, right (top, centre, bottom of portrait frames); 5: corners and "
        "centre; 10: those and their mirror images",
    )
    views.add_argument(
        "--num_clips",
        type=number_type(int, 1, 100),
        default=1,
        help="clips per video: the middle of each segment, then its start, then evenly in between",
    )
    views.add_argument(
        "--full_res", action="store_true", help="crops as large as the scaled short side (256 for input 224)"
    )


def evaluation_batch_size(option: int | None, training_batch_size: int | None, num_devices: int) -> int:
    """The batch size of a process. It is the same in all programs: scores may depend on it slightly."""
    return option or min(training_batch_size or PUBLISHED_BATCH_SIZE, PUBLISHED_BATCH_SIZE) * num_devices
