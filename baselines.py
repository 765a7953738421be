"""The baselines of the paper's comparison, and TSM: bottlenecks that model time in other ways than GST.

All but C2D change one step of it. Input, output and arguments are those of `gst.GSTBottleneck`, without alpha
and beta.
"""

import torch
from torch import nn
from torch.nn import functional

from gst import EXPANSION


class C2DBottleneck(nn.Module):
    """The bottleneck of a 2D ResNet, applied to each frame separately, as in TSN (arXiv 1608.00859).

    The other baselines are subclasses that override `reduce` or `aggregate`.
    """

    kernel_size = (1, 3, 3)  # of conv2
    fusable_norms = {"bn1": ("conv1",), "bn2": ("conv2",), "bn3": ("conv3",)}  # see `gst.GSTBottleneck`

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inplanes, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(
            planes,
            planes,
            kernel_size=self.kernel_size,
            stride=(1, stride, stride),
            padding=tuple(size // 2 for size in self.kernel_size),
            bias=False,
        )
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, planes * EXPANSION, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(planes * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce the channels of the input to those inside the block."""
        return self.conv1(x)

    def aggregate(self, x: torch.Tensor) -> torch.Tensor:
        """Aggregate neighbouring positions: the 3x3 convolution."""
        return self.conv2(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.reduce(x)))
        out = self.relu(self.bn2(self.aggregate(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)


class C3DBottleneck(C2DBottleneck):
    """Space and time in one 3x3x3 convolution (arXiv 1412.0767); the authors' options call it R3D."""

    kernel_size = (3, 3, 3)


class S3DBottleneck(C2DBottleneck):
    """Space, then time: 1x3x3, then 3x1x1 (arXiv 1712.04851).

    Unlike in the Inception network of the S3D paper, there is no norm or ReLU between the two. So the block
    differs from the others only in its convolution, and with 2D weights it starts as the 2D network.
    """

    fusable_norms = C2DBottleneck.fusable_norms | {"bn2": ("conv2_t",)}

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample)
        self.conv2_t = nn.Conv3d(planes, planes, kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False)

    def start_from_2d(self) -> dict[str, torch.Tensor]:
        """Initial values of tensors that 2D weights do not have: the temporal kernel is the identity."""
        return {"conv2_t.weight": nn.init.dirac_(torch.empty_like(self.conv2_t.weight))}

    def aggregate(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2_t(self.conv2(x))


class TSMBottleneck(C2DBottleneck):
    """C2D with channels shifted in time before conv1, see `shift`.

    This is TSM's offline residual shift (arXiv 1811.08383), in every block. TSM's code shifts only in every
    second block if a stage has 23 or more blocks.
    """

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(shift(x))


def shift(x: torch.Tensor) -> torch.Tensor:
    """Shift channels in time, and fill with zeros.

    Args:
        x: batch x channels x frames x height x width.

    Returns:
        The same shape. The first eighth of the channels is that of the next frame, the second eighth that of
        the previous frame.
    """
    fold = x.shape[1] // 8
    # Split, not sliced: gradients of slices are NCTHW, see `gst.GSTBottleneck`.
    following, previous, same = x.split((fold, fold, x.shape[1] - 2 * fold), dim=1)
    following = functional.pad(following[:, :, 1:], (0, 0, 0, 0, 0, 1))
    previous = functional.pad(previous[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat((following, previous, same), dim=1)
