"""opts.py: published options and defaults, their help, and how wrong values are refused."""

import os
import re
import sys

import pytest
from helpers import REPOSITORY, finish

import main
import opts
from utils.cli import UserError

# Names, arguments, parsed value and default as published. Commands in people's scripts depend on them.
PUBLISHED = [
    (("--dataset",), ["somethingv2"], "somethingv2", "somethingv1"),
    (("--root_path",), ["elsewhere"], "elsewhere", "../"),
    (("--store_name",), ["mine"], "mine", ""),
    (("--type",), ["GST"], "GST", "GST"),
    (("--arch",), ["resnet101"], "resnet101", "resnet50"),
    (("--num_segments",), ["16"], 16, 8),
    (("--alpha",), ["8"], 8, 4),
    (("--beta",), ["1"], 1, 2),
    (("--epochs",), ["3"], 3, 70),
    (("-b", "--batch-size"), ["64"], 64, 24),
    (("--lr", "--learning-rate"), ["0.5"], 0.5, 0.01),
    (("--lr_steps",), ["3", "5", "7"], [3, 5, 7], [50, 60]),
    (("--dropout", "--dp"), ["0.7"], 0.7, 0.3),
    (("--momentum",), ["0.5"], 0.5, 0.9),
    (("--weight_decay", "--wd"), ["0.1"], 0.1, 3e-4),
    (("--clip-gradient", "--gd"), ["5"], 5, 20),
    (("--print-freq", "-p"), ["7"], 7, 20),
    (("--eval-freq", "-ef"), ["2"], 2, 1),
    (("-j", "--workers"), ["3"], 3, min(16, len(os.sched_getaffinity(0)))),
    (("--resume",), ["file"], "file", None),
    (("-e", "--evaluate"), [], True, False),
    (("--start-epoch",), ["4"], 4, None),
    (("--checkpoint_dir",), ["there"], "there", "runs"),
    (("--seed",), ["12"], 12, 0),
    (("--gpus",), ["0", "2"], [0, 2], None),
]


@pytest.mark.parametrize(("names", "words", "value", "default"), PUBLISHED, ids=lambda x: str(x)[:24])
def test_published_option_and_default(names, words, value, default):
    name = next(n for n in names if n.startswith("--") and n not in ("--dp", "--wd", "--gd"))
    dest = name[2:].replace("-", "_")
    assert getattr(opts.parser.parse_args([]), dest) == default
    for name in names:
        assert getattr(opts.parser.parse_args([name, *words]), dest) == value


@pytest.mark.parametrize("word", ["--val_list", "--save-freq", "--lr-steps"])
def test_underscore_and_dash_are_the_same(word):
    for words in ([word, "3"], [f"{word.replace('_', '-')}=3"]):
        assert getattr(opts.parser.parse_args(words), word[2:].replace("-", "_")) in ("3", 3, [3])


def test_testing_options_take_the_model_from_the_checkpoint(capsys):
    args = opts.testing_parser().parse_args(["--weights", "file"])
    model = (args.type, args.arch, args.alpha, args.beta, args.num_segments, args.input_size, args.batch_size)
    assert model == (None,) * 7  # a default would contradict other checkpoints
    with pytest.raises(SystemExit):
        opts.testing_parser().parse_args([])
    assert "--weights" in capsys.readouterr().err


WRONG = """--dataset=../kinetics --type=TPN --arch=vgg16 --alpha=3 --beta=1.5 --source=tape --num_segments=0
--input_size=31 --dropout=1 --epochs=1.5 --batch-size=0 --lr=0 --lr=nan --seed=-1 --gpus=a --amp=fp8
--freeze=layer9 --resume= --root_path= --pretrained= --epoch=3"""


@pytest.mark.parametrize("word", WRONG.split())
def test_wrong_option_is_one_line(word, capsys):
    with pytest.raises(SystemExit) as stop:
        opts.parser.parse_args([word])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    name, _, value = word.partition("=")
    assert name in err
    assert value in err


@pytest.mark.parametrize(
    ("words", "culprits"),
    [
        ("--flip_pairs f --no_flip", ["--flip_pairs", "--no_flip"]),
        ("--sync_bn --freeze_bn", ["--sync_bn", "--freeze_bn"]),
        ("--resume auto --overwrite", ["--resume", "--overwrite"]),
        ("--evaluate --resume auto", ["--evaluate", "--resume"]),
        ("--arch resnet14 --pretrained imagenet", ["--pretrained", "resnet14"]),
        ("--start-epoch 70", ["--start-epoch", "--epochs"]),
    ],
)
def test_contradicting_options_are_refused(words, culprits, capsys):
    with pytest.raises((UserError, SystemExit)) as caught:
        opts.parse_training_options(words.split())
    message = capsys.readouterr().err or str(caught.value)
    assert all(culprit in message for culprit in culprits)


PARSERS = {
    "main.py": opts.parser,
    "test_models.py": opts.testing_parser(),
    "test_video.py": opts.video_parser(),
}


@pytest.mark.parametrize("program", PARSERS)
def test_help_has_every_default(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    text = re.sub(r"\n {20,}", " ", PARSERS[program].format_help())
    for action in PARSERS[program]._actions[1:]:
        name = max(action.option_strings, key=len, default=action.metavar)
        line = next(line for line in text.splitlines() if re.match(rf"  (\S+( [A-Z_]+)?, )?{name}\b", line))
        default = action.default if isinstance(action.default, list) else [action.default]
        if default[0] not in (None, "") and not isinstance(default[0], bool):
            assert line.endswith(f"(default: {' '.join(map(str, default))})")


def commands_of(text):
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        line.split() for line in joined.splitlines() if re.match(r"\s*(python main|torchrun|sbatch) ?", line)
    ]


def test_help_readme_and_docs_show_the_same_launch_recipe():
    single, *launch = commands_of(main.__doc__)
    assert vars(opts.parser.parse_args(single[2:])) == vars(opts.parser.parse_args(["--root_path", "DATA"]))
    assert [command[0] for command in launch] == ["torchrun", "torchrun", "sbatch"]
    pages = [(REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "docs/TRAINING.md")]
    for page in pages:
        assert [command for command in launch if command not in commands_of(page)] == []


@pytest.mark.parametrize("program", PARSERS)
def test_every_option_is_read(program):
    folders = [REPOSITORY, *(REPOSITORY / name for name in ("training", "inference", "reports", "utils"))]
    text = "".join(
        file.read_text() for folder in folders for file in folder.glob("*.py") if file.name != "opts.py"
    )
    for action in PARSERS[program]._actions[1:]:
        assert re.search(rf'\bargs\.{action.dest}\b|"{action.dest}"', text), action.dest


@pytest.mark.parametrize(
    ("dataset", "words", "recipe", "linear"),
    [
        ("somethingv1", "", "", ""),
        ("diving48", "-b 12 --lr 0.005 --lr_steps 25 -j 3 --seed 4", "", ""),
        ("diving48", "", "--lr 0.005 (now 0.01), --lr_steps 25 (now 50 60)", "--lr 0.01"),
        ("somethingv2", "-b 6 --accumulate 8 --epochs 50", "--epochs 70 (now 50)", "--lr 0.02"),
        ("mine", "-b 12 --lr 0.1", None, "--lr 0.005"),
    ],
)
def test_log_names_deviations_from_the_recipe(dataset, words, recipe, linear):
    args = opts.parse_training_options(words.split())
    args.dataset = dataset
    *first, batch = opts.describe_recipe(args)
    if recipe is None:
        assert first[0].startswith("mine: no published recipe")
    else:
        assert first == ([f"{dataset}: its published recipe has {recipe}"] if recipe else [])
    assert batch.partition("linear scaling rule gives ")[2] == linear


def test_data_tools_import_no_torch():
    """The tools for data start a process per core, and torch takes seconds to import."""
    modules = "utils.cli, utils.files, utils.pool, annotations, datasets_video"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    process = finish([sys.executable, "-c", code], cwd=REPOSITORY)
    assert process.stdout == "False\n", process.stderr
