"""hubconf.py: models for other programs, which may have modules with the names of this repository's."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from forked import REPOSITORY
from helpers import call, finish

from models import TemporalModel
from training.checkpoint import save_checkpoint

CLASSES = ["a", "b", "c"]

# The program imports its own modules before it loads a model, and still has them after that.
PROGRAM = """
import copy, io, pickle, sys
import models, utils, utils.cli
import torch

for name in ("torchvision", "PIL", "matplotlib", "tensorboardX", "filelock", "av"):
    sys.modules[name] = None  # only hubconf's dependencies are needed
clone, other, weights = sys.argv[1:]
path = list(sys.path)
def load(clone, **kwargs):
    return torch.hub.load(clone, "temporal_model", source="local", **kwargs)
small = {"arch": "resnet14", "num_segments": 2, "input_size": 32}
first = load(clone, **small)
second = load(clone, weights=weights)
assert type(first) is type(second)
assert second.categories == ["a", "b", "c"]
clips = torch.randn(1, 2, 3, 32, 32)
with torch.no_grad():
    logits = second(clips)
    assert logits.shape == (1, 3)
    assert torch.equal(copy.deepcopy(second)(clips), logits)
    assert torch.equal(pickle.loads(pickle.dumps(second))(clips), logits)

with open(f"{other}/models.py", "a") as file:
    file.write('''
def lazily():
    import utils.cli
    import utils.files as files
    from utils import distributed
    return utils.cli.UserError, files.staged, distributed.init_distributed
''')
third = load(other, **small)
assert type(third) is not type(second)
found = sys.modules[type(third).__module__].lazily()
home = type(third).__module__.partition(".")[0]
names = [f"{home}.utils.{name}" for name in ("cli", "files", "distributed")]
assert [each.__module__ for each in found] == names

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
    options = {"type": "GST", "arch": "resnet14", "alpha": 8, "beta": 1, "num_segments": 2, "input_size": 32}
    path = tmp_path / "weights.pth.tar"
    save_checkpoint(path, {"state_dict": model.state_dict(), "options": options, "categories": CLASSES})
    return path


@pytest.mark.slow
def test_program_keeps_its_modules(tmp_path, weights):
    """Also with a second clone, and with imports within functions."""
    clone, home = tmp_path / "clone", tmp_path / "program"
    clone.mkdir()
    packages = [file.parent for file in REPOSITORY.glob("*/__init__.py")]
    for path in [*REPOSITORY.glob("*.py"), REPOSITORY / "categories", *packages]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, clone / path.name)
    for name in ("models", "dataset", "utils/__init__", "utils/cli", "training/checkpoint"):
        file = home / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("MINE = True\n")
    (home / "program.py").write_text(PROGRAM)
    done = finish([sys.executable, home / "program.py", REPOSITORY, clone, weights], cwd=home)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def load(entry: str, **kwargs: object) -> torch.nn.Module:
    return torch.hub.load(str(REPOSITORY), entry, source="local", **kwargs)


def test_entries_have_published_values():
    with torch.device("meta"):
        for entry, beta, millions in (("gst_resnet50", 2, 21.04), ("gst_large_resnet50", 1, 29.52)):
            model = load(entry, num_segments=16)
            assert model.description == f"GST resnet50, alpha 4, beta {beta}"
            assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions
            assert (model.num_segments, model.input_size, model.training) == (16, 224, False)
        model = load("gst_resnet50", alpha=8, beta=1, num_segments=4, num_class=5, weights=None)
        assert (model.description, model.classifier.out_features) == ("GST resnet50, alpha 8, beta 1", 5)
        assert load("temporal_model", type="TSM", arch="resnet14").description == "TSM resnet14"


def test_configuration_is_read_from_weights(weights):
    model = load("temporal_model", weights=weights)
    assert model.description == "GST resnet14, alpha 8, beta 1"
    assert (model.num_segments, model.input_size, model.categories) == (2, 32, CLASSES)
    assert not model.training
    state_dict = torch.load(weights, weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state_dict[name])


@pytest.mark.parametrize(
    ("entry", "arguments", "culprit"),
    [
        ("temporal_model", {"num_segments": 8}, "num_segments 8"),
        ("temporal_model", {"alpha": 4}, "alpha 4"),
        ("temporal_model", {"num_class": 174}, "num_class 174"),
        ("gst_large_resnet50", {}, "arch resnet50"),
    ],
)
def test_contradiction_is_refused(weights, entry, arguments, culprit):
    with pytest.raises(ValueError, match=f"^{culprit} contradicts {weights}, "):
        load(entry, weights=weights, **arguments)


def test_wrong_weights_are_refused(tmp_path):
    missing, several = tmp_path / "missing.pth", tmp_path / "several.pth"
    torch.save(TemporalModel(3, 2, "TSM", "resnet14").state_dict(), several)
    for path, culprit in ((missing, "no such file"), (several, "C2D or TSM")):
        with pytest.raises(ValueError, match=culprit) as caught:
            load("temporal_model", weights=path)
        assert str(path) in str(caught.value)
    assert load("temporal_model", type="TSM", weights=several).description == "TSM resnet14"


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_features(dropout, tmp_path):
    torch.manual_seed(0)
    model = TemporalModel(3, 2, backbone="resnet14", input_size=32, dropout=dropout).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    clips = torch.randn(2, 2, 3, 32, 32)
    features = load("temporal_model", weights=tmp_path / "a.pth", features=True, num_segments=2)(clips)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(model.classifier(features), model(clips))


@pytest.mark.slow
def test_examples_of_the_docs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        shapes = TemporalModel(174, 8).state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in shapes.items()}, "bare.pth")
    options = ["--weights", "bare.pth", "--out", "gst.safetensors", "--num_segments", 8, "--input_size", 32]
    assert call("tools/convert_checkpoint.py", *options).returncode == 0
    text = (REPOSITORY / "docs" / "CHECKPOINTS.md").read_text(encoding="utf-8")
    examples = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    exec("\n".join(examples).replace("CLONE", str(REPOSITORY)), {})
    metadata, *answers = capsys.readouterr().out.splitlines()
    assert "'num_segments': 8" in metadata
    assert len(answers) == 5
    assert all(" -> " in line for line in answers)
