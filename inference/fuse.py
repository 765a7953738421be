"""The same model, computed faster: folded batch norm, memory layout, 2D kernels, compilation."""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from inference.onednn import has_fused_operators, use_fused_operators
from models import TemporalModel
from utils.cli import UserError
from utils.precision import has_avx2_at_most

# The largest difference between the logits of a model and of its fused form, in float32, relative to the
# largest logit. Rounding causes less than 1e-5, a wrongly folded norm more than 1e-2.
TOLERANCE = 1e-3


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Compute float32 convolutions in float32.

    By default, cuDNN rounds their inputs to TF32 (10 bits) on GPUs since Ampere. Use this as a context or as
    the decorator of a function, but not of a generator.
    """
    previous = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = previous


def to_channels_last(model: TemporalModel, device: torch.device, for_training: bool = False) -> None:
    """Convert a model's weights, and so all its activations, to the layout that is fastest on a device.

    In channels last, each frame of a clip is a 2D image in memory. A convolution over one frame is then a 2D
    convolution of batch * frames images, without a copy. On GPUs, cuDNN's 3D kernels are slow in bf16,
    and wrong in some releases (pytorch issue 163539). On CPUs, oneDNN's 3D kernels are as fast or faster,
    except for training with AVX2. docs/SPEED.md has the measurements.

    Args:
        model: modified. Names, shapes and values of its state dict do not change.
        device: where the model will run.
        for_training: whether the model will be trained.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):  # not the whole model: a block may have parameters of 4 dimensions
            module.to(memory_format=torch.channels_last_3d)
    model.memory_format = torch.channels_last_3d
    is_cpu_training = for_training and device.type == "cpu"
    if is_cpu_training and torch.get_num_threads() == 1:
        _replace_convolutions(model, PointwiseConv3d.can_replace, PointwiseConv3d)
    # With 2 frames, the bf16 gradients of oneDNN's 3D kernels contain uninitialised memory (torch 2.14).
    needs_2d = has_avx2_at_most() or model.num_segments == 2
    if device.type == "cuda" or (is_cpu_training and needs_2d):
        use_2d_kernels(model)


def use_2d_kernels(model: nn.Module) -> None:
    """Compute 3D convolutions with 2D kernels on frames where possible; see `to_channels_last`."""
    _replace_convolutions(model, FrameConv3d.can_replace, FrameConv3d)


def _replace_convolutions(
    model: nn.Module, condition: Callable[[nn.Module], bool], kind: type[nn.Conv3d]
) -> None:
    """Replace modules that meet a condition with convolutions of class `kind` and the same parameters."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if condition(module):
                shape = (module.in_channels, module.out_channels, module.kernel_size)
                other = kind(*shape, module.stride, module.padding, bias=False, device="meta")
                other.weight, other.bias = module.weight, module.bias
                setattr(parent, name, other.train(module.training))


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution, computed as a matrix product.

    With one thread and fewer than 16 clips, PyTorch computes 1x1x1 convolutions without oneDNN, two to three
    times slower.
    """

    @staticmethod
    def can_replace(module: nn.Module) -> bool:
        """Whether a module can be replaced by this class."""
        is_plain = type(module) is nn.Conv3d and module.groups == 1
        return is_plain and module.kernel_size == (1, 1, 1) and module.padding == (0, 0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 4, 1)
        if self.stride != (1, 1, 1):
            frames, height, width = self.stride
            x = x[:, ::frames, ::height, ::width]
        return functional.linear(x, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class FrameConv3d(nn.Conv3d):
    """A convolution over 1 or 3 frames, computed as one 2D convolution of all frames.

    For 3 frames, the 2D convolution computes three contributions of each frame: to the next frame, to itself
    and to the previous frame. They are shifted in time and summed.
    """

    @staticmethod
    def can_replace(module: nn.Module) -> bool:
        """Whether a module can be replaced by this class."""
        if type(module) is not nn.Conv3d or module.groups > 1 or module.padding_mode != "zeros":
            return False
        length, padding = module.kernel_size[0], module.padding[0]
        in_time = (module.stride[0], module.dilation[0], padding)
        return length in (1, 3) and in_time == (1, 1, length // 2) and module.dilation == (1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clips, _, frames = x.shape[:3]
        is_long = self.kernel_size[0] == 3
        images = x.transpose(1, 2).flatten(0, 1)
        weight = self.weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
        # Replicas of DataParallel get their weights in another layout.
        weight = weight.contiguous(memory_format=torch.channels_last)
        bias = None if is_long else self.bias
        out = functional.conv2d(images, weight, bias, self.stride[1:], self.padding[1:])
        out = out.unflatten(0, (clips, frames)).transpose(1, 2)
        if not is_long:
            return out
        to_next, to_same, to_previous = out.chunk(3, dim=1)
        out = to_same + functional.pad(to_next[:, :, :-1], (0, 0, 0, 0, 1, 0))
        out = out + functional.pad(to_previous[:, :, 1:], (0, 0, 0, 0, 0, 1))
        return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1)


def compile_function(function: Callable) -> Callable:
    """Compile a function of a model, forward and backward, at the first call with each batch size."""
    # fallback_random uses the random numbers of eager mode, so that dropout masks do not depend on --compile.
    return torch.compile(function, dynamic=False, options={"fallback_random": True})


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Report in one line that torch.compile does not work, for example without a C++ compiler.

    Raises:
        UserError: the compiler failed; the message has its reason.
    """
    try:
        yield
    except Exception as error:
        compiler = sys.modules.get("torch._dynamo.exc")
        if compiler is None or not isinstance(error, compiler.TorchDynamoException):
            raise
        cause = getattr(error, "inner_exception", error)
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        reason = next((line for line in reversed(lines) if "error" in line), lines[0])
        raise UserError(f"--compile: torch.compile does not work here ({reason.strip()})") from None


def fuse(
    model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32, plain: bool = False
) -> nn.Module:
    """Make a copy of a model that computes the same logits faster.

    Batch norm is folded into the convolutions; `to_channels_last` chooses layout and kernels. On CPUs,
    convolutions also compute the ReLU and the sum that follow them (`inference.onednn`).

    Args:
        model: a `TemporalModel`, which is not changed. An `OnnxModel` is returned unchanged.
        device: the device on which the copy will run. The copy is on the model's device at first.
        dtype: type of the copy's weights and of its computation. In float32, logits agree to 1e-5.
        plain: use PyTorch's modules only, for export and compilation.

    Returns:
        A model with the same input and output, which cannot be trained.

    Raises:
        UserError: a block's `fusable_norms` does not describe its `forward`.
    """
    if not isinstance(model, TemporalModel):
        return model
    _check_fusable_norms(model, device, plain)
    fused = copy.deepcopy(model).requires_grad_(False)
    _fuse(fused, device, dtype, plain)
    return fused


def _fuse(model: TemporalModel, device: torch.device, dtype: torch.dtype, plain: bool) -> None:
    model.eval()
    _fold_norms(model)
    model.to(dtype)
    to_channels_last(model, device)
    if device.type == "cpu" and not plain and has_fused_operators(dtype) and _is_finite(model):
        use_fused_operators(model)


@torch.inference_mode()
def _is_finite(model: TemporalModel) -> bool:
    """Whether the model's logits are finite. oneDNN's ReLU turns NaN into 0, which would hide divergence."""
    clip = torch.ones(1, model.num_segments, 3, 32, 32, device=next(model.parameters()).device)
    return bool(model(clip).isfinite().all())


@torch.inference_mode()
def _check_fusable_norms(model: TemporalModel, device: torch.device, plain: bool) -> None:
    """Compare the logits of a model and of its fused form on a small random clip.

    Both are computed with randomised weights. Otherwise a wrong declaration could pass unnoticed: untrained
    norms, and new parameters that start as the identity, hardly change the logits.
    """
    model = copy.deepcopy(model).eval()
    backbone = model.base_model
    del backbone.layer1[2:]  # the first block has a projection, the others are like the second
    for stage in (backbone.layer2, backbone.layer3, backbone.layer4):
        del stage[1:]
    own_device = next(model.parameters()).device
    generator = torch.Generator(own_device).manual_seed(0)
    _randomise(model, generator)
    clip = torch.rand(1, model.num_segments, 3, 32, 32, generator=generator, device=own_device)
    with float32_convolutions():
        expected = model(clip)
        _fuse(model, device, torch.float32, plain)
        difference = float((model(clip) - expected).abs().max() / expected.abs().max())
    if difference > TOLERANCE:
        raise UserError(
            f"the fused model's logits differ from the model's by {100 * difference:.2g} %: check that "
            "`fusable_norms` of its block lists the convolutions that each norm directly follows"
        )


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Perturb every parameter and running statistic at random, in proportion to its scale."""

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=generator, device=tensor.device) - 0.5

    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            is_kernel = isinstance(module, nn.Conv3d | nn.Linear) and parameter.ndim > 1
            scale = parameter[0].numel() ** -0.5 if is_kernel else 1
            parameter += (parameter + scale) * noise(parameter)
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.running_mean += module.running_var.sqrt() * noise(module.running_mean)
            module.running_var += module.running_var * noise(module.running_var)


def _fold_norms(model: nn.Module) -> None:
    """Fold the batch norms of a model into its convolutions where `fusable_norms` allows it."""
    _replace_convolutions(model, lambda module: type(module) in (FrameConv3d, PointwiseConv3d), nn.Conv3d)
    for module in model.modules():
        for norm, convolutions in _fusable_norms(module).items():
            _fold(module, norm, [module.get_submodule(name) for name in convolutions])


def _fusable_norms(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each norm of a module that can be folded, the convolutions that it directly follows."""
    if type(module) is nn.Sequential:
        names = [name for name, _ in module.named_children()]
        return {norm: (before,) for before, norm in zip(names, names[1:], strict=False)}
    # The declaration is not valid for a subclass that overrides `forward` without a new declaration.
    for kind in type(module).__mro__:
        if "fusable_norms" in vars(kind):
            return vars(kind)["fusable_norms"]
        if "forward" in vars(kind):
            break
    return {}


def _fold(parent: nn.Module, name: str, convolutions: list[nn.Module]) -> None:
    """Fold a batch norm into the convolutions whose concatenated outputs are its input."""
    norm = parent.get_submodule(name)
    is_norm = type(norm) in (nn.BatchNorm3d, nn.SyncBatchNorm) and norm.affine and norm.track_running_stats
    if not is_norm or any(type(convolution) is not nn.Conv3d for convolution in convolutions):
        return
    sizes = [convolution.out_channels for convolution in convolutions]
    values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    parts = zip(*(value.split(sizes) for value in values), strict=True)
    for convolution, (mean, var, weight, bias) in zip(convolutions, parts, strict=True):
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, mean, var, norm.eps, weight, bias
        )
    setattr(parent, name, nn.Identity())
