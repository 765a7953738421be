"""tools/benchmark.py: both loaders make the same clips, a step trains, and a run prints its tables."""

from argparse import Namespace

import pytest
import torch
from helpers import call

from dataset import VideoDataSet
from models import TemporalModel
from tools import benchmark
from transforms import GroupCenterCrop, GroupScale, evaluation_transform

pytestmark = pytest.mark.slow

SMALL = ("--arch", "resnet14", "--input_size", 32, "--frames", 2, "-b", 1, "--rounds", 1)


def rows_of(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_both_loaders_give_the_same_clips(tmp_path):
    path = benchmark.make_videos(tmp_path, (176, 100), 2)
    steps = (GroupScale(256), GroupCenterCrop(224))
    published = benchmark.open_clips(benchmark.TSNClips, path, steps, is_training=False)
    clips = benchmark.open_clips(VideoDataSet, path, evaluation_transform(224), is_training=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (TemporalModel.input_mean, TemporalModel.input_std))
    for number in range(2):
        expected, expected_label = published[number]
        clip, label = clips[number]
        assert label == expected_label == number
        normalised = (torch.from_numpy(clip).permute(0, 3, 1, 2) / 255 - mean) / std
        torch.testing.assert_close(normalised, expected.view(8, 3, 224, 224), rtol=0, atol=1e-5)


@pytest.mark.parametrize("purpose", ["inference", "training"])
def test_forms_of_a_model(purpose, monkeypatch):
    monkeypatch.setattr(benchmark, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(benchmark, "has_instructions", lambda device, amp: True)
    torch.manual_seed(0)
    model = TemporalModel(benchmark.NUM_CLASS, 2, backbone="resnet14", input_size=32)
    forms = benchmark.model_forms(model, torch.randn(2, 2, 3, 32, 32), purpose)
    fast = "fused" if purpose == "inference" else "channels last"
    assert [form.name for form in forms] == ["published", f"float32, {fast}", f"bf16, {fast}"]
    assert [form.precision for form in forms] == ["float32", "float32", "bf16"]
    for form in forms[:2]:
        form.run()


def test_speed_ups_are_ratios_of_the_published_form(monkeypatch, capsys):
    times = iter([9, 9, 9, 4, 1, 10, 2, 3, 10, 10, 2, 8])  # a warm-up, then the second round backwards
    clock = [0.0]

    def run() -> None:
        clock[0] += next(times)

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(benchmark, "matmul", lambda precision: run)
    monkeypatch.setattr(benchmark, "MATMUL_SIZE", 100)
    monkeypatch.setattr(benchmark, "NUM_MATMULS", 1)
    forms = [benchmark.Form("published", run, "float32"), benchmark.Form("fast", run, "float32")]
    benchmark.compare("both", forms, clips=2, rounds=3, macs=250_000)
    # published: 10, 2, 8 s; fast: 1, 3, 2 s; products: 4, 10, 10 s
    assert rows_of(capsys.readouterr().out) == [
        ["both", "published", "1000.0", "4000.0", "1.00", "1.00", "0", "62 %"],
        ["both", "fast", "500.0", "1000.0", "2.00", "4.00", "0", "200 %"],
    ]


def test_run_prints_its_tables():
    done = call("tools/benchmark.py", "--only", "inference", "training", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [row for row in rows_of(done.stdout) if row[1] not in ("form", "---")]
    assert [row[0] for row in rows if row[1] == "published"] == [
        f"{purpose}, {name}, 2 frames" for purpose in ("inference", "training") for name in benchmark.MODELS
    ]
    assert {row[4] for row in rows if row[1] == "published"} == {"1.00"}
    assert all(row[7].endswith(" %") for row in rows)


def test_loaders_are_compared(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "NUM_FRAMES", 8)
    monkeypatch.setattr(benchmark, "FRAME_SIZES", {"v1": (176, 100)})
    benchmark.measure_loaders(Namespace(rounds=1))
    rows = rows_of(capsys.readouterr().out)[2:]
    forms = ["published", "--resize workers", "--resize device"]
    parts = ("loader, v1, evaluation", "loader, v1, training")
    assert [row[:2] for row in rows] == [[part, form] for part in parts for form in forms]
