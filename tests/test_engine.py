"""engine.py: the input, the training steps and the evaluation, against values computed here."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from engine import PixelModel, Predictor, evaluate, train_one_epoch
from inference.fuse import fuse
from loader import ClipSampler, evaluation_batches
from models import TemporalModel
from training.optim import make_optimizer
from training.state import TrainState
from utils.cli import UserError
from utils.distributed import World, derive_seed

CPU = torch.device("cpu")
WORLD = World(0, 1, [CPU])
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clips(Dataset):
    """Noise: uint8, frames x height x width x channel."""

    def __init__(self, count, size=3):
        rng = np.random.default_rng(2)
        self.clips = rng.integers(0, 256, size=(count, 2, size, size, 3), dtype=np.uint8)
        self.labels = rng.integers(4, size=count)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        return self.clips[index], int(self.labels[index])


class Linear(nn.Module):
    """A model without batch norm: a step is the sum over its clips."""

    input_mean, input_std = MEAN, STD

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(54, 4)
        with torch.no_grad():
            self.fc.weight.copy_(torch.linspace(-0.1, 0.1, 216).view(4, 54))
            self.fc.bias.zero_()

    def forward(self, clips):
        return self.fc(self.dropout(clips.flatten(1)))


def recipe(**changes):
    values = {"lr": 0.1, "lr_schedule": "step", "lr_steps": [50, 60], "warmup_epochs": 0.0, "epochs": 70}
    values |= {"seed": 3, "clip_gradient": 1e9, "print_freq": 1, "freeze_bn": False}
    return Namespace(**values | changes)


def train_epoch(count, batch_size, accumulate=1, first_step=0, epoch=0, dropout=0.0, bias_lr=1.0, **changes):
    """Train `Linear` for an epoch of noise clips; return the state, and each step's number and curves."""
    model = Linear(dropout)
    groups = [{"params": [model.fc.weight], "lr_mult": 1}, {"params": [model.fc.bias], "lr_mult": bias_lr}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    options = recipe(**changes)
    return train_model(model, optimizer, options, Clips(count), batch_size, accumulate, first_step, epoch)


def train_model(model, optimizer, options, clips, batch_size, accumulate=1, first_step=0, epoch=0):
    sampler = ClipSampler(len(clips), batch_size, seed=5, accumulate=accumulate)
    state = TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), WORLD, {})
    state.epoch, state.step = epoch, first_step
    state.batch_sizes = sampler.start(epoch, first_step)
    loader = DataLoader(clips, batch_sampler=sampler)
    steps = train_one_epoch(PixelModel(model), loader, state, options)
    numbers, curves = zip(*[(state.step, step.curves) for step in steps], strict=True)
    state.check_loss()
    return Namespace(model=model, totals=state.meters.totals, numbers=numbers, curves=curves)


def test_pixels_are_normalised():
    clips = torch.from_numpy(Clips(2).clips)
    seen = []
    model = Linear()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    PixelModel(model)(clips)
    assert (seen[0].shape, seen[0].dtype) == ((2, 2, 3, 3, 3), torch.float32)
    for channel in range(3):
        expected = (clips[..., channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(seen[0][:, :, channel].double(), expected, rtol=0, atol=1e-6)


# The last step has batches of 3 and 1 clips (of 10, in steps of 6). In the mean of the batches' means, the
# single clip would count three times as much as the others.
def test_accumulated_batches_equal_one_large_batch():
    parts, one = train_epoch(10, 3, accumulate=2), train_epoch(10, 6)
    assert parts.numbers == one.numbers == (1, 2)
    torch.testing.assert_close(parts.model.fc.weight, one.model.fc.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.model.fc.bias, one.model.fc.bias, rtol=0, atol=1e-6)
    assert parts.totals == pytest.approx(one.totals, rel=1e-6)
    assert parts.totals[3] == 10
    assert not torch.allclose(train_epoch(10, 3).model.fc.weight, one.model.fc.weight, atol=1e-4)


def test_step_follows_the_gradient_of_the_mean_loss():
    run = train_epoch(6, 6, bias_lr=2.0)
    clips = Clips(6)
    x = torch.from_numpy(clips.clips).permute(0, 1, 4, 2, 3).double() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    model = Linear().double()
    loss = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(clips.labels))
    loss.backward()
    weight, bias = model.fc.weight, model.fc.bias
    torch.testing.assert_close(run.model.fc.weight.double(), weight - 0.1 * weight.grad, rtol=0, atol=1e-6)
    # The bias is in a group of twice the rate.
    torch.testing.assert_close(run.model.fc.bias.double(), bias - 0.2 * bias.grad, rtol=0, atol=1e-6)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    (curves,) = run.curves
    assert curves["train/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert curves["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert curves["train/lr"] == 0.1


def test_gradient_is_clipped_and_logged_unclipped():
    free, clipped = train_epoch(6, 6), train_epoch(6, 6, clip_gradient=0.01)
    moves = []
    for run in (free, clipped):
        pairs = zip(run.model.parameters(), Linear().parameters(), strict=True)
        moves.append(torch.cat([(new - old).flatten() for new, old in pairs]))
    assert moves[1].norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert torch.allclose(moves[1] / moves[1].norm(), moves[0] / moves[0].norm(), atol=1e-4)
    norms = [run.curves[0]["train/gradient_norm"] for run in (free, clipped)]
    assert norms[0] == norms[1] > 0.01


def test_rate_changes_within_an_epoch():
    run = train_epoch(8, 2, epoch=1, warmup_epochs=2.0, lr=0.8)
    assert run.numbers == (1, 2, 3, 4)
    assert [curves["train/lr"] for curves in run.curves] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    run = train_epoch(8, 2, first_step=3)  # begins within an epoch
    assert (run.numbers, run.totals[3]) == ((4,), 2)


def test_dropout_depends_on_seed_epoch_and_step_alone():
    def losses(drawn=0, **changes):
        torch.rand(drawn)  # random numbers of other code must not matter
        run = train_epoch(4, 4, dropout=0.5, lr=1e-12, **changes)
        return [curves["train/loss"] for curves in run.curves]

    torch.manual_seed(0)
    assert losses() == losses(drawn=7)
    assert losses() != losses(seed=4)
    assert losses() != losses(epoch=1)  # one batch of all clips: only the mask differs
    numbers = ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 1))
    assert len({derive_seed(*each) for each in numbers}) == 5


@pytest.mark.parametrize("print_freq", [1, 100])
def test_infinite_gradient_stops_the_run(print_freq):
    """At the next logged step, or before the next save."""
    with pytest.raises(UserError, match="^epoch 0, step [12]: loss or gradient is (inf|nan)"):
        train_epoch(10, 2, lr=1e38, print_freq=print_freq)


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_frozen_batch_norm_keeps_its_statistics(freeze_bn):
    torch.manual_seed(0)
    model = TemporalModel(4, 2, backbone="resnet14", dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = recipe(lr=0.01, momentum=0.9, weight_decay=0, freeze_bn=freeze_bn)
    train_model(model, make_optimizer(model, options), options, Clips(4, size=32), 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    statistics = {name for name, _ in model.named_buffers()}
    assert len(statistics) == 3 * 17  # mean, variance and counter
    assert changed == set(before) - (statistics if freeze_bn else set())
    # The rest of the model is in training: dropout is on.
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert [module for module in model.modules() if not module.training] == (norms if freeze_bn else [])


def make_evaluation(count, batch_size, should_stop=None):
    """Evaluate a model on noise clips; return the data, the model and the result."""
    torch.manual_seed(0)
    dataset, model = Clips(count, size=32), TemporalModel(4, 2, backbone="resnet14", dropout=0.5)
    loader = DataLoader(dataset, batch_sampler=evaluation_batches(range(count), batch_size))
    return dataset, model, evaluate(loader, Predictor(fuse(model, CPU), WORLD), WORLD, 1, should_stop)


def test_evaluation_scores_every_clip_in_order():
    dataset, model, result = make_evaluation(10, 4)
    assert result.scores.shape == (10, 4)
    assert np.array_equal(result.labels, dataset.labels)
    assert model.training  # the fused model is a copy
    model.eval()
    with torch.no_grad():
        expected = PixelModel(model)(torch.from_numpy(dataset.clips))
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)


def test_evaluation_stops_when_asked():
    signals = iter([0, 15])
    *_, result = make_evaluation(4, 1, lambda: next(signals))
    assert result is None
    assert list(signals) == []
