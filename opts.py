"""Every command-line option of `main.py` and `test_models.py`."""

import argparse
import os
from typing import Any

from utils.cli import (
    Parser,
    cores,
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

DATASETS = ("somethingv1", "somethingv2", "diving48")
ARCHS = ("resnet14", "resnet26", "resnet50", "resnet101", "resnet152")
PUBLISHED_LR = 0.01
PUBLISHED_BATCH_SIZE = 24


def training_parser() -> argparse.ArgumentParser:
    """The options of `main.py`."""
    parser = Parser("Train GST on a data set of frame folders.", TRAINING_EXAMPLES)
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
        help="start from torchvision's ImageNet weights, from random ones, or from a file with a 2D ResNet's "
        "weights (default: imagenet; none for resnet14 and resnet26, which have no such weights)",
    )
    recipe = parser.add_argument_group("recipe (the defaults are the paper's)")
    recipe.add_argument("--epochs", type=positive_int, default=70, metavar="N", help="number of epochs")
    recipe.add_argument(
        "-b",
        "--batch-size",
        type=positive_int,
        default=PUBLISHED_BATCH_SIZE,
        metavar="N",
        help="clips in a training batch, over all GPUs and processes; validation takes at most "
        f"{PUBLISHED_BATCH_SIZE} at a time on each",
    )
    recipe.add_argument(
        "--accumulate",
        type=positive_int,
        default=1,
        metavar="K",
        help="batches that make one step, as one batch of K times the size would (apart from batch norm)",
    )
    recipe.add_argument(
        "--sync_bn", action="store_true", help="batch norm over the clips of all processes of torchrun"
    )
    recipe.add_argument(
        "--lr",
        "--learning-rate",
        type=positive_float,
        default=PUBLISHED_LR,
        metavar="LR",
        help="learning rate",
    )
    recipe.add_argument(
        "--lr_schedule",
        choices=("step", "cosine"),
        default="step",
        help="divide the rate by 10 at --lr_steps, or let it fall to 0 on half a cosine",
    )
    recipe.add_argument(
        "--lr_steps",
        type=positive_int,
        nargs="+",
        default=[50, 60],
        metavar="EPOCH",
        help="epochs at which the rate is divided by 10",
    )
    recipe.add_argument(
        "--warmup_epochs",
        type=non_negative_float,
        default=0.0,
        metavar="N",
        help="epochs over which the rate rises from 0 at the start",
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
        help="the gradient's norm is clipped at this",
    )
    recipe.add_argument(
        "--seed",
        type=number_type(int, 0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of all that is random: order, frames, crops, flips, initialisation, dropout",
    )

    run = _add_run_options(
        parser,
        amp="precision of training: off is float32, as published; bf16 and fp16 compute convolutions and "
        "products in that type and keep weights, sums and the loss in float32 (autocast; fp16 with a scaled "
        "loss); auto is bf16 where the device has instructions for it, else off. Validation computes "
        "everything but the loss in that type, or in float32 where the device has no instructions for it, "
        "as test_models.py does. (default: off; a resumed run keeps its checkpoint's)",
        compiled="compile training with torch.compile, which takes from seconds to minutes at the first "
        "batch and needs a C++ compiler; validation is never compiled, so that its numbers are those "
        "of test_models.py",
    )
    run.add_argument(
        "--channels_last",
        action="store_true",
        help="keep channels last in memory, and on GPUs compute with 2D kernels on frames; on the CPU, "
        "where it is always faster, this is so anyway",
    )
    run.add_argument("--store_name", default="", metavar="NAME", help="added to the run's name")
    run.add_argument(
        "--checkpoint_dir",
        default="runs",
        metavar="DIR",
        help="where checkpoint/, log/ and tensorboard/ are written",
    )
    run.add_argument(
        "--resume",
        metavar="FILE|auto",
        help="go on from this checkpoint; auto: from this run's newest good one, or afresh if it has none",
    )
    run.add_argument("--overwrite", action="store_true", help="delete an older run of the same name first")
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
        help="save every N steps, too (default: only after an epoch, and by --save-minutes)",
    )
    run.add_argument(
        "--save-minutes",
        type=positive_float,
        default=30.0,
        metavar="M",
        help="save when the last save was M minutes ago, too",
    )
    run.add_argument(
        "--keep", type=positive_int, default=2, metavar="N", help="checkpoints to keep, beside the best"
    )
    run.add_argument(
        "--eval-freq",
        "-ef",
        type=positive_int,
        default=1,
        metavar="N",
        help="evaluate every N epochs, and after the last",
    )
    return parser


def testing_parser() -> argparse.ArgumentParser:
    """The options of `test_models.py`."""
    parser = Parser(
        "Evaluate a checkpoint: one clip of each video, one centre crop.\n"
        "What the model is, is read from the checkpoint; an option that contradicts it is refused.",
        TESTING_EXAMPLES,
    )
    weights = parser.add_argument_group("checkpoint")
    weights.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint of main.py, a released one, or a bare state dict",
    )
    _add_data_options(parser, is_training=False)
    _add_model_options(parser, is_training=False)
    run = _add_run_options(
        parser,
        amp="precision of everything but the loss: off is float32; auto is bf16 where the device has "
        "instructions for it, else off (default: what the checkpoint was trained in, as in its validation; "
        "float32 where the device has no instructions for that)",
        compiled="compile the model with torch.compile, which takes from seconds to minutes at the first "
        "batch and needs a C++ compiler; the last digits differ from validation's",
    )
    run.add_argument(
        "--fast",
        action="store_true",
        help="--compile, and --amp auto unless --amp is given",
    )
    run.add_argument(
        "-b",
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="clips evaluated together in each process (default: as in the checkpoint's validation: those of "
        f"its training batch, at most {PUBLISHED_BATCH_SIZE} on each GPU)",
    )
    run.add_argument("--max_num", type=positive_int, metavar="N", help="evaluate the first N videos only")
    run.add_argument(
        "--save_scores",
        metavar="FILE.npz",
        help="write scores (clips x classes, before any softmax), labels, and videos (their names)",
    )
    return parser


def _add_data_options(parser: argparse.ArgumentParser, is_training: bool) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", required=True, choices=DATASETS, help="the data set")
    group.add_argument(
        "--root_path", required=True, metavar="DIR", help="the folder that holds a folder for each data set"
    )
    if is_training:
        group.add_argument(
            "--train_list", metavar="FILE", help="training list, instead of the data set's own"
        )
    group.add_argument("--val_list", metavar="FILE", help="validation list, instead of the data set's own")
    group.add_argument(
        "--image_tmpl",
        metavar="TEMPLATE",
        help="a frame's file name, as {:05d}.jpg, instead of the data set's own",
    )
    group.add_argument(
        "--skip_missing", action="store_true", help="go on without the videos whose frames are not there"
    )


def _add_model_options(parser: argparse.ArgumentParser, is_training: bool) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("model")

    def add(name: str, value: Any, help_text: str, **kwargs: Any) -> None:
        group.add_argument(name, default=value if is_training else None, help=help_text, **kwargs)

    add("--type", "GST", "the kind of block", choices=("GST",))
    add("--arch", "resnet50", "the backbone; resnet14 and resnet26 are for small machines", choices=ARCHS)
    add("--alpha", 4, "one in ALPHA of a block's channels is temporal", type=int, metavar="ALPHA")
    add(
        "--beta",
        2,
        "each path reads one in BETA of the channels: 2 is GST, 1 is GST-Large",
        type=int,
        metavar="BETA",
    )
    unknown = "" if is_training else "; 8 where the checkpoint does not say"
    add("--num_segments", 8, f"frames in a clip{unknown}", type=positive_int, metavar="N")
    unknown = "" if is_training else "; 224 where the checkpoint does not say"
    add(
        "--input_size",
        224,
        f"height and width that the network sees, in pixels{unknown}",
        type=number_type(int, 32),
        metavar="N",
    )
    return group


def _add_run_options(parser: argparse.ArgumentParser, amp: str, compiled: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("run")
    group.add_argument(
        "-j",
        "--workers",
        type=non_negative_int,
        default=min(16, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))),
        metavar="N",
        help="processes that load clips, for each process of torchrun; the default is the cores that it "
        "has, 16 at the most",
    )
    group.add_argument(
        "--gpus",
        type=non_negative_int,
        nargs="+",
        metavar="N",
        help="numbers of the GPUs to use (default: all that are visible; the CPU where there is none)",
    )
    group.add_argument(
        "--amp",
        choices=("off", "bf16", "fp16", "auto"),
        help=amp,
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help=compiled,
    )
    group.add_argument(
        "--print-freq", "-p", type=positive_int, default=20, metavar="N", help="log a line every N batches"
    )
    return group


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
