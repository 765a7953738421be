"""Kill real training runs at random moments, resume them, and compare with an uninterrupted run.

    python tests/resume_harness.py --kills 30
    python tests/resume_harness.py --kills 30 --processes 2
    python tests/resume_harness.py --kills 30 --processes 2 --nodes 2
    python tests/resume_harness.py --kills 30 --videos --fine_tune

The runs are killed while they save. After each kill, an intact checkpoint must exist; after every third, the
newest checkpoint is damaged, too. The results are compared bit for bit: weights, optimizer state, best
checkpoint, CSV log.
"""

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import REPOSITORY, Program, start_ranks, start_torchrun
from PIL import Image
from synthetic import make_dataset
from video_files import write_video

sys.path.insert(0, str(REPOSITORY))

from training.checkpoint import all_checkpoints, load_checkpoint, load_newest

NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
# Another number of threads adds numbers in another order.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def training_options(root: Path, out: Path, *more: object) -> list[str]:
    """The options of `main.py` for a run that saves after each step, and resumes if it has a checkpoint."""
    options = (
        "--dataset somethingv1 --arch resnet14 --input_size 32 --num_segments 4 --epochs 2 -b 4 --lr 0.002 "
        "-j 1 -p 1 --save-freq 1 --resume auto"
    )
    return ["--root_path", str(root), "--checkpoint_dir", str(out), *options.split(), *map(str, more)]


def start(
    root: Path,
    out: Path,
    processes: int = 1,
    nodes: int = 1,
    *more: object,
    prepare: Callable[[], None] | None = None,
) -> list[Program]:
    """Start a run with so many processes in all; nodes are agents of torchrun on this machine."""
    options = training_options(root, out, *more)
    if processes == 1:
        return [Program("main.py", *options, env=ONE_THREAD, prepare=prepare)]
    if nodes == 1:
        return start_ranks(processes, "main.py", *options, env=ONE_THREAD, prepare=prepare)
    agent = slurm_agent(processes // nodes, nodes)
    return [start_torchrun(agent, "main.py", *options, env=ONE_THREAD) for _ in range(nodes)]


def slurm_agent(processes: int, nodes: int) -> list[str]:
    """The options that docs/slurm.sbatch gives torchrun, if the first node is this machine."""
    job = next(job for job in iter(lambda: random.getrandbits(30), None) if is_free(job))
    metadata = {"JOB_ID": job, "NNODES": nodes, "GPUS_ON_NODE": processes, "CPUS_PER_TASK": 1}
    with tempfile.TemporaryDirectory() as folder:
        write_command(Path(folder, "hostname"), "echo 127.0.0.1")
        write_command(Path(folder, "srun"), "printf '%s\\n' \"$@\"")
        environment = os.environ | {f"SLURM_{name}": str(value) for name, value in metadata.items()}
        environment["PATH"] = f"{folder}:{environment['PATH']}"
        command = ["bash", str(REPOSITORY / "docs" / "slurm.sbatch")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    return words[words.index("torchrun") + 1 : words.index("main.py")]


def is_free(job: int) -> bool:
    """Whether nothing listens at the port that docs/slurm.sbatch uses for a job."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", 20000 + job % 10000)) != 0


def write_command(path: Path, *lines: str) -> None:
    """Write a bash script that replaces a command."""
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def end(programs: list[Program], seconds: float = 600) -> list[int]:
    """Wait for programs, kill those that still run after so many seconds, and return the exit statuses."""
    deadline = time.monotonic() + seconds
    for program in programs:
        if not program.wait(max(0, deadline - time.monotonic())):
            break
    for program in programs:
        program.kill()
    return [program.finish().returncode for program in programs]


def read_result(out: Path) -> dict[str, Any]:
    """The results of a run that must not depend on interruptions."""
    result: dict[str, Any] = {"csv": (out / "log" / f"{NAME}.csv").read_text()}
    for kind in ("checkpoint", "best"):
        file = out / "checkpoint" / f"{NAME}_{kind}.pth.tar"
        content = torch.load(file, weights_only=True)
        for part in ("epoch", "step", "state_dict", "optimizer", "best_prec1", "totals", "history"):
            result[f"{kind} {part}"] = content[part]
    return result


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two results differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and a.keys() == b.keys():
        return sum((differences(a[key], b[key], f"{where}/{key}") for key in a), [])
    if isinstance(a, list) and len(a) == len(b):
        return sum((differences(a[i], b[i], f"{where}/{i}") for i in range(len(a))), [])
    return [] if a == b else [where]


def make_data(folder: Path, videos: bool = False) -> Path:
    """Make data for runs of a few seconds, as frames or as VP9 and H.264 videos; the last batch is short."""
    root = make_dataset(folder, train=10, val=6, frames=6)
    frames = root / "somethingv1" / "20bn-something-something-v1"
    if videos:
        (root / "somethingv1" / "videos").mkdir()
        for clip in frames.iterdir():
            images = [np.asarray(Image.open(frame)) for frame in sorted(clip.iterdir())]
            suffix = (".webm", ".mp4")[int(clip.name) % 2]
            write_video(root / "somethingv1" / "videos" / f"{clip.name}{suffix}", images)
        shutil.rmtree(frames)
    return root


def make_start(root: Path, folder: Path) -> list[object]:
    """Train on data whose classes have other names; return the options to start from its checkpoint."""
    other = folder / "other"
    shutil.copytree(root, other)
    category = other / "somethingv1" / "category.txt"
    category.write_text("".join(f"Another {name}\n" for name in category.read_text().splitlines()))
    assert end(start(other, folder, 1, 1, "--epochs", 1)) == [0]
    return ["--pretrained", checkpoint_of(folder), "--lr_mult_new", 2]


def run_alone(
    root: Path, out: Path, processes: int = 1, nodes: int = 1, more: Sequence[object] = ()
) -> tuple[dict[str, Any], float]:
    """Let a run finish; return its result and the seconds it took."""
    began = time.monotonic()
    assert set(end(start(root, out, processes, nodes, *more))) == {0}
    return read_result(out), time.monotonic() - began


def checkpoint_of(out: Path) -> Path:
    """The newest checkpoint of a run."""
    return out / "checkpoint" / f"{NAME}_checkpoint.pth.tar"


def kill_in_a_save(programs: list[Program], out: Path, rng: random.Random, seconds: float) -> bool:
    """Kill programs during their first save after so many seconds; True if one has ended before."""
    deadline = time.monotonic() + seconds
    while all(program.is_running for program in programs):
        if time.monotonic() > deadline and list(out.glob("checkpoint/.*.part")):
            time.sleep(rng.uniform(0, 0.2))  # about as long as a save takes
            break
        time.sleep(0.001)
    return 0 in end(programs, 0)


def assert_intact(out: Path) -> None:
    """Check that one of a run's checkpoints loads, and its best one; there may be none yet."""
    load_newest(checkpoint_of(out))
    best = out / "checkpoint" / f"{NAME}_best.pth.tar"
    if best.exists():
        load_checkpoint(best)


def damage_newest(out: Path, rng: random.Random) -> None:
    """Flip a bit of the newest checkpoint if there is an older one."""
    newest, *older = all_checkpoints(checkpoint_of(out)) or [None]
    if older:
        content = bytearray(newest.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        newest.unlink()  # the best one may be another name of it
        newest.write_bytes(content)


def kill_and_compare(
    root: Path,
    folder: Path,
    alone: tuple[dict[str, Any], float],
    kills: int,
    processes: int = 1,
    nodes: int = 1,
    seed: int = 0,
    more: Sequence[object] = (),
) -> list[str]:
    """Kill runs during saves, and resume each until it ends.

    After every third kill, a bit of the newest checkpoint is flipped. A run that ends before it is killed is
    followed by another one.

    Returns:
        The places where the results differ from those of the uninterrupted run (`alone`).
    """
    expected, duration = alone
    rng = random.Random(seed)
    done, attempt, places = 0, 0, []
    while done < kills:
        attempt += 1
        out = folder / f"killed{attempt}"
        ended = False
        while done < kills and not ended:
            programs = start(root, out, processes, nodes, *more)
            ended = kill_in_a_save(programs, out, rng, rng.uniform(0.1, 1.1) * duration)
            done += not ended
            assert_intact(out)
            if not ended and done % 3 == 0:
                damage_newest(out, rng)
        assert set(end(start(root, out, processes, nodes, *more))) == {0}
        places += [f"run {attempt}: {where}" for where in differences(expected, read_result(out))]
    return places


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", action="store_true", help="decode the clips from video files")
    parser.add_argument("--fine_tune", action="store_true", help="start from a checkpoint with other classes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = make_data(folder / "data", args.videos)
        more = make_start(root, folder / "start") if args.fine_tune else []
        alone = run_alone(root, folder / "alone", args.processes, args.nodes, more)
        places = kill_and_compare(
            root, folder, alone, args.kills, args.processes, args.nodes, args.seed, more
        )
    print(f"{args.kills} kills, {len(places)} differences")
    print("\n".join(places), end="")
    sys.exit(bool(places))
