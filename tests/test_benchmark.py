"""tools/benchmark.py: what it compares is the same, and a run ends with its table."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, assert_one_line_error, run

from dataset import VideoDataSet
from engine import to_input
from models import TemporalModel
from transforms import GroupCenterCrop, GroupScale, evaluation_transform


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(REPOSITORY / "tools"))
    spec = importlib.util.spec_from_file_location("benchmark", REPOSITORY / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_loaders_give_the_same_clips(benchmark, tmp_path):
    videos = benchmark.make_videos(tmp_path / "frames", (176, 100), 2)
    steps = (GroupScale(256), GroupCenterCrop(224))
    plain = benchmark.open_clips(benchmark.TSNClips, videos, steps, is_training=False)
    fast = benchmark.open_clips(VideoDataSet, videos, evaluation_transform(256, 224), is_training=False)
    model = TemporalModel(2, 8, backbone="resnet14")
    for number in range(2):
        expected, label = plain[number]
        clip, found_label = fast[number]
        assert found_label == label == number
        assert expected.shape == (24, 224, 224)
        found = to_input(torch.from_numpy(clip[None]), model)[0]
        torch.testing.assert_close(found, expected.view(8, 3, 224, 224), rtol=0, atol=1e-5)


def test_multiply_adds_are_the_papers(benchmark):
    for beta, expected in ((2, 29.0), (1, 40.1)):
        assert benchmark.count_macs(TemporalModel(174, 8, beta=beta), 8) / 1e9 == pytest.approx(
            expected, abs=0.05
        )


def test_a_run_prints_its_table_and_writes_its_numbers(tmp_path):
    path = tmp_path / "numbers.json"
    process = run("tools/benchmark.py", "--only", "loader", "--rounds", 1, "-b", 1, "--json", path)
    assert process.returncode == 0, process.stderr
    table = [line for line in process.stdout.splitlines() if line.startswith("| loader")]
    rows = json.loads(path.read_text())["rows"]
    assert len(table) == len(rows) == 8  # two sizes of frames, evaluation and training, plain and fast
    for plain, fast in zip(rows[::2], rows[1::2], strict=True):
        ratios = np.divide(plain["rounds"], fast["rounds"])
        assert plain["what"] == fast["what"]
        assert (plain["ratio"], fast["ratio"]) == (1, pytest.approx(np.median(ratios)))


@pytest.mark.parametrize("option", [("--only", "nothing"), ("--rounds", 0), ("--frames", "x")])
def test_a_wrong_option_is_one_line(option):
    assert_one_line_error(run("tools/benchmark.py", *option), option[0])


@pytest.mark.parametrize("name", ["none/x.json", "."])
def test_the_numbers_file_must_be_writable(name, tmp_path):
    process = run("tools/benchmark.py", "--only", "loader", "--json", tmp_path / name)
    assert_one_line_error(process, f"--json {tmp_path / name}")


@pytest.mark.parametrize(
    ("data", "picture"), [("none", "x.png"), (".", "none/x.png"), (".", "x.nothing"), (".", ".")]
)
def test_the_plot_refuses_missing_data_and_a_file_it_cannot_write(data, picture, tmp_path):
    process = run("tools/plot_losses.py", tmp_path / data, tmp_path / picture)
    assert_one_line_error(process, tmp_path / (data if data == "none" else picture))
    assert not list(tmp_path.iterdir())
