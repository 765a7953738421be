"""training/checkpoint.py and describe.py: save, rotate, load, describe, refuse what is damaged."""

import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from helpers import Hostile, files_limited_to

from classes import released_categories
from models import TemporalModel
from training.checkpoint import (
    all_checkpoints,
    load_checkpoint,
    load_newest,
    load_weights,
    read_pretrained,
    save_checkpoint,
)
from training.describe import (
    check_categories,
    describe_model,
    find_labels,
    find_mirrored,
)
from utils.cli import UserError

STATE = {
    "base_model.conv1.weight": torch.arange(24.0).view(2, 3, 4),
    "base_model.layer1.0.conv1.weight": torch.ones(3),
    "new_fc.bias": torch.tensor([0.5, -1.0]),
}
OPTIONS = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "input_size": 32}


def refusal(call: Callable, *args: object) -> str:
    """The message of the UserError that a call raises: one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def gst_state(classes: int = 4, dropout: float = 0.5, **kwargs: object) -> dict[str, torch.Tensor]:
    """A GST model's tensors without data."""
    with torch.device("meta"):
        return TemporalModel(classes, 4, dropout=dropout, **{"backbone": "resnet14"} | kwargs).state_dict()


def save_epochs(path: Path, number: int, keep: int) -> None:
    for epoch in range(number):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE, "options": OPTIONS}, keep)


# Which files load


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_all_forms_load(tmp_path, is_zip, prefix):
    state_dict = prefixed(prefix)
    wrapper = {"epoch": 70, "arch": "resnet50", "state_dict": state_dict, "best_prec1": torch.tensor(47.5)}
    forms = (
        (state_dict, {}),
        (wrapper, {"epoch": 70, "best_prec1": 47.5}),
        ({"state_dict": state_dict, "options": OPTIONS}, {"options": OPTIONS}),
    )
    for saved, expected in forms:
        torch.save(saved, tmp_path / "any.name", _use_new_zipfile_serialization=is_zip)
        content = load_checkpoint(tmp_path / "any.name")
        assert_same_tensors(content.pop("state_dict"), STATE)
        assert content == expected
        assert isinstance(content.get("best_prec1", 0.0), float)


def test_safetensors_load(tmp_path):
    safetensors.torch.save_file(prefixed("module."), tmp_path / "a")
    (state_dict,) = load_checkpoint(tmp_path / "a").values()
    assert_same_tensors(dict(sorted(state_dict.items())), STATE)


def prefixed(prefix: str, state_dict: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return OrderedDict((prefix + name, value) for name, value in state_dict.items())


RESNET = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}
# Files of other training code: their content, and the tensors that are taken.
OTHERS = {
    "PyTorch's ImageNet example": (
        {"epoch": 1, "arch": "resnet50", "state_dict": prefixed("module."), "best_acc1": torch.tensor(70.1)}
        | {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "scheduler": {"last_epoch": 1}},
        STATE,
    ),
    "numpy accuracy": ({"state_dict": STATE, "best_prec1": np.float64(61.5), "epoch": np.int64(3)}, STATE),
    "timm": (
        {
            "epoch": 3,
            "arch": "resnet50",
            "state_dict": RESNET,
            "state_dict_ema": prefixed("ema."),
            "version": 2,
        }
        | {"args": Namespace(lr=0.1, data_dir="/data", amp=None), "metric": np.float32(70.1)},
        RESNET,
    ),
    "other name": ({"my_weights": STATE, "note": "mine"}, STATE),
    "Lightning": (
        {
            "state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)},
            "pytorch-lightning_version": "2.1",
        },
        STATE,
    ),
    "mmaction2": (
        {
            "meta": {"epoch": 50},
            "state_dict": prefixed("backbone.", RESNET) | {"cls_head.fc_cls.bias": torch.ones(1)},
        },
        RESNET,
    ),
    "MoCo": (
        {"state_dict": prefixed("module.encoder_q.", RESNET) | prefixed("module.encoder_k.", RESNET)},
        RESNET,
    ),
    "bare with more": (STATE | {"epoch": 3, "_metadata": [1]}, STATE),
    "options of others": ({"options": Namespace(lr=1), "model": STATE}, STATE),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_code_load(tmp_path, kind):
    saved, expected = OTHERS[kind]
    for is_zip in (True, False):
        torch.save(saved, tmp_path / "a", _use_new_zipfile_serialization=is_zip)
        assert_same_tensors(load_checkpoint(tmp_path / "a")["state_dict"], expected)


def test_origin_of_tensors_is_stated(tmp_path):
    torch.save(
        {"model": prefixed("net.") | {"loss.weight": torch.ones(1)}, "args": Namespace()}, tmp_path / "a"
    )
    source, checkpoint = read_pretrained(str(tmp_path / "a"), "resnet50")
    assert source == f"{tmp_path / 'a'} ({checkpoint['origin']})"
    for word in ("3 tensors", "'model'", "'net.'", "1 others"):
        assert word in source


def test_several_state_dicts_are_refused(tmp_path):
    torch.save({"generator": STATE, "critic": STATE}, tmp_path / "a")
    assert "(generator, critic)" in refusal(load_checkpoint, tmp_path / "a")


def test_gpu_tensors_load_on_cpu(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # torch takes every tensor for one of a GPU
        patch.setattr(torch.serialization, "_package_registry", [])
        torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
        content = {"epoch": 3, "state_dict": {"fc.bias": torch.ones(2)}, "best_prec1": torch.tensor(61.5)}
        torch.save(content, tmp_path / "a.pth")
    locations = set()
    torch.load(tmp_path / "a.pth", map_location=lambda storage, place: locations.add(place) or storage)
    assert locations == {"cuda:0"}, "not the file that this test needs"
    content = load_checkpoint(tmp_path / "a.pth")
    assert content["state_dict"]["fc.bias"].device.type == "cpu"
    assert (content["best_prec1"], type(content["best_prec1"])) == (61.5, float)


def test_imagenet_weights_come_from_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    cached = folder / torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(STATE, cached)
    source, start = read_pretrained("imagenet", "resnet50")
    assert cached.name in source
    assert_same_tensors(start["state_dict"], STATE)
    cached.write_bytes(b"<!DOCTYPE html>\n")
    assert str(cached) in refusal(read_pretrained, "imagenet", "resnet50")
    cached.unlink()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no network
    message = refusal(read_pretrained, "imagenet", "resnet50")
    for word in (cached.name, "--pretrained FILE", "--pretrained none"):
        assert word in message


# Which files are refused


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_code_in_file_is_not_run(tmp_path, recwarn, is_zip):
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    content = {"state_dict": STATE, "best_prec1": Hostile(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    message = refusal(load_checkpoint, path)
    assert message.startswith(f"{path}: ")
    assert "posix.system" in message
    assert not marker.exists()
    assert not recwarn.list, "a warning would be a second line"
    assert b"touch" in path.read_bytes(), "not the file that this test needs"


def save_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no tensors")


REFUSED = {
    "empty": (Path.touch, "not a checkpoint"),
    "text": (lambda path: path.write_text("epoch,lr\n0,0.01\n"), "not a checkpoint"),
    "other zip": (save_zip, "not a checkpoint"),
    "missing": (lambda path: None, "no such file"),
    "list": (lambda path: torch.save([1, [STATE]], path), "list"),
    "whole model": (lambda path: torch.save(torch.nn.Linear(1, 1), path), "torch.nn.modules.linear.Linear"),
    "not finite": (
        lambda path: torch.save({"state_dict": STATE | {"weight": torch.tensor([1.0, torch.nan])}}, path),
        "'weight'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_file_is_refused(tmp_path, kind):
    make, culprit = REFUSED[kind]
    make(tmp_path / "a")
    message = refusal(load_checkpoint, tmp_path / "a")
    assert message.startswith(f"{tmp_path / 'a'}: ")
    assert culprit in message


def test_flipped_bit_never_changes_a_tensor(tmp_path):
    """torch.load does not check the checksums of a zip."""
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"state_dict": STATE, "options": OPTIONS})
    whole = path.read_bytes()
    inside = whole.find(STATE["base_model.conv1.weight"].numpy().tobytes())
    for place in (inside + 2, *range(0, len(whole), 29)):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        if place == inside + 2:
            tensor = torch.load(path)["state_dict"]["base_model.conv1.weight"]
            assert not torch.equal(tensor, STATE["base_model.conv1.weight"])
            assert "damaged" in refusal(load_checkpoint, path)
        try:
            content = load_checkpoint(path)
        except UserError:
            continue
        assert_same_tensors(content["state_dict"], STATE)
        assert content["options"] == OPTIONS


# Saving and rotation


@pytest.mark.parametrize("keep", [1, 12])
def test_newest_checkpoints_are_kept(tmp_path, keep):
    path = tmp_path / "GST_a[1]_checkpoint.pth.tar"  # brackets are special in glob patterns
    (tmp_path / f".{path.name}.part").write_bytes(b"of a killed run")
    for epoch in range(14):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep)
        epochs = [load_checkpoint(file)["epoch"] for file in all_checkpoints(path)]
        assert epochs == list(range(epoch, -1, -1))[:keep]
    names = [path.name, *(f"{path.name}.{number}" for number in range(1, keep))]
    assert sorted(files_in(tmp_path)) == sorted(names)


@pytest.mark.parametrize("keep", [1, 3])
def test_failed_save_keeps_all_checkpoints(tmp_path, keep):
    path = tmp_path / "a.pth.tar"
    save_epochs(path, 4, keep)
    before = files_in(tmp_path)
    with files_limited_to(1000), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, {"epoch": 4, "state_dict": STATE}, keep)
    assert files_in(tmp_path) == before
    save_checkpoint(path, {"epoch": 5, "state_dict": STATE}, keep)
    assert [load_checkpoint(file)["epoch"] for file in all_checkpoints(path)] == [5, 3, 2][:keep]


def test_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(OSError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_load_newest_falls_back(tmp_path, capsys):
    path = tmp_path / "a.pth.tar"
    assert load_newest(path) is None
    save_epochs(path, 3, keep=3)
    file, content = load_newest(path)
    assert (file, content["epoch"], capsys.readouterr().out) == (path, 2, "")
    path.write_bytes(path.read_bytes()[:-200])
    file, content = load_newest(path)
    assert (file.name, content["epoch"]) == ("a.pth.tar.1", 1)
    assert f"{path}: " in capsys.readouterr().out
    # The damaged file is renamed, so that the next save keeps the good one.
    assert Path(f"{path}.damaged").exists()
    save_checkpoint(path, {"epoch": 2, "state_dict": STATE, "options": OPTIONS}, keep=2)
    assert [load_checkpoint(file)["epoch"] for file in all_checkpoints(path)] == [2, 1, 0]
    for older in all_checkpoints(path):
        older.write_text("")
    before = files_in(tmp_path)
    assert str(path) in refusal(load_newest, path)
    assert files_in(tmp_path) == before


# Which model it is


@pytest.mark.parametrize(
    ("arch", "alpha", "beta", "dropout"),
    [("resnet14", 2, 1, 0), ("resnet26", 8, 1, 0.3), ("resnet101", 64, 2, 0.3)],
)
def test_tensors_tell_the_model(arch, alpha, beta, dropout):
    state_dict = gst_state(7, dropout, backbone=arch, alpha=alpha, beta=beta)
    spec = describe_model({"state_dict": state_dict}, "a.pth")
    assert spec == ("GST", arch, alpha, beta, 7, dropout > 0, "mean")


def test_other_networks_are_refused():
    with torch.device("meta"):
        others = [torchvision.models.resnet18().state_dict()]
    state_dict = gst_state()
    others.append(state_dict | {"base_model.layer1.0.Tconv.weight": torch.ones(3, 32, 3, 3, 3)})
    others.append({name: value for name, value in state_dict.items() if not name.startswith("new_fc")})
    others.append(state_dict | {name.replace("r3.0", "r3.1"): value for name, value in state_dict.items()})
    for other in others:
        assert "is not a model of this code" in refusal(describe_model, {"state_dict": other}, "a.pth")


# Weights


def test_weights_that_do_not_fit_are_refused():
    model = TemporalModel(2, 4, backbone="resnet14")
    good = model.state_dict()
    name = "base_model.layer4.0.bn3.running_var"
    for wrong, culprit in (
        ({key: value for key, value in good.items() if key != name}, name),
        (good | {name: torch.zeros(3, 1)}, name),
        (good | {"more": torch.zeros(1)}, "more"),
    ):
        message = refusal(load_weights, model, wrong, "a.pth")
        assert message.startswith("a.pth: ")
        assert culprit in message


# Classes

NAMES = ["Up", "Holding something", "Left", "Right"]


def test_labels_are_found_by_name():
    checkpoint = {"state_dict": gst_state(4), "categories": NAMES}
    assert find_labels(checkpoint, NAMES, "a.pth").tolist() == [0, 1, 2, 3]
    others = ["Right", "Up", "Holding [something]", "Left"]
    assert find_labels(checkpoint, others, "a.pth").tolist() == [3, 0, 1, 2]
    # Without names, only 174 classes are known ones.
    assert find_labels({"state_dict": gst_state(4)}, NAMES[::-1], "a.pth").tolist() == [0, 1, 2, 3]
    released, names = {"state_dict": gst_state(174)}, released_categories()
    assert find_labels(released, names[::-1], "a.pth").tolist() == list(range(174))[::-1]
    assert find_labels(released, [*names[1:], "other"], "a.pth").tolist() == list(range(174))


@pytest.mark.parametrize(
    ("categories", "culprit"),
    [
        (["Right", "Up", "Holding nothing", "Left"], "Holding something"),
        (["Up", "[Left]", "Holding [something]", "Away"], "Right"),
        (NAMES[:3], "4 classes"),
    ],
)
def test_other_classes_are_refused(categories, culprit):
    checkpoint = {"state_dict": gst_state(4), "categories": NAMES}
    assert culprit in refusal(find_labels, checkpoint, categories, "a.pth")


def test_training_needs_the_same_order():
    checkpoint = {"state_dict": gst_state(4), "categories": NAMES}
    check_categories(checkpoint, NAMES, "a.pth")
    check_categories({"state_dict": gst_state(4)}, NAMES, "a.pth")
    for wrong in (["Up", "Left", "Holding something", "Right"], ["[Up]", *NAMES[1:]], NAMES[:3]):
        assert refusal(check_categories, checkpoint, wrong, "a.pth").startswith("a.pth")
    assert find_mirrored(checkpoint, [], "a.pth") == [0, 1, 3, 2]
    assert find_mirrored(checkpoint | {"mirrored": [1, 0, -1, 3]}, [], "a.pth") == [1, 0, -1, 3]
    released, names = {"state_dict": gst_state(174)}, released_categories()
    check_categories(released, [name.replace("something", "[something]") for name in names], "a.pth")
    swapped = [names[0], names[2], names[1], *names[3:]]
    assert "order" in refusal(check_categories, released, swapped, "a.pth")
