"""Programs of the repository in real processes with torch already imported, which saves two seconds each.

Python's fork server imports the packages once and forks a process for each program. The process then does
what `python program.py` does, with its own session and streams.
"""

import atexit
import importlib.util
import io
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_server = multiprocessing.get_context("forkserver")
# An optimizer imports torch._dynamo.
_server.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.run", "tensorboardX", "PIL.Image", "matplotlib.figure", "av"]
    + ["safetensors.torch", "simplejpeg", "filelock"]
)


class Program:
    """A running program of the repository, whose output goes to files.

    `env` has more environment variables. `prepare`, a function at the top level of a module, is called before
    the program.
    """

    def __init__(
        self,
        script: str | Path,
        *args: object,
        cwd: Path = REPOSITORY,
        env: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.args = [str(script), *map(str, args)]
        self.folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self.folder.name, name) for name in ("out", "err"))
        for path in (self.out, self.err):
            path.touch()
        self.process = _server.Process(
            target=_become,
            args=(self.args, str(cwd), dict(os.environ) | (env or {}), str(self.out), str(self.err), prepare),
        )
        self.process.start()
        self.pid = self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.exitcode is None

    def wait_for(self, start: str) -> None:
        """Wait until it has printed a line with this start."""
        while f"\n{start}" not in f"\n{self.out.read_text(encoding='utf-8')}":
            assert self.is_running, self.err.read_text(encoding="utf-8")
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, at most so many seconds; return whether it has ended."""
        self.process.join(timeout)
        return not self.is_running

    def kill(self) -> None:
        """Kill it and its descendants."""
        for pid in [*descendants(self.pid), self.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.join()

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and kill it if the test is interrupted."""
        try:
            self.process.join()
            texts = (path.read_text(encoding="utf-8") for path in (self.out, self.err))
            return subprocess.CompletedProcess(self.args, self.process.exitcode, *texts)
        finally:
            self.kill()
            self.folder.cleanup()


def server_pid() -> int | None:
    """The process that forks the others; None before it runs."""
    return multiprocessing.forkserver._forkserver._forkserver_pid


def start_ranks(
    size: int,
    script: str,
    *args: object,
    env: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> list[Program]:
    """Start the processes that torchrun would start on one machine, without torchrun and its restarts."""
    shared = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    shared |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": 0}
    variables = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    return [
        Program(script, *args, env=(env or {}) | {k: str(v) for k, v in own.items()}, prepare=prepare)
        for own in variables
    ]


def start_torchrun(
    agent: Sequence[object], script: str, *args: object, env: dict[str, str] | None = None
) -> Program:
    """Start an agent of torchrun with these options for a program of the repository."""
    run = importlib.util.find_spec("torch.distributed.run").origin
    return Program(run, *agent, REPOSITORY / script, *args, env=env)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, directly or not; none without /proc."""
    pids = []
    for file in Path("/proc").glob(f"{pid}/task/*/children"):
        try:
            children = [int(child) for child in file.read_text().split()]
        except OSError:  # the thread has just ended
            continue
        pids += [other for child in children for other in [*descendants(child), child]]
    return pids


def no_fsync(file: int) -> None:
    """Replaces `os.fsync`: a killed process loses nothing that it has written, and disks may be slow."""


def without_extras() -> None:
    """Training draws no pictures and checks no fused models; both take longer than a small epoch."""
    from inference import fuse
    from training.run import Run

    Run._write_picture = fuse._check_fusable_norms = lambda *args: None


def _become(
    args: list[str], cwd: str, env: dict[str, str], out: str, err: str, prepare: Callable[[], None] | None
) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the program starts its children as usual
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(number, "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", line_buffering=True))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    script = str(REPOSITORY / args[0])
    sys.argv = [script, *args[1:]]
    sys.path.insert(0, str(Path(script).parent))

    import torch

    if "OMP_NUM_THREADS" in env:  # which is read when torch is imported
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    os.fsync = no_fsync
    if Path(script).name == "main.py":
        without_extras()
    if prepare:
        prepare()
    status: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):  # what Python does with it when a process ends
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))
