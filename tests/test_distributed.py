"""The same run in several processes, with torchrun on this machine's CPU."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resume_harness
import torch
from forked import REPOSITORY, descendants, start_ranks, start_torchrun
from helpers import assert_one_line_error, call, run, running
from resume_harness import NAME, ONE_THREAD, training_options, what_is_left
from synthetic import make_dataset

from models import TemporalModel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 7 validation clips in batches of 2 are shared unevenly by 2 processes.
    return make_dataset(tmp_path_factory.mktemp("distributed"), train=41, val=7, frames=(6, 9))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other classes to start from."""
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.manual_seed(3)
    model = TemporalModel(5, 4, backbone="resnet14")
    torch.nn.init.constant_(model.base_model.bn1.running_mean, 0.1)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def one_process(
    root: Path, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float]]:
    """Where a run in one process writes, and the losses of its 5 steps and one of a single clip."""
    out = tmp_path_factory.mktemp("one")
    return out, losses_of(root, out, 1, *EPOCH, *FASTER, "--pretrained", start)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resume_harness.make_data(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def alone(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a run of two processes leaves that nobody disturbs, and the seconds it takes."""
    return resume_harness.run_alone(small, tmp_path_factory.mktemp("alone"), 2, nodes=2)


# A rate and a size that do not let a difference in the last digit grow.
STABLE = ("-b", "8", "--lr", "0.0001", "--input_size", "64")
# Without batch norm's own statistics, what several processes compute is what one computes.
EPOCH = ("--epochs", "1", "--dropout", "0", "--freeze_bn", "--save-freq", "1000", *STABLE)
# So much faster that the losses differ where one process alone does it.
FASTER = ("--lr_mult_new", "100")


def losses_of(root: Path, out: Path, processes: int, *more: object) -> list[float]:
    """Train, and give the losses that are logged."""
    done = [program.finish() for program in resume_harness.start(root, out, processes, 1, *more)]
    for process in done:
        assert process.returncode == 0, process.stderr
        assert "Warning" not in process.stderr, process.stderr
    return [float(loss) for loss in re.findall(r"^Epoch:.*Loss ([\d.]+)", done[0].stdout, re.MULTILINE)]


def test_two_processes_train_like_one(root, start, one_process, tmp_path):
    """Here they start from a checkpoint, which the first process alone reads."""
    _, expected = one_process
    assert len(expected) == 6
    found = losses_of(root, tmp_path, 2, *EPOCH, *FASTER, "--pretrained", start)
    # The 6th batch has one clip, which two processes cannot share: it is left out.
    assert len(found) == 5
    np.testing.assert_allclose(found, expected[:5], rtol=0, atol=1e-4 + 0.5e-4)  # four decimals are logged
    saved = torch.load(tmp_path / "checkpoint" / f"{NAME}_checkpoint.pth.tar", weights_only=True)
    assert saved["new_classifier"] is True
    assert saved["optimizer"]["param_groups"][-1]["name"] == "classifier_bias"
    for name, value in torch.load(start, weights_only=True).items():
        if "running" in name or "num_batches" in name:  # frozen
            assert torch.equal(saved["state_dict"][name], value), name


def test_accumulating_gives_the_step_of_a_larger_batch(tmp_path):
    """With two processes, too. The first momentum is the gradient."""
    root = make_dataset(tmp_path / "data", train=16, val=2, frames=4)

    def gradient(processes, *more):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        losses_of(root, out, processes, *EPOCH, *more)
        saved = torch.load(out / "checkpoint" / f"{NAME}_checkpoint.pth.tar", weights_only=True)
        momenta = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
        return torch.cat([momentum.flatten() for momentum in momenta])

    larger = gradient(1, "-b", "16")
    for found in (
        gradient(1, "-b", "8", "--accumulate", "2"),
        gradient(2, "-b", "8", "--accumulate", "2"),
    ):
        assert float((found - larger).norm() / larger.norm()) < 1e-4


def test_sync_bn_without_gpus_is_one_line(root, tmp_path):
    process = call("main.py", *training_options(root, tmp_path / "out", "--sync_bn"))
    assert_one_line_error(process, "--sync_bn", "GPUs", "--freeze_bn")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_evaluate_like_one(root, one_process, tmp_path):
    out, _ = one_process
    weights = out / "checkpoint" / f"{NAME}_best.pth.tar"
    options = ("--weights", weights, "--dataset", "somethingv1", "--root_path", root, "-j", "0")
    options += ("-b", "8", "--test_crops", "3")  # batches of 2 videos, whose 3 views are averaged

    def outputs(name: str) -> list[object]:
        scores, features = (tmp_path / f"{name}{kind}.npz" for kind in ("", "_features"))
        return ["--save_scores", scores, "--save_features", features]

    one = run("test_models.py", *options, *outputs("one"), env=ONE_THREAD)
    ranks = start_ranks(2, "test_models.py", *options, *outputs("two"), env=ONE_THREAD)
    two, other = (rank.finish() for rank in ranks)
    assert (other.returncode, other.stdout) == (0, "")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout.splitlines()[-1] == two.stdout.splitlines()[-1]
    expected, found = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert len(found["scores"]) == 7
    for name in ("scores", "labels", "videos"):
        np.testing.assert_array_equal(found[name], expected[name])
    one, two = (np.load(tmp_path / f"{name}_features.npz")["features"] for name in ("one", "two"))
    assert one.shape == (7, 2048)
    np.testing.assert_array_equal(two, one)


def test_a_killed_run_of_two_nodes_ends_as_one_that_was_not(small, alone, tmp_path):
    assert (
        resume_harness.kill_and_compare(small, tmp_path, alone, kills=1, processes=2, nodes=2, seed=9) == []
    )


SLURM = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
# A training that is told to stop ends with 1, as torchrun does.
TRAINING = ("trap 'exit 1' TERM", "echo $$ >pid", "while true; do sleep 0.02; done")
NO_PREEMPTION = "   PreemptEligibleTime=2026-11-24T12:00:00 PreemptTime=None"
PREEMPTION = NO_PREEMPTION.replace("None", "2026-11-24T13:00:00")


@pytest.mark.parametrize(
    ("training", "is_warned", "shown", "status", "is_requeued"),
    [
        (TRAINING, True, NO_PREEMPTION, 1, True),
        (("trap 'exit 0' TERM", *TRAINING[1:]), True, NO_PREEMPTION, 0, False),  # it was finished then
        (("exit 0",), False, NO_PREEMPTION, 0, False),
        (("exit 3",), False, NO_PREEMPTION, 3, False),  # a mistake, which would only come again
        (("exit 1",), False, PREEMPTION, 1, True),
    ],
)
def test_a_slurm_job_is_requeued_if_it_was_stopped(tmp_path, training, is_warned, shown, status, is_requeued):
    """docs/slurm.sbatch, with commands in the place of Slurm's; its line for torchrun: see `slurm_agent`."""
    commands = {"srun": training, "scancel": ('echo "$@" >>scancel.txt; kill -TERM "$(<pid)"',)}
    commands["scontrol"] = (f"if [ $1 = show ]; then echo '{shown}'; else echo \"$@\" >>scontrol.txt; fi",)
    for name, lines in commands.items():
        resume_harness.write_command(tmp_path / name, *lines)
    environment = os.environ | SLURM | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", REPOSITORY / "docs" / "slurm.sbatch"]
    with running(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as job:
        if is_warned:
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                time.sleep(0.01)
            job.send_signal(signal.SIGUSR1)
        assert job.wait() == status
    told = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    expected = {"scancel.txt": "--signal=TERM 77\n"} if is_warned else {}
    assert told == expected | ({"scontrol.txt": "requeue 77\n"} if is_requeued else {})


def test_a_process_that_fails_ends_the_others_and_says_why(root, tmp_path):
    broken = make_dataset(tmp_path / "data", train=8, val=2, frames=4)
    frames = sorted((broken / "somethingv1").glob("*/5/*.jpg"))
    for frame in frames:
        frame.write_bytes(b"")
    process = start_torchrun(
        ["--nproc_per_node=2"], "main.py", *training_options(broken, tmp_path / "out"), env=ONE_THREAD
    ).finish()
    assert process.returncode != 0
    told = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert told, process.stderr
    assert any(str(frames[0].parent) in line for line in told)
    assert f'Traceback (most recent call last):\n  File "{REPOSITORY}/main.py' not in process.stderr


def test_a_failure_of_the_first_process_alone_is_one_line_of_each(root, tmp_path):
    options = [*training_options(root, tmp_path), "--pretrained", tmp_path / "missing.pth"]
    first, second = (rank.finish() for rank in start_ranks(2, "main.py", *options, env=ONE_THREAD))
    assert_one_line_error(first, "missing.pth: no such file")
    assert_one_line_error(second, "lost another process")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_torchrun_restarts_continue_from_the_newest_checkpoint(small, alone, tmp_path):
    options = training_options(small, tmp_path)
    agent = start_torchrun(["--nproc_per_node=2", "--max_restarts=1"], "main.py", *options, env=ONE_THREAD)
    agent.wait_for("Epoch: [0][2/")
    os.kill(min(descendants(agent.pid)), signal.SIGKILL)
    process = agent.finish()
    assert process.returncode == 0, process.stderr
    assert "resumed" in process.stdout
    assert resume_harness.differences(alone[0], what_is_left(tmp_path)) == []


def test_the_processes_of_a_dead_torchrun_save_and_stop(small, tmp_path):
    options = training_options(small, tmp_path, "--epochs", 40)
    agent = start_torchrun(["--nproc_per_node=2"], "main.py", *options, env=ONE_THREAD)
    agent.wait_for("Epoch: [0][2/")
    workers = descendants(agent.pid)
    agent.send_signal(signal.SIGKILL)
    while any(is_running(pid) for pid in workers):
        time.sleep(0.05)
    assert "stopped by SIGTERM and saved" in agent.finish().stdout


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what its parent has not asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
