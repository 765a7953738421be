"""Kill tools/extract_frames.py at random moments, let it finish, and compare with an undisturbed run.

    python tests/extract_kill_harness.py --kills 20

Kills alternate between the first process alone and all processes.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from video_files import cut, write_video

_PROGRAM = Path(__file__).resolve().parent.parent / "tools" / "extract_frames.py"


def make_videos(folder: Path, count: int) -> None:
    """Fill a folder with videos, the last of them truncated."""
    folder.mkdir()
    for number in range(count):
        suffix = ".mp4" if number % 3 == 0 else ".webm"
        write_video(folder / f"{number}{suffix}", 12 + number % 20, width=160, height=120)
    cut(folder / f"{count - 1}{suffix}", 0.6)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the contents of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def is_whole(folder: Path, expected: dict[str, bytes | None]) -> bool:
    """Whether everything with its final name has its final contents."""
    now = tree(folder)
    final = {Path(path).parts[0] for path in now if not path.startswith(".")}
    paths = [path for path in {*expected, *now} if Path(path).parts[0] in final]
    return all(path in now and path in expected and now[path] == expected[path] for path in paths)


def kill_and_compare(videos: Path, work: Path, kills: int, seed: int) -> list[int]:
    """Kill runs, finish, and compare.

    Args:
        videos: folder of videos, at least one of them broken.
        work: empty folder.
        kills: number of runs to kill.
        seed: seed of the moments.

    Returns:
        Number of finished folders after each kill.

    Raises:
        AssertionError: a folder was incomplete, or the end differs from an undisturbed run.
        subprocess.TimeoutExpired: a process lived on.
    """
    rng = random.Random(seed)
    undisturbed, disturbed = work / "undisturbed", work / "disturbed"
    command = [sys.executable, str(_PROGRAM), "--videos", str(videos), "--workers", "2", "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert subprocess.run([*command, str(undisturbed)], **quiet).returncode == 1  # one video is broken
    expected = tree(undisturbed)
    progress: list[int] = []
    while len(progress) < kills:
        process = subprocess.Popen(
            [*command, str(disturbed)],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        before = len(list(disturbed.glob("[!.]*")))
        # Some kills are early, most after the first new folder.
        if rng.random() < 0.8:
            while process.poll() is None and len(list(disturbed.glob("[!.]*"))) == before:
                time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        assert process.poll() is None, f"too few videos: it ended before kill {len(progress) + 1}"
        if len(progress) % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate(timeout=60)  # until the last process has closed its output
        assert is_whole(disturbed, expected), f"incomplete after kill {len(progress) + 1}"
        progress.append(len(list(disturbed.glob("[!.]*"))))
    assert subprocess.run([*command, str(disturbed)], **quiet).returncode == 1
    assert tree(disturbed) == expected, "the trees differ"
    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_videos(work / "videos", 15 * args.kills)
        progress = kill_and_compare(work / "videos", work, args.kills, args.seed)
    print(f"{args.kills} kills, 0 differences; videos done after each: {', '.join(map(str, progress))}")


if __name__ == "__main__":
    main()
