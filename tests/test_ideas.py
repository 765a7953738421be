"""Options for ideas and for unbalanced data, from the outside; and docs/IDEAS.md."""

import re
import shutil
import sys
from argparse import Namespace

import helpers
import numpy as np
import pytest
import torch
from helpers import REPOSITORY, assert_one_line_error, run, small_run
from resume_harness import NAME, differences
from synthetic import make_dataset

import engine
import hubconf
import loader
import opts
import transforms
from baselines import S3DBottleneck
from classes import describe_balance
from gst import GSTBottleneck
from inference.export import Exported
from inference.load import NO_OPTIONS, load_model
from models import BLOCKS, TemporalModel
from training.pretrained import load_pretrained
from utils.cli import UserError
from utils.metrics import Result

ALL = ("--label_smoothing", 0.1, "--mixup", 0.4, "--class_weights", "balanced", "--freeze", "stem,layer1")
ALL += ("--consensus", "max", "--best", "mean_class")


def call(*args):
    process = helpers.call("main.py", *args)
    assert process.returncode == 0, process.stderr
    return process


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_resume_is_bit_exact_with_all_options(trn_root, tmp_path):
    """From a step within the second epoch. What is frozen stays as it was, statistics included."""
    options = (*ALL, "-b", 5, "--lr", 0.002, "--epochs", 2)
    whole, part = tmp_path / "whole", tmp_path / "part"
    process = call(*small_run(trn_root, whole, *options, "--save-freq", 1, "--keep", 9))
    assert "--freeze" in process.stderr  # the weights are random
    assert "frozen: stem, layer1" in process.stdout
    files = (whole / "checkpoint").glob(f"{NAME}_max_checkpoint.pth.tar*")
    by_step = {(content["epoch"], content["step"]): path for path in files for content in [load(path)]}
    call(*small_run(trn_root, part, *options, "--resume", by_step[1, 1]))
    content, resumed = (load(out / "checkpoint" / f"{NAME}_max_checkpoint.pth.tar") for out in (whole, part))
    for key in ("state_dict", "optimizer", "history", "best_mean_class"):
        assert differences(content[key], resumed[key]) == []
    assert {
        name: content["options"][name] for name in ("freeze", "mixup", "label_smoothing", "consensus")
    } == {
        "freeze": ["stem", "layer1"],
        "mixup": 0.4,
        "label_smoothing": 0.1,
        "consensus": "max",
    }
    torch.manual_seed(0)
    start = TemporalModel(4, 4, backbone="resnet14", input_size=32).state_dict()
    unchanged = {name for name, value in content["state_dict"].items() if torch.equal(value, start[name])}
    frozen = ("base_model.conv1.", "base_model.bn1.", "base_model.layer1.")
    assert unchanged == {name for name in start if name.startswith(frozen)}

    process = call(*small_run(trn_root, whole, *options, "--resume", "auto"))
    assert "finished: 2 of 2 epochs" in process.stdout


def test_best_checkpoint_by_metric(trn_root, tmp_path, monkeypatch):
    """The first epoch has the better top-1, the second the better mean class accuracy."""
    results = [
        Result(np.zeros((6, 4)), np.zeros(6, int), prec1, 100.0, mean_class, 1.0, {})
        for prec1, mean_class in ((60.0, 25.0), (50.0, 40.0))
    ]
    monkeypatch.setattr(engine, "evaluate", lambda *args: results.pop(0))
    process = call(*small_run(trn_root, tmp_path, "-b", 8, "--epochs", 2, "--best", "mean_class"))
    assert load(tmp_path / "checkpoint" / f"{NAME}_best.pth.tar")["epoch"] == 2
    assert "Mean class accuracy 40.000" in process.stdout
    last = process.stdout.splitlines()[-1]
    assert last.startswith("best checkpoint, mean class accuracy 40.000 (epoch 1): ")


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("--dataset mine --epochs 20", [14, 17]),
        ("--dataset mine --epochs 20 --lr_steps 50 60", [50, 60]),
        ("--dataset somethingv1 --epochs 20", [50, 60]),
    ],
)
def test_lr_steps_follow_epochs(words, steps):
    args = opts.parse_training_options(words.split())
    assert args.lr_steps == steps
    if "mine" in words:
        assert f"--lr_steps {steps[0]} {steps[1]}" in opts.describe_recipe(args)[0]


def test_balance_of_classes():
    names = ["walk", "run", "jump"]
    line, warning = describe_balance(names, np.array([0, 1, 1, 1]), np.array([1, 2]))
    assert ("'run', 75.0 %" in line, "50.0 %" in line) == (True, True)
    assert warning == "warning: no training clips of 'jump'"
    assert describe_balance(names, np.array([0, 1, 2]), np.array([0]))[1] == ""
    assert "same class, 'run'" in describe_balance(names, np.array([1, 1]), np.array([0]))[1]


class Gated(GSTBottleneck):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = torch.nn.Parameter(torch.zeros(()))


class Shifted(S3DBottleneck):
    """Its temporal convolution starts as the identity."""


@pytest.mark.parametrize(
    ("block", "new", "old"),
    [
        (Gated, "new: 4 gate;", "only in the file: none"),
        (Shifted, "4 conv2_t.weight", "only in the file: 4 Tconv.weight, 4 conv2"),
    ],
)
def test_new_type_starts_from_gst(tmp_path, monkeypatch, capsys, block, new, old):
    monkeypatch.setitem(BLOCKS, "New", block)
    torch.manual_seed(0)
    source = TemporalModel(3, 4, backbone="resnet14")
    content = {"state_dict": source.state_dict(), "categories": ["a", "b", "c"]}
    content["options"] = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2}
    torch.save(content, tmp_path / "gst.pth")
    model = TemporalModel(3, 4, "New", backbone="resnet14")
    args = Namespace(pretrained=str(tmp_path / "gst.pth"), arch="resnet14", type="New", alpha=4, beta=2)
    assert load_pretrained(model, args, ["c", "a", "b"]) is False
    line = capsys.readouterr().out
    assert (new in line, old in line) == (True, True)
    loaded, start = model.state_dict(), source.state_dict()
    names = [name for name in start if name in loaded and start[name].shape == loaded[name].shape]
    assert len(names) > 80
    assert [name for name in names if "fc" not in name and not torch.equal(loaded[name], start[name])] == []
    assert torch.equal(loaded["new_fc.bias"], start["new_fc.bias"][[2, 0, 1]])
    if block is Shifted:
        kernel = loaded["base_model.layer1.0.conv2_t.weight"]
        assert torch.equal(kernel, torch.nn.init.dirac_(torch.empty_like(kernel)))


def grey_sometimes(frames, label, rng):
    if rng.random() < 0.1:
        frames = [frame.convert("L").convert("RGB") for frame in frames]
    return frames, label


def test_colour_augmentation_and_resize(trn_root, tmp_path, monkeypatch):
    published = transforms.training_transform

    def with_grey(*args):
        return transforms.Compose(grey_sometimes, published(*args))

    assert not transforms.needs_pixels(published(224, [0]))
    monkeypatch.setattr(loader, "training_transform", with_grey)
    process = helpers.call("main.py", *small_run(trn_root, tmp_path, "--resize", "device"))
    assert_one_line_error(process, "--resize device", "--resize workers")
    assert "Epoch" not in process.stdout
    monkeypatch.setattr(loader, "decodes_only", lambda resize, device: resize != "workers")  # as on a GPU
    assert "the workers resize" in call(*small_run(trn_root, tmp_path / "gpu")).stdout


def test_every_program_uses_the_consensus(tmp_path):
    torch.manual_seed(0)
    model = TemporalModel(3, 4, "C2D", backbone="resnet14", consensus="max").eval()
    torch.nn.init.normal_(model.new_fc.weight)
    options = {"type": "C2D", "arch": "resnet14", "num_segments": 4, "consensus": "max"}
    path = tmp_path / "max.pth"
    torch.save({"state_dict": model.state_dict(), "options": options, "categories": ["a", "b", "c"]}, path)
    clips = torch.randn(2, 4, 3, 64, 64)
    clean = tmp_path / "clean.pth"
    assert helpers.call("tools/convert_checkpoint.py", "--weights", path, "--out", clean).returncode == 0
    loaded = [load_model(file).model for file in (path, clean)]
    with torch.inference_mode():
        expected = model(clips)
        for other in (*loaded, hubconf.temporal_model(weights=path), Exported(model)):
            torch.testing.assert_close(other(clips), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="--consensus mean contradicts"):
        load_model(path, Namespace(**vars(NO_OPTIONS), consensus="mean"))
    torch.save(load(path) | {"options": options | {"consensus": "median"}}, path)
    with pytest.raises(UserError, match=r"max.pth: consensus median"):
        load_model(path)


# docs/IDEAS.md


def apply_changes(page, folder):
    """Apply the changes of a page to a copy of the code, and return their number."""
    changes = re.findall(r"(?:Append to|In) `(\S+)`:\n\n```(python|diff)\n(.*?)```", page, re.DOTALL)
    for file, kind, text in changes:
        code = (folder / file).read_text()
        if kind == "python":
            code += f"\n\n{text}"
        for hunk in text.split("@@\n") if kind == "diff" else []:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
            assert code.count(old) == 1, hunk
            code = code.replace(old, new)
        (folder / file).write_text(code)
    return len(changes)


@pytest.mark.slow
def test_page_of_ideas(tmp_path):
    code = tmp_path / "code"
    shutil.copytree(REPOSITORY, code, ignore=shutil.ignore_patterns(".*", "tests", "docs", "runs", "demo"))
    assert apply_changes((REPOSITORY / "docs" / "IDEAS.md").read_text(encoding="utf-8"), code) == 7
    root = make_dataset(tmp_path / "data")
    ideas = ("--type", "Gated", "--consensus", "logsumexp", "--mixup", 0.2)
    options = small_run(root, tmp_path / "out", *ideas, "-b", 8)
    trained = run(code / "main.py", *options)
    assert trained.returncode == 0, trained.stderr
    loss = float(re.search(r"Epoch: \[0\]\[0/1\].*?Loss (\S+)", trained.stdout)[1])
    assert loss == pytest.approx(0.75**2 * np.log(4), rel=0.02)  # of equal scores
    (weights,) = (tmp_path / "out" / "checkpoint").glob("*_logsumexp_best.pth.tar")
    evaluation = ["--dataset", "somethingv1", "--root_path", root, "-j", 0, "--weights", weights]
    tested = run(code / "test_models.py", *evaluation)
    assert "consensus logsumexp" in tested.stdout
    result = re.search(r"Testing Results: .*", trained.stdout)[0]
    assert result in tested.stdout.splitlines()

    sys.path.insert(0, str(code))
    grey = {}
    exec((code / "transforms.py").read_text(), grey)
    frames = [transforms.Image.new("RGB", (40, 40), (200, 10, 60))]
    seen = {
        tuple(grey["GroupRandomGrayscale"]()(frames, 0, np.random.default_rng(seed))[0][0].getpixel((0, 0)))
        for seed in range(20)
    }
    sys.path.remove(str(code))
    assert len(seen) == 2
