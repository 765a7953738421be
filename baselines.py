"""The baselines of the paper's comparison, and TSM: bottlenecks that treat time in other ways than GST.

Only the 3x3 convolution differs from block to block, in TSM what conv1 reads. Input, output and arguments
are those of `gst.GSTBottleneck`, without alpha and beta, which describe GST's two paths.
"""

import torch
from torch import nn
from torch.nn import functional

from gst import EXPANSION


class C2DBottleneck(nn.Module):
    """The image network's bottleneck, on each frame by itself: what TSN is (arXiv 1608.00859)."""

    kernel_size = (1, 3, 3)  # of the 3x3 convolution
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)


class C3DBottleneck(C2DBottleneck):
    """Space and time in one 3x3x3 convolution (arXiv 1412.0767); the authors' options call it R3D."""

    kernel_size = (3, 3, 3)


class S3DBottleneck(C2DBottleneck):
    """Space, then time: 1x3x3, then 3x1x1 (arXiv 1712.04851).

    Nothing is between the two, whereas S3D's own Inception network has a norm and a ReLU there. So the block
    differs from the others in its convolution alone, and can start as exactly the 2D network.
    """

    fusable_norms = {"bn1": ("conv1",), "bn2": ("conv2_t",), "bn3": ("conv3",)}

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample)
        self.conv2_t = nn.Conv3d(planes, planes, kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False)

    def start_from_2d(self) -> dict[str, torch.Tensor]:
        """The tensors that 2D weights do not have: the temporal kernel starts as the identity."""
        return {"conv2_t.weight": nn.init.dirac_(torch.empty_like(self.conv2_t.weight))}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2_t(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)


class TSMBottleneck(C2DBottleneck):
    """C2D whose conv1 reads an eighth of its input from the next frame and an eighth from the previous one.

    This is TSM's residual shift (arXiv 1811.08383), offline and in every block. TSM's own code shifts only in
    every second block where a stage has 23 of them or more.
    """

    fusable_norms = C2DBottleneck.fusable_norms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(shift(x))))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)


def shift(x: torch.Tensor) -> torch.Tensor:
    """Shift channels in time, with zeros where there is no frame.

    Args:
        x: batch x channels x frames x height x width.

    Returns:
        The same shape: the first eighth of the channels is the next frame's, the second the previous one's.
    """
    share = x.shape[1] // 8
    # Not slices of the channels, whose gradients come back in NCTHW: see `gst.GSTBottleneck`.
    following, previous, same = x.split((share, share, x.shape[1] - 2 * share), dim=1)
    following = functional.pad(following[:, :, 1:], (0, 0, 0, 0, 0, 1))
    previous = functional.pad(previous[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat((following, previous, same), dim=1)
