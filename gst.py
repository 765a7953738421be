"""The GST bottleneck: grouped spatial and temporal convolutions (paper, section 3)."""

import torch
from torch import nn

# One in alpha of a block's output channels is temporal (the paper's alpha is 4). These divide the 64 to 512
# channels of the stages and leave some for both paths.
ALPHAS = (2, 4, 8, 16, 32, 64)
# Each path reads one in beta of the input channels: 2 is GST, where each has its own half; 1 is GST-Large.
BETAS = (1, 2)
# A bottleneck's output has this many times the channels of its inside.
EXPANSION = 4


class GSTBottleneck(nn.Module):
    """A ResNet bottleneck whose 3x3 convolution is split into a spatial and a temporal path.

    Input:  batch x inplanes x frames x height x width
    Output: batch x (EXPANSION * planes) x frames x ceil(height / stride) x ceil(width / stride)

    Args:
        inplanes: channels of the input.
        planes: channels inside the block.
        stride: in space; time is never strided.
        downsample: the projection of the shortcut, where its shape changes.
        alpha: the temporal path makes planes / alpha of the channels, the spatial path the others.
        beta: each path reads planes / beta channels.

    Raises:
        ValueError: alpha is not one of `ALPHAS`, or beta not one of `BETAS`.
    """

    # Which norm follows directly on which convolutions, so that evaluation may fold it into them. Whoever
    # changes `forward` changes this, too; what is not in it is computed as it is.
    fusable_norms = {"bn1": ("conv1",), "bn2": ("conv2", "Tconv"), "bn3": ("conv3",)}

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        alpha: int,
        beta: int,
    ) -> None:
        super().__init__()
        if alpha not in ALPHAS or beta not in BETAS:
            raise ValueError(
                f"alpha {alpha} and beta {beta}: alpha must be one of {ALPHAS} and beta one of {BETAS}"
            )
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
        self.conv3 = nn.Conv3d(planes, planes * EXPANSION, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(planes * EXPANSION)
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
