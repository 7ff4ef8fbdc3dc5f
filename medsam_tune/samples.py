"""One image with its objects, as a source gives it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medsam_tune.masks import ObjectMasks, cut_to_boxes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Hold where a tile lies in its image, in pixels of the original.

    Attributes:
        top: First row.
        left: First column.
        size: (h, w).
        image_index: Position of the image among the images that were cut.
        image_id: The image's name.
        image_size: (H, W) of the image.
    """

    top: int
    left: int
    size: tuple[int, int]
    image_index: int
    image_id: str
    image_size: tuple[int, int]

    @property
    def area(self) -> tuple[slice, slice]:
        """Return rows and columns of the tile in its image."""
        return slice(self.top, self.top + self.size[0]), slice(self.left, self.left + self.size[1])


@dataclass(frozen=True)
class Sample:
    """Hold one 2-D image with its objects, at its original size.

    Attributes:
        image: (3, H, W) float32 in 0..255, after the source's recorded window or percentile rule.
        masks: N masks (H, W), one object a row; N may be 0. A tensor (N, H, W) bool is taken too.
        labels: (N,) int64, the label of each row.
        image_id: Unique name of the image within its source.
        case_id: What a metric and an output file are for: an image, or the volume it is a slice of.
        spacing_mm: Row and column spacing in millimetres; (1, 1) where the file states none.
        index: Position of the image in its source.
        view: 0 is the image as stored; v > 0 names an augmented view.
        priors: (P, H, W) float32 prior maps (SAMAug) of the image as it is shown, or None.
        volume_id: The volume that the image is a slice of; its own name where it is none.
        slice_index: Position of the slice in its volume.
        patient_id: The unit of a split; empty until the data module knows it.
        ignored: (H, W) bool, pixels that nobody annotated, or None: loss and metrics leave them out.
        object_ids: (N,) int64, the number of each instance in its image; None where a row is a label.
        tile: Where the image was cut out of a larger one; None where it is whole.
    """

    image: Tensor
    masks: ObjectMasks
    labels: Tensor
    image_id: str
    case_id: str
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    index: int = 0
    view: int = 0
    priors: Tensor | None = None
    volume_id: str = ""
    slice_index: int = 0
    patient_id: str = ""
    ignored: Tensor | None = None
    object_ids: Tensor | None = None
    tile: Tile | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", cut_to_boxes(self.masks))

    def rows(self, rows: Tensor) -> Sample:
        """Return the sample with the objects at ``rows`` alone: (n,) int64 positions or (N,) bool."""
        ids = None if self.object_ids is None else self.object_ids[rows]
        return replace(self, masks=self.masks.rows(rows), labels=self.labels[rows], object_ids=ids)
