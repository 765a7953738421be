"""Kill tools/extract_frames.py at random moments, let it finish, and compare with an undisturbed run.

    python tests/extract_kill_harness.py --kills 20

kills with signal 9, in turn the first process alone and all of them, then runs the program to its
end and compares every file with those of a run that nobody disturbed.
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


def whole_folders_hold(folder: Path, expected: dict[str, bytes | None]) -> bool:
    """Whether all that has its final name has its final contents too."""
    now = tree(folder)
    final = {Path(path).parts[0] for path in now if not path.startswith(".")}
    return all(
        path in now and path in expected and now[path] == expected[path]
        for path in {*expected, *now}
        if Path(path).parts[0] in final
    )


def kill_and_compare(videos: Path, work: Path, kills: int, seed: int) -> list[int]:
    """Kill `kills` runs, finish, and compare.

    Args:
        videos: folder of videos, at least one of which is broken.
        work: empty folder.
        kills: how many runs to kill while they extract.
        seed: of the moments.

    Returns:
        How many folders were whole after each kill.

    Raises:
        AssertionError: a folder was not whole, or the end differs from an undisturbed run.
        subprocess.TimeoutExpired: a process lived on.
    """
    rng = random.Random(seed)
    undisturbed, disturbed = work / "undisturbed", work / "disturbed"
    command = [sys.executable, str(_PROGRAM), "--videos", str(videos), "--workers", "2", "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Status 1: the broken video is in the report.
    assert subprocess.run([*command, str(undisturbed)], **quiet).returncode == 1
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
        # Some of the moments are early, when it clears up, the others after it has begun to write.
        if rng.random() < 0.8:
            while process.poll() is None and len(list(disturbed.glob("[!.]*"))) == before:
                time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        if process.poll() is not None:
            raise AssertionError(f"the videos are too few: it ended before kill {len(progress) + 1}")
        if len(progress) % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        # Ends when the last process has closed its output: none may live on without the first.
        process.communicate(timeout=60)
        assert whole_folders_hold(disturbed, expected), f"not whole after kill {len(progress) + 1}"
        progress.append(len(list(disturbed.glob("[!.]*"))))
    assert subprocess.run([*command, str(disturbed)], **quiet).returncode == 1
    assert tree(disturbed) == expected, "the trees differ"
    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        print(f"making {15 * args.kills} videos", flush=True)
        make_videos(work / "videos", 15 * args.kills)
        progress = kill_and_compare(work / "videos", work, args.kills, args.seed)
        files = sum(path.is_file() for path in (work / "disturbed").rglob("*"))
    print(f"{args.kills} kills, videos done after each: {', '.join(map(str, progress))}")
    print(f"then finished: {files} files, the same as undisturbed, byte by byte")


if __name__ == "__main__":
    main()
