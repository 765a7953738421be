"""Fixtures of several test modules, and settings of the whole test run."""

import os
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
from synthetic import CATEGORIES, make_dataset

# The test processes share the cores; more threads than cores would mostly wait for each other. Set before
# torch is imported; the programs inherit it.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _processes)))

# Waiting threads must not occupy a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

os.environ.update(helpers.ON_CPU)

# The longest files begin first, so that the test processes end at about the same time.
HEAVY = (
    "test_video_over_time",
    "test_inference_export",
    "test_inference_fuse",
    "test_resume",
    "test_distributed",
    "test_reference",
    "test_main",
    "test_models_program",
    "test_baselines",
    "test_own_data_page",
    "test_video_stream",
    "test_precision",
    "test_video_program",
    "test_ideas",
    "test_extract_frames",
)


def pytest_sessionstart() -> None:
    helpers.adopt_orphans()


def pytest_sessionfinish() -> None:
    helpers.kill_what_is_left()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(HEAVY)}
    items.sort(key=lambda item: order.get(item.path.stem, len(HEAVY)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    if report.failed:  # also at the time limit
        helpers.kill_what_is_left()
    return report


@pytest.fixture(scope="session")
def trn_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small somethingv1 with TRN-pytorch's list names and spaces. Read only: it is shared."""
    return make_dataset(tmp_path_factory.mktemp("trn"))


@pytest.fixture(scope="session")
def authors_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small somethingv2 with the GST authors' list names and tabs. Read only: it is shared."""
    return make_dataset(tmp_path_factory.mktemp("authors"), "somethingv2", "authors", seed=1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model for the classes of `synthetic`. Read only: it is shared."""
    from video_model import save_model  # imports torch, which must not be early

    path = tmp_path_factory.mktemp("weights") / "own.pth.tar"
    return save_model(path, len(CATEGORIES), categories=list(CATEGORIES))


@pytest.fixture(scope="module")
def two_blocks() -> Iterator[None]:
    """Leave layer2 and layer3 out of resnet14, and give their strides to layer4: each block takes seconds."""
    from torch import nn

    from resnet_gst import DEPTHS, ResNet

    def make(model: ResNet, block: type, planes: int, blocks: int, stride: int) -> nn.Sequential:
        stride = 8 if planes == 512 else stride
        return make_layer(model, block, planes, blocks, stride) if blocks else nn.Sequential()

    make_layer = ResNet._make_layer
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEPTHS, "resnet14", (1, 0, 0, 1))
        patch.setattr(ResNet, "_make_layer", make)
        yield


@pytest.fixture(scope="module", autouse=True)
def faster_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out what takes longer than an epoch or an evaluation of a few clips, and has its own tests."""
    module = request.module.__name__
    with pytest.MonkeyPatch.context() as patch:
        if module != "test_watch":
            patch.setattr("training.run.Run._write_picture", lambda *args: None)
        if module not in ("test_inference_fuse", "test_baselines", "test_ideas"):
            patch.setattr("inference.fuse._check_fusable_norms", lambda *args: None)
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch compute with two threads, for results that depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
