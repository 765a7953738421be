"""Give test_models.py damaged files and odd values, and check that it handles or refuses them.

    FUZZ_INPUTS=100 pytest --timeout 0 tests/test_fuzz.py    # 100 new inputs of each kind

The rule for every input: status 0 and the right result, or another status and one line on stderr that names
the culprit; no traceback and no hang. The right result comes from a second, simpler reading of the same
input. Each kind of input is a Hypothesis strategy and a check.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import call
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import CATEGORIES, FRAMES, make_dataset
from video_model import save_model

import inference.load

pytestmark = pytest.mark.slow

DATASET = "somethingv1"
FRAME_FOLDER, TEMPLATE = FRAMES[DATASET]
# Folders of 4 frames in the data set. The lists have 1 to 4 (training) and 5 to 7 (validation).
VIDEOS = ("1", "5", "6", "7", "a b", "ü", "in/side", "#5", "7\u2003x")
NUM_FRAMES = 4


class World:
    """What all inputs share: a data set, two checkpoints, and the scores without any damage."""

    def __init__(self, folder: Path) -> None:
        self.root = make_dataset(folder / "data", train=4, val=3, frames=NUM_FRAMES, size=(40, 36))
        frames = self.root / DATASET / FRAME_FOLDER
        for name in VIDEOS:
            if not (frames / name).exists():
                shutil.copytree(frames / "1", frames / name)
        content = {"options": {"num_segments": 4, "input_size": 32}, "categories": list(CATEGORIES)}
        self.checkpoint = save_model(folder / "checkpoint.pth.tar", 4, **content)
        # Without class names and options, as the authors released theirs.
        self.released = save_model(folder / "released.pth.tar", 4, own=False)
        self.scores = evaluate(self.root, self.released)[0]["scores"]


def evaluate(
    root: Path, weights: Path, *options: object, culprit: object = None
) -> tuple[dict[str, np.ndarray], str] | None:
    """Run test_models.py.

    Returns:
        The saved scores and the output; None if it refuses the input, with a line that names the culprit.
    """
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder, "scores.npz")
        args = ["--weights", weights, "--dataset", DATASET, "--root_path", root, "--save_scores", scores]
        args += ["-j", 0, "-b", 2, "--num_segments", 4, "--input_size", 32, *options]
        process = call("test_models.py", *args)
        details = f"{args}\nstatus {process.returncode}\n{process.stdout[-1500:]}\n{process.stderr}"
        assert "Traceback" not in process.stdout + process.stderr, details
        errors = [line for line in process.stderr.splitlines() if not line.startswith("warning: ")]
        if process.returncode == 0:
            assert not errors, details
            with np.load(scores) as content:
                return dict(content), process.stdout
        assert len(errors) == 1 and str(culprit) in errors[0], f"{culprit} is not named\n{details}"
        assert not scores.exists()
        return None


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


def plain_list(data: bytes) -> list[tuple[str, int, int]] | None:
    """A second reading of a list; None for one that must be refused."""
    try:
        lines = re.split("\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError:
        return None
    videos = []
    for line in lines:
        parts = re.fullmatch(r"\s*(\S.*?)\s+([0-9]{1,9})\s+([0-3]|0+[0-3])\s*", line, re.DOTALL)
        if parts and "\0" not in parts[1] and len(parts[1].encode()) <= 4096 and len(parts[3]) <= 9:
            videos.append((parts[1], int(parts[2]), int(parts[3])))
        elif line.strip():
            return None
    return videos


def check_list(world: World, folder: Path, drawn: tuple[bytes, bool]) -> None:
    """The evaluated clips are those of the list."""
    data, skips = drawn
    file = folder / "list.txt"
    file.write_bytes(data)
    frames = world.root / DATASET / FRAME_FOLDER

    def exists(name: str, count: int) -> bool:
        return all(os.path.exists(f"{frames}/{name}/{TEMPLATE.format(n)}") for n in (1, count))  # noqa: PTH110

    videos = [video for video in plain_list(data) or [] if video[1] >= 3]
    complete = [(name, label) for name, count, label in videos if exists(name, count)]
    expected = complete if skips or len(complete) == len(videos) else []
    options = ["--val_list", file, *(["--skip_missing"] if skips else [])]
    result = evaluate(world.root, world.released, *options, culprit=file)
    assert bool(result) == bool(expected), f"expected {expected}"
    if result:
        scores, output = result
        assert list(zip(scores["videos"].tolist(), scores["labels"].tolist(), strict=True)) == expected
        assert f"{len(expected)} clip" in output


# Frames

_RIGHT_IMAGES = ("JPEG RGB", "JPEG L", "JPEG CMYK", "PNG RGB", "PNG P", "PNG RGBA", "WEBP RGB", "BMP RGB")
IMAGES = st.tuples(st.sampled_from(_RIGHT_IMAGES), st.none() | DAMAGE)


def check_frame(world: World, folder: Path, drawn: tuple[str, Damage | None]) -> None:
    """A frame counts with the pixels that Pillow reads, as a lossless copy of them shows."""
    kind, damage = drawn
    form, mode = kind.split()
    shutil.copytree(world.root / DATASET, folder / DATASET)
    frame = folder / DATASET / FRAME_FOLDER / "5" / TEMPLATE.format(2)
    pixels = np.random.default_rng(0).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(frame, form)
    if damage:
        frame.write_bytes(change_bytes(frame.read_bytes(), damage))
    result = evaluate(folder, world.released, "--max_num", 1, culprit=frame.parent)
    assert damage or result, kind
    if result:
        with Image.open(frame) as image:
            image.convert("RGB").save(frame, "PNG")
        copy, _ = evaluate(folder, world.released, "--max_num", 1)
        assert np.array_equal(result[0]["scores"], copy["scores"])


# Checkpoints

CHECKPOINTS = st.tuples(st.sampled_from(["checkpoint", "released"]), DAMAGE)


def check_checkpoint(world: World, folder: Path, drawn: tuple[str, Damage]) -> None:
    """A damaged checkpoint has the scores of the undamaged one, or is refused."""
    name, damage = drawn
    file = folder / "damaged.pth.tar"
    file.write_bytes(change_bytes(getattr(world, name).read_bytes(), damage))
    result = evaluate(world.root, file, culprit=file)
    assert not result or np.array_equal(result[0]["scores"], world.scores)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The programs load its undamaged released checkpoint once, which is most of their time."""
    world = World(tmp_path_factory.mktemp("fuzz"))
    load, loaded = inference.load.load_fused, {}

    def load_once(path: str, *options: object, **more: object) -> object:
        keep = loaded.setdefault if path == str(world.released) else (lambda path, model: model)
        return loaded.get(path) or keep(path, load(path, *options, **more))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference.load, "load_fused", load_once)
        yield world


@pytest.mark.parametrize(
    ("check", "inputs", "number"),
    [(check_list, LISTS, 30), (check_frame, IMAGES, 12), (check_checkpoint, CHECKPOINTS, 12)],
)
def test_input_is_handled_or_refused_in_one_line(world, check, inputs, number):
    more = os.environ.get("FUZZ_INPUTS")

    @settings(
        max_examples=int(more or number),
        derandomize=not more,
        database=None,
        deadline=60_000,  # milliseconds for an input
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def try_each(drawn):
        with tempfile.TemporaryDirectory() as folder:
            check(world, Path(folder), drawn)

    try_each()
