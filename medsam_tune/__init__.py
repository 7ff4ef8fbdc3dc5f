"""Adapt the Segment Anything Model to medical images by training a few percent of its weights.

The names below are imported on first use, so ``import medsam_tune`` itself stays light (no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam_tune.backbone import SamBackbone
    from medsam_tune.data import ImageFolder, NiftiVolumes, SegmentationDataModule
    from medsam_tune.export import AdapterSwitch, load_adapter, load_export, save_export
    from medsam_tune.inference.predictor import Predictor
    from medsam_tune.losses import BceDiceLoss
    from medsam_tune.prompt_encoders import HarDNetPromptGenerator
    from medsam_tune.prompts import BoxPrompt, MaskPrompt, PointPrompt
    from medsam_tune.runs.run import Run
    from medsam_tune.segmenters.base import SamParts
    from medsam_tune.segmenters.sam import SamSegmenter
    from medsam_tune.segmenters.task import TaskSegmenter

__version__ = "0.1.0"

_MODULES = {
    "AdapterSwitch": "export",
    "BceDiceLoss": "losses",
    "BoxPrompt": "prompts",
    "HarDNetPromptGenerator": "prompt_encoders",
    "ImageFolder": "data",
    "MaskPrompt": "prompts",
    "NiftiVolumes": "data",
    "PointPrompt": "prompts",
    "Predictor": "inference.predictor",
    "Run": "runs.run",
    "SamBackbone": "backbone",
    "SamParts": "segmenters.base",
    "SamSegmenter": "segmenters.sam",
    "SegmentationDataModule": "data",
    "TaskSegmenter": "segmenters.task",
    "load_adapter": "export",
    "load_export": "export",
    "save_export": "export",
}

__all__ = [
    "AdapterSwitch",
    "BceDiceLoss",
    "BoxPrompt",
    "HarDNetPromptGenerator",
    "ImageFolder",
    "MaskPrompt",
    "NiftiVolumes",
    "PointPrompt",
    "Predictor",
    "Run",
    "SamBackbone",
    "SamParts",
    "SamSegmenter",
    "SegmentationDataModule",
    "TaskSegmenter",
    "__version__",
    "load_adapter",
    "load_export",
    "save_export",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'medsam_tune' has no attribute {name!r}. Public names: {', '.join(sorted(_MODULES))}")
    value: object = getattr(import_module(f"medsam_tune.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
