"""The same model, computed faster: folded batch norm, layout, 2D kernels, compilation."""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models import TemporalModel
from utils.cli import UserError
from utils.precision import has_avx2_at_most


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Let cuDNN compute float32 convolutions in float32.

    PyTorch lets it round their inputs to the 10 bits of TF32 on GPUs from Ampere on.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def to_channels_last(model: TemporalModel, device: torch.device, for_training: bool = False) -> None:
    """Put a model's weights, and so all that it computes, into the layout that is fastest on a device.

    In channels-last the frames of a clip are 2D images in memory too, so that a convolution over
    one frame can be a 2D convolution of batch * frames images without moving anything. Whether that is
    faster depends on the kernels. On GPUs cuDNN's 3D ones are slow in bf16, and in some releases wrong
    (pytorch issue 163539). On CPUs oneDNN's 3D ones are as fast or faster, apart from training with AVX2:
    docs/SPEED.md has the measurements.

    Args:
        model: changed in place; its state dict keeps names, shapes and values.
        device: where it will run.
        for_training: whether it will be trained.
    """
    model.to(memory_format=torch.channels_last_3d)
    model.memory_format = torch.channels_last_3d
    if device.type == "cuda" or (for_training and device.type == "cpu" and has_avx2_at_most()):
        use_2d_kernels(model)


def use_2d_kernels(model: nn.Module) -> None:
    """Let a model's 3D convolutions be computed by 2D ones on frames; see `to_channels_last`."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if _FrameConv3d.can_compute(module):
                setattr(parent, name, _like(_FrameConv3d, module))


def _use_3d_kernels(model: nn.Module) -> None:
    """Undo `use_2d_kernels`."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) is _FrameConv3d:
                setattr(parent, name, _like(nn.Conv3d, module))


def _like(kind: type[nn.Conv3d], convolution: nn.Conv3d) -> nn.Conv3d:
    """A convolution of a kind, with the parameters of another one."""
    shape = (convolution.in_channels, convolution.out_channels, convolution.kernel_size)
    own = kind(*shape, convolution.stride, convolution.padding, bias=False, device="meta")
    own.weight, own.bias = convolution.weight, convolution.bias
    return own.train(convolution.training)


class _FrameConv3d(nn.Conv3d):
    """A convolution 1 or 3 frames long, as one 2D convolution of all frames.

    For 3 frames it makes, of each frame, what the frame adds to the one after it, to itself and to
    the one before it; sums of shifted frames remain.
    """

    @staticmethod
    def can_compute(module: nn.Module) -> bool:
        """Whether a module is a convolution of a kind that this computes."""
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
    """Compile a function of a model, forward and backward, at its first call with each size of a batch."""
    # With eager's random numbers, so that dropout's masks do not depend on --compile.
    return torch.compile(function, dynamic=False, options={"fallback_random": True})


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Report in one line that torch.compile does not work, as where there is no C++ compiler.

    Raises:
        UserError: says why.
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


def fuse(model: TemporalModel, device: torch.device, dtype: torch.dtype = torch.float32) -> TemporalModel:
    """Make a copy of a model for inference: the same answers from less work.

    Batch norm is folded into the convolutions, and layout and kernels are those of `to_channels_last`.

    Args:
        model: stays as it is. An exported one is fused already.
        device: where the copy will run; it stays on the model's device for now.
        dtype: of its weights and all it computes. In float32 its logits are the model's to 1e-5.

    Returns:
        A model that cannot be trained, for input as the model's own.
    """
    if not isinstance(model, TemporalModel):  # an exported model is fused already
        return model
    model = copy.deepcopy(model).eval().requires_grad_(False)
    _use_3d_kernels(model)
    for module in model.modules():
        for norm, convolutions in _norm_inputs(module).items():
            _fold(module, norm, [module.get_submodule(name) for name in convolutions])
    model.to(dtype)
    to_channels_last(model, device)
    return model


# The largest difference between the logits of a model and of its fused form, both in float32, as a share
# of the largest logit. Rounding makes less than 1e-5; a norm folded where it must not be makes 1.
TOLERANCE = 1e-3
# More clips than these few would show nothing else, and cost a CPU seconds.
_CLIPS_TO_COMPARE = 4


def check_fused(model: TemporalModel, fused: TemporalModel, clips: torch.Tensor) -> None:
    """Compare a fused model with the model itself, in float32.

    Args:
        model: on the device of the clips.
        fused: what `fuse` made of it, likewise.
        clips: input of the model, of which the first few are used.

    Raises:
        UserError: their logits differ by more than `TOLERANCE`.
    """
    if fused is model:  # it was compared when it was exported
        return
    clips = clips[:_CLIPS_TO_COMPARE]
    if next(fused.parameters()).dtype != torch.float32:
        fused = fuse(model, clips.device)
    modes = [(module, module.training) for module in model.modules()]
    with torch.inference_mode():
        expected = model.eval().forward(clips)  # its call may be compiled
        difference = (fused(clips) - expected).abs().max()
    for module, mode in modes:
        module.training = mode
    share = float(difference / expected.abs().max())
    if share > TOLERANCE:  # not so where logits are not finite, which the loss will show
        raise UserError(
            f"the fused model's logits differ from the model's by {100 * share:.2g} %: does the "
            "`fusable_norms` of its block say which norm follows directly on which convolution?"
        )


def _norm_inputs(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Which norms of a module follow directly on which of its convolutions."""
    if type(module) is nn.Sequential:
        names = [name for name, _ in module.named_children()]
        return {norm: (before,) for before, norm in zip(names, names[1:], strict=False)}
    # A class that has a `forward` of its own must also say it anew.
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return vars(owner).get("fusable_norms", {})


def _fold(parent: nn.Module, name: str, convolutions: list[nn.Module]) -> None:
    """Fold a batch norm into the convolutions whose outputs, one after the other, are its channels."""
    norm = parent.get_submodule(name)
    is_norm = type(norm) in (nn.BatchNorm3d, nn.SyncBatchNorm) and norm.affine and norm.track_running_stats
    if not is_norm or any(type(convolution) is not nn.Conv3d for convolution in convolutions):
        return
    norm = norm.double()
    first = 0
    for convolution in convolutions:
        own = slice(first, first + convolution.out_channels)
        first = own.stop
        bias = None if convolution.bias is None else convolution.bias.double()
        fused = fuse_conv_bn_weights(
            convolution.weight.double(),
            bias,
            norm.running_mean[own],
            norm.running_var[own],
            norm.eps,
            norm.weight[own],
            norm.bias[own],
        )
        dtype = convolution.weight.dtype
        convolution.weight, convolution.bias = (
            nn.Parameter(value.to(dtype), requires_grad=False) for value in fused
        )
    setattr(parent, name, nn.Identity())
