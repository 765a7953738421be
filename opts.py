"""Every command-line option of `main.py`, `test_models.py` and `test_video.py`."""

import argparse
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets_video import LAYOUTS, SOURCES, dataset_name
from gst import ALPHAS, BETAS
from models import BLOCKS, MAX_INPUT_SIZE, MAX_SEGMENTS, PUBLISHED_NAMES, block_kwargs
from resnet_gst import DEPTHS
from utils.cli import (
    Parser,
    UserError,
    cores,
    environment_number,
    non_negative_float,
    non_negative_int,
    number_type,
    positive_float,
    positive_int,
)

TRAINING_EXAMPLES = """\
the paper's GST and GST-Large:
  python main.py --root_path DATA --dataset somethingv1 --type GST --arch resnet50 --num_segments 8 \\
      --alpha 4 --beta 2
  python main.py --root_path DATA --dataset somethingv1 --type GST --arch resnet50 --num_segments 8 \\
      --alpha 4 --beta 1
"""
TESTING_EXAMPLES = """\
example:
  python test_models.py --weights FILE --dataset somethingv2 --root_path DATA
"""
VIDEO_EXAMPLES = """\
examples:
  python test_video.py --weights FILE clip.webm
  python test_video.py --weights FILE clips/ --json answers.json
  python test_video.py --weights FILE clip.webm --rendered_output clip_answer.mp4
"""

# Backbones that nobody has trained on ImageNet.
ARCHS_WITHOUT_WEIGHTS = ("resnet14", "resnet26")
PUBLISHED_BATCH_SIZE = 24
# Data set -> what its published recipe changes in the defaults; the sources are in docs/TRAINING.md.
RECIPES: dict[str, dict[str, Any]] = {
    "somethingv1": {},
    "somethingv2": {},
    "diving48": {"batch_size": 12, "lr": 0.005, "lr_steps": [25]},
}
RECIPE_OPTIONS = (
    "lr",
    "lr_schedule",
    "lr_steps",
    "warmup_epochs",
    "epochs",
    "momentum",
    "weight_decay",
    "clip_gradient",
    "dropout",
)


def training_parser() -> argparse.ArgumentParser:
    """The options of `main.py`."""
    parser = Parser("Train GST or a baseline on frame folders or video files.", TRAINING_EXAMPLES)
    _add_data_options(parser, is_training=True)
    model = _add_model_options(parser, is_training=True)
    model.add_argument(
        "--dropout",
        "--dp",
        type=number_type(float, 0, 1, below=True),
        default=0.3,
        metavar="P",
        help="dropout before the classifier",
    )
    model.add_argument(
        "--pretrained",
        metavar="imagenet|none|FILE",
        help="start from torchvision's ImageNet weights, from random ones, or from a file: a 2D ResNet's "
        "weights, or a checkpoint of this code, whose classifier is loaded too if its classes are the data "
        "set's (default: imagenet; none for resnet14 and resnet26, which have no such weights)",
    )
    recipe = parser.add_argument_group("recipe (the defaults are the paper's)")
    recipe.add_argument(
        "--epochs", type=number_type(int, 1, 10**6), default=70, metavar="N", help="number of epochs"
    )
    recipe.add_argument(
        "-b",
        "--batch-size",
        type=number_type(int, 1, 10**5),
        default=PUBLISHED_BATCH_SIZE,
        metavar="N",
        help="clips in a training batch, over all GPUs and processes; validation takes at most "
        f"{PUBLISHED_BATCH_SIZE} at a time on each",
    )
    recipe.add_argument(
        "--accumulate",
        type=number_type(int, 1, 10**4),
        default=1,
        metavar="K",
        help="batches per optimizer step, equivalent to one batch of K times the size apart from batch norm",
    )
    recipe.add_argument(
        "--sync_bn",
        action="store_true",
        help="compute batch norm over the clips of all processes of torchrun; needs GPUs",
    )
    recipe.add_argument(
        "--freeze_bn",
        action="store_true",
        help="keep batch norm's running statistics fixed, and normalise with them; the weights still train",
    )
    recipe.add_argument(
        "--lr",
        "--learning-rate",
        type=positive_float,
        default=0.01,
        metavar="LR",
        help="learning rate",
    )
    recipe.add_argument(
        "--lr_mult_new",
        type=positive_float,
        default=1.0,
        metavar="N",
        help="factor on the learning rate of a classifier that starts from scratch; no effect on one that "
        "--pretrained has loaded",
    )
    recipe.add_argument(
        "--lr_schedule",
        choices=("step", "cosine"),
        default="step",
        help="divide the learning rate by 10 at --lr_steps, or decay it to 0 along half a cosine",
    )
    recipe.add_argument(
        "--lr_steps",
        type=positive_int,
        nargs="+",
        default=[50, 60],
        metavar="EPOCH",
        help="epochs at which the learning rate is divided by 10",
    )
    recipe.add_argument(
        "--warmup_epochs",
        type=non_negative_float,
        default=0.0,
        metavar="N",
        help="epochs over which the learning rate rises from 0 at the start",
    )
    recipe.add_argument(
        "--momentum",
        type=number_type(float, 0, 1, below=True),
        default=0.9,
        metavar="M",
        help="momentum of SGD",
    )
    recipe.add_argument(
        "--weight_decay", "--wd", type=non_negative_float, default=3e-4, metavar="W", help="weight decay"
    )
    recipe.add_argument(
        "--clip-gradient",
        "--gd",
        type=positive_float,
        default=20.0,
        metavar="NORM",
        help="clip the gradient's norm at this value",
    )
    recipe.add_argument(
        "--flip_pairs",
        metavar="FILE",
        help="classes that are each other's mirror image, two names a line; a name alone is never mirrored; "
        "the other classes follow left/right and clockwise/counterclockwise in their names",
    )
    recipe.add_argument("--no_flip", action="store_true", help="mirror no clips")
    recipe.add_argument(
        "--seed",
        type=number_type(int, 0, 2**63 - 1),
        default=0,
        metavar="N",
        help="random seed of the order, frames, crops, flips, initialisation and dropout",
    )

    run = _add_run_options(
        parser,
        amp="precision of training: off is float32, as published; bf16 and fp16 compute convolutions and "
        "matrix products in that type, and keep weights, batch norm and the loss in float32 (autocast; fp16 "
        "with a scaled loss); auto is bf16 where the device has instructions for it, otherwise off. "
        "Validation computes everything but the loss in that type, or in float32 where the device has no "
        "instructions for it, as test_models.py does. With --evaluate, the precision of that evaluation "
        "(default: off; a resumed or evaluated checkpoint keeps its own)",
        compiled="compile training with torch.compile, which takes from seconds to minutes at the first "
        "batch and needs a C++ compiler; validation is not compiled, so that its results are those "
        "of test_models.py, unless --evaluate asks for it alone; with several GPUs, use torchrun",
    )
    run.add_argument(
        "--no_channels_last",
        action="store_true",
        help="on GPUs, store tensors as frames x height x width and use 3D kernels, as published (default: "
        "channels last and 2D kernels, which are faster)",
    )
    run.add_argument(
        "--deterministic",
        action="store_true",
        help="on GPUs, use deterministic kernels only, so that two runs give the same bits; slower",
    )
    run.add_argument("--store_name", default="", metavar="NAME", help="appended to the run's name")
    run.add_argument(
        "--checkpoint_dir",
        default="runs",
        metavar="DIR",
        help="folder in which checkpoint/, log/ and tensorboard/ are created",
    )
    run.add_argument(
        "--resume",
        metavar="FILE|auto",
        help="continue from this checkpoint; auto: from the newest intact one of this run, or from scratch "
        "if there is none",
    )
    run.add_argument("--overwrite", action="store_true", help="first delete an existing run of the same name")
    run.add_argument(
        "--start-epoch",
        type=non_negative_int,
        metavar="N",
        help="epoch to start at (default: the one after the checkpoint's, or 0)",
    )
    run.add_argument(
        "-e",
        "--evaluate",
        action="store_true",
        help="only evaluate the checkpoint that --resume names, on the validation list",
    )
    run.add_argument(
        "--save-freq",
        type=positive_int,
        metavar="N",
        help="also save every N steps (default: only after each epoch, and as --save-minutes says)",
    )
    run.add_argument(
        "--save-minutes",
        type=positive_float,
        default=30.0,
        metavar="M",
        help="also save when the last save was M minutes ago",
    )
    run.add_argument(
        "--keep",
        type=number_type(int, 1, 1000),
        default=2,
        metavar="N",
        help="checkpoints to keep, in addition to the best",
    )
    run.add_argument(
        "--eval-freq",
        "-ef",
        type=positive_int,
        default=1,
        metavar="N",
        help="evaluate every N epochs and after the last",
    )
    return parser


def parse_training_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of `main.py`, and refuse what cannot work together before anything takes time.

    Args:
        words: of the command line; None for the process's own.

    Raises:
        UserError: which option, and why.
    """
    parser = training_parser()
    # None for what is not given, so that only what is given is refused.
    args = parser.parse_args(words, argparse.Namespace(alpha=None, beta=None))
    for name in ("alpha", "beta"):
        given = getattr(args, name)
        if name in block_kwargs(args.type):
            setattr(args, name, given or parser.get_default(name))
        elif given is not None:
            raise UserError(f"--{name} {given}: type {args.type} has no {name}; leave it out")
    has_no_weights = args.arch in ARCHS_WITHOUT_WEIGHTS
    if args.pretrained is None:
        args.pretrained = "none" if has_no_weights else "imagenet"
    if args.pretrained == "imagenet" and has_no_weights:
        raise UserError(f"--pretrained imagenet: no such weights exist for {args.arch}; give FILE or none")
    is_name = args.store_name == Path(args.store_name).name and len(os.fsencode(args.store_name)) <= 150
    if not is_name or any(unicodedata.category(character) == "Cc" for character in args.store_name):
        raise UserError(
            f"--store_name {args.store_name}: must fit into a file name: at most 150 bytes, without slashes "
            "and control characters"
        )
    if args.evaluate and (not args.resume or args.resume == "auto"):
        raise UserError("--evaluate needs --resume FILE, the checkpoint to evaluate")
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch}: there are only {args.epochs} --epochs, from 0")
    if args.warmup_epochs >= args.epochs:
        raise UserError(
            f"--warmup_epochs {args.warmup_epochs:g}: must be fewer than the {args.epochs} --epochs"
        )
    if args.num_segments == 1 and args.input_size == 32:
        raise UserError(
            "--num_segments 1 with --input_size 32 leaves batch norm one value; give a larger size"
        )
    if args.resume and args.overwrite:
        raise UserError("--overwrite deletes the run that --resume continues; give one of them")
    if args.freeze_bn and args.sync_bn:
        raise UserError(
            "--sync_bn and --freeze_bn: statistics that are frozen are the same everywhere; give one"
        )
    if args.flip_pairs and args.no_flip:
        raise UserError("--flip_pairs says which classes are mirrored, --no_flip that none is; give one")
    return args


def describe_recipe(args: argparse.Namespace) -> str:
    """For the log: where the options differ from the data set's published recipe; empty for nowhere.

    A batch with the recipe's learning rate is left to `describe_batch`.
    """
    if args.dataset not in RECIPES:
        return (
            f"{args.dataset}: has no published recipe; the defaults are Something-Something's, "
            "see docs/TRAINING.md"
        )
    published = _published(args.dataset)
    changes = []
    if args.batch_size * args.accumulate != published["batch_size"] and args.lr != published["lr"]:
        together = f" with --accumulate {args.accumulate}" if args.accumulate > 1 else ""
        changes.append(f"-b {published['batch_size']} (now {args.batch_size}{together})")
    for name in RECIPE_OPTIONS:
        value = getattr(args, name)
        is_unused = name == "lr_steps" and args.lr_schedule != "step"
        if value != published[name] and not is_unused:
            changes.append(f"--{name} {_shell(published[name])} (now {_shell(value)})")
    if not changes:
        return ""
    return f"{args.dataset}: its published recipe has {', '.join(changes)}; see docs/TRAINING.md"


def _published(dataset: str) -> dict[str, Any]:
    defaults = training_parser()
    recipe = {name: defaults.get_default(name) for name in ("batch_size", *RECIPE_OPTIONS)}
    return recipe | RECIPES.get(dataset, {})


def _shell(value: Any) -> str:
    """An option's value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_batch(args: argparse.Namespace) -> str:
    """For the log: the clips of a step, the learning rate, and whether they fit each other."""
    clips = args.batch_size * args.accumulate
    published = _published(args.dataset)
    text = f"{clips} clips a step"
    if args.accumulate > 1:
        text += f" ({args.accumulate} batches of {args.batch_size})"
    text += f", learning rate {args.lr:g}"
    if clips != published["batch_size"] and args.lr == published["lr"]:
        linear = args.lr * clips / published["batch_size"]
        text += (
            f", which was chosen for {published['batch_size']}: the linear rule would give --lr {linear:g}"
        )
    return text


def testing_parser() -> argparse.ArgumentParser:
    """The options of `test_models.py`."""
    parser = Parser(
        "Evaluate a checkpoint: one clip of each video, one centre crop, or the mean over several views.\n"
        "The kind of model is read from the checkpoint; an option that contradicts it is refused.",
        TESTING_EXAMPLES,
    )
    weights = parser.add_argument_group("checkpoint")
    weights.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint of main.py, a released one, a bare state dict, or an ONNX file of tools/export.py",
    )
    _add_data_options(parser, is_training=False)
    _add_model_options(parser, is_training=False)
    run = _add_run_options(
        parser,
        amp="precision of everything but the loss: off is float32; auto is bf16 where the device has "
        "instructions for it, otherwise off (default: the precision that the checkpoint was trained in, as "
        "in its validation, or float32 where the device has no instructions for it)",
        compiled="compile the model with torch.compile, which takes from seconds to minutes at the first "
        "batch and needs a C++ compiler; the last digits differ from validation's",
    )
    run.add_argument(
        "--fast",
        action="store_true",
        help="--compile, and --amp auto unless --amp is given; with several GPUs, use torchrun or choose one",
    )
    run.add_argument(
        "-b",
        "--batch-size",
        type=number_type(int, 1, 10**5),
        metavar="N",
        help="clips in a batch of each process (default: as in the checkpoint's validation, its training "
        f"batch, but at most {PUBLISHED_BATCH_SIZE} on each GPU)",
    )
    run.add_argument("--max_num", type=positive_int, metavar="N", help="evaluate only the first N videos")
    _add_view_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save_scores",
        metavar="FILE.npz",
        help="write the scores (videos x classes, before softmax), labels, and names of videos and classes",
    )
    output.add_argument(
        "--save_features",
        metavar="FILE.npz",
        help="write what the classifier gets (videos x 2048, the mean over frames and views), likewise",
    )
    output.add_argument(
        "--submission",
        metavar="FILE.csv",
        help="write a line 'id;a;b;c;d;e' for each video: the labels of its five best classes",
    )
    run.add_argument(
        "--report",
        metavar="DIR",
        help="write a report into this new or empty folder: accuracy of each class, confusion matrix, "
        "hardest and mirrored pairs of classes, frames of the most confident mistakes; needs a list with "
        "labels",
    )
    return parser


def video_parser() -> argparse.ArgumentParser:
    """The options of `test_video.py`."""
    parser = Parser(
        "Ask a checkpoint what happens in videos: the five best classes of each.\n"
        "The kind of model is read from the checkpoint; an option that contradicts it is refused.",
        VIDEO_EXAMPLES,
    )
    parser.add_argument(
        "videos",
        nargs="+",
        type=_path,
        metavar="VIDEO",
        help="a video file, a folder of numbered images, or a folder that holds some of them at any depth",
    )
    weights = parser.add_argument_group("checkpoint")
    weights.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint of main.py, a released one, a bare state dict, or an ONNX file of tools/export.py",
    )
    weights.add_argument(
        "--categories",
        metavar="FILE",
        help="class names, one a line, in the order of the classifier (default: those in the checkpoint; "
        "Something-Something's for a released one of 174 classes)",
    )
    _add_model_options(parser, is_training=False)
    _add_view_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the answers, the sampled frames and what the model is as JSON; - for stdout, which then "
        "has nothing else",
    )
    output.add_argument(
        "--rendered_output",
        metavar="FILE",
        help="of a single video: the video with the best class drawn on it (.mp4, or .gif, smaller), or "
        "the frames that the model saw with the five best classes below (.png)",
    )
    run = parser.add_argument_group("run")
    _add_device_options(
        run,
        amp="precision: off is float32; auto is bf16 where the device has instructions "
        "for it, otherwise off (default: as test_models.py)",
    )
    run.add_argument(
        "-b",
        "--batch-size",
        type=number_type(int, 1, 10**5),
        metavar="N",
        help=f"videos in a batch (default: as test_models.py, at most {PUBLISHED_BATCH_SIZE} on each GPU)",
    )
    return parser


def _path(text: str) -> Path:
    if not text:  # would be the working folder
        raise argparse.ArgumentTypeError("is empty, as from an empty variable of a shell")
    return Path(text)


def _add_data_options(parser: argparse.ArgumentParser, is_training: bool) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        type=dataset_name,
        help=f"name of the data set: {', '.join(LAYOUTS)}, or of any other folder in --root_path that has "
        "category.txt, the lists, and frames/ or videos/",
    )
    group.add_argument(
        "--root_path", required=True, metavar="DIR", help="the folder that holds a folder for each data set"
    )
    group.add_argument(
        "--source",
        choices=SOURCES,
        help="read clips from frame folders, or decode them from video files (default: whichever is there; "
        "if both are, the one that the checkpoint was trained on, otherwise frames)",
    )
    if is_training:
        group.add_argument(
            "--train_list", metavar="FILE", help="training list, instead of the data set's own"
        )
    no_labels = "" if is_training else "; if it has no labels, no accuracy is computed"
    group.add_argument(
        "--val_list", metavar="FILE", help=f"validation list, instead of the data set's own{no_labels}"
    )
    group.add_argument(
        "--image_tmpl",
        metavar="TEMPLATE",
        help="file name of a frame, such as {:05d}.jpg, instead of the data set's own",
    )
    group.add_argument(
        "--skip_missing", action="store_true", help="leave out videos that are missing or incomplete"
    )
    more = (
        "; a resumed run may leave out more, and keeps to those that it has; its other batches stay the same"
    )
    group.add_argument(
        "--exclude",
        metavar="FILE",
        help="leave out the videos that this file names, one a line" + (more if is_training else ""),
    )


def _add_view_options(parser: argparse.ArgumentParser) -> None:
    views = parser.add_argument_group("views, whose scores are averaged")
    views.add_argument(
        "--test_crops",
        type=int,
        choices=(1, 3, 5, 10),
        default=1,
        help="1: the centre; 3: left, centre and right (top, centre and bottom of frames higher than wide); "
        "5: corners and centre; 10: those and their mirror images",
    )
    views.add_argument(
        "--num_clips",
        type=number_type(int, 1, 100),
        default=1,
        metavar="N",
        help="clips of each video: of the middle of each segment, then of its beginning, then evenly between",
    )
    views.add_argument(
        "--full_res",
        action="store_true",
        help="crops as large as the scaled frame's short side (256 for an input size of 224)",
    )


_TYPE: dict[str, Any] = {"type": lambda name: PUBLISHED_NAMES.get(name, name), "choices": BLOCKS}
_NUM_SEGMENTS: dict[str, Any] = {"type": number_type(int, 1, MAX_SEGMENTS), "metavar": "N"}
_INPUT_SIZE: dict[str, Any] = {"type": number_type(int, 32, MAX_INPUT_SIZE), "metavar": "N"}
_UNSAID_TYPE = "; decides where the file has only tensors that several types have"
_SIZE_HELP = "height and width of the network's input, in pixels"
_UNSAID_SIZE = "; 224 where the checkpoint does not say"


def _frames_help(unsaid: str) -> str:
    return f"frames in a clip; {unsaid} where the checkpoint does not say"


def _add_model_options(parser: argparse.ArgumentParser, is_training: bool) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("model")

    def add(name: str, value: Any, help_text: str, **kwargs: Any) -> None:
        group.add_argument(name, default=value if is_training else None, help=help_text, **kwargs)

    add(
        "--type",
        "GST",
        "type of block: GST, or a baseline: C2D (each frame by itself, as TSN), C3D (3x3x3; R3D is its other "
        "name), S3D (1x3x3, then 3x1x1), TSM (C2D with channels shifted in time)"
        f"{'' if is_training else _UNSAID_TYPE}",
        **_TYPE,
    )
    add("--arch", "resnet50", "backbone; resnet14 and resnet26 are for small machines", choices=DEPTHS)
    add("--alpha", 4, "one in ALPHA of a block's channels is temporal (GST only)", type=int, choices=ALPHAS)
    add(
        "--beta",
        2,
        "each path reads one in BETA of the channels: 2 is GST, 1 is GST-Large (GST only)",
        type=int,
        choices=BETAS,
    )
    add("--num_segments", 8, "frames in a clip" if is_training else _frames_help("8"), **_NUM_SEGMENTS)
    add("--input_size", 224, _SIZE_HELP + ("" if is_training else _UNSAID_SIZE), **_INPUT_SIZE)
    return group


def add_unsaid_options(parser: argparse.ArgumentParser, unsaid_frames: str = "8") -> None:
    """Add the options for what a checkpoint's tensors do not say of its model, and nothing else may.

    Args:
        parser: of a tool that has `--weights`.
        unsaid_frames: what `--num_segments` is where the checkpoint does not say it, for the help.
    """
    parser.add_argument("--type", help=f"type of block{_UNSAID_TYPE}", **_TYPE)
    parser.add_argument("--num_segments", help=_frames_help(unsaid_frames), **_NUM_SEGMENTS)
    parser.add_argument("--input_size", help=_SIZE_HELP + _UNSAID_SIZE, **_INPUT_SIZE)
    parser.set_defaults(arch=None, alpha=None, beta=None)  # which the tensors say


def _add_run_options(parser: argparse.ArgumentParser, amp: str, compiled: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("run")
    group.add_argument(
        "-j",
        "--workers",
        type=number_type(int, 0, 256),
        default=min(16, max(1, cores() // max(1, environment_number("LOCAL_WORLD_SIZE", 1)))),
        metavar="N",
        help="processes that load clips, for each process of torchrun; by default as many as it has cores, "
        "at most 16",
    )
    group.add_argument(
        "--resize",
        choices=("device", "workers"),
        help="where frames are resized, with the same pixels: where the model is, or by Pillow in the "
        "processes that load clips (default: device on a GPU, workers on a CPU)",
    )
    _add_device_options(group, amp)
    group.add_argument(
        "--compile",
        action="store_true",
        help=compiled,
    )
    group.add_argument(
        "--print-freq", "-p", type=positive_int, default=20, metavar="N", help="log a line every N batches"
    )
    return group


def _add_device_options(group: argparse._ArgumentGroup, amp: str) -> None:
    group.add_argument(
        "--gpus",
        type=non_negative_int,
        nargs="+",
        metavar="N",
        help="indices of the GPUs to use (default: all that are visible, or the CPU if there is none)",
    )
    group.add_argument(
        "--amp",
        choices=("off", "bf16", "fp16", "auto"),
        help=amp,
    )


def evaluation_batch_size(option: int | None, trained: int | None, num_devices: int) -> int:
    """Clips that a process evaluates together.

    Every program takes the same for a checkpoint, since the last digits may depend on it: at most the
    published 24 for each device, so that what several GPUs have trained can be evaluated anywhere.

    Args:
        option: of the command line; it is taken as it is.
        trained: clips in a batch that the checkpoint was trained with; None where it does not say.
        num_devices: that share a batch by DataParallel.
    """
    return option or min(trained or PUBLISHED_BATCH_SIZE, PUBLISHED_BATCH_SIZE) * num_devices
