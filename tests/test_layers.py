"""The layers of CONTRIBUTING.md: a module imports from its own layer and those below, never from above."""

import ast
import subprocess
import sys

from helpers import REPOSITORY

# From the lowest to the highest.
LAYERS = (
    ("utils",),
    ("gst", "baselines", "resnet_gst", "models", "classes", "datasets_video", "annotations"),
    ("frames",),
    ("dataset", "loader", "transforms"),
    ("reports", "training", "inference"),
    ("engine", "opts"),
    ("main", "test_models", "test_video", "hubconf", "tools"),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
PROGRAMS = LAYERS[-1]


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def test_layers():
    files = [
        *REPOSITORY.glob("*.py"),
        *(file for name in LAYER_OF for file in (REPOSITORY / name).glob("*.py")),
    ]
    for path in files:
        owner = path.relative_to(REPOSITORY).parts[0].removesuffix(".py")
        for name in {*imported_names(path)} & LAYER_OF.keys():
            assert LAYER_OF[name] <= LAYER_OF[owner], f"{path} imports {name}"
            assert name not in PROGRAMS, f"{path} imports the program {name}"


def test_model_needs_torch_alone():
    for name in ("gst", "baselines", "resnet_gst", "models"):
        own = {*imported_names(REPOSITORY / f"{name}.py")} & LAYER_OF.keys()
        assert own <= {"gst", "baselines", "resnet_gst", "models"}


def test_engine_needs_few_packages():
    blocked = [
        "tensorboardX",
        "pydantic",
        "av",
        "matplotlib",
        "safetensors",
        "filelock",
        "simplejpeg",
        "onnxruntime",
    ]
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport engine"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
