"""Give the programs damaged files and odd values, and check that they are right about them or refuse them.

    python tests/fuzz_harness.py --seconds 600 --seed 1

The rule, for every input: status 0 and the right result, or another status and one line on stderr that names
the culprit; no traceback, no hang, and no file changed that the run does not own. What is right is told by
a second, simpler reading of the same input. Each kind of input is a strategy of Hypothesis and a check.
"""

import argparse
import csv
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
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
from video_files import write_video

from classes import read_categories
from dataset import read_list
from datasets_video import MOTION_SETTINGS
from tools.make_motion_dataset import Settings
from training.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import one_line

DATASET = "somethingv1"
DEMO = Settings("demo", 80, 24, (84, 64), 0)  # of make_motion_dataset.py without options
RUN_NAME = "GST_somethingv1_resnet14_alpha4_beta2_segment4"
# Folders of 4 frames that every data set here has.
VIDEOS = ("1", "2", "3", "4", "a b", "ü", "in/side", "#5", "7\u2003x")
NUM_FRAMES = 4
# Seconds. No input takes so long, on a slow machine either; Hypothesis tries one that fails twice.
TIME_LIMIT = 30


class HangError(BaseException):
    """A program did not end; no `except Exception` of a program takes it."""


@dataclass(frozen=True)
class Case:
    """Where one input is tried.

    Attributes:
        world: what all inputs share and must leave as it is.
        folder: of this input, the working folder of the program.
        out: below it, the folder whose files the program owns.
    """

    world: "World"
    folder: Path
    out: Path

    def link_root(self, dataset: str = DATASET) -> Path:
        """Make a `--root_path` whose lists may be replaced."""
        frames, template = FRAMES[dataset]
        root = self.folder / "root"
        (root / dataset).mkdir(parents=True)
        (root / dataset / frames).symlink_to(self.world.folder / f"frames {template}")
        return root

    def lists_root(self) -> Path:
        """The same, with the lists of `World.root`."""
        root = self.link_root()
        for file in (self.world.root / DATASET).glob("*.txt"):
            shutil.copy(file, root / DATASET)
        return root


class World:
    """What all inputs share: a data set, a finished run, videos, and the results without any damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"
        self.cases = folder / "cases"
        self.cases.mkdir()
        self.root = make_dataset(self.folder / "data", train=4, val=3, frames=NUM_FRAMES, size=(40, 36))
        frames, template = FRAMES[DATASET]
        for name in VIDEOS:
            if not (target := self.root / DATASET / frames / name).exists():
                shutil.copytree(self.root / DATASET / frames / "1", target)
        for _, other in FRAMES.values():
            copy = self.folder / f"frames {other}"
            if copy.exists():
                continue
            shutil.copytree(self.root / DATASET / frames, copy)
            for number in range(1, NUM_FRAMES + 1) if other != template else []:
                for file in list(copy.rglob(template.format(number))):
                    file.rename(file.with_name(other.format(number)))
        self.run = self.folder / "run"
        train = (*small_run(self.root, self.run), "-b", 2, "--epochs", 2)
        assert call("main.py", *train).returncode == 0
        more = self.folder / "more"
        shutil.copytree(self.run, more)
        assert call("main.py", *self.continued(more)).returncode == 0
        self.next_csv = (more / "log" / f"{RUN_NAME}.csv").read_text()
        shutil.rmtree(more)
        self.checkpoint = self.run / "checkpoint" / f"{RUN_NAME}_checkpoint.pth.tar"
        self.content = torch.load(self.checkpoint, weights_only=True)
        # As the authors released theirs.
        self.released = self.folder / "released.pth.tar"
        save_checkpoint(self.released, {"state_dict": self.content["state_dict"], "epoch": 2})
        self.plain = self.folder / "plain.pth.tar"
        torch.save({"state_dict": self.content["state_dict"], "epoch": 2}, self.plain)
        self.clean = self.folder / "clean.safetensors"
        words = ("--weights", self.checkpoint, "--out", self.clean)
        assert call("tools/convert_checkpoint.py", *words).returncode == 0
        self.videos = self.folder / "videos"
        self.videos.mkdir()
        for suffix in ("mp4", "webm", "mkv"):
            write_video(self.videos / f"video.{suffix}", 6, width=48, height=32)
        with tried(self) as case:
            self.scores = evaluated(case, self.released)[0]["scores"]
        words = [*small_run(self.root, self.folder, "--epochs", 3), "-e", "--resume", self.checkpoint]
        self.result = call("main.py", *words).stdout.splitlines()[-1]

    @staticmethod
    def continued(out: Path) -> list[object]:
        """The options to continue the run for one epoch, from a data set next to it."""
        return [*small_run(out.parent / "data", out), "-b", 2, "--epochs", 3, "--resume", "auto"]


def _split(text: str) -> list[str]:
    return text.split()


@contextmanager
def tried(world: World) -> Iterator[Case]:
    """Make the folder of an input, and remove it after the program has ended."""
    folder = Path(tempfile.mkdtemp(dir=world.cases))
    before = Path.cwd()
    (folder / "out").mkdir()
    os.chdir(folder)
    try:
        yield Case(world, folder, folder / "out")
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError after so many seconds; after that, pytest's own alarm is set again."""

    def stop(*_: object) -> None:
        raise HangError(f"no end after {seconds} s")

    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    began = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left and max(1, left - (time.monotonic() - began)))
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def captured_descriptor(texts: list[str]) -> Iterator[None]:
    """Collect what libraries and other processes write to stderr past Python."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))


def snapshot(*folders: Path) -> dict[Path, tuple]:
    """What would show that a file was touched."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            metadata = path.lstat()
            # A folder's time changes with what is in it, which is looked at itself.
            times = () if path.is_dir() else (metadata.st_size, metadata.st_mtime_ns)
            found[path] = (metadata.st_ino, metadata.st_mode, *times)
    return found


def attempt(case: Case, culprits: Sequence[object], program: str, *args: object) -> str | None:
    """Run a program on an input, and check all of the rule but the result.

    Args:
        case: of the input.
        culprits: a refusal must have one of these in it.
        program: see `helpers.call`.
        args: likewise.

    Returns:
        What it printed; None if it refused the input.
    """
    folders = case.world.folder, case.folder
    before = snapshot(*folders)
    passed: list[str] = []
    with time_limit(TIME_LIMIT), warnings.catch_warnings(record=True) as warned, captured_descriptor(passed):
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # pytest forgets it
        process = call(program, *args)
    after = snapshot(*folders)
    passed += [
        f"{warning.message}\n" for warning in warned if warning.category in (UserWarning, RuntimeWarning)
    ]
    lines = (process.stderr + "".join(passed)).splitlines()
    errors = [line for line in lines if not line.startswith("warning: ")]
    told = f"{program} {args}\nstatus {process.returncode}\n{process.stdout[-1500:]}\nstderr:\n" + "\n".join(
        lines
    )
    assert "Traceback" not in process.stdout + process.stderr, told
    is_accepted = process.returncode == 0
    changed = [path for path in before if before[path] != after.get(path)]
    changed = [path for path in changed if not (is_accepted and case.out in (path, *path.parents))]
    assert not changed, f"changed or lost {changed}\n{told}"
    new = [path for path in after.keys() - before.keys() if case.out not in path.parents]
    assert not new, f"written outside of its folder: {new}\n{told}"
    if is_accepted:
        assert not errors, told
        return process.stdout
    assert len(errors) == 1, told
    assert any(str(culprit) in errors[0] for culprit in culprits), f"none of {culprits} is named\n{told}"
    return None


def evaluated(
    case: Case, weights: Path, *options: object, culprits: Sequence[object] = (), root: Path | None = None
) -> tuple[dict[str, np.ndarray], str] | None:
    """Run test_models.py; give the scores that it saves and what it prints, or None if it refuses."""
    scores = case.out / f"scores{len(list(case.out.iterdir()))}.npz"
    words = ["--weights", weights, "--dataset", DATASET, "--root_path", root or case.world.root]
    words += ["-j", 0, "-b", 2, "--num_segments", 4, "--input_size", 32, "--save_scores", scores, *options]
    printed = attempt(case, culprits, "test_models.py", *words)
    if printed is None:
        assert not scores.exists()
        return None
    with np.load(scores) as saved:
        return dict(saved), printed


# Damage


@dataclass(frozen=True)
class Damage:
    """What happens to a file.

    Attributes:
        how: a key of `HOW` or `INSTEAD`.
        at: where, in parts of a million.
        more: how much, or which bit.
    """

    how: str
    at: int
    more: int


def _flip(data: bytearray, at: int, more: int) -> bytes:
    if data:
        data[at % len(data)] ^= 1 << more % 8
    return bytes(data)


def _swap(data: bytearray, at: int, more: int) -> bytes:
    half = at // 2
    data[half : half + more], data[at : at + more] = data[at : at + more], data[half : half + more]
    return bytes(data)


HOW: dict[str, Callable[[bytearray, int, int], bytes]] = {
    "flip": _flip,
    "cut": lambda data, at, more: bytes(data[:at]),
    "cut by a few": lambda data, at, more: bytes(data[: max(0, len(data) - 1 - more)]),
    "zeros": lambda data, at, more: bytes(data[:at]) + bytes(more + 1) + bytes(data[at + more + 1 :]),
    "lose": lambda data, at, more: bytes(data[:at] + data[at + more + 1 :]),
    "insert": lambda data, at, more: bytes(data[:at]) + bytes([more % 256]) + bytes(data[at:]),
    "swap": _swap,
    "append": lambda data, at, more: bytes(data) + bytes(range(256))[: more % 255 + 1],
    "double": lambda data, at, more: bytes(data) * 2,
    "empty": lambda data, at, more: b"",
}
INSTEAD: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "dangling link": lambda path: path.symlink_to("nothing there"),
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/null"),
    "nothing": lambda path: None,
}


def _damaged(data: bytes, damage: Damage) -> bytes:
    return HOW[damage.how](bytearray(data), damage.at * len(data) // 10**6, damage.more)


def apply(damage: Damage | None, path: Path) -> None:
    """Damage a file, or put something else in its place."""
    if damage is None:
        return
    if damage.how in HOW:
        path.write_bytes(_damaged(path.read_bytes(), damage))
    else:
        path.unlink()
        INSTEAD[damage.how](path)


_AT, _MORE = st.integers(0, 10**6 - 1), st.integers(0, 7) | st.integers(0, 999)
BYTES_DAMAGE = st.builds(Damage, st.sampled_from(sorted(HOW)), _AT, _MORE)
DAMAGE = BYTES_DAMAGE | st.builds(Damage, st.sampled_from(sorted(INSTEAD)), st.just(0), st.just(0))


# Lists, categories and names to leave out: bytes that are mostly right

_ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", " \n", "\t\n"])
_ODD_TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\0", "\ufeff", "\x85", "\u2028", "\x1c", "x" * 5000]
)
_ODD_NUMBERS = st.sampled_from(
    ["-1", "+4", "4.0", "1e3", "٤", "²", "1_0", "0x4", "", "999999999", "1000000000", "04", "9" * 5000, "nan"]
)


def _texts(lines: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Files of such lines: with or without a byte order mark, an end of the last line, or damage."""
    text = st.lists(st.tuples(lines, _ENDS).map("".join), max_size=8).map("".join)
    plain = st.tuples(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]), text.map(str.encode)).map(b"".join)
    damaged = st.builds(_damaged, plain, BYTES_DAMAGE)
    return plain | plain.map(bytes.rstrip) | damaged


def _mostly(right: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    return st.integers(0, 15).flatmap(lambda number: odd if number == 15 else right)


_RIGHT_LINE = st.tuples(
    st.sampled_from(VIDEOS),
    st.sampled_from([" ", "\t", "  "]),
    _mostly(st.sampled_from(["3", "4", "4", "2"]), _ODD_NUMBERS),
    st.sampled_from([" ", "\t", " \t "]),
    _mostly(st.sampled_from("0123"), _ODD_NUMBERS | st.just("4")),
).map("".join)
LIST_FILES = _texts(_mostly(_RIGHT_LINE, _ODD_TEXT | st.sampled_from(["9 4 0", "in 4 0", "../1 4 0", "4 0"])))
CATEGORY_FILES = st.permutations(CATEGORIES).flatmap(
    lambda names: st.sampled_from(
        [*([("\n".join(names) + "\n").encode()] * 2), ("\r\n".join(names)).encode()]
    )
) | _texts(_mostly(st.sampled_from(CATEGORIES), _ODD_TEXT))
EXCLUDE_FILES = _texts(st.sampled_from(("5", "6", "7", *VIDEOS)) | _ODD_TEXT)


def _lines(text: str) -> list[str]:
    return re.split("\r\n|\r|\n", text)


def _plain_lines(data: bytes) -> list[str] | None:
    """The lines of a text file; None where it is not UTF-8."""
    try:
        return _lines(data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError:
        return None


def _plain_list(data: bytes) -> list[tuple[str, int, int]] | None:
    """A second reading of a list; None for one that must be refused."""
    videos = []
    for line in _plain_lines(data) or ["not UTF-8"]:
        parts = re.fullmatch(r"\s*(\S.*?)\s+([0-9]{1,9})\s+([0-3]|0+[0-3])\s*", line, re.DOTALL)
        if parts and "\0" not in parts[1] and len(parts[1].encode()) <= 4096 and len(parts[3]) <= 9:
            videos.append((parts[1], int(parts[2]), int(parts[3])))
        elif line.strip():
            return None
    return videos


def check_list(case: Case, given: tuple[bytes, bool]) -> bool:
    """The clips that are evaluated are those of the list."""
    data, skips = given
    file = case.folder / "list.txt"
    file.write_bytes(data)
    frames, template = FRAMES[DATASET]
    videos = [video for video in _plain_list(data) or [] if video[1] >= 3]

    def is_there(name: str, count: int) -> bool:
        folder = case.world.root / DATASET / frames
        return all(os.path.exists(f"{folder}/{name}/{template.format(n)}") for n in (1, count))  # noqa: PTH110

    there = [(name, label) for name, count, label in videos if is_there(name, count)]
    expected = there if skips or len(there) == len(videos) else []
    options = ["--val_list", file, *(["--skip_missing"] if skips else [])]
    result = evaluated(case, case.world.released, *options, culprits=[file])
    assert bool(result) == bool(expected), f"expected {expected}"
    if result:
        scores, printed = result
        assert list(zip(scores["videos"].tolist(), scores["labels"].tolist(), strict=True)) == expected
        assert f"\n{len(expected)} clips, " in printed
    return result is not None


def check_categories(case: Case, data: bytes) -> bool:
    """A checkpoint of four classes without names goes with four different names, one with names with them.

    Their order does not matter to the second: its scores are those of the first, by name.
    """
    root = case.lists_root()
    file = root / DATASET / "category.txt"
    file.write_bytes(data)
    lines = _plain_lines(data)
    names = "\n".join(lines).rstrip().split("\n") if lines else []
    names = [name.strip() for name in names]
    is_right = len(names) == len(set(names)) == 4 and "" not in names
    result = evaluated(case, case.world.released, culprits=[file, "category.txt"], root=root)
    assert bool(result) == is_right, f"expected {names}"
    named = evaluated(case, case.world.checkpoint, culprits=[file, "category.txt"], root=root)
    plain = [name.replace("[", "").replace("]", "") for name in names]
    assert bool(named) == (is_right and sorted(plain) == sorted(CATEGORIES)), f"expected {names}"
    if named:
        order = [CATEGORIES.index(name) for name in plain]
        np.testing.assert_array_equal(named[0]["scores"], result[0]["scores"][:, order])
        np.testing.assert_array_equal(named[0]["labels"], result[0]["labels"])
    return is_right


def check_excluded(case: Case, data: bytes) -> bool:
    """The clips that are evaluated are those that the file does not name."""
    file = case.folder / "exclude.txt"
    file.write_bytes(data)
    lines = _plain_lines(data)
    # A file that is no text, or has a zero byte, is refused.
    names = {line.strip() for line in lines} if lines is not None and b"\0" not in data else set("567")
    left = [name for name in "567" if name not in names]
    result = evaluated(case, case.world.released, "--exclude", file, culprits=[file, "--exclude"])
    assert bool(result) == bool(left)
    if result:
        assert result[0]["videos"].tolist() == left
    return result is not None


# Frames

_RIGHT_IMAGES = ("JPEG RGB", "JPEG L", "JPEG CMYK", "PNG RGB", "PNG P", "PNG LA", "PNG 1", "PNG RGBA")
_RIGHT_IMAGES += ("WEBP RGB", "WEBP RGBA", "BMP RGB", "BMP L")
# Of other formats, of 16 bits, or smaller than the others.
_WRONG_IMAGES = ("GIF P", "TIFF RGB", "EPS RGB", "PPM RGB", "ICO RGB", "PNG I;16", "PNG small", "JPEG small")
_SEEDS = st.integers(0, 2**32 - 1)
IMAGES = st.tuples(st.sampled_from(_RIGHT_IMAGES), _SEEDS, DAMAGE) | st.tuples(
    st.sampled_from(_RIGHT_IMAGES + _WRONG_IMAGES), _SEEDS, st.none()
)


def check_frame(case: Case, given: tuple[str, int, Damage | None]) -> bool:
    """A frame counts with the pixels that Pillow reads, as a lossless copy of them shows."""
    (form, mode), number, damage = given[0].split(), *given[1:]
    root = case.folder / "root"
    shutil.copytree(case.world.root / DATASET, root / DATASET)
    frames, template = FRAMES[DATASET]
    frame = root / DATASET / frames / "5" / template.format(2)
    pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "small":
        image = image.crop((0, 0, 39, 36))
    elif mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(frame, form)
    apply(damage, frame)
    result = evaluated(case, case.world.released, "--max_num", 1, culprits=[frame, frame.parent], root=root)
    assert damage or bool(result) == (given[0] in _RIGHT_IMAGES), given[0]
    if result:
        assert form in ("JPEG", "PNG", "WEBP", "BMP"), "another format"
        with Image.open(frame) as image:
            image.convert("RGB").save(frame, "PNG")
        copy, _ = evaluated(case, case.world.released, "--max_num", 1, root=root)
        assert np.array_equal(result[0]["scores"], copy["scores"])
    return result is not None


# Checkpoints


def check_damaged_checkpoint(case: Case, given: tuple[str, Damage]) -> bool:
    """A damaged checkpoint has the scores of the undamaged one, or is refused."""
    form, damage = given
    file = case.folder / "damaged.pth.tar"
    shutil.copyfile(getattr(case.world, form), file)
    apply(damage, file)
    result = evaluated(case, file, culprits=[file])
    if result:
        assert np.array_equal(result[0]["scores"], case.world.scores)
    return result is not None


CHECKPOINT_DAMAGE = st.tuples(st.sampled_from(["checkpoint", "released", "plain", "clean"]), DAMAGE)

# Where a checkpoint is changed.
PLACES = _split(
    """
    state_dict epoch arch best_prec1 step options categories data val_data excluded num_devices run optimizer
    scaler totals history num_class source_sha256 more 7
    options.type options.arch options.alpha options.beta options.num_segments options.input_size
    options.dropout options.batch_size options.amp options.accumulate options.lr options.lr_steps
    options.lr_schedule options.epochs options.seed options.gpus options.warmup_epochs options.more options.7
    options.lr_mult_new new_classifier
    state_dict/base_model.layer1.0.conv2.weight state_dict/base_model.bn1.running_var state_dict/new_fc.bias
    state_dict/base_model.bn1.num_batches_tracked state_dict/more
    optimizer.state optimizer.state.0 optimizer.state.3.momentum_buffer optimizer.state.10000 optimizer.more
    optimizer.param_groups optimizer.param_groups.0 optimizer.param_groups.2.params
    optimizer.param_groups.0.lr
    totals.0 totals.3 history.0 history.0.epoch history.1.val_loss history.1.more scaler.scale
    categories.0 categories.3 excluded.0
    """
)
# Where another value may rightly give another result.
DECIDE_EVALUATION = ("options.amp", "options.num_segments", "options.input_size")
DECIDE_TRAINING = ("epoch", "step", "totals", "history", "state_dict", "optimizer", "options.batch_size")


class _Keep(NamedTuple):
    """A tensor made of the one that is there."""

    name: str
    make: Callable[[torch.Tensor], Any]

    def __repr__(self) -> str:
        return self.name


_FROM_TENSOR = [
    _Keep("float64", torch.Tensor.double),
    _Keep("int32", lambda tensor: tensor.to(torch.int32)),
    _Keep("bool", torch.Tensor.bool),
    _Keep("complex64", lambda tensor: tensor.to(torch.complex64)),
    _Keep("sparse", torch.Tensor.to_sparse),
    _Keep("without data", lambda tensor: tensor.to("meta")),
    _Keep("flat", torch.Tensor.flatten),
    _Keep("one more", lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]),
    _Keep("none of it", lambda tensor: tensor.flatten()[:0]),
    _Keep("nan", lambda tensor: tensor.double() * math.nan),
    _Keep("expanded", lambda tensor: tensor.flatten()[:1].expand(10**7)),
]


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


_NUMBERS = (0, 1, -1, 2, 3, 4, 8, 2**31, 2**53, 2**63, 2**64, 10**400, 0.0, -0.5, 0.5, 1e308)
_NUMBERS += (math.nan, math.inf)
_STRINGS = ("", "x", "GST", "resnet14", "resnet50", "off", "bf16", "\ud800", "x\ny", "x" * 10**5)
_OTHERS = ([], [1], ["x"], [None], {}, {"x": 1}, {1: 2}, (), (1, 2), b"x", 1j, _nested(50), _nested(300))
_VALUES = st.sampled_from([None, True, False, *_NUMBERS, *_STRINGS, *_OTHERS])
_TENSORS = [torch.ones(()), torch.ones(2), torch.tensor(math.nan), torch.ones(0), torch.ones(2, 3, 1, 1, 1)]
_TENSOR_PLACES = [place for place in PLACES if "/" in place or "momentum" in place]
FIELDS = st.tuples(
    st.sampled_from(["test_models.py", "main.py -e", "main.py --resume"]),
    st.sampled_from(["own", "torch's"]),
    st.tuples(st.sampled_from(_TENSOR_PLACES), st.sampled_from(_FROM_TENSOR))
    | st.tuples(st.sampled_from(PLACES), st.sampled_from(["delete", "twice"]))
    | st.tuples(st.sampled_from(PLACES), _VALUES.map(lambda value: ("value", value)))
    | st.tuples(st.sampled_from(PLACES), st.sampled_from(range(len(_TENSORS))).map(lambda n: ("tensor", n))),
)


def _changed(content: Any, place: list, change: Any) -> Any:
    """A copy of a checkpoint with something else in one place, where there is that place."""
    first, *rest = place
    is_there = first in content if isinstance(content, dict) else first < len(content)
    copy = dict(content) if isinstance(content, dict) else list(content)
    if rest:
        if is_there:
            copy[first] = _changed(content[first], rest, change)
        return copy
    if not is_there and isinstance(copy, list):
        copy.append(None)
    old = content[first] if is_there else None
    if change == "delete":
        copy.pop(first, None) if isinstance(copy, dict) else copy.pop()
    elif change == "twice":
        copy = copy | {f"{first}2": old} if isinstance(copy, dict) else copy * 2
    elif isinstance(change, _Keep):
        copy[first] = change.make(old) if isinstance(old, torch.Tensor) else old
    else:
        copy[first] = change[1] if change[0] == "value" else _TENSORS[change[1]]
    return copy


def check_field(case: Case, given: tuple[str, str, tuple[str, Any]]) -> bool:
    """A checkpoint with one odd value works as the one without it, or is refused."""
    program, form, (place, change) = given
    file = case.folder / "odd.pth.tar"
    top, _, tensor = place.partition("/")
    words = [top, tensor] if tensor else top.split(".")
    content = _changed(case.world.content, [int(w) if w.isdecimal() else w for w in words], change)
    save_checkpoint(file, content) if form == "own" else torch.save(content, file)
    may_change = place.startswith(DECIDE_TRAINING if program == "main.py --resume" else DECIDE_EVALUATION)
    if program == "test_models.py":
        culprits = [file, *(f"--{word}" for word in ("num_segments", "input_size"))]
        result = evaluated(case, file, culprits=culprits)
        if result and not may_change:
            assert np.allclose(result[0]["scores"], case.world.scores, rtol=1e-4, atol=1e-6)
        return result is not None
    words = [*small_run(case.world.root, case.out, "--epochs", 3, "-b", 2), "--resume", file]
    printed = attempt(case, [file], "main.py", *words, *(["-e"] if program == "main.py -e" else []))
    if printed and program == "main.py -e":
        assert may_change or printed.splitlines()[-1] == case.world.result, printed
    elif printed:
        load_checkpoint(case.out / "checkpoint" / f"{RUN_NAME}_checkpoint.pth.tar")
        rows = list(csv.DictReader(io.StringIO((case.out / "log" / f"{RUN_NAME}.csv").read_text())))
        right = list(csv.DictReader(io.StringIO(case.world.next_csv)))
        assert may_change or rows == right, rows
    return printed is not None


# The files of a run

RUN_FILES = ("log/{}.csv", "log/{}.json", "log/{}.log", "log/{}.lock", "checkpoint/{}_best.pth.tar")
RUN_FILES += ("checkpoint/{}_checkpoint.pth.tar", "checkpoint/{}_checkpoint.pth.tar.1")
_ODD_JSON = _split(
    """null 7 {"parts":5} {"parts":"x"} {"parts":{"a":1}} {"parts":[NaN]} {"parts":["\\ud800"]}"""
)
_ODD_JSON += _split("""{"versions":7} \ufeff{} {"seed":1e999} {} [[]]""") + ["[" * 10**5, "9" * 5000]
RUN_DAMAGE = st.tuples(st.sampled_from(RUN_FILES), DAMAGE | st.sampled_from(_ODD_JSON))


def check_run(case: Case, given: tuple[str, Damage | str]) -> bool:
    """A run with a damaged file continues to the same results, or is refused as it is."""
    name, damage = given
    shutil.copytree(case.world.run, case.out, dirs_exist_ok=True)
    (case.folder / "data").symlink_to(case.world.root)
    file = case.out / name.format(RUN_NAME)
    if isinstance(damage, str):
        file.write_text(damage)
    else:
        apply(damage, file)
    printed = attempt(case, [file, file.name], "main.py", *case.world.continued(case.out))
    if printed:
        assert (case.out / "log" / f"{RUN_NAME}.csv").read_text() == case.world.next_csv
        parts = json.loads((case.out / "log" / f"{RUN_NAME}.json").read_text())["parts"]
        assert parts[-1]["epoch"] in (1, 2)
        load_checkpoint(case.out / "checkpoint" / f"{RUN_NAME}_checkpoint.pth.tar")
    return printed is not None


# Settings of the tools

SETTINGS = st.tuples(st.sampled_from(["extract", "demo"]), DAMAGE | st.sampled_from(_ODD_JSON))


def check_settings(case: Case, given: tuple[str, Damage | str]) -> bool:
    """A folder whose settings cannot be read is not taken for one of the same settings."""
    program, damage = given
    if program == "extract":
        file = case.out / ".extract_frames.json"
        right = dict.fromkeys(("short_side", "quality", "fps")) | {
            "native": False,
            "image_tmpl": "{:05d}.jpg",
        }
        words = ["tools/extract_frames.py", "--videos", case.world.videos / "video.mp4", "--out", case.out]
        words += ["--workers", 1]
    else:
        file = case.out / DATASET / MOTION_SETTINGS
        right = DEMO.content()
        words = ["tools/make_motion_dataset.py", case.out]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(right))
    if isinstance(damage, str):
        file.write_text(damage)
    else:
        apply(damage, file)
    printed = attempt(case, [file, file.parent], *words)
    if printed:
        assert json.loads(file.read_text(encoding="utf-8-sig")) == right
    return printed is not None


# Videos

VIDEO_DAMAGE = st.tuples(st.sampled_from(["mp4", "webm", "mkv"]), DAMAGE)


def check_video(case: Case, given: tuple[str, Damage]) -> bool:
    """A damaged video has all of its frames or none; the video next to it has them in any case."""
    suffix, damage = given
    (case.folder / "in").mkdir()
    video = case.folder / "in" / f"damaged.{suffix}"
    for target in (video, case.folder / "in" / "whole.mp4"):
        shutil.copy(case.world.videos / f"video{target.suffix}", target)
    apply(damage, video)
    words = ["--videos", case.folder / "in", "--out", case.out, "--workers", 1]
    printed = attempt(case, [video.name], "tools/extract_frames.py", *words)
    is_there = os.path.lexists(video) and not video.is_dir()
    folders = {path.name for path in case.out.iterdir() if path.is_dir()}
    assert folders == ({"damaged", "whole"} if printed and is_there else {"whole"}), folders
    for folder in folders:
        frames = sorted((case.out / folder).iterdir())
        assert [frame.name for frame in frames] == [f"{n:05d}.jpg" for n in range(1, len(frames) + 1)]
        assert folder == "damaged" or len(frames) == 6
        for frame in frames:
            with Image.open(frame) as image:
                image.load()
                assert image.size == (256, 256)
    report = case.out / "extract_failures.txt"
    assert report.exists() == (printed is None)
    assert printed is not None or report.read_text().startswith(f"{video.name}\t")
    return printed is not None


# Annotations

_CLASS_NAMES = st.lists(
    st.text("abc ü\u2003\u3000éX0;\"'", min_size=1, max_size=8).map(str.strip).filter(bool),
    min_size=1,
    max_size=4,
    unique=True,
)
_ODD_JSON_VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        4,
        10**12,
        10**30,
        1.5,
        1e300,
        "",
        "0",
        "x",
        " x",
        "x\ny",
        "..",
        "a/../b",
        "\ud800",
        [],
        {},
    ]
    + [["x"], {"x": 1}, "9" * 20, "x" * 5000, "\0", "\ufeffx", "１", "/1", math.nan, math.inf]
)


class Annotations(NamedTuple):
    """Annotation files.

    Attributes:
        dataset: whose.
        files: their names and contents.
        is_right: whether nothing odd was done to them.
    """

    dataset: str
    files: dict[str, bytes]
    is_right: bool


def _odd_json(draw: st.DrawFn, value: Any) -> Any:
    """Put an odd value somewhere into a JSON value."""
    children = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    if not children or draw(st.integers(0, 3)) == 0:
        return draw(_ODD_JSON_VALUES)
    place = draw(st.sampled_from(children))
    how = draw(st.sampled_from(["inside", "inside", "inside", "delete", "twice", "key"]))
    copy = dict(value) if isinstance(value, dict) else list(value)
    if how == "inside":
        copy[place] = _odd_json(draw, value[place])
    elif how == "delete":
        del copy[place]
    elif isinstance(copy, list):
        copy.append(value[place])
    else:
        copy[draw(st.sampled_from(["", "x", " ", "\0", "a\nb", "id", "label"]))] = value[place]
    return copy


@st.composite
def _annotations(draw: st.DrawFn) -> Annotations:
    dataset = draw(st.sampled_from(sorted(FRAMES)))
    names = draw(_CLASS_NAMES)
    folders = draw(st.permutations(VIDEOS))
    middle = draw(st.integers(1, 6))
    videos = [(name, draw(st.integers(0, len(names) - 1))) for name in folders]
    parts = {"train": videos[:middle], "validation": videos[middle : middle + 2]}
    test = videos[middle + 2 :] if draw(st.booleans()) else []
    contents: dict[str, Any] = {}
    if dataset == "somethingv1":
        texts = {part: [f"{name};{names[n]}" for name, n in pairs] for part, pairs in parts.items()}
        texts |= {"labels": names} | ({"test": [name for name, _ in test]} if test else {})
        contents = {f"something-something-v1-{part}.csv": "\n".join(lines) for part, lines in texts.items()}
    elif dataset == "somethingv2":
        number_type = draw(st.sampled_from([str, int]))
        contents = {"labels.json": {name: number_type(number) for number, name in enumerate(names)}}
        for part, pairs in parts.items():
            contents[f"{part}.json"] = [{"id": name, "template": f"[{names[n]}]"} for name, n in pairs]
        contents |= {"test.json": [{"id": name} for name, _ in test]} if test else {}
    else:
        contents = {"Diving48_vocab.json": [[name, "x"] for name in names]}
        for part, pairs in parts.items():
            contents[f"Diving48_V2_{part.replace('validation', 'test')}.json"] = [
                {"vid_name": name, "label": n, "start_frame": 0, "end_frame": draw(st.integers(3, 6))}
                for name, n in pairs
            ]
    odd = draw(st.sampled_from(["nothing", "value", "bytes"]))
    one = draw(st.sampled_from(sorted(contents)))
    if odd == "value" and dataset != "somethingv1":
        contents[one] = _odd_json(draw, contents[one])
    files = {
        name: (content if isinstance(content, str) else json.dumps(content)).encode()
        for name, content in contents.items()
    }
    if odd == "bytes":
        files[one] = _damaged(files[one], draw(BYTES_DAMAGE))
    return Annotations(dataset, files, odd == "nothing")


# Class names; and for each list, folder, frames and label of its videos.
_Lists = tuple[list[str], list[list[tuple[str, int, int]]]]


def _plain_v1(texts: list[str]) -> _Lists:
    labels, *parts = ([line.rstrip(" \t") for line in _lines(text.rstrip(" \t\r\n"))] for text in texts)
    names = sorted(labels)
    pairs = [[line.split(";", 1) for line in part] for part in parts]
    return names, [[(name, NUM_FRAMES, names.index(label)) for name, label in part] for part in pairs]


def _plain_v2(texts: list[str]) -> _Lists:
    labels, *parts = map(json.loads, texts)
    names = sorted(labels, key=lambda name: int(labels[name]))
    pairs = [
        [(str(video["id"]), re.sub(r"[\[\]]", "", video["template"])) for video in part] for part in parts
    ]
    return names, [[(name, NUM_FRAMES, names.index(label)) for name, label in part] for part in pairs]


def _plain_diving(texts: list[str]) -> _Lists:
    names, *parts = map(json.loads, texts)
    dives = [[(str(dive["vid_name"]), dive["end_frame"], dive["label"]) for dive in part] for part in parts]
    # The folders have 4 frames; an end at the third may mean that it is the last.
    cut = [[(name, end if end < 3 else NUM_FRAMES, label) for name, end, label in part] for part in dives]
    return ["_".join(words) for words in names], cut


# The reading, and the files of the classes and of both lists.
_PLAIN = {
    "somethingv1": (
        _plain_v1,
        [f"something-something-v1-{part}.csv" for part in ("labels", "train", "validation")],
    ),
    "somethingv2": (_plain_v2, ["labels.json", "train.json", "validation.json"]),
    "diving48": (_plain_diving, ["Diving48_vocab.json", "Diving48_V2_train.json", "Diving48_V2_test.json"]),
}


def check_annotations(case: Case, given: Annotations) -> bool:
    """The lists that are made, as main.py reads them, have the videos and classes of the annotations."""
    root = case.link_root(given.dataset)
    folder = case.folder / "annotations"
    folder.mkdir()
    for name, data in given.files.items():
        (folder / name).write_bytes(data)
    (root / given.dataset).rename(case.out / given.dataset)
    words = ["--dataset", given.dataset, "--root_path", case.out, "--annotations", folder, "--workers", 1]
    culprits = [folder, case.out / given.dataset]
    printed = attempt(case, culprits, "tools/process_dataset.py", *words)
    made = case.out / given.dataset
    lists = [made / f"{part}_videofolder.txt" for part in ("train", "val")]
    assert (printed is not None) or not given.is_right, "these are right"
    assert [file.exists() for file in lists] == [printed is not None] * 2
    if printed:
        read, files = _PLAIN[given.dataset]
        names, videos = read([given.files[name].decode("utf-8-sig") for name in files])
        assert read_categories(made / "category.txt") == names
        assert [[tuple(record) for record in read_list(file, len(names))] for file in lists] == videos
    return printed is not None


# Options


@dataclass(frozen=True)
class Range:
    """What an option takes; `safe` ones are tried, and whatever is outside."""

    is_whole: bool
    low: float
    high: float
    takes_ends: str
    safe: tuple[str, ...]

    def takes(self, text: str) -> bool:
        """Whether a text is such a number."""
        pattern = "[0-9]+" if self.is_whole else r"[ ]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?[ ]*"
        if not re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
            return False
        value = int(text[:4000]) if self.is_whole else float(text)
        is_above = value >= self.low if "[" in self.takes_ends else value > self.low
        return is_above and (value <= self.high if "]" in self.takes_ends else value < self.high)


def _whole(low: int, high: int = 10**9, *safe: str) -> Range:
    return Range(True, low, high, "[]", safe or (str(low), str(min(high, low + 7)), "0" + str(low)))


def _real(low: float, high: float = math.inf, ends: str = "[)") -> Range:
    return Range(False, low, high, ends, ("0.5", "5e-1", ".25"))


_COUNT, _RATE = _whole(1), _real(0, ends="()")
_BATCH, _CORES = _whole(1, 10**5), _whole(1, 1024, "1")
_CLIP = {
    "--num_segments": _whole(1, 256, "4"),
    "--input_size": _whole(32, 4096, "32"),
    "--workers": _whole(0, 256, "0"),
    "--print-freq": _COUNT,
    "--batch-size": _BATCH,
}
RANGES: dict[str, dict[str, Range]] = {
    "main.py": {
        **_CLIP,
        **dict.fromkeys(["--lr_steps", "--save-freq", "--eval-freq"], _COUNT),
        **dict.fromkeys(["--lr", "--lr_mult_new", "--clip-gradient", "--save-minutes"], _RATE),
        **dict.fromkeys(["--warmup_epochs", "--weight_decay"], _real(0)),
        **dict.fromkeys(["--momentum", "--dropout"], _real(0, 1)),
        **dict.fromkeys(["--start-epoch", "--gpus"], _whole(0)),
        "--epochs": _whole(1, 10**6),
        "--accumulate": _whole(1, 10**4),
        "--seed": _whole(0, 2**63 - 1),
        "--keep": _whole(1, 1000),
    },
    "test_models.py": _CLIP | {"--max_num": _COUNT, "--num_clips": _whole(1, 100, "1", "3")},
    "tools/process_dataset.py": {
        "--workers": _CORES,
        "--val_fraction": _real(0, 1, "()"),
        "--seed": _whole(0),
    },
    "tools/extract_frames.py": {
        "--short_side": _whole(1, 16384, "1", "33"),
        "--quality": _whole(1, 100),
        "--workers": _CORES,
    },
    "tools/make_motion_dataset.py": {"--train": _COUNT, "--val": _COUNT},
}
_PATHS = st.sampled_from(_split("nothing nothing/at/all . \udcff ü ~ * - -- %s {}"))
_PATHS |= st.sampled_from(["", "x" * 300, "x/" * 3000, "a\nb"])
_TEMPLATES = st.sampled_from(
    _split("{:05d}.jpg {}.jpg {} {:05d} a.jpg {:d}{:d}.jpg {0.__class__}.jpg {:99999999d}.jpg { {:05x}.jpg")
    + _split("{a}.jpg {1}.jpg ../{:05d}.jpg {!r}.jpg {:05d}.eps .{:05d}.jpg")
    + ["", "x" * 260 + "{}.jpg"]
)
_ODD_WORDS = st.sampled_from(
    _split("off bf16 fp16 auto GST gst 3 2 0 -1 -- resnet \udcff") + ["", " ", "a\nb"]
)
_ODD_WORDS |= st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=8)
_FPS = _ODD_WORDS | _ODD_NUMBERS | st.sampled_from(_split("12 24000/1001 1/0 1000 1e9 0.5"))


def _words(paths: str, words: str = "", flags: str = "") -> dict[str, st.SearchStrategy]:
    found = dict.fromkeys(paths.split(), _PATHS) | dict.fromkeys(words.split(), _ODD_WORDS)
    return found | dict.fromkeys(flags.split(), st.none())


_SHARED = _words(
    "--val_list --exclude --root_path",
    "--dataset --source --type --arch --alpha --beta --amp",
    "--skip_missing",
) | {"--image_tmpl": _TEMPLATES}
WORDS: dict[str, dict[str, st.SearchStrategy]] = {
    "main.py": _SHARED
    | _words(
        "--resume --checkpoint_dir --train_list --pretrained --flip_pairs",
        "--store_name --lr_schedule",
        "--no_flip --overwrite --sync_bn --freeze_bn --channels_last --no_such_option extra",
    ),
    "test_models.py": _SHARED
    | _words(
        "--weights --save_scores --save_features --submission", "--test_crops", "--full_res --no_such_option"
    ),
    "tools/process_dataset.py": _words(
        "--root_path --annotations --videos", "--dataset --source", "--check --decode_all --skip_missing"
    ),
    "tools/extract_frames.py": _words("--videos --root_path", "--dataset", "--native")
    | {"--image_tmpl": _TEMPLATES, "--fps": _FPS},
    "tools/make_motion_dataset.py": _words("", "--level", "extra") | {"--seed": _ODD_WORDS | _ODD_NUMBERS},
}


@st.composite
def _options(draw: st.DrawFn) -> tuple[str, dict[str, str | None]]:
    program = draw(st.sampled_from(sorted(RANGES)))
    words, ranges = WORDS[program], RANGES[program]
    names = draw(st.lists(st.sampled_from([*words, *ranges]), min_size=1, max_size=3, unique=True))
    values = {}
    for name in names:
        if name in words:
            values[name] = draw(words[name])
        elif draw(st.integers(0, 3)):
            values[name] = draw(st.sampled_from(ranges[name].safe))
        else:
            values[name] = draw(_ODD_WORDS | _ODD_NUMBERS | st.integers().map(str) | st.floats().map(str))
            if ranges[name].takes(values[name]):  # such as a million processes
                values[name] += "x"
    return program, values


def check_options(case: Case, given: tuple[str, dict[str, str | None]]) -> bool:
    """A number outside of an option's range is refused by the option's name; the rest works or is refused."""
    program, values = given
    world, frames = case.world, case.out / "frames"
    data, one_process = ["--dataset", DATASET, "--root_path", world.root], ["--workers", 1]
    base = {
        "main.py": [*small_run(world.root, case.out, "--epochs", 3), "-e", "--resume", world.checkpoint],
        "test_models.py": [*data, "-j", 0, "--weights", world.checkpoint],
        "tools/process_dataset.py": [*data, *one_process],
        "tools/extract_frames.py": ["--videos", world.videos / "video.mp4", "--out", frames, *one_process],
        "tools/make_motion_dataset.py": [case.out],
    }[program]
    if program == "tools/make_motion_dataset.py":
        (case.out / DATASET).mkdir()
        (case.out / DATASET / MOTION_SETTINGS).write_text(json.dumps(DEMO.content()))
    if program == "tools/process_dataset.py" and "--annotations" not in values:
        base.append("--check")
    words = [name if value is None else f"{name}={value}" for name, value in values.items()]
    ranges = RANGES[program]
    outside = [
        name for name, value in values.items() if name in ranges and not ranges[name].takes(value or "")
    ]
    named = [*values, *(one_line(value.split("/")[0][:20]) for value in values.values() if value)]
    if "--root_path" in values:
        named.append(f"{DATASET}/")
    if program == "tools/make_motion_dataset.py":
        named.append("other settings")
    # Of two that are wrong, any may be named.
    is_plain = outside and values.keys() <= ranges.keys()
    printed = attempt(case, outside if is_plain else named, program, *base, *words)
    assert not (printed and outside), f"{outside} was not refused"
    if printed and program in ("main.py", "test_models.py"):
        assert re.search(r"Testing Results: Prec@1 [0-9.]+ Prec@5 [0-9.]+ Loss [0-9.]+( |\n)", printed), (
            printed
        )
    if printed and program == "tools/extract_frames.py":
        made = [path for path in frames.rglob("*") if path.is_file() and not path.name.startswith(".")]
        assert "--fps" in values or len(made) == 6
    if printed and program == "tools/make_motion_dataset.py":
        assert int(values.get("--seed", 0)) == 0
    return printed is not None


class Kind(NamedTuple):
    """A kind of input: what is tried, and how it is checked."""

    inputs: st.SearchStrategy
    check: Callable[[Case, Any], bool]


# Of Hypothesis: new inputs alone, whatever time they take.
HYPOTHESIS = {
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}

KINDS = {
    "lists": Kind(st.tuples(LIST_FILES, st.booleans()), check_list),
    "categories": Kind(CATEGORY_FILES, check_categories),
    "exclude files": Kind(EXCLUDE_FILES, check_excluded),
    "frames": Kind(IMAGES, check_frame),
    "damaged checkpoints": Kind(CHECKPOINT_DAMAGE, check_damaged_checkpoint),
    "checkpoint fields": Kind(FIELDS, check_field),
    "runs": Kind(RUN_DAMAGE, check_run),
    "settings": Kind(SETTINGS, check_settings),
    "videos": Kind(VIDEO_DAMAGE, check_video),
    "annotations": Kind(_annotations(), check_annotations),
    "options": Kind(_options(), check_options),
}


def try_input(world: World, kind: str, given: Any) -> bool:
    """Try one input; return whether it was accepted.

    Raises:
        AssertionError: the rule is broken.
    """
    with tried(world) as case:
        try:
            return KINDS[kind].check(case, given)
        except HangError as hang:
            raise AssertionError(f"{hang}: {given}") from None


def try_round(world: World, kind: str, number: int, inputs: int) -> tuple[Counter, list[str]]:
    """Try new inputs of a kind.

    Args:
        world: what they share.
        kind: a key of `KINDS`.
        number: the seed of the inputs.
        inputs: how many.

    Returns:
        How many were accepted, refused and violations; and what the violations are.
    """
    counts, violations = Counter(), []

    @seed(number)
    @settings(max_examples=inputs, **HYPOTHESIS)
    @given(KINDS[kind].inputs)
    def try_each(given: Any) -> None:
        try:
            counts["accepted" if try_input(world, kind, given) else "refused"] += 1
        except Exception:
            counts["violations"] += 1
            violations.append(f"{kind}: {given!r}\n{traceback.format_exc(limit=-3)}")

    try_each()
    return counts, violations


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="new rounds begin until then")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each has one more")
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--inputs", type=int, default=15, help="of a kind in a round")
    args = parser.parse_args()
    kinds = [args.kind] if args.kind else list(KINDS)
    totals: dict[str, Counter] = {kind: Counter() for kind in kinds}
    found = 0
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        end, number = time.monotonic() + args.seconds, args.seed
        while number == args.seed or time.monotonic() < end:
            for kind in kinds:
                counts, violations = try_round(world, kind, number, args.inputs)
                totals[kind] += counts
                found += len(violations)
                for violation in violations:
                    print(violation)
                    again = f"--kind '{kind}' --seed {number} --inputs {args.inputs} --seconds 0"
                    print(f"again: python tests/fuzz_harness.py {again}\n", flush=True)
            number += 1
    print("| inputs | tried | accepted | refused | violations |\n|---|---|---|---|---|")
    for kind, counts in totals.items():
        columns = [counts.total(), counts["accepted"], counts["refused"], counts["violations"]]
        print(f"| {kind} | {' | '.join(map(str, columns))} |")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
