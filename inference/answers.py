"""The answers of `test_video.py`: their content, their segments, and the files that contain them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from frames.sources import Video, duration
from inference.clips import Clip
from utils.cli import UserError, log, printable
from utils.files import npz, to_csv

# A clip may miss an action if its frames are farther apart than this, in seconds.
MAX_GAP = 3.0
CSV_COLUMNS = ("video", "start", "end", "class", "probability")


def make_answer(
    clip: Clip, logits: torch.Tensor, names: Sequence[str], topk: int, weights: str
) -> dict[str, Any]:
    """Make the answer for a clip: its best classes, in the format of the JSON output.

    Args:
        names: class names.
        topk: number of classes.
        weights: the checkpoint, for the message.

    Raises:
        UserError: the logits are not finite.
    """
    if not logits.isfinite().all():
        raise UserError(f"{weights}: its scores are not finite; try --amp off")
    best = logits.double().softmax(dim=0).topk(min(topk, len(names)))
    top = [
        {"label": label, "class": names[label], "probability": probability}
        for label, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    start, end = (round(time, 3) for time in (clip.window.start, clip.window.end))
    times = [round(time, 3) for time in clip.times]
    return {"start": start, "end": end, "frames": clip.window.numbers, "times": times, "top": top}


def describe_video(video: Video) -> dict[str, Any]:
    """Make the values of the JSON output that describe a video."""
    return {
        "video": str(video.path),
        "fps": round(float(video.fps), 3),
        "duration": round(duration(video), 3),
        "num_frames": video.num_frames,
    }


def merge_windows(windows: Sequence[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """Merge consecutive windows with the same best class; leave out windows below a probability.

    Args:
        windows: from `make_answer`, in the order of time.
        threshold: smallest probability of a window's best class.

    Returns:
        Start, end, label, class and mean probability of each segment.
    """

    def label(window: dict[str, Any]) -> int | None:
        best = window["top"][0]
        return best["label"] if best["probability"] >= threshold else None

    segments = []
    for best, group in itertools.groupby(windows, label):
        if best is None:
            continue
        members = list(group)
        mean = sum(window["top"][0]["probability"] for window in members) / len(members)
        times = {"start": members[0]["start"], "end": members[-1]["end"]}
        segments.append(times | members[0]["top"][0] | {"probability": mean})
    return segments


def csv_rows(videos: Sequence[dict[str, Any]]) -> bytes:
    """Format answers as CSV, with a row per segment, or else per window, or else per video.

    Args:
        videos: the videos of the JSON output. Videos without an answer have no row.
    """
    rows: list[Sequence[object]] = [CSV_COLUMNS]
    for video in videos:
        whole = [{"start": 0.0, "end": video["duration"], **video}] if "top" in video else []
        for part in video.get("segments", video.get("windows", whole)):
            best = part["top"][0] if "top" in part else part
            times = (f"{part['start']:.3f}", f"{part['end']:.3f}")
            rows.append([video["video"], *times, best["class"], f"{best['probability']:.6f}"])
    return to_csv(rows)


def answers_npz(
    rows: Sequence[Sequence[np.ndarray]], clips: Sequence[tuple[str, float, float]], names: Sequence[str]
) -> dict[str, bytes]:
    """Make the files of `--save_scores` and `--save_features`, as `test_models.py` does, with a row per clip.

    Args:
        rows: scores and optionally features of each clip.
        clips: video, start and end of each clip, which are also saved.
        names: class names.
    """
    videos, starts, ends = zip(*clips, strict=True)
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    metadata = {"labels": np.full(len(videos), -1), "videos": videos, "classes": list(names)}
    metadata |= {"start": np.array(starts), "end": np.array(ends)}
    return {
        option: npz(**{name: column}, **metadata)
        for option, name, column in zip(
            ("save_scores", "save_features"), ("scores", "features"), columns, strict=False
        )
    }


def log_window(window: dict[str, Any], suffix: str = "") -> None:
    """Print the best class of a window."""
    best = window["top"][0]
    times = f"{window['start']:.1f}-{window['end']:.1f} s"
    log.info(f"{times}  {best['probability']:.2f} -> {printable(best['class'])}{suffix}")


def warn_about_gaps(clip: Clip, num_segments: int) -> None:
    """Warn if a video is too long for one clip."""
    if (gap := clip.window.end / num_segments) > MAX_GAP:
        log.warning(
            f"warning: {printable(clip.video.path)}: {clip.window.end:.0f} s long, its {num_segments} frames "
            f"are {gap:.1f} s apart; --window SECONDS gives answers over time"
        )
