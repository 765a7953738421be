"""The other types of block than GST: what they compute, how they start, and that the programs take them."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import REPOSITORY, assert_one_line_error, call, small_run
from torch import nn

import baselines
import models
import opts
from baselines import C2DBottleneck, C3DBottleneck, S3DBottleneck, TSMBottleneck, shift
from inference.fuse import check_fused, fuse, use_2d_kernels
from models import BLOCKS, TemporalModel
from resnet_gst import DEPTHS, ResNet, load_2d_weights
from training.describe import describe_model, possible_types
from training.run import RunFiles
from utils.cli import UserError

CPU = torch.device("cpu")
BASELINES = {"C2D": C2DBottleneck, "C3D": C3DBottleneck, "S3D": S3DBottleneck, "TSM": TSMBottleneck}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(module: nn.Module) -> nn.Module:
    """Give every batch norm, 2D or 3D, values that differ between channels; in evaluation mode."""
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.1)
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


def small(kind: str, segments: int = 4, classes: int = 4, **how: object) -> TemporalModel:
    return TemporalModel(classes, segments, kind, "resnet14", input_size=32, **how)


def test_the_table_has_these_types():
    assert list(BLOCKS) == ["GST", *BASELINES]
    assert {kind: BLOCKS[kind] for kind in BASELINES} == BASELINES


# ---------------------------------------------------------------------------------------------------------
# What they compute.

KERNELS = {
    "C2D": {"conv2": (64, 64, 1, 3, 3)},
    "C3D": {"conv2": (64, 64, 3, 3, 3)},
    "S3D": {"conv2": (64, 64, 1, 3, 3), "conv2_t": (64, 64, 3, 1, 1)},
    "TSM": {"conv2": (64, 64, 1, 3, 3)},
}


@pytest.mark.parametrize("kind", BASELINES)
def test_only_the_3x3_convolution_differs(kind):
    block = BASELINES[kind](256, 64)
    shapes = {name: tuple(value.shape) for name, value in block.named_parameters()}
    common = {"conv1.weight": (64, 256, 1, 1, 1), "conv3.weight": (256, 64, 1, 1, 1)}
    norms = {f"bn{n}.{name}": (c,) for n, c in ((1, 64), (2, 64), (3, 256)) for name in ("weight", "bias")}
    assert shapes == common | norms | {f"{name}.weight": shape for name, shape in KERNELS[kind].items()}


def written_out(kind: str, block: nn.Module, x: torch.Tensor, stride: int) -> torch.Tensor:
    """A block without shortcut projection, once more in plain functions."""

    def norm(x, module):
        statistics = (module.running_mean, module.running_var, module.weight, module.bias)
        return nn.functional.batch_norm(x, *statistics)

    read = x
    if kind == "TSM":
        read, share = x.clone(), x.shape[1] // 8
        read[:, : 2 * share] = 0
        read[:, :share, :-1] = x[:, :share, 1:]
        read[:, share : 2 * share, 1:] = x[:, share : 2 * share, :-1]
    out = norm(nn.functional.conv3d(read, block.conv1.weight), block.bn1).relu()
    padding = (1, 1, 1) if kind == "C3D" else (0, 1, 1)
    out = nn.functional.conv3d(out, block.conv2.weight, stride=(1, stride, stride), padding=padding)
    if kind == "S3D":
        out = nn.functional.conv3d(out, block.conv2_t.weight, padding=(1, 0, 0))
    out = norm(nn.functional.conv3d(norm(out, block.bn2).relu(), block.conv3.weight), block.bn3)
    return (out + (x if stride == 1 else nn.functional.avg_pool3d(x, (1, 2, 2)))).relu()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", BASELINES)
@torch.no_grad()
def test_output_is_what_the_type_stands_for(kind, stride):
    shortcut = None if stride == 1 else nn.AvgPool3d((1, 2, 2))
    block = randomised(BASELINES[kind](256, 64, stride, shortcut))
    x = torch.randn(2, 256, 5, 6, 6)
    torch.testing.assert_close(block(x), written_out(kind, block, x, stride), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changed"), [("C2D", [3]), *((kind, [2, 3, 4]) for kind in KERNELS if kind != "C2D")]
)
@torch.no_grad()
def test_how_far_a_block_sees_in_time(kind, changed):
    block = randomised(BASELINES[kind](64, 16, 1, nn.Conv3d(64, 64, 1)))
    x = torch.randn(1, 64, 7, 4, 4)
    before = block(x)
    x[:, :, 3] += 1
    assert [t for t in range(7) if not torch.equal(block(x)[:, :, t], before[:, :, t])] == changed


def test_a_shift_moves_an_eighth_each_way_and_lets_zeros_in():
    frames = torch.arange(1.0, 4).view(1, 1, 3, 1, 1).expand(2, 16, 3, 2, 2)
    shifted = shift(frames)[0, :, :, 0, 0].tolist()
    assert shifted == [[2, 3, 0]] * 2 + [[0, 1, 2]] * 2 + [[1, 2, 3]] * 12
    one = shift(torch.ones(1, 16, 1, 2, 2))[0, :, 0, 0, 0].tolist()  # a clip of one frame has no others
    assert one == [0] * 4 + [1] * 12


@pytest.mark.parametrize("kind", BASELINES)
def test_parameter_groups_are_the_published_ones(kind):
    model = small(kind)
    groups = model.get_optim_policies()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}
    assert found["first_conv_weight"] == [
        "base_model.conv1.weight",
        "base_model.layer1.0.conv1.weight",
        "base_model.layer1.0.conv2.weight",
    ]
    assert found["normal_bias"] == ["new_fc.bias"]
    assert sorted(name for members in found.values() for name in members) == sorted(names.values())


@pytest.mark.parametrize("kind", BASELINES)
@torch.no_grad()
def test_a_deployed_model_and_one_with_2d_kernels_compute_the_same(kind):
    model = randomised(small(kind))
    clips = torch.randn(2, 4, 3, 32, 32)
    expected = model(clips)
    fused = fuse(model, CPU)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in fused.modules())
    check_fused(model, fused, clips)
    use_2d_kernels(fused)
    assert not any(type(module) is nn.Conv3d for module in fused.modules())
    for found in (fused(clips), model.to(memory_format=torch.channels_last_3d)(clips)):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


# ---------------------------------------------------------------------------------------------------------
# The start from a 2D ResNet.


@pytest.fixture(scope="module")
def image_model() -> nn.Module:
    torch.manual_seed(1)
    return randomised(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]))


@pytest.mark.parametrize("kind", BASELINES)
@torch.no_grad()
def test_a_still_clip_has_the_features_of_the_image_network(kind, image_model):
    model = ResNet(BLOCKS[kind], DEPTHS["resnet14"]).eval()
    load_2d_weights(model, image_model.state_dict())
    model.fc = nn.Identity()
    features = nn.Sequential(*list(image_model.children())[:-1], nn.Flatten())
    image = torch.randn(1, 3, 32, 32)
    expected = features(image)
    found = model(image[:, :, None].expand(-1, -1, 11, -1, -1))
    # Each of the four blocks carries the zeros beyond a clip's ends one frame further.
    alike = [t for t in range(11) if (found[t] - expected).abs().max() < 1e-5 * expected.abs().max()]
    assert alike == (list(range(11)) if kind in ("C2D", "S3D") else [4, 5, 6])


@pytest.mark.parametrize("kind", BASELINES)
def test_every_tensor_but_the_classifiers_starts_from_the_image_network(kind, image_model):
    weights = image_model.state_dict()
    model = ResNet(BLOCKS[kind], DEPTHS["resnet14"])
    loaded, kept = load_2d_weights(model, weights)
    own = model.state_dict()
    assert sorted(loaded + kept) == sorted(own)
    assert all(name.startswith("fc.") or name.endswith("num_batches_tracked") for name in kept)
    for name in loaded:
        if name.endswith("conv2_t.weight"):
            identity = torch.eye(own[name].shape[0])
            assert torch.equal(own[name][:, :, 1, 0, 0], identity)
            assert own[name].sum() == len(identity)
        elif own[name].ndim == 5:
            length = own[name].shape[2]
            assert length == (3 if kind == "C3D" and ".conv2." in name else 1)
            for frame in range(length):
                assert torch.equal(own[name][:, :, frame], weights[name] / length)
        else:
            assert torch.equal(own[name], weights[name])


# ---------------------------------------------------------------------------------------------------------
# What a checkpoint is of.


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_tensors_of_a_bare_state_dict_tell_its_type(kind):
    with torch.device("meta"):
        bare = {"state_dict": small(kind).state_dict()}
    split = (4, 2) if kind == "GST" else (None, None)
    assert describe_model(bare, "a.pth", kind) == (kind, "resnet14", *split, 4, True)
    same = ["C2D", "TSM"] if kind in ("C2D", "TSM") else [kind]
    assert possible_types(bare, "a.pth") == same
    assert describe_model(bare, "a.pth").type == same[0]
    assert describe_model(bare, "a.pth", "C3D" if kind != "C3D" else "S3D").type == same[0]
    # Options decide, also where they leave out what the type does not have.
    said = bare | {"options": {"type": kind, "arch": "resnet14"}}
    assert describe_model(said, "a.pth") == (kind, "resnet14", *split, 4, True)
    assert possible_types(said, "a.pth") == [kind]


def test_a_checkpoint_of_the_published_name_is_c3d():
    with torch.device("meta"):
        saved = {"state_dict": small("C3D").state_dict()}
    saved["options"] = {"type": "R3D", "arch": "resnet14", "alpha": 4, "beta": 2}
    assert describe_model(saved, "a.pth") == ("C3D", "resnet14", None, None, 4, True)


def test_a_tensor_that_no_type_has_is_named():
    with torch.device("meta"):
        state_dict = small("S3D").state_dict()
    name = "base_model.layer1.0.conv2_t.weight"
    for value, told in ((torch.ones(64, 64, 5, 1, 1), f"has '{name}' of a shape"), (None, "lacks '")):
        changed = state_dict | {name: value}
        if value is None:
            del changed[name], changed["base_model.layer1.0.bn1.weight"]
        with pytest.raises(UserError, match=re.escape(told)):
            describe_model({"state_dict": changed}, "a.pth")


# ---------------------------------------------------------------------------------------------------------
# Options and names.


def parse(*words: object):
    return opts.parse_training_options(["--dataset", "mine", "--root_path", "x", *map(str, words)])


def test_alpha_and_beta_are_gsts_alone():
    gst = parse("--beta", 1)
    assert (gst.type, gst.alpha, gst.beta) == ("GST", 4, 1)
    assert RunFiles.of(gst).name == "GST_mine_resnet50_alpha4_beta1_segment8"
    c2d = parse("--type", "C2D")
    assert (c2d.alpha, c2d.beta) == (None, None)
    assert RunFiles.of(c2d).name == "C2D_mine_resnet50_segment8"
    assert TemporalModel(4, 4, "S3D", "resnet14", alpha=8).description == "S3D resnet14"
    assert small("GST").description == "GST resnet14, alpha 4, beta 2"
    for option, value in (("alpha", 4), ("beta", 1)):
        with pytest.raises(UserError, match=f"--{option} {value}: type TSM has no {option}"):
            parse("--type", "TSM", f"--{option}", value)


def test_the_published_name_of_c3d_becomes_c3d():
    args = parse("--type", "R3D")
    assert args.type == "C3D"
    assert RunFiles.of(args).name.startswith("C3D_mine_")
    words = ["--weights", "a", "--dataset", "mine", "--root_path", "x", "--type", "R3D"]
    assert opts.testing_parser().parse_args(words).type == "C3D"


# ---------------------------------------------------------------------------------------------------------
# The programs.


def lines_of(process) -> list[str]:
    errors = process.stderr.splitlines()
    assert process.returncode == 0, process.stderr
    assert all(line.startswith("warning: this CPU has no instructions") for line in errors)
    return process.stdout.splitlines()


def result_of(process) -> str:
    return [line for line in lines_of(process) if line.startswith("Testing Results")][-1]


def data(root: Path) -> tuple[object, ...]:
    return ("--dataset", "somethingv1", "--root_path", root, "-j", 0)


@pytest.fixture(scope="module")
def start(tmp_path_factory, image_model) -> Path:
    path = tmp_path_factory.mktemp("start") / "2d.pth"
    torch.save(image_model.state_dict(), path)
    return path


HOW = {  # what each type is run with, so that four runs are enough
    "C2D": ("--channels_last", "--freeze_bn"),
    "C3D": ("--amp", "bf16"),
    "S3D": ("--amp", "bf16", "--channels_last", "--freeze_bn"),
    "TSM": ("--accumulate", 2),
}


@pytest.mark.parametrize("kind", BASELINES)
def test_a_type_trains_resumes_and_has_one_accuracy(kind, start, trn_root, tmp_path):
    more = ("--type", kind, "--pretrained", start, "-b", 4, "--lr", 0.001, *HOW[kind])
    first = lines_of(call("main.py", *small_run(trn_root, tmp_path, *more)))
    assert any(line.startswith(f"{kind} resnet14: ") for line in first)
    assert any(line.endswith("tensors loaded, not the classifier") for line in first)
    process = call("main.py", *small_run(trn_root, tmp_path, *more, "--epochs", 2, "--resume", "auto"))
    assert any("at epoch 1, step 0" in line for line in lines_of(process))
    weights = tmp_path / "checkpoint" / f"{kind}_somethingv1_resnet14_segment4_checkpoint.pth.tar"
    found = call("test_models.py", *data(trn_root), "--weights", weights)
    assert result_of(found) == result_of(process)
    assert f"{weights}: {kind} resnet14, 4 classes, 4 frames of 32 x 32" in lines_of(found)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_type_trains_and_is_deployed_in_bfloat16(kind):
    model = randomised(small(kind))
    clips = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        expected = model(clips)
        found = fuse(model, CPU, torch.bfloat16)(clips)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(clips).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.fixture
def tsm(tmp_path) -> dict[str, Path]:
    """The same TSM: with its options, and as nothing but its tensors."""
    model = randomised(small("TSM"))
    nn.init.normal_(model.classifier.weight)
    options = {"type": "TSM", "arch": "resnet14", "alpha": None, "beta": None}
    options |= {"num_segments": 4, "input_size": 32}
    contents = {"own": {"state_dict": model.state_dict(), "options": options}, "bare": model.state_dict()}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
    return {name: tmp_path / f"{name}.pth" for name in contents}


def test_tensors_that_two_types_have_are_of_the_one_that_is_given(tsm, trn_root, tmp_path):
    unsaid = ("--weights", tsm["bare"], "--num_segments", 4, "--input_size", 32)
    own = call("test_models.py", *data(trn_root), "--weights", tsm["own"])
    given = call("test_models.py", *data(trn_root), *unsaid, "--type", "TSM")
    assumed = call("test_models.py", *data(trn_root), *unsaid)
    assert result_of(given) == result_of(own)
    assert result_of(assumed) != result_of(own)
    # The programs whose --type is never unknown take it, too.
    run = small_run(trn_root, tmp_path / "out", "--type", "TSM", "-b", 24)
    assert result_of(call("main.py", *run, "-e", "--resume", tsm["bare"])) == result_of(own)
    started = call("main.py", *run, "--pretrained", tsm["bare"])
    assert any("backbone loaded" in line for line in lines_of(started))
    told = "its tensors may be of C2D or TSM: taken for C2D; --type decides"
    assert [told in lines_of(process) for process in (own, given, assumed)] == [False, False, True]


def test_another_type_or_split_than_the_checkpoints_is_refused(tsm, trn_root, tmp_path):
    for option, told in (
        (("--alpha", 4), f"--alpha 4 contradicts {tsm['own']}, which has no alpha"),
        (("--type", "C2D"), f"--type C2D contradicts {tsm['own']}, which has type TSM"),
    ):
        assert_one_line_error(call("test_models.py", *data(trn_root), "--weights", tsm["own"], *option), told)
    out = tmp_path / "out"
    refused = call("main.py", *small_run(trn_root, out, "--pretrained", tsm["own"]))
    assert_one_line_error(refused, "is a model with type TSM (now GST): give --type TSM")
    refused = call("main.py", *small_run(trn_root, out, "--resume", tsm["own"]))
    assert_one_line_error(refused, f"{tsm['own']} was made with type TSM (now GST): give the same")
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------
# The block in the README.


def test_block_of_readme_trains(start, trn_root, tmp_path, monkeypatch):
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = page.partition("## Change the model\n")[2].partition("\n## ")[0]
    example, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = dict(vars(baselines))  # the README appends the class to this module
    exec(example, names)
    ((kind, block),) = eval(f"{{{line}}}", names).items()
    assert f"--type {kind}" in section
    monkeypatch.setitem(models.BLOCKS, kind, block)
    more = ("--type", kind, "--pretrained", start, "-b", 4)
    process = call("main.py", *small_run(trn_root, tmp_path, *more))
    assert any(line.endswith("tensors loaded, not the classifier") for line in lines_of(process))
    (weights,) = (tmp_path / "checkpoint").glob(f"{kind}_*_checkpoint.pth.tar")
    assert result_of(call("test_models.py", *data(trn_root), "--weights", weights)) == result_of(process)
    saved = torch.load(weights, weights_only=True)
    del saved["options"]
    assert [*possible_types(saved, weights)] == [kind]
    saved = saved["state_dict"]
    kernel = saved["base_model.layer1.0.conv_t.weight"][:, 0, :, 0, 0]
    assert (kernel[:, 1] - 1).abs().max() < 0.1  # near the identity that it started from
    assert kernel[:, [0, 2]].abs().max() > 0  # and trained
