"""opts.py: the published options, their defaults, their help, and how a wrong value is refused."""

import ast
import os
import re
import sys

import pytest
from helpers import REPOSITORY, finish

import opts
from datasets_video import SOURCES
from gst import ALPHAS, BETAS
from models import BLOCKS
from resnet_gst import DEPTHS
from utils.cli import UserError

REQUIRED = ["--dataset", "somethingv1", "--root_path", "data"]

# As published: names, short forms, what the shell gives them, and the default. Written down here, and not
# taken from opts.py, because commands in people's scripts depend on it.
PUBLISHED = [
    (("--dataset",), ["somethingv2"], "somethingv2", None),
    (("--root_path",), ["elsewhere"], "elsewhere", None),
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
    (("--pretrained",), ["none"], "none", None),
    (("--train_list",), ["a.txt"], "a.txt", None),
    (("--val_list",), ["b.txt"], "b.txt", None),
    (("--image_tmpl",), ["{:06d}.jpg"], "{:06d}.jpg", None),
    (("--skip_missing",), [], True, False),
    (("--input_size",), ["32"], 32, 224),
    (("--overwrite",), [], True, False),
]


@pytest.mark.parametrize(("names", "words", "value", "default"), PUBLISHED, ids=lambda x: str(x)[:24])
def test_a_published_option_keeps_its_names_and_default(names, words, value, default):
    parser = opts.training_parser()
    dest = next(n for n in names if n.startswith("--") and len(n) > 4).lstrip("-").replace("-", "_")
    dest = {"learning_rate": "lr"}.get(dest, dest)
    if default is not None:
        parsed = getattr(parser.parse_args(REQUIRED), dest)
        assert parsed == default
        assert type(parsed) is type(default) or isinstance(default, int)  # 20 for a float is fine
    for name in names:
        assert getattr(parser.parse_args([*REQUIRED, name, *words]), dest) == value


@pytest.mark.parametrize(
    ("option", "table"),
    [("source", SOURCES), ("type", BLOCKS), ("arch", DEPTHS), ("alpha", ALPHAS), ("beta", BETAS)],
)
def test_the_choices_are_those_of_the_tables(option, table, capsys):
    for parser in (opts.training_parser(), opts.testing_parser()):
        words = ["--dataset", "diving48", "--root_path", "x", "--weights", "x"]
        words = words if parser.description.startswith("Evaluate") else words[:4]
        for choice in table:
            assert getattr(parser.parse_args([*words, f"--{option}", str(choice)]), option) == choice
        with pytest.raises(SystemExit):
            parser.parse_args([*words, f"--{option}", "3"])
        assert re.match(
            rf"error: argument --{option}: invalid choice: .*3.* \(choose from", capsys.readouterr().err
        )


@pytest.mark.parametrize("word", ["--val_list", "--val-list", "--save_freq", "--save-freq", "--lr-steps"])
def test_options_may_be_written_with_either_dash(word):
    parser = opts.training_parser()
    name = word[2:].replace("-", "_")
    for words in ([word, "3"], [f"{word}=3"]):
        value = getattr(parser.parse_args([*REQUIRED, *words]), name)
        assert value in ("3", 3, [3])


def test_testing_asks_for_weights_and_takes_the_model_from_them():
    parser = opts.testing_parser()
    args = parser.parse_args([*REQUIRED, "--weights", "file"])
    told = (args.type, args.arch, args.alpha, args.beta, args.num_segments, args.input_size)
    assert told == (None,) * 6  # a default would contradict a checkpoint of another model
    assert args.batch_size is None  # the checkpoint's
    assert (args.max_num, args.save_scores) == (None, None)
    with pytest.raises(SystemExit):
        parser.parse_args(REQUIRED)


WRONG = [
    ("--dataset", "../kinetics"),
    ("--type", "TPN"),
    ("--arch", "vgg16"),
    ("--alpha", "four"),
    ("--beta", "1.5"),
    ("--num_segments", "0"),
    ("--input_size", "31"),
    ("--dropout", "1"),
    ("--dropout", "-0.1"),
    ("--epochs", "0"),
    ("--epochs", "1.5"),
    ("--batch-size", "0"),
    ("--accumulate", "0"),
    ("--lr", "0"),
    ("--lr", "nan"),
    ("--lr", "inf"),
    ("--lr_mult_new", "0"),
    ("--lr_mult_new", "-2"),
    ("--lr_schedule", "linear"),
    ("--lr_steps", "0"),
    ("--warmup_epochs", "-1"),
    ("--warmup_epochs", "inf"),
    ("--momentum", "1"),
    ("--weight_decay", "-1"),
    ("--clip-gradient", "0"),
    ("--seed", "-1"),
    ("--workers", "-1"),
    ("--gpus", "-1"),
    ("--gpus", "a"),
    ("--amp", "fp8"),
    ("--print-freq", "0"),
    ("--eval-freq", "0"),
    ("--start-epoch", "-1"),
    ("--save-freq", "0"),
    ("--save-minutes", "0"),
    ("--keep", "0"),
    ("--store_name", "--"),
    ("--lr_steps", "--"),
    ("--val_list", ""),
    ("--exclude", ""),
    ("--flip_pairs", ""),
    ("--root_path", ""),
    ("--pretrained", ""),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=" ".join)
def test_a_wrong_value_is_one_line_that_names_the_option(name, value, capsys):
    # With = a value may begin with a minus.
    with pytest.raises(SystemExit) as stop:
        opts.training_parser().parse_args([*REQUIRED, f"{name}={value}"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert name in err
    assert value in err


@pytest.mark.parametrize("words", [["--epoch", "3"], ["--num_seg", "4"], ["--weight", "0"], ["--eval"]])
def test_no_option_is_abbreviated(words, capsys):
    # An abbreviation stops working, or changes its meaning, when an option is added.
    with pytest.raises(SystemExit):
        opts.training_parser().parse_args([*REQUIRED, *words])
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert words[0] in err


def test_what_must_be_given(capsys):
    for given, asked in ((REQUIRED[:2], "--root_path"), (REQUIRED[2:], "--dataset")):
        with pytest.raises(SystemExit):
            opts.training_parser().parse_args(given)
        assert asked in capsys.readouterr().err


def help_of_options(parser, monkeypatch):
    """{option's long name: its help, in one line}, as -h prints it."""
    monkeypatch.setenv("COLUMNS", "1000")
    found, name = {}, None
    for line in parser.format_help().split("\noptions:\n")[1].splitlines():
        if line.startswith("  -"):
            name = max(re.findall(r"(?<![\w-])--?[\w-]+", line.strip().split("  ")[0]), key=len)
            found[name] = line
        elif name and line.startswith("   "):
            found[name] += " " + line.strip()
        else:
            name = None
    return found


@pytest.mark.parametrize("make_parser", [opts.training_parser, opts.testing_parser])
def test_help_tells_every_default(make_parser, monkeypatch):
    parser = make_parser()
    told = help_of_options(parser, monkeypatch)
    for action in parser._actions:
        name = max(action.option_strings, key=len)
        assert len(told[name].split()) > 3, f"{name} is not explained"
        if action.default in (None, "", "==SUPPRESS==") or isinstance(action.default, bool):
            continue
        default = action.default if isinstance(action.default, list) else [action.default]
        assert told[name].endswith(f"(default: {' '.join(map(str, default))})"), told[name]


def test_help_tells_what_happens_where_the_default_is_not_one_value(monkeypatch):
    told = help_of_options(opts.training_parser(), monkeypatch)
    assert re.search(r"default: imagenet; none for resnet14 and resnet26", told["--pretrained"])
    assert "(default: all that are visible" in told["--gpus"]
    assert "(default: the one after the checkpoint's, or 0)" in told["--start-epoch"]
    told = help_of_options(opts.testing_parser(), monkeypatch)
    assert "8 where the checkpoint does not say" in told["--num_segments"]


def test_help_is_grouped_and_ends_with_the_two_training_commands():
    text = opts.training_parser().format_help()
    headings = re.findall(r"^(\w[^\n]*):$", text, re.MULTILINE)
    assert [heading.split()[0] for heading in headings] == [
        "options",
        "data",
        "model",
        "recipe",
        "run",
        "the",
    ]
    assert text.split("\noptions:")[1].split("\n\n")[0].strip().startswith("-h, --help")
    ending = text[text.index("the paper's GST and GST-Large:") :].replace("\\\n", " ")
    commands = [line.split() for line in ending.splitlines()[1:]]
    assert [words[:2] for words in commands] == [["python", "main.py"]] * 2
    page = (REPOSITORY / "docs" / "TRAINING.md").read_text(encoding="utf-8")
    assert all(" ".join(words) in page for words in commands)
    small, large = (opts.training_parser().parse_args(words[2:]) for words in commands)
    assert (small.arch, small.alpha, small.beta, small.num_segments) == ("resnet50", 4, 2, 8)
    assert vars(large) == vars(small) | {"beta": 1}


def test_flip_pairs_without_flips_is_refused():
    with pytest.raises(UserError, match=r"--flip_pairs .*--no_flip"):
        opts.parse_training_options([*REQUIRED, "--flip_pairs", "file", "--no_flip"])


# What the log says of the recipe, and of the batch below it.


@pytest.mark.parametrize(
    ("dataset", "words", "recipe", "linear"),
    [
        ("somethingv1", "", "", ""),
        ("diving48", "-b 12 --lr 0.005 --lr_steps 25 -j 3 --seed 4", "", ""),
        ("diving48", "-b 6 --accumulate 2 --lr 0.005 --lr_steps 25", "", ""),
        (
            "diving48",
            "",
            "-b 12 (now 24), --lr 0.005 (now 0.01), --lr_steps 25 (now 50 60)",
            "",
        ),
        ("diving48", "--lr 0.005 --lr_steps 25", "", "chosen for 12: the linear rule would give --lr 0.01"),
        ("somethingv2", "-b 12", "", "chosen for 24: the linear rule would give --lr 0.005"),
        (
            "somethingv2",
            "-b 6 --accumulate 8 --lr 0.02 --dropout 0.5 --epochs 50",
            "-b 24 (now 6 with --accumulate 8), --lr 0.01 (now 0.02), --epochs 70 (now 50), "
            "--dropout 0.3 (now 0.5)",
            "",
        ),
        (
            "somethingv2",
            "--lr_schedule cosine --lr_steps 5 --warmup_epochs 2 --momentum 0.8 --wd 0 --gd 40",
            "--lr_schedule step (now cosine), --warmup_epochs 0 (now 2), --momentum 0.9 (now 0.8), "
            "--weight_decay 0.0003 (now 0), --clip_gradient 20 (now 40)",
            "",
        ),
    ],
)
def test_options_that_differ_from_the_published_recipe_are_named(dataset, words, recipe, linear):
    args = opts.parse_training_options(["--dataset", dataset, "--root_path", "data", *words.split()])
    told = f"{dataset}: its published recipe has {recipe}; see docs/TRAINING.md" if recipe else ""
    assert opts.describe_recipe(args) == told
    assert opts.describe_batch(args).partition(", which was ")[2] == linear
    if not words:  # the page has the commands
        page = (REPOSITORY / "docs" / "TRAINING.md").read_text(encoding="utf-8")
        assert re.search(rf"^\| .*{dataset}", page, re.MULTILINE)


def test_a_data_set_without_a_recipe_has_something_somethings():
    args = opts.parse_training_options([*REQUIRED, "--lr", "0.3", "-b", "2"])
    args.dataset = "mine"
    told = opts.describe_recipe(args)
    assert told.startswith("mine: has no published recipe")
    assert "the defaults are Something-Something's" in told


# What the programs call the parsed options.
OPTIONS_NAMES = ("args", "options")


def reads_of_options(source):
    """The options that a program reads: `args.name`, and `getattr(args, name)` for each name of a loop."""
    tree = ast.parse(source)
    constants = {}
    for node in tree.body:  # such as MODEL_OPTIONS = ("dataset", ...), also when made of others
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Tuple)
            and isinstance(node.targets[0], ast.Name)
        ):
            names = []
            for element in node.value.elts:
                if isinstance(element, ast.Starred) and isinstance(element.value, ast.Name):
                    names += constants.get(element.value.id, [])
                elif isinstance(element, ast.Constant):
                    names.append(element.value)
            constants[node.targets[0].id] = names

    def is_options(node):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
        return name in OPTIONS_NAMES

    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_options(node.value) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.FunctionDef):
            asks = [
                call
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == "getattr"
                and is_options(call.args[0])
            ]
            if asks:  # for names that are the keys of a dict, or in a tuple, of the same function
                for part in ast.walk(node):
                    if isinstance(part, ast.Dict):
                        found |= {key.value for key in part.keys if isinstance(key, ast.Constant)}
                    if isinstance(part, ast.comprehension | ast.For):
                        iterated = part.iter
                        if isinstance(iterated, ast.Name):
                            found |= set(constants.get(iterated.id, []))
                        if isinstance(iterated, ast.Tuple):
                            found |= {e.value for e in iterated.elts if isinstance(e, ast.Constant)}
    return found


@pytest.mark.parametrize(
    ("make_parser", "files"),
    [
        (opts.training_parser, ["main.py", "engine.py", "training/run.py", "training/optim.py"]),
        (opts.testing_parser, ["test_models.py", "training/checkpoint.py"]),
        (opts.video_parser, ["test_video.py", "training/checkpoint.py"]),
    ],
)
def test_every_option_is_read_somewhere(make_parser, files):
    sources = [(REPOSITORY / file).read_text(encoding="utf-8") for file in files]
    read = set().union(*map(reads_of_options, sources))
    defined = {action.dest for action in make_parser()._actions} - {"help"}
    assert defined - read == set()


def test_a_text_that_is_an_options_name_does_not_count_as_a_read():
    source = "args.a = 1\nprint('b', vars(args))\ndef f(args):\n    return [getattr(args, n) for n in ('c',)]"
    assert reads_of_options(source + "\nprint(args.d)") == {"c", "d"}


@pytest.mark.parametrize(
    "module", ["utils.cli", "utils.files", "utils.pool", "annotations", "datasets_video"]
)
def test_the_options_need_no_torch(module):
    """The tools for data use them too, and start a process for each core; torch takes seconds."""
    program = f"import sys, {module}; print('torch' in sys.modules)"
    process = finish([sys.executable, "-c", program], cwd=REPOSITORY)
    assert process.stdout == "False\n", process.stderr
