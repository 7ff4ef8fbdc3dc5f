"""``bundle``: a MONAI bundle whose network is a pair of ONNX graphs, so that it needs nothing of this package.

Source: MONAI 1.6, ``docs/source/mb_specification.rst``: folders, files and the keys of ``metadata.json``.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_tune import __version__
from medsam_tune.errors import CheckpointError
from medsam_tune.export.forms import bundle_network
from medsam_tune.export.forms.base import Tuned, Written, is_prompted
from medsam_tune.export.forms.onnx_graphs import write_onnx
from medsam_tune.files import write_json, write_text
from medsam_tune.segmenters.base import Segmenter

NETWORK_FILE = "scripts/network.py"
INFERENCE_FILE = "configs/inference.json"
# The one that MONAI's own bundles name.
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
# Static, so that `export --verify` can tell that a folder runs our lines and nobody else's.
INFERENCE: dict[str, Any] = {
    "imports": ["$from scripts.network import segment_folder"],
    "bundle_root": ".",
    "images": "$@bundle_root + '/images'",
    "prompts": "",
    "masks": "$@bundle_root + '/masks'",
    "network_def": {"_target_": "scripts.network.OnnxNetwork", "models": "$@bundle_root + '/models'"},
    "run": ["$segment_folder(@network_def, @images, @prompts, @masks)"],
}
_LOADING = """\
```bash
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --images IMAGES --masks MASKS{prompts}
```

runs from this folder and writes a mask for every image of `IMAGES` (8-bit PNG, JPEG, TIFF, or `.npy` arrays on the grey scale
of the training, 0..255). It needs MONAI, fire, torch, numpy, pillow and onnxruntime.{drawn}
"""
_DRAWN = """ `PROMPTS` is a JSON file by the
images' names, `{"a.png": {"box": [x1, y1, x2, y2]}, "b.png": {"points": [[x, y]], "labels": [1]}}`, in pixels of the image;
an image without one is asked with the box of all of it."""


def write_bundle(tuned: Tuned, folder: Path) -> Written:
    """Write the bundle to ``folder``, which exists; its card comes to ``docs/README.md``.

    Raises:
        CheckpointError: If the extra for ONNX is not installed.
    """
    for name in ("configs", "models", "docs", "scripts"):
        (folder / name).mkdir()
    graphs = write_onnx(tuned, folder / "models")
    rule, classes = tuned.segmenter.input_rule, tuned.segmenter.classes()
    facts = {"side": rule.side, "resize": rule.resize, "classes": list(classes), "graphs": graphs.facts["graphs"]}
    write_json(folder / "models" / "facts.json", facts, error=CheckpointError)
    write_json(folder / INFERENCE_FILE, INFERENCE, error=CheckpointError)
    write_json(folder / "configs" / "metadata.json", metadata(tuned), error=CheckpointError)
    shutil.copyfile(Path(bundle_network.__file__), folder / NETWORK_FILE)
    write_text(folder / "scripts" / "__init__.py", "", error=CheckpointError)
    write_text(folder / "LICENSE", _licence(tuned.description), error=CheckpointError)
    prompted = is_prompted(tuned.segmenter)
    loading = _LOADING.format(prompts=" --prompts PROMPTS" if prompted else "", drawn=_DRAWN if prompted else "")
    return Written(loading, {"classes": list(classes)})


def metadata(tuned: Tuned) -> dict[str, Any]:
    """Return ``metadata.json``."""
    segmenter, rule = tuned.segmenter, tuned.segmenter.input_rule
    names = ("background", *segmenter.classes()) if segmenter.classes() else ("object",)
    versions = {name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy", "onnxruntime", "pillow")}
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "any",
        "num_channels": 3,
        "spatial_shape": [rule.side, rule.side],
        "dtype": "float32",
        "value_range": [0, 255],
        "is_patch_data": False,
        "channel_def": {str(number): name for number, name in enumerate(("red", "green", "blue"))},
    }
    scores = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(names),
        "spatial_shape": [rule.side, rule.side],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medsam-tune {__version__}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].partition("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": {name: versions[name] for name in ("onnxruntime", "pillow")},
        "name": _title(tuned),
        "task": "Segmentation of 2-D medical images" + (" by boxes and points" if is_prompted(segmenter) else ""),
        "description": f"{_title(tuned)}. The model card is docs/README.md.",
        "authors": "those who ran the training",
        "copyright": "see LICENSE",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": scores}},
    }


def is_own_code(folder: Path) -> bool:
    """Tell whether a bundle runs the lines of this package alone, so that it may be run although somebody else sent it."""
    import json

    network, inference = folder / NETWORK_FILE, folder / INFERENCE_FILE
    if not (network.is_file() and inference.is_file()) or (folder / "scripts" / "__init__.py").read_bytes() != b"":
        return False
    same = network.read_bytes() == Path(bundle_network.__file__).read_bytes()
    return same and json.loads(inference.read_text(encoding="utf-8")) == INFERENCE


def _title(tuned: Tuned) -> str:
    weights = tuned.description["base_weights"]
    return f"{_kind(tuned.segmenter)} tuned on {weights['name']}" if weights else _kind(tuned.segmenter)


def _kind(segmenter: Segmenter) -> str:
    return "Promptable segmentation network" if is_prompted(segmenter) else "Segmentation network"


def _licence(description: Mapping[str, Any]) -> str:
    """Return the terms of what lies in the folder, in words: the weights' own and the script's."""
    weights = description["base_weights"]
    named = f"The base weights {weights['name']} stay under the licence they came with. " if weights else ""
    return (
        f"{named}What was trained belongs to those who trained it; terms of the training data may apply.\n"
        "scripts/network.py is part of medsam-tune and under the Apache License 2.0: "
        "https://www.apache.org/licenses/LICENSE-2.0\n"
    )
