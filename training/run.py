"""What a run is and leaves: its files, its state, what it resumes from, its log, curves and signals."""

import csv
import fcntl
import io
import json
import logging
import math
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram, image, scalar, text

from classes import NEVER
from dataset import VideoDataSet
from models import TemporalModel
from reports.plots import MAX_CLIPS, draw_batch, draw_curves, figure_png, image_png
from training.checkpoint import (
    HistoryRow,
    all_checkpoints,
    damaged_checkpoints,
    describe_model,
    find_mirrored,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    set_aside_newer,
)
from training.optim import learning_rate, load_optimizer
from utils.cli import BusyError, OneLine, UserError, at_end, log, printable, terminal
from utils.distributed import World
from utils.files import check_writable_folder, read_text, write_atomically, write_texts
from utils.metrics import ClipMeters, LossWatch, Result, averages

# What may not change between a checkpoint and the run that continues from it.
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
RECIPE = (*MODEL_OPTIONS, *STEP_OPTIONS, *RATE_OPTIONS, "seed", "amp")


class TrainState:
    """How far a training run has come: all that changes in it, in one object that is saved and loaded.

    Args:
        model: without wrappers.
        optimizer: of its parameters.
        scaler: of the loss.
        world: of this process.
        metadata: what does not change, saved alongside: options, categories and the like.
    """

    def __init__(
        self,
        model: TemporalModel,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        world: World,
        metadata: dict[str, Any],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.world = world
        self.metadata = metadata
        self.epoch = 0
        self.step = 0  # steps of the epoch that are done
        self.meters = ClipMeters(world)  # of the epoch so far
        self.watch = LossWatch()
        self.best_prec1 = 0.0
        self.history: list[dict[str, Any]] = []  # a row of the CSV file for each epoch

    @property
    def best_epoch(self) -> str:
        """Which epoch is the best, for the log; empty where it is not known."""
        best = [row["epoch"] for row in self.history if row.get("val_prec1") == self.best_prec1]
        return f" (epoch {best[0]})" if best else ""

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint.

        Raises:
            DivergedError: a loss was not finite.
        """
        self.watch.check()
        return self.metadata | {
            "epoch": self.epoch,
            "step": self.step,
            "state_dict": self.model.state_dict(),
            "best_prec1": self.best_prec1,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "totals": self.meters.totals,
            "history": self.history,
        }

    def load_state_dict(self, saved: dict[str, Any], path: str | Path) -> None:
        """Continue where a checkpoint ends; the model has its weights already.

        Args:
            saved: what `load_checkpoint` gave. A released one has epoch and best accuracy only.
            path: its file, for messages.

        Raises:
            UserError: the optimizer's state is of another model.
        """
        self.epoch, self.step = saved.get("epoch", self.epoch), saved.get("step", 0)
        self.meters = ClipMeters(self.world, saved.get("totals"))
        self.best_prec1, self.history = saved.get("best_prec1", 0.0), saved.get("history", [])
        load_optimizer(self.optimizer, self.scaler, saved, path)


class Run:
    """A training run of a name: what it resumes from, where it writes, when it saves and stops.

    Args:
        args: of `main.py`.
        world: of this process; the main process writes.
    """

    def __init__(self, args: Namespace, world: World) -> None:
        self.args = args
        self.world = world
        self.files = RunFiles.of(args)
        self.checkpoint: Path | None = None  # what it resumes from
        self.curves: Curves | None = None
        self.part = describe_start() if world.is_main else {}
        self.last_save = time.monotonic()
        self.has_failed = False  # the last save
        self.has_lost_picture = False
        self.has_shown_batch = False
        self.seen: dict[Path, tuple[int, int]] = {}  # its files, when it looked for a checkpoint
        # The processes that load a killed run's clips hold its lock for some seconds more.
        self.lock = FileLock(self.files.lock, timeout=8, thread_local=False)
        # What is logged before it is clear that the log file may be written.
        self.early = MemoryHandler(1 << 20)
        if not args.evaluate:
            log.addHandler(self.early)
            at_end.callback(log.removeHandler, self.early)
        if not world.is_main:
            return
        log.info(f"{self.part['started']}: {self.part['command']}")
        versions = ", ".join(
            f"{name} {version}" for name, version in self.part["versions"].items() if version
        )
        log.info(f"host {self.part['host']}, commit {self.part['commit']}, {versions}")

    def find_checkpoint(self) -> dict[str, Any] | None:
        """Load the checkpoint to continue from, in the main process, for all.

        Returns:
            Its content; None to start from scratch.

        Raises:
            BusyError: another process trains this run.
            UserError: it cannot be loaded.
        """
        found = None
        if self.world.is_main and not self.args.evaluate:
            try:
                self.files.check()
                if self.files.lock.exists() and has_locks(self.files.lock):
                    with self._owning():  # so that a second start hears of the first one at once
                        pass
                self.seen = self.files.state()
            except OSError as error:  # such as a name that is too long
                raise UserError(
                    f"--checkpoint_dir {self.args.checkpoint_dir}: cannot be read ({error})"
                ) from None
        if self.args.resume == "auto" and self.world.is_main:
            found = load_newest(self.files.checkpoint)
            if found is None:
                log.info("--resume auto: this run has no checkpoint yet, it starts from scratch")
        elif self.args.resume and self.world.is_main:
            found = Path(self.args.resume), load_checkpoint(self.args.resume)
        self.checkpoint, saved = self.world.broadcast(found or (None, None))
        return saved

    def check(self, saved: dict[str, Any] | None) -> None:
        """Refuse to mix two different runs, or to write where that is not possible.

        Args:
            saved: content of the checkpoint to continue from, if any.

        Raises:
            UserError: the checkpoint is of another model or recipe, or an older run would be overwritten.
        """
        args = self.args
        if saved:
            check_recipe(args, saved, self.checkpoint)
        if args.evaluate:
            return
        changes = describe_changes(args, saved, self.world.num_devices) if saved else ""
        if changes and self.world.is_main:
            log.warning(f"warning: the run continues on another curve: {changes}")
        check_writable_folder(args.checkpoint_dir, "--checkpoint_dir")
        # A start that failed before the first epoch or checkpoint leaves nothing that is worth keeping.
        old = list(self.seen) if self.world.is_main and self.files.has_results() else []
        is_continued = bool(saved) and saved.get("run") == self.files.name
        if old and not (is_continued or args.overwrite):
            raise UserError(
                f"a run of this name already exists: {', '.join(map(str, old))}; continue it (--resume "
                "auto), give this one another name (--store_name), or delete the old one (--overwrite)"
            )

    def begin(self, state: TrainState, metadata: dict[str, Any], first_step: int) -> None:
        """Prepare the files, and answer signals from now on.

        Args:
            state: of the run, as it begins or continues.
            metadata: what makes this run what it is, for the JSON file.
            first_step: of this part of the run, counted over all epochs.

        Raises:
            BusyError: another process trains this run.
            UserError: the files cannot be written.
        """
        if self.world.is_main:
            try:
                self.files.lock.parent.mkdir(parents=True, exist_ok=True)
                at_end.enter_context(self._owning())
                if self.files.state() != self.seen:
                    raise BusyError(f"run {self.files.name}: another process has written it since; try again")
                self.files.prepare(self.args.overwrite)
                if self.args.resume == "auto" and self.checkpoint:
                    set_aside_newer(self.files.checkpoint, self.checkpoint)
                write_json(self.files.json, metadata, self.part | {"epoch": state.epoch, "step": state.step})
                write_texts({self.files.csv: format_csv(state.history)})
                self.curves = Curves(self.files.tensorboard, first_step)
                self.curves.add_text("run", json.dumps(metadata | self.part, indent=2), first_step)
                self.early.setTarget(_LogFile(self.files.log))
            except OSError as error:
                raise UserError(
                    f"--checkpoint_dir {self.args.checkpoint_dir}: cannot write there ({error})"
                ) from None
            log.removeHandler(self.early)
            log.addHandler(self.early.target)
            at_end.callback(self.early.target.close)
            at_end.callback(log.removeHandler, self.early.target)
            self.early.flush()
        log.removeHandler(self.early)
        if not self.files.best.exists():
            state.best_prec1 = 0.0  # of another run, whose best checkpoint is not this one's
        log.info(f"run {self.files.name}, written below {self.args.checkpoint_dir}")
        self.last_save = time.monotonic()
        self.interruption = Interruption()

    @contextmanager
    def _owning(self) -> Iterator[None]:
        """Own the run's name, on all hosts that share its disk; the system ends it with the process.

        Raises:
            BusyError: another process owns it.
        """
        if not has_locks(self.files.lock):
            log.warning(
                "warning: this file system has no locks: nothing keeps another process from training this run"
            )
            yield
            return
        try:
            self.lock.acquire()
        except Timeout:
            try:
                part = _read_parts(self.files.json)[-1]
                owner = f"process {part['process']} on host {part['host']}, since {part['started']}"
            except (LookupError, TypeError):  # it has not said so yet
                owner = "another process"
            raise BusyError(
                f"run {self.files.name} is being trained by {owner}; wait for its end, or "
                "give this run another name (--store_name)"
            ) from None
        try:
            yield
        finally:
            self.lock.release()

    def add_curves(self, values: dict[str, float], step: int) -> None:
        """Add points to TensorBoard's curves, in the main process."""
        if self.curves:
            self.curves.add(values, step)

    def show_lengths(self, lengths: Mapping[str, np.ndarray], step: int) -> None:
        """Add to TensorBoard how many frames the videos of each list have, in the main process."""
        if self.curves:
            for name, numbers in lengths.items():
                # Whole numbers to a bin: others would have gaps. TensorBoard shows 30 of them.
                width = -(-(int(np.ptp(numbers)) + 1) // 30)
                bins = np.arange(numbers.min(), numbers.max() + width + 1, width) - 0.5
                self.curves.add_summary(histogram(f"data/{name}_frames", numbers, bins), step)

    def show_batch(
        self,
        clips: torch.Tensor,
        labels: torch.Tensor,
        videos: VideoDataSet,
        keys: Sequence[tuple[int, int]],
        categories: Sequence[str],
        step: int,
    ) -> None:
        """Draw the first batch of this part of the run, in the main process, to show mistakes in the data.

        Args:
            clips: see `reports.plots.draw_batch`.
            labels: of the clips.
            videos: that they are from.
            keys: of the clips, for `videos`.
            categories: class names.
            step: counted over all epochs.
        """
        if not self.curves or self.has_shown_batch:
            return
        self.has_shown_batch = True
        with self._spared(self.files.batch):
            drawn = keys[:MAX_CLIPS]
            names = [videos.record(number).path for _, number in drawn]
            mirrored = [videos.is_mirrored(key) for key in drawn]
            title = f"First batch of this run, at step {step}: {len(drawn)} of its {len(keys)} clips"
            content = clips[:MAX_CLIPS].cpu().numpy()
            picture = draw_batch(content, labels.tolist(), mirrored, names, categories, title)
            self.curves.add_summary(image("train/batch", np.asarray(picture), dataformats="HWC"), step)
            write_atomically(self.files.batch, image_png(picture))

    @contextmanager
    def _spared(self, picture: Path) -> Iterator[None]:
        """Do without a picture that cannot be drawn or written, with one warning in the run."""
        try:
            yield
        except Exception as error:  # whatever a file, a font or a library can be at fault with
            if not self.has_lost_picture:
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                log.warning(
                    f"warning: cannot draw {picture} ({printable(reason)}); training continues without it"
                )
            self.has_lost_picture = True

    def save_if_due(self, state: TrainState) -> None:
        """Save after a step if it is time to, or if the run is to stop, and stop then.

        Raises:
            SystemExit: a signal asked for it; the status is the shell's for that signal.
            UserError: see `save`.
        """
        self.stop_if_asked(state)
        is_late = time.monotonic() - self.last_save > 60 * self.args.save_minutes
        is_time = self.world.all_reduce_max(self.world.is_main and is_late)[0]
        if is_time or (self.args.save_freq and state.step % self.args.save_freq == 0):
            self.save(state)

    def stop_if_asked(self, state: TrainState) -> None:
        """Save and end the process if a signal asks for it; see `save_if_due`."""
        if number := self.world.all_reduce_max(self.interruption.number)[0]:
            self.save(state, is_last=True)
            name = signal.Signals(number).name
            log.info(f"stopped by {name} and saved {self.files.checkpoint}; --resume auto continues")
            sys.exit(128 + number)

    def end_epoch(self, state: TrainState, result: Result | None, seconds: float, steps: int) -> None:
        """Report and save an epoch, the best one under its own name, too; stop if that is asked for.

        Args:
            state: of the run, all steps of the epoch done.
            result: of the epoch's evaluation, if there was one.
            seconds: that the evaluation took.
            steps: in an epoch.

        Raises:
            UserError: the evaluation's loss is not finite, or see `save`.
            SystemExit: see `save_if_due`.
        """
        loss, prec1, prec5 = averages(state.meters.totals)
        trained = {"loss": loss, "prec1": prec1, "prec5": prec5}
        row = {"epoch": state.epoch, "lr": learning_rate(self.args, state.epoch)}
        row |= {f"train_{name}": value for name, value in trained.items()}
        curves = {f"train_epoch/{name}": value for name, value in trained.items()}
        is_best = False
        if result:
            if not math.isfinite(result.loss):
                raise UserError(
                    f"epoch {state.epoch}: the validation loss is {result.loss}, so training stops and "
                    "nothing more is saved; try a smaller --lr"
                )
            measured = {"loss": result.loss, "prec1": result.prec1, "prec5": result.prec5}
            measured["mean_class"] = result.mean_class
            row |= {f"val_{name}": value for name, value in measured.items()}
            curves |= {f"val/{name}": value for name, value in measured.items()}
            classes = state.metadata["categories"]
            curves |= {
                f"val_class/{label:03d} {classes[label]}": prec1
                for label, prec1 in result.class_prec1.items()
            }
            is_best = result.prec1 > state.best_prec1 or not self.files.best.exists()
            state.best_prec1 = max(state.best_prec1, result.prec1)
        self.add_curves(curves, (state.epoch + 1) * steps - 1)  # with the epoch's last step
        state.history.append(row)
        state.epoch, state.step, state.meters = state.epoch + 1, 0, ClipMeters(self.world)
        if result:
            log.info(
                f"Best Prec@1: {state.best_prec1:.3f}{state.best_epoch}\tvalidation took {seconds:.0f} s"
            )
        is_last = state.epoch == self.args.epochs
        self.save(state, is_best, is_last)
        if self.curves:
            with self._spared(self.files.picture):
                picture = figure_png(lambda: draw_curves({self.files.name: state.history}))
                write_atomically(self.files.picture, picture)
        if not is_last:
            self.stop_if_asked(state)

    def save(self, state: TrainState, is_best: bool = False, is_last: bool = False) -> None:
        """Save checkpoint and CSV file in the main process, and bear with one failure.

        Args:
            state: of the run.
            is_best: whether to save it as the best one, too.
            is_last: whether no other save follows.

        Raises:
            DivergedError: a loss was not finite; nothing is saved then.
            UserError: it failed, and the save before it did or there is none after it.
        """
        content = state.state_dict()
        if not self.world.is_main:
            return
        try:
            best = self.files.best if is_best else None
            save_checkpoint(self.files.checkpoint, content, self.args.keep, best)
            write_texts({self.files.csv: format_csv(state.history)})
        except OSError as error:
            message = (
                f"cannot save {self.files.checkpoint} ({error.strerror}); what was saved before is intact"
            )
            if self.has_failed or is_last:
                raise UserError(f"{message}; make room and continue with --resume auto") from None
            log.warning(f"warning: {message}; training stops if the next save fails too")
            self.has_failed = True
        else:
            self.has_failed = False
        self.last_save = time.monotonic()


def has_locks(path: Path) -> bool:
    """Whether the file system locks files; Lustre, for one, may be mounted without.

    Args:
        path: of a file, which is created if it does not exist.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody has it
            return True
        except OSError:
            return False
    return True


def check_recipe(args: Namespace, saved: dict[str, Any], path: Path) -> None:
    """Refuse to continue a checkpoint with another model or recipe.

    Raises:
        UserError: names what differs.
    """
    spec = describe_model(saved, path, args.type)
    options = saved.get("options", {})
    before = {} if args.evaluate else {name: options[name] for name in RECIPE if name in options}
    before |= {"type": spec.type, "arch": spec.arch, "alpha": spec.alpha, "beta": spec.beta}
    for name in ("alpha", "beta"):  # that only one of two types has says no more than the types
        if None in (before[name], getattr(args, name)):
            del before[name]
    if args.amp in (None, "auto"):  # which keep the checkpoint's
        before.pop("amp", None)
    changed = [name for name, value in before.items() if getattr(args, name) != value]
    if changed:
        values = ", ".join(f"{name} {before[name]} (now {getattr(args, name)})" for name in changed)
        raise UserError(f"{path} was made with {values}: give the same options to continue from it")
    known = saved.get("epoch")
    if args.start_epoch is not None and known is not None and args.start_epoch != known:
        raise UserError(f"--start-epoch {args.start_epoch}: {path} continues at epoch {known}")


def check_flips(mirrored: list[int], saved: dict[str, Any], categories: list[str], path: Path) -> None:
    """Refuse to continue with other mirrored classes, by another `--flip_pairs` for example.

    Args:
        mirrored: what each label becomes when a clip is mirrored, as from `mirrored_labels`.
        saved: the checkpoint to continue from; older ones do not say theirs.
        categories: class names.
        path: the checkpoint's file, for the message.

    Raises:
        UserError: names the first class that differs.
    """
    known = find_mirrored(saved, categories, path) if "mirrored" in saved else mirrored
    for name, before, now in zip(categories, known, mirrored, strict=True):
        if before != now:
            was, becomes = (
                "never mirrored" if label == NEVER else f"mirrored to '{printable(categories[label])}'"
                for label in (before, now)
            )
            raise UserError(
                f"{path} was trained with '{printable(name)}' {was} (now {becomes}): "
                "give the same --flip_pairs or --no_flip to continue from it"
            )


def describe_changes(args: Namespace, saved: dict[str, Any], num_devices: int) -> str:
    """What makes a resumed run differ from one that was not stopped, and is allowed; empty for nothing.

    Args:
        args: of the part of the run that begins.
        saved: the checkpoint that it continues.
        num_devices: that share a batch now.
    """
    changes = []
    epochs = saved.get("options", {}).get("epochs", args.epochs)
    if args.lr_schedule == "cosine" and epochs != args.epochs:
        changes.append(f"--epochs {args.epochs} (was {epochs}) stretches the cosine of the learning rate")
    devices = saved.get("num_devices", num_devices)
    if devices != num_devices:
        norm = "" if args.sync_bn or args.freeze_bn else "batch norm sees other shares of a batch, and "
        changes.append(f"number of devices {num_devices} (was {devices}): {norm}dropout is drawn anew")
    return "; ".join(changes)


@dataclass
class RunFiles:
    """Where a run of this name writes below `--checkpoint_dir`."""

    name: str
    checkpoint: Path
    best: Path
    csv: Path
    json: Path
    log: Path
    picture: Path
    batch: Path
    lock: Path
    tensorboard: Path

    @classmethod
    def of(cls, args: Namespace) -> "RunFiles":
        """The files of the run that these options describe."""
        split = [f"{name}{value}" for name in ("alpha", "beta") if (value := getattr(args, name)) is not None]
        parts = [args.type, args.dataset, args.arch, *split, f"segment{args.num_segments}"]
        name = "_".join([*parts, *filter(None, [args.store_name])])
        top = Path(args.checkpoint_dir)
        return cls(
            name=name,
            checkpoint=top / "checkpoint" / f"{name}_checkpoint.pth.tar",
            best=top / "checkpoint" / f"{name}_best.pth.tar",
            csv=top / "log" / f"{name}.csv",
            json=top / "log" / f"{name}.json",
            log=top / "log" / f"{name}.log",
            picture=top / "log" / f"{name}.png",
            batch=top / "log" / f"{name}.batch.png",
            lock=top / "log" / f"{name}.lock",
            tensorboard=top / "tensorboard" / name,
        )

    def existing(self) -> list[Path]:
        """Those that exist."""
        others = (self.best, self.csv, self.json, self.log, self.picture, self.batch, self.tensorboard)
        checkpoints = all_checkpoints(self.checkpoint) + damaged_checkpoints(self.checkpoint)
        return checkpoints + [path for path in others if path.exists()]

    def has_results(self) -> bool:
        """Whether there is a checkpoint, or an epoch in the CSV file.

        Raises:
            UserError: the CSV file cannot be read.
        """
        if all_checkpoints(self.checkpoint) or damaged_checkpoints(self.checkpoint) or self.best.exists():
            return True
        return self.csv.exists() and read_text(self.csv) != format_csv([])

    def check(self) -> None:
        """Refuse what the run would wait for, or cannot replace, in the place of a file.

        Raises:
            UserError: it is a folder, a named pipe, a link that leads nowhere, or the like.
        """
        others = (self.checkpoint, self.best, self.csv, self.json, self.log, self.lock)
        for path in [*all_checkpoints(self.checkpoint), *damaged_checkpoints(self.checkpoint), *others]:
            if os.path.lexists(path) and not path.is_file():
                raise UserError(f"{path}: is not a file; move it away")

    def state(self) -> dict[Path, tuple[int, int]]:
        """When each of them was last written, in nanoseconds, and its size in bytes."""
        found = {path: path.stat() for path in self.existing()}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}

    def prepare(self, overwrite: bool) -> None:
        """Make the folders; with `overwrite`, delete the older files first."""
        for path in self.existing() if overwrite else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (self.checkpoint.parent, self.csv.parent, self.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)


class Interruption:
    """Remembers the signals that ask a run to stop, so that it can finish its step and save.

    They are SIGTERM, SIGINT, SIGHUP (a lost terminal) and SIGUSR1 (Slurm's warning). A closed
    output counts as SIGPIPE. A torchrun that has died counts as SIGTERM: its processes would train
    on unseen, alongside those of the next attempt.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks for
                signal.signal(number, self._remember)
        terminal.on_lost_output = partial(self._remember, signal.SIGPIPE)

    def _remember(self, number: int, frame: object = None) -> None:
        if number == self.signal == signal.SIGINT:
            os._exit(128 + number)  # asked twice; files are replaced in one step, so none is harmed
        self.signal = number

    @property
    def number(self) -> int:
        """The signal to stop for; 0 for none."""
        is_orphan = self.parent is not None and os.getppid() != self.parent
        return self.signal or (signal.SIGTERM if is_orphan else 0)


class Curves:
    """Writes TensorBoard's file, and does without when it cannot be written.

    tensorboardX's `SummaryWriter` writes in a thread; when that dies of a full disk, the next
    values wait for ever. This writes at once, with the same classes.

    Args:
        folder: of the file.
        purge_step: the step from which on values in older files of the folder are void.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        # Its name has the second in which it was made; a clock may show one again.
        number = len(list(folder.iterdir()))
        self.file: EventsWriter | None = EventsWriter(str(folder / "events"), f".{number:03}")
        self._write(Event(step=purge_step, file_version="brain.Event:2"))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self.add_summary(scalar(name, value), step)

    def add_text(self, name: str, content: str, step: int) -> None:
        """Add a text, shown as it is: in Markdown, lines that begin with four spaces are."""
        self.add_summary(text(name, "\n".join(f"    {line}" for line in content.splitlines())), step)

    def add_summary(self, summary: Summary, step: int) -> None:
        """Add what the functions of tensorboardX make: a picture, a histogram, ..."""
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Event) -> None:
        if self.file is None:
            return
        event.wall_time = time.time()
        try:
            self.file.write_event(event)
            self.file.flush()
        except OSError as error:
            log.warning(f"warning: no more TensorBoard curves ({error.strerror})")
            self.file = None


class _LogFile(logging.FileHandler):
    """The log's file, a time stamp on every line; does without when it cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(OneLine("%(asctime)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name for it
        if self not in log.handlers:  # it has been reported
            return
        log.removeHandler(self)
        log.warning(f"warning: no more lines in {self.baseFilename} ({sys.exc_info()[1]})")


def describe_start() -> dict[str, Any]:
    """When, where and by what this process was started."""
    return {
        "started": datetime.now().isoformat(" ", "seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "commit": find_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "tensorboardX": metadata.version("tensorboardX"),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
    }


def find_commit() -> str:
    """The commit of this code, and whether files differ from it; 'unknown' outside a git repository."""
    folder = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder:
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: Path, metadata: dict[str, Any], part: dict[str, Any]) -> None:
    """Write what makes a run what it is.

    Args:
        path: the file; the parts of the run that it names already stay in it.
        metadata: options, sizes and so on, as they are now.
        part: how this part of the run was started, and from where it continued.
    """
    content = metadata | {"versions": part["versions"], "parts": [*_read_parts(path), part]}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _read_parts(path: Path) -> list[Any]:
    try:
        return [*json.loads(path.read_text(encoding="utf-8"))["parts"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none yet, or not this code's
        return []


def format_csv(history: list[HistoryRow]) -> str:
    """The text of the CSV file, a row for each epoch; cells of epochs that were not evaluated stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(HistoryRow.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
