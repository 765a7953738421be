"""The same run in several processes, on this machine's CPU."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import resume_harness
import torch
from forked import REPOSITORY, descendants, start_ranks, start_torchrun
from helpers import assert_one_line_error, run, running
from resume_harness import NAME, ONE_THREAD, read_result, training_options
from synthetic import make_dataset
from torch.distributed.run import parse_args

from models import TemporalModel

# A rate and a size with which a difference in the last digit does not grow.
STABLE = ("-b", "8", "--lr", "0.0001", "--input_size", "64")
# Without batch statistics and dropout, several processes compute what one computes.
EPOCH = ("--epochs", "1", "--dropout", "0", "--freeze_bn", "--save-freq", "1000", *STABLE)
# The classifier learns so fast that the losses differ if only one process does it.
FASTER = ("--lr_mult_new", "100")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 7 validation clips in batches of 2 are shared unevenly by 2 processes.
    return make_dataset(tmp_path_factory.mktemp("distributed"), train=25, val=7, frames=(6, 9))


@pytest.fixture(scope="module")
def initial_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with other classes."""
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.manual_seed(3)
    model = TemporalModel(5, 4, backbone="resnet14")
    torch.nn.init.constant_(model.base_model.bn1.running_mean, 0.1)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def one_process(
    root: Path, initial_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float]]:
    """The folder of a run in one process, and the losses of its 3 steps and one of a single clip."""
    out = tmp_path_factory.mktemp("one")
    return out, train(root, out, 1, *EPOCH, *FASTER, "--pretrained", initial_weights)


def train(root: Path, out: Path, processes: int, *more: object) -> list[float]:
    """Train, and return the logged losses."""
    done = [program.finish() for program in resume_harness.start(root, out, processes, 1, *more)]
    for process in done:
        assert process.returncode == 0, process.stderr
        assert "Warning" not in process.stderr, process.stderr
    return [float(loss) for loss in re.findall(r"^Epoch:.*Loss ([\d.]+)", done[0].stdout, re.MULTILINE)]


@pytest.mark.slow
def test_two_processes_train_like_one(root, initial_weights, one_process, tmp_path):
    """The first process alone reads the initial weights. Two accumulated batches are one step."""
    _, expected = one_process
    assert len(expected) == 4
    accumulated = (*EPOCH, *FASTER, "-b", 4, "--accumulate", 2)
    losses = train(root, tmp_path, 2, *accumulated, "--pretrained", initial_weights)
    # The 4th batch has one clip, which two processes cannot share: it is left out.
    assert len(losses) == 3
    np.testing.assert_allclose(losses, expected[:3], rtol=0, atol=1e-4 + 0.5e-4)  # the log has four decimals
    checkpoint = torch.load(tmp_path / "checkpoint" / f"{NAME}_checkpoint.pth.tar", weights_only=True)
    assert checkpoint["new_classifier"] is True
    for name, value in torch.load(initial_weights, weights_only=True).items():
        if "running" in name or "num_batches" in name:  # --freeze_bn
            assert torch.equal(checkpoint["state_dict"][name], value), name


@pytest.mark.slow
def test_two_processes_evaluate_like_one(root, one_process, tmp_path):
    out, _ = one_process
    weights = out / "checkpoint" / f"{NAME}_best.pth.tar"
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", "0")
    options += ("-b", "8", "--test_crops", "3")  # batches of 2 videos, whose 3 views are averaged

    def outputs(name: str) -> list[object]:
        return [
            "--save_scores",
            tmp_path / f"{name}.npz",
            "--save_features",
            tmp_path / f"{name}_features.npz",
        ]

    one = run("test_models.py", *options, *outputs("one"), env=ONE_THREAD)
    ranks = start_ranks(2, "test_models.py", *options, *outputs("two"), env=ONE_THREAD)
    two, other = (rank.finish() for rank in ranks)
    assert (other.returncode, other.stdout) == (0, "")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout.splitlines()[-1] == two.stdout.splitlines()[-1]
    for file, names in (("", ("scores", "labels", "videos")), ("_features", ("features",))):
        with np.load(tmp_path / f"one{file}.npz") as expected, np.load(tmp_path / f"two{file}.npz") as arrays:
            for name in names:
                assert len(arrays[name]) == 7
                np.testing.assert_array_equal(arrays[name], expected[name])


# Failures


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resume_harness.make_data(tmp_path_factory.mktemp("small"))


@pytest.mark.slow
def test_failure_of_one_process_ends_the_other(tmp_path):
    """In the middle of training: a frame that only one process reads."""
    root = make_dataset(tmp_path / "data", train=8, val=2, frames=4)
    frames = sorted((root / "somethingv1").glob("*/5/*.jpg"))
    for frame in frames:
        frame.write_bytes(b"")
    ranks = start_ranks(2, "main.py", *training_options(root, tmp_path / "out"), env=ONE_THREAD)
    one, other = sorted((rank.finish() for rank in ranks), key=lambda done: "lost another" in done.stderr)
    assert_one_line_error(one, frames[0].parent)
    assert_one_line_error(other, "lost another process")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_restarts_and_dies(small, tmp_path):
    """Restarted processes continue from the newest checkpoint; those of a dead torchrun save and stop."""
    options = training_options(small, tmp_path, "--epochs", 500)
    agent = start_torchrun(["--nproc_per_node=2", "--max_restarts=1"], "main.py", *options, env=ONE_THREAD)
    agent.wait_for("Epoch: [0][1/")
    os.kill(min(descendants(agent.pid)), signal.SIGKILL)
    agent.wait_for("resumed ")
    agent.wait_for("Epoch: [1][0/")
    workers = descendants(agent.pid)
    agent.send_signal(signal.SIGKILL)
    while any(is_running(pid) for pid in workers):
        time.sleep(0.05)
    assert "stopped by SIGTERM and saved" in agent.finish().stdout
    assert resume_harness.end(resume_harness.start(small, tmp_path, 2)) == [0, 0]
    alone, _ = resume_harness.run_alone(small, tmp_path / "alone", 2)
    assert resume_harness.differences(alone, read_result(tmp_path)) == []


def is_running(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# docs/slurm.sbatch

SLURM = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
# A training that is asked to stop ends with 1, as torchrun does.
TRAINING = ("trap 'exit 1' TERM", "echo $$ >pid", "while true; do sleep 0.02; done")
NO_PREEMPTION = "   PreemptEligibleTime=2026-11-24T12:00:00 PreemptTime=None"
PREEMPTION = NO_PREEMPTION.replace("None", "2026-11-24T13:00:00")


@pytest.mark.parametrize(
    ("training", "is_warned", "job", "status", "is_requeued"),
    [
        (TRAINING, True, NO_PREEMPTION, 1, True),
        (("exit 3",), False, NO_PREEMPTION, 3, False),  # an error, which would only come again
        (("exit 1",), False, PREEMPTION, 1, True),
    ],
)
def test_stopped_slurm_job_is_requeued(tmp_path, training, is_warned, job, status, is_requeued):
    """With scripts in place of Slurm's commands. `slurm_agent` covers the options of torchrun."""
    commands = {"srun": training, "scancel": ('echo "$@" >>scancel.txt; kill -TERM "$(<pid)"',)}
    commands["scontrol"] = (f"if [ $1 = show ]; then echo '{job}'; else echo \"$@\" >>scontrol.txt; fi",)
    for name, lines in commands.items():
        resume_harness.write_command(tmp_path / name, *lines)
    environment = os.environ | SLURM | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", REPOSITORY / "docs" / "slurm.sbatch"]
    with running(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as script:
        if is_warned:
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                time.sleep(0.01)
            script.send_signal(signal.SIGUSR1)
        assert script.wait() == status
    calls = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    expected = {"scancel.txt": "--signal=TERM 77\n"} if is_warned else {}
    assert calls == expected | ({"scontrol.txt": "requeue 77\n"} if is_requeued else {})


def test_torchrun_understands_the_slurm_script():
    """`resume_harness.py --nodes 2` trains with these options."""
    args = parse_args([*resume_harness.slurm_agent(1, 2), "main.py"])
    assert (args.nnodes, args.nproc_per_node, args.rdzv_backend) == ("2", "1", "c10d")


SHARE = """
import torch
from utils.distributed import share_cores
share_cores(1)
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_processes_share_the_cores():
    """torchrun sets OMP_NUM_THREADS=1 in the processes that it starts, unless the user has set it."""
    torchrun = "import os, subprocess, sys; os.environ['OMP_NUM_THREADS'] = '1';"
    torchrun += f"subprocess.run([sys.executable, '-c', {SHARE!r}])"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", torchrun]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(os.sched_getaffinity(0))
