"""main.py from the outside: what a run prints and writes, how it resumes, and what it refuses.

`call` runs the program in this process, which saves the seconds of importing torch.
"""

import csv
import errno
import re
import shlex
import shutil
from argparse import Namespace

import helpers
import numpy as np
import pytest
import torch
from helpers import ON_CPU, assert_one_line_error, read_events, run, small_run
from PIL import Image
from resume_harness import NAME, differences
from synthetic import CATEGORIES, FRAMES, make_dataset
from torchvision import transforms

import opts
import training.run
from classes import released_categories
from loader import ClipSampler
from models import TemporalModel
from training.pretrained import load_pretrained
from training.run import check_recipe
from utils.cli import UserError
from utils.metrics import Result

NUMBER = r"\d+\.\d{3} \(\d+\.\d{3}\)"
TRAIN_LINE = re.compile(
    rf"Epoch: \[(\d+)\]\[(\d+)/(\d+)\], lr: (\d+\.\d{{5}})\tTime {NUMBER}\tData {NUMBER}\t"
    rf"Loss (\d+\.\d{{4}}) \((\d+\.\d{{4}})\)\tPrec@1 (\d+\.\d{{3}}) \((\d+\.\d{{3}})\)\tPrec@5 {NUMBER}\t.*"
)
RESULT_LINE = re.compile(r"Testing Results: Prec@1 (\d+\.\d{3}) Prec@5 (\d+\.\d{3}) Loss (\d+\.\d{5})(.*)")


def call(*args):
    return helpers.call("main.py", *args)


def succeed(*args):
    """Run `main.py` without an error, and return its lines."""
    process = call(*args)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr
    return process.stdout.splitlines()


def load_newest(out, name=NAME):
    return torch.load(out / "checkpoint" / f"{name}_checkpoint.pth.tar")


def read_rows(out, name=NAME):
    with (out / "log" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_of(lines):
    """The fields of each line of a training step."""
    return [match.groups() for match in map(TRAIN_LINE.fullmatch, lines) if match]


def results_of(lines):
    """Top-1, top-5 and loss of each result line."""
    matches = filter(None, map(RESULT_LINE.fullmatch, lines))
    return [tuple(map(float, match.groups()[:3])) for match in matches]


def without_times(lines):
    changing = rf"(Time|Data) {NUMBER}|\(\d+ s\)|took \d+ s|\t[\d.]+ clips/s\tleft .*"
    return [re.sub(changing, r"\1", line) for line in lines]


def assert_same_result(one, other, *parts):
    for part in parts or ("epoch", "step", "state_dict", "optimizer", "best_prec1", "history"):
        assert differences(one[part], other[part]) == [], part


# A finished run


@pytest.fixture(scope="module")
def finished(trn_root, tmp_path_factory):
    """A run of a real process: 8 and 6 clips in batches of 5, so that each last batch is short."""
    out = tmp_path_factory.mktemp("finished") / "new" / "folder"
    more = ("-b", 5, "--epochs", 2, "--store_name", "first")
    process = run("main.py", *small_run(trn_root, out, *more), env=ON_CPU)
    assert process.returncode == 0, process.stderr
    name = f"{NAME}_first"
    return Namespace(
        process=process,
        lines=process.stdout.splitlines(),
        root=trn_root,
        out=out,
        more=more,
        name=name,
        last=out / "checkpoint" / f"{name}_checkpoint.pth.tar",
        best=out / "checkpoint" / f"{name}_best.pth.tar",
        rows=read_rows(out, name),
    )


def test_log(finished):
    assert finished.process.stderr == ""  # no progress bar without a terminal
    assert "\r" not in finished.process.stdout
    command = shlex.join(map(str, small_run(finished.root, finished.out, *finished.more)))
    facts = [command, torch.__version__, "8 training clips", "7.24 M parameters", finished.name]
    for fact in [*facts, f"'{CATEGORIES[0]}' <-> '{CATEGORIES[2]}'"]:
        assert fact in finished.process.stdout
    steps = [step[:4] for step in steps_of(finished.lines)]
    assert steps == [(epoch, step, "2", "0.01000") for epoch in "01" for step in "01"]
    assert len(results_of(finished.lines)) == 2
    best = max(float(row["val_prec1"]) for row in finished.rows)
    assert f"Prec@1 {best:.3f}" in finished.lines[-1]
    assert finished.lines[-1].endswith(str(finished.best))


def test_log_file_repeats_the_output_with_times(finished):
    lines = (finished.out / "log" / f"{finished.name}.log").read_text().splitlines()
    time = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
    assert all(time.match(line) for line in lines)
    assert [time.sub("", line, count=1) for line in lines] == finished.lines


def test_csv_has_a_row_for_each_epoch(finished):
    columns = "epoch lr train_loss train_prec1 train_prec5 val_loss val_prec1 val_prec5 val_mean_class"
    assert list(finished.rows[0]) == columns.split()
    assert [row["epoch"] for row in finished.rows] == ["0", "1"]
    for row, (prec1, prec5, loss) in zip(finished.rows, results_of(finished.lines), strict=True):
        assert float(row["lr"]) == 0.01
        assert float(row["val_prec1"]) == pytest.approx(prec1, abs=6e-4)
        assert float(row["val_prec5"]) == pytest.approx(prec5, abs=6e-4)
        assert float(row["val_loss"]) == pytest.approx(loss, abs=6e-6)


def test_training_results_are_averages_over_clips(finished):
    for epoch, row in enumerate(finished.rows):
        steps = [step for step in steps_of(finished.lines) if step[0] == str(epoch)]
        (loss5, prec5), (loss3, prec3) = [(float(step[4]), float(step[6])) for step in steps]
        loss = (5 * loss5 + 3 * loss3) / 8
        assert float(row["train_loss"]) == pytest.approx(loss, abs=1e-4)
        assert abs(loss - (loss5 + loss3) / 2) > 1e-3, "this run cannot tell the two averages apart"
        assert float(row["train_prec1"]) == pytest.approx((5 * prec5 + 3 * prec3) / 8, abs=1e-3)
        assert float(steps[-1][5]) == pytest.approx(loss, abs=1e-4)


def score_clip_by_clip(root, checkpoint):
    """Score the validation clips with torchvision's transforms; return losses and hits."""
    folder, template = FRAMES["somethingv1"]
    model = TemporalModel(4, 4, backbone="resnet14").eval()
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    prepare = transforms.Compose(
        [
            transforms.Resize(32 * 256 // 224),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    losses, hits = [], []
    for line in (root / "somethingv1" / "val_videofolder.txt").read_text().splitlines():
        video, _, label = line.split()
        numbers = (2, 4, 7, 9)  # the middles of four segments of ten frames
        paths = [root / "somethingv1" / folder / video / template.format(number) for number in numbers]
        with torch.no_grad():
            logits = model(torch.stack([prepare(Image.open(path)) for path in paths])[None])[0].double()
        losses.append(float(torch.logsumexp(logits, 0) - logits[int(label)]))
        hits.append(int(logits.argmax()) == int(label))
    return losses, hits


def test_validation_results_are_averages_over_clips(finished):
    losses, hits = score_clip_by_clip(finished.root, finished.last)
    row = finished.rows[-1]
    assert float(row["val_loss"]) == pytest.approx(np.mean(losses), abs=2e-4)
    assert abs(np.mean(losses) - (np.mean(losses[:5]) + losses[5]) / 2) > 2e-3, "averages too close to tell"
    assert float(row["val_prec1"]) == pytest.approx(100 * np.mean(hits))


def read_scalars(folder):
    """`{tag: {step: value}}` of the curves in TensorBoard's files."""
    curves = {}
    for tag, values in read_events(folder).items():
        curve = {step: value.simple_value for step, value in values.items() if value.HasField("simple_value")}
        curves |= {tag: curve} if curve else {}
    return curves


def test_tensorboard_curves(finished):
    scalars = read_scalars(finished.out / "tensorboard" / finished.name)
    names = ("loss", "prec1", "prec5", "lr", "gradient_norm", "step_time", "data_time")
    assert all(list(scalars[f"train/{name}"]) == [0, 1, 2, 3] for name in names)
    losses = [float(step[4]) for step in steps_of(finished.lines)]
    assert list(scalars["train/loss"].values()) == pytest.approx(losses, abs=6e-5)
    assert list(scalars["train/lr"].values()) == pytest.approx([0.01] * 4)
    for column in ("train_loss", "val_prec1"):
        assert list(scalars[f"epoch/{column}"]) == [1, 3]
        values = [float(row[column]) for row in finished.rows]
        assert list(scalars[f"epoch/{column}"].values()) == pytest.approx(values, rel=1e-6)
    classes = [curve[3] for tag, curve in scalars.items() if tag.startswith("val_class/")]
    assert np.mean(classes) == pytest.approx(float(finished.rows[1]["val_mean_class"]), rel=1e-5)


def test_checkpoint_content(finished):
    checkpoint = torch.load(finished.last)
    assert (checkpoint["epoch"], checkpoint["arch"]) == (2, "resnet14")
    model = TemporalModel(4, 4, backbone="resnet14")
    shapes = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    assert type(checkpoint["best_prec1"]) is float
    accuracies = [float(row["val_prec1"]) for row in finished.rows]
    assert checkpoint["best_prec1"] == max(accuracies)
    assert checkpoint["categories"] == list(CATEGORIES)
    assert checkpoint["mirrored"] == [2, 1, 0, 3]
    best = torch.load(finished.best)
    assert best["epoch"] == accuracies.index(best["best_prec1"]) + 1
    assert torch.load(f"{finished.last}.1")["epoch"] == 1


def test_evaluate_repeats_the_validation(finished):
    before = contents(finished.out)
    lines = succeed(*small_run(finished.root, finished.out, "-b", 5, "-e", "--resume", finished.last))
    assert results_of(lines) == results_of(finished.lines)[-1:]
    assert not steps_of(lines)
    assert contents(finished.out) == before


# Names and older runs


def test_older_run_is_not_overwritten(finished, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    before = contents(tmp_path / "out")
    for kept in (finished.last.name, finished.best.name, f"{finished.name}.csv"):
        process = call(*small_run(finished.root, tmp_path / "out", *finished.more))
        assert_one_line_error(process, kept, "--resume", "--store_name", "--overwrite")
        assert contents(tmp_path / "out") == before
        for path in (tmp_path / "out").rglob(f"{kept}*"):  # the next file alone is enough
            del before[path.relative_to(tmp_path / "out")]
            path.unlink()


def test_overwrite_deletes_the_older_run(finished, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    succeed(*small_run(finished.root, tmp_path / "out", *finished.more, "--epochs", 1, "--overwrite"))
    checkpoints = {path.name for path in (tmp_path / "out" / "checkpoint").iterdir()}
    assert checkpoints == {finished.last.name, finished.best.name}  # the .1 is gone
    assert load_newest(tmp_path / "out", finished.name)["epoch"] == 1
    assert len(read_rows(tmp_path / "out", finished.name)) == 1
    assert len(list((tmp_path / "out" / "tensorboard" / finished.name).iterdir())) == 1


# Resuming

TWO_EPOCHS = ("-b", 5, "--lr", 0.002, "--lr_steps", 1)


@pytest.fixture(scope="module")
def halves(trn_root, tmp_path_factory):
    """A run of two epochs, whose rate falls after the first, and the same in two parts."""
    whole, parts = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    log = succeed(*small_run(trn_root, whole, *TWO_EPOCHS, "--epochs", 2))
    succeed(*small_run(trn_root, parts, *TWO_EPOCHS, "--epochs", 1))
    checkpoint = parts / "checkpoint" / f"{NAME}_checkpoint.pth.tar"
    half = parts / "half.pth.tar"
    shutil.copy(checkpoint, half)
    resumed = succeed(*small_run(trn_root, parts, *TWO_EPOCHS, "--epochs", 2, "--resume", checkpoint))
    return Namespace(root=trn_root, whole=whole, parts=parts, half=half, log=log, resumed=resumed)


@pytest.mark.slow
def test_resume_is_bit_exact(halves):
    for name in ("checkpoint", "best"):
        files = [out / "checkpoint" / f"{NAME}_{name}.pth.tar" for out in (halves.whole, halves.parts)]
        assert_same_result(*map(torch.load, files))
    one, other = read_rows(halves.whole), read_rows(halves.parts)
    assert len(one) == 2
    assert one == other
    one, other = (read_scalars(out / "tensorboard" / NAME) for out in (halves.whole, halves.parts))
    for tag in ("train/loss", "epoch/val_prec1"):
        assert one[tag] == other[tag]


def resume(halves, out, *more, checkpoint=None, root=None):
    """Resume the run of one epoch, with other options."""
    more = (*TWO_EPOCHS, "--epochs", 2, "--resume", checkpoint or halves.half, *more)
    return call(*small_run(root or halves.root, out, *more))


CHANGES = """
    --dataset=somethingv2 --alpha=8 --beta=1 --arch=resnet26 --num_segments=3 --input_size=64 --dropout=0.4
    --batch-size=6 --accumulate=2 --lr=0.003 --lr_mult_new=2 --lr_schedule=cosine --lr_steps=2
    --consensus=max --freeze=layer1 --label_smoothing=0.1 --mixup=0.2 --best=mean_class --warmup_epochs=1
    --momentum=0.8 --weight_decay=0.001 --clip-gradient=10 --freeze_bn --seed=1 --amp=bf16
"""


@pytest.mark.parametrize("change", CHANGES.split())
def test_resume_refuses_another_recipe(change):
    options = opts.parse_training_options(["--arch", "resnet14"])
    checkpoint = {"options": vars(options)}
    with torch.device("meta"):
        checkpoint["state_dict"] = TemporalModel(4, 8, backbone="resnet14").state_dict()
    check_recipe(options, checkpoint, "a.pth")
    other = opts.parse_training_options(["--arch", "resnet14", *change.split()])
    name = change.strip("-").partition("=")[0].replace("-", "_")
    with pytest.raises(UserError, match=f"^a.pth .*{name} "):
        check_recipe(other, checkpoint, "a.pth")


@pytest.mark.parametrize("change", ["--class_weights=balanced", "--no_flip"])
def test_resume_refuses_other_options(halves, tmp_path, change):
    process = resume(halves, tmp_path, change)
    assert_one_line_error(process, halves.half, change.strip("-").partition("=")[0])
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("file", ["category.txt", "train_videofolder.txt", "val_videofolder.txt"])
def test_resume_refuses_other_data(halves, tmp_path, file):
    shutil.copytree(halves.root, tmp_path / "data")
    path = tmp_path / "data" / "somethingv1" / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[2], lines[1], lines[0], *lines[3:]]) + "\n")
    process = resume(halves, tmp_path / "out", root=tmp_path / "data")
    assert_one_line_error(process, halves.half, file)
    assert not (tmp_path / "out" / "checkpoint").exists()


@pytest.mark.slow
def test_released_checkpoint_evaluates_and_trains_further(halves, tmp_path):
    # As saved by the authors' code under DataParallel: keys, a tensor for the accuracy, torch's old format.
    state = {f"module.{name}": value for name, value in torch.load(halves.half)["state_dict"].items()}
    released = {"epoch": 1, "arch": "resnet14", "state_dict": state, "best_prec1": torch.tensor(99.0)}
    path = tmp_path / "released.pth.tar"
    torch.save(released, path, _use_new_zipfile_serialization=False)
    process = resume(halves, tmp_path / "out", "--evaluate", checkpoint=path)
    row = read_rows(halves.whole)[0]
    result = tuple(float(row[f"val_{name}"]) for name in ("prec1", "prec5", "loss"))
    assert results_of(process.stdout.splitlines()) == [pytest.approx(result, abs=6e-4)]
    assert not (tmp_path / "out" / "checkpoint").exists()
    torch.save(released["state_dict"], tmp_path / "bare.pth")
    more = ("--start-epoch", 1)
    lines = resume(halves, tmp_path / "out", *more, checkpoint=tmp_path / "bare.pth").stdout.splitlines()
    # The first step has the same weights, so the same loss. Momentum is gone, so the next one differs.
    ours = [line for line in lines if line.startswith("Epoch")]
    theirs = [line for line in halves.log if line.startswith("Epoch: [1]")]
    assert without_times(ours)[0] == without_times(theirs)[0]
    assert without_times(ours)[1] != without_times(theirs)[1]
    checkpoint = load_newest(tmp_path / "out")
    assert checkpoint["epoch"] == 2
    assert type(checkpoint["best_prec1"]) is float


def test_evaluate_maps_labels_by_name_and_resume_refuses(halves, tmp_path):
    expected = results_of(resume(halves, tmp_path, "--evaluate").stdout.splitlines())
    shutil.copytree(halves.root, tmp_path / "data")
    order = [2, 0, 3, 1]
    names = [CATEGORIES[label].replace("something", "[something]") for label in order]
    home = tmp_path / "data" / "somethingv1"
    (home / "category.txt").write_text("\n".join(names))
    for file in (home / "val_videofolder.txt", home / "train_videofolder.txt"):
        lines = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{start} {order.index(int(label))}\n" for start, label in lines))
    process = resume(halves, tmp_path, "--evaluate", root=tmp_path / "data")
    assert results_of(process.stdout.splitlines()) == expected
    refused = resume(halves, tmp_path / "out", root=tmp_path / "data")
    assert_one_line_error(refused, halves.half, "category.txt")


# Initial weights


def save_filled(path, categories, is_released=False, **kwargs):
    """Save a checkpoint of a small GST whose tensors are not those of a new model; return the model."""
    model = TemporalModel(len(categories), 4, **{"backbone": "resnet14"} | kwargs)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.9, 1.1)
    content = {"state_dict": model.state_dict(), "epoch": 40, "best_prec1": 99.0, "arch": "resnet14"}
    if is_released:
        content["state_dict"] = {f"module.{name}": value for name, value in content["state_dict"].items()}
    else:
        options = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "lr": 0.3}
        content |= {"options": options, "categories": list(categories), "step": 5, "history": []}
    torch.save(content, path)
    return model


def start_from(path, categories=CATEGORIES, dropout=0.3, *options):
    """Load the weights of --pretrained; return the model, and whether its classifier is new."""
    args = opts.parse_training_options(["--arch", "resnet14", "--pretrained", str(path), *options])
    torch.manual_seed(0)
    model = TemporalModel(len(categories), 4, backbone="resnet14", dropout=dropout)
    return model, load_pretrained(model, args, list(categories))


def assert_backbone(model, expected):
    for name, value in expected.base_model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(model.base_model.state_dict()[name], value), name


def test_start_from_another_data_set(trn_root, tmp_path):
    """A run with its own epochs and best accuracy, whose classifier is new and learns faster."""
    path = tmp_path / "start.pth"
    save_filled(path, ["Up", "Down", "Left", "Right", "Away"])
    lines = succeed(*small_run(trn_root, tmp_path, "-b", 8, "--pretrained", path, "--lr_mult_new", 10))
    assert any(
        line.startswith(f"{path}: backbone loaded; the classifier starts from scratch") for line in lines
    )
    checkpoint = load_newest(tmp_path)
    assert (checkpoint["epoch"], len(checkpoint["history"])) == (1, 1)
    assert checkpoint["best_prec1"] == checkpoint["history"][0]["val_prec1"]
    assert checkpoint["new_classifier"] is True
    rates = {group["name"]: group["lr"] for group in checkpoint["optimizer"]["param_groups"]}
    assert rates["normal_weight"] == pytest.approx(0.01)
    assert rates["classifier_weight"] == pytest.approx(0.1)


@pytest.mark.parametrize(("old_dropout", "dropout"), [(0.3, 0), (0, 0.3)])
def test_same_classes_keep_the_classifier(tmp_path, old_dropout, dropout):
    order = [2, 0, 3, 1]
    names = [CATEGORIES[label].replace("something", "[something]") for label in order]
    saved = save_filled(tmp_path / "start.pth", names, dropout=old_dropout)
    model, is_new = start_from(tmp_path / "start.pth", CATEGORIES, dropout)
    assert not is_new
    assert_backbone(model, saved)
    assert torch.equal(model.classifier.weight[order], saved.classifier.weight)
    assert torch.equal(model.classifier.bias[order], saved.classifier.bias)


def test_released_file_has_the_174_classes(tmp_path):
    names = released_categories()
    saved = save_filled(tmp_path / "start.pth", names, is_released=True)
    bracketed = sorted(name.replace("something", "[something]") for name in names)
    model, is_new = start_from(tmp_path / "start.pth", bracketed)
    permutation = [names.index(name.replace("[", "").replace("]", "")) for name in bracketed]
    assert permutation != sorted(permutation)
    assert not is_new
    assert torch.equal(model.classifier.weight, saved.classifier.weight[permutation])


# Wrong input: one line that names the culprit, and nothing is written


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ("--gpus 99", "--gpus"),
        ("--sync_bn", "--sync_bn"),
        ("--resume none.pth.tar", "none.pth.tar"),
        ("--checkpoint_dir /dev/null/out", "/dev/null/out"),
        ("--flip_pairs none.txt", "none.txt"),
        ("--pretrained none.pth", "none.pth"),
    ],
)
def test_wrong_option_is_one_line(trn_root, tmp_path, options, culprit):
    process = call(*small_run(trn_root, tmp_path / "out", *shlex.split(options)))
    assert_one_line_error(process, culprit)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_wrong_data_is_one_line(tmp_path):
    root = make_dataset(tmp_path / "data", train=3, val=3, frames=3, size=(36, 36))
    (root / "somethingv1" / "val_videofolder.txt").write_text("1 3 0\n2 3")
    process = call(*small_run(root, tmp_path / "out"))
    assert_one_line_error(process, root / "somethingv1", "val_videofolder.txt, line 2")
    assert "parameters" not in process.stdout  # no model was built
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_missing_frames_are_refused_or_skipped(tmp_path):
    """Videos that the list says are too short for a clip are counted, too."""
    root = make_dataset(tmp_path / "data", train=14, val=4, frames=[*[3] * 17, 2], size=(36, 36))
    frames = root / "somethingv1" / FRAMES["somethingv1"][0]
    for number in range(1, 12):
        shutil.rmtree(frames / str(number))
    (frames / "12" / "00003.jpg").unlink()  # the last frame of the list's three
    process = call(*small_run(root, tmp_path / "out"))
    assert_one_line_error(process, "train_videofolder.txt: 12 of 14 videos", "--skip_missing", frames / "1")
    assert "parameters" not in process.stdout
    assert not (tmp_path / "out" / "checkpoint").exists()

    shutil.rmtree(frames / "15")
    process = call(*small_run(root, tmp_path / "out", "--skip_missing"))
    lines = process.stdout.splitlines()
    assert (process.returncode, len(process.stderr.splitlines())) == (0, 1)
    assert f"warning: no training clips of '{CATEGORIES[2]}', '{CATEGORIES[3]}'" in process.stderr
    assert any("2 training clips" in line for line in lines)
    assert [match[4] for match in map(RESULT_LINE.fullmatch, lines) if match] == [" (2 of 4 videos)"]


@pytest.mark.slow
def test_run_continues_without_a_broken_video(tmp_path):
    """The error names --exclude. The resumed run has the other steps, and remembers the video."""
    root = make_dataset(tmp_path / "data", frames=8, train=9, val=3)
    last_step = ClipSampler(9, 3, seed=0).batches_of(2)[0]
    video = root / "somethingv1" / FRAMES["somethingv1"][0] / str(last_step[0] + 1)
    for path in video.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    out = tmp_path / "out"
    command = small_run(root, out, "-b", 3, "--lr", 0.001, "--save-freq", 1, "--resume", "auto")
    process = call(*command, "-j", 2)
    assert_one_line_error(process, f"{video}/0000", "--exclude", f"'{video.name}'")
    assert [step[1] for step in steps_of(process.stdout.splitlines())] == ["0", "1"]

    names = tmp_path / "broken.txt"
    names.write_text(f"\n {video.name} \n")
    assert [step[1] for step in steps_of(succeed(*command, "--exclude", names))] == ["2"]
    assert load_newest(out)["excluded"] == [video.name]
    process = call(*command)  # without the option, the video stays excluded
    assert (process.returncode, load_newest(out)["excluded"]) == (0, [video.name])


# Training


def test_diverged_training_saves_nothing(trn_root, tmp_path):
    """With one step an epoch, the loss is finite, and only the evaluation sees the new weights."""
    for batch_size, culprit in ((4, "epoch 0, step 1"), (8, "validation loss")):
        process = call(*small_run(trn_root, tmp_path, "-b", batch_size, "--lr", 1e30))
        assert_one_line_error(process, culprit, "--lr")
        assert list((tmp_path / "checkpoint").iterdir()) == []
    assert "error: epoch 0, step 1" in (tmp_path / "log" / f"{NAME}.log").read_text()


def test_best_accuracy_is_that_of_the_best_file(trn_root, tmp_path, monkeypatch):
    """Also if the best checkpoint could not be saved."""
    accuracies, saves, averages, save = (40.0, 60.0, 50.0), [], Result.averages, training.run.save_checkpoint

    def save_but_once(*args):
        saves.append(args)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args)

    monkeypatch.setattr("training.run.save_checkpoint", save_but_once)
    monkeypatch.setattr(Result, "averages", lambda self: averages(self) | {"prec1": accuracies[len(saves)]})
    process = call(*small_run(trn_root, tmp_path, "-b", 8, "--epochs", 3, "--lr", 0.001))
    assert process.returncode == 0
    assert "Prec@1 50.000 (epoch 2)" in process.stdout
    (best,) = (tmp_path / "checkpoint").glob("*_best.pth.tar")
    content = torch.load(best)
    assert (content["epoch"], content["best_prec1"]) == (3, 50.0)


def test_resume_from_the_best_checkpoint_alone(trn_root, tmp_path):
    """As after a kill between the two renames of the first save."""
    assert call(*small_run(trn_root, tmp_path, "--lr", 0.001)).returncode == 0
    next((tmp_path / "checkpoint").glob("*_checkpoint.pth.tar")).unlink()
    process = call(*small_run(trn_root, tmp_path, "--lr", 0.001, "--resume", "auto"))
    assert process.returncode == 0
    assert "resumed " in process.stdout


def test_evaluation_every_few_epochs_and_after_the_last(trn_root, tmp_path):
    more = ("-b", 8, "--epochs", 3, "-ef", 2, "--lr", 0.001, "--keep", 1)
    assert len(results_of(succeed(*small_run(trn_root, tmp_path, *more)))) == 2
    assert [row["val_loss"] != "" for row in read_rows(tmp_path)] == [False, True, True]
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2  # the newest and the best
