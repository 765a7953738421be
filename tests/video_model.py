"""A small model for the tests of `test_video.py`."""

from pathlib import Path

import torch

from models import TemporalModel


def save_model(path: Path, classes: int, own: bool = True, **more: object) -> Path:
    """Save a model whose scores differ between clips, as an own checkpoint or as a released one."""
    torch.manual_seed(0)
    model = TemporalModel(classes, 8, backbone="resnet14", input_size=32)
    torch.nn.init.normal_(model.new_fc.weight, 0, 0.3)
    content = {"epoch": 1, "arch": "resnet14", "best_prec1": torch.tensor(50.0)}
    content["state_dict"] = {f"module.{name}": value for name, value in model.state_dict().items()}
    if own:
        content["options"] = {"num_segments": 8, "input_size": 32}
    torch.save(content | more, path)
    return path
