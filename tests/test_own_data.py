"""From a folder of videos to an evaluated checkpoint, with the README's commands."""

import shlex
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from helpers import REPOSITORY, call
from video_files import write_video

CLASSES = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}
# Added to the README's commands, to be fast.
SMALL = ["--arch", "resnet14", "--input_size", 32, "--num_segments", 4, "--epochs", 1, "-b", 8, "-j", 0]


@pytest.fixture(scope="module")
def my_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 short videos in three class folders. Shared: read only."""
    folder = tmp_path_factory.mktemp("own") / "my_videos"
    rng = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            noise = rng.integers(-25, 26, size=(16, 36, 48, 3))
            frames = np.clip(noise + colour, 0, 255).astype(np.uint8)
            write_video(folder / name / f"{number} a.mp4", frames)
    return folder


def commands() -> dict[str, list[str]]:
    """The commands of the README's section: program -> arguments."""
    section = (REPOSITORY / "README.md").read_text().partition("## Your own videos")[2].partition("\n## ")[0]
    lines = [line.partition("#")[0] for line in section.splitlines() if line.startswith("python ")]
    return {words[1]: words[2:] for words in map(shlex.split, lines)}


def succeed(program: str, *more: object) -> CompletedProcess[str]:
    done = call(program, *commands()[program], *more)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done


def accuracy(done: CompletedProcess[str]) -> str:
    (result,) = (line for line in done.stdout.splitlines() if line.startswith("Testing Results: Prec@1 "))
    return result.partition(" Loss")[0]


@pytest.mark.slow
def test_readme_commands(my_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_videos").symlink_to(my_videos)
    lists = tmp_path / "data/my_data"
    succeed("tools/process_dataset.py", "--workers", 2)
    from_videos = (lists / "train_videofolder.txt").read_text()
    trained = succeed("main.py", *SMALL)
    assert "my_data: 30 training clips from videos, 3 classes" in trained.stdout
    assert "my_data: 6 validation clips from videos, 3 classes" in trained.stdout
    (best,) = (tmp_path / "runs").rglob("*_best.pth.tar")
    best.rename(tmp_path / "FILE")
    tested = succeed("test_models.py")
    assert "my_data: 6 clips from video files" in tested.stdout
    assert accuracy(tested) == accuracy(trained)

    # Scores of test videos without labels.
    unlabelled = tmp_path / "data/unlabelled"
    unlabelled.mkdir()
    (unlabelled / "category.txt").write_bytes((lists / "category.txt").read_bytes())
    (tmp_path / "unlabelled.csv").write_text("video,label,split\n0 a.mp4,,test\n7 a.mp4,,test\n")
    options = ["--dataset", "unlabelled", "--root_path", "data"]
    files = ["--videos", my_videos / "red", "--annotations", "unlabelled.csv", "--workers", 1]
    assert call("tools/process_dataset.py", *options, *files).returncode == 0
    options += ["--val_list", unlabelled / "test_videofolder.txt", "--save_scores", tmp_path / "scores.npz"]
    done = call("test_models.py", "--weights", "FILE", *options)
    assert done.returncode == 0, done.stderr
    assert "no accuracy, because the list has no labels" in done.stdout
    assert "Prec@" not in done.stdout
    scores = np.load(tmp_path / "scores.npz")
    assert scores["videos"].tolist() == ["0 a", "7 a"]
    assert scores["scores"].shape == (2, 3)

    # The same lists from extracted frames.
    succeed("tools/extract_frames.py", "--workers", 2)
    program = "tools/process_dataset.py"
    done = call(program, *commands()[program][:4], "--workers", 1)  # without --videos
    assert (done.returncode, "frames: " in done.stdout) == (0, True), done.stderr
    assert (lists / "train_videofolder.txt").read_text() == from_videos
