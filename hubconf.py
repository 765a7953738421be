"""Models for `torch.hub.load`; see docs/CHECKPOINTS.md.

model = torch.hub.load(CLONE, "gst_resnet50", source="local", weights=FILE)

The program that loads a model may have its own modules named `models` or `utils`. The modules of this
repository are therefore imported as parts of a package with a unique name, and import each other from it.
"""

import builtins
import hashlib
import importlib
import sys
from argparse import Namespace
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

dependencies = ["torch", "numpy", "safetensors", "tqdm"]

_HOME = Path(__file__).resolve().parent
# Each clone has its own package, so that a program can load two versions.
_PACKAGE = f"gst_video_{hashlib.sha256(str(_HOME).encode()).hexdigest()[:8]}"
_OWN = {path.parent.name for path in _HOME.glob("*/__init__.py")} | {path.stem for path in _HOME.glob("*.py")}


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """`__import__` for the modules of this repository."""
    top = name.partition(".")[0]
    if level or top not in _OWN:
        return builtins.__import__(name, globals, locals, fromlist, level)
    if fromlist:
        return builtins.__import__(f"{_PACKAGE}.{name}", globals, locals, fromlist)
    importlib.import_module(f"{_PACKAGE}.{name}")
    return sys.modules[f"{_PACKAGE}.{top}"]


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        # The import statement calls the `__import__` of the module's `__builtins__`.
        module.__builtins__ = vars(builtins) | {"__import__": _import}
        super().exec_module(module)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.startswith(f"{_PACKAGE}.") else None
        if spec:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


if _PACKAGE not in sys.modules:  # torch.hub runs this file again at every load
    sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
    sys.modules[_PACKAGE].__path__ = [str(_HOME)]
    sys.meta_path.insert(0, _Finder)


def temporal_model(
    type: str | None = None,
    arch: str | None = None,
    alpha: int | None = None,
    beta: int | None = None,
    num_segments: int | None = None,
    input_size: int | None = None,
    num_class: int | None = None,
    weights: str | Path | None = None,
    features: bool = False,
) -> nn.Module:
    """Build a model of any type and arch, in evaluation mode.

    Arguments that are None are read from the checkpoint. Without a checkpoint, or if it does not store them,
    they have the published values: GST, resnet50, alpha 4, beta 2, 8 frames of 224 x 224, 174 classes.

    Args:
        type: type of block: 'GST', 'C2D', 'C3D', 'S3D' or 'TSM'.
        arch: backbone, such as 'resnet50'.
        alpha: one in alpha of a block's channels is temporal (GST only).
        beta: 2 for GST, 1 for GST-Large (GST only).
        num_segments: frames per clip.
        input_size: height and width of the frames, in pixels.
        num_class: number of classes.
        weights: a checkpoint that test_models.py accepts; None for random weights.
        features: return the classifier's input instead of logits, as `--save_features` does.

    Returns:
        `TemporalModel`: batch x num_segments x 3 x height x width -> batch x num_class logits, or features of
        clips (2048). Frames are RGB, from 0 to 1, normalised by its `input_mean` and `input_std`.
        `categories` are the class names, or None.

    Raises:
        ValueError: an argument is invalid or contradicts the checkpoint, or the file cannot be loaded.
    """
    arguments = {"type": type, "arch": arch, "alpha": alpha, "beta": beta}
    arguments |= {"num_segments": num_segments, "input_size": input_size, "num_class": num_class}
    options = {name: value for name, value in arguments.items() if value is not None}
    model = _build(options) if weights is None else _load(options, weights)
    if features:
        model.replace_classifier(nn.Identity())
    return model


def gst_resnet50(**arguments: Any) -> nn.Module:
    """GST with ResNet-50; see `temporal_model` for the arguments."""
    return temporal_model("GST", "resnet50", **arguments)


def gst_large_resnet50(**arguments: Any) -> nn.Module:
    """GST-Large, which is GST with beta 1, with ResNet-50; see `temporal_model` for the arguments."""
    return temporal_model("GST", "resnet50", beta=1, **arguments)


def _build(options: dict[str, Any]) -> nn.Module:
    models = importlib.import_module(f"{_PACKAGE}.models")
    arguments = {"type": "GST", "arch": "resnet50", "num_segments": 8, "num_class": 174} | options
    model = models.TemporalModel(model=arguments.pop("type"), backbone=arguments.pop("arch"), **arguments)
    model.categories = None
    return model.eval()


def _load(options: dict[str, Any], weights: str | Path) -> nn.Module:
    load = importlib.import_module(f"{_PACKAGE}.inference.load")
    describe = importlib.import_module(f"{_PACKAGE}.training.describe")
    num_class = options.pop("num_class", None)
    try:
        loaded = load.load_model(weights, Namespace(**vars(load.NO_OPTIONS) | options), allow_guess=False)
        if num_class not in (None, loaded.spec.num_class):
            raise ValueError(
                f"num_class {num_class} contradicts {weights}, which has {loaded.spec.num_class}"
            )
        loaded.model.categories = describe.class_names(loaded.checkpoint, weights)
    except load.UserError as error:
        raise ValueError(str(error).removeprefix("--")) from None
    return loaded.model
