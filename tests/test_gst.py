"""The GST bottleneck: its output, and wrong splits."""

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


@pytest.mark.parametrize(("alpha", "beta"), [(3, 2), (1, 2), (128, 2), (4, 4), (4, 0)])
def test_wrong_split_is_refused(alpha, beta):
    with pytest.raises(ValueError, match=f"alpha {alpha} and beta {beta}"):
        GSTBottleneck(256, 64, alpha=alpha, beta=beta)
