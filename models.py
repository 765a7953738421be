"""`TemporalModel`: a backbone of any type of block with TSN's segments and consensus."""

import copy
import inspect
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

import baselines
import gst
from resnet_gst import DEPTHS, ResNet

# Types of block. To add one, write its class and add a line.
BLOCKS = {
    "GST": gst.GSTBottleneck,
    "C2D": baselines.C2DBottleneck,
    "C3D": baselines.C3DBottleneck,
    "S3D": baselines.S3DBottleneck,
    "TSM": baselines.TSMBottleneck,
}
# Names of types in the authors' options.
PUBLISHED_NAMES = {"R3D": "C3D"}

# Functions from the logits of the frames (batch x frames x classes) to those of the clip.
CONSENSUS = {
    "mean": lambda logits: logits.mean(dim=1),
    "max": lambda logits: logits.amax(dim=1),
}
# Parts of the model that can be excluded from training.
PARTS = ("backbone", "stem", "layer1", "layer2", "layer3", "layer4")

# Larger clips do not fit into memory.
MAX_SEGMENTS = 256
MAX_INPUT_SIZE = 1024


def block_kwargs(kind: str) -> tuple[str, ...]:
    """Which of alpha and beta the constructor of a type of block takes, directly or through **kwargs."""
    arguments: dict[str, inspect.Parameter] = {}
    for block in BLOCKS[kind].__mro__:
        own = inspect.signature(block.__init__).parameters
        arguments |= own
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return tuple(name for name in ("alpha", "beta") if name in arguments)


class TemporalModel(nn.Module):
    """Classify a clip of `num_segments` frames: a consensus of the frames' logits (TSN, arXiv 1608.00859).

    Input:  batch x (num_segments * 3) x height x width, or batch x num_segments x 3 x height x width;
            frames in time order, RGB, normalised by `input_mean` and `input_std`
    Output: batch x num_class logits

    The constructor neither downloads nor loads weights.

    Args:
        num_class: number of classes.
        num_segments: frames per clip.
        model: the type of block, a key of `BLOCKS`.
        backbone: an arch of `resnet_gst.DEPTHS`.
        alpha: one in alpha of a block's channels is temporal; ignored for types without alpha.
        beta: 2 for GST, 1 for GST-Large; ignored for types without beta.
        dropout: dropout probability before the classifier, applied to each frame separately. If it is above
            0, the classifier is `new_fc` and `base_model.fc` is a Dropout. Otherwise the classifier is
            `base_model.fc` (TSN-pytorch).
        input_size: height and width of the crops that the model is trained with, in pixels.
        consensus: a key of `CONSENSUS`.

    Raises:
        ValueError: an argument is invalid. The message names the option.
    """

    input_mean = (0.485, 0.456, 0.406)
    input_std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        num_class: int,
        num_segments: int,
        model: str = "GST",
        backbone: str = "resnet50",
        alpha: int | None = 4,
        beta: int | None = 2,
        dropout: float = 0.3,
        input_size: int = 224,
        consensus: str = "mean",
    ) -> None:
        super().__init__()
        if model not in BLOCKS:
            raise ValueError(f"type {model} is not one of {', '.join(BLOCKS)} (GST-Large is GST with beta 1)")
        if backbone not in DEPTHS:
            raise ValueError(f"arch {backbone} is not one of {', '.join(DEPTHS)}")
        if num_class < 1 or num_segments < 1:
            raise ValueError(f"num_class {num_class} and num_segments {num_segments} must be 1 or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout} is not a probability below 1")
        if input_size < 32:
            raise ValueError(f"input_size {input_size} is too small: the network downsamples by 32")
        if consensus not in CONSENSUS:
            raise ValueError(f"consensus {consensus} is not one of {', '.join(CONSENSUS)}")
        self.num_segments = num_segments
        self.input_size = input_size
        self.consensus = consensus
        # An attribute, because DataParallel's replicas lose the layout of the weights (pytorch issue 37484).
        self.memory_format = torch.contiguous_format

        values = {"alpha": alpha, "beta": beta}
        split = {name: values[name] for name in block_kwargs(model)}
        # Name of the model in the log.
        self.description = ", ".join(
            [f"{model} {backbone}", *(f"{name} {value}" for name, value in split.items())]
        )
        if consensus != "mean":
            self.description += f", consensus {consensus}"
        self.base_model = ResNet(partial(BLOCKS[model], **split), DEPTHS[backbone])
        classifier = nn.Linear(self.base_model.fc.in_features, num_class)
        nn.init.normal_(classifier.weight, 0, 0.001)
        nn.init.zeros_(classifier.bias)
        self.base_model.fc = nn.Dropout(dropout) if dropout > 0 else classifier
        self.new_fc = classifier if dropout > 0 else None

    @property
    def classifier(self) -> nn.Linear:
        """The layer that computes the logits of a frame: `new_fc` or `base_model.fc`."""
        return self.base_model.fc if self.new_fc is None else self.new_fc

    def replace_classifier(self, module: nn.Module) -> None:
        """Replace the classifier with another module."""
        owner, name = (self.base_model, "fc") if self.new_fc is None else (self, "new_fc")
        setattr(owner, name, module)

    @property
    def scale_size(self) -> int:
        """Short side to which evaluation scales a frame before it crops the centre, in pixels."""
        return self.input_size * 256 // 224

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        clips = clips.view(clips.shape[0], self.num_segments, 3, *clips.shape[-2:]).transpose(1, 2)
        dtype = self.base_model.conv1.weight.dtype
        logits = self.base_model(clips.to(dtype, memory_format=self.memory_format))
        if self.new_fc is not None:
            logits = self.new_fc(logits)
        # In float32, even if the logits are bf16 or fp16.
        return CONSENSUS[self.consensus](logits.view(-1, self.num_segments, logits.shape[-1]).float())

    def freeze(self, parts: Sequence[str]) -> None:
        """Exclude parts of the backbone from training.

        Args:
            parts: values of `PARTS`. 'backbone' is everything except the classifier, 'stem' is conv1 and bn1.
        """
        for name, module in self.base_model.named_children():
            part = "stem" if name in ("conv1", "bn1") else name
            if name != "fc" and ("backbone" in parts or part in parts):
                module.requires_grad_(False)

    def get_optim_policies(self, classifier_lr_mult: float = 1.0) -> list[dict]:
        """The optimizer's parameter groups, with TSN-pytorch's names.

        Parameters outside convolutions, linear layers and batch norms have the learning rate factor 1, and
        the weight decay factor 1, or 0 for vectors and scalars. A module can set other factors for its
        parameters: `optim_policies = {"gate": (10, 0)}` (learning rate, weight decay).

        Args:
            classifier_lr_mult: factor on the classifier's learning rate. With 1, the groups are the published
                ones. Otherwise the classifier's weight and bias are in separate groups.

        Returns:
            Groups with `params`, `lr_mult` and `decay_mult`, the factors on learning rate and weight decay.
        """
        conv_weights: list[nn.Parameter] = []
        linear_weights: list[nn.Parameter] = []
        biases: list[nn.Parameter] = []
        norm: list[nn.Parameter] = []
        others: dict[tuple[float, float], list[nn.Parameter]] = {}
        custom_factors = {
            module.get_parameter(name): factors
            for module in self.modules()
            for name, factors in getattr(module, "optim_policies", {}).items()
        }
        classifier = self.classifier
        has_own_rate = classifier_lr_mult != 1
        for module in self.modules():
            if module is classifier and has_own_rate:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter in custom_factors:
                    group = others.setdefault(custom_factors[parameter], [])
                elif isinstance(module, nn.Conv3d | nn.Linear) and name == "bias":
                    group = biases
                elif isinstance(module, nn.Conv3d):
                    group = conv_weights
                elif isinstance(module, nn.Linear):
                    group = linear_weights
                elif isinstance(module, nn.BatchNorm3d):
                    group = norm
                else:
                    group = others.setdefault((1, int(parameter.ndim > 1)), [])
                group.append(parameter)
        groups = [
            ("first_conv_weight", conv_weights[:3], 1, 1),
            ("first_conv_bias", [], 2, 0),  # empty: convolutions have no bias; kept as in the published code
            ("normal_weight", conv_weights[3:] + linear_weights, 1, 1),
            ("normal_bias", biases, 2, 0),
            ("BN scale/shift", norm, 1, 0),
        ]
        if has_own_rate:
            groups += [
                ("classifier_weight", [classifier.weight], classifier_lr_mult, 1),
                ("classifier_bias", [classifier.bias], 2 * classifier_lr_mult, 0),
            ]
        groups += [(f"other {factors}", params, *factors) for factors, params in others.items()]
        return [
            {"name": name, "params": params, "lr_mult": lr_mult, "decay_mult": decay_mult}
            for name, params, lr_mult, decay_mult in groups
        ]


def multiply_adds(model: TemporalModel) -> int:
    """Count the multiply-adds of the convolutions and the classifier for one clip, without computing them."""
    counts = []
    meta_model = copy.deepcopy(model).to("meta").eval()
    for module in meta_model.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(
                lambda module, _, output: counts.append(output.numel() * module.weight[0].numel())
            )
    meta_model(torch.empty(1, model.num_segments, 3, model.input_size, model.input_size, device="meta"))
    return sum(counts)
