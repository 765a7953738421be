"""Where a model sees the evidence for a class: class activation maps (Zhou et al., arXiv 1512.04150)."""

from collections.abc import Callable

import torch

from models import TemporalModel


@torch.inference_mode()
def class_activation(
    model: TemporalModel, predict: Callable[[torch.Tensor], object], clip: torch.Tensor, label: int
) -> torch.Tensor:
    """Compute the class activation of each frame and position.

    The logit of a clip is the mean of the classifier over the frames and positions of the last stage. So the
    map is exact: the logit is the mean of the map plus the classifier's bias.

    Args:
        model: the model.
        predict: a function that runs the model, such as `engine.Predictor`.
        clip: the input, a single view of a clip.
        label: the class.

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
