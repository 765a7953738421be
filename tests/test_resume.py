"""Runs that are killed, stopped, or cannot save, and how they resume."""

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import resume_harness
import torch
from forked import Program, descendants
from helpers import REPOSITORY, assert_one_line_error, call, run, running
from resume_harness import NAME, ONE_THREAD, checkpoint_of, differences, read_result, training_options

from training.files import format_csv

pytestmark = pytest.mark.usefixtures("without_curves")


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
    program.wait_for("Epoch: [0][2/")
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal_saves_and_stops(root, alone, tmp_path, number, status):
    program = start(root, tmp_path)
    program.send_signal(number)
    process = program.finish()
    assert (process.returncode, process.stderr) == (status, "")
    assert number.name in process.stdout
    assert str(checkpoint_of(tmp_path)) in process.stdout
    if number == signal.SIGTERM:
        assert_resumes_to(alone, root, tmp_path)


def hang_in_stop() -> None:
    """The first signal does not end the run, as in a step that takes very long."""
    from training.run import Run

    Run.stop = lambda *_: time.sleep(1000)


def test_second_interrupt_ends_at_once(root, tmp_path):
    program = start(root, tmp_path, prepare=hang_in_stop)
    while program.is_running:
        program.send_signal(signal.SIGINT)
        program.wait(0.1)
    assert program.finish().returncode == 130
    torch.load(checkpoint_of(tmp_path), weights_only=True)


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_nohup_ignores_the_hangup(root, tmp_path):
    program = start(root, tmp_path, prepare=ignore_hangup)
    program.send_signal(signal.SIGHUP)
    program.wait_for("Epoch: [1][2/")
    program.send_signal(signal.SIGINT)
    assert program.finish().returncode == 130


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


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker in /proc")
def test_killed_worker_is_one_line(root, tmp_path):
    program = start(root, tmp_path)
    worker = descendants(program.pid)[-1]
    os.kill(worker, signal.SIGKILL)
    assert_one_line_error(program.finish(), f"(pid {worker})", "--workers")
    torch.load(checkpoint_of(tmp_path), weights_only=True)


# One owner of a name


def test_run_has_one_owner(root, tmp_path):
    """A second start names the owner; a killed owner leaves the name free."""
    owner = start(root, tmp_path)
    refused = resume(root, tmp_path)
    assert_one_line_error(refused, NAME, f"process {owner.pid} on host {socket.gethostname()}")
    assert refused.returncode == 75
    owner.kill()
    resumed = resume(root, tmp_path)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumed " in resumed.stdout


@pytest.mark.slow
def test_simultaneous_starts_have_one_owner(root, tmp_path):
    programs = [resume_harness.start(root, tmp_path, 1, 1, "--epochs", 500)[0] for _ in range(4)]
    while sum(program.is_running for program in programs) > 1:
        time.sleep(0.1)
    (owner,) = (program for program in programs if program.is_running)
    owner.wait_for("Epoch:")
    refused = [program.finish() for program in programs if program is not owner]
    owner.kill()
    for process in refused:
        assert "Epoch:" not in process.stdout
        assert_one_line_error(process, NAME)
        assert process.returncode == 75


def test_file_system_without_locks(root, tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    process = resume(root, tmp_path, "--epochs", 1)
    assert process.returncode == 0, process.stderr


# Checkpoints that are damaged or cannot be written


@pytest.mark.slow
def test_damaged_checkpoint_falls_back(root, alone, tmp_path):
    start(root, tmp_path).kill()
    content = bytearray(checkpoint_of(tmp_path).read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint_of(tmp_path).unlink()  # the best checkpoint may be a link to it
    checkpoint_of(tmp_path).write_bytes(content)
    process = assert_resumes_to(alone, root, tmp_path)
    assert f"resumed {checkpoint_of(tmp_path)}.1 " in process.stdout
    assert list(checkpoint_of(tmp_path).parent.glob("*.damaged*"))


def test_damaged_checkpoints_are_not_overwritten(root, tmp_path):
    checkpoint_of(tmp_path).parent.mkdir()
    for name in (checkpoint_of(tmp_path), Path(f"{checkpoint_of(tmp_path)}.1")):
        name.write_bytes(b"not a checkpoint")
    assert_one_line_error(resume(root, tmp_path), checkpoint_of(tmp_path))
    assert checkpoint_of(tmp_path).read_bytes() == b"not a checkpoint"


def test_resume_auto_without_a_checkpoint_starts(root, tmp_path):
    """A run was killed before its first save."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / f"{NAME}.csv").write_text(format_csv([]))
    process = resume(root, tmp_path, "--epochs", 1, "--keep", 3)
    assert process.returncode == 0, process.stderr
    folder = checkpoint_of(tmp_path).parent
    names = {file.name.removeprefix(f"{NAME}_") for file in folder.iterdir()}
    assert names == {"best.pth.tar", *("checkpoint.pth.tar" + suffix for suffix in ("", ".1", ".2"))}


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
