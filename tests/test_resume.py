"""Runs that are killed, stopped, or cannot save, and what resuming makes of them."""

import errno
import fcntl
import os
import re
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
from forked import Program, descendants, free_port, start_torchrun
from helpers import REPOSITORY, assert_one_line_error, call, files_limited_to, run, running
from resume_harness import NAME, ONE_THREAD, checkpoint_of, differences, training_options, what_is_left

from loader import ClipSampler
from training.run import Curves, _LogFile, format_csv
from utils.cli import log


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resume_harness.make_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a run leaves that nobody disturbs, and the seconds it takes."""
    return resume_harness.run_alone(root, tmp_path_factory.mktemp("alone"))


def start(root: Path, out: Path, *more: object) -> Program:
    """Start a long run, and wait until it trains."""
    (program,) = resume_harness.start(root, out, 1, 1, "--epochs", 500, *more)
    program.wait_for("Epoch: [0][2/")
    return program


def resume(root: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """In this process, with as many threads as the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call("main.py", *training_options(root, out, *more))
    finally:
        torch.set_num_threads(threads)


def test_killed_runs_end_as_one_that_was_not(tmp_path):
    """From video files and from a checkpoint with other classes; those of two processes have frames."""
    root = resume_harness.make_data(tmp_path / "data", videos=True)
    more = resume_harness.make_start(root, tmp_path / "start")
    alone = resume_harness.run_alone(root, tmp_path / "alone", more=more)
    assert resume_harness.kill_and_compare(root, tmp_path, alone, kills=3, seed=101, more=more) == []


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_a_signal_saves_and_ends_the_run(root, alone, tmp_path, number, status):
    program = start(root, tmp_path)
    program.send_signal(number)
    process = program.finish()
    assert (process.returncode, process.stderr) == (status, "")
    assert f"stopped by {number.name} and saved {checkpoint_of(tmp_path)}" in process.stdout
    if number == signal.SIGTERM:
        # 500 epochs were asked for, but with the step schedule the first two are the same.
        assert resume(root, tmp_path).returncode == 0
        assert differences(alone[0], what_is_left(tmp_path)) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.skipif(sys.platform != "linux", reason="needs leases of files")
def test_a_second_interrupt_ends_at_once_and_harms_nothing(tmp_path):
    """In a step that never ends, so that nothing but a second signal can end the run."""
    root = resume_harness.make_data(tmp_path / "data")
    clip = ClipSampler(14, 4, seed=0).batches_of(3)[0][0]  # of the fourth step
    # Whoever opens a file that another process has a lease of waits, for 45 seconds.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    leases = [frame.open("r+b") for frame in (root / "somethingv1").glob(f"*/{clip + 1}/*.jpg")]
    for frame in leases:
        fcntl.fcntl(frame, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    (program,) = resume_harness.start(root, tmp_path / "out")
    # Once this is there, nothing looks for a signal before the end of the step that never ends.
    while not is_saved(checkpoint_of(tmp_path / "out"), step=3):
        assert program.is_running
        time.sleep(0.05)
    while program.is_running:
        program.send_signal(signal.SIGINT)
        program.wait(0.05)
    process = program.finish()
    for frame in leases:
        frame.close()
    signal.signal(signal.SIGIO, before)
    assert process.returncode == 130
    assert "stopped by" not in process.stdout
    assert is_saved(checkpoint_of(tmp_path / "out"), step=3)


def test_a_run_has_one_owner(root, tmp_path):
    """The second start says who trains; a killed owner leaves the run free."""
    owner = start(root, tmp_path)
    refused = resume(root, tmp_path)
    assert_one_line_error(refused, NAME, f"process {owner.pid} on host {socket.gethostname()}, since 20")
    assert refused.returncode == 75
    owner.kill()
    resumed = resume(root, tmp_path)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumed " in resumed.stdout


def test_without_locks_a_run_trains_after_a_warning(root, tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for epochs in (1, 2):  # the second start finds the file of the lock
        process = resume(root, tmp_path, "--epochs", epochs)
        assert process.returncode == 0
        assert re.fullmatch("warning: this file system has no locks: .*", process.stderr.strip())


def only_owner(programs: list[Program]) -> Program:
    """Of starts at the same time, the one that trains; the others must have been refused."""
    while sum(program.is_running for program in programs) > 1:
        time.sleep(0.1)
    (owner,) = (program for program in programs if program.is_running)
    owner.wait_for("Epoch:")
    refused = [program.finish() for program in programs if program is not owner]
    assert not any("Epoch:" in process.stdout for process in refused)
    for process in refused:
        assert_one_line_error(process, NAME)
        assert process.returncode == 75
    return owner


def test_of_ten_starts_at_the_same_time_exactly_one_trains(root, tmp_path):
    """And again after it was killed."""
    for number in (10, 2):
        starts = [resume_harness.start(root, tmp_path, 1, 1, "--epochs", 500)[0] for _ in range(number)]
        only_owner(starts).kill()


def test_of_two_torchruns_at_the_same_time_exactly_one_trains(root, tmp_path):
    """And when it is killed, the name is free."""
    options = training_options(root, tmp_path, "--epochs", 500)
    agents = [["--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"] for _ in "ab"]
    starts = [start_torchrun(agent, "main.py", *options, env=ONE_THREAD) for agent in agents]
    while sum(program.is_running for program in starts) > 1:
        time.sleep(0.1)
    (owner,) = (program for program in starts if program.is_running)
    owner.wait_for("Epoch: [0][3/")
    owner.kill()  # with all its processes
    (refused,) = (program.finish() for program in starts if program is not owner)
    assert refused.returncode == 1  # torchrun's own
    assert "Epoch:" not in refused.stdout
    assert f"error: run {NAME} is being trained by process " in refused.stderr
    resumed = resume(root, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed " in resumed.stdout


def test_a_run_whose_output_nobody_reads_saves_and_stops(root, alone, tmp_path):
    command = [sys.executable, REPOSITORY / "main.py", *training_options(root, tmp_path, "--epochs", 500)]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | ONE_THREAD) as run:
        for line in run.stdout:
            if line.startswith("Epoch: [0][1/"):
                break
        run.stdout.close()
        assert run.wait() == 128 + signal.SIGPIPE
        assert run.stderr.read() == ""
    log = next((tmp_path / "log").glob("*.log")).read_text()
    assert f"stopped by SIGPIPE and saved {checkpoint_of(tmp_path)}" in log
    assert resume(root, tmp_path).returncode == 0
    assert differences(alone[0], what_is_left(tmp_path)) == []


def test_nohup_still_means_no_hangup(root, tmp_path):
    (program,) = resume_harness.start(root, tmp_path, 1, 1, "--epochs", 500, prepare=ignore_hangup)
    program.wait_for("Epoch: [0][2/")
    program.send_signal(signal.SIGHUP)
    program.wait_for("Epoch: [1][2/")
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 143


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def is_saved(file: Path, step: int) -> bool:
    return file.exists() and torch.load(file, weights_only=True)["step"] == step


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # the older checkpoint may be a link to it
    file.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(root, alone, tmp_path):
    start(root, tmp_path).kill()
    damage(checkpoint_of(tmp_path))
    resumed = resume(root, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{checkpoint_of(tmp_path)}: is" in resumed.stdout
    assert "looking for the one before it" in resumed.stdout
    assert f"resumed {checkpoint_of(tmp_path)}.1 " in resumed.stdout
    assert checkpoint_of(tmp_path).with_name(f"{NAME}_checkpoint.pth.tar.damaged1").exists()
    assert differences(alone[0], what_is_left(tmp_path)) == []


def test_where_all_are_damaged_nothing_is_written_over(root, tmp_path):
    folder = checkpoint_of(tmp_path).parent
    folder.mkdir()
    for name in (checkpoint_of(tmp_path), Path(f"{checkpoint_of(tmp_path)}.1")):
        name.write_bytes(b"not a checkpoint")
    assert_one_line_error(resume(root, tmp_path), checkpoint_of(tmp_path), "none of its 2 checkpoints")
    assert checkpoint_of(tmp_path).read_bytes() == b"not a checkpoint"


def test_keep_bounds_the_number_of_checkpoints(root, tmp_path):
    assert resume(root, tmp_path, "--epochs", "1", "--keep", "3").returncode == 0
    names = {file.name.removeprefix(f"{NAME}_") for file in checkpoint_of(tmp_path).parent.iterdir()}
    assert names == {"best.pth.tar", *("checkpoint.pth.tar" + suffix for suffix in ("", ".1", ".2"))}
    steps = [
        torch.load(f"{checkpoint_of(tmp_path)}{suffix}", weights_only=True)["step"]
        for suffix in ("", ".1", ".2")
    ]
    assert steps == [0, 4, 3]


def fill_disk() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_saves_that_fail_stop_the_run_and_leave_the_old_checkpoint(root, tmp_path):
    assert resume(root, tmp_path, "--epochs", "1").returncode == 0
    before = checkpoint_of(tmp_path).read_bytes()

    process = run("main.py", *training_options(root, tmp_path), env=ONE_THREAD, prepare=fill_disk)
    warning, error = process.stderr.splitlines()
    assert process.returncode == 1
    assert warning.startswith(f"warning: cannot save {checkpoint_of(tmp_path)} (File too large)")
    assert error.startswith(f"error: cannot save {checkpoint_of(tmp_path)} (File too large)")
    assert checkpoint_of(tmp_path).read_bytes() == before
    assert not list(checkpoint_of(tmp_path).parent.glob(".*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file on a disk that is full")
def test_a_log_file_that_cannot_be_written_does_not_stop_a_run(tmp_path, capsys):
    handler = _LogFile(tmp_path / "a.log")
    log.addHandler(handler)
    with files_limited_to(100):
        for number in range(10):
            log.info(f"line {number}")
    assert handler not in log.handlers
    assert capsys.readouterr() == (
        "".join(f"line {number}\n" for number in range(10)),
        f"warning: no more lines in {tmp_path / 'a.log'} ([Errno 27] File too large)\n",
    )
    handler.close()


def test_curves_that_cannot_be_written_do_not_stop_a_run(tmp_path, capsys):
    curves = Curves(tmp_path, 0)
    with files_limited_to(9999):
        for step in range(500):
            curves.add({"train/loss": 1.0}, step)
    assert capsys.readouterr().err == "warning: no more TensorBoard curves (File too large)\n"


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker in /proc")
def test_a_killed_worker_is_reported_in_one_line(root, tmp_path):
    program = start(root, tmp_path)
    worker = descendants(program.pid)[-1]
    os.kill(worker, signal.SIGKILL)
    assert_one_line_error(program.finish(), f"(pid {worker})", "killed", "--workers")
    torch.load(checkpoint_of(tmp_path), weights_only=True)


def test_auto_starts_from_scratch_where_a_run_was_killed_before_its_first_save(root, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / f"{NAME}.csv").write_text(format_csv([]))
    resumed = resume(root, tmp_path, "--epochs", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert "no checkpoint yet" in resumed.stdout


def test_the_harness_itself_finds_a_difference():
    ours = {"checkpoint state_dict": {"weight": torch.ones(3)}, "csv": "a"}
    other = {"checkpoint state_dict": {"weight": torch.tensor([1, 1, 1 + 1e-7])}, "csv": "a"}
    assert differences(ours, ours) == []
    assert differences(ours, other) == ["/checkpoint state_dict/weight"]
