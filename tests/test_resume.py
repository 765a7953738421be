"""Runs that are killed, stopped, or cannot save, and how they resume."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import resume_harness
import torch
from forked import Program, descendants
from helpers import REPOSITORY, assert_one_line_error, call, run, running
from resume_harness import NAME, ONE_THREAD, checkpoint_of, differences, read_result, training_options

from training.run import Interruption
from utils.cli import terminal


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resume_harness.make_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of an uninterrupted run."""
    return resume_harness.run_alone(root, tmp_path_factory.mktemp("alone"))[0]


def start(root: Path, out: Path, *more: object, **kwargs: object) -> Program:
    """Start a long run, and wait until it trains. Its first two epochs are those of `alone`."""
    (program,) = resume_harness.start(root, out, 1, 1, "--epochs", 500, *more, **kwargs)
    program.wait_for("Epoch: [0][1/")
    return program


def resume(root: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """Resume in this process, with as many threads as the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call("main.py", *training_options(root, out, *more))
    finally:
        torch.set_num_threads(threads)


def assert_resumes_to(alone: dict[str, Any], root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    process = resume(root, out)
    assert process.returncode == 0, process.stderr
    assert "resumed " in process.stdout
    assert differences(alone, read_result(out)) == []
    return process


# Kills and signals


@pytest.mark.slow
def test_killed_run_resumes_exactly(tmp_path):
    """From video files and from a checkpoint with other classes."""
    root = resume_harness.make_data(tmp_path / "data", videos=True)
    more = resume_harness.make_start(root, tmp_path / "start")
    alone = resume_harness.run_alone(root, tmp_path / "alone", more=more)
    assert resume_harness.kill_and_compare(root, tmp_path, alone, kills=1, seed=101, more=more) == []


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.slow
def test_signal_saves_and_stops(root, alone, tmp_path):
    program = start(root, tmp_path, prepare=ignore_hangup)
    program.send_signal(signal.SIGHUP)  # as under nohup
    program.wait_for("Epoch: [0][2/")
    program.send_signal(signal.SIGTERM)
    process = program.finish()
    assert (process.returncode, process.stderr) == (128 + signal.SIGTERM, "")
    assert f"stopped by SIGTERM and saved {checkpoint_of(tmp_path)}" in process.stdout
    assert_resumes_to(alone, root, tmp_path)


def test_second_interrupt_ends_at_once(monkeypatch):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    statuses = []
    monkeypatch.setattr("os._exit", statuses.append)
    monkeypatch.setattr(terminal, "on_lost_output", None)
    try:
        interruption = Interruption()
        for number in numbers:
            signal.raise_signal(number)
            assert interruption.get_signal() == number
        for _ in range(2):
            assert statuses == []
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    assert statuses == [130]


@pytest.mark.slow
def test_closed_output_saves_and_stops(root, alone, tmp_path):
    command = [sys.executable, REPOSITORY / "main.py", *training_options(root, tmp_path, "--epochs", 500)]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | ONE_THREAD) as run:
        for line in run.stdout:
            if line.startswith("Epoch: [0][1/"):
                break
        run.stdout.close()
        assert run.wait() == 128 + signal.SIGPIPE
        assert run.stderr.read() == ""
    assert_resumes_to(alone, root, tmp_path)


@pytest.mark.slow
def test_killed_worker_is_one_line(root, tmp_path):
    program = start(root, tmp_path)
    worker = descendants(program.pid)[-1]
    os.kill(worker, signal.SIGKILL)
    assert_one_line_error(program.finish(), f"(pid {worker})", "--workers")
    torch.load(checkpoint_of(tmp_path), weights_only=True)


# One owner of a name


@pytest.mark.slow
def test_run_has_one_owner(root, tmp_path, monkeypatch):
    """A second start names the owner; a killed owner leaves the name free."""
    monkeypatch.setattr("training.run.LOCK_SECONDS", 1)
    owner = start(root, tmp_path)
    refused = resume(root, tmp_path)
    assert_one_line_error(refused, NAME, f"{NAME}.log")
    assert refused.returncode == 75
    owner.kill()
    resumed = resume(root, tmp_path)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumed " in resumed.stdout


# Checkpoints that are damaged or cannot be written


def fill_disk() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.slow
def test_full_disk_stops_the_run_and_keeps_the_checkpoint(root, tmp_path):
    assert resume(root, tmp_path, "--epochs", 1).returncode == 0
    before = checkpoint_of(tmp_path).read_bytes()
    process = run("main.py", *training_options(root, tmp_path), env=ONE_THREAD, prepare=fill_disk)
    warning, error = process.stderr.splitlines()
    assert process.returncode == 1
    assert warning.startswith("warning: ")
    assert error.startswith("error: ")
    assert str(checkpoint_of(tmp_path)) in error
    assert checkpoint_of(tmp_path).read_bytes() == before
    assert not list(checkpoint_of(tmp_path).parent.glob(".*.part"))


def test_differences_are_found():
    ours = {"state_dict": {"weight": torch.ones(3)}, "csv": "a"}
    other = {"state_dict": {"weight": torch.tensor([1, 1, 1 + 1e-7])}, "csv": "a"}
    assert differences(ours, ours) == []
    assert differences(ours, other) == ["/state_dict/weight"]
