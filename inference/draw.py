"""Draw the answers of `test_video.py`: on the video, over time, in space."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference.activation import class_activation
from inference.clips import Clip
from models import TemporalModel
from reports.render import Answer, TimedAnswer, render
from reports.timeline import write_activation, write_timeline


def draw_answers(
    file: Path,
    clip: Clip,
    windows: Sequence[dict[str, Any]],
    rows: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    over_time: bool,
    threshold: float | None,
) -> None:
    """Write the file of `--rendered_output` of a video.

    Args:
        file: file to write. Its suffix selects the kind of picture or video.
        clip: the last clip of the video.
        windows: the answers, see `inference.answers.make_answer`.
        rows: the logits, and possibly the features, of each window.
        names: class names.
        over_time: draw all answers with their times; otherwise there is only one.
        threshold: do not draw answers below this probability.

    Raises:
        UserError: a frame cannot be read, or the file cannot be written.
    """
    if over_time and file.suffix.lower() == ".png":
        probabilities = torch.from_numpy(np.stack([scores for scores, *_ in rows])).softmax(dim=1).numpy()
        spans = [(window["start"], window["end"]) for window in windows]
        write_timeline(file, clip.video, spans, probabilities, names)
        return
    timed = []
    for window in windows if over_time else ():
        best = window["top"][0]
        is_drawn = best["probability"] >= (threshold or 0)
        answer = Answer(best["class"], best["probability"]) if is_drawn else None
        timed.append(TimedAnswer(window["start"], window["end"], answer))
    top = [Answer(best["class"], best["probability"]) for best in windows[0]["top"]]
    numbers = clip.window.numbers
    crops = clip.pixels.reshape(-1, *clip.pixels.shape[-3:])[: len(numbers)]  # the first crop of each frame
    render(file, clip.video, numbers, crops, top, timed)


def draw_activation(
    file: Path,
    clip: Clip,
    best: dict[str, Any],
    model: TemporalModel,
    predict: Callable[[torch.Tensor], object],
) -> None:
    """Write the file of `--cam`.

    Args:
        file: see `reports.timeline.write_activation`.
        clip: a clip of one view.
        best: label, class and probability of the class to explain.
        model: see `class_activation`.
        predict: see `class_activation`.

    Raises:
        UserError: the file cannot be written.
    """
    maps = class_activation(model, predict, torch.from_numpy(clip.pixels), best["label"])
    title = f"{clip.video.path.name}: {best['probability']:.2f} {best['class']}"
    write_activation(file, title, clip.pixels[0], maps.numpy(), clip.window.numbers, clip.times)
