"""What a network can learn from images alone: MAE, e-Mix and ShED, each with the loss of who knows nothing.

Papers: He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377 (MAE); Tamkin et al. 2021, DABS,
arXiv 2111.12062 (e-Mix, after Lee et al.'s i-Mix, arXiv 2010.08887; ShED). Medical SAM Adapter (arXiv 2304.12620) names the
three and released neither code nor settings. Authors' code: alextamkin/dabs @ d33021a (MIT).

Differs from the authors' code:
- Cells are hidden by a learned embedding and stay in the grid; MAE drops them, which SAM's windows and relative positions do
  not allow. The head is one convolution, no decoder. Loss as MAE's: squared error on pixels normalised within each cell.
- DABS' e-Mix multiplies weights (B, 1, 1) by losses (B,), so that an image's coefficient weighs the losses of all; here each
  weighs its own.
- Padding never counts: not in masks, shuffles, mixtures, means or losses. Images are mixed where both have pixels, and the
  weight of the other image is the part of the pooled area that it has.
- ShED reads the mean over a cell, since TinyViT has several places of its embedding in one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import DataError
from medsam_tune.tasks.corruption import CellGrid, draw_masked, draw_moved, draw_of
from medsam_tune.types import SegmentationBatch

_MAE_EPSILON = 1e-6  # facebookresearch/mae @ efb2a80, models_mae.py


@dataclass(frozen=True)
class Told:
    """Hold what one objective says of a batch.

    Attributes:
        loss: Scalar, the mean over images.
        trivial: The same for who knows nothing: the patch's mean, chance, one image in B.
        hits: (2,) moved cells found and unmoved cells found, or None.
        cells: (2,) moved cells and unmoved cells, or None.
    """

    loss: Tensor
    trivial: Tensor
    hits: Tensor | None = None
    cells: Tensor | None = None


class Objective(nn.Module, ABC):
    """Corrupt the patch embedding and ask for what was there.

    Attributes:
        name: In figures and files.
        knows_nothing: What its trivial loss stands for.
    """

    name: str
    knows_nothing: str

    @abstractmethod
    def forward(self, backbone: Backbone, batch: SegmentationBatch, grid: CellGrid, whole: Tensor) -> Told:
        """Return the loss of a batch.

        Args:
            backbone: The network.
            batch: B images.
            grid: Its cells.
            whole: (B, cells) bool: those without padding.
        """


class MaskedPixels(Objective):
    """Hide most cells and tell their pixels (MAE).

    Args:
        grid: Of the network.
        embed_dim: C of its embedding.
        ratio: Part of the whole cells that is hidden.
    """

    name = "mae"
    knows_nothing = "the mean of each patch"

    def __init__(self, grid: CellGrid, embed_dim: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.token = nn.Parameter(torch.randn(grid.width) * 0.02)
        self.head = nn.Conv2d(embed_dim, 3 * grid.place_px**2, 1)

    def forward(self, backbone: Backbone, batch: SegmentationBatch, grid: CellGrid, whole: Tensor) -> Told:
        """Return the squared error on the hidden cells' normalised pixels."""
        draws = [draw_masked(cells, self.ratio, draw_of(batch, i, self.name)) for i, cells in enumerate(whole)]
        masked = torch.stack(draws).to(batch.images.device)

        def hide(cells: Tensor) -> Tensor:
            return torch.where(masked[..., None], grid.token(self.token).to(cells), cells)

        with grid.changing(backbone, hide):
            embeddings = backbone.encode(batch.encoder_input()).main
        told = grid.pixels(F.pixel_shuffle(self.head(embeddings), grid.place_px))
        return masked_error(told.float(), grid.pixels(batch.images) / 255, masked)


class MixedImages(Objective):
    """Mix each image with another and find both among the batch (e-Mix).

    Args:
        embed_dim: C of the network's embedding.
        temperature: Divides the cosines.
        width: Of the space where images are compared.
    """

    name = "emix"
    knows_nothing = "log B"

    def __init__(self, embed_dim: int, temperature: float = 0.2, width: int = 128) -> None:
        super().__init__()
        self.temperature = temperature
        self.head = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width))

    def forward(self, backbone: Backbone, batch: SegmentationBatch, grid: CellGrid, whole: Tensor) -> Told:
        """Return the contrastive loss; negatives are the other images of this process's batch."""
        draw = draw_of(batch, 0, f"{self.name} {len(whole)}")
        others = torch.randperm(len(whole), generator=draw)
        shares = torch.stack([torch.rand((), generator=draw_of(batch, i, self.name)) for i in range(len(whole))])
        shares = torch.maximum(shares, 1 - shares)  # Beta(1, 1) is uniform
        both = whole & whole[others]
        weights = shares.lerp(torch.ones_like(shares), 1 - both.sum(1) / whole.sum(1)).to(batch.images)
        part = torch.where(both, shares[:, None], torch.ones(())).to(batch.images)[..., None]
        inputs = batch.encoder_input()
        clean = self._compared(backbone.encode(inputs).main, grid, whole)
        with grid.changing(backbone, lambda cells: mix(cells, part.to(cells), others)):
            mixed = self._compared(backbone.encode(inputs).main, grid, whole)
        loss = mixed_loss(mixed @ clean.T / self.temperature, weights, others.to(weights.device))
        return Told(loss, loss.new_tensor(math.log(len(whole))))

    def _compared(self, embeddings: Tensor, grid: CellGrid, whole: Tensor) -> Tensor:
        cells = whole.to(embeddings)[..., None]
        pooled = (grid.pooled(embeddings) * cells).sum(1) / cells.sum(1)
        return F.normalize(self.head(pooled).float(), dim=-1)


class ShuffledCells(Objective):
    """Let cells change places and tell which did (ShED).

    Args:
        embed_dim: C of the network's embedding.
        ratio: Part of the whole cells that moves.
    """

    name = "shed"
    knows_nothing = "chance"

    def __init__(self, embed_dim: int, ratio: float = 0.15) -> None:
        super().__init__()
        self.ratio = ratio
        self.head = nn.Linear(embed_dim, 2)

    def forward(self, backbone: Backbone, batch: SegmentationBatch, grid: CellGrid, whole: Tensor) -> Told:
        """Return the cross-entropy over all whole cells."""
        sources, moved = zip(*(self._draw(batch, i, cells) for i, cells in enumerate(whole)), strict=True)
        source, was_moved = torch.stack(sources).to(batch.images.device), torch.stack(moved).to(batch.images.device)
        with grid.changing(backbone, lambda cells: cells.gather(1, source[..., None].expand_as(cells))):
            embeddings = backbone.encode(batch.encoder_input()).main
        return moved_loss(self.head(grid.pooled(embeddings)).float(), was_moved, whole.to(was_moved.device))

    def _draw(self, batch: SegmentationBatch, position: int, whole: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return draw_moved(whole, self.ratio, draw_of(batch, position, self.name))
        except ValueError as error:
            raise DataError(
                f"{batch.image_ids[position]}: {error} Lower model.task.cell_px, raise model.task.shed_ratio, or set "
                "model.task.shed: 0."
            ) from error


def masked_error(told: Tensor, pixels: Tensor, masked: Tensor) -> Told:
    """Return the squared error on pixels that are normalised within their cell, and that of the cell's mean.

    Args:
        told: (B, N, P) what the network says of each cell's pixels.
        pixels: (B, N, P) the true ones.
        masked: (B, N) bool; other cells do not count.

    Examples:
        >>> pixels = torch.tensor([[[0.0, 1.0], [5.0, 5.0]]])
        >>> found = masked_error(torch.zeros(1, 2, 2), pixels, torch.tensor([[True, False]]))
        >>> round(found.loss.item(), 3), round(found.trivial.item(), 3)
        (0.5, 0.5)
    """
    spread = pixels.var(dim=-1, keepdim=True)
    wanted = (pixels - pixels.mean(dim=-1, keepdim=True)) / (spread + _MAE_EPSILON).sqrt()
    return Told(*(_mean_over(error.square().mean(-1), masked) for error in (told - wanted, wanted)))


def mix(cells: Tensor, part: Tensor, others: Tensor) -> Tensor:
    """Return ``part * own + (1 - part) * other``, where no gradient flows through the other image.

    Args:
        cells: (B, N, numbers).
        part: (B, N, 1) in 0..1.
        others: (B,) int64, the partner of each image.
    """
    return part * cells + (1 - part) * cells.detach()[others]


def mixed_loss(logits: Tensor, weights: Tensor, others: Tensor) -> Tensor:
    """Return e-Mix's loss: each image's two cross-entropies, weighted by its own share, mean over images.

    Args:
        logits: (B, B) mixed images against clean ones.
        weights: (B,) share of the image itself.
        others: (B,) int64, its partner.

    Examples:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> round(mixed_loss(logits, torch.tensor([1.0, 0.5]), torch.tensor([1, 0])).item(), 4)  # (0.3133 + 0.6931) / 2
        0.5032
    """
    own = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    other = F.cross_entropy(logits, others, reduction="none")
    return (weights * own + (1 - weights) * other).mean()


def moved_loss(logits: Tensor, moved: Tensor, whole: Tensor) -> Told:
    """Return the cross-entropy over whole cells, that of who knows how many moved, and how many were told apart.

    Args:
        logits: (B, N, 2): stayed, moved.
        moved: (B, N) bool.
        whole: (B, N) bool; other cells do not count.
    """
    errors = F.cross_entropy(logits.transpose(1, 2), moved.long(), reduction="none")
    rates = (moved & whole).sum(1) / whole.sum(1)
    chance = -(torch.xlogy(rates, rates) + torch.xlogy(1 - rates, 1 - rates))
    said = logits[..., 1] > logits[..., 0]
    right = torch.stack([(said & moved & whole).sum(), (~said & ~moved & whole).sum()])
    return Told(_mean_over(errors, whole), chance.mean(), right, torch.stack([(moved & whole).sum(), (~moved & whole).sum()]))


def _mean_over(errors: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over images of the mean over an image's cells that count, so that every image weighs the same."""
    return ((errors * counted).sum(1) / counted.sum(1)).mean()


def check_whole(batch: SegmentationBatch, whole: Tensor) -> None:
    """Refuse images of which padding leaves fewer than two cells.

    Raises:
        DataError: Naming the image.
    """
    for position in (whole.sum(1) < 2).nonzero()[:, 0].tolist():
        height, width = batch.frames[position].input_size
        raise DataError(
            f"{batch.image_ids[position]}: of its {width} x {height} pixels in the network's input "
            f"{int(whole[position].sum())} cells are whole, two are the fewest. Lower model.task.cell_px, or remove the image."
        )
