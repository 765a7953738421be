"""`TemporalModel`: input, consensus, classifier, parameter groups, wrong arguments."""

import inspect
import math
from argparse import Namespace

import pytest
import torch
from torch import nn

from baselines import C2DBottleneck
from models import BLOCKS, TemporalModel
from training.optim import make_optimizer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(segments: int = 3, classes: int = 5, **kwargs) -> TemporalModel:
    return TemporalModel(classes, segments, backbone="resnet14", **kwargs)


def test_published_arguments():
    parameters = list(inspect.signature(TemporalModel).parameters.values())[:7]
    assert [(p.name, None if p.default is p.empty else p.default) for p in parameters] == [
        ("num_class", None),
        ("num_segments", None),
        ("model", "GST"),
        ("backbone", "resnet50"),
        ("alpha", 4),
        ("beta", 2),
        ("dropout", 0.3),
    ]


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (96, 160)])
@torch.no_grad()
def test_folded_and_unfolded_segments(size):
    model = small().eval()
    clips = torch.randn(2, 3, 3, *size)
    logits = model(clips)
    assert logits.shape == (2, 5)
    assert torch.equal(model(clips.flatten(1, 2)), logits)


@pytest.mark.parametrize("dropout", [0, 0.3])
@torch.no_grad()
def test_logits_are_the_mean_over_frames(dropout):
    model = small(dropout=dropout).eval()
    clips = torch.randn(2, 3, 3, 32, 32)
    features = {}
    model.base_model.avgpool.register_forward_hook(lambda _m, _i, out: features.update({"": out}))
    logits = model(clips)
    per_frame = features[""].view(2, 3, 2048)
    classifier = model.new_fc if dropout else model.base_model.fc
    torch.testing.assert_close(logits, classifier(per_frame).mean(1))


@torch.no_grad()
def test_dropout_differs_between_frames():
    model = small(segments=2, dropout=0.5)
    seen = {}
    model.base_model.fc.register_forward_hook(
        lambda _m, inputs, out: seen.update(before=inputs[0], after=out)
    )
    clips = torch.randn(2, 2, 3, 64, 64)
    model(clips)
    assert seen["before"].shape == (4, 2048)
    alive = (seen["before"] > 0).all(0)
    dropped = seen["after"][:, alive] == 0
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_classifier_starts_small(dropout):
    model = small(classes=50, dropout=dropout)
    classifier = model.new_fc if dropout else model.base_model.fc
    numbers = classifier.weight.numel()
    assert classifier.weight.std().item() == pytest.approx(0.001, rel=5 / math.sqrt(2 * numbers))
    assert abs(classifier.weight.mean().item()) < 5 * 0.001 / math.sqrt(numbers)
    assert not classifier.bias.any()


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_every_parameter_is_in_one_group(dropout):
    model = small(dropout=dropout)
    groups = model.get_optim_policies()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}
    assert sorted(name for members in found.values() for name in members) == sorted(names.values())

    head = "new_fc" if dropout else "base_model.fc"
    assert found["first_conv_weight"] == [
        "base_model.conv1.weight",
        "base_model.layer1.0.conv1.weight",
        "base_model.layer1.0.conv2.weight",
    ]
    assert found["normal_bias"] == [f"{head}.bias"]
    assert f"{head}.weight" in found["normal_weight"]
    assert all(
        ".bn" in n or n.startswith("base_model.bn1") or "downsample.1" in n for n in found["BN scale/shift"]
    )


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_classifier_with_another_rate_has_its_groups(dropout):
    model = small(dropout=dropout)
    *others, weight, bias = model.get_optim_policies(classifier_lr_mult=5.0)
    published = model.get_optim_policies()
    head = model.new_fc or model.base_model.fc
    assert (weight["lr_mult"], weight["decay_mult"]) == (5, 1)
    assert (bias["lr_mult"], bias["decay_mult"]) == (10, 0)
    assert [*map(id, weight["params"] + bias["params"])] == [id(head.weight), id(head.bias)]
    for group, before in zip(others, published, strict=True):
        wanted = [id(p) for p in before["params"] if p is not head.weight and p is not head.bias]
        assert [*map(id, group["params"])] == wanted
        assert group | {"params": before["params"]} == before


class Gated(C2DBottleneck):
    """A block with a plain parameter, a LayerNorm, a convolution with a bias, and factors for one of them."""

    optim_policies = {"gate": (10, 0)}

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__(inplanes, planes, stride, downsample)
        self.gate = nn.Parameter(torch.randn(planes, planes))
        self.mix = nn.Parameter(torch.zeros(planes, planes))
        self.norm = nn.LayerNorm(planes)
        self.conv_t = nn.Conv3d(planes, planes, (3, 1, 1), padding=(1, 0, 0), groups=planes)

    def aggregate(self, x):
        x = self.conv2(x)
        gates = self.norm(x.mean((2, 3, 4)) @ (self.gate + self.mix)).sigmoid()
        return x + self.conv_t(x) * gates[:, :, None, None, None]


def test_any_parameter_trains(monkeypatch):
    monkeypatch.setitem(BLOCKS, "Gated", Gated)
    model = small(model="Gated")
    groups = {group["name"]: group for group in model.get_optim_policies()}
    names = {id(parameter): name.split(".", 3)[-1] for name, parameter in model.named_parameters()}
    factors = {
        names[id(parameter)]: (group["lr_mult"], group["decay_mult"])
        for group in groups.values()
        for parameter in group["params"]
    }
    expected = {"gate": (10, 0), "mix": (1, 1), "norm.weight": (1, 0), "norm.bias": (1, 0)}
    expected |= {"conv_t.weight": (1, 1), "conv_t.bias": (2, 0), "bn1.weight": (1, 0), "conv1.weight": (1, 1)}
    assert {name: factors[name] for name in expected} == expected
    optimizer = make_optimizer(model, Namespace(lr=0.1, momentum=0.9, weight_decay=0.1))
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(torch.randn(2, 3, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []


def test_consensus():
    clips = torch.randn(2, 3, 3, 32, 32)
    model, other = small(consensus="max").eval(), small().eval()
    other.load_state_dict(model.state_dict())
    frames = []
    model.new_fc.register_forward_hook(lambda _m, _i, output: frames.append(output.view(2, 3, 5)))
    torch.testing.assert_close(model(clips), frames[0].amax(dim=1))
    torch.testing.assert_close(other(clips), frames[0].mean(dim=1))
    assert model.description == f"{other.description}, consensus max"


@pytest.mark.parametrize(("parts", "frozen"), [(["backbone"], 5), (["stem", "layer2"], 2), ([], 0)])
def test_freeze(parts, frozen):
    model = small()
    model.freeze(parts)
    stages = {}
    for name, parameter in model.named_parameters():
        stage = "fc" if "fc" in name else name.split(".")[1].replace("conv1", "stem").replace("bn1", "stem")
        stages.setdefault(stage, set()).add(parameter.requires_grad)
    assert len(stages) == 6
    assert stages["fc"] == {True}
    assert [*stages.values()].count({False}) == frozen
    assert all(stages[part] == {False} for part in parts if part != "backbone")


@pytest.mark.parametrize(
    "argument",
    [
        {"model": "TPN"},
        {"backbone": "resnet18"},
        {"dropout": 1},
        {"input_size": 31},
        {"num_class": 0},
        {"num_segments": 0},
    ],
)
def test_wrong_argument_is_refused_by_its_option(argument):
    ((name, value),) = argument.items()
    option = {"model": "type", "backbone": "arch"}.get(name, name)
    with pytest.raises(ValueError, match=f"{option} {value}"):
        TemporalModel(**{"num_class": 5, "num_segments": 3, "backbone": "resnet14"} | argument)
