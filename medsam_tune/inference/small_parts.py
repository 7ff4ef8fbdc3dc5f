"""Masks without specks: islands and holes that are far smaller than the largest island of their mask."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def thresholded(logits: Tensor, smallest_part: float = 0.0) -> Tensor:
    """Return where logits (..., H, W) lie above 0, without specks: bool.

    Args:
        logits: Of one mask or several, each looked at alone.
        smallest_part: Share of the largest island's area below which islands are dropped and holes are filled; 0 keeps all.
    """
    masks = logits > 0
    if not smallest_part:
        return masks
    planes = masks.flatten(0, -3).cpu().numpy() if masks.ndim > 2 else masks[None].cpu().numpy()
    kept = [without_specks(plane, smallest_part) for plane in planes]
    return torch.from_numpy(np.stack(kept) if kept else planes).view(masks.shape).to(masks.device)


def without_specks(mask: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Drop islands, then fill holes, that are smaller than a share of the mask's largest island.

    Pixels are neighbours by their edges. A small part of the background at the image's border counts as a hole.

    Args:
        mask: (H, W).
        share: 0 to 1.

    Examples:
        >>> without_specks(np.array([[1, 1, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0]], bool), 0.2).astype(int).tolist()
        [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    """
    islands, sizes = _parts(mask)
    if not len(sizes):
        return mask
    smallest = share * sizes.max()
    kept = np.concatenate([[False], sizes >= smallest])[islands]
    holes, sizes = _parts(~kept)
    return cast("NDArray[np.bool_]", kept | np.concatenate([[False], sizes < smallest])[holes])


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the number of each pixel's part, 0 outside, and the parts' areas in pixels, that of part 1 first."""
    from scipy import ndimage

    numbers, _ = ndimage.label(mask)
    return numbers, np.bincount(numbers.ravel())[1:]
