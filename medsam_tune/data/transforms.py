"""Joint augmentation of an image, its masks and its prior maps, a pure function of a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from medsam_tune.errors import RecipeError
from medsam_tune.masks import ObjectMasks
from medsam_tune.samples import Sample

# How often an augmentation that pushes every object out of the image is drawn again before the image stays as it is.
_DRAWS = 10


@dataclass(frozen=True)
class Augmentation:
    """State the random changes of a training image; the defaults change nothing.

    Attributes:
        horizontal_flip: Probability of a left-right flip.
        vertical_flip: Probability of an up-down flip.
        degrees: Rotation by up to this angle in both directions.
        scale: Lowest and highest zoom factor.
        translate: Largest shift, as a fraction of width and height.
        brightness: Factor drawn from 1 - b to 1 + b, as are contrast and saturation.
        contrast: See ``brightness``.
        saturation: See ``brightness``.
        hue: Largest shift of the hue, as a fraction of the colour circle, at most 0.5.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (
            ("horizontal_flip", 1.0),
            ("vertical_flip", 1.0),
            ("translate", 1.0),
            ("degrees", 180.0),
            ("hue", 0.5),
        ):
            _check_range(name, getattr(self, name), high)
        for name in ("brightness", "contrast", "saturation"):
            _check_range(name, getattr(self, name), float("inf"))
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RecipeError(f"data.augmentation.scale: expected 0 < low <= high, got {self.scale}.")


def view_seed(seed: int, image_id: str, view: int) -> int:
    """Return the seed of an augmented view: the same in every process, independent of the order of the images."""
    digest = hashlib.blake2b(f"{seed}/{image_id}/{view}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def augment(sample: Sample, augmentation: Augmentation, *, seed: int, keep_objects: bool = True) -> Sample:
    """Return the sample with image and masks changed together; the same seed gives the same result, whatever ran before.

    Images and the segmentation prior are resampled bilinearly, masks and the boundary prior by nearest neighbour, and what
    comes in from outside is 0. Changes of colour leave masks and priors alone, and what was not annotated moves with the masks.
    A draw that leaves no pixel of any object is drawn again; after ten such draws the sample stays as it is.

    Args:
        sample: At its original size.
        augmentation: The settings.
        seed: From ``view_seed``; torch's global random state is neither read nor changed.
        keep_objects: False takes the first draw whatever it leaves, so that samples of one size and seed move alike.
    """
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        for _ in range(_DRAWS):
            changed = _draw(sample, augmentation)
            if not keep_objects or changed.masks.any() or not sample.masks.any():
                return changed
    return sample


def _draw(sample: Sample, augmentation: Augmentation) -> Sample:
    from torchvision import tv_tensors  # type: ignore[import-untyped]
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    settings = augmentation
    shift = (settings.translate, settings.translate)
    geometry = v2.Compose(
        [
            v2.RandomHorizontalFlip(settings.horizontal_flip),
            v2.RandomVerticalFlip(settings.vertical_flip),
            v2.RandomAffine(settings.degrees, shift, settings.scale, interpolation=v2.InterpolationMode.BILINEAR),
        ]
    )
    colour = v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)
    # torchvision expects float images in 0..1.
    masks = sample.masks.dense()
    rows = masks if sample.ignored is None else torch.cat([masks, sample.ignored[None]])
    moving = [tv_tensors.Image(sample.image / 255), tv_tensors.Mask(rows.to(torch.uint8))]
    if sample.priors is not None:
        moving += [tv_tensors.Image(sample.priors[:1]), tv_tensors.Mask(sample.priors[1:])]
    image, moved, *priors = geometry(*moving)
    image = colour(image).as_subclass(torch.Tensor) * 255
    rows = moved.as_subclass(torch.Tensor).bool()
    return replace(
        sample,
        image=image,
        masks=ObjectMasks.of(rows[: len(masks)]),
        ignored=None if sample.ignored is None else rows[-1],
        priors=torch.cat([prior.as_subclass(torch.Tensor) for prior in priors]) if priors else None,
    )


def _check_range(name: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        raise RecipeError(f"data.augmentation.{name}: expected a value from 0 to {high}, got {value}.")
