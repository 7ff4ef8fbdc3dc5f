"""Merge what was trained into a plain SAM checkpoint that ``segment_anything.sam_model_registry`` loads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from medsam_tune.backbone.architectures import ARCHITECTURES, build_parts
from medsam_tune.backbone.weights import architecture_of
from medsam_tune.errors import CheckpointError
from medsam_tune.export.description import DESCRIPTION_FILE
from medsam_tune.export.load import Checkpoint, load_export
from medsam_tune.files import write_torch
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

STOCK = ("vit_b", "vit_l", "vit_h")
"""Architectures that ``sam_model_registry`` builds."""
STOCK_SIDE = 1024
STOCK_MASK_TOKENS = 4


def merge_export(
    folder: str | Path,
    merged: str | Path,
    *,
    checkpoint: Checkpoint | None = None,
    force: bool = False,
    trusted: bool = False,
) -> str:
    """Write a plain SAM checkpoint with the training merged in.

    Args:
        folder: A run, or its ``export`` folder.
        merged: The ``.pth`` file to write; it appears whole or not at all.
        checkpoint: Where the base weights lie if they are a file of your own.
        force: Go on although the base weights at hand are not those of the training.
        trusted: Import classes from outside ``medsam_tune`` that the folder names; that runs their code.

    Returns:
        The key of ``sam_model_registry`` that loads it: ``vit_b``, ``vit_l`` or ``vit_h``.

    Raises:
        CheckpointError: If the folder cannot be loaded, the network cannot be a plain SAM, or the file cannot be written.
    """
    segmenter = _load(Path(folder).expanduser(), checkpoint=checkpoint, force=force, trusted=trusted)
    architecture = check_stock(segmenter)
    write_torch(Path(merged).expanduser(), merged_state(segmenter))
    return architecture


def check_stock(segmenter: Segmenter) -> str:
    """Check that the network fits the shapes of a released SAM, and return its key of ``sam_model_registry``.

    Raises:
        CheckpointError: If it has another encoder, input side or number of mask tokens, or parts outside SAM.
    """
    backbone = _plain(segmenter).backbone
    architecture = architecture_of(backbone.state_dict())
    if architecture not in STOCK:
        raise CheckpointError(
            f"model.backbone: sam_model_registry builds {', '.join(STOCK)}, this encoder is {architecture or 'another one'}. "
            "Export the adapter, or train on SAM or MedSAM weights."
        )
    if backbone.input_rule.side != STOCK_SIDE:
        raise CheckpointError(
            f"model.backbone.side: sam_model_registry builds a side of {STOCK_SIDE} px, this network has "
            f"{backbone.input_rule.side}; its position tables do not fit. Train at {STOCK_SIDE}, or export the adapter."
        )
    tokens = len(backbone.state_dict()["mask_decoder.mask_tokens.weight"])
    if tokens != STOCK_MASK_TOKENS:
        raise CheckpointError(
            f"model.backbone: sam_model_registry builds {STOCK_MASK_TOKENS} mask tokens, this decoder has {tokens}. "
            "Export the adapter instead."
        )
    return architecture


def merged_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """Merge the tuner into the backbone, in place, and return the weights under SAM's own names.

    Raises:
        CheckpointError: If the network has parts outside SAM, or its tuner cannot be merged.
    """
    plain = _plain(segmenter)
    plain.tuner.merge()
    state = {name: tensor.detach().cpu() for name, tensor in plain.backbone.state_dict().items()}
    foreign = sorted(state.keys() ^ _stock_names(state))
    if foreign:
        raise CheckpointError(
            f"model.tuner: {type(plain.tuner).__name__} cannot be merged: it puts modules between SAM's own, such as "
            f"{foreign[0]}. Export the run's own folder instead."
        )
    return state


def _plain(segmenter: Segmenter) -> SamSegmenter:
    """Refuse what a SAM checkpoint has no place for."""
    reason = segmenter.not_mergeable()
    if reason is not None or not isinstance(segmenter, SamSegmenter):
        raise CheckpointError(f"{reason}. Use the run's export.")
    return segmenter


def _stock_names(state: dict[str, Tensor]) -> set[str]:
    architecture = ARCHITECTURES[architecture_of(state) or "vit_b"]
    with torch.device("meta"):
        parts = build_parts(architecture, architecture.side)
    return {f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()}


def _load(folder: Path, *, checkpoint: Checkpoint | None, force: bool, trusted: bool) -> Segmenter:
    inside = folder / "export"
    place = inside if (inside / DESCRIPTION_FILE).is_file() else folder
    return load_export(place, checkpoint=checkpoint, force=force, trusted=trusted).segmenter
