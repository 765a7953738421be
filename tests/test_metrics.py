"""utils/metrics.py: losses and accuracies, against values computed here."""

import math

import numpy as np
import pytest
import torch

from utils.distributed import World
from utils.metrics import ClipMeters, averages, batch_sums, summarise

WORLD = World(0, 1, [torch.device("cpu")])

# Four clips and three classes, worked out by hand below.
SCORES = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 0, 2, 0])


def test_summarise_by_hand():
    result = summarise(SCORES, LABELS)
    assert (result.prec1, result.prec5) == (75.0, 100.0)
    assert result.mean_class == 50.0  # class 0 is always right, class 2 never, class 1 has no clip
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


def test_top_5_counts_five_classes():
    scores = torch.arange(7.0).repeat(7, 1)  # class 6 first, class 0 last
    labels = torch.arange(7)
    assert summarise(scores, labels).prec5 == pytest.approx(100 * 5 / 7)
    assert batch_sums(torch.tensor(0.0), scores, labels).tolist()[1:] == [100, 500, 7]


def test_loss_is_summed_in_float64():
    # In float32 the small losses of many clips vanish beside a large one.
    scores = torch.zeros(20001, 2)
    scores[0, 1] = 1e6
    scores[1:, 0] = 8.0
    expected = (1e6 + 20000 * math.log1p(math.exp(-8))) / 20001
    assert summarise(scores, torch.zeros(20001, dtype=torch.long)).loss == pytest.approx(expected, rel=1e-12)


def test_clip_meters_average_over_clips():
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
    expected = {"loss": np.mean(losses), "prec1": np.mean(first), "prec5": np.mean(five)}
    assert averages(meters.totals) == pytest.approx(expected, rel=1e-12)
    last = {"loss": np.mean(losses[-2:]), "prec1": np.mean(first[-2:]), "prec5": np.mean(five[-2:])}
    assert averages(meters.last.tolist()) == pytest.approx(last, rel=1e-12)
    # A resumed epoch continues the sums to the last bit.
    assert ClipMeters(WORLD, meters.totals).totals == meters.totals
