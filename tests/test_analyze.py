"""tools/analyze.py: the temporal path's share, on checkpoints whose weights are known."""

from pathlib import Path

import pytest
import torch
from helpers import assert_one_line_error, call

from models import TemporalModel
from tools.analyze import temporal_shares


@pytest.fixture
def model() -> TemporalModel:
    torch.manual_seed(0)
    return TemporalModel(4, 2, "GST", "resnet14", alpha=4, beta=2, input_size=32)


def test_share_follows_scales_and_kernels(model):
    blocks = [model.base_model.get_submodule(f"layer{stage}.0") for stage in (1, 2, 3, 4)]
    with torch.no_grad():
        for block in blocks:
            block.conv3.weight.fill_(1)
        temporal = [slice(-block.Tconv.out_channels, None) for block in blocks]
        blocks[1].bn2.weight[temporal[1]] = -3  # its sign does not matter
        blocks[2].conv3.weight[:, temporal[2]] = 0
        blocks[3].conv3.weight[:, temporal[3]] *= 3
    expected = {"layer1.0": 1 / 4, "layer2.0": 1 / 2, "layer3.0": 0, "layer4.0": 1 / 2}
    assert temporal_shares(model) == pytest.approx(expected)


def test_table(model, tmp_path: Path):
    with torch.no_grad():
        model.base_model.layer4[0].bn2.weight[-model.base_model.layer4[0].Tconv.out_channels :] = 0
    file = tmp_path / "bare.pth"
    torch.save(model.state_dict(), file)
    done = call("tools/analyze.py", "--weights", file)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("| layer")]
    found = {name: map(float, values) for name, *values in (line.strip("| ").split(" | ") for line in lines)}
    assert list(found) == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    for name, (share, weight, untrained) in found.items():
        assert untrained == pytest.approx(1, abs=0.05)
        assert weight == pytest.approx(4 * share / 100, abs=0.01)
        assert weight == (0 if name == "layer4.0" else pytest.approx(1, abs=0.05))


def test_other_types_are_refused(tmp_path: Path):
    other = tmp_path / "other.pth"
    torch.save(TemporalModel(4, 2, "C2D", "resnet14", input_size=32).state_dict(), other)
    assert_one_line_error(call("tools/analyze.py", "--weights", other), other)
