"""Train GST: `python main.py -h` for the options."""

import csv
import io
import json
import platform
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from tensorboardX import SummaryWriter

import opts
from checkpoint import (
    check_categories,
    describe_model,
    load_checkpoint,
    load_weights,
    read_pretrained,
    save_checkpoint,
    write_atomically,
)
from dataset import ClipSampler, VideoDataSet, check_videos, make_loader
from datasets_video import flip_label_map, return_dataset, unflippable_labels
from distributed import describe, place, select_devices
from engine import evaluate, learning_rate, train_epoch
from errors import InputError, run_program
from gst import check_split
from models import TemporalModel
from resnet_gst import load_2d_weights
from transforms import evaluation_transform, training_transform

# What may not change between a checkpoint and the run that goes on from it.
RECIPE = (
    *("dataset", "type", "arch", "alpha", "beta", "num_segments", "input_size", "dropout", "batch_size"),
    *("lr", "lr_schedule", "lr_steps", "warmup_epochs", "momentum", "weight_decay", "clip_gradient"),
    *("seed", "amp"),
)


@dataclass
class RunFiles:
    """Where a run of this name writes below `--checkpoint_dir`."""

    name: str
    checkpoint: Path
    best: Path
    csv: Path
    json: Path
    tensorboard: Path

    @classmethod
    def of(cls, args: Namespace) -> "RunFiles":
        """The files of the run that these options describe."""
        parts = [args.type, args.dataset, args.arch, f"alpha{args.alpha}", f"beta{args.beta}"]
        name = "_".join([*parts, f"segment{args.num_segments}", *filter(None, [args.store_name])])
        top = Path(args.checkpoint_dir)
        return cls(
            name=name,
            checkpoint=top / "checkpoint" / f"{name}_checkpoint.pth.tar",
            best=top / "checkpoint" / f"{name}_best.pth.tar",
            csv=top / "log" / f"{name}.csv",
            json=top / "log" / f"{name}.json",
            tensorboard=top / "tensorboard" / name,
        )

    def existing(self) -> list[Path]:
        """Those that are there."""
        paths = (self.checkpoint, self.best, self.csv, self.json, self.tensorboard)
        return [path for path in paths if path.exists()]

    def prepare(self, overwrite: bool) -> None:
        """Make the folders; with `overwrite`, delete what is there."""
        try:
            for path in self.existing() if overwrite else []:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in (self.checkpoint, self.csv):
                path.parent.mkdir(parents=True, exist_ok=True)
            self.tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--checkpoint_dir: cannot write there ({error})") from None


def main() -> None:
    """Train as the command line says."""
    args = opts.training_parser().parse_args()
    check_options(args)
    devices = select_devices(args.gpus)
    files = RunFiles.of(args)
    saved = load_checkpoint(args.resume) if args.resume else None
    check_run(args, files, saved)

    paths = return_dataset(args.dataset, args.root_path, args.train_list, args.val_list, args.image_tmpl)
    categories = paths.categories
    train_set, val_set = (
        VideoDataSet(
            paths.root_data,
            list_file,
            args.num_segments,
            paths.prefix,
            random_shift=is_training,
            num_class=len(categories),
            seed=args.seed,
        )
        for list_file, is_training in ((paths.train_list, True), (paths.val_list, False))
    )
    for dataset in (train_set, val_set):
        check_videos(dataset, args.skip_missing)
    print(
        f"{args.dataset}: {len(train_set)} training and {len(val_set)} validation clips, "
        f"{len(categories)} classes"
    )

    model = build_model(args, categories, saved)
    train_set.transform = training_transform(
        model.crop_size, model.target_transforms, unflippable_labels(categories)
    )
    val_set.transform = evaluation_transform(model.scale_size, model.crop_size)
    sampler = ClipSampler(len(train_set), args.seed)
    train_loader = make_loader(train_set, args.batch_size, args.workers, sampler)
    val_loader = make_loader(val_set, args.batch_size, args.workers)

    parallel = place(model, devices)
    print(describe(devices, args.batch_size))
    if args.evaluate:
        result = evaluate(val_loader, parallel, model, devices[0], args.amp, args.print_freq)
        print(f"{result}{val_set.coverage()}")
        return

    optimizer = make_optimizer(model, args)
    start_epoch, best_prec1, history = args.start_epoch or 0, 0.0, []
    if saved:
        start_epoch = start_epoch or saved.get("epoch", 0)
        best_prec1 = saved.get("best_prec1", 0.0)
        history = saved.get("history", [])
        if "optimizer" in saved:
            optimizer.load_state_dict(saved["optimizer"])
            print(f"resumed {args.resume} at epoch {start_epoch}, best Prec@1 {best_prec1:.3f}")
        else:
            print(f"resumed {args.resume} at epoch {start_epoch}; it has no momentum, which starts from zero")
    if args.batch_size != opts.PUBLISHED_BATCH_SIZE and args.lr == opts.PUBLISHED_LR:
        linear = opts.PUBLISHED_LR * args.batch_size / opts.PUBLISHED_BATCH_SIZE
        print(
            f"batch of {args.batch_size} with the default --lr {args.lr:g}, which is meant for "
            f"{opts.PUBLISHED_BATCH_SIZE} clips: the linear rule would give --lr {linear:g}"
        )

    files.prepare(args.overwrite)
    write_json(files.json, args, model, devices, train_set, val_set)
    board = SummaryWriter(str(files.tensorboard), purge_step=start_epoch * len(train_loader))

    def report(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    for epoch in range(start_epoch, args.epochs):
        sampler.epoch = epoch
        trained = train_epoch(train_loader, parallel, model, optimizer, epoch, args, devices[0], report)
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": learning_rate(args, epoch),
            "train_loss": trained.loss.avg,
            "train_prec1": trained.prec1.avg,
            "train_prec5": trained.prec5.avg,
        }
        is_best = False
        if (epoch + 1) % args.eval_freq == 0 or epoch + 1 == args.epochs:
            result = evaluate(val_loader, parallel, model, devices[0], args.amp, args.print_freq)
            is_best = result.prec1 > best_prec1 or not files.best.exists()
            best_prec1 = max(best_prec1, result.prec1)
            row |= {"val_loss": result.loss, "val_prec1": result.prec1, "val_prec5": result.prec5}
            row["val_mean_class"] = result.mean_class
            report(
                (epoch + 1) * len(train_loader),
                {f"val/{k[4:]}": v for k, v in row.items() if k[:4] == "val_"},
            )
            print(f"{result}{val_set.coverage()}\nBest Prec@1: {best_prec1:.3f}")
        history.append(row)
        content = {
            "epoch": epoch + 1,
            "arch": args.arch,
            "state_dict": model.state_dict(),
            "best_prec1": best_prec1,
            "optimizer": optimizer.state_dict(),
            "options": vars(args),
            "categories": categories,
            "run": files.name,
            "history": history,
        }
        save_checkpoint(files.checkpoint, content)
        if is_best:
            save_checkpoint(files.best, content)
        write_csv(files.csv, history)
    board.close()
    print(f"best checkpoint, Prec@1 {best_prec1:.3f}: {files.best}")


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
    if args.evaluate and not args.resume:
        raise InputError("--evaluate needs --resume FILE, the checkpoint to evaluate")
    if args.resume and args.overwrite:
        raise InputError("--overwrite deletes the run that --resume goes on with; give one of them")


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
    old = files.existing()
    is_continued = saved is not None and saved.get("run") == files.name
    if old and not (is_continued or args.overwrite or args.evaluate):
        raise InputError(
            f"an older run of this name is there: {', '.join(map(str, old))}; go on with it (--resume), "
            "name this run otherwise (--store_name), or delete it (--overwrite)"
        )


def build_model(args: Namespace, categories: list[str], saved: dict[str, Any] | None) -> TemporalModel:
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
        zero_init_residual=args.zero_init_residual,
    )
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{args.type} {args.arch}, alpha {args.alpha}, beta {args.beta}: {size:.2f} M parameters, "
        f"{args.num_segments} frames of {args.input_size} x {args.input_size}"
    )
    if saved:
        check_categories(saved, categories, args.resume)
        load_weights(model, saved["state_dict"], args.resume)
    elif args.pretrained != "none":
        source, weights = read_pretrained(args.pretrained, args.arch)
        try:
            loaded, kept = load_2d_weights(model.base_model, weights)
        except ValueError as error:
            raise InputError(f"{source} {error}: it must be a 2D {args.arch}'s state dict") from None
        temporal = sum(".Tconv." in name for name in kept)
        print(f"{source}: {len(loaded)} tensors loaded, not {temporal} Tconv.weight and the classifier")
    else:
        print("weights: random start")
    if not args.evaluate:
        pairs = [f"{a}/{b}" for a, b in swaps.items() if a < b]
        never = unflippable_labels(categories)
        print(f"horizontal flip: {len(pairs)} pairs of labels swap ({', '.join(pairs) or 'none'})")
        if never:
            print(f"horizontal flip: never for {len(never)} classes with no mirrored class: {never}")
    return model


def make_optimizer(model: TemporalModel, args: Namespace) -> torch.optim.Optimizer:
    """SGD with the model's parameter groups (paper, section 4.2)."""
    groups = [
        group | {"lr": args.lr * group["lr_mult"], "weight_decay": args.weight_decay * group["decay_mult"]}
        for group in model.get_optim_policies()
    ]
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)


def write_json(
    path: Path,
    args: Namespace,
    model: TemporalModel,
    devices: list[torch.device],
    train_set: VideoDataSet,
    val_set: VideoDataSet,
) -> None:
    """Write what makes this run what it is: options, versions, sizes."""
    content = {
        "options": vars(args),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
        "devices": describe(devices, args.batch_size),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "clips": {"training": len(train_set), "validation": len(val_set)},
    }
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=2).encode()))


def write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the log, a row for each epoch; cells of epochs that were not evaluated stay empty."""
    columns = ["epoch", "lr", "train_loss", "train_prec1", "train_prec5"]
    columns += ["val_loss", "val_prec1", "val_prec5", "val_mean_class"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    run_program(main)
