"""The ResNets: stages, initialisation, and the weights of a 2D ResNet."""

import math
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from gst import GSTBottleneck
from resnet_gst import DEPTHS, ResNet, load_2d_weights


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gst_resnet(arch: str, alpha: int = 4, beta: int = 2) -> ResNet:
    return ResNet(partial(GSTBottleneck, alpha=alpha, beta=beta), DEPTHS[arch])


def weights_2d(blocks: tuple[int, ...], classes: int = 10) -> dict[str, torch.Tensor]:
    """The state dict of a 2D bottleneck ResNet, all random: a new one has zeros and ones."""
    kind = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(kind, list(blocks), num_classes=classes)
    return {name: torch.randn_like(value.float()) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("arch", "blocks"),
    [("resnet14", (1, 1, 1, 1)), ("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))],
)
def test_depths(arch, blocks):
    with torch.device("meta"):
        model = gst_resnet(arch)
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        assert tuple(map(len, stages)) == blocks
        assert all(isinstance(block, GSTBottleneck) for stage in stages for block in stage)
        assert model.eval()(torch.empty(2, 3, 4, 64, 64)).shape == (2 * 4, 1000)


@torch.no_grad()
def test_strides_are_in_space_only():
    model = gst_resnet("resnet14").eval()
    seen = {}
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])})
        )
    model(torch.randn(1, 3, 3, 64, 96))
    assert seen == {
        "conv1": (64, 3, 32, 48),
        "maxpool": (64, 16, 24),  # 2D, frame by frame
        "layer1": (256, 3, 16, 24),
        "layer2": (512, 3, 8, 12),
        "layer3": (1024, 3, 4, 6),
        "layer4": (2048, 3, 2, 3),
    }


@torch.no_grad()
def test_outputs_are_ordered_by_clip_and_frame():
    model = gst_resnet("resnet14").eval()
    x = torch.randn(2, 3, 3, 32, 32)
    rows = model(x)
    for clip in (0, 1):
        torch.testing.assert_close(rows[3 * clip : 3 * clip + 3], model(x[clip : clip + 1]))
    # Four blocks look at most four frames far, so that a change of the first frame moves the first most.
    x[1, :, 0] = 0
    moved = (model(x) - rows).norm(dim=1)
    assert moved[:3].max() == 0
    assert moved.argmax() == 3


def test_initialisation():
    for name, module in gst_resnet("resnet26").named_modules():
        if isinstance(module, nn.Conv3d):
            weight = module.weight.detach()
            fan_out = weight.shape[0] * math.prod(weight.shape[2:])
            # Standard error of a standard deviation is 1 / sqrt(2 n); five of them.
            tolerance = 5 / math.sqrt(2 * weight.numel())
            assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance), name
            assert abs(weight.mean().item()) < 5 * math.sqrt(2 / fan_out / weight.numel()), name
        elif isinstance(module, nn.BatchNorm3d):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name


# Weights of a 2D ResNet


@pytest.mark.parametrize(("alpha", "beta"), [(4, 1), (8, 2)])
def test_2d_weights_are_converted(alpha, beta):
    weights = torchvision.models.resnet50(weights=None).state_dict()
    # Random, so that new batch norms differ.
    weights = {name: torch.randn_like(value.float()) for name, value in weights.items()}
    model = gst_resnet("resnet50", alpha, beta)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copies = {name: value.clone() for name, value in weights.items()}

    loaded, kept = load_2d_weights(model, weights)

    own = model.state_dict()
    assert sorted(loaded + kept) == sorted(own)
    counters = [name for name in own if name.endswith("num_batches_tracked")]
    assert sorted(kept) == sorted(
        [name for name in own if ".Tconv." in name] + ["fc.weight", "fc.bias"] + counters
    )
    assert len([name for name in kept if ".Tconv." in name]) == 16
    for name in kept:
        assert torch.equal(own[name], before[name]), name
    assert len(loaded) == 53 + 4 * 53  # convolutions; scale, shift, mean and variance of batch norms
    for name in loaded:
        expected = weights[name]
        if name.endswith(".conv2.weight"):
            planes = expected.shape[0]
            expected = expected[: planes * (alpha - 1) // alpha, : planes // beta]
        if expected.ndim == 4:
            expected = expected[:, :, None]
        assert own[name].shape == expected.shape, name
        assert torch.equal(own[name], expected), name
    assert all(torch.equal(weights[name], copies[name]) for name in copies)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer2.0.bn2.running_var", None),
        ("layer3.0.conv1.weight", torch.zeros(256, 100, 1, 1)),
        ("layer3.0.conv2.weight", torch.zeros(100, 256, 3, 3)),
        ("layer1.1.conv1.weight", torch.zeros(64, 256, 1, 1)),
    ],
    ids=["missing", "narrow", "conv2 too small", "deeper"],
)
def test_wrong_2d_weights_are_refused_and_change_nothing(name, value):
    weights = weights_2d(DEPTHS["resnet14"]) | {name: value}
    if value is None:
        del weights[name]
    model = gst_resnet("resnet14")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"'{name}'"):
        load_2d_weights(model, weights)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
