"""The GST bottleneck: grouped spatial and temporal convolutions (paper, section 3)."""

import torch
from torch import nn

# One in alpha of a block's channels is temporal (4 in the paper). All values divide the number of channels of
# each stage (64 to 512) and leave channels for both paths.
ALPHAS = (2, 4, 8, 16, 32, 64)
# Each path reads one in beta of the channels. 2 is GST, where each path reads one half; 1 is GST-Large.
BETAS = (1, 2)
# Output channels of a bottleneck, divided by the channels inside it.
EXPANSION = 4


class GSTBottleneck(nn.Module):
    """A ResNet bottleneck whose 3x3 convolution is split into a spatial and a temporal path.

    Input:  batch x inplanes x frames x height x width
    Output: batch x (EXPANSION * planes) x frames x ceil(height / stride) x ceil(width / stride)

    Args:
        inplanes: channels of the input.
        planes: channels inside the block.
        stride: spatial stride; time is never strided.
        downsample: the projection of the shortcut, if its shape changes.
        alpha: the temporal path computes planes / alpha channels, the spatial path the others.
        beta: each path reads planes / beta channels.

    Raises:
        ValueError: alpha is not one of `ALPHAS`, or beta not one of `BETAS`.
    """

    # The convolutions that each norm directly follows. Evaluation folds these norms into the convolutions and
    # computes other norms separately. Keep in sync with `forward`.
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
        # Two halves with beta 2, all channels with beta 1. Not slices, which would be slower: their gradients
        # are NCTHW even if all other tensors are channels last.
        parts = out.split(self.path_inputs, dim=1)
        out = torch.cat((self.conv2(parts[0]), self.Tconv(parts[-1])), dim=1)
        out = self.relu(self.bn2(out))
        out = self.bn3(self.conv3(out))
        out += shortcut
        return self.relu(out)
