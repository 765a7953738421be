"""training/optim.py: the learning rate, SGD's parameter groups, and momentum across memory layouts."""

import copy
import math
from argparse import Namespace

import pytest
import torch

from inference.fuse import to_channels_last
from models import TemporalModel
from training.optim import learning_rate, load_optimizer, make_optimizer

RECIPE = Namespace(lr=0.1, momentum=0.9, weight_decay=0.01)


def schedule(**changes):
    values = {"lr": 0.5, "lr_schedule": "step", "lr_steps": [50, 60], "warmup_epochs": 0.0, "epochs": 70}
    return Namespace(**values | changes)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.5), (49.99, 0.5), (50, 0.05), (60, 0.005)])
def test_step_schedule(epoch, rate):
    assert learning_rate(schedule(), epoch) == pytest.approx(rate, rel=1e-12)


def test_cosine_schedule():
    options = schedule(lr_schedule="cosine", epochs=10)
    assert learning_rate(options, 0) == 0.5
    assert learning_rate(options, 2.5) == pytest.approx(0.25 * (1 + math.sqrt(0.5)))
    assert learning_rate(options, 5) == pytest.approx(0.25)
    assert learning_rate(options, 10) == pytest.approx(0, abs=1e-15)
    # After a warm-up, half a cosine over the remaining epochs.
    options = schedule(lr_schedule="cosine", epochs=10, warmup_epochs=2.0)
    assert learning_rate(options, 2) == 0.5
    assert learning_rate(options, 6) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_warm_up_is_linear(name):
    options = schedule(lr_schedule=name, warmup_epochs=4.0)
    assert [learning_rate(options, epoch) for epoch in (0, 1, 2.5, 4)] == [0, 0.125, 0.3125, 0.5]


def make_model(channels_last, state_dict=None):
    torch.manual_seed(0)
    model = TemporalModel(4, 2, backbone="resnet14")
    model.load_state_dict(state_dict or model.state_dict())
    if channels_last:
        to_channels_last(model, torch.device("cpu"))
    return model


def set_gradients(model, seed):
    """Set gradients that depend on the seed alone, in the layout of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(values)


def assert_close_models(one, other):
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("channels_last", [True, False])
def test_sgd_has_a_rate_and_decay_for_each_group(channels_last):
    model, other = make_model(channels_last), make_model(False)
    optimizer = make_optimizer(model, RECIPE)
    groups = [
        {"params": g["params"], "lr": 0.1 * g["lr_mult"], "weight_decay": 0.01 * g["decay_mult"]}
        for g in other.get_optim_policies()
    ]
    assert [len(group["params"]) for group in groups] == [3, 0, 19, 1, 34]
    expected = torch.optim.SGD(groups, momentum=0.9, fused=False, foreach=False)
    for step in range(2):
        set_gradients(model, step)
        set_gradients(other, step)
        optimizer.step()
        expected.step()
        assert_close_models(model, other)


@pytest.mark.parametrize("channels_last", [True, False])
def test_momentum_continues_in_the_other_layout(channels_last):
    """A checkpoint of a GPU continues on a CPU, or the other way round."""
    model = make_model(channels_last)
    optimizer = make_optimizer(model, RECIPE)
    set_gradients(model, 0)
    optimizer.step()
    checkpoint = copy.deepcopy({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    other = make_model(not channels_last, checkpoint["state_dict"])
    resumed = make_optimizer(other, RECIPE)
    load_optimizer(resumed, torch.amp.GradScaler("cpu", enabled=False), checkpoint, "a.pth")
    for parameter in other.parameters():  # fused kernels go through memory in order
        assert resumed.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    set_gradients(model, 1)
    set_gradients(other, 1)
    optimizer.step()
    resumed.step()
    assert_close_models(other, model)
