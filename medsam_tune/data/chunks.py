"""Chunks: neighbouring slices of one volume that travel together, for networks that look at more than one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from medsam_tune.data.dataset import PreparedItem, SegmentationDataset, collate
from medsam_tune.data.sampler import Draw
from medsam_tune.errors import RecipeError
from medsam_tune.types import SegmentationBatch

# Images of one volume that a batch of evaluation may hold: three channels of float32.
_VOLUME_BYTES, _PIXEL_BYTES = 2 * 1024**3, 12


def make_chunks(places: Sequence[tuple[object, int]], length: int) -> list[tuple[int, ...]]:
    """Cut items into runs of at most ``length`` slices of one volume, in the order of their positions.

    Args:
        places: Volume and position of each item.
        length: Slices in a chunk; the last one of a volume may be shorter.

    Returns:
        Positions in ``places``: each once, volumes in the order in which they appear.

    Examples:
        >>> make_chunks([("a", 4), ("a", 2), ("b", 0), ("a", 3)], 2)
        [(1, 3), (0,), (2,)]
    """
    volumes: dict[object, list[int]] = {}
    for item, (volume, _) in enumerate(places):
        volumes.setdefault(volume, []).append(item)
    ordered = [sorted(items, key=lambda item: places[item][1]) for items in volumes.values()]
    return [tuple(items[start : start + length]) for items in ordered for start in range(0, len(items), length)]


def slices_at_most(side: int, length: int) -> int:
    """Return how many slices of a volume a batch of evaluation holds, at least those of a chunk.

    Longer volumes are cut, and windows do not reach over a cut.

    Args:
        side: S, the side of the input frame in pixels.
        length: Slices of a chunk.

    Examples:
        >>> slices_at_most(1024, 5), slices_at_most(256, 5)
        (170, 2730)
    """
    return max(length, _VOLUME_BYTES // (_PIXEL_BYTES * side * side))


def check_chunk(length: int, places: Sequence[tuple[str, int]]) -> None:
    """Refuse chunks of data that have no neighbouring slices.

    Raises:
        RecipeError: If chunks are asked for and every volume has one slice.
    """
    if length > 1 and len({volume for volume, _ in places}) == len(places):
        raise RecipeError(f"data.chunk: {length} slices are to travel together, but every image stands alone. Set it to 1.")


def numbered_places(places: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Replace the names of volumes by their numbers, in the order of the sorted names.

    Examples:
        >>> numbered_places([("b", 4), ("a", 2), ("b", 5)])
        [(1, 4), (0, 2), (1, 5)]
    """
    numbers = {volume: number for number, volume in enumerate(sorted({volume for volume, _ in places}))}
    return [(numbers[volume], position) for volume, position in places]


class ChunkDataset(Dataset[tuple[PreparedItem, ...]]):
    """Serve the items of a dataset a chunk at a time, all of one epoch's draw.

    Args:
        dataset: The items.
        chunks: Positions in the dataset.
    """

    def __init__(self, dataset: SegmentationDataset, chunks: Sequence[tuple[int, ...]]) -> None:
        self.dataset, self.chunks = dataset, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, draw: Draw | int) -> tuple[PreparedItem, ...]:
        epoch, chunk = (draw.epoch, draw.item) if isinstance(draw, Draw) else (0, draw)
        items = (self.dataset[Draw(epoch, position)] for position in self.chunks[chunk])
        # Tiles are joined after the network only: to it they are images that stand alone.
        return tuple(item if item.sample.tile else replace(item, chunk_index=chunk) for item in items)


def collate_chunks(chunks: Sequence[tuple[PreparedItem, ...]]) -> SegmentationBatch:
    """Join the items of several chunks; slices of one chunk stay neighbours in the batch."""
    return collate([item for chunk in chunks for item in chunk])
