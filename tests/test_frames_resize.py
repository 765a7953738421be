"""frames/resize.py: the same pixels from Pillow and from any device."""

import io
import multiprocessing
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, files_limited_to, small_run
from PIL import Image
from synthetic import make_dataset
from video_files import cut, write_video
from video_model import save_model

from dataset import VideoDataSet
from frames.images import read_frame
from frames.resize import DecodedClips, Outline, View, _taps, resize, resize_clips
from loader import ClipLoader, ClipSampler, evaluation_batches
from transforms import Compose, evaluation_transform, training_transform
from utils.cli import UserError


@pytest.fixture(autouse=True)
def kill_workers():
    yield
    for child in multiprocessing.active_children():
        child.kill()


def cut_on_device(frames: np.ndarray, views: list[View], size: int) -> np.ndarray:
    count, height, width, _ = frames.shape
    shapes, order = np.array([[0, count, height, width]]), np.arange(count)[None]
    pixels = torch.from_numpy(frames).flatten()
    clips = DecodedClips(pixels, shapes, order, np.array([views]), size, count)
    return resize_clips(clips).numpy()[0]


def random_size(rng: np.random.Generator, kind: int) -> tuple[int, int]:
    """Width and height: like those of the data sets, tiny, flat, or tall."""
    (least_width, width), (least_height, height) = [
        ((100, 450), (100, 450)),
        ((1, 12), (1, 12)),
        ((60, 700), (1, 6)),
        ((1, 6), (60, 700)),
    ][kind % 4]
    return int(rng.integers(least_width, width)), int(rng.integers(least_height, height))


@pytest.mark.parametrize("seed", range(4))
def test_device_equals_pillow(seed):
    rng = np.random.default_rng(seed)
    for turn in range(40):
        width, height = random_size(rng, seed)
        left, top = int(rng.integers(width)), int(rng.integers(height))
        right, bottom = int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))
        size = int(rng.choice([16, 32, 57, 112]))
        frames = rng.integers(256, size=(1, height, width, 3), dtype=np.uint8)
        if turn % 2:
            frames = np.uint8(255) * (frames > 127)  # extremes, where sums are largest
        view = View(left, top, right, bottom, size, size, 0, 0, turn % 3 == 0)
        expected = Image.fromarray(frames[0]).crop((left, top, right, bottom))
        expected = np.asarray(expected.resize((size, bottom - top), Image.Resampling.BILINEAR))
        expected = np.asarray(Image.fromarray(expected).resize((size, size), Image.Resampling.BILINEAR))
        expected = expected[:, ::-1] if view.mirrored else expected
        np.testing.assert_array_equal(cut_on_device(frames, [view], size)[0], expected)


def test_pixels_of_any_pillow_version():
    """For 210 x 240, Pillow 13 would take the vertical pass first."""
    frame = np.random.default_rng(0).integers(256, size=(1, 240, 210, 3), dtype=np.uint8)
    by_pillow = np.asarray(resize(Image.fromarray(frame[0]), (224, 224)))
    on_device = cut_on_device(frame, [View(0, 0, 210, 240, 224, 224, 0, 0, 0)], 224)[0]
    assert zlib.crc32(by_pillow.tobytes()) == zlib.crc32(on_device.tobytes()) == PILLOW_12


PILLOW_12 = 1031245138  # checksum of Image.resize


@pytest.mark.parametrize(("num_crops", "full_res"), [(1, False), (1, True), (3, False), (10, True)])
def test_outlines_record_transforms(num_crops, full_res):
    rng = np.random.default_rng(num_crops)
    for kind in (0, 0, 0, 1):
        width, height = random_size(rng, kind)
        frames = rng.integers(256, size=(2, height, width, 3), dtype=np.uint8)
        transform = evaluation_transform(56, num_crops, full_res)
        expected, _ = transform([Image.fromarray(frame) for frame in frames], 0, rng)
        outlines, _ = transform([Outline.of(width, height)], 0, rng)
        found = cut_on_device(frames, [outline.view for outline in outlines], outlines[0].width)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_outlines_record_training():
    frames = np.random.default_rng(0).integers(256, size=(1, 60, 90, 3), dtype=np.uint8)
    transform = training_transform(48, [1, 0])
    seen = set()
    for seed in range(40):
        expected, label = transform([Image.fromarray(frames[0])], 0, np.random.default_rng(seed))
        (outline,), same = transform([Outline.of(90, 60)], 0, np.random.default_rng(seed))
        assert same == label == outline.view.mirrored
        np.testing.assert_array_equal(cut_on_device(frames, [outline.view], 48), expected)
        seen.add(outline.view)
    assert len(seen) > 20


# Decoders.


def encodings() -> dict[str, bytes]:
    """JPEG files of several kinds."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(37, 51, 3), dtype=np.uint8))
    smooth = image.resize((203, 117), Image.Resampling.BICUBIC)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # to be turned by 90 degrees; Pillow leaves it as it is
    kinds = {
        "baseline": (smooth, {}),
        "progressive": (smooth, {"progressive": True}),
        "4:2:2": (smooth, {"subsampling": 1}),
        "restart markers": (smooth, {"restart_marker_blocks": 3}),
        "grey": (smooth.convert("L"), {}),
        "CMYK": (smooth.convert("CMYK"), {}),
        "RGB": (smooth, {"keep_rgb": True}),
        "rotated": (smooth, {"exif": rotated}),
    }
    files = {}
    for name, (picture, options) in kinds.items():
        file = io.BytesIO()
        picture.save(file, "JPEG", **options)
        files[name] = file.getvalue()
    return files | {"with bytes behind it": files["baseline"] + b"more"}


@pytest.mark.parametrize("name", encodings())
def test_jpegs_equal_pillow(tmp_path, name):
    path = tmp_path / "1.jpg"
    path.write_bytes(encodings()[name])
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    frame = read_frame(str(path))
    place = np.zeros_like(expected)
    frame.write(place)
    assert frame.size == (expected.shape[1], expected.shape[0])
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_array_equal(np.asarray(frame.image()), expected)


# Batches.


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Videos of several sizes, some shorter than a clip, as JPEG frames and as files."""
    root = tmp_path_factory.mktemp("resize")
    rng = np.random.default_rng(0)
    lines = []
    sizes = [(64, 40), (40, 64), (90, 61), (33, 33), (64, 40), (120, 50)]
    for label, (width, height) in enumerate(sizes):
        count = 3 if label == 4 else 9
        folder = root / f"v{label}"
        folder.mkdir()
        for number in range(1, count + 1):
            coarse = Image.fromarray(rng.integers(256, size=(7, 9, 3), dtype=np.uint8))
            coarse.resize((width, height)).save(folder / f"{number:05d}.jpg")
        write_video(root / f"v{label}.mp4", count, width=width // 2 * 2, height=height // 2 * 2)
        lines.append(f"v{label} {count} {label}\n")
    (root / "list.txt").write_text("".join(lines))
    return root


def open_clips(root: Path, transform: Compose, template: str | None, **kwargs: object) -> VideoDataSet:
    options = {"random_shift": False, "num_class": 6, "seed": 3} | kwargs
    return VideoDataSet(root, root / "list.txt", 4, template, transform=transform, **options)


@pytest.mark.parametrize(
    ("template", "transform", "kwargs"),
    [
        ("{:05d}.jpg", training_transform(32, [1, 0, 2, 3, 4, 5]), {"random_shift": True}),
        ("{:05d}.jpg", training_transform(32, range(6)), {"random_shift": True, "new_length": 2}),
        (None, evaluation_transform(32), {}),
        ("{:05d}.jpg", evaluation_transform(32, 10), {"num_clips": 3, "test_mode": True}),
    ],
    ids=["training", "two frames at a place", "videos", "30 views"],
)
def test_workers_and_device_give_the_same_batches(root, template, transform, kwargs):
    clips = open_clips(root, transform, template, **kwargs)
    sampler = ClipSampler(len(clips), 4, seed=3)
    for epoch in range(2):
        sampler.start(epoch)
        by_workers = list(ClipLoader(clips, sampler, 0))
        for workers in (0, 1):
            decoded = list(ClipLoader(clips, sampler, workers, decode_only=True))
            for batch, (expected, expected_labels) in zip(decoded, by_workers, strict=True):
                assert isinstance(batch[0], DecodedClips)
                found, labels = resize_clips(batch[0]), batch[1]
                assert found.dtype == torch.uint8
                assert torch.equal(found, expected)
                assert torch.equal(labels, expected_labels)


def test_frames_are_sent_once_in_shared_memory(root):
    clips = open_clips(root, evaluation_transform(32, 5), "{:05d}.jpg", num_clips=4, test_mode=True)
    decoded, _ = next(iter(ClipLoader(clips, [[4, 0]], 1, decode_only=True)))
    assert decoded.pixels.is_shared()
    num_frames = [3, len(set(decoded.order[1].tolist()))]
    assert decoded.shapes[:, 1].tolist() == num_frames
    assert len(decoded.pixels) == 64 * 40 * 3 * sum(num_frames)


def test_batch_with_too_many_pixels():
    nothing = np.zeros((0, 4), np.int64)
    clips = DecodedClips(torch.empty(3 * 2**31 + 3, dtype=torch.uint8, device="meta"), *[nothing] * 3, 32, 8)
    with pytest.raises(UserError, match="--resize workers"):
        resize_clips(clips)


@pytest.mark.parametrize("decode_only", [False, True])
def test_lack_of_shared_memory(root, decode_only):
    loader = ClipLoader(open_clips(root, evaluation_transform(32), "{:05d}.jpg"), [[0, 0]], 1, decode_only)
    with files_limited_to(4096), pytest.raises(UserError, match="^/dev/shm: has no room ") as caught:
        next(iter(loader))
    del caught  # its traceback keeps the worker, which a garbage collection later would wait for


@pytest.mark.parametrize("decode_only", [False, True])
def test_batches_are_in_shared_memory(root, decode_only):
    """Without room, the thread that sends batches would drop one, and the program would hang."""
    loader = ClipLoader(open_clips(root, evaluation_transform(32), "{:05d}.jpg"), [[0]], 1, decode_only)
    loader.collate_fn = are_shared  # in the worker, last of all
    assert next(iter(loader)) == [True, True]


def are_shared(batch: list) -> list[bool]:
    """Whether each of a batch's tensors is in shared memory."""
    clips, labels = batch
    tensors = [*clips, labels] if isinstance(clips, DecodedClips) else batch
    return [tensor.is_shared() for tensor in tensors if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize(("share", "decode_only"), [(0.6, False), (0.95, True)], ids=["header", "pixels"])
def test_damaged_frame_is_named(tmp_path, decode_only, share):
    make_dataset(tmp_path, train=2, val=0, frames=6)
    frame = next(tmp_path.rglob("00003.jpg"))
    cut(frame, share)
    (tmp_path / "list.txt").write_text(f"{frame.parent.name} 6 0\n")
    clips = VideoDataSet(
        *(frame.parent.parent, tmp_path / "list.txt", 6, "{:05d}.jpg", 1, evaluation_transform(32), False),
        num_class=1,
        test_mode=True,
    )
    loader = ClipLoader(clips, evaluation_batches([0], 1), 0, decode_only)
    with pytest.raises(
        UserError, match=f"{frame.name}: cannot be read as an image .*[Tt]runcated.*--exclude"
    ):
        next(iter(loader))


# Whole programs.


@pytest.mark.slow
def test_resume_with_other_resize_is_bit_exact(trn_root, tmp_path):
    def weights(out: Path, epochs: int, place: str) -> dict[str, torch.Tensor]:
        _taps.cache_clear()
        more = ("--resume", "auto", "--epochs", epochs, "--resize", place)
        process = call("main.py", *small_run(trn_root, out), *more)
        assert process.returncode == 0, process.stderr
        assert (_taps.cache_info().misses > 0) == (place == "device")
        (newest,) = (path for path in out.rglob("*.pth.tar") if "best" not in path.name)
        return torch.load(newest, weights_only=True)["state_dict"]

    weights(tmp_path / "a", 1, "workers")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    expected, found = weights(tmp_path / "a", 2, "workers"), weights(tmp_path / "b", 2, "device")
    for name, value in expected.items():
        assert torch.equal(value, found[name])


def test_evaluation_does_not_depend_on_resize(trn_root, tmp_path):
    weights = save_model(tmp_path / "model.pth.tar", 4)
    results = []
    for place in ("workers", "device"):
        _taps.cache_clear()
        options = ("--dataset", "somethingv1", "--root_path", trn_root, "-j", 0, "--resize", place)
        process = call("test_models.py", "--weights", weights, *options, "--test_crops", 3, "--num_clips", 2)
        results.append(process.stdout.splitlines()[-1])
        assert (_taps.cache_info().misses > 0) == (place == "device")
    assert "Prec@1" in results[0]
    assert results[0] == results[1]
