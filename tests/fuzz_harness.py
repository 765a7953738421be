"""Give the programs damaged files and odd values, and check that they handle or refuse them.

    python tests/fuzz_harness.py --seconds 600 --seed 1

The rule for every input: status 0 and the right result, or another status and one line on stderr that names
the culprit; no traceback, no hang, and no file changed outside of the run's folder. The right result comes
from a second, simpler reading of the same input. Each kind of input is a Hypothesis strategy and a check.
"""

import argparse
import faulthandler
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from helpers import call, small_run
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset

from utils.cli import one_line

DATASET = "somethingv1"
FRAME_FOLDER, TEMPLATE = FRAMES[DATASET]
RUN_NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
# Folders of 4 frames in the data set. The lists have 1 to 4 (training) and 5 to 7 (validation).
VIDEOS = ("1", "5", "6", "7", "a b", "ü", "in/side", "#5", "7\u2003x")
NUM_FRAMES = 4
TIME_LIMIT = 60  # seconds for one input


class World:
    """What all inputs share: a data set, two checkpoints, and the scores without any damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"
        self.cases = folder / "cases"
        self.cases.mkdir()
        self.root = make_dataset(self.folder / "data", train=4, val=3, frames=NUM_FRAMES, size=(40, 36))
        frames = self.root / DATASET / FRAME_FOLDER
        for name in VIDEOS:
            if not (frames / name).exists():
                shutil.copytree(frames / "1", frames / name)
        run = self.folder / "run"
        process = call("main.py", *small_run(self.root, run), "-b", 4)
        assert process.returncode == 0, process.stderr
        self.checkpoint = run / "checkpoint" / f"{RUN_NAME}_checkpoint.pth.tar"
        # Without class names, as the authors released theirs.
        self.released = self.folder / "released.pth.tar"
        content = torch.load(self.checkpoint, weights_only=True)
        torch.save({name: content[name] for name in ("state_dict", "epoch", "arch")}, self.released)
        with make_case(self) as case:
            self.scores = evaluate(case, self.released)[0]["scores"]


@dataclass(frozen=True)
class Case:
    """Where one input is tried: its folder, and below it the folder that the program may write to."""

    world: World
    folder: Path
    out: Path

    def copy_data(self) -> Path:
        """Copy the data set, to change it; return its `--root_path`."""
        shutil.copytree(self.world.root / DATASET, self.folder / "root" / DATASET)
        return self.folder / "root"


@contextmanager
def make_case(world: World) -> Iterator[Case]:
    """Make the folder of an input, work there, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(dir=world.cases))
    before = Path.cwd()
    (folder / "out").mkdir()
    os.chdir(folder)
    try:
        yield Case(world, folder, folder / "out")
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def snapshot(case: Case) -> dict[Path, tuple[int, int, int]]:
    """What shows whether a file outside of the program's folder was touched."""
    files = [path for folder in (case.world.folder, case.folder) for path in folder.rglob("*")]
    stats = {path: path.lstat() for path in files if case.out not in path.parents and not path.is_dir()}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def attempt(case: Case, culprits: Sequence[object], program: str, *args: object) -> str | None:
    """Run a program on an input, and check everything but the result.

    Returns:
        The output; None if the program refused the input, with a line that names one of the culprits.
    """
    before = snapshot(case)
    process = call(program, *args)
    details = f"{program} {args}\nstatus {process.returncode}\n{process.stdout[-1500:]}\n{process.stderr}"
    assert snapshot(case) == before, f"files changed\n{details}"
    assert "Traceback" not in process.stdout + process.stderr, details
    errors = [line for line in process.stderr.splitlines() if not line.startswith("warning: ")]
    if process.returncode == 0:
        assert not errors, details
        return process.stdout
    assert len(errors) == 1, details
    assert any(str(culprit) in errors[0] for culprit in culprits), f"names none of {culprits}\n{details}"
    return None


def evaluate(
    case: Case, weights: Path, *options: object, culprits: Sequence[object] = (), root: Path | None = None
) -> tuple[dict[str, np.ndarray], str] | None:
    """Run test_models.py; return the saved scores and the output, or None if it refuses the input."""
    scores = case.out / f"scores{len(list(case.out.iterdir()))}.npz"
    args = ["--weights", weights, "--dataset", DATASET, "--root_path", root or case.world.root]
    args += ["-j", 0, "-b", 2, "--num_segments", 4, "--input_size", 32, "--save_scores", scores, *options]
    output = attempt(case, culprits, "test_models.py", *args)
    if output is None:
        assert not scores.exists()
        return None
    with np.load(scores) as content:
        return dict(content), output


# Damage


class Damage(NamedTuple):
    """What happens to a file: a key of `CHANGES`, where (parts of a million), how much."""

    name: str
    position: int
    amount: int


def _flip_bit(data: bytearray, at: int, amount: int) -> bytes:
    if data:
        data[at % len(data)] ^= 1 << amount % 8
    return bytes(data)


CHANGES: dict[str, Callable[[bytearray, int, int], bytes]] = {
    "flip": _flip_bit,
    "cut": lambda data, at, amount: bytes(data[:at]),
    "zeros": lambda data, at, amount: bytes(data[:at]) + bytes(amount + 1) + bytes(data[at + amount + 1 :]),
    "lose": lambda data, at, amount: bytes(data[:at] + data[at + amount + 1 :]),
    "insert": lambda data, at, amount: bytes(data[:at]) + bytes([amount % 256]) + bytes(data[at:]),
    "empty": lambda data, at, amount: b"",
}


def change_bytes(data: bytes, damage: Damage) -> bytes:
    return CHANGES[damage.name](bytearray(data), damage.position * len(data) // 10**6, damage.amount)


DAMAGE = st.builds(Damage, st.sampled_from(sorted(CHANGES)), st.integers(0, 10**6 - 1), st.integers(0, 999))


# Lists and class names: text files that are mostly right

_ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", " \n"])
_ODD_TEXT = st.text(max_size=12) | st.sampled_from(["", " ", "\0", "\ufeff", "\x85", "x" * 5000])
_ODD_NUMBERS = st.sampled_from(["-1", "4.0", "1e3", "٤", "1_0", "0x4", "1000000000", "04", "9" * 5000, "nan"])


def _mostly(right: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    return st.integers(0, 15).flatmap(lambda number: odd if number == 15 else right)


def _files_of(lines: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Files of such lines, some of them with a byte order mark or damage."""
    text = st.lists(st.tuples(lines, _ENDS).map("".join), max_size=8).map("".join)
    plain = st.tuples(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]), text.map(str.encode)).map(b"".join)
    return plain | plain.map(bytes.rstrip) | st.builds(change_bytes, plain, DAMAGE)


_RIGHT_LINE = st.tuples(
    st.sampled_from(VIDEOS),
    st.sampled_from([" ", "\t", "  "]),
    _mostly(st.sampled_from(["3", "4", "4", "2"]), _ODD_NUMBERS),
    st.sampled_from([" ", "\t", " \t "]),
    _mostly(st.sampled_from("0123"), _ODD_NUMBERS | st.just("4")),
).map("".join)
_ODD_LINE = _ODD_TEXT | st.sampled_from(["9 4 0", "in 4 0", "../1 4 0", "4 0"])
LISTS = st.tuples(_files_of(_mostly(_RIGHT_LINE, _ODD_LINE)), st.booleans())
CATEGORY_FILES = st.permutations(CATEGORIES).map(lambda names: "\n".join(names).encode())
CATEGORY_FILES |= _files_of(_mostly(st.sampled_from(CATEGORIES), _ODD_TEXT))


def plain_lines(data: bytes) -> list[str] | None:
    """The lines of a text file; None if it is not UTF-8."""
    try:
        return re.split("\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError:
        return None


def plain_list(data: bytes) -> list[tuple[str, int, int]] | None:
    """A second reading of a list; None for one that must be refused."""
    videos = []
    for line in plain_lines(data) or ["not UTF-8"]:
        parts = re.fullmatch(r"\s*(\S.*?)\s+([0-9]{1,9})\s+([0-3]|0+[0-3])\s*", line, re.DOTALL)
        if parts and "\0" not in parts[1] and len(parts[1].encode()) <= 4096 and len(parts[3]) <= 9:
            videos.append((parts[1], int(parts[2]), int(parts[3])))
        elif line.strip():
            return None
    return videos


def check_list(case: Case, drawn: tuple[bytes, bool]) -> bool:
    """The evaluated clips are those of the list."""
    data, skips = drawn
    file = case.folder / "list.txt"
    file.write_bytes(data)
    frames = case.world.root / DATASET / FRAME_FOLDER

    def exists(name: str, count: int) -> bool:
        return all(os.path.exists(f"{frames}/{name}/{TEMPLATE.format(n)}") for n in (1, count))  # noqa: PTH110

    videos = [video for video in plain_list(data) or [] if video[1] >= 3]
    complete = [(name, label) for name, count, label in videos if exists(name, count)]
    expected = complete if skips or len(complete) == len(videos) else []
    options = ["--val_list", file, *(["--skip_missing"] if skips else [])]
    result = evaluate(case, case.world.released, *options, culprits=[file])
    assert bool(result) == bool(expected), f"expected {expected}"
    if result:
        scores, output = result
        assert list(zip(scores["videos"].tolist(), scores["labels"].tolist(), strict=True)) == expected
        assert f"{len(expected)} clip" in output
    return result is not None


def check_categories(case: Case, data: bytes) -> bool:
    """A checkpoint without class names takes any four names; one with names takes its own, in any order."""
    root = case.copy_data()
    (root / DATASET / "category.txt").write_bytes(data)
    names = [name.strip() for name in "\n".join(plain_lines(data) or []).rstrip().split("\n")]
    is_right = len(names) == len(set(names)) == 4 and "" not in names
    result = evaluate(case, case.world.released, culprits=["category.txt"], root=root)
    assert bool(result) == is_right, f"expected {names}"
    named = evaluate(case, case.world.checkpoint, culprits=["category.txt"], root=root)
    plain = [name.replace("[", "").replace("]", "") for name in names]
    assert bool(named) == (is_right and sorted(plain) == sorted(CATEGORIES)), f"expected {names}"
    if named:
        order = [CATEGORIES.index(name) for name in plain]
        np.testing.assert_array_equal(named[0]["scores"], result[0]["scores"][:, order])
        np.testing.assert_array_equal(named[0]["labels"], result[0]["labels"])
    return is_right


# Frames

_RIGHT_IMAGES = ("JPEG RGB", "JPEG L", "JPEG CMYK", "PNG RGB", "PNG P", "PNG RGBA", "WEBP RGB", "BMP RGB")
_WRONG_IMAGES = ("GIF P", "TIFF RGB", "PPM RGB", "PNG I;16")
IMAGES = st.tuples(st.sampled_from(_RIGHT_IMAGES), st.none() | DAMAGE)
IMAGES |= st.tuples(st.sampled_from(_WRONG_IMAGES), st.none())


def check_frame(case: Case, drawn: tuple[str, Damage | None]) -> bool:
    """A frame counts with the pixels that Pillow reads, as a lossless copy of them shows."""
    kind, damage = drawn
    form, mode = kind.split()
    root = case.copy_data()
    frame = root / DATASET / FRAME_FOLDER / "5" / TEMPLATE.format(2)
    pixels = np.random.default_rng(0).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    sixteen_bits = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image = sixteen_bits if mode == "I;16" else image.convert(mode)
    image.save(frame, form)
    if damage:
        frame.write_bytes(change_bytes(frame.read_bytes(), damage))
    result = evaluate(case, case.world.released, "--max_num", 1, culprits=[frame.parent], root=root)
    assert damage or bool(result) == (kind in _RIGHT_IMAGES), kind
    if result:
        assert form in ("JPEG", "PNG", "WEBP", "BMP"), "another format"
        with Image.open(frame) as image:
            image.convert("RGB").save(frame, "PNG")
        copy, _ = evaluate(case, case.world.released, "--max_num", 1, root=root)
        assert np.array_equal(result[0]["scores"], copy["scores"])
    return result is not None


# Checkpoints

CHECKPOINTS = st.tuples(st.sampled_from(["checkpoint", "released"]), DAMAGE)


def check_checkpoint(case: Case, drawn: tuple[str, Damage]) -> bool:
    """A damaged checkpoint has the scores of the undamaged one, or is refused."""
    name, damage = drawn
    file = case.folder / "damaged.pth.tar"
    file.write_bytes(change_bytes(getattr(case.world, name).read_bytes(), damage))
    result = evaluate(case, file, culprits=[file])
    assert not result or np.array_equal(result[0]["scores"], case.world.scores)
    return result is not None


# Options


def _numbers(right: str, wrong: str = "") -> tuple[list[str], list[str]]:
    always_wrong = ["-1", "0x4", "", "nan", "inf", "x", "1e999", "4,5", "²", "1 1"]
    return right.split(), [*wrong.split(), *always_wrong]


_WRONG_PATHS = ["", "missing", "missing/at/all", "x" * 300, "x/" * 3000, "a\nb", "\udcff", ".", "%s"]
# Values that work with `main.py --evaluate`, and values that do not.
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "--num_segments": _numbers("4 04", "0 4.0 1e3"),
    "--input_size": _numbers("32", "0 31 4.0 1e3"),
    "--batch-size": _numbers("1 3 100000", "0 4.0 1e3"),
    "--workers": _numbers("0", "257 4.0 1e3"),
    "--print-freq": _numbers("1 1000000", "0 4.0 1e3"),
    "--epochs": _numbers("3 1000000", "0 4.0 1e3"),
    "--accumulate": _numbers("1 10000", "0 4.0 1e3"),
    "--seed": _numbers("0 9223372036854775807", "9223372036854775808 4.0 1e3"),
    "--keep": _numbers("1 1000", "0 4.0 1e3"),
    "--lr": _numbers("0.5 5e-1 .25 1e300", "0"),
    "--clip-gradient": _numbers("0.5 1e-9", "0"),
    "--momentum": _numbers("0 0.999", "1"),
    "--dropout": _numbers("0 0.3", "1"),
    "--warmup_epochs": _numbers("0 0.5"),
    "--weight_decay": _numbers("0 1"),
    "--amp": (["off", "auto"], ["", "bf8", "\udcff"]),
    "--type": (["GST"], ["", "gst", "a\nb"]),
    "--resume": ([], _WRONG_PATHS),
    "--val_list": ([], _WRONG_PATHS),
    "--exclude": ([], _WRONG_PATHS),
    "--root_path": ([], _WRONG_PATHS),
}


@st.composite
def option_values(draw: st.DrawFn) -> dict[str, tuple[str, bool]]:
    """One to three options: value, and whether it is right."""
    names = draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=3, unique=True))
    values = {}
    for name in names:
        right, wrong = OPTIONS[name]
        is_right = bool(right) and draw(st.booleans())
        values[name] = draw(st.sampled_from(right if is_right else wrong)), is_right
    return values


def check_options(case: Case, drawn: dict[str, tuple[str, bool]]) -> bool:
    """Right values work; of several wrong ones, the error names any: the option or the start of its value."""
    wrong = [name for name, (_, is_right) in drawn.items() if not is_right]
    starts = [one_line(drawn[name][0].split("/")[0][:20]) for name in wrong if drawn[name][0]]
    culprits = [*wrong, *starts, *([f"{DATASET}/"] if "--root_path" in wrong else [])]
    args = [*small_run(case.world.root, case.out), "-e", "--resume", case.world.checkpoint]
    args += [f"{name}={value}" for name, (value, _) in drawn.items()]
    output = attempt(case, culprits, "main.py", *args)
    assert (output is None) == bool(wrong), drawn
    assert output is None or "Testing Results: Prec@1 " in output
    return output is not None


class Kind(NamedTuple):
    """A kind of input: what is tried, and the check, which returns whether the input was accepted."""

    inputs: st.SearchStrategy
    check: Callable[[Case, Any], bool]


KINDS = {
    "lists": Kind(LISTS, check_list),
    "categories": Kind(CATEGORY_FILES, check_categories),
    "frames": Kind(IMAGES, check_frame),
    "checkpoints": Kind(CHECKPOINTS, check_checkpoint),
    "options": Kind(option_values(), check_options),
}
# Only new inputs, however long they take.
HYPOTHESIS = {
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def try_input(world: World, kind: str, drawn: Any) -> bool:
    """Try one input; return whether it was accepted.

    Raises:
        AssertionError: the rule is broken.
    """
    with make_case(world) as case:
        return KINDS[kind].check(case, drawn)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="time in which new rounds begin")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round; each has one more")
    parser.add_argument("--inputs", type=int, default=15, help="inputs of a kind in a round")
    args = parser.parse_args()
    counts = {kind: Counter() for kind in KINDS}

    def try_and_count(kind: str, drawn: Any) -> None:
        faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
        try:
            counts[kind]["accepted" if try_input(world, kind, drawn) else "refused"] += 1
        except Exception:
            counts[kind]["violations"] += 1
            print(f"{kind}, --seed {number}: {drawn!r}\n{traceback.format_exc(limit=-3)}", flush=True)
        faulthandler.cancel_dump_traceback_later()

    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        end, number = time.monotonic() + args.seconds, args.seed
        while number == args.seed or time.monotonic() < end:
            for kind in KINDS:
                try_each = given(st.just(kind), KINDS[kind].inputs)(try_and_count)
                seed(number)(settings(max_examples=args.inputs, **HYPOTHESIS)(try_each))()
            number += 1
    for kind in KINDS:
        print(f"{kind}: {dict(counts[kind])}")
    return int(any(counts[kind]["violations"] for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
