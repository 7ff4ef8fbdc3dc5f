"""SAMAug: what SAM finds in an image without a prompt, drawn as two maps and fused into the image.

Paper: Zhang, Zhou, Wang, Liang and Chen 2023, Input Augmentation with SAM: Boosting Medical Image Segmentation with
Segmentation Foundation Model, arXiv 2304.11332. Authors' repository: yizhezhang2000/SAMAug @ 53d84a4, SAMAug_barebone.py.

Differs from the authors' code:

- The maps are rendered from stored masks and scores at load time, as floats. There they are read from 8-bit colour images in
  which sums above 1 saturate, and all three channels of these are added.
- Fusion happens on 0..255 before normalisation (``space: image``), the rule of the paper, or after it (``normalised``), as the
  released polyp script does; there it depends on the script.
- Nothing is changed in place, and grey images work; there a grey image fails and a float image is overwritten.
- The rendered boundary is the authors' (inside and outside of every mask); both maps follow the image through augmentation.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.fusion.base import FusionSpace, InputFusion
from medsam_tune.geometry import Frame, pad_to_side
from medsam_tune.types import AutomaticMasks

PriorNorm = Literal["none", "clip", "max"]
# Segmentation prior and boundary prior.
N_PRIORS = 2
# ITU-R 601, the weights of most conversions to grey; they sum to 1.
_GREY_WEIGHTS = (0.299, 0.587, 0.114)


def render_priors(found: AutomaticMasks) -> Tensor:
    """Draw automatic masks as the segmentation prior and the boundary prior.

    The segmentation prior sums the stability scores of all masks that cover a pixel: n overlapping masks reach about n. The
    boundary prior is 1 where a pixel has a neighbour above, below, left or right on the other side of any mask's edge, so a
    boundary is two pixels thick; the image's own border is no edge, and a mask of the whole image has none.

    Args:
        found: K masks (K, H, W) with their scores; K may be 0.

    Returns:
        (2, H, W) float32: segmentation prior, boundary prior.

    Examples:
        >>> square = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> square[0, :2, :2] = True
        >>> render_priors(AutomaticMasks(square, torch.ones(1), torch.tensor([0.9])))[1].int()
        tensor([[0, 1, 1, 0],
                [1, 1, 1, 0],
                [1, 1, 0, 0],
                [0, 0, 0, 0]], dtype=torch.int32)

    Source: SAMAug_barebone.py; the boundary equals scikit-image's ``find_boundaries(mode="thick")``.
    """
    priors = torch.zeros(N_PRIORS, *found.masks.shape[-2:], device=found.masks.device)
    # One mask at a time: as floats, a few hundred masks of a large image would not fit.
    for mask, score in zip(found.masks, found.stability_score, strict=True):
        priors[0] += mask * score
        vertical, horizontal = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
        priors[1, 1:][vertical] = 1
        priors[1, :-1][vertical] = 1
        priors[1, :, 1:][horizontal] = 1
        priors[1, :, :-1][horizontal] = 1
    return priors


def priors_to_input(priors: Tensor, frame: Frame, side: int) -> Tensor:
    """Resize priors (2, H, W) to the input frame and pad them with zeros: (2, S, S).

    The segmentation prior is resampled bilinearly and antialiased as the image is, the boundary by nearest neighbour as masks
    are.
    """
    segmentation = F.interpolate(priors[None, :1], frame.input_size, mode="bilinear", antialias=True, align_corners=False)
    boundary = F.interpolate(priors[None, 1:], frame.input_size, mode="nearest-exact")
    return pad_to_side(torch.cat([segmentation, boundary], dim=1)[0], side)


class _SamAugFusion(InputFusion):
    """Hold what the fusions share: the norm of the segmentation prior and the space with its scale."""

    reads_priors = True

    def __init__(self, *, prior_norm: PriorNorm = "none", space: FusionSpace = "image", clip: bool = False) -> None:
        super().__init__()
        if clip and space == "normalised":
            raise RecipeError(
                "model.fusion.clip: cuts the fused image to 0..255, which has no meaning after normalisation. "
                "Set space: image, or clip: false and prior_norm: clip."
            )
        self.prior_norm, self.space, self.clip = prior_norm, space, clip

    def _maps(self, priors: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the segmentation prior and the boundary prior, (B, S, S) each, on the scale of the space."""
        if priors is None or priors.shape[1] != N_PRIORS:
            came = "none" if priors is None else f"{priors.shape[1]}"
            raise RecipeError(
                f"data.priors: {type(self).__name__} fuses {N_PRIORS} prior maps into each image, this batch has {came}. "
                "Set data.priors in the recipe; a predictor takes an image's automatic masks as priors=."
            )
        scale = 255.0 if self.space == "image" else 1.0
        return _normed(priors[:, 0], self.prior_norm) * scale, priors[:, 1] * scale

    def _clipped(self, fused: Tensor) -> Tensor:
        return fused.clamp(0, 255) if self.clip else fused


class AddRgb(_SamAugFusion):
    """Add the segmentation prior to the green channel and the boundary prior to the blue one; red stays as it is.

    Where no mask was found, the fused image is the image.

    Args:
        prior_norm: Of the segmentation prior: ``none`` (the authors' rule: overlaps add up), ``clip`` (at 1), or ``max``
            (divided by the largest value of the image).
        space: ``image`` adds 255 times the maps on 0..255, then normalises; ``normalised`` adds the maps to the
            network's input.
        clip: Cut the fused image to 0..255; the authors do not.

    Raises:
        RecipeError: If ``clip`` is set in the normalised space.
    """

    def forward(self, images: Tensor, priors: Tensor | None) -> Tensor:
        """Return (B, 3, S, S): red, green + segmentation prior, blue + boundary prior.

        Raises:
            RecipeError: If there are no priors.
        """
        segmentation, boundary = self._maps(priors)
        red, green, blue = images.unbind(1)
        return self._clipped(torch.stack([red, green + segmentation, blue + boundary], dim=1))


class StackGrey(_SamAugFusion):
    """Stack the grey image, the segmentation prior and the boundary prior: SAMAug's rule for grey images.

    A colour image is turned to grey with the weights of ITU-R 601. The raw input beside the fused one is the image itself.

    Args:
        prior_norm: See ``AddRgb``.
        space: ``image`` stacks the image in 0..255 with 255 times the maps, then normalises each channel;
            ``normalised`` stacks the grey of the normalised image with the maps as they are.
        clip: Cut the fused image to 0..255.

    Raises:
        RecipeError: If ``clip`` is set in the normalised space.
    """

    def forward(self, images: Tensor, priors: Tensor | None) -> Tensor:
        """Return (B, 3, S, S): grey, segmentation prior, boundary prior.

        Raises:
            RecipeError: If there are no priors.
        """
        segmentation, boundary = self._maps(priors)
        grey = torch.einsum("bchw,c->bhw", images, images.new_tensor(_GREY_WEIGHTS))
        return self._clipped(torch.stack([grey, segmentation, boundary], dim=1))


class Concat(_SamAugFusion):
    """Append both maps to the normalised image: five channels, for task networks only.

    The maps have no mean and deviation to be normalised with, so this fusion acts in the normalised space. The raw input
    beside the fused one carries maps of zeros, as an image does in which no mask was found.

    Args:
        prior_norm: See ``AddRgb``.
    """

    channels = 3 + N_PRIORS

    def __init__(self, *, prior_norm: PriorNorm = "none") -> None:
        super().__init__(prior_norm=prior_norm, space="normalised", clip=False)

    def forward(self, images: Tensor, priors: Tensor | None) -> Tensor:
        """Return (B, 5, S, S): the image, segmentation prior, boundary prior.

        Raises:
            RecipeError: If there are no priors.
        """
        return torch.cat([images, torch.stack(self._maps(priors), dim=1)], dim=1)

    def without_priors(self, images: Tensor) -> Tensor:
        """Return (B, 5, S, S): the image and maps of zeros."""
        return torch.cat([images, images.new_zeros(len(images), N_PRIORS, *images.shape[-2:])], dim=1)


def _normed(segmentation: Tensor, prior_norm: PriorNorm) -> Tensor:
    """Apply a norm to (B, S, S); an image without masks stays zero under ``max``."""
    if prior_norm == "clip":
        return segmentation.clamp(max=1)
    if prior_norm == "max":
        highest = segmentation.amax(dim=(-2, -1), keepdim=True)
        return segmentation / torch.where(highest > 0, highest, 1.0)
    return segmentation
