"""hubconf.py: models for other programs, whose own modules may have the names of this repository's."""

import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from forked import REPOSITORY
from helpers import Hostile, finish

from models import TemporalModel
from training.checkpoint import save_checkpoint

SMALL = {"arch": "resnet14", "num_segments": 2, "input_size": 32}
CLASSES = ["a", "b", "c"]

# What the program has before it loads a model, and after that.
BEFORE = """
import copy, io, pickle, sys
import models, utils, utils.cli
import torch

def load(clone, *args, **kwargs):
    return torch.hub.load(clone, *args, source="local", **kwargs)

clone, other, weights = sys.argv[1:]
small = {"arch": "resnet14", "num_segments": 2, "input_size": 32}
path = list(sys.path)
"""
AFTER = """
assert sys.path == path
import dataset, training.checkpoint
for module in (models, utils, utils.cli, training.checkpoint, dataset):
    assert module.MINE and sys.modules[module.__name__] is module
assert not {"gst", "opts", "resnet_gst", "hubconf"} & sys.modules.keys()
print("ok")
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of a small GST with random weights and three classes."""
    torch.manual_seed(0)
    model = TemporalModel(3, 2, backbone="resnet14", alpha=8, beta=1, input_size=32)
    options = {"type": "GST", "alpha": 8, "beta": 1} | SMALL
    path = tmp_path / "weights.pth.tar"
    save_checkpoint(path, {"state_dict": model.state_dict(), "options": options, "categories": CLASSES})
    return path


def copied(clone: Path) -> Path:
    """A copy of what hubconf.py needs."""
    for package in REPOSITORY.glob("*/__init__.py"):
        folder = package.parent
        shutil.copytree(folder, clone / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "categories", clone / "categories")
    for file in REPOSITORY.glob("*.py"):
        shutil.copy(file, clone)
    return clone


def run_with_own_modules(folder: Path, code: str, weights: Path) -> CompletedProcess[str]:
    """Run code in a program whose modules have the names of ours.

    Args:
        folder: for the program, and for a clone that it can load besides this one.
        code: what it does between `BEFORE` and `AFTER`.
        weights: a checkpoint.
    """
    home = folder / "program"
    (home / "utils").mkdir(parents=True)
    for name in ("models", "dataset", "utils/__init__", "utils/cli", "training/checkpoint"):
        (home / f"{name}.py").write_text("MINE = True\n")
    (home / "program.py").write_text(BEFORE + code + AFTER)
    command = [sys.executable, home / "program.py", REPOSITORY, copied(folder / "clone"), weights]
    return finish(command, cwd=home)


def test_a_program_keeps_its_own_modules(tmp_path, weights):
    code = """
for name in ("torchvision", "PIL", "matplotlib", "tensorboardX", "filelock", "av"):
    sys.modules[name] = None  # only hubconf's dependencies are needed
first = load(clone, "temporal_model", **small)
import utils.cli as again
assert again.MINE
second = load(clone, "temporal_model", weights=weights)
assert type(first) is type(second)
assert second.categories == ["a", "b", "c"]
clips = torch.randn(1, 2, 3, 32, 32)
with torch.no_grad():
    logits = second(clips)
    assert logits.shape == (1, 3)
    twin = copy.deepcopy(second)
    twin.load_state_dict(second.state_dict())
    assert torch.equal(twin(clips), logits)
    assert torch.equal(pickle.loads(pickle.dumps(second))(clips), logits)
"""
    done = run_with_own_modules(tmp_path, code, weights)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_imports_inside_functions_and_a_second_clone(tmp_path, weights):
    code = """
with open(f"{other}/models.py", "a") as file:
    file.write('''
def lazily():
    import utils.cli
    import utils.files as files
    from utils import distributed
    return utils.cli.UserError, files.staged, distributed.init_distributed
''')
first = load(clone, "temporal_model", **small)
second = load(other, "temporal_model", **small)
assert type(first) is not type(second)
found = sys.modules[type(second).__module__].lazily()
home = type(second).__module__.partition(".")[0]
names = [f"{home}.utils.{name}" for name in ("cli", "files", "distributed")]
assert [each.__module__ for each in found] == names
"""
    done = run_with_own_modules(tmp_path, code, weights)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def load(entry: str, **kwargs: object) -> torch.nn.Module:
    return torch.hub.load(str(REPOSITORY), entry, source="local", **kwargs)


def test_entries_build_the_published_models():
    with torch.device("meta"):
        for entry, beta, millions in (("gst_resnet50", 2, 21.04), ("gst_large_resnet50", 1, 29.52)):
            model = load(entry, num_segments=16)
            assert model.description == f"GST resnet50, alpha 4, beta {beta}"
            assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions
            assert (model.num_segments, model.input_size, model.training) == (16, 224, False)
        model = load("gst_resnet50", alpha=8, beta=1, num_segments=4, num_class=5, weights=None)
        assert (model.description, model.classifier.out_features) == ("GST resnet50, alpha 8, beta 1", 5)
        assert load("temporal_model", type="TSM", arch="resnet14").description == "TSM resnet14"


def test_weights_say_what_the_model_is(weights, tmp_path):
    model = load("temporal_model", weights=weights)
    saved = torch.load(weights, weights_only=True)
    assert (model.description, model.num_segments, model.input_size) == (
        "GST resnet14, alpha 8, beta 1",
        2,
        32,
    )
    assert (model.categories, model.training) == (CLASSES, False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name])


def test_a_released_file_does_not_say_the_frames(weights, tmp_path):
    state_dict = torch.load(weights, weights_only=True)["state_dict"]
    released = tmp_path / "released.pth.tar"
    state_dict = {f"module.{name}": value for name, value in state_dict.items()}
    torch.save({"epoch": 3, "state_dict": state_dict, "best_prec1": torch.tensor(50.0)}, released)
    model = load("temporal_model", weights=released, num_segments=2, input_size=32)
    assert (model.description, model.categories) == ("GST resnet14, alpha 8, beta 1", None)
    clips = torch.randn(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(clips), load("temporal_model", weights=weights)(clips))
    model = load("temporal_model", weights=released)
    assert (model.num_segments, model.input_size) == (8, 224)


@pytest.mark.parametrize(
    ("entry", "given", "words"),
    [
        ("temporal_model", {"num_segments": 8}, "num_segments 8 contradicts FILE, which has num_segments 2"),
        ("temporal_model", {"alpha": 4}, "alpha 4 contradicts FILE, which has alpha 8"),
        ("temporal_model", {"num_class": 174}, "num_class 174 contradicts FILE, which has 3"),
        ("gst_large_resnet50", {}, "arch resnet50 contradicts FILE, which has arch resnet14"),
    ],
)
def test_an_argument_that_contradicts_the_weights_is_refused(weights, entry, given, words):
    with pytest.raises(ValueError) as caught:
        load(entry, weights=weights, **given)
    assert str(caught.value) == words.replace("FILE", str(weights))


def test_weights_that_cannot_be_loaded_are_refused(tmp_path):
    missing, hostile, open_type = (tmp_path / name for name in ("missing.pth", "hostile.pth", "open.pth"))
    torch.save({"state_dict": Hostile(tmp_path / "ran")}, hostile)
    torch.save(TemporalModel(3, 2, "TSM", "resnet14").state_dict(), open_type)
    for path, words in (
        (missing, "no such file"),
        (hostile, "would run code"),
        (open_type, "its tensors may be of C2D or TSM; give type"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            load("temporal_model", weights=path)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert load("temporal_model", type="TSM", weights=open_type).description == "TSM resnet14"
    with pytest.raises(ValueError, match="arch resnet7 is not one of"):
        load("temporal_model", arch="resnet7")


def test_the_examples_of_the_docs(tmp_path):
    """As a student runs them; the model is random, so the answers are, too."""
    state_dict = TemporalModel(174, 8).state_dict()
    torch.save(state_dict, tmp_path / "bare.pth")
    command = [sys.executable, REPOSITORY / "tools" / "convert_checkpoint.py", "--weights", "bare.pth"]
    command += ["--out", "gst.safetensors", "--num_segments", 8]
    assert finish(command, cwd=tmp_path).returncode == 0
    text = (REPOSITORY / "docs" / "CHECKPOINTS.md").read_text(encoding="utf-8")
    examples = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    done = finish([sys.executable, "-c", "\n".join(examples).replace("CLONE", str(REPOSITORY))], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metadata, *answers = done.stdout.splitlines()
    assert "'num_segments': 8" in metadata
    assert len(answers) == 5
    assert all(" -> " in line for line in answers)
    for file in ("bare.pth", "gst.safetensors"):
        (tmp_path / file).unlink()
