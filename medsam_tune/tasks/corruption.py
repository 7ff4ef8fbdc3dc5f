"""Which cells of an image are hidden, moved or mixed, and how that is done to the output of the patch embedding.

A cell is a square of the input frame that the corruption takes as a whole: 16 px, SAM's patch, also for TinyViT, whose stem
embeds single pixels. Only cells without a pixel of padding count; whatever is drawn follows the seed, the epoch and the image's
name, so it does not depend on the batch that an image travels in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.tiny_vit import Stem
from medsam_tune.data.transforms import view_seed
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame
from medsam_tune.types import SegmentationBatch

Change = Callable[[Tensor], Tensor]


class CellGrid:
    """Map between pixels, cells, the patch embedding and the embedding grid of a network.

    Args:
        backbone: The network.
        cell_px: Side of a cell in pixels of the input frame.

    Attributes:
        side: Cells a side of the input.

    Raises:
        RecipeError: If cells do not hold whole patches and whole places of the embedding.
    """

    def __init__(self, backbone: Backbone, cell_px: int) -> None:
        anatomy, input_side = backbone.anatomy().encoder, backbone.input_rule.side
        place_px = input_side // backbone.embedding_size
        step = math.lcm(anatomy.patch_stride, place_px)
        if cell_px < step or cell_px % step or input_side % cell_px:
            raise RecipeError(
                f"model.task.cell_px: a cell must be a multiple of {step} px that divides the input's {input_side} px, so that "
                f"it holds whole patches, got {cell_px}. Set {step} or {4 * step}."
            )
        self.cell_px, self.place_px = cell_px, place_px
        self.side = input_side // cell_px
        self.places = cell_px // place_px
        self._patches = cell_px // anatomy.patch_stride
        self._embed = anatomy.patch_embed
        self._channels_first = isinstance(backbone.get_submodule(anatomy.patch_embed), Stem)
        self.width = anatomy.blocks[0].width

    def whole(self, frames: Sequence[Frame]) -> Tensor:
        """Return which cells (B, side * side) bool hold no padding."""
        rows = torch.arange(self.side)
        return torch.stack(
            [
                ((rows < height // self.cell_px)[:, None] & (rows < width // self.cell_px)).flatten()
                for height, width in (frame.input_size for frame in frames)
            ]
        )

    def split(self, embedded: Tensor) -> Tensor:
        """Return what the patch embedding made of B images as cells (B, side * side, numbers)."""
        maps = embedded if self._channels_first else embedded.permute(0, 3, 1, 2)
        n_images, width = maps.shape[:2]
        cells = maps.reshape(n_images, width, self.side, self._patches, self.side, self._patches)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(n_images, self.side**2, -1)

    def join(self, cells: Tensor) -> Tensor:
        """Return cells in the layout of the patch embedding: the inverse of ``split``."""
        parts = cells.reshape(len(cells), self.side, self.side, self.width, self._patches, self._patches)
        long = self.side * self._patches
        maps = parts.permute(0, 3, 1, 4, 2, 5).reshape(len(cells), self.width, long, long)
        return maps if self._channels_first else maps.permute(0, 2, 3, 1)

    def token(self, values: Tensor) -> Tensor:
        """Return one learned embedding (C,) as the numbers of a whole cell."""
        return values[:, None].expand(-1, self._patches**2).reshape(-1)

    def pooled(self, embeddings: Tensor) -> Tensor:
        """Return the mean embedding (B, side * side, C) over each cell of the encoder's output (B, C, g, g)."""
        return F.avg_pool2d(embeddings, self.places).flatten(2).transpose(1, 2)

    def pixels(self, images: Tensor) -> Tensor:
        """Return the pixels (B, side * side, 3 * cell_px ** 2) of each cell of images (B, 3, S, S)."""
        return F.unfold(images, self.cell_px, stride=self.cell_px).transpose(1, 2)

    @contextmanager
    def changing(self, backbone: Backbone, change: Change) -> Iterator[None]:
        """Let ``change`` map the cells (B, side * side, numbers) of the patch embedding, position embeddings not yet added."""

        def hook(_: nn.Module, __: object, embedded: Tensor) -> Tensor:
            return self.join(change(self.split(embedded)))

        handle = backbone.get_submodule(self._embed).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def draw_of(batch: SegmentationBatch, position: int, what: str) -> torch.Generator:
    """Return what draws for one image: the same on every machine and in every batch; in evaluation also in every epoch."""
    epoch = batch.epoch if batch.training else -1
    return torch.Generator().manual_seed(view_seed(batch.seed, f"{what}/{batch.image_ids[position]}", epoch))


def draw_masked(whole: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Return which cells (N,) bool are hidden: ``ceil(ratio * whole cells)`` of the whole ones.

    Args:
        whole: (N,) bool.
        ratio: Part of the whole cells.
        generator: Draws.
    """
    places = whole.nonzero()[:, 0]
    chosen = places[torch.randperm(len(places), generator=generator)[: math.ceil(ratio * len(places))]]
    masked = torch.zeros_like(whole)
    masked[chosen] = True
    return masked


def draw_moved(whole: Tensor, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return from which cell (N,) int64 each takes its content, and which cells (N,) bool were moved.

    ``k = ceil(ratio * whole cells)`` of the whole cells, in random order, form one cycle: each takes the content of the one
    before, so none stays in its place.

    Args:
        whole: (N,) bool.
        ratio: Part of the whole cells.
        generator: Draws.

    Raises:
        ValueError: If fewer than two cells would move: one alone would stay where it is and be called moved.

    Source: DABS, alextamkin/dabs @ d33021a, ShED; Tamkin et al. 2021, arXiv 2111.12062.
    """
    places = whole.nonzero()[:, 0]
    count = math.ceil(ratio * len(places))
    if count < 2:
        raise ValueError(f"{count} of {len(places)} whole cells would move, but two are the fewest that change places.")
    chosen = places[torch.randperm(len(places), generator=generator)[:count]]
    source = torch.arange(len(whole))
    source[chosen] = chosen.roll(1)
    moved = torch.zeros_like(whole)
    moved[chosen] = True
    return source, moved
