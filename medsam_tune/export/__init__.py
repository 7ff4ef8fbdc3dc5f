"""What was trained, written so that one line reloads it."""

from medsam_tune.export.adapter import load_adapter, save_adapter
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.description import read_description
from medsam_tune.export.switch import AdapterSwitch
from medsam_tune.export.trained import load_export, save_export, trained_names

__all__ = [
    "AdapterSwitch",
    "build_segmenter",
    "load_adapter",
    "load_export",
    "read_description",
    "save_adapter",
    "save_export",
    "trained_names",
]
