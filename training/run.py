"""A training run: finds its checkpoint, saves, writes its files, and stops on signals."""

import json
import logging
import math
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dataset import check_same_list
from frames.resize import DecodedClips, resize_clips
from loader import ClipSampler, Datasets
from reports.curves import Curves
from reports.plots import MAX_CLIPS, draw_batch, draw_curves, figure_png, image_png
from training.checkpoint import load_checkpoint, load_newest, save_checkpoint, set_aside_newer
from training.describe import check_categories, describe_model, find_mirrored
from training.files import RunFiles, describe_start, format_csv, read_parts, write_json
from training.optim import learning_rate
from training.state import Step, TrainState
from utils.cli import BusyError, OneLine, UserError, at_end, log, printable, terminal
from utils.distributed import World
from utils.files import check_writable_folder, write_atomically, write_texts
from utils.metrics import DivergedError, Result, averages

# Options that must be the same in a checkpoint and the run that continues it.
MODEL_OPTIONS = ("dataset", "type", "arch", "alpha", "beta", "num_segments", "input_size", "dropout")
STEP_OPTIONS = (
    "batch_size",
    "accumulate",
    "sync_bn",
    "freeze_bn",
    "momentum",
    "weight_decay",
    "clip_gradient",
)
RATE_OPTIONS = ("lr", "lr_schedule", "lr_steps", "warmup_epochs", "lr_mult_new")
# Options that older checkpoints do not have, and their values in these.
NEW_OPTIONS = {"consensus": "mean", "freeze": None, "label_smoothing": 0.0, "mixup": 0.0, "best": "prec1"}
RECIPE = (*MODEL_OPTIONS, *STEP_OPTIONS, *RATE_OPTIONS, *NEW_OPTIONS, "seed", "amp")


class Run:
    """A training run with a name: finds its checkpoint, writes its files, saves and stops.

    Args:
        args: options of main.py.
        world: this process and the others; the main process writes.
    """

    def __init__(self, args: Namespace, world: World) -> None:
        self.args = args
        self.world = world
        self.files = RunFiles(args)
        self.checkpoint: Path | None = None  # the file that the run resumes from
        self.is_continued = False  # whether that is a checkpoint of this run
        self.curves: Curves | None = None
        self.part = describe_start() if world.is_main else {}
        self.last_save = time.monotonic()
        self.has_failed_save = False
        self.has_lost_picture = False
        self.has_shown_batch = False
        # Loader processes of a killed run may hold its lock for some seconds.
        self.lock = FileLock(self.files.lock, timeout=8, thread_local=False)
        # Keeps log lines until the log file is opened.
        self.early_log = MemoryHandler(1 << 20)
        if not world.is_main:
            return
        log.addHandler(self.early_log)
        at_end.callback(log.removeHandler, self.early_log)
        log.info(f"{self.part['started']}: {self.part['command']}")
        versions = ", ".join(f"{name} {value}" for name, value in self.part["versions"].items() if value)
        log.info(f"host {self.part['host']}, commit {self.part['commit']}, {versions}")

    def find_checkpoint(self) -> dict[str, Any] | None:
        """Load the checkpoint to continue from in the main process, and broadcast it to all processes.

        Returns:
            Its content; None to start from scratch.

        Raises:
            BusyError: another process trains this run.
            UserError: the checkpoint cannot be loaded, or does not fit the options.
        """
        args = self.args
        loaded = None
        if self.world.is_main:
            check_writable_folder(args.checkpoint_dir, "--checkpoint_dir")
            if self.files.lock.exists():  # report at once that another process trains this run
                self._acquire_lock()
            if args.resume == "auto":
                loaded = load_newest(self.files.checkpoint)
                if loaded is None:
                    log.info("--resume auto: no checkpoint of this run yet, starting from scratch")
            elif args.resume:
                loaded = Path(args.resume), load_checkpoint(args.resume)
        self.checkpoint, checkpoint = self.world.broadcast(loaded or (None, None))
        if checkpoint:
            check_recipe(args, checkpoint, self.checkpoint)
            self.is_continued = checkpoint.get("run") == self.files.name
        if self.world.is_main:
            self._check_overwrite()
        return checkpoint

    def _check_overwrite(self) -> None:
        if self.is_continued or self.args.overwrite or not self.files.has_results():
            return
        raise UserError(
            f"a run of this name already exists: {', '.join(map(str, self.files.existing()))}; continue it "
            "(--resume auto), choose another name (--store_name), or delete it (--overwrite)"
        )

    def check_data(
        self, checkpoint: dict[str, Any], data: Datasets, class_weights: list[float] | None
    ) -> None:
        """Check that a checkpoint continues with the same lists, classes, mirrored classes and class weights.

        Raises:
            UserError: they differ.
        """
        path = self.checkpoint
        check_categories(checkpoint, data.categories, path)
        if "mirrored" in checkpoint:
            mirrored = find_mirrored(checkpoint, data.categories, path)
            pairs = zip(data.categories, mirrored, data.mirrored, strict=True)
            differences = [name for name, old, new in pairs if old != new]
            if differences:
                raise UserError(
                    f"{path} was trained with another mirrored class for '{printable(differences[0])}': "
                    "give the same --flip_pairs or --no_flip to continue it"
                )
        if checkpoint.get("class_weights", class_weights) != class_weights:
            raise UserError(f"{path} was trained with other class weights: give the same --class_weights")
        check_same_list(data.train, checkpoint.get("data"), path, "trained")
        check_same_list(data.val, checkpoint.get("val_data"), path, "validated")
        changes = describe_changes(self.args, checkpoint, self.world.num_devices)
        source = checkpoint.get("options", {}).get("source", data.source)
        if source != data.source:
            changes.append(f"clips from {data.source} (was {source})")
        if changes and self.world.is_main:
            log.warning(
                f"warning: results will differ from an uninterrupted run, because of {'; '.join(changes)}"
            )

    def begin(self, state: TrainState, data: Datasets, sampler: ClipSampler) -> None:
        """Prepare the files of the run and start to handle signals.

        Raises:
            UserError: the files cannot be written, or the checkpoint has more steps than the epoch.
        """
        self.data, self.sampler = data, sampler
        if state.step > sampler.num_steps:
            raise UserError(
                f"{self.checkpoint}: step {state.step} is beyond the {sampler.num_steps} steps of an epoch"
            )
        step = state.epoch * sampler.num_steps + state.step
        clips = {"training": len(data.train.included), "validation": len(data.val.included)}
        metadata = {
            "options": state.metadata["options"],
            "devices": self.world.describe(self.args.batch_size),
            "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "clips": clips,
        }
        if self.world.is_main:
            if not self.lock.is_locked:
                self._acquire_lock()
                self._check_overwrite()  # another process may have trained it meanwhile
            try:
                self.files.prepare(self.args.overwrite)
                if self.args.resume == "auto" and self.checkpoint:
                    set_aside_newer(self.files.checkpoint, self.checkpoint)
                write_json(self.files.json, metadata, self.part | {"epoch": state.epoch, "step": state.step})
                write_texts({self.files.csv: format_csv(state.history)})
                self.curves = Curves(self.files.tensorboard, step)
                self.curves.add_text("run", json.dumps(metadata | self.part, indent=2), step)
                log_file = logging.FileHandler(self.files.log, encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise UserError(
                    f"--checkpoint_dir {self.args.checkpoint_dir}: cannot write there ({error})"
                ) from None
            for name, videos in (("training", data.train), ("validation", data.val)):
                self.curves.add_lengths(name, videos.num_frames[videos.included], step)
            log_file.setFormatter(OneLine("%(asctime)s %(message)s"))
            self.early_log.setTarget(log_file)
            self.early_log.flush()
            log.removeHandler(self.early_log)
            log.addHandler(log_file)
            at_end.callback(log_file.close)
            at_end.callback(log.removeHandler, log_file)
        if not self.files.best.exists():
            state.best = 0.0  # the checkpoint had the best accuracy of another run
        log.info(f"run {self.files.name}, written below {self.args.checkpoint_dir}")
        if state.epoch >= self.args.epochs:
            log.info(f"finished: {state.epoch} of {self.args.epochs} epochs")
        self.last_save = self.last_end = time.monotonic()
        self.interruption = Interruption()

    def _acquire_lock(self) -> None:
        """Lock the run's name on all hosts that share its disk. The end of the process releases the lock.

        Raises:
            BusyError: another process holds the lock.
        """
        try:
            self.files.lock.parent.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except Timeout:
            parts = read_parts(self.files.json)
            owner = "another process"
            if parts:
                owner = "process {process} on host {host}, since {started}".format(**parts[-1])
            raise BusyError(
                f"run {self.files.name} is being trained by {owner}; wait for its end, or choose another "
                "name (--store_name)"
            ) from None
        except NotImplementedError:  # some file systems, such as Lustre, may be mounted without locks
            log.warning("warning: no file locks here: do not start a second process of this run")
        except OSError as error:
            raise UserError(
                f"--checkpoint_dir {self.args.checkpoint_dir}: cannot write there ({error.strerror})"
            ) from None
        at_end.callback(self.lock.release)

    def after_step(self, state: TrainState, step: Step) -> None:
        """Draw the first batch, add the step's curves, save if due, and stop after a signal.

        Raises:
            SystemExit: a signal stops the run. The exit status is 128 plus the number of the signal.
            UserError: see `save`.
        """
        number = state.epoch * self.sampler.num_steps + state.step - 1
        if self.curves:
            if not self.has_shown_batch and step.clips is not None:
                self.has_shown_batch = True
                with self._spare(self.files.batch):
                    self._show_batch(step, number)
            self.curves.add(step.curves, number)
        # One all-reduce for both: the signal that stops the run, and whether the main process has to save.
        minutes = (time.monotonic() - self.last_save) / 60
        is_late = self.world.is_main and minutes > self.args.save_minutes
        signal_number, is_late = self.world.all_reduce_max(self.interruption.get_signal(), is_late)
        if signal_number:
            self.stop(state, signal_number)
        if is_late or (self.args.save_freq and state.step % self.args.save_freq == 0):
            self.save(state)

    def _show_batch(self, step: Step, number: int) -> None:
        keys = next(iter(self.sampler))  # clips of the first batch since the start of this process
        first_keys = keys[:MAX_CLIPS]
        clips = resize_clips(step.clips) if isinstance(step.clips, DecodedClips) else step.clips
        picture = draw_batch(
            clips[:MAX_CLIPS].cpu().numpy(),
            step.labels.tolist(),
            [self.data.train.is_mirrored(key) for key in first_keys],
            [self.data.train.record(clip).path for _, clip in first_keys],
            self.data.categories,
            f"First batch of this run, at step {number}: {len(first_keys)} of its {len(keys)} clips",
        )
        self.curves.add_picture("train/batch", np.asarray(picture), number)
        write_atomically(self.files.batch, image_png(picture))

    @contextmanager
    def _spare(self, picture: Path) -> Iterator[None]:
        """Continue without a picture that cannot be drawn or written, with one warning per run."""
        try:
            yield
        except Exception as error:  # a file, a font, a library
            if not self.has_lost_picture:
                log.warning(
                    f"warning: cannot draw {picture} ({printable(error)}); training continues without it"
                )
            self.has_lost_picture = True

    def stop(self, state: TrainState, number: int) -> None:
        """Save and exit because of a signal."""
        self.save(state, is_last=True)
        name = signal.Signals(number).name
        log.info(f"stopped by {name} and saved {self.files.checkpoint}; --resume auto continues")
        sys.exit(128 + number)

    def log_training_results(self, state: TrainState) -> None:
        """Log loss and accuracies of an epoch's training.

        Raises:
            DivergedError: a loss was not finite.
        """
        state.check_loss()
        loss, prec1, prec5 = averages(state.meters.totals)
        seconds = time.monotonic() - self.last_end
        log.info(f"Training Results: Prec@1 {prec1:.3f} Prec@5 {prec5:.3f} Loss {loss:.5f} ({seconds:.0f} s)")
        self.last_end = time.monotonic()

    def explain(self, error: DivergedError, epoch: int) -> UserError:
        """Make the error for a loss that is not finite, with the clips of the step."""
        clips = [self.data.train.record(clip).path for clip in self.sampler.clips_of(error.step)]
        return UserError(
            f"epoch {epoch}, step {error.step}: loss or gradient is {error.loss}; training stops without "
            f"saving; try a smaller --lr. The clips of this step: "
            f"{', '.join(map(printable, clips))}"
        )

    def is_validation_due(self, epoch: int) -> bool:
        """Whether the model is validated after an epoch."""
        return (epoch + 1) % self.args.eval_freq == 0 or epoch + 1 == self.args.epochs

    def end_epoch(self, state: TrainState, result: Result | None) -> None:
        """Log and save an epoch, update the best checkpoint, and stop after a signal.

        Args:
            state: state of the run.
            result: of the validation; None if it was not due, or if a signal stopped it.

        Raises:
            UserError: the validation loss is not finite; or see `save`.
            SystemExit: a signal stops the run.
        """
        if result is None and self.is_validation_due(state.epoch):
            self.stop(state, self.world.all_reduce_max(self.interruption.get_signal())[0])
        train_averages = dict(zip(("loss", "prec1", "prec5"), averages(state.meters.totals), strict=True))
        row = {"epoch": state.epoch, "lr": learning_rate(self.args, state.epoch)}
        row |= {f"train_{name}": value for name, value in train_averages.items()}
        curves = {f"train_epoch/{name}": value for name, value in train_averages.items()}
        is_best = False
        is_last = state.epoch + 1 == self.args.epochs
        if result:
            if not math.isfinite(result.loss):
                raise UserError(
                    f"epoch {state.epoch}: the validation loss is {result.loss}; training stops without "
                    "saving; try a smaller --lr"
                )
            row |= {f"val_{name}": value for name, value in result.averages().items()}
            curves |= {f"val/{name}": value for name, value in result.averages().items()}
            for label, prec1 in result.class_prec1.items():
                curves[f"val_class/{label:03d} {self.data.categories[label]}"] = prec1
            value = result.averages()[state.metric]
            is_best = value > state.best or not self.files.best.exists()
            state.best = max(state.best, value)
        if self.curves:
            self.curves.add(curves, (state.epoch + 1) * self.sampler.num_steps - 1)
        state.finish_epoch(row)
        if result:
            log.info(
                f"Mean class accuracy {result.mean_class:.3f}\tBest {state.describe_best()}\t"
                f"validation took {time.monotonic() - self.last_end:.0f} s"
            )
        self.save(state, is_best, is_last)
        if self.curves:
            with self._spare(self.files.picture):
                picture = figure_png(lambda: draw_curves({self.files.name: state.history}))
                write_atomically(self.files.picture, picture)
        self.last_end = time.monotonic()
        signal_number = self.world.all_reduce_max(self.interruption.get_signal())[0]
        if signal_number and not is_last:
            self.stop(state, signal_number)

    def save(self, state: TrainState, is_best: bool = False, is_last: bool = False) -> None:
        """Save checkpoint and CSV file in the main process. A single failed save is only reported.

        Raises:
            DivergedError: a loss was not finite. Nothing is saved.
            UserError: the save failed, and so did the previous one, or no other save follows.
        """
        content = state.state_dict()
        if not self.world.is_main:
            return
        try:
            best = self.files.best if is_best else None
            save_checkpoint(self.files.checkpoint, content, self.args.keep, best)
            write_texts({self.files.csv: format_csv(state.history)})
        except OSError as error:
            message = f"cannot save {self.files.checkpoint} ({error.strerror}); the last save is intact"
            if self.has_failed_save or is_last:
                raise UserError(f"{message}; free disk space and continue with --resume auto") from None
            log.warning(f"warning: {message}; training stops if the next save fails too")
            self.has_failed_save = True
        else:
            self.has_failed_save = False
        self.last_save = time.monotonic()


def make_metadata(
    args: Namespace,
    run: Run,
    data: Datasets,
    amp: str,
    has_new_classifier: bool,
    class_weights: list[float] | None,
) -> dict[str, Any]:
    """Make the values of a checkpoint that do not change during training."""
    return {
        "arch": args.arch,
        "options": vars(args) | {"amp": amp, "source": data.source},
        "categories": data.categories,
        "mirrored": data.mirrored,
        "data": data.train.fingerprint(),
        "val_data": data.val.fingerprint(),
        "excluded": sorted(data.excluded),
        "run": run.files.name,
        "num_devices": run.world.num_devices,
        "new_classifier": has_new_classifier,
        "class_weights": class_weights,
    }


def check_recipe(args: Namespace, checkpoint: dict[str, Any], path: Path) -> None:
    """Check that the options have the model and recipe of the checkpoint.

    Raises:
        UserError: names the options that differ.
    """
    spec = describe_model(checkpoint, path, args.type)
    options = checkpoint.get("options", {})
    options = NEW_OPTIONS | options if options else {}
    expected = {name: options[name] for name in RECIPE if name in options}
    expected |= {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    for name in ("alpha", "beta"):  # where one of two types has none, the types differ anyway
        if None in (expected[name], getattr(args, name)):
            del expected[name]
    if args.amp in (None, "auto"):  # the run keeps the checkpoint's
        expected.pop("amp", None)
    changed = [name for name, value in expected.items() if getattr(args, name) != value]
    if changed:
        values = ", ".join(f"{name} {expected[name]} (now {getattr(args, name)})" for name in changed)
        raise UserError(f"{path} was trained with {values}: give the same options to continue it")
    epoch = checkpoint.get("epoch")
    if args.start_epoch is not None and epoch is not None and args.start_epoch != epoch:
        raise UserError(f"--start-epoch {args.start_epoch}: {path} continues at epoch {epoch}")


def describe_changes(args: Namespace, checkpoint: dict[str, Any], num_devices: int) -> list[str]:
    """List the allowed changes that make a resumed run differ from an uninterrupted one."""
    changes = []
    epochs = checkpoint.get("options", {}).get("epochs", args.epochs)
    if args.lr_schedule == "cosine" and epochs != args.epochs:
        changes.append(f"--epochs {args.epochs} (was {epochs}), which stretches the cosine schedule")
    devices = checkpoint.get("num_devices", num_devices)
    if devices != num_devices:
        norm = "dropout" if args.sync_bn or args.freeze_bn else "batch norm and dropout"
        mixup = ", and the pairs of mixup" if args.mixup else ""
        changes.append(f"{num_devices} devices (was {devices}), which changes {norm}{mixup}")
    return changes


class Interruption:
    """Remembers the signal that asks a run to stop, so that the run can finish its step and save.

    The signals are SIGTERM, SIGINT, SIGHUP (a lost terminal) and SIGUSR1 (Slurm's warning). A closed output
    pipe counts as SIGPIPE. The end of torchrun counts as SIGTERM. Otherwise this process would continue
    training next to the processes of a new start.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self._remember)
        terminal.on_lost_output = partial(self._remember, signal.SIGPIPE)

    def _remember(self, number: int, frame: object = None) -> None:
        if number == self.signal == signal.SIGINT:
            os._exit(128 + number)  # Ctrl-C twice; files are replaced in one step, so none is damaged
        self.signal = number

    def get_signal(self) -> int:
        """The signal to stop for; 0 for none."""
        is_orphan = self.parent is not None and os.getppid() != self.parent
        return self.signal or (signal.SIGTERM if is_orphan else 0)
