"""Models for `torch.hub.load`; docs/CHECKPOINTS.md shows them in use.

model = torch.hub.load(CLONE, "gst_resnet50", source="local", weights=FILE)

The program that loads them may have modules named `models` or `utils` of its own. So those of this repository
are imported as parts of a package whose name nobody else has, and import each other from there.
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

dependencies = ["torch", "numpy", "pydantic", "safetensors", "tqdm"]

_HOME = Path(__file__).resolve().parent
# One for each clone, so that a program can load two versions.
_PACKAGE = f"gst_video_{hashlib.sha256(str(_HOME).encode()).hexdigest()[:8]}"
_OWN = {path.parent.name for path in _HOME.glob("*/__init__.py")} | {path.stem for path in _HOME.glob("*.py")}


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """`__import__` for the modules of this repository, also for an import inside a function."""
    top = name.partition(".")[0]
    if level or top not in _OWN:
        return builtins.__import__(name, globals, locals, fromlist, level)
    if fromlist:
        return builtins.__import__(f"{_PACKAGE}.{name}", globals, locals, fromlist)
    importlib.import_module(f"{_PACKAGE}.{name}")
    return sys.modules[f"{_PACKAGE}.{top}"]


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        # Where the import statement finds what it calls; Python documents this for `exec`.
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
) -> nn.Module:
    """A model of any type and arch, in evaluation mode.

    What is not given is the checkpoint's. Without one, or where it does not say, it is as published: GST,
    resnet50, alpha 4, beta 2, 8 frames of 224 x 224, 174 classes.

    Args:
        type: of block: 'GST', 'C2D', 'C3D', 'S3D' or 'TSM'.
        arch: backbone, such as 'resnet50'.
        alpha: one in alpha of a block's channels is temporal (GST only).
        beta: 2 for GST, 1 for GST-Large (GST only).
        num_segments: frames in a clip.
        input_size: height and width of the frames that it is meant for, in pixels.
        num_class: number of classes.
        weights: a checkpoint that test_models.py takes; None for a random start.

    Returns:
        `TemporalModel`: batch x num_segments x 3 x height x width -> batch x num_class logits. Frames are in
        time order, RGB, from 0 to 1, normalised by its `input_mean` and `input_std`. Its `categories` are the
        names of its classes, or None where they are not known.

    Raises:
        ValueError: the checkpoint cannot be loaded or contradicts an argument, or an argument cannot work.
    """
    if weights is not None:
        given = Namespace(type=type, arch=arch, alpha=alpha, beta=beta)
        given.num_segments, given.input_size, given.weights = num_segments, input_size, weights
        return _load(given, num_class)
    models = importlib.import_module(f"{_PACKAGE}.models")
    model = models.TemporalModel(
        174 if num_class is None else num_class,
        8 if num_segments is None else num_segments,
        "GST" if type is None else type,
        "resnet50" if arch is None else arch,
        4 if alpha is None else alpha,
        2 if beta is None else beta,
        input_size=224 if input_size is None else input_size,
    )
    model.categories = None
    return model.eval()


def gst_resnet50(
    alpha: int | None = None,
    beta: int | None = None,
    num_segments: int | None = None,
    weights: str | Path | None = None,
    **more: Any,
) -> nn.Module:
    """GST with ResNet-50; see `temporal_model`, also for `num_class` and `input_size`."""
    return temporal_model("GST", "resnet50", alpha, beta, num_segments, weights=weights, **more)


def gst_large_resnet50(
    alpha: int | None = None, num_segments: int | None = None, weights: str | Path | None = None, **more: Any
) -> nn.Module:
    """GST-Large, which is GST with beta 1, with ResNet-50; see `temporal_model`."""
    return temporal_model("GST", "resnet50", alpha, 1, num_segments, weights=weights, **more)


def _load(given: Namespace, num_class: int | None) -> nn.Module:
    """The model of the checkpoint `given.weights`, whose other attributes must not contradict it."""
    path = given.weights
    checkpoint = importlib.import_module(f"{_PACKAGE}.training.checkpoint")
    user_error = importlib.import_module(f"{_PACKAGE}.utils.cli").UserError
    try:
        saved = checkpoint.load_checkpoint(path)
        spec = checkpoint.describe_model(saved, path, given.type)
        num_segments, input_size = checkpoint.read_settings(given, spec, saved.get("options", {}))
        if num_class not in (None, spec.num_class):
            raise user_error(f"num_class {num_class} contradicts {path}, which has {spec.num_class}")
        types = checkpoint.possible_types(saved, path)
        if given.type is None and len(types) > 1:
            raise user_error(f"{path}: its tensors may be of {' or '.join(types)}; give type")
        model = checkpoint.build_model(spec, num_segments, input_size, path)
        checkpoint.load_weights(model, saved["state_dict"], path)
        model.categories = checkpoint.class_names(saved, path)
    except user_error as error:
        raise ValueError(str(error).removeprefix("--")) from None
    return model.eval()
