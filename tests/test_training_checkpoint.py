"""Checkpoints: saved whole and in turn; others' load; what is damaged or hostile is refused."""

import copy
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import Hostile, files_limited_to

from classes import released_categories
from models import TemporalModel
from training import checkpoint
from training.checkpoint import (
    all_checkpoints,
    check_categories,
    damaged_checkpoints,
    describe_labels,
    describe_model,
    find_labels,
    load_checkpoint,
    load_newest,
    load_start,
    load_weights,
    read_pretrained,
    read_tensors,
    save_checkpoint,
    set_aside_newer,
)
from utils.cli import UserError
from utils.files import write_atomically

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "fc.bias": torch.tensor([0.5, -1.0])}
# Run apart, because it makes this torch call every tensor one of the GPU.
SAVE_AS_CUDA = """
import sys, torch
torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
state_dict = {"module.fc.bias": torch.tensor([0.5, -1.0])}
content = {"epoch": 3, "state_dict": state_dict, "best_prec1": torch.tensor(61.5)}
torch.save(content, sys.argv[1], _use_new_zipfile_serialization=True)
torch.save(content, sys.argv[2], _use_new_zipfile_serialization=False)
"""


def tensor_bytes(content: object, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def refusal(call: Callable, *args: object) -> str:
    """The message with which a call refuses its input; any other exception would be a traceback."""
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def gst_state(classes: int = 4, dropout: float = 0.5, **kwargs) -> dict[str, torch.Tensor]:
    """A GST model's tensors without their data: enough for what looks at names and shapes."""
    with torch.device("meta"):
        return TemporalModel(classes, 4, dropout=dropout, **({"backbone": "resnet14"} | kwargs)).state_dict()


@FORMATS
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("is_bare", [True, False], ids=["bare", "wrapper"])
def test_every_form_loads_to_the_same(tmp_path, is_zip, prefix, is_bare):
    path = tmp_path / "any.name"
    state_dict = OrderedDict((prefix + name, value) for name, value in STATE.items())
    wrapper = {
        "epoch": 70,
        "arch": "resnet50",
        "state_dict": state_dict,
        "best_prec1": torch.tensor(47.012),
    }
    path.write_bytes(tensor_bytes(state_dict if is_bare else wrapper, is_zip))
    content = load_checkpoint(path)
    assert_same_tensors(content.pop("state_dict"), STATE)
    if not is_bare:
        best_prec1 = content.pop("best_prec1")
        assert isinstance(best_prec1, float)
        assert best_prec1 == pytest.approx(47.012)
    assert content == ({} if is_bare else {"epoch": 70, "arch": "resnet50"})


@pytest.mark.parametrize("value", [61, 61.0, torch.tensor(61), torch.tensor([61.0]), torch.tensor([[61.0]])])
def test_best_accuracy_of_any_kind_is_a_float(tmp_path, value):
    torch.save({"state_dict": STATE, "best_prec1": value}, tmp_path / "a.pth")
    best_prec1 = load_checkpoint(tmp_path / "a.pth")["best_prec1"]
    assert isinstance(best_prec1, float)
    assert best_prec1 == 61


def test_tensors_of_a_gpu_load_without_one(tmp_path):
    files = [tmp_path / "zip.pth", tmp_path / "legacy.pth"]
    subprocess.run([sys.executable, "-c", SAVE_AS_CUDA, *map(str, files)], check=True)
    for file in files:
        locations = set()
        torch.load(file, map_location=lambda storage, place, seen=locations: seen.add(place) or storage)
        assert locations == {"cuda:0"}, "the file is not what this test needs"
        content = load_checkpoint(file)
        assert_same_tensors(content["state_dict"], {"fc.bias": torch.tensor([0.5, -1.0])})
        assert content["state_dict"]["fc.bias"].device.type == "cpu"
        assert isinstance(content["best_prec1"], float)
        assert content["best_prec1"] == 61.5


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["state_dict", "best_prec1", "everything"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, recwarn, is_zip, protocol, place):
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    content = {"state_dict": STATE, "best_prec1": 1.0} | {place: Hostile(marker)}
    content = content.get("everything", content)
    torch.save(content, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    message = refusal(load_checkpoint, path)
    assert str(path) in message
    # Protocol 4 is refused before it comes to what is called.
    assert ("would run code in it (posix.system)" if protocol == 2 else "protocol") in message
    assert not marker.exists()
    assert not recwarn.list, "a warning would be a second line for the user"
    assert b"touch" in path.read_bytes(), "the file is not what this test needs"


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Hostile(marker), protocol))
        assert str(path) in refusal(load_checkpoint, path)
        assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the file is not what this test needs"


def test_a_whole_model_says_what_to_save_instead(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pth")
    message = refusal(load_checkpoint, tmp_path / "model.pth")
    assert "torch.nn.modules.linear.Linear" in message
    assert "save its state_dict" in message


@FORMATS
def test_a_file_cut_off_anywhere_is_refused(tmp_path, is_zip):
    path = tmp_path / "cut.pth"
    whole = tensor_bytes({"state_dict": STATE}, is_zip)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        message = refusal(load_checkpoint, path)
        assert message.startswith(f"{path}: "), length
        assert "(.)" not in message, "it names code that is not there"


def test_a_flipped_bit_in_a_zip_never_changes_a_tensor(tmp_path):
    """torch.load looks at no checksum: without one of ours it gives other weights, and says nothing."""
    path = tmp_path / "flipped.pth"
    whole = tensor_bytes({"state_dict": STATE})
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        tensors = [name for name in file.namelist() if "/data/" in name]
        inside = [whole.find(file.read(name)) for name in tensors]
    assert len(inside) == len(STATE)
    assert min(inside) > 0
    for place in inside:
        damaged = bytearray(whole)
        damaged[place + 2] ^= 16
        path.write_bytes(damaged)
        assert not torch.equal(
            torch.cat([value.flatten() for value in torch.load(path)["state_dict"].values()]),
            torch.cat([value.flatten() for value in STATE.values()]),
        ), "the file is not what this test needs"
        assert "is damaged (a checksum in it is wrong)" in refusal(load_checkpoint, path)
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            content = load_checkpoint(path)
        except UserError:
            continue
        assert_same_tensors(content["state_dict"], STATE)


def full_content() -> dict[str, object]:
    """All that a checkpoint of main.py holds, with the tensors of `STATE`."""
    momentum = {number: {"momentum_buffer": value / 7} for number, value in enumerate(STATE.values())}
    row = {"epoch": 0, "lr": 0.01, "train_loss": 2.0, "train_prec1": 10.0, "train_prec5": 50.0}
    row |= {"val_loss": 2.5, "val_prec1": 20.0, "val_prec5": 60.0, "val_mean_class": 19.5}
    options = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "input_size": 32}
    options |= {"batch_size": 4, "amp": "bf16", "lr_steps": [50, 60], "gpus": None, "root_path": "/data"}
    options |= {"lr_mult_new": 10.0}
    return {
        "epoch": 1,
        "arch": "resnet14",
        "step": 3,
        "state_dict": STATE,
        "best_prec1": 20.0,
        "options": options,
        "categories": ["Up", "Down"],
        "data": 123,
        "val_data": 456,
        "excluded": ["a video"],
        "num_devices": 1,
        "new_classifier": True,
        "run": "GST_somethingv1",
        "optimizer": {"state": momentum, "param_groups": [{"params": [0, 1], "lr": 0.01}]},
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
        "totals": [8.0, 1.0, 3.0, 4.0],
        "history": [row],
    }


def saved_large(path: Path) -> tuple[bytes, dict[str, object]]:
    """Save a checkpoint of 200 kB, and give the file and its content."""
    generator = torch.Generator().manual_seed(0)
    state_dict = {f"layer{n}.weight": torch.randn(10, 100, generator=generator) for n in range(50)}
    content = full_content() | {"state_dict": state_dict, "optimizer": {"state": {}, "param_groups": []}}
    save_checkpoint(path, content)
    return path.read_bytes(), load_checkpoint(path)


def is_detected(path: Path, damaged: bytes, expected: dict[str, object]) -> bool:
    """Whether a damaged file is refused; if not, it must load to what the intact one holds."""
    path.write_bytes(damaged)
    try:
        content = load_checkpoint(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        return True
    assert_same_tensors(content.pop("state_dict"), expected["state_dict"])
    assert content == {name: value for name, value in expected.items() if name != "state_dict"}
    return False


def test_any_flipped_bit_of_a_saved_file_is_detected(tmp_path):
    whole, expected = saved_large(tmp_path / "a.pth")
    rng = random.Random(0)
    size = len(whole)
    places = [rng.randrange(size) for _ in range(1000)] + [
        rng.randrange(size - 65536, size) for _ in range(1000)
    ]
    places += range(size - 120, size)  # where the checksum itself is
    found = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        found += is_detected(tmp_path / "a.pth", damaged, expected)
    assert found == len(places)


def test_truncated_files_and_swapped_blocks_are_detected(tmp_path):
    whole, expected = saved_large(tmp_path / "a.pth")
    rng = random.Random(0)
    size = len(whole)
    for length in [*range(size - 150, size), *(rng.randrange(size) for _ in range(200))]:
        assert is_detected(tmp_path / "a.pth", whole[:length], expected), length
    for _ in range(200):
        block = rng.choice([16, 512, 4096])
        first, second = sorted(rng.sample(range(size // block), 2))
        # The last block is the one with the checksum, which begins wherever the file's length makes it.
        end = size - block * rng.randrange(2) if second == size // block - 1 else block * (second + 1)
        start = end - block
        if start < block * (first + 1) or whole[block * first :][:block] == whole[start:end]:
            continue
        damaged = bytearray(whole)
        damaged[block * first : block * (first + 1)], damaged[start:end] = (
            whole[start:end],
            whole[block * first : block * (first + 1)],
        )
        assert is_detected(tmp_path / "a.pth", damaged, expected)


def test_a_saved_file_is_one_that_torch_loads(tmp_path):
    """The checksum is a comment of the zip: nobody else has to know about it."""
    save_checkpoint(tmp_path / "a.pth", full_content())
    for how in ({}, {"mmap": True}):
        assert_same_tensors(torch.load(tmp_path / "a.pth", weights_only=True, **how)["state_dict"], STATE)
    torch.save(torch.load(tmp_path / "a.pth"), tmp_path / "again.pth")
    assert load_checkpoint(tmp_path / "again.pth")["epoch"] == 1


WRONG_VALUES = {
    "epoch": [-1, 1.5, True, "1", None, 2**80, torch.tensor(1)],
    "step": [-1, "3", torch.ones(2)],
    "best_prec1": [-0.5, 100.5, float("nan"), float("inf")],
    "arch": [50],
    "options.num_segments": [0, 10**9, "8", 8.0, True],
    "options.input_size": [31, 10**6, None],
    "options.batch_size": [0, "24", 1.5],
    "options.amp": ["int8", 16, None],
    "options.lr_steps": [50, [0], ["50"]],
    "options.lr_mult_new": [0.0, -1.0, "10", float("inf")],
    "new_classifier": [1, "yes", None],
    "options.root_path": [torch.ones(1), [torch.ones(1)]],
    "categories": [[1, 2], "Up"],
    "data": [-1, 2**32, 1.0],
    "val_data": ["456"],
    "excluded": ["a video", [1]],
    "run": [7],
    "optimizer": [[], {}, {"state": {}}, {"state": [], "param_groups": []}],
    "optimizer.state": [{"0": {}}, {0: {"momentum_buffer": 1.0}}, {0: {"exp_avg": torch.ones(1)}}],
    "scaler.scale": [-1.0, float("nan"), "65536"],
    "totals": [[1.0, 2.0], [1.0, 2.0, 3.0, float("nan")], 4.0, torch.ones(4)],
    "history": [{}, [[]], [{"epoch": 0}]],
    "history.0.train_loss": [float("nan"), "2.0"],
    "history.0.more": [1.0],
}


@pytest.mark.parametrize("place", WRONG_VALUES)
def test_a_wrong_value_anywhere_is_damage(tmp_path, place):
    path = tmp_path / "a.pth"
    for value in WRONG_VALUES[place]:
        content = copy.deepcopy(full_content())
        *inner, last = place.split(".")
        holder = content
        for name in inner:
            holder = holder[int(name) if isinstance(holder, list) else name]
        holder[last] = value
        save_checkpoint(path, full_content(), keep=2)
        save_checkpoint(path, content, keep=2)
        message = refusal(load_checkpoint, path)
        assert message.startswith(f"{path}: "), value
        assert place in message, value
        assert len(message.splitlines()) == 1
        assert load_newest(path)[0].name == "a.pth.1"


def test_momentum_of_other_shapes_is_damage(tmp_path):
    path = tmp_path / "a.pth"
    for wrong in (torch.ones(3, 4), torch.ones(1), torch.ones(2, 3, 4, 1), None):
        content = full_content()
        content["optimizer"]["state"][0]["momentum_buffer"] = wrong
        save_checkpoint(path, content)
        assert "momentum" in refusal(load_checkpoint, path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_numbers_of_a_kind_that_would_be_cut_are_refused(tmp_path, dtype):
    model = TemporalModel(2, 4, backbone="resnet14")
    state_dict = model.state_dict()
    state_dict["new_fc.bias"] = state_dict["new_fc.bias"].to(dtype)
    assert f"'new_fc.bias' holds {dtype}" in refusal(load_weights, model, state_dict, "a.pth")
    counter = "base_model.bn1.num_batches_tracked"
    state_dict = model.state_dict() | {counter: torch.tensor(3 + 4j)}
    assert f"'{counter}' holds" in refusal(load_weights, model, state_dict, "a.pth")
    path = tmp_path / "a.pth"
    content = full_content()
    state = content["optimizer"]["state"][0]
    state["momentum_buffer"] = state["momentum_buffer"].to(dtype)
    save_checkpoint(path, content)
    assert "momentum" in refusal(load_checkpoint, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "a.pth"
    for place in ("state_dict", "optimizer"):
        content = copy.deepcopy(full_content())
        tensor = content["state_dict"]["fc.bias"]
        if place == "optimizer":
            tensor = content["optimizer"]["state"][1]["momentum_buffer"]
        tensor[1] = value
        save_checkpoint(path, content)
        assert "not finite" in refusal(load_checkpoint, path)


def make_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no tensors")


NO_CHECKPOINTS = {
    "empty": (lambda path: path.touch(), "is not a checkpoint"),
    "text": (lambda path: path.write_text("epoch,lr\n0,0.01\n"), "is not a checkpoint"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>Log in</html>\n"), "is not a checkpoint"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "is not a checkpoint"),
    "other zip": (make_other_zip, "is not a checkpoint"),
    "folder": (Path.mkdir, "is a folder, not a file"),
    "named pipe": (os.mkfifo, "is a named pipe, not a file"),
    "missing": (lambda path: None, "no such file"),
    "below a file": (lambda path: path.parent.write_text(""), "irectory"),
    "list": (lambda path: torch.save([1, [STATE]], path), "holds a list, not a state dict"),
    "tensor": (lambda path: torch.save(torch.ones(3), path), "holds a Tensor, not a state dict"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused(tmp_path, kind):
    make, reason = NO_CHECKPOINTS[kind]
    path = tmp_path / "a" / "b" if kind == "below a file" else tmp_path / "a"
    make(path)
    message = refusal(load_checkpoint, path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(STATE, path)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        message = refusal(load_checkpoint, path)
    finally:
        if user == 0:
            os.seteuid(0)
    assert str(path) in message
    assert "Permission denied" in message


MALFORMED = {
    "state dict is a list": ({"state_dict": [[STATE]]}, "no state dict of tensors"),
    "value is no tensor": ({"state_dict": STATE | {"fc.weight": [1.0]}}, "no state dict of tensors"),
    "bare value is no tensor": (STATE | {"fc.weight": "1"}, "no state dict of tensors"),
    "key is no string": ({"state_dict": STATE | {7: torch.ones(1)}}, "key"),
    "bare key is no string": (STATE | {7: torch.ones(1)}, "key"),
    "best_prec1 is a word": ({"state_dict": STATE, "best_prec1": "high"}, "best_prec1"),
    "best_prec1 is None": ({"state_dict": STATE, "best_prec1": None}, "best_prec1"),
    "best_prec1 is a list": ({"state_dict": STATE, "best_prec1": [[1.0]]}, "best_prec1"),
    "best_prec1 is two": ({"state_dict": STATE, "best_prec1": torch.ones(2)}, "best_prec1"),
    "options are None": ({"state_dict": STATE, "options": None}, "options"),
    "options are a list": ({"state_dict": STATE, "options": ["--arch"]}, "options"),
    "categories are None": ({"state_dict": STATE, "categories": None}, "categories"),
    "categories are a number": ({"state_dict": STATE, "categories": 174}, "categories"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_content_is_refused_by_its_name(tmp_path, kind):
    content, word = MALFORMED[kind]
    torch.save(content, tmp_path / "a.pth")
    message = refusal(load_checkpoint, tmp_path / "a.pth")
    assert message.startswith(f"{tmp_path / 'a.pth'}: ")
    assert word in message


@pytest.mark.parametrize(
    ("arch", "alpha", "beta", "dropout"),
    [
        ("resnet14", 4, 2, 0.5),
        ("resnet14", 2, 1, 0),
        ("resnet26", 8, 1, 0.3),
        ("resnet50", 4, 2, 0.3),
        ("resnet50", 4, 1, 0),
        ("resnet101", 64, 2, 0.3),
        ("resnet152", 16, 1, 0),
    ],
)
def test_shapes_tell_the_model(arch, alpha, beta, dropout):
    state_dict = gst_state(7, dropout, backbone=arch, alpha=alpha, beta=beta)
    assert describe_model({"state_dict": state_dict}, "a.pth") == ("GST", arch, alpha, beta, 7, dropout > 0)


def test_another_networks_tensors_are_no_gst_model():
    with torch.device("meta"):
        state_dict = torchvision.models.resnet18().state_dict()
    message = refusal(describe_model, {"state_dict": state_dict}, "a.pth")
    assert message.startswith("a.pth: is not a model of this code")
    assert "base_model.conv1.weight" in message


@pytest.mark.parametrize(
    "name",
    [
        "base_model.conv1.weight",
        "base_model.layer1.0.conv2.weight",
        "base_model.layer1.0.Tconv.weight",
        "new_fc.weight",
    ],
)
def test_a_telling_tensor_that_is_missing_flat_or_empty_is_named(name):
    state_dict = gst_state()
    shape = state_dict[name].shape
    for value in (None, torch.ones(3), torch.ones(0, *shape[1:]), torch.ones(*shape, 1)):
        changed = state_dict | {name: value}
        if value is None:
            del changed[name]
        message = refusal(describe_model, {"state_dict": changed}, "a.pth")
        # Without new_fc the classifier would be base_model.fc.
        assert name.replace("new_fc", "") in message or "base_model.fc.weight" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv2", (47, 32, 1, 3, 3)),
        ("Tconv", (3, 32, 3, 3, 3)),
        ("Tconv", (64, 32, 3, 3, 3)),
        ("Tconv", (16, 16, 3, 3, 3)),
        ("Tconv", (16, 99, 3, 3, 3)),
    ],
)
def test_shapes_that_no_alpha_and_beta_give_are_refused(name, shape):
    state_dict = gst_state() | {f"base_model.layer1.0.{name}.weight": torch.ones(shape)}
    assert refusal(describe_model, {"state_dict": state_dict}, "a.pth").startswith("a.pth: ")


def test_an_unknown_number_of_blocks_is_reported():
    state_dict = gst_state()
    more = {name.replace("layer3.0", "layer3.1"): v for name, v in state_dict.items() if "layer3.0" in name}
    message = refusal(describe_model, {"state_dict": state_dict | more}, "a.pth")
    assert "(1, 1, 2, 1)" in message
    assert "resnet14" in message


def test_weights_load_whole():
    torch.manual_seed(0)
    old, new = (TemporalModel(4, 4, backbone="resnet14") for _ in range(2))
    load_weights(new, old.state_dict(), "a.pth")
    assert_same_tensors(new.state_dict(), old.state_dict())


def test_what_does_not_fit_is_named_and_changes_nothing():
    model = TemporalModel(2, 4, backbone="resnet14")
    good = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = "base_model.layer4.0.bn3.running_var"
    missing = {key: value for key, value in good.items() if key != name}
    message = refusal(load_weights, model, missing, "a.pth")
    assert message == f"a.pth: has no tensor '{name}'"
    message = refusal(load_weights, model, good | {name: torch.zeros(3, 1)}, "a.pth")
    assert f"'{name}' has shape (3, 1), not (2048,)" in message
    message = refusal(load_weights, model, good | {"base_model.more": torch.zeros(1)}, "a.pth")
    assert "'base_model.more'" in message
    assert_same_tensors(model.state_dict(), before)


@pytest.mark.parametrize(
    "make", [torch.Tensor.to_sparse, lambda value: value.to("meta")], ids=["sparse", "no data"]
)
def test_tensors_that_cannot_be_copied_are_refused(make):
    model = TemporalModel(2, 4, backbone="resnet14")
    state_dict = model.state_dict()
    state_dict["new_fc.bias"] = make(torch.ones(2))
    message = refusal(load_weights, model, state_dict, "a.pth")
    assert message.startswith("a.pth: ")
    assert "new_fc.bias" in message


def test_categories_must_be_the_same_in_number_names_and_order():
    names = ["Up", "Down", "Left", "Right"]
    saved = {"state_dict": gst_state(4), "categories": names}
    check_categories(saved, names, "a.pth")
    check_categories({"state_dict": gst_state(4)}, names, "a.pth")  # a released one knows only the number
    message = refusal(check_categories, saved, names[:3], "a.pth")
    assert "a.pth is for 4 classes, but category.txt has 3" in message
    message = refusal(check_categories, saved, ["Up", "Down", "Left", "Away"], "a.pth")
    assert "'Right' as class 3, but category.txt has 'Away'" in message
    message = refusal(check_categories, saved, ["Up", "Left", "Down", "Right"], "a.pth")
    assert "'Down' as class 1, but category.txt has 'Left'" in message
    message = refusal(check_categories, saved, ["[Up]", "Down", "Left", "Right"], "a.pth")
    assert "'Up' as class 0, but category.txt has '[Up]'" in message  # a run keeps the names that it has
    for wrong in (names[:3], [*names, "Away"], []):
        message = refusal(check_categories, saved | {"categories": wrong}, names, "a.pth")
        assert message.startswith("a.pth")


def test_to_train_further_a_released_checkpoint_needs_its_order_too():
    names = released_categories()
    saved = {"state_dict": gst_state(174)}
    check_categories(saved, names, "a.pth")
    check_categories(saved, [name.replace("something", "[something]") for name in names], "a.pth")
    check_categories(saved, [f"Thing {number}" for number in range(174)], "a.pth")  # nothing says which
    message = refusal(check_categories, saved, [names[0], names[2], names[1], *names[3:]], "a.pth")
    assert f"'{names[1]}' as class 1, but category.txt has '{names[2]}'" in message


def test_the_labels_of_a_checkpoint_are_found_by_name():
    names = ["Up", "Holding something", "Left", "Right"]
    saved = {"state_dict": gst_state(4), "categories": names}
    assert find_labels(saved, names, "a.pth").tolist() == [0, 1, 2, 3]
    assert find_labels(saved, ["Right", "Up", "Holding [something]", "Left"], "a.pth").tolist() == [
        3,
        0,
        1,
        2,
    ]
    # Without names, only 174 classes may be known ones.
    assert find_labels({"state_dict": gst_state(4)}, names[::-1], "a.pth").tolist() == [0, 1, 2, 3]
    released, known = {"state_dict": gst_state(174)}, released_categories()
    assert find_labels(released, known[::-1], "a.pth").tolist() == list(range(174))[::-1]
    assert find_labels(released, [*known[1:], "other"], "a.pth").tolist() == list(range(174))
    for others, words in (
        # Named is a class that category.txt does not have, not one that has another place there.
        (["Right", "Up", "Holding nothing", "Left"], "'Holding something' as class 1"),
        (["Up", "[Left]", "Holding [something]", "Away"], "'Right' as class 3, but category.txt has 'Away'"),
        (names[:3], "is for 4 classes, but category.txt has 3"),
    ):
        assert words in refusal(find_labels, saved, others, "a.pth")
    message = refusal(find_labels, saved | {"categories": names[:3]}, names, "a.pth")
    assert message == "a.pth: names 3 categories, but its classifier has 4"
    assert describe_labels(np.array([0, 1, 2]), "a.pth") == ""
    assert "a.pth in another order (1 of 3 in the same place)" in describe_labels(
        np.array([0, 2, 1]), "a.pth"
    )


@pytest.mark.parametrize("had_dropout", [0, 0.5])
@pytest.mark.parametrize("dropout", [0, 0.5])
@pytest.mark.parametrize("places", [None, [2, 0, 1]], ids=["other classes", "same classes"])
def test_a_start_takes_the_backbone_and_the_classifier_of_the_same_classes(places, dropout, had_dropout):
    other = TemporalModel(3, 4, backbone="resnet14", dropout=had_dropout)
    model = TemporalModel(3, 4, backbone="resnet14", dropout=dropout)
    own = copy.deepcopy(model.classifier.state_dict())
    torch.nn.init.normal_(other.classifier.bias)
    load_start(model, {"state_dict": other.state_dict()}, places, "a.pth")
    backbone, wanted = model.base_model.state_dict(), other.base_model.state_dict()
    for name, value in wanted.items():
        if not name.startswith("fc."):
            assert torch.equal(backbone[name], value), name
    for name, value in other.classifier.state_dict().items():
        expected = own[name] if places is None else value[places]
        assert torch.equal(model.classifier.state_dict()[name], expected)


def test_a_start_that_does_not_fit_is_refused():
    model = TemporalModel(3, 4, backbone="resnet14")
    before = copy.deepcopy(model.state_dict())
    state_dict = TemporalModel(3, 4, backbone="resnet14").state_dict()
    bias, weight = "new_fc.bias", "base_model.layer2.0.conv1.weight"
    for changed, name in (
        ({name: value for name, value in state_dict.items() if name != bias}, bias),
        (state_dict | {bias: torch.ones(5)}, bias),
        (state_dict | {weight: torch.ones(5)}, weight),
        (state_dict | {"more": torch.ones(5)}, "more"),
    ):
        assert name in refusal(load_start, model, {"state_dict": changed}, [0, 1, 2], "a.pth")
        assert_same_tensors(model.state_dict(), before)


def test_writing_replaces_a_file_in_one_step(tmp_path):
    path = tmp_path / "a.csv"
    write_atomically(path, b"first")
    with path.open("rb") as reader:
        write_atomically(path, b"the second one")
        assert reader.read() == b"first"  # written over in place, it would be neither at some moment
    assert files_in(tmp_path) == {"a.csv": b"the second one"}


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    write_atomically(path, b"first")
    with files_limited_to(1000), pytest.raises(OSError, match="File too large"):
        write_atomically(path, bytes(5000))
    assert files_in(tmp_path) == {"a.csv": b"first"}
    with pytest.raises(OSError, match="Not a directory"):
        write_atomically(path / "below", b"second")
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "none" / "a.csv", b"second")
    assert files_in(tmp_path) == {"a.csv": b"first"}


@pytest.mark.parametrize("keep", [1, 2, 3, 12])
def test_the_newest_checkpoints_are_kept_in_order(tmp_path, keep):
    path = tmp_path / "GST_a[1]_checkpoint.pth.tar"  # brackets mean something to glob
    (tmp_path / f".{path.name}.part").write_bytes(b"of a run that was killed")
    for epoch in range(14):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep)
        epochs = [load_checkpoint(file)["epoch"] for file in all_checkpoints(path)]
        assert epochs == list(range(epoch, -1, -1))[:keep]
    names = [path.name, *(f"{path.name}.{number}" for number in range(1, keep))]
    assert sorted(files_in(tmp_path)) == sorted(names)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_saving_that_fails_leaves_every_checkpoint(tmp_path, keep):
    path = tmp_path / "a.pth.tar"
    for epoch in range(4):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep)
    before = files_in(tmp_path)
    for _ in range(2):
        with files_limited_to(1000), pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {"epoch": 4, "state_dict": STATE}, keep)
        assert files_in(tmp_path) == before
    save_checkpoint(path, {"epoch": 5, "state_dict": STATE}, keep)
    assert [load_checkpoint(file)["epoch"] for file in all_checkpoints(path)] == [5, 3, 2][:keep]


def test_copies_that_a_user_made_are_no_checkpoints_of_the_run(tmp_path):
    path = tmp_path / "a.pth.tar"
    for epoch in range(3):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep=2)
    for name in (".1.bak", ".2024-05-17", ".1 (copy)", ".old"):
        shutil.copy(path, path.with_name(path.name + name))
    assert [file.name for file in all_checkpoints(path)] == ["a.pth.tar", "a.pth.tar.1"]


def test_the_newest_good_checkpoint_is_found(tmp_path, capsys):
    path = tmp_path / "a.pth.tar"
    assert load_newest(path) is None
    for epoch in range(3):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep=3)
    file, content = load_newest(path)
    assert (file, content["epoch"]) == (path, 2)
    assert capsys.readouterr().out == ""

    path.write_bytes(path.read_bytes()[:-200])
    file, content = load_newest(path)
    assert (file.name, content["epoch"]) == ("a.pth.tar.1", 1)
    assert f"{path}: " in capsys.readouterr().out

    # A bit of a tensor: only the checksum tells.
    older = bytearray(file.read_bytes())
    older[bytes(older).find(STATE["conv.weight"].numpy().tobytes()) + 2] ^= 16
    file.write_bytes(older)
    file, content = load_newest(path)
    assert (file.name, content["epoch"]) == ("a.pth.tar.2", 0)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "a.pth.tar.1: is damaged" in told[1]

    path.unlink()  # killed between the two steps of a rotation by hand: the older ones still count
    assert load_newest(path)[0] == file
    capsys.readouterr()
    file.write_text("")
    message = refusal(load_newest, path)
    assert str(path) in message
    assert "none of its 2 checkpoints" in message


def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path):
    """Falling back would set an intact checkpoint aside."""
    path = tmp_path / "a.pth.tar"
    for epoch in range(2):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep=2)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading it is an input/output error
    assert "cannot be read" in refusal(load_newest, path)
    assert all_checkpoints(path)[0] == path


def test_a_variance_below_zero_is_refused(tmp_path):
    state_dict = STATE | {"bn1.running_var": torch.tensor([1.0, -1e-9])}
    save_checkpoint(tmp_path / "a.pth", {"state_dict": state_dict})
    assert "'bn1.running_var' has variances below 0" in refusal(load_checkpoint, tmp_path / "a.pth")


@pytest.mark.parametrize("keep", [2, 3])
def test_the_good_checkpoint_stays_until_a_newer_one_is_complete(tmp_path, keep):
    path = tmp_path / "a.pth.tar"
    for epoch in range(2):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep)
    for attempt in (1, 2):  # damaged, and damaged again before anything was saved
        damaged = path.read_bytes()[:-9] if path.exists() else b"damaged"
        path.write_bytes(damaged)
        good, _ = load_newest(path)
        assert good == Path(f"{path}.1")
        set_aside_newer(path, good)
        assert not path.exists()
        assert Path(f"{path}.damaged{attempt}").read_bytes() == damaged
        assert load_newest(path)[1]["epoch"] == 0
        with files_limited_to(1000), pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {"epoch": 2, "state_dict": STATE}, keep)
        assert load_newest(path)[1]["epoch"] == 0
    for epoch in (2, 3):
        save_checkpoint(path, {"epoch": epoch, "state_dict": STATE}, keep)
        assert load_newest(path)[1]["epoch"] == epoch
    assert len(damaged_checkpoints(path)) == 2


@pytest.fixture
def torch_home(tmp_path, monkeypatch) -> Path:
    """Where torchvision looks for weights that it has fetched before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("arch", "prefix"), [("resnet50", "resnet50-"), ("resnet101", "resnet101-")])
def test_imagenet_weights_come_from_torchvisions_cache(torch_home, arch, prefix):
    url = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"].url
    name = url.rsplit("/", 1)[1]
    assert name.startswith(prefix)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.get_model(arch).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    # Every tensor is one number, repeated: a file of kilobytes with the real one's names and shapes.
    tensors = {key: torch.rand((), generator=generator).expand(shape) for key, shape in shapes.items()}
    torch.save(tensors, torch_home / name)
    assert (torch_home / name).stat().st_size < 1e6
    source, start = read_pretrained("imagenet", arch)
    assert name in source
    assert_same_tensors(start["state_dict"], tensors)
    assert [file.name for file in torch_home.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>\n", tensor_bytes(STATE)[:-100]])
def test_a_damaged_file_in_the_cache_is_named(torch_home, content):
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    cached = torch_home / weights.url.rsplit("/", 1)[1]
    cached.write_bytes(content)
    assert str(cached) in refusal(read_pretrained, "imagenet", "resnet50")


def test_code_in_the_cache_is_not_run(torch_home, tmp_path):
    cached = torch_home / torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save({"conv1.weight": Hostile(tmp_path / "marker")}, cached)
    assert str(cached) in refusal(read_pretrained, "imagenet", "resnet50")
    assert not (tmp_path / "marker").exists()


def test_weights_to_start_from_may_be_any_file(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(STATE, path)
    source, start = read_pretrained(str(path), "resnet14")
    assert source == str(path)
    assert_same_tensors(start["state_dict"], STATE)
    torch.save({"state_dict": {f"module.{name}": value for name, value in STATE.items()}, "epoch": 3}, path)
    assert_same_tensors(read_pretrained(str(path), "resnet14")[1]["state_dict"], STATE)
    assert "no such file" in refusal(read_pretrained, str(tmp_path / "none.pth"), "resnet50")
    assert "is not a checkpoint" in refusal(read_tensors, checkpoint.__file__)
