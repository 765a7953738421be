"""Kill real training runs at random moments, resume them, and compare with a run that was left alone.

    python tests/resume_harness.py --kills 30
    python tests/resume_harness.py --kills 30 --processes 2
    python tests/resume_harness.py --kills 30 --processes 2 --nodes 2

Everything a run leaves is compared bit by bit: weights, optimizer state, best checkpoint, CSV log.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from synthetic import make_dataset

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
# Another number of threads adds numbers in another order.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def training_commands(
    root: Path, out: Path, processes: int = 1, nodes: int = 1, *more: str
) -> list[list[str]]:
    """The command lines, one for each node, of a run that resumes by itself.

    Args:
        root: of the data.
        out: where the run writes.
        processes: on all nodes together; with more than one they are torchrun's.
        nodes: agents of torchrun, all on this machine.
        more: options for main.py.
    """
    options = (
        f"--dataset somethingv1 --root_path {root} --checkpoint_dir {out} --arch resnet14 --input_size 32"
    )
    options += " --num_segments 4 --epochs 3 -b 4 --lr 0.002 -j 1 -p 1 --save-freq 1 --resume auto"
    program = [str(REPOSITORY / "main.py"), *options.split(), *more]
    if processes == 1:
        return [[sys.executable, *program]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes // nodes}"]
    agent += [f"--nnodes={nodes}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return [[*agent, f"--node_rank={node}", *program] for node in range(nodes)]


def run_for(commands: list[list[str]], seconds: float | None) -> list[int]:
    """Run them together, kill -9 them all after so many seconds unless they ended; give the exit statuses."""
    env = os.environ | ONE_THREAD
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, env=env, start_new_session=True, **quiet) for command in commands]
    deadline = time.monotonic() + (seconds if seconds is not None else 600)
    for process in running:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            break
    for process in running:
        # torchrun starts each worker in a session of its own.
        for pid in _descendants(process.pid) + [process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    return [process.wait() for process in running]


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    pids = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [other for child in pids for other in [*_descendants(child), child]]


def what_is_left(out: Path) -> dict[str, Any]:
    """All that a run leaves and that must not depend on interruptions."""
    left: dict[str, Any] = {"csv": (out / "log" / f"{NAME}.csv").read_text()}
    for kind in ("checkpoint", "best"):
        file = out / "checkpoint" / f"{NAME}_{kind}.pth.tar"
        content = torch.load(file, weights_only=True)
        for part in ("epoch", "step", "state_dict", "optimizer", "best_prec1", "totals", "history"):
            left[f"{kind} {part}"] = content[part]
    return left


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two such results differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and len(a) == len(b):
        return [
            found
            for i, pair in enumerate(zip(a, b, strict=True))
            for found in differences(*pair, f"{where}/{i}")
        ]
    return [] if a == b else [where]


def make_data(folder: Path) -> Path:
    """Data for runs of a few seconds; 22 clips leave a short last batch."""
    return make_dataset(folder, train=22, val=6, frames=6)


def run_alone(root: Path, out: Path, processes: int = 1) -> tuple[dict[str, Any], float]:
    """Let a run finish; give what it leaves and the seconds it took."""
    start = time.monotonic()
    assert run_for(training_commands(root, out, processes), None) == [0]
    return what_is_left(out), time.monotonic() - start


def kill_and_compare(
    root: Path,
    folder: Path,
    alone: tuple[dict[str, Any], float],
    kills: int,
    processes: int = 1,
    nodes: int = 1,
    seed: int = 0,
) -> list[str]:
    """Kill runs `kills` times altogether, and resume each until it ends.

    Args:
        root: of the data.
        folder: where they write.
        alone: what `run_alone` gave for this data and number of processes.
        kills: how often to kill; a run that ends before it is killed is followed by another one.
        processes: see `training_commands`.
        nodes: see `training_commands`.
        seed: of the moments.

    Returns:
        Where what they leave differs from what the run left alone has left.
    """
    expected, duration = alone
    rng = random.Random(seed)
    done, attempt, found = 0, 0, []
    while done < kills:
        attempt += 1
        out = folder / f"killed{attempt}"
        ended = False
        while done < kills and not ended:
            commands = training_commands(root, out, processes, nodes)
            ended = 0 in run_for(commands, rng.uniform(0.1, 1.1) * duration)
            done += not ended
        assert run_for(training_commands(root, out, processes, nodes), None) == [0] * nodes
        found += [f"run {attempt}: {where}" for where in differences(expected, what_is_left(out))]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = make_data(folder / "data")
        alone = run_alone(root, folder / "alone", args.processes)
        found = kill_and_compare(root, folder, alone, args.kills, args.processes, args.nodes, args.seed)
    print(f"{args.kills} kills, {len(found)} differences")
    print("\n".join(found), end="")
    sys.exit(bool(found))
