"""Masks that somebody corrected, as pairs of image and mask that a recipe trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam_tune.app.opened_case import OpenedCase
from medsam_tune.data.formats.raster import write_png
from medsam_tune.data.names import file_name
from medsam_tune.errors import DataError
from medsam_tune.files import sha256_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES, MASKS = "images", "masks"
_LETTERS = 8


def save_pairs(case: OpenedCase, folder: Path) -> list[Path]:
    """Write every slice that has a mask: its grey levels as the model saw them, and the mask, 255 where the object is.

    Slices without a mask are not written: nobody said that they show no object. The slices of a volume lie in a folder of their
    own, so that a split keeps them together; a checksum of the file in its name tells files of one name apart. Saving a slice
    again replaces it. No text of the file is written, but its name is.

    Args:
        case: What was corrected.
        folder: The root; ``images/`` and ``masks/`` come below it.

    Returns:
        The images' files.

    Raises:
        DataError: If no slice has a mask, or a file cannot be written.
    """
    answered = case.answered()
    if not answered:
        raise DataError(f"{case.name}: no slice has a mask yet, so there is nothing to save. Draw a box or click first.")
    written = []
    for position in answered:
        mask = case.state(position).mask
        if mask is None:
            continue
        name, states = pair_name(case, position), case.slices.header.states_spacing
        spacing = case.slices.spacing_mm() if states else None
        levels = _plain(np.rint(case.slices.levels(position)).astype(np.uint8))
        # The mask comes first: an image without one would be refused by a training in between.
        write_png(folder / MASKS / f"{name}.png", mask.astype(np.uint8) * np.uint8(255), spacing_mm=spacing)
        written.append(write_png(folder / IMAGES / f"{name}.png", levels, spacing_mm=spacing))
    return written


def _plain(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one channel of three that are alike: networks read three, files of grey images hold one."""
    alike = levels.ndim == 3 and bool((levels == levels[..., :1]).all())
    return np.ascontiguousarray(levels[..., 0]) if alike else levels


def pair_name(case: OpenedCase, position: int) -> str:
    """Return the name of a slice's pair below ``images/`` and ``masks/``, without ending."""
    path = case.slices.header.files[0]
    own = f"{file_name(case.name)}-{sha256_of(path)[:_LETTERS]}"
    return f"{own}/{case.models.data.axis}_{position:03d}" if case.slices.header.is_volume else own
