"""Draw the answers of `test_video.py`: on the video, over time, in space.

Class activation maps are those of Zhou et al., arXiv 1512.04150.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inference.clips import Clip
from models import TemporalModel
from reports.plots import SheetRow, figure_png
from reports.render import model_sheet, render_film, rendering
from reports.timeline import draw_timeline, write_activation


def draw_answers(
    file: Path,
    clip: Clip,
    windows: Sequence[dict[str, Any]],
    rows: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    over_time: bool,
    threshold: float | None,
) -> None:
    """Write a video's `--rendered_output` file.

    Args:
        file: file to write. Its suffix selects the kind of picture or video.
        clip: the last clip of the video.
        windows: the answers, see `inference.answers.make_answer`.
        rows: the logits, and possibly the features, of each window.
        names: class names.
        over_time: draw all answers with their times; otherwise there is only one.
        threshold: do not draw answers below this probability.
    """
    if file.suffix.lower() == ".png":
        with rendering(file) as part:
            if over_time:
                scores = torch.from_numpy(np.stack([scores for scores, *_ in rows]))
                spans = [(window["start"], window["end"]) for window in windows]
                draw = partial(draw_timeline, clip.video, spans, scores.softmax(dim=1).numpy(), names)
                part.write_bytes(figure_png(draw))
            else:
                draw_sheet(clip, windows[0]["top"]).save(part, format="PNG")
        return
    render_film(file, clip.video, windows, threshold or 0, has_strip=over_time)


def draw_sheet(clip: Clip, top: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw the frames of a clip as the model saw them (the first crop), and the best classes above them."""
    lines = [clip.video.path.name, *(f"{best['probability']:.3f}  {best['class']}" for best in top)]
    captions = [f"frame {number}" for number in clip.window.numbers]
    crops = clip.pixels.reshape(-1, *clip.pixels.shape[-3:])[: len(captions)]
    return model_sheet(SheetRow([Image.fromarray(crop) for crop in crops], lines, captions))


def draw_activation(
    file: Path,
    clip: Clip,
    best: dict[str, Any],
    model: TemporalModel,
    predict: Callable[[torch.Tensor], object],
) -> None:
    """Write the `--cam` file for the class `best` of a single-view clip; see `class_activation`."""
    maps = class_activation(model, predict, torch.from_numpy(clip.pixels), best["label"])
    title = f"{clip.video.path.name}: {best['probability']:.2f} {best['class']}"
    write_activation(file, title, clip.pixels[0], maps.numpy(), clip.window.numbers, clip.times)


@torch.inference_mode()
def class_activation(
    model: TemporalModel, predict: Callable[[torch.Tensor], object], clip: torch.Tensor, label: int
) -> torch.Tensor:
    """Compute the class activation of each frame and position.

    The logit of a clip is the mean of the classifier over the frames and positions of the last stage. So the
    map is exact: the logit is the mean of the map plus the classifier's bias.

    Args:
        predict: a function that runs the model, such as `engine.Predictor`.
        clip: the input, a single view of a clip.

    Returns:
        Frames x height x width of the last stage, float32, on the CPU.
    """
    outputs: list[torch.Tensor] = []
    hook = model.base_model.layer4.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        predict(clip)
    finally:
        hook.remove()
    (features,) = outputs[0].float()  # channels x frames x height x width
    return torch.einsum("c,cthw->thw", model.classifier.weight[label].float(), features).cpu()
