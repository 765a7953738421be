"""Train GST. `python main.py -h` lists the options; docs/TRAINING.md has the recipes.

On one machine, with every GPU that it has:

    python main.py --root_path DATA --dataset somethingv1

One process for each of 8 GPUs, which is faster:

    torchrun --nproc_per_node=8 main.py --root_path DATA --dataset somethingv1

On two such machines, the same on both but for the node's rank (0 and 1):

    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=HOST --master_port=29500 \\
        main.py --root_path DATA --dataset somethingv1

Under Slurm, which warns a job before it ends it; --resume auto continues it:

    srun --signal=TERM@120 torchrun --nproc_per_node=8 main.py --root_path DATA --dataset somethingv1 \\
        --resume auto
"""

import time
from argparse import Namespace
from collections import Counter

import torch

from classes import NEVER, describe_flips, match_categories, mirrored_labels, read_flip_pairs
from dataset import (
    ClipLoader,
    ClipSampler,
    check_excluded,
    check_same_list,
    evaluation_batches,
    open_videos,
    read_excluded,
    remap_labels,
)
from datasets_video import return_dataset
from engine import evaluate, train_one_epoch
from frames.resize import decodes_only
from inference.fuse import compile_model, to_channels_last
from models import TemporalModel, multiply_adds
from opts import describe_batch, describe_recipe, evaluation_batch_size, parse_training_options
from resnet_gst import load_2d_weights
from training.checkpoint import load_start, load_weights, read_pretrained
from training.describe import check_categories, class_names, describe_labels, describe_model, find_labels
from training.optim import make_optimizer
from training.run import Run, TrainState, check_flips
from transforms import evaluation_transform, training_transform
from utils.cli import UserError, log, pluralize, printable, run_program
from utils.distributed import init_distributed
from utils.metrics import DivergedError, averages, check_result
from utils.precision import emulation_warning, evaluation_precision, training_precision


def main(args: Namespace) -> None:
    """Train, or with --evaluate score a checkpoint on the validation list.

    Args:
        args: from `opts.parse_training_options`.

    Raises:
        UserError: something that the user can mend.
    """
    world = init_distributed(args.gpus, args.sync_bn, args.compile)
    run = Run(args, world)
    saved = run.find_checkpoint()
    run.check(saved)

    # Precision: of the training and of the evaluations, as the options, the checkpoint and the hardware say.
    before = saved.get("options", {}) if saved else {}
    trained_in = before.get("amp")
    precision = training_precision(args.amp, trained_in, world.device)
    if args.evaluate:
        validation = precision = evaluation_precision(args.amp, trained_in or "off", world.device)
    else:
        validation = evaluation_precision(None, precision.amp, world.device)
    if world.is_main and (warning := emulation_warning(precision, world.device)):
        log.warning(warning)

    # Data: lists and frames are checked before anything slow happens.
    paths = return_dataset(
        args.dataset,
        args.root_path,
        args.train_list,
        args.val_list,
        args.image_tmpl,
        not args.evaluate,
        args.source,
        before.get("source", "frames"),
    )
    excluded = set(read_excluded(args.exclude) if args.exclude else [])
    if saved and not args.evaluate:
        excluded |= set(saved.get("excluded", []))
    how = {"num_segments": args.num_segments, "seed": args.seed, "skip_missing": args.skip_missing}
    how["excluded"] = excluded
    classes = f"{len(paths.categories)} classes"
    if not args.evaluate:
        given = dict.fromkeys(range(len(paths.categories)), NEVER) if args.no_flip else {}
        if args.flip_pairs:
            given = read_flip_pairs(args.flip_pairs, paths.categories)
        mirrored = mirrored_labels(paths.categories, given)
        transform = training_transform(args.input_size, mirrored)
        train_set = open_videos(paths, transform=transform, is_training=True, **how)
        count = pluralize(len(train_set.included), "training clip")
        log.info(f"{args.dataset}: {count} from {paths.source}, {classes}")
    val_set = open_videos(paths, transform=evaluation_transform(args.input_size), **how)
    count = pluralize(len(val_set.included), "validation clip")
    log.info(f"{args.dataset}: {count} from {paths.source}, {classes}")
    if world.is_main:
        check_excluded(excluded, [val_set] if args.evaluate else [train_set, val_set])
    if saved and args.evaluate:
        labels = find_labels(saved, paths.categories, run.checkpoint)
        val_set.labels = remap_labels(val_set.labels, labels)
        if line := describe_labels(labels, run.checkpoint):
            log.info(line)
    elif saved:
        check_categories(saved, paths.categories, run.checkpoint)
        check_flips(mirrored, saved, paths.categories, run.checkpoint)
        check_same_list(train_set, saved.get("data"), run.checkpoint, "trained")
        check_same_list(val_set, saved.get("val_data"), run.checkpoint, "validated")
        was = before.get("source", paths.source)
        if was != paths.source and world.is_main:
            log.warning(f"warning: the run continues on other pixels: clips from {paths.source} (were {was})")
    val_batch = evaluation_batch_size(
        None, min(args.batch_size, before.get("batch_size", args.batch_size)), len(world.devices)
    )
    val_batches = evaluation_batches(val_set.included, val_batch, world.rank, world.size)
    val_loader = ClipLoader(val_set, val_batches, args.workers, decodes_only(args.resize, world.device))

    # Model: a checkpoint's weights, ImageNet's, or random ones.
    torch.manual_seed(args.seed)
    model = TemporalModel(
        len(paths.categories),
        args.num_segments,
        args.type,
        args.arch,
        args.alpha,
        args.beta,
        args.dropout,
        args.input_size,
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info(
        f"{model.description}: "
        f"{num_parameters / 1e6:.2f} M parameters, {multiply_adds(model) / 1e9:.1f} G multiply-adds, "
        f"{args.num_segments} frames of {args.input_size} x {args.input_size}"
    )
    has_new_classifier = True
    if saved:
        load_weights(model, saved["state_dict"], run.checkpoint)
        has_new_classifier = saved.get("new_classifier", False)
    elif args.pretrained == "none":
        log.info("weights: random start")
    else:  # the other processes get them from the main one
        has_new_classifier = world.broadcast(
            load_pretrained(model, args, paths.categories) if world.is_main else None
        )
    model.to(world.device)
    if args.channels_last or world.device.type == "cpu":
        to_channels_last(model, world.device, for_training=not args.evaluate)
    log.info(world.describe(val_batch * world.size if args.evaluate else args.batch_size))
    if args.evaluate:
        log.info(f"precision: validation in {validation}")
        result = evaluate(val_loader, model, world, validation.amp, args.print_freq, compiled=args.compile)
        log.info(f"{result}{val_set.coverage()}")
        check_result(result, run.checkpoint)
        return
    for line in describe_flips(paths.categories, mirrored):
        log.info(line)
    log.info(f"precision: training in {precision}; validation in {validation}")

    # Optimizer, and where a resumed run continues.
    optimizer = make_optimizer(model, args, args.lr_mult_new if has_new_classifier else 1.0)
    if args.lr_mult_new != 1 and not has_new_classifier:
        log.info("--lr_mult_new has no effect: the classifier did not start from scratch")
    scaler = torch.amp.GradScaler(world.device.type, enabled=precision.amp == "fp16")
    options = vars(args) | {"amp": precision.amp, "source": paths.source}
    metadata = {"arch": args.arch, "options": options, "categories": paths.categories, "mirrored": mirrored}
    metadata |= {"data": train_set.fingerprint(), "val_data": val_set.fingerprint()}
    metadata |= {"excluded": sorted(excluded), "run": run.files.name, "num_devices": world.num_devices}
    metadata["new_classifier"] = has_new_classifier
    state = TrainState(model, optimizer, scaler, world, metadata)
    state.epoch = args.start_epoch or 0
    if saved:
        state.load_state_dict(saved, run.checkpoint)
        del saved
        log.info(
            f"resumed {run.checkpoint} at epoch {state.epoch}, step {state.step}, "
            f"best Prec@1 {state.best_prec1:.3f}{state.best_epoch}"
        )
    elif recipe := describe_recipe(args):
        log.info(recipe)
    log.info(describe_batch(args))
    sampler = ClipSampler(
        len(train_set),
        args.batch_size,
        args.seed,
        args.accumulate,
        world.rank,
        world.size,
        train_set.is_excluded,
    )
    train_loader = ClipLoader(train_set, sampler, args.workers, decodes_only(args.resize, world.device))
    steps = sampler.num_steps
    if not any(sampler.batch_sizes()):
        raise UserError(f"{train_set.list_file}: no batch has a clip for each of the {world.size} processes")
    if state.step > steps:
        raise UserError(f"{run.checkpoint}: its step {state.step} is beyond the {steps} steps of an epoch")
    trained = world.wrap(model, for_training=True, sync_bn=args.sync_bn)
    if args.compile:
        compile_model(trained)
    sizes = {"training": len(train_set.included), "validation": len(val_set.included)}
    written = {"options": options, "devices": world.describe(args.batch_size), "parameters": num_parameters}
    first_step = state.epoch * steps + state.step
    run.begin(state, written | {"clips": sizes}, first_step)
    lengths = {"training": train_set.num_frames[train_set.included]}
    lengths["validation"] = val_set.num_frames[val_set.included]
    run.show_lengths(lengths, first_step)

    def show_batch(clips: torch.Tensor, labels: torch.Tensor) -> None:
        keys, step = next(iter(sampler)), sampler.epoch * steps + sampler.first_step
        run.show_batch(clips, labels, train_set, keys, paths.categories, step)

    # The epochs: a checkpoint is saved, and signals are answered, between any two steps.
    for epoch in range(state.epoch, args.epochs):
        sampler.start(epoch, state.step)
        began = time.monotonic()
        try:
            for step in train_one_epoch(
                trained,
                model,
                train_loader,
                optimizer,
                scaler,
                state.meters,
                state.watch,
                world,
                args,
                precision.amp,
                epoch,
                sampler.batch_sizes(),
                state.step,
                show_batch,
            ):
                state.step = step.done
                run.add_curves(step.curves, epoch * steps + step.done - 1)
                run.save_if_due(state)
            state.watch.check()
        except DivergedError as error:
            clips = ", ".join(printable(train_set.record(clip).path) for clip in sampler.clips_of(error.step))
            raise UserError(
                f"epoch {epoch}, step {error.step}: loss or gradient is {error.loss}, so training stops and "
                f"nothing more is saved; try a smaller --lr. The clips of that step: {clips}"
            ) from None
        loss, prec1, prec5 = averages(state.meters.totals)
        seconds = time.monotonic() - began
        log.info(f"Training Results: Prec@1 {prec1:.3f} Prec@5 {prec5:.3f} Loss {loss:.5f} ({seconds:.0f} s)")

        result, began = None, time.monotonic()
        if (epoch + 1) % args.eval_freq == 0 or epoch + 1 == args.epochs:
            result = evaluate(
                val_loader, model, world, validation.amp, args.print_freq, interruption=run.interruption
            )
            if result is None:
                run.stop_if_asked(state)
            log.info(f"{result}{val_set.coverage()}")
        run.end_epoch(state, result, time.monotonic() - began, steps)
    if run.files.best.exists():
        log.info(f"best checkpoint, Prec@1 {state.best_prec1:.3f}{state.best_epoch}: {run.files.best}")


def load_pretrained(model: TemporalModel, args: Namespace, categories: list[str]) -> bool:
    """Start from a 2D ResNet's weights, or from another checkpoint's.

    Args:
        model: changed in place.
        args: `pretrained`, and what describes the model.
        categories: the data set's class names.

    Returns:
        Whether the classifier starts from scratch.

    Raises:
        UserError: they cannot be loaded, or do not fit.
    """
    source, start = read_pretrained(args.pretrained, args.arch)
    if not any(name.startswith("base_model.") for name in start["state_dict"]):
        try:
            loaded, kept = load_2d_weights(model.base_model, start["state_dict"])
        except ValueError as error:
            raise UserError(
                f"{source} {error}: it must be a 2D {args.arch}'s state dict or a checkpoint of this code"
            ) from None
        new = Counter(name.split(".", 2)[2] for name in kept if name.startswith("layer"))
        new = [f"{count} {name}" for name, count in new.items() if not name.endswith("num_batches_tracked")]
        log.info(f"{source}: {len(loaded)} tensors loaded, not {' and '.join([*new, 'the classifier'])}")
        return True
    spec = describe_model(start, source, args.type)
    names = [name for name in ("type", "arch", "alpha", "beta") if getattr(spec, name) != getattr(args, name)]
    names = [name for name in names if getattr(spec, name) is not None]
    if names:
        values = ", ".join(f"{name} {getattr(spec, name)} (now {getattr(args, name)})" for name in names)
        options = " ".join(f"--{name} {getattr(spec, name)}" for name in names)
        raise UserError(f"--pretrained {source} is a model with {values}: give {options}")
    known = class_names(start, source)
    places = match_categories(categories, known) if known else None
    load_start(model, start, places, source)
    if places is None:
        why = "its classes are not those of category.txt" if known else "the file does not name its classes"
        log.info(f"{source}: backbone loaded; the classifier starts from scratch, since {why}")
    else:
        order = "" if places == sorted(places) else ", in another order"
        log.info(f"{source}: backbone and classifier loaded, since the classes are the same{order}")
    return places is None


if __name__ == "__main__":
    run_program(main, parse_training_options)
