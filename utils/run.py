"""What a run leaves: the paths of its files, checkpoints, log, curves; and the signals that stop it."""

import csv
import io
import json
import os
import platform
import shutil
import signal
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from dataset import VideoDataSet
from models import TemporalModel
from utils.checkpoint import all_checkpoints, save_checkpoint
from utils.cli import InputError
from utils.distributed import World
from utils.files import write_atomically


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
        others = (self.best, self.csv, self.json, self.tensorboard)
        return all_checkpoints(self.checkpoint) + [path for path in others if path.exists()]

    def prepare(self, overwrite: bool) -> None:
        """Make the folders; with `overwrite`, delete what is there first."""
        for path in self.existing() if overwrite else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (self.checkpoint.parent, self.csv.parent, self.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)


class Interruption:
    """Remembers SIGTERM, SIGINT and SIGUSR1 (Slurm's warning), so that a run can finish its step and save.

    A torchrun that has died counts as SIGTERM: its processes would train on unseen, beside those
    of the next attempt.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        if number == self.signal == signal.SIGINT:
            os._exit(128 + number)  # asked twice; files are replaced whole, so none is harmed
        self.signal = number

    @property
    def number(self) -> int:
        """The signal to stop for; 0 for none."""
        is_orphan = self.parent is not None and os.getppid() != self.parent
        return self.signal or (signal.SIGTERM if is_orphan else 0)


class Saver:
    """Saves a run's checkpoints and log, and bears with one failure.

    Args:
        files: of the run.
        keep: checkpoints to keep.
        is_active: whether this process is the one that writes.
    """

    def __init__(self, files: RunFiles, keep: int, is_active: bool) -> None:
        self.files = files
        self.keep = keep
        self.is_active = is_active
        self.failed = False
        self.time = time.monotonic()

    def save(self, content: dict[str, Any], is_best: bool = False, is_last: bool = False) -> None:
        """Save.

        Args:
            content: of the checkpoint.
            is_best: whether to save it as the best one, too.
            is_last: whether no other save follows.

        Raises:
            InputError: it failed, and the save before it did or there is none after it.
        """
        if not self.is_active:
            return
        try:
            # In this order a run that is killed in between does the same again.
            if is_best:
                save_checkpoint(self.files.best, content)
            save_checkpoint(self.files.checkpoint, content, self.keep)
            write_csv(self.files.csv, content["history"])
        except OSError as error:
            told = f"cannot save {self.files.checkpoint} ({error.strerror}); what was saved before is whole"
            if self.failed or is_last:
                raise InputError(f"{told}; make room and go on with --resume auto") from None
            print(f"warning: {told}; training stops if the next save fails too", file=sys.stderr)
            self.failed = True
        else:
            self.failed = False
        self.time = time.monotonic()


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
            self._write(Event(step=step, summary=scalar(name, value)))

    def _write(self, event: Event) -> None:
        if self.file is None:
            return
        event.wall_time = time.time()
        try:
            self.file.write_event(event)
            self.file.flush()
        except OSError as error:
            print(f"warning: no more TensorBoard curves ({error.strerror})", file=sys.stderr)
            self.file = None


def write_json(
    path: Path,
    args: Namespace,
    model: TemporalModel,
    world: World,
    train_set: VideoDataSet,
    val_set: VideoDataSet,
) -> None:
    """Write what makes this run what it is: options, versions, sizes."""
    content = {
        "options": vars(args),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "tensorboardX": metadata.version("tensorboardX"),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
        "devices": world.describe(args.batch_size),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "clips": {"training": len(train_set), "validation": len(val_set)},
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the log, a row for each epoch; cells of epochs that were not evaluated stay empty."""
    columns = ["epoch", "lr", "train_loss", "train_prec1", "train_prec5"]
    columns += ["val_loss", "val_prec1", "val_prec5", "val_mean_class"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue().encode())
