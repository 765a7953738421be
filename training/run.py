"""A training run: finds its checkpoint, saves, writes its files, and stops on signals."""

import logging
import math
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dataset import check_same_list
from frames.resize import DecodedClips, resize_clips
from loader import ClipSampler, Datasets
from reports.curves import Curves
from reports.plots import MAX_CLIPS, draw_batch, draw_curves, figure_png, image_png
from training.checkpoint import load_checkpoint, load_newest, save_checkpoint
from training.describe import check_categories, describe_model
from training.files import RunFiles, describe_start, find_commit, write_csv
from training.optim import learning_rate
from training.state import Step, TrainState
from utils.cli import OneLine, UserError, at_end, log, terminal
from utils.distributed import World
from utils.files import write_files
from utils.metrics import Result, averages, format_result

# Options that must be the same in a checkpoint and the run that continues it.
RUN_OPTIONS = ("dataset", "type", "arch", "alpha", "beta", "num_segments", "input_size", "dropout")
RUN_OPTIONS += ("batch_size", "accumulate", "sync_bn", "freeze_bn", "freeze", "seed", "amp", "mixup", "best")
RUN_OPTIONS += ("lr", "lr_schedule", "lr_steps", "warmup_epochs", "lr_mult_new", "consensus")
RUN_OPTIONS += ("momentum", "weight_decay", "clip_gradient", "label_smoothing")

LOCK_SECONDS = 8  # loader processes of a killed run may hold its lock for some seconds


class Run:
    """A training run with a name: finds its checkpoint, writes its files (main process), saves and stops."""

    def __init__(self, args: Namespace, world: World) -> None:
        self.args = args
        self.world = world
        self.files = RunFiles(args)
        self.checkpoint: Path | None = None  # the file that the run resumes from
        self.curves: Curves | None = None
        self.last_save = time.monotonic()
        self.has_failed_save = False
        self.has_shown_batch = False
        self.lock = FileLock(self.files.lock, timeout=LOCK_SECONDS, thread_local=False)

    def find_checkpoint(self) -> dict[str, Any] | None:
        """Lock the run, and load the checkpoint to continue from (None: start from scratch).

        Raises:
            UserError: a run of this name exists, another process trains it, or the checkpoint does not fit.
        """
        args = self.args
        loaded = None
        if self.world.is_main:
            self._acquire_lock()
            if args.resume == "auto":
                # Only the best checkpoint exists if the first save was killed between two renames.
                loaded = load_newest(self.files.checkpoint) or load_newest(self.files.best)
            elif args.resume:
                loaded = Path(args.resume), load_checkpoint(args.resume)
        self.checkpoint, checkpoint = self.world.broadcast(loaded or (None, None))
        if checkpoint:
            check_recipe(args, checkpoint, self.checkpoint)
        if self.world.is_main:
            is_continued = checkpoint and checkpoint.get("run") == self.files.name
            results = self.files.results()
            if results and not (is_continued or args.overwrite):
                raise UserError(
                    f"a run of this name already exists: {', '.join(map(str, results))}; continue it "
                    "(--resume auto), choose another name (--store_name), or delete it (--overwrite)"
                )
            self._open_log()
        return checkpoint

    def _acquire_lock(self) -> None:
        """Lock the run's name on all hosts that share its disk. The end of the process releases the lock."""
        self.files.lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout:
            error = UserError(
                f"run {self.files.name} is being trained by another process, see {self.files.log}; wait for "
                "it to finish, or choose another name (--store_name)"
            )
            error.status = 75  # EX_TEMPFAIL of sysexits.h: a later attempt may succeed
            raise error from None
        at_end.callback(self.lock.release)

    def _open_log(self) -> None:
        handler = logging.FileHandler(self.files.log, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(OneLine("%(asctime)s %(message)s"))
        log.addHandler(handler)
        at_end.callback(handler.close)
        at_end.callback(log.removeHandler, handler)
        for name, value in describe_start().items():
            log.info(f"{name}: {value}")
        log.info(f"options: {vars(self.args)}")

    def check_data(
        self, checkpoint: dict[str, Any], data: Datasets, class_weights: list[float] | None
    ) -> None:
        """Check that a checkpoint continues with the same lists, classes and class weights."""
        path, options = self.checkpoint, checkpoint.get("options", {})
        check_categories(checkpoint, data.categories, path)
        if checkpoint.get("mirrored", data.mirrored) != data.mirrored:
            raise UserError(
                f"{path} was trained with different mirrored classes: use the same --flip_pairs or --no_flip"
            )
        if checkpoint.get("class_weights", class_weights) != class_weights:
            raise UserError(f"{path} was trained with different class weights: use the same --class_weights")
        check_same_list(data.train, checkpoint.get("data"), path, "trained")
        check_same_list(data.val, checkpoint.get("val_data"), path, "validated")
        # Allowed changes that make the run differ from an uninterrupted one.
        values = {
            "devices": (checkpoint.get("num_devices"), self.world.num_devices),
            "source": (options.get("source"), data.source),
        }
        if self.args.lr_schedule == "cosine":
            values["epochs"] = (options.get("epochs"), self.args.epochs)
        changes = [
            f"{name} {new} (was {old})" for name, (old, new) in values.items() if old not in (None, new)
        ]
        if changes:
            log.warning(f"warning: {', '.join(changes)}: results will differ from an uninterrupted run")

    def begin(self, state: TrainState, data: Datasets, sampler: ClipSampler) -> None:
        """Prepare the files of the run and start to handle signals."""
        self.data, self.sampler = data, sampler
        if self.world.is_main:
            self.files.prepare(self.args.overwrite)
            if state.history:
                write_csv(self.files.csv, state.history)
            self.curves = Curves(self.files.tensorboard, state.epoch * sampler.num_steps + state.step)
        if not self.files.best.exists():
            state.best = 0.0  # the checkpoint had the best accuracy of another run
        log.info(f"run {self.files.name}, written to {self.args.checkpoint_dir}")
        if state.epoch >= self.args.epochs:
            log.info(f"finished: {state.epoch} of {self.args.epochs} epochs")
        self.last_save = self.last_end = time.monotonic()
        self.interruption = Interruption()

    def metadata(
        self, data: Datasets, amp: str, has_new_classifier: bool, class_weights: list[float] | None
    ) -> dict[str, Any]:
        """The values of a checkpoint that do not change during training."""
        return {
            "arch": self.args.arch,
            "options": vars(self.args) | {"amp": amp, "source": data.source},
            "categories": data.categories,
            "mirrored": data.mirrored,
            "data": data.train.fingerprint(),
            "val_data": data.val.fingerprint(),
            "excluded": sorted(data.excluded),
            "run": self.files.name,
            "num_devices": self.world.num_devices,
            "new_classifier": has_new_classifier,
            "class_weights": class_weights,
            "commit": find_commit(),
        }

    def after_step(self, state: TrainState, step: Step) -> None:
        """Draw the first batch, add the step's curves, save if due, and stop after a signal."""
        number = state.epoch * self.sampler.num_steps + state.step - 1
        if self.curves:
            self.curves.add(step.curves, number)
            if not self.has_shown_batch:
                self.has_shown_batch = True
                self._write_picture(self.files.batch, lambda: self._draw_batch(step, number))
        # One all-reduce for both: the signal that stops the run, and whether the main process has to save.
        minutes = (time.monotonic() - self.last_save) / 60
        is_late = self.world.is_main and minutes > self.args.save_minutes
        signal_number, is_late = self.world.all_reduce_max(self.interruption.get_signal(), is_late)
        if signal_number:
            self.stop(state, signal_number)
        if is_late or (self.args.save_freq and state.step % self.args.save_freq == 0):
            self.save(state)

    def _draw_batch(self, step: Step, number: int) -> bytes:
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
        return image_png(picture)

    def _write_picture(self, path: Path, draw: Callable[[], bytes]) -> None:
        try:
            write_files({path: draw()})
        except OSError as error:
            log.warning(f"warning: {path}: cannot be written ({error.strerror}); training continues")

    def stop(self, state: TrainState, number: int) -> None:
        """Save and exit because of a signal."""
        self.save(state, is_last=True)
        name = signal.Signals(number).name
        log.info(f"stopped by {name} and saved {self.files.checkpoint}; --resume auto continues")
        sys.exit(128 + number)

    def log_training_results(self, state: TrainState) -> None:
        """Log loss and accuracies of an epoch's training."""
        state.check_loss()
        seconds = time.monotonic() - self.last_end
        log.info(f"Training {format_result(**averages(state.meters.totals))} ({seconds:.0f} s)")
        self.last_end = time.monotonic()

    def is_validation_due(self, epoch: int) -> bool:
        """Whether the model is validated after an epoch."""
        return (epoch + 1) % self.args.eval_freq == 0 or epoch + 1 == self.args.epochs

    def end_epoch(self, state: TrainState, result: Result | None) -> None:
        """Log and save an epoch, update the best checkpoint, and stop after a signal.

        `result` is None if the validation was not due, or if a signal stopped it.
        """
        if result is None and self.is_validation_due(state.epoch):
            self.stop(state, self.world.all_reduce_max(self.interruption.get_signal())[0])
        values = {f"train_{name}": value for name, value in averages(state.meters.totals).items()}
        is_best = False
        is_last = state.epoch + 1 == self.args.epochs
        if result:
            if not math.isfinite(result.loss):
                raise UserError(
                    f"epoch {state.epoch}: the validation loss is {result.loss}; try a smaller --lr"
                )
            values |= {f"val_{name}": value for name, value in result.averages().items()}
            accuracy = result.averages()[state.metric]
            is_best = accuracy > state.best or not self.files.best.exists()
            previous, state.best = state.best, max(state.best, accuracy)
        if self.curves:
            curves = {f"epoch/{name}": value for name, value in values.items()}
            for label, prec1 in result.class_prec1.items() if result else ():
                curves[f"val_class/{label:03d} {self.data.categories[label]}"] = prec1
            self.curves.add(curves, (state.epoch + 1) * self.sampler.num_steps - 1)
        state.finish_epoch({"lr": learning_rate(self.args, state.epoch)} | values)
        if result:
            log.info(
                f"Mean class accuracy {result.mean_class:.3f}\tBest {state.describe_best()}\t"
                f"validation took {time.monotonic() - self.last_end:.0f} s"
            )
        self.save(state, is_best, is_last)
        if is_best and self.has_failed_save:
            state.best = previous  # of the file that exists
        if self.curves:
            draw = partial(draw_curves, {self.files.name: state.history})
            self._write_picture(self.files.picture, lambda: figure_png(draw))
        self.last_end = time.monotonic()
        signal_number = self.world.all_reduce_max(self.interruption.get_signal())[0]
        if signal_number and not is_last:
            self.stop(state, signal_number)

    def save(self, state: TrainState, is_best: bool = False, is_last: bool = False) -> None:
        """Save checkpoint and CSV file in the main process. A single failed save is only reported."""
        content = state.state_dict()
        if not self.world.is_main:
            return
        try:
            best = self.files.best if is_best else None
            save_checkpoint(self.files.checkpoint, content, self.args.keep, best)
            write_csv(self.files.csv, state.history)
        except OSError as error:
            message = f"cannot save {self.files.checkpoint} ({error.strerror}); the last save is intact"
            if self.has_failed_save or is_last:
                raise UserError(f"{message}; free disk space and continue with --resume auto") from None
            log.warning(f"warning: {message}; training stops if the next save fails too")
            self.has_failed_save = True
        else:
            self.has_failed_save = False
        self.last_save = time.monotonic()


def check_recipe(args: Namespace, checkpoint: dict[str, Any], path: Path) -> None:
    """Check that the options match the checkpoint's model and recipe."""
    spec = describe_model(checkpoint, path, args.type)
    expected = {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    options = checkpoint.get("options", {})
    expected |= {name: options[name] for name in RUN_OPTIONS if name in options}
    if args.amp in (None, "auto"):  # the run keeps the checkpoint's
        expected.pop("amp", None)
    changed = [name for name, value in expected.items() if getattr(args, name) != value]
    if changed:
        values = ", ".join(f"{name} {expected[name]} (now {getattr(args, name)})" for name in changed)
        raise UserError(f"{path} was trained with {values}: use the same options to continue it")


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
