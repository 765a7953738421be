"""The files of a run: their names, the record of its starts, and the table of its epochs."""

import csv
import io
import json
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

from training.checkpoint import HistoryRow, all_checkpoints, damaged_checkpoints
from utils.files import read_text, write_atomically


class RunFiles:
    """The files of a run below `--checkpoint_dir`.

    Args:
        args: options of main.py. The name of the run follows from the model, the data set and `store_name`.
    """

    def __init__(self, args: Namespace) -> None:
        split = [f"{name}{value}" for name in ("alpha", "beta") if (value := getattr(args, name)) is not None]
        parts = [args.type, args.dataset, args.arch, *split, f"segment{args.num_segments}"]
        consensus = "" if args.consensus == "mean" else args.consensus
        name = "_".join([*parts, *filter(None, [consensus, args.store_name])])
        top = Path(args.checkpoint_dir)
        self.name = name
        self.checkpoint = top / "checkpoint" / f"{name}_checkpoint.pth.tar"
        self.best = top / "checkpoint" / f"{name}_best.pth.tar"
        self.csv = top / "log" / f"{name}.csv"
        self.json = top / "log" / f"{name}.json"
        self.log = top / "log" / f"{name}.log"
        self.picture = top / "log" / f"{name}.png"
        self.batch = top / "log" / f"{name}.batch.png"
        self.lock = top / "log" / f"{name}.lock"
        self.tensorboard = top / "tensorboard" / name

    def existing(self) -> list[Path]:
        """The files of this run that exist."""
        others = (self.best, self.csv, self.json, self.log, self.picture, self.batch, self.tensorboard)
        checkpoints = all_checkpoints(self.checkpoint) + damaged_checkpoints(self.checkpoint)
        return checkpoints + [path for path in others if path.exists()]

    def has_results(self) -> bool:
        """Whether the run has a checkpoint or a finished epoch.

        Raises:
            UserError: the CSV file cannot be read.
        """
        if all_checkpoints(self.checkpoint) or damaged_checkpoints(self.checkpoint) or self.best.exists():
            return True
        return self.csv.exists() and read_text(self.csv) != format_csv([])

    def prepare(self, overwrite: bool) -> None:
        """Make the folders; with `overwrite`, delete the older files first."""
        for path in self.existing() if overwrite else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (self.checkpoint.parent, self.csv.parent, self.tensorboard):
            folder.mkdir(parents=True, exist_ok=True)


def describe_start() -> dict[str, Any]:
    """Describe when, where and by which command this process was started."""
    packages = ("torchvision", "numpy", "pillow", "tensorboardX")
    versions: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version(name) for name in packages}
    if torch.cuda.is_available():
        versions |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return {
        "started": datetime.now().isoformat(" ", "seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "commit": find_commit(),
        "versions": versions,
    }


def find_commit() -> str:
    """The commit of this code, with a note if files were changed; 'unknown' outside a git repository."""
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
    """Write the description of a run.

    Args:
        path: the file. Earlier parts of the run are kept in it.
        metadata: options, devices, numbers of clips.
        part: description of this start, see `describe_start`, with the epoch and step.
    """
    content = metadata | {"versions": part["versions"], "parts": [*read_parts(path), part]}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_parts(path: Path) -> list[Any]:
    """The starts of a run from its JSON file; empty if it has none."""
    try:
        return [*json.loads(path.read_text(encoding="utf-8"))["parts"]]
    except (OSError, ValueError, KeyError, TypeError):  # no such file yet, or not this code's
        return []


def format_csv(history: list[HistoryRow]) -> str:
    """The text of the CSV file: a row for each epoch, with empty cells if it was not validated."""
    content = io.StringIO()
    writer = csv.DictWriter(content, list(HistoryRow.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return content.getvalue()
