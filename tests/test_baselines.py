"""The other types of block than GST: what they compute, how they start, and that the programs take them."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from helpers import REPOSITORY, call, small_run
from torch import nn

import baselines
import models
import opts
from baselines import C2DBottleneck, C3DBottleneck, S3DBottleneck, TSMBottleneck
from inference.fuse import fuse, use_2d_kernels
from models import BLOCKS, TemporalModel
from resnet_gst import DEPTHS, ResNet, load_2d_weights
from training.describe import describe_model, possible_types
from training.files import RunFiles
from utils.cli import UserError

CPU = torch.device("cpu")
BASELINES = {"C2D": C2DBottleneck, "C3D": C3DBottleneck, "S3D": S3DBottleneck, "TSM": TSMBottleneck}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(module: nn.Module) -> nn.Module:
    """Give batch norms values that differ between channels, and switch to evaluation mode."""
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.1)
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


def small_model(kind: str, **kwargs: object) -> TemporalModel:
    return TemporalModel(4, 4, kind, "resnet14", input_size=32, **kwargs)


# ---------------------------------------------------------------------------------------------------------
# What they compute


def compute(kind: str, block: nn.Module, x: torch.Tensor, stride: int) -> torch.Tensor:
    """A block without shortcut projection, in plain functions."""

    def norm(x, module):
        statistics = (module.running_mean, module.running_var, module.weight, module.bias)
        return nn.functional.batch_norm(x, *statistics)

    out = x
    if kind == "TSM":
        out, share = x.clone(), x.shape[1] // 8
        out[:, : 2 * share] = 0
        out[:, :share, :-1] = x[:, :share, 1:]
        out[:, share : 2 * share, 1:] = x[:, share : 2 * share, :-1]
    out = norm(nn.functional.conv3d(out, block.conv1.weight), block.bn1).relu()
    padding = (1, 1, 1) if kind == "C3D" else (0, 1, 1)
    out = nn.functional.conv3d(out, block.conv2.weight, stride=(1, stride, stride), padding=padding)
    if kind == "S3D":
        out = nn.functional.conv3d(out, block.conv2_t.weight, padding=(1, 0, 0))
    out = norm(nn.functional.conv3d(norm(out, block.bn2).relu(), block.conv3.weight), block.bn3)
    return (out + (x if stride == 1 else nn.functional.avg_pool3d(x, (1, 2, 2)))).relu()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", BASELINES)
@torch.no_grad()
def test_output_by_hand(kind, stride):
    shortcut = None if stride == 1 else nn.AvgPool3d((1, 2, 2))
    block = randomised(BASELINES[kind](256, 64, stride, shortcut))
    x = torch.randn(2, 256, 5, 6, 6)
    torch.testing.assert_close(block(x), compute(kind, block, x, stride), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASELINES)
@torch.no_grad()
def test_fused_and_2d_kernels(kind):
    model = randomised(small_model(kind))
    clips = torch.randn(2, 4, 3, 32, 32)
    expected = model(clips)
    fused = fuse(model, CPU)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in fused.modules())
    use_2d_kernels(fused)
    for other, tolerance in ((fused, 1e-5), (fuse(model, CPU, torch.bfloat16), 0.1)):
        assert (other(clips) - expected).abs().max() < tolerance * expected.abs().max()


# ---------------------------------------------------------------------------------------------------------
# The start from a 2D ResNet


@pytest.fixture(scope="module")
def image_model() -> nn.Module:
    torch.manual_seed(1)
    return randomised(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]))


@pytest.mark.parametrize("kind", BASELINES)
@torch.no_grad()
def test_still_clip_has_features_of_image_network(kind, image_model):
    model = ResNet(BLOCKS[kind], DEPTHS["resnet14"]).eval()
    load_2d_weights(model, image_model.state_dict())
    model.fc = nn.Identity()
    image = torch.randn(1, 3, 32, 32)
    expected = nn.Sequential(*list(image_model.children())[:-1], nn.Flatten())(image)
    features = model(image[:, :, None].expand(-1, -1, 11, -1, -1))
    # Each of the four blocks carries the zeros beyond a clip's ends one frame further.
    equal = [t for t in range(11) if (features[t] - expected).abs().max() < 1e-5 * expected.abs().max()]
    assert equal == (list(range(11)) if kind in ("C2D", "S3D") else [4, 5, 6])


# ---------------------------------------------------------------------------------------------------------
# Types of checkpoints and options


@pytest.mark.parametrize("kind", BLOCKS)
def test_type_from_tensors(kind):
    with torch.device("meta"):
        bare = {"state_dict": small_model(kind).state_dict()}
    alpha_beta = (4, 2) if kind == "GST" else (None, None)
    assert describe_model(bare, "a.pth", kind) == (kind, "resnet14", *alpha_beta, 4, True, "mean")
    fitting = ["C2D", "TSM"] if kind in ("C2D", "TSM") else [kind]
    assert [*possible_types(bare, "a.pth")] == fitting
    assert describe_model(bare, "a.pth").type == fitting[0]
    # The checkpoint's options decide, even without alpha and beta.
    own = bare | {"options": {"type": kind, "arch": "resnet14"}}
    assert describe_model(own, "a.pth") == (kind, "resnet14", *alpha_beta, 4, True, "mean")
    assert [*possible_types(own, "a.pth")] == [kind]


def parse(*words: object):
    return opts.parse_training_options(["--dataset", "mine", "--root_path", "x", *map(str, words)])


def test_alpha_and_beta_belong_to_gst():
    gst = parse("--beta", 1)
    assert (gst.type, gst.alpha, gst.beta) == ("GST", 4, 1)
    assert RunFiles(gst).name == "GST_mine_resnet50_alpha4_beta1_segment8"
    c2d = parse("--type", "C2D")
    assert (c2d.alpha, c2d.beta) == (None, None)
    assert RunFiles(c2d).name == "C2D_mine_resnet50_segment8"
    with pytest.raises(UserError, match="--alpha 4"):
        parse("--type", "TSM", "--alpha", 4)


def test_published_name_of_c3d():
    args = parse("--type", "R3D")
    assert args.type == "C3D"
    assert RunFiles(args).name.startswith("C3D_mine_")
    with torch.device("meta"):
        checkpoint = {"state_dict": small_model("C3D").state_dict()}
    checkpoint["options"] = {"type": "R3D", "arch": "resnet14", "alpha": 4, "beta": 2}
    assert describe_model(checkpoint, "a.pth") == ("C3D", "resnet14", None, None, 4, True, "mean")


# ---------------------------------------------------------------------------------------------------------
# The programs


def lines_of(process) -> list[str]:
    assert process.returncode == 0, process.stderr
    assert all("has no instructions for bf16" in line for line in process.stderr.splitlines())
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("S3D", ("--freeze_bn",)), ("TSM", ("--accumulate", 2))])
def test_training_resume_and_evaluation(kind, options, start, trn_root, tmp_path):
    more = ("--type", kind, "--pretrained", start, "-b", 4, "--lr", 0.001, *options)
    first = lines_of(call("main.py", *small_run(trn_root, tmp_path, *more)))
    assert any(line.startswith(f"{kind} resnet14: ") for line in first)
    process = call("main.py", *small_run(trn_root, tmp_path, *more, "--epochs", 2, "--resume", "auto"))
    weights = tmp_path / "checkpoint" / f"{kind}_somethingv1_resnet14_segment4_checkpoint.pth.tar"
    assert result_of(call("test_models.py", *data(trn_root), "--weights", weights)) == result_of(process)


@pytest.fixture
def tsm(tmp_path) -> dict[str, Path]:
    """The same TSM with its options, and as a bare state dict."""
    model = randomised(small_model("TSM"))
    nn.init.normal_(model.classifier.weight)
    options = {"type": "TSM", "arch": "resnet14", "alpha": None, "beta": None}
    options |= {"num_segments": 4, "input_size": 32}
    contents = {"own": {"state_dict": model.state_dict(), "options": options}, "bare": model.state_dict()}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
    return {name: tmp_path / f"{name}.pth" for name in contents}


@pytest.mark.slow
def test_type_option_decides_between_c2d_and_tsm(tsm, trn_root, tmp_path):
    bare = ("--weights", tsm["bare"], "--num_segments", 4, "--input_size", 32)
    own = call("test_models.py", *data(trn_root), "--weights", tsm["own"])
    stated = call("test_models.py", *data(trn_root), *bare, "--type", "TSM")
    guessed = call("test_models.py", *data(trn_root), *bare)
    assert result_of(stated) == result_of(own)
    assert result_of(guessed) != result_of(own)
    assert ["override with" in process.stdout for process in (own, stated, guessed)] == [False, False, True]
    run = small_run(trn_root, tmp_path / "out", "--type", "TSM", "-b", 24)
    assert result_of(call("main.py", *run, "-e", "--resume", tsm["bare"])) == result_of(own)
    lines_of(call("main.py", *run, "--pretrained", tsm["bare"]))


@pytest.mark.slow
def test_block_of_readme_trains(start, trn_root, tmp_path, monkeypatch):
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = page.partition("## Change the model\n")[2].partition("\n## ")[0]
    example, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = dict(vars(baselines))  # the README appends the class to this module
    exec(example, names)
    ((kind, block),) = eval(f"{{{line}}}", {"baselines": SimpleNamespace(**names)}).items()
    assert f"--type {kind}" in section
    monkeypatch.setitem(models.BLOCKS, kind, block)
    process = call("main.py", *small_run(trn_root, tmp_path, "--type", kind, "--pretrained", start, "-b", 4))
    (weights,) = (tmp_path / "checkpoint").glob(f"{kind}_*_checkpoint.pth.tar")
    assert result_of(call("test_models.py", *data(trn_root), "--weights", weights)) == result_of(process)
    kernel = torch.load(weights, weights_only=True)["state_dict"]["base_model.layer1.0.conv_t.weight"]
    kernel = kernel[:, 0, :, 0, 0]
    assert (kernel[:, 1] - 1).abs().max() < 0.1  # near the identity, where it starts
    assert kernel[:, [0, 2]].abs().max() > 0  # and trained
