"""The files of a run: their names, the record of its starts, and the table of its epochs."""

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import all_checkpoints
from utils.files import to_csv, write_files

COLUMNS = ("epoch", "lr", "train_loss", "train_prec1", "train_prec5")
COLUMNS += ("val_loss", "val_prec1", "val_prec5", "val_mean_class")


class RunFiles:
    """The files of a run in `--checkpoint_dir`. Its name follows from model and data set."""

    def __init__(self, args: Namespace) -> None:
        split = [f"{name}{value}" for name in ("alpha", "beta") if (value := getattr(args, name)) is not None]
        parts = [args.type, args.dataset, args.arch, *split, f"segment{args.num_segments}"]
        consensus = "" if args.consensus == "mean" else args.consensus
        self.name = name = "_".join([*parts, *filter(None, [consensus, args.store_name])])
        top = Path(args.checkpoint_dir)
        self.checkpoint = top / "checkpoint" / f"{name}_checkpoint.pth.tar"
        self.best = top / "checkpoint" / f"{name}_best.pth.tar"
        self.csv = top / "log" / f"{name}.csv"
        self.log = top / "log" / f"{name}.log"
        self.picture = top / "log" / f"{name}.png"
        self.batch = top / "log" / f"{name}.batch.png"
        self.lock = top / "log" / f"{name}.lock"
        self.tensorboard = top / "tensorboard" / name

    def results(self) -> list[Path]:
        """The existing checkpoints, and the table if there is one. A new run must not overwrite them."""
        return [*all_checkpoints(self.checkpoint), *(p for p in (self.best, self.csv) if p.exists())]

    def prepare(self, overwrite: bool) -> None:
        """Make the folders; with `overwrite`, delete the older files first."""
        if overwrite:
            for path in (*self.results(), self.picture, self.batch):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.tensorboard, ignore_errors=True)
        for folder in (self.checkpoint.parent, self.csv.parent, self.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)


def describe_start() -> dict[str, Any]:
    """Describe when, where and by which command this process was started, for the log."""
    versions = {name: version(name) for name in ("torchvision", "numpy", "pillow")}
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn.version()
        versions |= {"cuda": torch.version.cuda, "hip": torch.version.hip, "cudnn": cudnn}
    return {
        "started": datetime.now().isoformat(" ", "seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "host": f"{socket.gethostname()}, process {os.getpid()}",
        "commit": find_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | versions,
    }


def find_commit() -> str:
    """The commit of this code, with -dirty if files were changed; 'unknown' without a git repository."""
    home = Path(__file__).resolve().parent.parent
    command = ["git", "--no-optional-locks", f"--git-dir={home / '.git'}", f"--work-tree={home}"]
    command += ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write a row for each epoch. Cells of values that were not measured are empty."""
    rows = ([epoch.get(column) for column in COLUMNS] for epoch in history)
    write_files({path: to_csv([COLUMNS, *rows])})
