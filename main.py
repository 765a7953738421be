"""Train GST: `python main.py -h` for the options."""

import math
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

import opts
from dataset import (
    ClipSampler,
    VideoDataSet,
    check_videos,
    evaluation_batches,
    make_loader,
)
from datasets_video import DatasetPaths, flip_label_map, return_dataset, unflippable_labels
from engine import LossWatch, evaluate, train_steps
from gst import check_split
from models import TemporalModel
from resnet_gst import load_2d_weights
from transforms import evaluation_transform, training_transform
from utils.checkpoint import (
    check_categories,
    describe_model,
    load_checkpoint,
    load_newest,
    load_weights,
    read_pretrained,
    saved_option,
)
from utils.cli import InputError, check_writable_folder, run_program
from utils.deploy import compile_model, keep_freed_memory, to_channels_last
from utils.distributed import World, start
from utils.metrics import ClipMeters, averages
from utils.optim import learning_rate, load_optimizer, make_optimizer
from utils.precision import emulation_warning, evaluation_precision, training_precision
from utils.run import Curves, Interruption, RunFiles, Saver, write_csv, write_json

# What may not change between a checkpoint and the run that goes on from it.
MODEL_OPTIONS = ("dataset", "type", "arch", "alpha", "beta", "num_segments", "input_size", "dropout")
STEP_OPTIONS = ("batch_size", "accumulate", "sync_bn", "momentum", "weight_decay", "clip_gradient")
RATE_OPTIONS = ("lr", "lr_schedule", "lr_steps", "warmup_epochs")
RECIPE = (*MODEL_OPTIONS, *STEP_OPTIONS, *RATE_OPTIONS, "seed", "amp")


def main() -> None:
    """Train as the command line says."""
    args = opts.training_parser().parse_args()
    check_options(args)
    world = start(args.gpus)
    if world.device.type == "cpu":
        keep_freed_memory()
    files = RunFiles.of(args)
    args.resume, saved = world.share(find_checkpoint(args.resume, files) if world.is_main else None)
    trained_in = saved_option(saved, "amp", args.resume) if saved else None
    if args.evaluate:
        trained_batch = min(
            args.batch_size, saved_option(saved, "batch_size", args.resume) or args.batch_size
        )
        validation = evaluation_precision(args.amp, trained_in or "off", world.device)
        warning = emulation_warning(validation, world.device)
    else:
        trained_batch = args.batch_size
        precision = training_precision(args.amp, trained_in, world.device)
        args.amp = precision.amp
        validation = evaluation_precision(None, args.amp, world.device)
        warning = emulation_warning(precision, world.device)
    val_batch = opts.evaluation_batch_size(None, trained_batch, len(world.devices))
    check_run(args, files, saved)
    if warning and world.is_main:
        print(warning, file=sys.stderr)

    paths = return_dataset(
        args.dataset, args.root_path, args.train_list, args.val_list, args.image_tmpl, not args.evaluate
    )
    categories = paths.categories
    train_set = None if args.evaluate else open_videos(args, paths, is_training=True)
    val_set = open_videos(args, paths, is_training=False)
    if saved:
        check_data(args, saved, train_set, categories)

    model = build_model(args, categories, saved, world)
    val_set.transform = evaluation_transform(model.scale_size, model.crop_size)
    val_batches = evaluation_batches(len(val_set), val_batch, world.rank, world.size)
    val_loader = make_loader(val_set, val_batches, args.workers)
    model.to(world.device)
    if args.channels_last or world.device.type == "cpu":
        to_channels_last(model, world.device)
    print(world.describe(val_batch if args.evaluate else args.batch_size))
    told = "" if args.evaluate else f"training in {precision}; "
    print(f"precision: {told}validation in {validation}")
    if args.evaluate:
        result = evaluate(val_loader, model, world, validation.amp, args.print_freq, compiled=args.compile)
        print(f"{result}{val_set.coverage()}")
        return

    train_set.transform = training_transform(
        model.crop_size, model.target_transforms, unflippable_labels(categories)
    )
    sampler = ClipSampler(len(train_set), args.batch_size, args.seed, args.accumulate, world.rank, world.size)
    train_loader = make_loader(train_set, sampler, args.workers)
    optimizer = make_optimizer(model, args)
    scaler = torch.amp.GradScaler(world.device.type, enabled=args.amp == "fp16")
    train_model = world.place(model, for_training=True, sync_bn=args.sync_bn)
    if args.compile:
        compile_model(train_model)

    first_epoch, step, totals, best_prec1, history = args.start_epoch or 0, 0, None, 0.0, []
    if saved:
        first_epoch = saved.get("epoch", first_epoch)
        step, totals = saved.get("step", 0), saved.get("totals")
        best_prec1, history = saved.get("best_prec1", 0.0), saved.get("history", [])
        print(f"resumed {args.resume} at epoch {first_epoch}, step {step}, best Prec@1 {best_prec1:.3f}")
        load_optimizer(optimizer, scaler, saved, args.resume)
        del saved
    clips_in_step = args.batch_size * args.accumulate
    if (
        clips_in_step != opts.PUBLISHED_BATCH_SIZE
        and args.lr == opts.PUBLISHED_LR
        and first_epoch < args.epochs
    ):
        linear = opts.PUBLISHED_LR * clips_in_step / opts.PUBLISHED_BATCH_SIZE
        print(
            f"{clips_in_step} clips a step with the default --lr {args.lr:g}, which was chosen for "
            f"{opts.PUBLISHED_BATCH_SIZE}: the linear rule would give --lr {linear:g}"
        )

    curves = None
    if world.is_main:
        try:
            files.prepare(args.overwrite)
            write_json(files.json, args, model, world, train_set, val_set)
            write_csv(files.csv, history)
            curves = Curves(files.tensorboard, first_epoch * sampler.num_steps + step)
        except OSError as error:
            raise InputError(
                f"--checkpoint_dir {args.checkpoint_dir}: cannot write there ({error})"
            ) from None
        if not files.best.exists():
            best_prec1 = 0.0  # of another run, whose best checkpoint is not this one's

    def report(step: int, values: dict[str, float]) -> None:
        if curves:
            curves.add(values, step)

    print(f"run {files.name}, written below {args.checkpoint_dir}")
    interruption = Interruption()
    saver = Saver(files, args.keep, world.is_main)
    watch = LossWatch(train_loader)
    meters = ClipMeters(world, totals)

    def save(epoch: int, step: int, **how: bool) -> None:
        watch.check()
        content = {
            "epoch": epoch,
            "step": step,
            "arch": args.arch,
            "state_dict": model.state_dict(),
            "best_prec1": best_prec1,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "totals": meters.totals,
            "history": history,
            "options": vars(args),
            "categories": categories,
            "data": train_set.fingerprint(),
            "run": files.name,
        }
        saver.save(content, **how)

    def stop_if_asked(epoch: int, step: int) -> None:
        if number := world.max(interruption.number)[0]:
            save(epoch, step, is_last=True)
            name = signal.Signals(number).name
            print(f"stopped by {name} and saved {files.checkpoint}; --resume auto goes on")
            sys.exit(128 + number)

    for epoch in range(first_epoch, args.epochs):
        sampler.start(epoch, step)
        began = time.monotonic()
        for step in train_steps(
            train_loader, train_model, model, optimizer, scaler, meters, watch, args, world, report
        ):
            stop_if_asked(epoch, step)
            is_time = world.max(world.is_main and time.monotonic() - saver.time > 60 * args.save_minutes)[0]
            if is_time or (args.save_freq and step % args.save_freq == 0):
                save(epoch, step)

        loss, prec1, prec5 = averages(meters.totals)
        seconds = time.monotonic() - began
        print(f"Training Results: Prec@1 {prec1:.3f} Prec@5 {prec5:.3f} Loss {loss:.5f} ({seconds:.0f} s)")
        row = {"epoch": epoch, "lr": learning_rate(args, epoch)}
        row |= {"train_loss": loss, "train_prec1": prec1, "train_prec5": prec5}
        is_best = False
        if (epoch + 1) % args.eval_freq == 0 or epoch + 1 == args.epochs:
            result = evaluate(
                val_loader,
                model,
                world,
                validation.amp,
                args.print_freq,
                is_stopped=lambda: world.max(interruption.number)[0] > 0,
            )
            if result is None:
                stop_if_asked(epoch, sampler.num_steps)
            if not math.isfinite(result.loss):
                raise InputError(
                    f"epoch {epoch}: the validation loss is {result.loss}, so training stops and "
                    "nothing more is saved; try a smaller --lr"
                )
            is_best = result.prec1 > best_prec1 or not files.best.exists()
            best_prec1 = max(best_prec1, result.prec1)
            measured = {"loss": result.loss, "prec1": result.prec1, "prec5": result.prec5}
            measured["mean_class"] = result.mean_class
            row |= {f"val_{name}": value for name, value in measured.items()}
            report((epoch + 1) * sampler.num_steps, {f"val/{k}": v for k, v in measured.items()})
            print(f"{result}{val_set.coverage()}\nBest Prec@1: {best_prec1:.3f}")
        history.append(row)
        step, meters = 0, ClipMeters(world)
        save(epoch + 1, 0, is_best=is_best, is_last=epoch + 1 == args.epochs)
        if epoch + 1 < args.epochs:
            stop_if_asked(epoch + 1, 0)
    if files.best.exists():
        print(f"best checkpoint, Prec@1 {best_prec1:.3f}: {files.best}")


def open_videos(args: Namespace, paths: DatasetPaths, is_training: bool) -> VideoDataSet:
    """Read one of the two lists, and check that its videos are there.

    Raises:
        InputError: see `VideoDataSet` and `check_videos`.
    """
    videos = VideoDataSet(
        paths.root_data,
        paths.train_list if is_training else paths.val_list,
        args.num_segments,
        paths.prefix,
        random_shift=is_training,
        num_class=len(paths.categories),
        seed=args.seed,
    )
    check_videos(videos, args.skip_missing)
    what = "training" if is_training else "validation"
    print(f"{args.dataset}: {len(videos)} {what} clips, {len(paths.categories)} classes")
    return videos


def check_options(args: Namespace) -> None:
    """Refuse options that cannot work, before anything takes time.

    Raises:
        InputError: which option, and why.
    """
    try:
        check_split(args.alpha, args.beta)
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if args.pretrained is None:
        args.pretrained = "none" if args.arch in ("resnet14", "resnet26") else "imagenet"
    if args.pretrained == "imagenet" and args.arch in ("resnet14", "resnet26"):
        raise InputError(f"--pretrained imagenet: no such weights exist for {args.arch}; give FILE or none")
    if args.store_name != Path(args.store_name).name:
        raise InputError(f"--store_name {args.store_name}: must be good for a file's name")
    if args.evaluate and (not args.resume or args.resume == "auto"):
        raise InputError("--evaluate needs --resume FILE, the checkpoint to evaluate")
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        raise InputError(f"--start-epoch {args.start_epoch}: there are only {args.epochs} --epochs, from 0")
    if args.warmup_epochs >= args.epochs:
        raise InputError(
            f"--warmup_epochs {args.warmup_epochs:g}: must be fewer than the {args.epochs} --epochs"
        )
    if args.num_segments == 1 and args.input_size == 32:
        raise InputError(
            "--num_segments 1 with --input_size 32 leaves batch norm one value; give a larger size"
        )
    if args.resume and args.overwrite:
        raise InputError("--overwrite deletes the run that --resume goes on with; give one of them")


def find_checkpoint(resume: str | None, files: RunFiles) -> tuple[str | None, dict[str, Any] | None]:
    """Load the checkpoint to go on from.

    Returns:
        Its file and its content; the latter is None to start afresh.

    Raises:
        InputError: it cannot be loaded.
    """
    if resume != "auto":
        return resume, load_checkpoint(resume) if resume else None
    newest = load_newest(files.checkpoint)
    if newest is None:
        print("--resume auto: this run has no checkpoint yet, it starts afresh")
        return resume, None
    return str(newest[0]), newest[1]


def check_run(args: Namespace, files: RunFiles, saved: dict[str, Any] | None) -> None:
    """Refuse to mix two different runs.

    Raises:
        InputError: the checkpoint is of another model or recipe, or older files would be overwritten.
    """
    if saved:
        spec = describe_model(saved["state_dict"], args.resume)
        before = {"arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
        options = saved.get("options", {})
        before |= {} if args.evaluate else {name: options[name] for name in RECIPE if name in options}
        changed = [name for name, value in before.items() if getattr(args, name) != value]
        if changed:
            told = ", ".join(f"{name} {before[name]} (now {getattr(args, name)})" for name in changed)
            raise InputError(f"{args.resume} was made with {told}: give the same options to go on with it")
        known = saved.get("epoch")
        if args.start_epoch is not None and known is not None and args.start_epoch != known:
            raise InputError(f"--start-epoch {args.start_epoch}: {args.resume} goes on at epoch {known}")
    check_writable_folder(args.checkpoint_dir, "--checkpoint_dir")
    old = files.existing()
    # With auto and no checkpoint, a run was killed before its first save.
    is_continued = saved.get("run") == files.name if saved else args.resume == "auto"
    if old and not (is_continued or args.overwrite or args.evaluate):
        raise InputError(
            f"an older run of this name is there: {', '.join(map(str, old))}; go on with it (--resume auto), "
            "name this run otherwise (--store_name), or delete it (--overwrite)"
        )


def check_data(
    args: Namespace, saved: dict[str, Any], train_set: VideoDataSet | None, categories: list[str]
) -> None:
    """Refuse to go on with other data than a checkpoint was made with.

    Raises:
        InputError: other classes, or another training list.
    """
    check_categories(saved, categories, args.resume)
    if train_set and saved.get("data", train_set.fingerprint()) != train_set.fingerprint():
        raise InputError(
            f"{train_set.list_file}: is not the list that {args.resume} was trained on; videos, numbers of "
            "frames, labels or their order differ"
        )


def build_model(
    args: Namespace, categories: list[str], saved: dict[str, Any] | None, world: World
) -> TemporalModel:
    """Build the model with its weights: a checkpoint's, a 2D ResNet's, or random ones.

    Raises:
        InputError: the weights cannot be had, or do not fit.
    """
    torch.manual_seed(args.seed)
    swaps = flip_label_map(categories)
    model = TemporalModel(
        len(categories),
        args.num_segments,
        args.type,
        args.arch,
        args.alpha,
        args.beta,
        args.dropout,
        target_transforms=swaps,
        input_size=args.input_size,
    )
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{args.type} {args.arch}, alpha {args.alpha}, beta {args.beta}: {size:.2f} M parameters, "
        f"{args.num_segments} frames of {args.input_size} x {args.input_size}"
    )
    if saved:
        load_weights(model, saved["state_dict"], args.resume)
    elif args.pretrained != "none" and world.is_main:  # the others get them from it
        source, weights = read_pretrained(args.pretrained, args.arch)
        try:
            loaded, kept = load_2d_weights(model.base_model, weights)
        except ValueError as error:
            raise InputError(f"{source} {error}: it must be a 2D {args.arch}'s state dict") from None
        temporal = sum(".Tconv." in name for name in kept)
        print(f"{source}: {len(loaded)} tensors loaded, not {temporal} Tconv.weight and the classifier")
    elif args.pretrained == "none":
        print("weights: random start")
    if not args.evaluate:
        pairs = ", ".join(f"{a} and {b}" for a, b in swaps.items() if a < b)
        print(f"horizontal flip: swaps the labels {pairs}" if pairs else "horizontal flip: swaps no labels")
        if never := unflippable_labels(categories):
            print(f"horizontal flip: not for these labels, which have no mirrored class: {never}")
    return model


if __name__ == "__main__":
    run_program(main)
