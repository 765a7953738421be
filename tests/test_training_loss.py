"""training/loss.py: label smoothing, class weights and mixup, against values computed here."""

import numpy as np
import pytest
import torch
from test_engine import train_epoch
from torch.nn import functional

import engine
from classes import NEVER
from frames.resize import DecodedClips, resize_clips
from training.loss import TrainingLoss, find_class_weights
from utils.cli import UserError

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.3, -1.0], [2.0, 0.1, 0.2]])
LABELS = torch.tensor([2, 0, 1])


def total(criterion, labels=LABELS):
    return float(criterion(LOGITS, [(labels, 1.0)]))


def test_default_is_cross_entropy():
    clips = torch.zeros(3, 1, 2, 2, 3, dtype=torch.uint8)
    criterion = TrainingLoss()
    mixed, targets = criterion.mix(clips, LABELS)
    assert mixed is clips
    assert torch.equal(criterion(LOGITS, targets), functional.cross_entropy(LOGITS, LABELS, reduction="sum"))


def test_label_smoothing():
    targets = 0.8 * functional.one_hot(LABELS, 3) + 0.2 / 3
    expected = float(-(targets * LOGITS.log_softmax(1)).sum())
    assert total(TrainingLoss(label_smoothing=0.2)) == pytest.approx(expected)


def test_class_weights():
    losses = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    expected = float(losses @ torch.tensor([4.0, 0.5, 1.0]))  # of the labels 2, 0, 1
    assert total(TrainingLoss(class_weights=[0.5, 1.0, 4.0])) == pytest.approx(expected)


def mix(seed, clips, alpha=1.0):
    torch.manual_seed(seed)
    return TrainingLoss(mixup=alpha).mix(clips, LABELS)


def test_mixup_mixes_clips_and_labels_alike():
    clips = torch.randint(256, (3, 2, 4, 4, 3), dtype=torch.uint8)
    mixed, targets = mix(0, clips)
    (labels, share), (others, rest) = targets
    assert 0.05 < share < 0.95
    assert share + rest == pytest.approx(1)
    assert (labels.tolist(), others.tolist()) == ([2, 0, 1], [1, 2, 0])
    for number, other in ((0, 2), (1, 0), (2, 1)):
        expected = share * clips[number].double() + rest * clips[other].double()
        assert (mixed[number].double() - expected).abs().max() <= 0.51
    soft = share * functional.one_hot(labels, 3) + rest * functional.one_hot(others, 3)
    loss = TrainingLoss(mixup=1.0)(LOGITS, targets)
    torch.testing.assert_close(loss, functional.cross_entropy(LOGITS, soft, reduction="sum"))
    # The seed alone decides.
    assert torch.equal(mix(0, clips)[0], mixed)
    assert mix(1, clips)[1][0][1] != share


def test_mixup_resizes_decoded_clips():
    pixels = torch.randint(256, (3 * 2 * 20 * 30 * 3,), dtype=torch.uint8)
    shapes = np.array([(number * 2 * 20 * 30 * 3, 2, 20, 30) for number in range(3)])
    views = np.array([[(0, 0, 30, 20, 24, 16, 4, 0, 0)]] * 3)
    decoded = DecodedClips(pixels, shapes, np.array([[0, 1]] * 3), views, 16, 2)
    assert torch.equal(mix(0, decoded)[0], mix(0, resize_clips(decoded))[0])


def test_training_mixes_clips_and_labels(monkeypatch):
    plain = train_epoch(6, 6).model
    monkeypatch.setattr(engine, "TrainingLoss", lambda: TrainingLoss(mixup=1.0))
    mixed, again, other = (train_epoch(6, 6, seed=seed).model for seed in (3, 3, 4))
    torch.testing.assert_close(mixed.fc.weight, again.fc.weight, rtol=0, atol=0)
    for model in (plain, other):
        assert not torch.equal(mixed.fc.weight, model.fc.weight)
        assert not torch.equal(mixed.fc.bias, model.fc.bias)


CATEGORIES = ["left", "right", "up", "never"]


def test_balanced_weights():
    """Half of the clips are mirrored, so that mirrored classes have the same number of clips."""
    labels = np.repeat([0, 1, 2], [6, 2, 1])
    weights = find_class_weights("balanced", labels, CATEGORIES, [1, 0, 2, NEVER])
    assert weights == pytest.approx([9 / (3 * 4), 9 / (3 * 4), 9 / 3, 0])
    # Without pairs, a class's clips count together as much as those of any other class.
    weights = np.array(find_class_weights("balanced", labels, CATEGORIES, [0, 1, 2, NEVER]))
    assert (weights * [6, 2, 1, 0]).tolist() == pytest.approx([3, 3, 3, 0])
    assert find_class_weights(None, labels, CATEGORIES, [0, 1, 2, NEVER]) is None


def test_class_weights_from_a_file(tmp_path):
    path = tmp_path / "weights.txt"
    path.write_text("up 2.5\nleft\t.5\n\n")
    assert find_class_weights(str(path), np.zeros(1, int), CATEGORIES, [0, 1, 2, 3]) == [0.5, 1, 2.5, 1]


@pytest.mark.parametrize("line", ["down 2", "up", "up x", "up -1", "up nan"])
def test_wrong_line_of_class_weights(tmp_path, line):
    path = tmp_path / "weights.txt"
    path.write_text(f"left 1\n{line}\n")
    with pytest.raises(UserError, match=r"weights.txt, line 2"):
        find_class_weights(str(path), np.zeros(1, int), CATEGORIES, [0, 1, 2, 3])
