"""Corrective clicks: what a user who knows the truth would click next on a prediction.

Papers: Kirillov et al. 2023, Segment Anything, arXiv 2304.02643, section A: the next click comes from the error region,
positive where the object was missed, negative where too much was taken. Cheng et al. 2023, SAM-Med2D, arXiv 2308.16184.
Authors' code: github.com/OpenGVLab/SAM-Med2D, ``utils.py`` @ 73145db, ``train.py`` @ 6d2e484.

Differs from the authors' code:
- A click is drawn from (seed, epoch, image, object, round) and never lies in the padding of the input.
- SAM-Med2D gives an object without error points anywhere, marked as padding. Here they lie on the object, or on the
  background for an object that is empty, and say what is true there.
- Beside any wrong pixel (SAM-Med2D's rule) the largest connected wrong region can be clicked, at random or in its middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.geometry import known_region
from medsam_tune.prompts.sampling import Mask, object_generators, point_inside, visible_masks
from medsam_tune.types import SegmentationBatch

ClickRule = Literal["any", "random", "centre"]
"""``any``: uniform over all wrong pixels; ``random``: uniform over the largest connected wrong region; ``centre``: its pixel
farthest from its border."""


@dataclass(frozen=True)
class Clicks:
    """Hold the clicks of N objects, which may differ in number.

    Attributes:
        coords: (N, P, 2) float32 in (x, y) pixels of the input frame.
        labels: (N, P) float32: 1 foreground, 0 background, -1 no click.
    """

    coords: Tensor
    labels: Tensor

    @classmethod
    def none(cls, n_objects: int, device: torch.device | None = None) -> Clicks:
        """Return no click for N objects."""
        return cls(torch.zeros(n_objects, 0, 2, device=device), torch.zeros(n_objects, 0, device=device))

    def joined(self, other: Clicks) -> Clicks:
        """Return these clicks followed by ``other``."""
        return Clicks(torch.cat([self.coords, other.coords], dim=1), torch.cat([self.labels, other.labels], dim=1))

    def withheld(self, rows: Tensor) -> Clicks:
        """Return the clicks without those of the objects where ``rows`` (N,) is True."""
        return Clicks(self.coords, self.labels.masked_fill(rows[:, None], -1))

    def by_count(self) -> Iterator[tuple[Tensor, Clicks]]:
        """Yield the objects that have the same number of clicks together, without filling: (n,) rows and n x count clicks.

        Filling would be tokens that the decoder attends to, so an object's mask would depend on its neighbours' clicks.
        """
        given = self.labels >= 0
        counts = given.sum(dim=1)
        for count in sorted(set(counts.tolist())):
            rows = (counts == count).nonzero()[:, 0]
            chosen = given[rows]
            coords, labels = self.coords[rows][chosen], self.labels[rows][chosen]
            yield rows, Clicks(coords.view(len(rows), count, 2), labels.view(len(rows), count))


def corrective_clicks(
    logits: Tensor, batch: SegmentationBatch, *, click_round: int, counts: Sequence[int], rule: ClickRule
) -> Clicks:
    """Click where the prediction differs from the ground truth, in the input frame.

    Args:
        logits: (N, 1, h, w) over the padded input frame.
        batch: Ground truth; its ``epoch`` counts in training only.
        click_round: Which round of clicks it is; another round draws anew.
        counts: How many clicks an object gets: one of these, drawn for each object.
        rule: Where in the error they lie; further clicks of a round go to the next largest regions.

    Returns:
        Clicks with P = the largest of ``counts``.
    """
    side = int(batch.images.shape[-1])
    upscaled = F.interpolate(logits.detach().float(), (side, side), mode="bilinear", align_corners=False)
    predicted = (upscaled[:, 0] > 0).cpu().numpy()
    truth = visible_masks(batch).to("cpu")
    regions = known_region(batch.frames, batch.ignored, side)[:, 0].numpy()
    coords, labels = np.zeros((batch.n_objects, max(counts), 2), np.float32), np.full((batch.n_objects, max(counts)), -1.0)
    generators = object_generators(batch, purpose=f"click/{click_round}")
    for row, (image, rng) in enumerate(zip(batch.image_index.tolist(), generators, strict=True)):
        count = int(rng.choice(counts))
        points = click_on_error(predicted[row], truth[row].numpy(), regions[image], count=count, rule=rule, rng=rng)
        coords[row, :count] = [(x, y) for x, y, _ in points]
        labels[row, :count] = [label for *_, label in points]
    device = batch.images.device
    return Clicks(torch.from_numpy(coords).to(device), torch.from_numpy(labels).float().to(device))


def click_on_error(
    predicted: Mask, truth: Mask, region: Mask, *, count: int, rule: ClickRule, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Return ``count`` clicks (x, y, label) of one object; the label is what ``truth`` holds there.

    A prediction without error is confirmed: the clicks lie on the object, or, if it is empty, on the background.

    Args:
        predicted: (S, S).
        truth: (S, S).
        region: (S, S), the valid area of the image; no click lies outside.
        count: 1 or more; where there are fewer regions than clicks, the first regions are clicked again, at random.
        rule: Where in the error the clicks lie.
        rng: Of this object and round.

    Examples:
        >>> missed = np.eye(3, dtype=bool)
        >>> click_on_error(~missed & missed, missed, missed | True, count=1, rule="centre", rng=np.random.default_rng(1))
        [(1, 1, 1)]
    """
    wrong = (predicted != truth) & region
    if wrong.any():
        areas = [wrong] if rule == "any" else _largest_regions(wrong, truth, count)
    else:
        seen = truth & region
        areas = [seen if seen.any() else region]
    points = []
    for number in range(count):
        again, place = divmod(number, len(areas))
        x, y = point_inside(areas[place], "distance" if rule == "centre" and not again else "random", rng)
        points.append((x, y, int(truth[y, x])))
    return points


def rounds_without_clicks(batch: SegmentationBatch, *, rounds: int, count: int) -> Tensor:
    """Choose for each object in which ``count`` of its rounds the mask stands alone, as in SAM-Med2D.

    The last round is one of them; the others are drawn between the second round of clicks and the last but one.

    Returns:
        (N, rounds) bool; round 0 is the first prompt's and round 1 the first with clicks: both always False.
    """
    silent = torch.zeros(batch.n_objects, rounds, dtype=torch.bool)
    if count:
        silent[:, -1] = True
        for row, rng in enumerate(object_generators(batch, purpose="mask_only")):
            silent[row, rng.choice(np.arange(2, rounds - 1), size=count - 1, replace=False)] = True
    return silent.to(batch.images.device)


def _largest_regions(wrong: Mask, truth: Mask, count: int) -> list[Mask]:
    """Return up to ``count`` connected regions, largest first; a missed and a superfluous region never join."""
    from scipy import ndimage

    found: list[tuple[int, NDArray[np.integer], int]] = []
    for kind in (wrong & truth, wrong & ~truth):
        # Pixels that touch at a corner belong together.
        parts, _ = ndimage.label(kind, structure=np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        found += [(int(sizes[place]), parts, int(place) + 1) for place in np.argsort(-sizes, kind="stable")[:count]]
    found.sort(key=lambda part: -part[0])
    return [parts == place for _, parts, place in found[:count]]
