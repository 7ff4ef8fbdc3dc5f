"""2.5-D: the slices above and below a slice as its red and blue, for any method that takes colour images.

The middle channel is the slice itself, so masks and prompts stay where they are. Neighbours are those of the volume, whichever
slices a recipe chooses to train on; the first slice of a volume has itself below, the last itself above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from medsam_tune.data.base import Purpose, SegmentationSource, VoxelSize
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.samples import Sample

Channels = Literal["stored", "neighbours"]
"""What the three channels of a slice show (``data.channels``)."""


class NeighbourSource(SegmentationSource):
    """Serve the slices of an opened source, each with its neighbours as colours; masks, names and places stay the source's.

    Args:
        source: Opened, of volumes in grey.

    Raises:
        RecipeError: If no image of the source is a slice of a volume with others.
    """

    def __init__(self, source: SegmentationSource) -> None:
        self.source = source
        self.target, self.ignore_label, self.inverted = source.target, source.ignore_label, source.inverted
        self._places = source.places()
        self._at = {place: index for index, place in enumerate(self._places)}
        if len(source) and len({volume for volume, _ in self._places}) == len(self._places):
            raise RecipeError(
                "data.channels: neighbours shows the slices above and below, but every image stands alone. Set data.channels: "
                "stored."
            )

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Do nothing: the source of the slices is open."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        volume, position = self._places[index]
        below, above = (self._at.get((volume, position + step), index) for step in (-1, 1))
        return replace(sample, image=torch.stack([self._grey(below), _grey_of(sample), self._grey(above)]))

    def case_ids(self) -> tuple[str, ...]:
        """Return the source's."""
        return self.source.case_ids()

    def image_ids(self) -> tuple[str, ...]:
        """Return the source's."""
        return self.source.image_ids()

    def label_names(self) -> dict[int, str]:
        """Return the source's."""
        return self.source.label_names()

    def named_labels(self) -> dict[int, str]:
        """Return the source's."""
        return self.source.named_labels()

    def label_values(self) -> dict[int, list[int]]:
        """Return the source's."""
        return self.source.label_values()

    def describe(self) -> dict[str, object]:
        """Return the source's, and what the channels show."""
        return {**self.source.describe(), "shown": "neighbours"}

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Return what the source chooses."""
        return self.source.select(indices, purpose)

    def patient_ids(self) -> tuple[str | None, ...]:
        """Return the source's."""
        return self.source.patient_ids()

    def places(self) -> tuple[tuple[str, int], ...]:
        """Return the source's."""
        return self._places

    def voxel_size(self, index: int) -> VoxelSize | None:
        """Return the source's."""
        return self.source.voxel_size(index)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the source's."""
        return self.source.files(index)

    def size(self, index: int) -> tuple[int, int]:
        """Return the source's."""
        return self.source.size(index)

    def check_case(self, indices: Sequence[int]) -> None:
        """Read the items of one case as the source does."""
        self.source.check_case(indices)

    def _grey(self, index: int) -> Tensor:
        return _grey_of(self.source[index])


def _grey_of(sample: Sample) -> Tensor:
    """Return the one channel (H, W) of a grey image."""
    first: Tensor = sample.image[0]
    if not all(torch.equal(first, other) for other in sample.image[1:]):
        raise DataError(
            f"{sample.image_id}: has colours, and data.channels: neighbours would replace them by its neighbours. Set "
            "data.channels: stored."
        )
    return first
