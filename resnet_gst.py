"""A ResNet with any type of bottleneck, and its initialisation from a 2D ResNet's ImageNet weights."""

import re
from collections.abc import Callable

import torch
from torch import nn

from gst import EXPANSION

# Bottlenecks in each stage. resnet14 and resnet26 are for small machines and have no ImageNet weights.
DEPTHS = {
    "resnet14": (1, 1, 1, 1),
    "resnet26": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


class ResNet(nn.Module):
    """A ResNet applied to every frame of a clip.

    Input:  batch x 3 x frames x height x width
    Output: (batch * frames) x num_classes; the frames of a clip are consecutive

    Args:
        block: class of the bottlenecks, see `gst.GSTBottleneck`. It is called with the input channels, the
            inner channels and the spatial stride; the first of a stage also gets its shortcut's projection.
        layers: the number of bottlenecks in each stage.
        num_classes: outputs of the classifier `fc`.
    """

    fusable_norms = {"bn1": ("conv1",)}  # see `gst.GSTBottleneck`

    def __init__(
        self, block: Callable[..., nn.Module], layers: tuple[int, int, int, int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.inplanes = 64
        self.conv1 = nn.Conv3d(3, 64, kernel_size=(1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)  # 3D is not deterministic on GPUs
        self.layer1 = self._make_layer(block, 64, layers[0], stride=1)
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2)
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2)
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * EXPANSION, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(
        self, block: Callable[..., nn.Module], planes: int, blocks: int, stride: int
    ) -> nn.Sequential:
        outputs = planes * EXPANSION
        downsample = nn.Sequential(
            nn.Conv3d(self.inplanes, outputs, kernel_size=1, stride=(1, stride, stride), bias=False),
            nn.BatchNorm3d(outputs),
        )
        first = block(self.inplanes, planes, stride, downsample)
        self.inplanes = outputs
        return nn.Sequential(first, *(block(outputs, planes) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, x.shape[2])).transpose(1, 2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        frames = x.transpose(1, 2).flatten(0, 1)
        return self.fc(self.avgpool(frames).flatten(1))


def start_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Initial values of the tensors that 2D weights do not have, from the `start_from_2d` of the blocks."""
    return {
        f"{prefix}.{name}": value
        for prefix, module in model.named_modules()
        if hasattr(module, "start_from_2d")
        for name, value in module.start_from_2d().items()
    }


# Names of the tensors of a 2D ResNet, without the classifier.
_IN_2D = re.compile(r"(layer\d\.\d+\.)?(conv|bn)\d\.|layer\d\.\d+\.downsample\.")


def load_2d_weights(model: ResNet, weights: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Load the weights of a 2D ResNet, such as torchvision's `IMAGENET1K_V1` (paper, section 4.2).

    Kernels gain a time axis. If it is longer than 1, they are repeated along it and divided by its length
    (I3D, arXiv 1705.07750). If `conv2` has fewer filters or input channels than the 2D kernel, it gets the
    first ones. Tensors that a 2D ResNet does not have get the values of their block's `start_from_2d`. If the
    block has no such method, they keep their initialisation, as the classifier does.

    Args:
        model: modified.
        weights: a 2D ResNet's state dict with the same blocks.

    Returns:
        The names of the tensors that were set, and of those that keep their initialisation.

    Raises:
        ValueError: a tensor is missing, unknown or has another shape. The model is unchanged.
    """
    new_values = start_tensors(model)
    unchanged: list[str] = []
    for name, own in model.state_dict().items():
        if name in new_values:
            continue
        if not _IN_2D.match(name) or name.endswith("num_batches_tracked"):
            unchanged.append(name)
            continue
        if name not in weights:
            raise ValueError(f"has no tensor '{name}'")
        value = weights[name]
        if value.ndim == 4 and own.ndim == 5:
            length = own.shape[2]
            value = value.unsqueeze(2).expand(-1, -1, length, -1, -1) / length
        if name.endswith(".conv2.weight") and value.ndim == 5:
            value = value[: own.shape[0], : own.shape[1]]
        if value.shape != own.shape:
            raise ValueError(f"has '{name}' with shape {tuple(weights[name].shape)}, which does not fit")
        new_values[name] = value
    extra = [name for name in weights if name not in new_values and not name.startswith("fc.")]
    extra = [name for name in extra if not name.endswith("num_batches_tracked")]
    if extra:
        raise ValueError(f"has a tensor '{extra[0]}' that this arch does not have")
    model.load_state_dict(new_values, strict=False)
    return list(new_values), unchanged
