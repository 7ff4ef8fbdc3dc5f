"""``adapter``: the run's export folder itself, with the reference that it can be checked against."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsam_tune.backbone.weights import architecture_of
from medsam_tune.errors import CheckpointError
from medsam_tune.export.description import DESCRIPTION_FILE
from medsam_tune.export.folder import CARD_FILE, CONFIG_FILE, ExportFolder
from medsam_tune.export.forms.base import Tuned, Written
from medsam_tune.export.merge import STOCK, check_stock
from medsam_tune.export.model_card import OWN_METHOD
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter


def why_not_adapter(segmenter: Segmenter) -> str | None:
    """Return None: whatever was trained can be stored."""
    return None


def write_adapter(tuned: Tuned, folder: Path) -> Written:
    """Copy the export's files to ``folder``, which exists; the card stays the export's own."""
    stored = ExportFolder.read(tuned.folder)
    names = [DESCRIPTION_FILE, CARD_FILE, *([CONFIG_FILE] if stored.config is not None else []), *stored.description["files"]]
    for name in names:
        shutil.copyfile(tuned.folder / name, folder / name)
    tool = why_not_peft(tuned.segmenter, stored)
    return Written("", {"architecture": _architecture(tuned.segmenter), "not_in_peft": tool})


def why_not_peft(segmenter: Segmenter, stored: ExportFolder) -> str | None:
    """Return None where stock peft loads the adapter into a stock SAM, else why this package is needed."""
    if stored.config is None:
        return "it holds no adapter of peft"
    if stored.config["peft_type"] == OWN_METHOD:
        return "peft learns of the Medical SAM Adapter from this package"
    if any(not name.startswith("backbone.") for name in stored.trained):
        return "what was trained beside the adapter is no part of SAM"
    try:
        check_stock(segmenter)
    except CheckpointError as error:
        return str(error)
    return None


def _architecture(segmenter: Segmenter) -> str | None:
    if not isinstance(segmenter, SamSegmenter):
        return None
    name = architecture_of(segmenter.backbone.state_dict())
    return name if name in STOCK else None
