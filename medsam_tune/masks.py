"""The masks of an image's objects, each cut to its box, so that memory follows their pixels and not their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Box = tuple[int, int, int, int]
"""First row, first column, and the row and column behind the last ones."""
_NOTHING: Box = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Hold N masks (H, W) bool as their tight boxes alone; where an object lies, another may lie too.

    400 cells on 1024 x 1024 pixels are 1 MB here and 400 MB as a tensor (N, H, W). What needs planes takes a few at a time by
    ``dense(rows)``.

    Attributes:
        pixels: (P,) bool, the pixels of each object's box, row by row, one object behind the other.
        boxes: N tight boxes; all zeros where an object shows no pixel.
        size: (H, W).

    Examples:
        >>> import torch
        >>> masks = ObjectMasks.of(torch.tensor([[[False, True], [False, True]], [[False, False], [True, False]]]))
        >>> masks.shape, masks.boxes, masks.dense(slice(1, 2)).int().tolist()
        ((2, 2, 2), ((0, 1, 2, 2), (1, 0, 2, 1)), [[[0, 0], [1, 0]]])
    """

    pixels: Tensor
    boxes: tuple[Box, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, masks: Tensor) -> ObjectMasks:
        """Hold the planes of a tensor (N, H, W) bool."""
        return cls.of_planes(masks, (int(masks.shape[-2]), int(masks.shape[-1])))

    @classmethod
    def of_planes(cls, planes: Iterable[Tensor], size: tuple[int, int]) -> ObjectMasks:
        """Hold planes (H, W) bool that need not all be there at a time."""
        return cls.of_pieces(((plane, (0, 0)) for plane in planes), size)

    @classmethod
    def of_pieces(cls, pieces: Iterable[tuple[Tensor, tuple[int, int]]], size: tuple[int, int]) -> ObjectMasks:
        """Hold parts of planes, each (h, w) bool with the row and column of the plane at which it begins."""
        import torch

        cut = [_tight(piece, corner) for piece, corner in pieces]
        pixels = torch.cat([piece.flatten() for piece, _ in cut]) if cut else torch.zeros(0, dtype=torch.bool)
        return cls(pixels, tuple(box for _, box in cut), size)

    @classmethod
    def of_numbers(cls, numbers: NDArray[Any], count: int) -> ObjectMasks:
        """Hold the objects 1 to ``count`` of a plane (H, W) of whole numbers."""
        import torch
        from scipy import ndimage

        places = ndimage.find_objects(numbers, max_label=count)
        pieces = (
            (torch.from_numpy(numbers[place] == number), (place[0].start, place[1].start))
            if place
            else (torch.zeros((0, 0), dtype=torch.bool), (0, 0))
            for number, place in enumerate(places, start=1)
        )
        return cls.of_pieces(pieces, (int(numbers.shape[0]), int(numbers.shape[1])))

    @classmethod
    def join(cls, parts: Sequence[ObjectMasks]) -> ObjectMasks:
        """Return the objects of several, at least one, of one size, in their order."""
        import torch

        boxes = tuple(box for part in parts for box in part.boxes)
        return cls(torch.cat([part.pixels for part in parts]), boxes, parts[0].size)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, row: int) -> Tensor:
        """Return one mask (H, W) bool."""
        return self.dense(slice(row, row + 1) if row >= 0 else slice(row + len(self), row + len(self) + 1))[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the masks (H, W) bool one by one."""
        return (self[row] for row in range(len(self)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (N, H, W)."""
        return len(self), *self.size

    def dense(self, rows: slice = slice(None)) -> Tensor:
        """Return the masks of ``rows`` as planes (n, H, W) bool."""
        chosen = range(len(self))[rows]
        planes = self.pixels.new_zeros((len(chosen), *self.size))
        pieces = self.pieces()
        for plane, row in zip(planes, chosen, strict=True):
            top, left, bottom, right = self.boxes[row]
            plane[top:bottom, left:right] = pieces[row]
        return planes

    def pieces(self) -> tuple[Tensor, ...]:
        """Return the pixels (h, w) bool of each object's box."""
        import torch

        parts = torch.split(self.pixels, [_area(box) for box in self.boxes])
        return tuple(part.view(box[2] - box[0], box[3] - box[1]) for part, box in zip(parts, self.boxes, strict=True))

    def rows(self, rows: Tensor) -> ObjectMasks:
        """Return the objects at ``rows`` alone: (n,) int64 positions or (N,) bool."""
        import torch

        chosen = (rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows).tolist()
        pieces = self.pieces()
        kept = [pieces[row].flatten() for row in chosen]
        pixels = torch.cat(kept) if kept else self.pixels[:0]
        return replace(self, pixels=pixels, boxes=tuple(self.boxes[row] for row in chosen))

    def part(self, area: tuple[slice, slice]) -> ObjectMasks:
        """Return the same objects on a part of the plane, rows and columns; those outside show nothing there."""
        (top, bottom), (left, right) = ((side.start, side.stop) for side in area)
        inside = []
        for piece, box in zip(self.pieces(), self.boxes, strict=True):
            first = max(box[0], top), max(box[1], left)
            last = min(box[2], bottom), min(box[3], right)
            rows, columns = (slice(max(0, a - b), max(0, c - b)) for a, b, c in zip(first, box[:2], last, strict=True))
            inside.append((piece[rows, columns], (first[0] - top, first[1] - left)))
        return ObjectMasks.of_pieces(inside, (bottom - top, right - left))

    def shown(self) -> Tensor:
        """Return (N,) bool, on the CPU: whether an object shows any pixel."""
        import torch

        return torch.tensor([_area(box) > 0 for box in self.boxes], dtype=torch.bool)

    def any(self) -> bool:
        """Tell whether any object shows a pixel."""
        return bool(self.pixels.numel())

    def areas(self) -> Tensor:
        """Return the pixels (N,) int64 of each object."""
        import torch

        counts = [piece.count_nonzero() for piece in self.pieces()]
        return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64)

    def counts(self) -> Tensor:
        """Return how many objects lie on each pixel (H, W) int32."""
        import torch

        total = torch.zeros(self.size, dtype=torch.int32, device=self.pixels.device)
        for piece, (top, left, bottom, right) in zip(self.pieces(), self.boxes, strict=True):
            total[top:bottom, left:right] += piece
        return total

    def union(self) -> Tensor:
        """Return (H, W) bool: where any object lies."""
        return self.counts() > 0

    def to(self, device: torch.device | str) -> ObjectMasks:
        """Return the masks with their pixels on ``device``."""
        # A copy to the CPU that nobody waits for would be read before it is there.
        return replace(self, pixels=self.pixels.to(device, non_blocking=not str(device).startswith("cpu")))

    def pin_memory(self) -> ObjectMasks:
        """Return the masks in page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())


def cut_to_boxes(masks: ObjectMasks | Tensor) -> ObjectMasks:
    """Return masks as they are, or hold the planes of a tensor (N, H, W) or (N, 1, H, W) bool."""
    return masks if isinstance(masks, ObjectMasks) else ObjectMasks.of(masks.flatten(0, -3))


def _tight(piece: Tensor, corner: tuple[int, int]) -> tuple[Tensor, Box]:
    """Cut a piece (h, w) that begins at ``corner`` to what it shows; return its own pixels and where they lie."""
    spans = [piece.any(dim=dim).nonzero()[:, 0] for dim in (1, 0)]
    if not len(spans[0]):
        return piece[:0, :0], _NOTHING
    (top, bottom), (left, right) = ((int(span[0]), int(span[-1]) + 1) for span in spans)
    box = (corner[0] + top, corner[1] + left, corner[0] + bottom, corner[1] + right)
    # A copy: a view would keep the whole plane alive.
    return piece[top:bottom, left:right].clone(), box


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
