"""docs/OWN_DATA.md: its commands, executed in order with less data."""

import csv
import re
import shlex

import pytest
import torch
from helpers import REPOSITORY, run
from PIL import Image

from models import TemporalModel

PAGE = (REPOSITORY / "docs" / "OWN_DATA.md").read_text(encoding="utf-8")
CLASSES = ["clap", "jump", "sit_down", "stand_up", "step_left", "step_right", "wave"]
SMALLER = {"--people 20": "--people 2", "--input_size 64": "--input_size 32", "--epochs 20": "--epochs 1"}


def save_demo(path):
    """Save a checkpoint like that of `make demo`, with random weights."""
    model = TemporalModel(6, 8, backbone="resnet14", input_size=48)
    options = {"type": "GST", "arch": "resnet14", "alpha": 4, "beta": 2, "num_segments": 8, "input_size": 48}
    content = {"state_dict": model.state_dict(), "options": options, "categories": list("abcdef")}
    path.parent.mkdir(parents=True)
    torch.save(content, path)


def result(text):
    return re.search(r"Testing Results: (Prec@1 \S+)", text)[1]


@pytest.mark.slow
def test_commands_of_the_page(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = "".join(blocks).replace("\\\n", "").splitlines()
    save_demo(tmp_path / re.search(r"--pretrained (demo/\S+)", PAGE)[1])
    texts = {}
    for command in commands:
        for large, small in SMALLER.items():
            command = command.replace(large, small)
        python, program, *args = shlex.split(command)
        assert python == "python"
        done = run(program, *args, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
        texts.setdefault(program, []).append(done.stdout)
    assert all(large in PAGE for large in SMALLER)

    # Lists: --group keeps each person in one of them
    divided, grouped, checked = texts["tools/process_dataset.py"]
    assert "  wave: 6, 2\n" in divided
    assert "  wave: 4, 4\n" in grouped
    assert "0 problems, 0 notes" in grouped
    assert "0 problems, 0 notes" in checked
    lists = tmp_path / "data" / "gestures"
    assert (lists / "category.txt").read_text().split() == CLASSES
    people = [
        set(re.findall(r"person\d+", (lists / f"{name}_videofolder.txt").read_text()))
        for name in ("train", "val")
    ]
    assert [len(people[0]), len(people[1]), len(people[0] & people[1])] == [1, 1, 0]

    # Training
    (trained,) = texts["main.py"]
    assert "backbone loaded; the classifier starts from scratch" in trained
    assert "largest class: 'wave', 30.8 % of the training" in trained
    assert "swaps 'step_left' <-> 'step_right'" in trained
    assert "best checkpoint, mean class accuracy" in trained

    # Evaluation, of the exported model, too
    tested, exported = texts["test_models.py"]
    assert result(tested) == result(exported) == result(trained)
    with (tmp_path / "report" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    right = sum(row["true class"] == row["predicted class"] for row in rows)
    assert result(tested) == f"Prec@1 {100 * right / 13:.3f}"
    pictures = ("report/confusion.png", "report/mistakes.png", "answer.png")
    assert all(Image.open(tmp_path / name).width >= 320 for name in pictures)

    # New videos
    answers, _ = texts["test_video.py"]
    assert re.findall(r"RESULT ON gestures/new/(\w+)", answers) == ["clap", "sit_down", "step_left"]
    assert set(re.findall(r"0\.\d+ -> (\w+)", answers)) <= {*CLASSES}


def test_pictures_of_the_page():
    pictures = re.findall(r"!\[.+\]\((\S+)\)", PAGE)
    assert len(pictures) == 5
    for name in pictures:
        assert (REPOSITORY / "docs" / name).stat().st_size < 150_000
