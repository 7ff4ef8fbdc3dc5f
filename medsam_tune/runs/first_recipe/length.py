"""How much of a folder is used in a training, and for how long: slices of volumes, batch, epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medsam_tune.data.fingerprint import Fingerprint
from medsam_tune.data.own_data import DataSettings
from medsam_tune.data.splits import SplitSettings
from medsam_tune.data.tiles import Tiles, tile_grid
from medsam_tune.training.plan import WARMUP_SHARE, plan_training

WANTED_STEPS = {False: 400, True: 2000}
"""Optimizer steps that are planned at least, without and with a GPU."""
MOST_SLICES = {False: 400, True: 4000}
"""Training slices beyond which volumes are thinned, without and with a GPU; half as many are evaluated."""
MOST_VIEWED = {False: 500, True: 4000}
"""Views of training images that are encoded at most where colour images are augmented, without and with a GPU."""
_MOST_VIEWS = 8
_VIEWED_STEPS, _VIEWED_STEPS_AN_IMAGE = 800, 20
_EPOCHS = 8
_BATCH = {False: 4, True: 8}


@dataclass(frozen=True)
class Length:
    """Hold how long a training is.

    Attributes:
        images: Training images, or slices.
        evaluated: Validation and test images, or slices.
        batch: Images a step.
        epochs: Passes over the training images.
        steps: Optimizer steps.
        warmup_steps: Of them.
        validate_every: Epochs from one validation to the next.
        views: Views of each training image; 1 where nothing is augmented.
        slices: The source's ``slices`` and ``train_slices``; empty where all are used.
        split: Settings of the split.
    """

    images: int
    evaluated: int
    batch: int
    epochs: int
    steps: int
    warmup_steps: int
    validate_every: int
    views: int
    slices: dict[str, Any]
    split: SplitSettings


def plan_length(found: Fingerprint, data: DataSettings, *, gpu: bool, augments: bool = False) -> Length:
    """Plan a training on a folder: never fewer steps than a floor, and a warm-up that is a tenth of them.

    A few colour images are shown in several views, for longer: on images of glands that was worth 0.05 in Dice, most of it
    for being longer (docs/methods/autosam.md). Left and right, up and down mean something in a scan: grey images and volumes
    stay as they are.

    Args:
        found: The fingerprint.
        data: What the recipe says of the folder; a tile counts as an image.
        gpu: Whether there is a GPU.
        augments: Whether the bundled recipe of the method shows augmented views.
    """
    split = SplitSettings(val_fraction=0.2, test_fraction=0.2)
    held_out = split.val_fraction + split.test_fraction
    slices = _slices(found, held_out, gpu=gpu)
    trained = _count(found, slices.get("train_slices", {}), data) * (1 - held_out)
    evaluated = _count(found, slices.get("slices", {}), data) * held_out
    images = max(1, round(trained))
    views = _views(found, images, gpu=gpu) if augments else 1
    return _planned(images, max(2, round(evaluated)), views, slices, split, gpu=gpu)


def plan_again(length: Length, images: int, *, gpu: bool) -> Length:
    """Return the length for the training images that the split really leaves, which no share of all images tells exactly.

    Args:
        length: As planned from the folder alone.
        images: Training images, slices or tiles of the split.
        gpu: Whether there is a GPU.
    """
    return _planned(images, length.evaluated, length.views, length.slices, length.split, gpu=gpu)


def _planned(images: int, evaluated: int, views: int, slices: dict[str, Any], split: SplitSettings, *, gpu: bool) -> Length:
    batch = min(_BATCH[gpu], images)
    wanted = max(WANTED_STEPS[gpu], min(_VIEWED_STEPS, _VIEWED_STEPS_AN_IMAGE * images) if views > 1 else 0)
    warmup_steps = int(WARMUP_SHARE * wanted)
    plan = plan_training(math.ceil(images / batch), epochs=_EPOCHS, warmup_steps=warmup_steps, fewest_steps=wanted)
    return Length(
        images, evaluated, batch, plan.epochs, plan.steps, plan.warmup_steps, plan.validate_every, views, slices, split
    )


def _views(found: Fingerprint, images: int, *, gpu: bool) -> int:
    colour = all(each.channels > 1 and not each.is_volume for each in found.facts)
    return max(1, min(_MOST_VIEWS, MOST_VIEWED[gpu] // images)) if colour else 1


def _count(found: Fingerprint, rule: dict[str, int], data: DataSettings) -> int:
    """Return how many images a rule of slices leaves of all cases, each as many times as it has tiles."""
    size = data.keys.get("tiles", {}).get("size")
    tiles = Tiles() if size is None else Tiles(size)
    n_images = 0
    for each in found.facts:
        height, width = each.slice_size
        n_tiles = 1 if size is None else len(tile_grid((height, width), *tiles.in_pixels(size)))
        n_images += min(each.n_slices, rule.get("count", each.n_slices)) * n_tiles
    return n_images


def _slices(found: Fingerprint, held_out: float, *, gpu: bool) -> dict[str, Any]:
    """Thin the volumes evenly where they have more slices than are used; the choice reads no label."""
    volumes = [each.n_slices for each in found.facts if each.is_volume]
    if not volumes:
        return {}
    rules = {}
    for key, most, share in (("slices", MOST_SLICES[gpu] // 2, held_out), ("train_slices", MOST_SLICES[gpu], 1 - held_out)):
        count = max(4, int(most / max(1, share * len(volumes))))
        if count < max(volumes):
            rules[key] = {"count": count}
    return rules
