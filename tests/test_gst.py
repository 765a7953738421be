"""The GST bottleneck: channels of the two paths, strides, and wrong splits."""

import pytest
import torch
from torch import nn

from gst import GSTBottleneck


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(block: nn.Module) -> nn.Module:
    """Give batch norms values that differ between channels, so that a wrong order shows."""
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
    return block.eval()


@pytest.mark.parametrize("beta", [1, 2])
@pytest.mark.parametrize("alpha", [2, 4, 8])
def test_shapes_of_the_convolutions(alpha, beta):
    block = GSTBottleneck(256, 64, alpha=alpha, beta=beta)
    shapes = {name: tuple(value.shape) for name, value in block.named_parameters() if value.ndim == 5}
    assert shapes == {
        "conv1.weight": (64, 256, 1, 1, 1),
        "conv2.weight": (64 * (alpha - 1) // alpha, 64 // beta, 1, 3, 3),
        "Tconv.weight": (64 // alpha, 64 // beta, 3, 3, 3),
        "conv3.weight": (256, 64, 1, 1, 1),
    }
    assert not [name for name, _ in block.named_parameters() if "conv" in name and name.endswith("bias")]


@pytest.mark.parametrize("beta", [1, 2])
@torch.no_grad()
def test_block_equals_the_paper(beta):
    """The block, written in plain functions."""
    functional = nn.functional

    def norm(x, module):
        statistics = (module.running_mean, module.running_var, module.weight, module.bias)
        return functional.batch_norm(x, *statistics)

    block = randomised(GSTBottleneck(256, 64, alpha=4, beta=beta))
    x = torch.randn(2, 256, 4, 6, 6)
    inner = norm(functional.conv3d(x, block.conv1.weight), block.bn1).relu()
    halves = (inner[:, :32], inner[:, 32:]) if beta == 2 else (inner, inner)
    spatial = functional.conv3d(halves[0], block.conv2.weight, padding=(0, 1, 1))
    temporal = functional.conv3d(halves[1], block.Tconv.weight, padding=1)
    inner = norm(torch.cat((spatial, temporal), 1), block.bn2).relu()
    expected = (norm(functional.conv3d(inner, block.conv3.weight), block.bn3) + x).relu()
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_temporal_path_sees_neighbouring_frames():
    block = randomised(GSTBottleneck(256, 64, alpha=4, beta=2))
    seen = {}
    for name in ("conv2", "Tconv"):
        getattr(block, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    x = torch.randn(1, 256, 7, 4, 4)
    block(x)
    before = dict(seen)
    x[:, :, 3] += 1
    block(x)
    changed = {
        name: [t for t in range(7) if not torch.equal(seen[name][:, :, t], before[name][:, :, t])]
        for name in seen
    }
    assert changed == {"conv2": [3], "Tconv": [2, 3, 4]}


@pytest.mark.parametrize(("size", "stride", "expected"), [(8, 1, 8), (8, 2, 4), (7, 2, 4)])
@torch.no_grad()
def test_stride_is_in_space_only(size, stride, expected):
    shortcut = nn.Conv3d(32, 256, 1, stride=(1, stride, stride))
    block = GSTBottleneck(32, 64, stride, shortcut, alpha=4, beta=2).eval()
    assert block(torch.randn(2, 32, 5, size, size)).shape == (2, 256, 5, expected, expected)


@pytest.mark.parametrize(("alpha", "beta"), [(3, 2), (1, 2), (128, 2), (4, 4), (4, 0)])
def test_wrong_split_is_refused(alpha, beta):
    with pytest.raises(ValueError, match=f"alpha {alpha} and beta {beta}"):
        GSTBottleneck(256, 64, alpha=alpha, beta=beta)
