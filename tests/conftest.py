"""Fixtures that several test modules use, and helpers to run the programs as a user does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import make_dataset

REPOSITORY = Path(__file__).resolve().parent.parent

# Test processes that run at the same time share the cores: with all of them each, torch's threads
# wait for each other most of the time. Set before torch is imported; programs under test inherit it.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _processes)))

# Results are compared bit by bit, which GPUs do not promise; test_gpu.py shows them to its programs.
VISIBLE_GPUS = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")}
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def trn_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small somethingv1 with TRN-pytorch's list names and spaces. Read only: it is shared."""
    return make_dataset(tmp_path_factory.mktemp("trn"))


@pytest.fixture(scope="session")
def authors_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small somethingv2 with the GST authors' list names and tabs. Read only: it is shared."""
    return make_dataset(tmp_path_factory.mktemp("authors"), "somethingv2", "authors", seed=1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch compute with two threads, where what it computes depends on there being more than one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run(
    script: str,
    *args: object,
    cwd: Path = REPOSITORY,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the repository to its end, with captured text output.

    Args:
        script: its path below the repository.
        args: of its command line.
        cwd: where it runs.
        env: variables to set besides the ones that are set.
        timeout: seconds after which the test fails; no test measures time.
    """
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *map(str, args)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def assert_one_line_error(process: subprocess.CompletedProcess[str], *words: object) -> None:
    """Check that a program refused its input as it should: one line with these words, status not 0."""
    told = f"status {process.returncode}\nstdout:\n{process.stdout}\nstderr:\n{process.stderr}"
    assert process.returncode != 0, told
    assert "Traceback" not in process.stdout + process.stderr, told
    assert len(process.stderr.splitlines()) == 1, told
    for word in words:
        assert str(word) in process.stderr, f"'{word}' is not in the message; {told}"
