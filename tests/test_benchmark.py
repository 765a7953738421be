"""tools/benchmark.py: what it compares is the same, and a run ends with its table."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, run

from dataset import VideoDataSet
from engine import to_input, train_one_epoch
from models import TemporalModel
from transforms import GroupCenterCrop, GroupScale, evaluation_transform
from utils.cli import UserError, run_program

CPU = torch.device("cpu")


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
    fast = benchmark.open_clips(VideoDataSet, videos, evaluation_transform(224), is_training=False)
    model = TemporalModel(2, 8, backbone="resnet14")
    for number in range(2):
        expected, label = plain[number]
        clip, found_label = fast[number]
        assert found_label == label == number
        assert expected.shape == (24, 224, 224)
        found = to_input(torch.from_numpy(clip[None]), model)[0]
        torch.testing.assert_close(found, expected.view(8, 3, 224, 224), rtol=0, atol=1e-5)


def test_multiply_adds_are_the_papers(benchmark, tmp_path):
    args = Namespace(batch_size=1, emulated=False, frames=[8, 16], compile_training=False)
    for section, factor in (("inference", 1), ("training", 3)):
        comparisons = benchmark.SECTIONS[section](args, CPU, tmp_path)
        found = {comparison.what: comparison.macs / factor / 1e9 for comparison in comparisons}
        assert found == pytest.approx(
            {
                f"{section}, GST, 8 frames": 29.0,
                f"{section}, GST, 16 frames": 58.0,
                f"{section}, GST-Large, 8 frames": 40.1,
                f"{section}, GST-Large, 16 frames": 80.2,
            },
            abs=0.1,
        )


def without_bf16(monkeypatch):
    """Let this process take its CPU for one with AVX2 and no more."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


def test_a_precision_without_instructions_is_left_out(benchmark, monkeypatch, tmp_path):
    without_bf16(monkeypatch)
    monkeypatch.setattr(benchmark, "meta_model", lambda *args: None)
    monkeypatch.setattr(benchmark, "multiply_adds", lambda *args: 1.0)
    args = Namespace(batch_size=1, emulated=False, frames=[8], compile_training=True)
    monkeypatch.setattr(benchmark, "make_videos", lambda *args, **how: tmp_path)
    for emulated in (False, True):
        args.emulated = emulated
        for section in benchmark.WITH_MODELS:
            comparisons = benchmark.SECTIONS[section](args, CPU, tmp_path)
            for comparison in comparisons:
                assert any("bf16" in name for name in comparison.builders) == emulated
                assert len(comparison.builders) > 1


def described(benchmark, monkeypatch, capsys, *options):
    """What a run says of itself, and the precisions whose matrix products it measured."""
    measured = []
    monkeypatch.setattr(benchmark, "matmul_rate", lambda device, dtype: measured.append(dtype) or 1e9)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *options])
    run = benchmark.Benchmark(benchmark.parse_args(), CPU)
    run.describe()
    run.close()
    return capsys.readouterr().out, measured


def test_a_line_says_that_a_precision_is_left_out(benchmark, monkeypatch, capsys):
    without_bf16(monkeypatch)
    told, measured = described(benchmark, monkeypatch, capsys)
    assert [line for line in told.splitlines() if "bf16 is left out" in line and "--emulated" in line]
    assert measured == [torch.float32]
    told, measured = described(benchmark, monkeypatch, capsys, "--emulated")
    assert "left out" not in told
    assert measured == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("section", ["loader", "startup", "end-to-end"])
def test_sections_without_throughput_in_multiply_adds_multiply_no_matrices(
    benchmark, monkeypatch, capsys, section
):
    assert described(benchmark, monkeypatch, capsys, "--only", section)[1] == []


def test_rounds_stop_with_the_budget(benchmark):
    def rounds(seconds_of_round, budget, forced=None):
        done = 0
        while not benchmark.is_enough(done, forced, seconds_of_round, budget - done * seconds_of_round):
            done += 1
        return done

    assert rounds(1, 1000) == benchmark.MAX_ROUNDS
    assert rounds(10, 64) == 5  # and half a round more for the memory
    assert rounds(100, 10) == benchmark.MIN_ROUNDS
    assert rounds(100, 10, forced=1) == 1
    assert rounds(1, 1000, forced=9) == 9


@pytest.mark.parametrize("is_fast", [False, True])
def test_a_training_variant_takes_the_engines_steps(benchmark, monkeypatch, capsys, is_fast):
    assert benchmark.train_one_epoch is train_one_epoch
    models = []
    make = benchmark.TemporalModel
    monkeypatch.setattr(
        benchmark, "TemporalModel", lambda *args, **kwargs: models.append(make(*args, **kwargs)) or models[0]
    )
    size = {"backbone": "resnet14", "input_size": 32}
    variant = benchmark.training_variant(2, 2, "off", is_fast, False, 2, CPU, **size)
    before = models[0].new_fc.weight.clone()
    assert variant.clips == 2
    for _ in range(2):
        variant.run()
        after = models[0].new_fc.weight.detach().clone()
        assert not torch.equal(before, after)
        before = after
    assert capsys.readouterr() == ("", "")  # nothing is logged, nor a bar shown


def test_exported_models_are_measured_where_their_runtime_is_installed(benchmark, monkeypatch, tmp_path):
    (comparison,) = benchmark.export_comparisons(Namespace(batch_size=1, frames=[8]), CPU, tmp_path)
    plain, fused, *exported = comparison.builders
    assert (plain, fused) == (benchmark.BASELINE, "default: float32, fused")
    assert [name.split()[1] for name in exported] == ["onnx,", "pt2,", "torchscript,"]
    variant = benchmark.export_variant("torchscript", 2, 3, "resnet14", 32)
    assert variant.clips == 3
    assert variant.run().shape == (3, benchmark.NUM_CLASS)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install"):  # upon which `Benchmark.compare` leaves the row out
        benchmark.export_variant("onnx", 2, 3, "resnet14", 32)


def test_a_run_prints_its_table_and_writes_its_numbers(tmp_path):
    path = tmp_path / "numbers.json"
    process = run("tools/benchmark.py", "--only", "loader", "--rounds", 1, "-b", 1, "--json", path)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    table = [line for line in process.stdout.splitlines() if line.startswith("| loader")]
    rows = json.loads(path.read_text())["rows"]
    assert (
        len(table) == len(rows) == 16
    )  # TSN's and both of ours, evaluation and training; v2 also from videos
    for first in (0, 3, 6, 11):
        plain, fast = rows[first : first + 2]
        ratios = np.divide(plain["rounds"], fast["rounds"])
        assert plain["what"] == fast["what"]
        assert (plain["ratio"], fast["ratio"]) == (1, pytest.approx(np.median(ratios)))
    places = ["--resize workers", "--resize device"]
    videos = [f"{place}, VP9 files" for place in places]
    assert [row["form"] for row in rows if "TSN" not in row["form"]] == places * 2 + (places + videos) * 2


def test_ctrl_c_keeps_the_rows_so_far(tmp_path):
    numbers, output = tmp_path / "numbers.json", tmp_path / "output"
    options = ["--only", "loader", "--rounds", "20", "-b", "1", "--json", str(numbers)]
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / "tools" / "benchmark.py", *options],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests that run in the background of a script would hand down that they ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    while "\n| loader" not in output.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)  # to its end: the baseline's process is gone, too
    assert process.returncode == 130, stderr
    assert stderr == ""
    lines = output.read_text().splitlines()
    assert lines[-1].startswith("interrupted")
    rows = json.loads(numbers.read_text())["rows"]
    assert 1 <= len([line for line in lines if line.startswith("| loader")]) == len(rows) < 10


@pytest.mark.parametrize("option", [("--only", "nothing"), ("--rounds", "0"), ("--frames", "x")])
def test_a_wrong_option_is_one_line(benchmark, monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *option])
    with pytest.raises(SystemExit) as ended:
        run_program(benchmark.main)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert option[0] in told
    assert len(told.splitlines()) == 1
