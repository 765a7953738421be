"""Convolutions on CPUs that also compute the ReLU and the sum that follow them.

The operators are those of oneDNN that torch.compile uses on CPUs. They need no compilation.
"""

import operator
import platform

import torch
from torch import fx, nn
from torch.nn import functional

from utils.precision import has_instructions


class FusedConv3d(nn.Module):
    """A convolution and the operations that follow it: relu(conv(x) + other).

    Input: x, channels last, see `torch.nn.Conv3d`; optionally `other`, which is overwritten by the output if
        the shapes match.

    Args:
        bias: its bias, or None.
        geometry: padding, stride, dilation and number of groups.
        relu: whether a ReLU follows.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, geometry: tuple, relu: bool = False
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.geometry, self.relu = weight.detach(), bias, geometry, relu

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if not self.weight.is_mkldnn:  # the layout of the weights depends on the size of the input
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self.weight = reorder(self.weight, *self.geometry, list(x.shape))
        inputs = (x, self.weight, self.bias, *self.geometry)
        if other is not None and other.shape == self._output_shape(x):
            add = torch.ops.mkldnn._convolution_pointwise_.binary
            return add(other, *inputs, "add", 1.0, "relu" if self.relu else None, [], "")
        activation = "relu" if self.relu and other is None else "none"
        out = torch.ops.mkldnn._convolution_pointwise(*inputs, activation, [], "")
        if other is None:
            return out
        out = out + other  # one of the two is broadcast
        return out.relu_() if self.relu else out

    def _output_shape(self, x: torch.Tensor) -> tuple[int, ...]:
        sizes = zip(x.shape[2:], self.weight.shape[2:], *self.geometry[:3], strict=True)
        spatial = ((n + 2 * pad - dilation * (k - 1) - 1) // step + 1 for n, k, pad, step, dilation in sizes)
        return len(x), self.weight.shape[0], *spatial


def has_fused_operators(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and this CPU have the operators of `FusedConv3d` for a type."""
    if platform.machine().lower() not in ("x86_64", "amd64") or dtype == torch.float16:  # not tried
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    has_operators = all(hasattr(torch.ops.mkldnn, name) for name in names)
    amp = "bf16" if dtype == torch.bfloat16 else "off"
    return has_operators and has_instructions(torch.device("cpu"), amp)


def use_fused_operators(model: nn.Module) -> None:
    """Replace the convolutions of a model, and the operations that follow them, by `FusedConv3d`.

    A bottleneck that `torch.fx` cannot trace is not changed.

    Args:
        model: a `TemporalModel` without batch norm, in channels last; modified.
    """
    backbone = model.base_model
    if type(backbone.conv1) is nn.Conv3d and isinstance(backbone.bn1, nn.Identity):
        backbone.conv1 = _fused(backbone.conv1)
        backbone.conv1.relu = True
        backbone.relu = nn.Identity()
    for stage in backbone.children():
        if isinstance(stage, nn.Sequential):
            for name, block in stage.named_children():
                setattr(stage, name, _rewrite(block))


def _fused(conv: nn.Conv3d) -> FusedConv3d:
    geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    return FusedConv3d(conv.weight, conv.bias, geometry)


def _rewrite(block: nn.Module) -> nn.Module:
    try:
        traced = fx.symbolic_trace(block)
    except Exception:  # for example if its `forward` depends on values
        return block
    for step in (_replace_modules, _move_relu, _merge):
        for node in list(traced.graph.nodes):
            step(traced, node)
        traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


# The steps. Each may change the graph of a block at one node.


def _replace_modules(traced: fx.GraphModule, node: fx.Node) -> None:
    """Replace convolutions by `FusedConv3d`, and remove identities."""
    module = traced.get_submodule(node.target) if node.op == "call_module" else None
    if node.op == "call_module" and node.kwargs:  # such as conv(input=x)
        return
    is_conv = type(module) is nn.Conv3d and module.padding_mode == "zeros"
    with traced.graph.inserting_before(node):
        if is_conv and not isinstance(module.padding, str):
            name = f"fused_{node.name}"  # a module may be called several times
            traced.add_submodule(name, _fused(module))
            other = traced.graph.call_module(name, node.args)
        elif isinstance(module, nn.Identity):
            other = node.args[0]
        elif isinstance(module, nn.ReLU) and (not module.inplace or len(node.args[0].users) == 1):
            other = traced.graph.call_function(functional.relu, node.args)
        else:
            return
    node.replace_all_uses_with(other)
    traced.graph.erase_node(node)  # no longer a user of its input


def _move_relu(traced: fx.GraphModule, node: fx.Node) -> None:
    """relu(cat(a, b)) becomes cat(relu(a), relu(b))."""
    if node.target is functional.relu and _is_cat(cat := node.args[0]) and len(cat.users) == 1:
        with traced.graph.inserting_before(node):
            parts = [traced.graph.call_function(functional.relu, (part,)) for part in cat.args[0]]
            node.replace_all_uses_with(traced.graph.call_function(torch.cat, (parts, 1)))


def _merge(traced: fx.GraphModule, node: fx.Node) -> None:
    """relu(conv(x) + other) becomes one operator, and so do conv(x) + other and relu(conv(x))."""
    conv, last, other = _conv(traced, node), node, None
    if not conv:
        return
    if len(last.users) == 1 and _is_sum(user := next(iter(last.users))):
        (term,) = (term for term in user.args if term is not node)
        if term is not node.args[0] and _is_last_use(traced, term, user):
            last, other = user, term
    if len(last.users) == 1 and (user := next(iter(last.users))).target is functional.relu:
        last, conv.relu = user, True
    with traced.graph.inserting_before(last):
        inputs = (*node.args, other) if other else node.args
        last.replace_all_uses_with(traced.graph.call_module(node.target, inputs))


def _conv(traced: fx.GraphModule, node: fx.Node) -> FusedConv3d | None:
    module = traced.get_submodule(node.target) if node.op == "call_module" else None
    return module if isinstance(module, FusedConv3d) else None


def _is_cat(node: fx.Node) -> bool:
    return node.target is torch.cat and 1 in (*node.args[1:], node.kwargs.get("dim"))


def _is_sum(node: fx.Node) -> bool:
    is_sum = node.target in (operator.add, operator.iadd, torch.add) and not node.kwargs
    return is_sum and len({term for term in node.args if isinstance(term, fx.Node)}) == 2


def _is_last_use(traced: fx.GraphModule, tensor: fx.Node, user: fx.Node) -> bool:
    """Whether `user` is a tensor's last use; False if it may be a view of another tensor."""
    order = {node: number for number, node in enumerate(traced.graph.nodes)}
    is_own = tensor.op == "placeholder" or _conv(traced, tensor) is not None
    return is_own and all(order[other] <= order[user] for other in tensor.users)
