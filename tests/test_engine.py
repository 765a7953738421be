"""engine.py: the rate, the input, the figures, and the step, against values computed here."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import engine
from dataset import ClipSampler, evaluation_batches
from engine import autocast, derive_seed, evaluate, freeze_batch_norm, to_input, train_one_epoch
from models import TemporalModel, multiply_adds
from training.optim import learning_rate, make_optimizer
from utils.distributed import World
from utils.metrics import (
    AverageMeter,
    ClipMeters,
    DivergedError,
    LossWatch,
    averages,
    batch_sums,
    summarise,
)

CPU = torch.device("cpu")
WORLD = World(0, 1, [CPU])
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recipe(**changes):
    values = {
        "lr": 0.5,
        "lr_schedule": "step",
        "lr_steps": [50, 60],
        "warmup_epochs": 0.0,
        "epochs": 70,
        "seed": 3,
        "clip_gradient": 1e9,
        "print_freq": 1,
        "freeze_bn": False,
    }
    return Namespace(**values | changes)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.5), (49.99, 0.5), (50, 0.05), (59.5, 0.05), (60, 0.005), (69.9, 0.005)]
)
def test_step_rate(epoch, rate):
    assert learning_rate(recipe(), epoch) == pytest.approx(rate, rel=1e-12)
    # The order in which the steps are given is of no account.
    assert learning_rate(recipe(lr_steps=[60, 50]), epoch) == pytest.approx(rate, rel=1e-12)


def test_cosine_rate():
    options = recipe(lr_schedule="cosine", epochs=10)
    assert learning_rate(options, 0) == 0.5
    assert learning_rate(options, 2.5) == pytest.approx(0.25 * (1 + math.sqrt(0.5)))
    assert learning_rate(options, 5) == pytest.approx(0.25)
    assert learning_rate(options, 10) == pytest.approx(0, abs=1e-15)
    # After a warm-up, half a cosine over what is left.
    options = recipe(lr_schedule="cosine", epochs=10, warmup_epochs=2.0)
    assert learning_rate(options, 2) == 0.5
    assert learning_rate(options, 6) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_linearly_to_the_rate(schedule):
    options = recipe(lr_schedule=schedule, warmup_epochs=4.0)
    assert [learning_rate(options, epoch) for epoch in (0, 1, 2.5, 4)] == [0, 0.125, 0.3125, 0.5]


def test_to_input_normalises_each_channel_once():
    rng = np.random.default_rng(0)
    clips = torch.from_numpy(rng.integers(0, 256, size=(2, 3, 5, 4, 3), dtype=np.uint8))
    before = clips.clone()
    result = to_input(clips, TemporalModel(2, 3, backbone="resnet14"))
    assert (result.shape, result.dtype) == ((2, 3, 3, 5, 4), torch.float32)
    for channel in range(3):
        expected = (before[..., channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(result[:, :, channel].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(clips, before)  # a data set may hand out the same array again


def test_autocast_is_off_unless_asked_for():
    a = torch.ones(2, 2)
    for amp, dtype in (("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(amp, CPU):
            assert (a @ a).dtype == dtype


# Scores of four clips, worked out by hand below: three classes, so that top-5 has fewer to choose from.
SCORES = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 0, 2, 0])


def test_summarise_by_hand():
    result = summarise(SCORES, LABELS)
    assert (result.prec1, result.prec5) == (75.0, 100.0)
    assert result.mean_class == 50.0  # class 0 is right always, class 2 never, class 1 has no clip
    losses = [
        math.log(math.exp(2) + math.e + 1) - 2,
        math.log(math.exp(2) + math.e + 1) - 2,
        math.log(1 + math.exp(3) + math.e) - 1,
        math.log(math.exp(5) + 1 + math.e) - 5,
    ]
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert str(result) == f"Testing Results: Prec@1 75.000 Prec@5 100.000 Loss {sum(losses) / 4:.5f}"
    assert np.array_equal(result.scores, SCORES.numpy())
    assert np.array_equal(result.labels, LABELS.numpy())


def test_top_5_counts_the_fifth_class_and_not_the_sixth():
    scores = torch.arange(7.0).repeat(7, 1)  # class 6 first, class 0 last
    labels = torch.arange(7)
    assert summarise(scores, labels).prec5 == pytest.approx(100 * 5 / 7)
    totals = batch_sums(torch.tensor(0.0), scores, labels).tolist()
    assert totals[1:] == [100, 500, 7]


def test_the_loss_is_summed_with_float64():
    # In float32 the small losses of many clips vanish beside a large one.
    scores = torch.zeros(20001, 2)
    scores[0, 1] = 1e6
    scores[1:, 0] = 8.0
    expected = (1e6 + 20000 * math.log1p(math.exp(-8))) / 20001
    assert summarise(scores, torch.zeros(20001, dtype=torch.long)).loss == pytest.approx(expected, rel=1e-12)


def test_clip_meters_average_over_clips_of_unequal_batches():
    rng = np.random.default_rng(1)
    meters = ClipMeters(WORLD)
    losses, first, five = [], [], []
    for size in (7, 7, 7, 2):
        logits = torch.from_numpy(rng.normal(size=(size, 9)).astype(np.float32))
        labels = torch.from_numpy(rng.integers(9, size=size))
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
        meters.update(batch_sums(loss.sum(), logits, labels))
        ranks = [int((row > row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
        losses += loss.tolist()
        first += [100 * (rank == 0) for rank in ranks]
        five += [100 * (rank < 5) for rank in ranks]
    expected = (np.mean(losses), np.mean(first), np.mean(five))
    assert averages(meters.totals) == pytest.approx(expected, rel=1e-12)
    last = (np.mean(losses[-2:]), np.mean(first[-2:]), np.mean(five[-2:]))
    wanted = zip(("Loss", "Prec@1", "Prec@5"), (4, 3, 3), last, expected, strict=True)
    assert str(meters) == "\t".join(f"{name} {a:.{n}f} ({b:.{n}f})" for name, n, a, b in wanted)
    # A resumed epoch goes on from the sums to the last bit.
    assert ClipMeters(WORLD, meters.totals).totals == meters.totals


def test_clip_meters_do_not_lose_small_losses_of_a_long_epoch():
    meters = ClipMeters(WORLD, [2.0**25, 0.0, 0.0, 1.0])
    for _ in range(1000):
        meters.update(torch.tensor([1.0, 0, 0, 1], dtype=torch.float64))
    assert meters.totals[0] == 2.0**25 + 1000  # float32 would have stayed where it was


def test_average_meter():
    meter = AverageMeter()
    assert meter.avg == 0
    for value in (1.0, 2.0, 6.0):
        meter.update(value)
    assert (meter.val, meter.avg, str(meter)) == (6.0, 3.0, "6.000 (3.000)")


class Clips(Dataset):
    """Noise, as a data set gives it: uint8, frames x height x width x channel."""

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
    """A model without batch norm, which is what makes a step the sum of its clips alone."""

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


def train_epoch(count, batch_size, accumulate=1, first_step=0, epoch=0, dropout=0.0, bias_lr=1.0, **changes):
    """Train an epoch of noise clips; give the model, the meters and what was reported of its steps."""
    model = Linear(dropout)
    groups = [{"params": [model.fc.weight], "lr_mult": 1}, {"params": [model.fc.bias], "lr_mult": bias_lr}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    options = recipe(**{"lr": 0.1} | changes)
    return train_model(model, optimizer, options, Clips(count), batch_size, accumulate, first_step, epoch)


def train_model(model, optimizer, options, clips, batch_size, accumulate=1, first_step=0, epoch=0):
    sampler = ClipSampler(len(clips), batch_size, seed=5, accumulate=accumulate)
    sampler.start(epoch, first_step)
    loader = DataLoader(clips, batch_sampler=sampler)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    meters, watch = ClipMeters(WORLD), LossWatch()
    place = (epoch, sampler.batch_sizes(), first_step)
    steps = list(
        train_one_epoch(model, model, loader, optimizer, scaler, meters, watch, WORLD, options, "off", *place)
    )
    watch.check()
    done, reports = [step.done for step in steps], [step.curves for step in steps]
    return Namespace(model=model, meters=meters, reports=reports, done=done)


# The last step has batches of 3 and 1 clips (of 10, in steps of 6): were it the mean of the batches'
# means, its single clip would count three times as much as the others.
@pytest.mark.parametrize(("batch_size", "accumulate", "whole"), [(3, 2, 6), (4, 2, 8), (2, 3, 6)])
def test_accumulated_batches_make_the_step_of_one_large_batch(batch_size, accumulate, whole):
    parts, one = train_epoch(10, batch_size, accumulate), train_epoch(10, whole)
    assert parts.done == one.done == [1, 2]
    torch.testing.assert_close(parts.model.fc.weight, one.model.fc.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.model.fc.bias, one.model.fc.bias, rtol=0, atol=1e-6)
    assert parts.meters.totals == pytest.approx(one.meters.totals, rel=1e-6)
    assert parts.meters.totals[3] == 10
    assert not torch.allclose(train_epoch(10, batch_size).model.fc.weight, one.model.fc.weight, atol=1e-4)


def test_a_step_is_the_gradient_of_the_mean_over_its_clips():
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
    (values,) = run.reports
    assert values["train/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert values["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["train/lr"] == 0.1


def test_the_gradient_is_clipped_and_its_norm_reported_as_it_was():
    free, clipped = train_epoch(6, 6), train_epoch(6, 6, clip_gradient=0.01)
    start = Linear()
    moves = [
        torch.cat(
            [(new - old).flatten() for new, old in zip(run.parameters(), start.parameters(), strict=True)]
        )
        for run in (free.model, clipped.model)
    ]
    assert moves[1].norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert torch.allclose(moves[1] / moves[1].norm(), moves[0] / moves[0].norm(), atol=1e-4)
    assert clipped.reports[0]["train/gradient_norm"] == free.reports[0]["train/gradient_norm"] > 0.01


def test_the_rate_follows_the_schedule_within_the_epoch():
    run = train_epoch(8, 2, epoch=1, warmup_epochs=2.0, lr=0.8)
    assert run.done == [1, 2, 3, 4]
    assert [values["train/lr"] for values in run.reports] == pytest.approx([0.4, 0.5, 0.6, 0.7])
    names = ("loss", "prec1", "prec5", "lr", "gradient_norm", "step_time", "data_time", "clips_per_second")
    for values in run.reports:
        assert set(values) == {f"train/{name}" for name in names}
        assert values["train/clips_per_second"] > 0


def test_training_can_begin_within_an_epoch():
    run = train_epoch(8, 2, first_step=3)
    assert (run.done, run.meters.totals[3]) == ([4], 2)


def test_dropout_depends_on_seed_epoch_and_step_alone():
    def losses(**how):
        torch.rand(how.pop("drawn", 0))  # numbers that something else drew must not matter
        return [values["train/loss"] for values in train_epoch(4, 4, dropout=0.5, lr=1e-12, **how).reports]

    torch.manual_seed(0)
    assert losses() == losses(drawn=7)
    assert losses() != losses(seed=4)
    assert losses() != losses(epoch=1)  # one batch of all clips: only the mask, not the clips, differs
    # Seed, epoch, step and rank each matter, and in their place.
    numbers = ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 1))
    assert len({derive_seed(*each) for each in numbers}) == 5


def test_lines_are_logged_every_so_many_steps(capsys):
    run = train_epoch(10, 2, print_freq=2)
    assert [bool(values) for values in run.reports] == [True, False, True, False, True]
    assert run.done == [1, 2, 3, 4, 5]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"Epoch: [0][{step}/5]" for step in (0, 2, 4)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step(bad):
    watch = LossWatch()
    watch.check()  # nothing to look at
    watch.add(0, torch.tensor(1.0))
    watch.check()
    watch.add(1, torch.tensor(2.0))
    watch.add(2, torch.tensor(bad))
    watch.add(3, torch.tensor(math.nan))
    with pytest.raises(DivergedError, match="^step 2: loss or gradient is (nan|inf|-inf)$") as stop:
        watch.check()
    assert stop.value.step == 2  # the first one
    assert str(stop.value.loss) == str(bad)
    with pytest.raises(DivergedError):  # nor is it forgotten when the next one asks, who would save
        watch.check()


def test_the_watch_looks_at_a_loss_once():
    watch = LossWatch()
    watch.add(0, torch.tensor(1.0))
    watch.check()
    assert watch.pending == []


@pytest.mark.parametrize("print_freq", [1, 100])
def test_a_gradient_that_is_not_finite_stops_the_run(print_freq):
    """At the next logged step, or when the watch is asked."""
    with pytest.raises(DivergedError) as stop:
        train_epoch(10, 2, lr=1e38, print_freq=print_freq)
    assert stop.value.step in (1, 2)
    assert not math.isfinite(stop.value.loss)


def frozen_or_not(freeze_bn):
    """A model's tensors before and after an epoch of two steps, and the model."""
    torch.manual_seed(0)
    model = TemporalModel(4, 2, backbone="resnet14", dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = recipe(lr=0.01, momentum=0.9, weight_decay=0, freeze_bn=freeze_bn)
    train_model(model, make_optimizer(model, options), options, Clips(4, size=32), 2)
    buffers = {name for name, _ in model.named_buffers()}
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return model, buffers, changed, set(before) - buffers


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_weights():
    model, buffers, changed, weights = frozen_or_not(freeze_bn=True)
    assert len(buffers) == 3 * 17  # mean, variance and counter
    assert changed == weights
    # The rest of the model is in training: dropout is on.
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert [module for module in model.modules() if not module.training] == norms
    _, buffers, changed, weights = frozen_or_not(freeze_bn=False)
    assert changed == weights | buffers


def test_any_batch_norm_is_frozen_and_nothing_else():
    model = nn.Sequential(nn.BatchNorm3d(3), nn.Dropout(), nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU()))
    freeze_batch_norm(model)
    assert [
        module.training for module in (model, model[0], model[1], model[2], model[2][0], model[2][1])
    ] == [*(True, False, True, True, False, True)]


@pytest.mark.parametrize("dropout", [0, 0.5])
def test_multiply_adds_are_counted_for_the_models_own_clips(dropout):
    model = TemporalModel(5, 3, backbone="resnet14", input_size=64, dropout=dropout, alpha=8, beta=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 3, 64, 64))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert multiply_adds(model) == counter.get_total_flops() / 2
    # It is as it was.
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("batch_size", [4, 7, 100])
def test_evaluation_scores_every_clip_once_in_the_order_of_the_list(batch_size):
    torch.manual_seed(0)
    dataset, model = Clips(10, size=32), TemporalModel(4, 2, backbone="resnet14", dropout=0.5)
    model.train()  # evaluation must switch dropout off itself, and leave the model as it is
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = DataLoader(dataset, batch_sampler=evaluation_batches(range(10), batch_size))
    result = evaluate(loader, model, WORLD, "off", 1)
    assert result.scores.shape == (10, 4)
    assert np.array_equal(result.labels, dataset.labels)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        for clip, scores in zip(dataset.clips, result.scores, strict=True):
            expected = model(to_input(torch.from_numpy(clip[None]), model))[0]
            np.testing.assert_allclose(scores, expected, atol=1e-5)
    again = summarise(torch.from_numpy(result.scores), torch.from_numpy(dataset.labels))
    assert (again.prec1, again.loss) == (result.prec1, result.loss)


class Asking:
    """Stands for an `Interruption`: gives a signal's number, or 0, whenever it is looked at."""

    def __init__(self, look):
        self.look = look

    @property
    def number(self):
        return self.look()


def test_evaluation_gives_up_when_asked_to():
    dataset, model = Clips(4, size=32), TemporalModel(4, 2, backbone="resnet14")
    loader = DataLoader(dataset, batch_sampler=evaluation_batches(range(4), 1))
    asked = iter([0, 15])
    assert evaluate(loader, model, WORLD, "off", 1, Asking(lambda: next(asked))) is None
    assert list(asked) == []
    looked = []
    assert evaluate(loader, model, WORLD, "off", 1, Asking(lambda: looked.append(0) or 0)).prec5 == 100
    assert len(looked) == 4


def test_evaluation_keeps_float32_from_being_rounded_on_a_gpu_and_training_as_it_was():
    dataset, model = Clips(1, size=32), TemporalModel(4, 2, backbone="resnet14")
    loader = DataLoader(dataset, batch_sampler=evaluation_batches(range(1), 1))
    allowed = torch.backends.cudnn.allow_tf32
    look = Asking(lambda: int(torch.backends.cudnn.allow_tf32))
    assert evaluate(loader, model, WORLD, "off", 1, look)
    assert torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("compiled", [False, True])
def test_evaluation_compiles_its_own_copy_and_only_if_asked_to(monkeypatch, compiled):
    dataset, model = Clips(1, size=32), TemporalModel(4, 2, backbone="resnet14")
    loader = DataLoader(dataset, batch_sampler=evaluation_batches(range(1), 1))
    seen = []
    monkeypatch.setattr(engine, "compile_model", seen.append)
    evaluate(loader, model, WORLD, "off", 1, compiled=compiled)
    assert len(seen) == compiled
    assert model not in seen
