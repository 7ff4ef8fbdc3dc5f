"""What was trained, written so that one line reloads it."""

from medsam_tune.export.build import build_segmenter
from medsam_tune.export.description import read_description
from medsam_tune.export.folder import save_export
from medsam_tune.export.load import load_adapter, load_export
from medsam_tune.export.switch import AdapterSwitch
from medsam_tune.export.trained import trained_names

__all__ = [
    "AdapterSwitch",
    "build_segmenter",
    "load_adapter",
    "load_export",
    "read_description",
    "save_export",
    "trained_names",
]
