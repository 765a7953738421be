"""Helpers to run the programs as a user does, and to leave no process behind."""

import ctypes
import io
import logging
import os
import resource
import runpy
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from forked import REPOSITORY, Program, descendants, no_fsync, server_pid

from utils.cli import log

# The tests compare bits, which GPUs do not promise. test_gpu.py shows the GPUs to its programs. The second
# variable keeps the value for the processes of pytest-xdist, which inherit ON_CPU.
os.environ.setdefault("TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7"))
VISIBLE_GPUS = {"CUDA_VISIBLE_DEVICES": os.environ["TEST_GPUS"]}
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}


def run(script: str | Path, *args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the repository in a new process, to its end; see `forked.Program`."""
    return Program(script, *args, **kwargs).finish()


def finish(command: list[object], **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and capture its output; see `running`."""
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs) as process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextmanager
def running(command: list[object], **kwargs: object) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a new session, and kill its processes in the end.

    Args:
        command: its words.
        kwargs: options of `subprocess.Popen`.
    """
    process = subprocess.Popen(
        [str(word) for word in command], text=True, encoding="utf-8", start_new_session=True, **kwargs
    )
    try:
        yield process
    finally:
        # torchrun starts each worker in a new session.
        for pid in [*descendants(process.pid), process.pid]:
            for kill in (os.killpg, os.kill):
                try:
                    kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies, so that `descendants` finds them."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def kill_what_is_left() -> None:
    """Kill every descendant of this process, except those that serve it until its end."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises when a loader's worker is killed
    for pid in descendants(os.getpid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"resource_tracker" in command or b"_inductor" in command or pid == server_pid():
                continue
            os.kill(pid, signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue
    signal.signal(signal.SIGCHLD, before)


def small_run(root: Path, out: Path, *more: object, dataset: str = "somethingv1") -> list[object]:
    """The command line of a small run of `main.py`.

    Args:
        root: `--root_path`.
        out: `--checkpoint_dir`.
        more: more options.
        dataset: `--dataset`.
    """
    return [
        *("--dataset", dataset, "--root_path", root, "--checkpoint_dir", out),
        *("--arch", "resnet14", "--input_size", 32, "--num_segments", 4, "-j", 0, "-p", 1),
        *("--epochs", 1),
        *more,
    ]


def call(program: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the repository in this process, which saves the seconds of importing torch.

    Args:
        program: path of the program in the repository.
        args: its command line.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
    handlers = [signal.getsignal(number) for number in numbers]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [Path(program).name, *map(str, args)])
        patch.setattr(os, "fsync", no_fsync)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `run_program` sets it
        for name, value in ON_CPU.items():
            patch.setenv(name, value)
        try:
            runpy.run_path(str(REPOSITORY / program), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
            log.setLevel(logging.INFO)
    if isinstance(status, str):  # what Python does with it when the process ends
        err.write(f"{status}\n")
        status = 1
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(args, int(status or 0), *texts)


def assert_one_line_error(process: subprocess.CompletedProcess[str], *words: object) -> None:
    """Check that a program refused its input: one error line with these words, and a status other than 0."""
    details = f"status {process.returncode}\nstdout:\n{process.stdout}\nstderr:\n{process.stderr}"
    assert process.returncode != 0, details
    assert "Traceback" not in process.stdout + process.stderr, details
    errors = [line for line in process.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1, details
    for word in words:
        assert str(word) in errors[0], f"'{word}' is not in the message; {details}"


class Hostile:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read_events(folder: Path) -> dict[str, dict[int, Any]]:
    """`{tag: {step: value}}` of TensorBoard's files: records of length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event  # some of its modules import torch, which is early here

    events: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                events.setdefault(value.tag, {})[event.step] = value
            data = data[16 + length :]
    return events
