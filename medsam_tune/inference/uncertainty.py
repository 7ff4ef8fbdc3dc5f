"""How much an answer changes when its prompt moves a little.

Paper: Deng et al. 2023, SAM-U: Multi-box prompts triggered uncertainty estimation for reliable SAM in medical image, arXiv
2307.04973. Nothing of the authors' repository was read.

Differs from the paper:
- One number an object, not only a map: the entropy is averaged over the pixels that any of the moved prompts calls object.
- Points are moved too.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.prompt_files import DrawnObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_MOVED = 8
BOX_SHARE = 0.1
"""Each side of a box moves by up to this share of the box's width or height."""
POINT_SHARE = 0.01
"""A point moves by up to this share of the image's longer side."""


def uncertainty_of(predictor: Predictor, drawn: DrawnObject, size: tuple[int, int], *, name: str) -> float | None:
    """Ask the current image with moved prompts and return the mean entropy of their mean answer, in bits.

    0: all agree, and each is sure; 1: a coin's toss in every pixel. The same object gives the same number in every call.

    Args:
        predictor: With its image set.
        drawn: The prompt as it was given.
        size: (H, W) of the image.
        name: Of the image; with the prompt it decides how prompts move.

    Returns:
        The number, or None where no answer shows an object.
    """
    generator = torch.Generator().manual_seed(_seed(name, drawn))
    if drawn.box is not None:
        logits = predictor.predict_many(boxes=moved_boxes(drawn.box, size, generator), return_logits=True)[0]
    else:
        coords, labels = moved_points(drawn, size, generator)
        logits = predictor.predict_many(point_coords=coords, point_labels=labels, return_logits=True)[0]
    return mean_entropy_bits(torch.from_numpy(logits[:, 0]))


def moved_boxes(
    box: tuple[float, float, float, float], size: tuple[int, int], generator: torch.Generator
) -> NDArray[np.float32]:
    """Return ``N_MOVED`` boxes (n, 4) whose sides lie up to a tenth of the box away, inside the image."""
    height, width = size
    x1, y1, x2, y2 = box
    reach = BOX_SHARE * torch.tensor([x2 - x1 + 1, y2 - y1 + 1] * 2)
    moved = torch.tensor(box) + (2 * torch.rand(N_MOVED, 4, generator=generator) - 1) * reach
    moved = moved.clamp(min=0).minimum(torch.tensor([width - 1.0, height - 1.0] * 2))
    # A box of a pixel or two may have been turned over.
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    return torch.cat([low, high], dim=1).numpy()


def moved_points(
    drawn: DrawnObject, size: tuple[int, int], generator: torch.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``N_MOVED`` sets of the object's points (n, P, 2) and their labels (n, P)."""
    height, width = size
    coords = torch.tensor([point[:2] for point in drawn.points])
    labels = torch.tensor([float(point[2]) for point in drawn.points])
    moves = (2 * torch.rand(N_MOVED, *coords.shape, generator=generator) - 1) * POINT_SHARE * max(size)
    moved = (coords + moves).clamp(min=0).minimum(torch.tensor([width - 1.0, height - 1.0]))
    return moved.numpy(), labels.expand(N_MOVED, -1).numpy()


def mean_entropy_bits(logits: Tensor) -> float | None:
    """Return the binary entropy of the mean probability over pixels that any of n answers (n, H, W) calls object.

    Examples:
        >>> mean_entropy_bits(torch.tensor([[[0.0, -9.0]], [[0.0, -9.0]]]) + 1e-9)
        1.0
        >>> mean_entropy_bits(torch.tensor([[[50.0]], [[-50.0]]]))
        1.0
    """
    touched = (logits > 0).any(dim=0)
    if not bool(touched.any()):
        return None
    mean = logits[:, touched].double().sigmoid().mean(dim=0)
    return float(F.binary_cross_entropy(mean, mean, reduction="mean") / np.log(2))


def _seed(name: str, drawn: DrawnObject) -> int:
    text = f"{name}\n{drawn.slice}\n{drawn.box}\n{drawn.points}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=7).digest())
