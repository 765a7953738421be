"""The GST bottleneck: grouped spatial and temporal convolutions (paper, section 3)."""

import torch
from torch import nn


def check_split(alpha: int, beta: int) -> None:
    """Check that every stage's channels can be split as alpha and beta say.

    Args:
        alpha: one in alpha of a block's output channels is temporal (paper: 4).
        beta: each path reads one in beta of the input channels: 2 for GST, 1 for GST-Large.

    Raises:
        ValueError: a split that leaves a path without channels or does not divide them.
    """
    if alpha < 2 or 64 % alpha:
        raise ValueError(
            f"alpha {alpha} cannot split the blocks' 64 to 512 channels into a spatial and a temporal path: "
            "it must be 2, 4, 8, 16, 32 or 64 (the paper's is 4)"
        )
    if beta not in (1, 2):
        raise ValueError(
            f"beta {beta} is neither 2 (GST: each path reads its own half of the channels) "
            "nor 1 (GST-Large: both paths read all of them)"
        )


class GSTBottleneck(nn.Module):
    """A ResNet bottleneck whose 3x3 convolution is split into a spatial and a temporal path.

    Input:  batch x inplanes x frames x height x width
    Output: batch x (4 * planes) x frames x ceil(height / stride) x ceil(width / stride)

    Args:
        inplanes: channels of the input.
        planes: channels inside the block.
        alpha: the temporal path makes planes / alpha of the channels, the spatial path the others.
        beta: each path reads planes / beta channels.
        stride: in space; time is never strided.
        downsample: the projection of the shortcut, where its shape changes.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        alpha: int,
        beta: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.path_inputs = planes // beta
        temporal = planes // alpha
        self.conv1 = nn.Conv3d(inplanes, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(
            self.path_inputs,
            planes - temporal,
            kernel_size=(1, 3, 3),
            stride=(1, stride, stride),
            padding=(0, 1, 1),
            bias=False,
        )
        self.Tconv = nn.Conv3d(
            self.path_inputs,
            temporal,
            kernel_size=3,
            stride=(1, stride, stride),
            padding=1,
            bias=False,
        )
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, planes * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        # With beta 2 these are the two halves, with beta 1 the one is all of the channels. Slices instead
        # would cost time: their gradients come back in NCTHW, whatever the layout of the rest.
        shares = out.split(self.path_inputs, dim=1)
        out = torch.cat((self.conv2(shares[0]), self.Tconv(shares[-1])), dim=1)
        out = self.relu(self.bn2(out))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)
