"""``adapter``: the run's export folder itself, with the reference that it can be checked against."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from medsam_tune import __version__
from medsam_tune.backbone.weights import architecture_of
from medsam_tune.errors import CheckpointError
from medsam_tune.export.description import DESCRIPTION_FILE
from medsam_tune.export.folder import ADAPTER_FILE, CARD_FILE, CONFIG_FILE, TRAINED_FILE, ExportFolder
from medsam_tune.export.forms.base import Tuned, Written
from medsam_tune.export.merge import STOCK, check_stock
from medsam_tune.export.model_card import OWN_METHOD
from medsam_tune.export.trained import tuner_of
from medsam_tune.files import sha256_of, write_json, write_safetensors
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
    if tuned.half:
        _write_halves(stored, folder)
    tool = why_not_peft(tuned.segmenter, stored)
    return Written("", {"architecture": _architecture(tuned.segmenter), "not_in_peft": tool})


def rounded(tuned: Tuned) -> Tuned:
    """Round what was trained to float16, in the network too, so that its answers are those of the file.

    Args:
        tuned: Changed in place.

    Raises:
        CheckpointError: If a value is above what float16 holds.
    """
    stored = ExportFolder.read(tuned.folder)
    tuner = tuner_of(tuned.segmenter)
    if tuner is not None:
        tuner.load_adapter_state(_halves(stored.adapter))
    tuned.segmenter.load_state_dict(_halves(stored.trained), strict=False)
    return replace(tuned, half=True)


def _halves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with floats as float16; counters stay whole numbers."""
    found = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if large := [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(f"--half: {large[0]} has values above 65504, which float16 does not hold. Leave --half out.")
    return found


def _write_halves(stored: ExportFolder, folder: Path) -> None:
    """Write the tensors of a copied export in float16, and their checksums into its description."""
    files = {}
    for name, tensors in ((ADAPTER_FILE, stored.adapter), (TRAINED_FILE, stored.trained)):
        if tensors:
            write_safetensors(folder / name, _halves(tensors), {"format": "pt", "medsam_tune": __version__})
            files[name] = sha256_of(folder / name)
    write_json(folder / DESCRIPTION_FILE, {**stored.description, "files": files}, error=CheckpointError)


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
