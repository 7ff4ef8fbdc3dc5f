"""Large images as overlapping tiles, so that small structures keep their pixels: tiles of any source of images.

Tiles lie on a fixed grid that covers the image: as few as overlap by the wanted number of pixels at least, evenly spaced. A
tile has its image's case, so no split tears an image apart; evaluation and prediction take all tiles of an image together and
average the logits where they overlap (``inference.stitching``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from medsam_tune.data.base import Purpose, SegmentationSource, VoxelSize
from medsam_tune.data.labels import Objects, cut_into_pieces
from medsam_tune.errors import RecipeError
from medsam_tune.samples import Sample, Tile

_OVERLAP_SHARE = 8


@dataclass(frozen=True)
class Tiles:
    """State how images are cut (``data.tiles``).

    Attributes:
        size: Side of a tile in pixels of the original; ``auto``: the side of the network's input, so that no pixel is lost.
        overlap: Pixels that neighbours share at least; an eighth of the size by default.
    """

    size: int | Literal["auto"] = "auto"
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.size != "auto" and self.size < 1:
            raise RecipeError(f"data.tiles.size: expected at least 1 pixel, or auto, got {self.size}.")
        if self.overlap is not None and (self.overlap < 0 or (self.size != "auto" and self.overlap >= self.size)):
            raise RecipeError(f"data.tiles.overlap: expected 0 or more and less than the size {self.size}, got {self.overlap}.")

    def in_pixels(self, side: int) -> tuple[int, int]:
        """Return size and overlap in pixels of the original for a network whose input has ``side`` pixels.

        Raises:
            RecipeError: If the overlap is no smaller than the size.
        """
        size = side if self.size == "auto" else self.size
        overlap = size // _OVERLAP_SHARE if self.overlap is None else self.overlap
        if overlap >= size:
            raise RecipeError(f"data.tiles.overlap: {overlap} pixels, but a tile has {size} (auto: as the network's input).")
        return size, overlap


def tile_grid(image_size: tuple[int, int], size: int, overlap: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (top, left, (h, w)) of the tiles that cover an image (H, W), row by row; a short side is one tile long.

    Example:
        >>> tile_grid((4, 10), 4, 1)
        [(0, 0, (4, 4)), (0, 3, (4, 4)), (0, 6, (4, 4))]
    """
    rows, columns = (_starts(length, size, overlap) for length in image_size)
    height, width = (min(length, size) for length in image_size)
    return [(top, left, (height, width)) for top in rows for left in columns]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = math.ceil((length - overlap) / (size - overlap))
    return [round(k * (length - size) / (count - 1)) for k in range(count)]


class TiledSource(SegmentationSource):
    """Serve the tiles of an opened source's images.

    An object that lies on several tiles keeps its label and its number on each. Of the tiles that show no object, training
    keeps at most as many, evenly spread over the image, as show one, and one of an image that shows none.

    Args:
        source: Opened.
        size: Side of a tile in pixels of the original.
        overlap: Pixels that neighbours share at least.
    """

    def __init__(self, source: SegmentationSource, size: int, overlap: int) -> None:
        self.source, self.size_px, self.overlap_px = source, size, overlap
        self.target, self.ignore_label, self.inverted = source.target, source.ignore_label, source.inverted
        self._tiles: list[Tile] = []
        self._of_image: list[list[int]] = []
        for index, image_id in enumerate(source.image_ids()):
            whole = source.size(index)
            places = tile_grid(whole, size, overlap)
            self._of_image.append(list(range(len(self._tiles), len(self._tiles) + len(places))))
            self._tiles += [Tile(top, left, shape, index, image_id, whole) for top, left, shape in places]
        self._recent: tuple[int, Sample] | None = None

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Do nothing: the source of the images is open."""

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        tile, whole = self._tiles[index], self._image(self._tiles[index].image_index)
        rows, columns = tile.area
        masks = whole.masks.part(tile.area)
        cut = replace(
            whole,
            image=whole.image[:, rows, columns].clone(),
            masks=masks,
            ignored=None if whole.ignored is None else whole.ignored[rows, columns].clone(),
            image_id=self._name(tile),
            index=index,
            tile=tile,
        )
        return cut.rows(masks.shown())

    def case_ids(self) -> tuple[str, ...]:
        """Return the case of each tile's image."""
        cases = self.source.case_ids()
        return tuple(cases[tile.image_index] for tile in self._tiles)

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each tile: its image's, and its first row and column."""
        return tuple(self._name(tile) for tile in self._tiles)

    def label_names(self) -> dict[int, str]:
        """Return the source's."""
        return self.source.label_names()

    def named_labels(self) -> dict[int, str]:
        """Return the source's."""
        return self.source.named_labels()

    def describe(self) -> dict[str, object]:
        """Return the source's, and how its images are cut."""
        cut = {"size": self.size_px, "overlap": self.overlap_px, "tiles": len(self._tiles)}
        return {**self.source.describe(), "tiles": cut}

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Return the tiles of the images that the source chooses; of empty ones, training keeps a part."""
        images = sorted({self._tiles[index].image_index for index in indices})
        chosen, wanted = set(self.source.select(images, purpose)), set(indices)
        kept = {tile for image in chosen for tile in (self._trained(image) if purpose == "train" else self._of_image[image])}
        return [index for index in indices if index in kept & wanted]

    def patient_ids(self) -> tuple[str | None, ...]:
        """Return the patient of each tile's image."""
        patients = self.source.patient_ids()
        return tuple(patients[tile.image_index] for tile in self._tiles)

    def places(self) -> tuple[tuple[str, int], ...]:
        """Return the volume and position of each tile's image: all tiles of an image share them."""
        places = self.source.places()
        return tuple(places[tile.image_index] for tile in self._tiles)

    def voxel_size(self, index: int) -> VoxelSize | None:
        """Return that of the tile's image."""
        return self.source.voxel_size(self._tiles[index].image_index)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return those of the tile's image."""
        return self.source.files(self._tiles[index].image_index)

    def size(self, index: int) -> tuple[int, int]:
        """Return (h, w) of a tile."""
        return self._tiles[index].size

    def groups(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the positions in ``indices`` of each image's tiles, images in the order in which they appear."""
        found: dict[int, list[int]] = {}
        for position, index in enumerate(indices):
            found.setdefault(self._tiles[index].image_index, []).append(position)
        return [tuple(positions) for positions in found.values()]

    def images(self, indices: Sequence[int]) -> list[int]:
        """Return the images that tiles belong to, each once, in order."""
        return sorted({self._tiles[index].image_index for index in indices})

    def _image(self, index: int) -> Sample:
        if self._recent is None or self._recent[0] != index:
            self._recent = (index, self._read(index))
        return self._recent[1]

    def _read(self, index: int) -> Sample:
        whole = self.source[index]
        if self.target != "per_instance" or whole.object_ids is not None:
            return whole
        # Cut before the tiles are, a piece has one number on all of them.
        pieces = cut_into_pieces(Objects(whole.masks, whole.labels))
        return replace(whole, masks=pieces.masks, labels=pieces.labels, object_ids=pieces.object_ids)

    def _trained(self, image: int) -> list[int]:
        """Return the tiles of an image that are trained on."""
        shown = self._image(image).masks.union()
        tiles = self._of_image[image]
        full = [index for index in tiles if bool(shown[self._tiles[index].area].any())]
        empty = [index for index in tiles if index not in set(full)]
        count = min(len(empty), max(1, len(full)))
        spread = torch.linspace(0, len(empty) - 1, count).round().int().tolist() if count else []
        return sorted([*full, *(empty[place] for place in spread)])

    @staticmethod
    def _name(tile: Tile) -> str:
        return f"{tile.image_id}_row{tile.top}_column{tile.left}"
