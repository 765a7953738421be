"""`reports/report.py` and its pictures: tables against hand-counted cases, refusals, `--report` itself."""

import csv
import os
import signal
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import assert_one_line_error, call, files_limited_to
from PIL import Image
from synthetic import CATEGORIES, make_dataset

from classes import mirrored_labels, released_categories
from dataset import VideoDataSet
from models import TemporalModel
from reports import plots, report
from reports.render import render_film
from utils.cli import UserError
from utils.metrics import Result, summarise

# Two mirrored classes, one without clips, one whose name Markdown, TeX and CSV would take for something else.
NAMES = ("Pulling it left", 'a*b | <i>$x_1$, "c"', "Nothing", "Pulling it right")
LABELS = (0, 0, 0, 1, 1, 3, 3, 3)
PREDICTIONS = (0, 0, 3, 1, 0, 3, 0, 0)
LONG_NAMES = [f"{word} " * 40 for word in ("Pushing", "WWWWW", "從左到右", "Ünder|g", "a\\b\t")]
LONG_NAMES += ["$\\no$"]  # TeX would refuse it


def evaluated(labels: Sequence[int], predictions: Sequence[int], num_class: int) -> Result:
    """A result with these predictions, the first clip's the surest and the last one's the least sure."""
    scores = torch.zeros(len(labels), num_class)
    scores[range(len(labels)), list(predictions)] = torch.linspace(3, 1, len(labels))
    return summarise(scores, torch.tensor(labels))


def rows_of(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the table below a heading."""
    section = markdown.split(f"## {heading}\n")[1].split("\n## ")[0].replace("\\|", "/")
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoDataSet:
    """As many videos as there are LABELS. Read only: it is shared."""
    root = make_dataset(tmp_path_factory.mktemp("data"), train=0, val=len(LABELS), categories=NAMES)
    home = root / "somethingv1"
    frames = home / "20bn-something-something-v1"
    return VideoDataSet(
        *(frames, home / "val_videofolder.txt", 4, "{:05d}.jpg"),
        random_shift=False,
        test_mode=True,
        num_class=len(NAMES),
    )


def test_tables_equal_hand_counts(tmp_path, videos):
    result = evaluated(LABELS, PREDICTIONS, 4)
    report.write_report(tmp_path / "new" / "out", result, NAMES, videos, "GST *resnet50*, 4 classes")
    files = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert files == {"report.md", "per_class.csv", "predictions.csv", "confusion.png", "mistakes.png"}

    with (tmp_path / "new" / "out" / "per_class.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", "class", "clips", "top-1", "top-5", "most confused with", "clips confused"]
    assert rows == [
        ["0", NAMES[0], "3", "66.667", "100.000", NAMES[3], "1"],
        ["1", NAMES[1], "2", "50.000", "100.000", NAMES[0], "1"],
        ["2", NAMES[2], "0", "", "", "", ""],
        ["3", NAMES[3], "3", "33.333", "100.000", NAMES[0], "2"],
    ]

    with (tmp_path / "new" / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    probabilities = torch.tensor(result.scores).softmax(1)
    for clip, (video, true, predicted, *shares) in enumerate(rows):
        label, prediction = LABELS[clip], PREDICTIONS[clip]
        assert (video, true, predicted) == (str(clip + 1), NAMES[label], NAMES[prediction])
        expected = [float(probabilities[clip, c]) for c in (label, prediction)]
        assert list(map(float, shares)) == pytest.approx(expected, abs=1e-5)
    assert len(rows) == len(LABELS)

    text = (tmp_path / "new" / "out" / "report.md").read_text(encoding="utf-8")
    assert "GST \\*resnet50\\*, 4 classes" in text
    assert f"| 8 | 50.000 % | 100.000 % | 50.000 % | {result.loss:.5f} |" in text
    escaped = '1 a\\*b / \\<i\\>\\$x\\_1\\$, "c"'
    assert rows_of(text, "Classes, worst first (at most 20)") == [
        ["3 Pulling it right", "3", "33.333", "100.000", "Pulling it left", "2"],
        [escaped, "2", "50.000", "100.000", "Pulling it left", "1"],
        ["0 Pulling it left", "3", "66.667", "100.000", "Pulling it right", "1"],
    ]
    mirrored = ["0 Pulling it left", "3 Pulling it right", "50.0", "50.0", ""]
    assert rows_of(text, "Mirrored pairs") == [mirrored]
    for picture in ("confusion.png", "mistakes.png"):
        assert f"]({picture})" in text


def test_swapped_labels_of_mirrored_pairs_show():
    names = released_categories()
    partners = mirrored_labels(names)
    pairs = [(label, other) for label, other in enumerate(partners) if label < other]
    assert (93, 94) in pairs
    confusions = 10 * np.eye(174, dtype=int)
    confusions[[93, 94], [93, 94]], confusions[[93, 94], [94, 93]] = 4, 6
    labels, predictions = (np.repeat(side.ravel(), confusions.ravel()) for side in np.indices((174, 174)))
    result = evaluated(labels, predictions, 174)
    classes = report.summarise_classes(confusions, confusions.sum(1), names)
    text = report.report_text(result, confusions, classes, names, "GST")
    rows = rows_of(text, "Mirrored pairs")
    for row, (a, b) in zip(rows, pairs, strict=True):
        swapped, right = ["60.0", "40.0", "**labels swapped?**"], ["0.0", "100.0", ""]
        assert row == [f"{a} {names[a]}", f"{b} {names[b]}", *(swapped if (a, b) == (93, 94) else right)]
    worst = rows_of(text, "Classes, worst first (at most 20)")
    assert [row[0].split()[0] for row in worst[:2]] == ["93", "94"]
    assert len(worst) == 20


@pytest.mark.parametrize("names", [LONG_NAMES, released_categories()], ids=["6", "174"])
def test_confusion_matrix_has_all_names(names):
    count = len(names)
    confusions = np.random.default_rng(0).poisson(0.1, (count, count)) + 10 * np.eye(count, dtype=int)
    confusions[3] = 0
    with plots.plain_matplotlib():
        figure = report.draw_confusions(confusions, names)
        figure.draw_without_rendering()
    matrix = figure.axes[0]
    for axis in (matrix.xaxis, matrix.yaxis):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert [label.split()[0] for label in labels] == [str(label) for label in range(count)]
    assert sum(label.endswith("(no clips)") for label in labels) == 1
    if count <= report.FEW_CLASSES:
        assert len(matrix.texts) == np.count_nonzero(confusions)


def test_mistakes_are_the_surest_with_the_frames_of_the_clip(videos):
    result = evaluated(LABELS, PREDICTIONS, 4)
    mistakes = report.find_mistakes(result.scores, result.labels, np.array(PREDICTIONS), NAMES, videos)
    wrong = [clip for clip in range(8) if LABELS[clip] != PREDICTIONS[clip]]
    probabilities = 100 * torch.tensor(result.scores).softmax(1)
    for mistake, clip in zip(mistakes, wrong, strict=True):  # the surest come first
        prediction, label = PREDICTIONS[clip], LABELS[clip]
        assert mistake.lines == [
            f"predicted ({probabilities[clip, prediction]:.1f} %): {prediction} {NAMES[prediction]}",
            f"true ({probabilities[clip, label]:.1f} %): {label} {NAMES[label]}",
            f"video {clip + 1}, frames 2, 4, 7, 9",
        ]
        frames = videos.source.read(str(clip + 1), [2, 4, 7, 9])
        assert mistake.frames == [frame.image() for frame in frames.values()]


def test_contact_sheet_keeps_everything_inside():
    rows = []
    for count, size in ((8, (427, 240)), (16, (48, 40)), (9, (100, 300))):
        frames = [Image.new("RGB", size, (250, 0, 0)) for _ in range(count)]
        rows.append(plots.SheetRow(frames, LONG_NAMES[:3], mark="mirrored"))
    sheet = np.asarray(plots.contact_sheet(rows))
    assert sheet.shape[1] == plots.SHEET_WIDTH
    assert (sheet[:, -4:] == 255).all() and (sheet[:, :4] == 255).all()
    # The first frames of all lines, one below the other.
    reds = (sheet[:, plots.MARGIN + 5] == (250, 0, 0)).all(1)
    assert np.diff(reds.astype(int)).clip(0).sum() == 1 + 2 + 2
    # The first line fills the width.
    line = (sheet[np.flatnonzero(reds)[0] + 20] == (250, 0, 0)).all(1)
    assert line[-plots.MARGIN - 20] and np.diff(line.astype(int)).clip(0).sum() == 8


def test_without_mistakes(tmp_path, videos):
    result = evaluated(LABELS, LABELS, 4)
    report.write_report(tmp_path, result, ("a", "b", "c", "d"), videos, "GST")
    text = (tmp_path / "report.md").read_text()
    assert not (tmp_path / "mistakes.png").exists()
    assert "mistakes.png" not in text
    assert text.count("There are none") == 2  # mistakes and mirrored pairs


def test_sigterm_leaves_no_partial_file(tmp_path):
    class Video:
        num_frames = 9
        times = [number / 12 for number in range(9)]
        fps = 12.0

        def play(self):
            for number in range(self.num_frames):
                if number == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield Image.new("RGB", (320, 240)), Fraction(number, 12)

    handler = signal.getsignal(signal.SIGTERM)
    windows = [{"start": 0.0, "end": 0.75, "top": [{"class": "a", "probability": 0.5}]}]
    with pytest.raises(SystemExit) as stop:
        render_film(tmp_path / "out.mp4", Video(), windows, 0, has_strip=False)
    assert stop.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is handler


def test_full_disk_leaves_no_file(tmp_path, videos):
    result = evaluated(LABELS, PREDICTIONS, 4)
    with files_limited_to(5000), pytest.raises(UserError, match="out: cannot be written"):
        report.write_report(tmp_path / "out", result, NAMES, videos, "GST")
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command line of an evaluation whose checkpoint has the classes in another order than the data."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(0)
    model = TemporalModel(4, num_segments=4, backbone="resnet14", input_size=32)
    torch.nn.init.normal_(model.new_fc.weight, 0, 0.3)
    options = {"num_segments": 4, "input_size": 32}
    content = {"state_dict": model.state_dict(), "categories": list(CATEGORIES[::-1]), "options": options}
    torch.save(content, folder / "w.pth")
    root = make_dataset(folder / "data", train=0, val=9)
    return ["--weights", folder / "w.pth", "--dataset", "somethingv1", "--root_path", root, "-j", 0]


def test_report_agrees_with_scores(evaluation, tmp_path):
    (tmp_path / "out").mkdir()  # may exist, if it is empty
    process = call(
        "test_models.py", *evaluation, "--report", tmp_path / "out", "--save_scores", tmp_path / "s.npz"
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[-1] == f"report: {tmp_path / 'out' / 'report.md'}"
    prec1 = lines[-2].split()[3]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"| 9 | {prec1} % |" in text
    assert "resnet14, alpha 4, beta 2, 4 classes, 4 frames of 32 x 32" in text
    assert len(rows_of(text, "Mirrored pairs")) == 1
    with np.load(tmp_path / "s.npz") as saved:
        hits = saved["scores"].argmax(1) == saved["labels"]
        labels = saved["labels"]
    assert 0 < hits.sum() < 9, "all right or all wrong would prove little"
    with (tmp_path / "out" / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(CATEGORIES)
    for label, row in enumerate(rows):
        assert row["clips"] == str((labels == label).sum())
        assert row["top-1"] == f"{100 * hits[labels == label].mean():.3f}"
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_used_folders_are_refused_first(evaluation, tmp_path):
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    file.write_text("mine")
    for folder in (used, file, file / "new"):
        with pytest.raises(UserError, match=f"--report {folder}"):
            report.check_report(folder)
    process = call("test_models.py", *evaluation, "--report", used)
    assert_one_line_error(process, f"--report {used}")
    assert process.stdout == ""


def test_list_without_labels_is_refused(evaluation, tmp_path):
    asked = tmp_path / "asked.txt"
    asked.write_text("1 10\n2 10\n")
    process = call("test_models.py", *evaluation, "--val_list", asked, "--report", tmp_path / "out")
    assert_one_line_error(process, "--report", asked)
    assert "Test:" not in process.stdout
    assert not (tmp_path / "out").exists()
