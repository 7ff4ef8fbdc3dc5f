"""Learn from images that nobody labelled, so that a later tuning starts from an encoder that has seen such images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.losses.base import MaskLoss
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tasks.base import Stage, Task
from medsam_tune.tasks.corruption import CellGrid
from medsam_tune.tasks.objectives import MaskedPixels, MixedImages, Objective, ShuffledCells, Told, check_whole
from medsam_tune.types import MaskPrediction, SegmentationBatch

TRIVIAL, BALANCED = "_trivial", "_balanced_accuracy"


class Pretraining(Task):
    """Minimise a weighted sum of MAE, e-Mix and ShED on the patch embedding of a SAM encoder.

    A step costs an encoder pass each for MAE and ShED and two for e-Mix. What moves, the recipe says as ever:
    ``model.backbone.trainable: [image_encoder]`` or a tuner of the encoder that can be merged. BatchNorm keeps its statistics:
    those of corrupted images are not those of images. e-Mix's negatives are the other images of a process's own batch.

    Args:
        mae: Weight of hiding cells; 0 leaves it out.
        emix: Weight of mixing images.
        shed: Weight of moving cells.
        cell_px: Side of a cell in pixels of the input frame; 16 is SAM's patch.
        mask_ratio: Part of the cells that is hidden.
        shed_ratio: Part of the cells that moves.
        temperature: Of e-Mix's comparison.

    Raises:
        RecipeError: If a number cannot be meant, or all weights are 0.
    """

    monitor = "val/loss"
    goal = "min"
    stages: frozenset[Stage] = frozenset({"export"})

    def __init__(
        self,
        mae: float = 1.0,
        emix: float = 1.0,
        shed: float = 1.0,
        *,
        cell_px: int = 16,
        mask_ratio: float = 0.75,
        shed_ratio: float = 0.15,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.weights = {"mae": mae, "emix": emix, "shed": shed}
        _check_numbers(self.weights, {"mask_ratio": mask_ratio, "shed_ratio": shed_ratio}, temperature)
        self.cell_px, self.mask_ratio, self.shed_ratio, self.temperature = cell_px, mask_ratio, shed_ratio, temperature
        self.objectives: nn.ModuleDict = nn.ModuleDict()
        self.grid: CellGrid

    def attach(self, segmenter: Segmenter) -> None:
        """Build the heads, and refuse a network of which anything but the image encoder learns.

        Raises:
            RecipeError: Naming the key.
        """
        backbone = _checked(segmenter)
        self.grid = CellGrid(backbone, self.cell_px)
        made: dict[str, Objective] = {
            "mae": MaskedPixels(self.grid, backbone.embed_dim, self.mask_ratio),
            "emix": MixedImages(backbone.embed_dim, self.temperature),
            "shed": ShuffledCells(backbone.embed_dim, self.shed_ratio),
        }
        self.objectives = nn.ModuleDict({name: each for name, each in made.items() if self.weights[name] > 0})

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches of one image for e-Mix, which has no negatives there.

        Raises:
            RecipeError: Saying what to set.
        """
        if "emix" in self.objectives and batch_size < 2:
            raise RecipeError(
                "data.batch_size: e-Mix tells an image from the others of its batch, and 1 has no others. Set 2 or more, "
                "better 16, or model.task.emix: 0."
            )

    def training_losses(self, segmenter: Segmenter, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return each objective's loss times its weight."""
        return {name: self.weights[name] * told.loss for name, told in self.told(segmenter, batch).items()}

    def told(self, segmenter: Segmenter, batch: SegmentationBatch) -> dict[str, Told]:
        """Return what each objective says of a batch, by name.

        Raises:
            DataError: If padding leaves an image too few cells.
        """
        backbone = cast(SamSegmenter, segmenter).backbone
        _keep_statistics(backbone)
        whole = self.grid.whole(batch.frames)
        check_whole(batch, whole)
        objectives = cast("Mapping[str, Objective]", dict(self.objectives.items()))
        return {name: each(backbone, batch, self.grid, whole) for name, each in objectives.items()}

    def metric(self) -> Metric:
        """Return the means of losses and trivial losses over images."""
        return PretrainingMetric(tuple(self.objectives))

    def score(self, metric: Metric, segmenter: Segmenter, batch: SegmentationBatch, loss: MaskLoss) -> MaskPrediction | None:
        """Add a batch; what is hidden, mixed and moved is the same in every validation."""
        cast(PretrainingMetric, metric).update(self.told(segmenter, batch), batch.n_images)
        return None

    def figures(self, metric: Metric) -> dict[str, Tensor]:
        """Return ``loss``, each objective's loss beside its trivial one, and ShED's balanced accuracy."""
        values: dict[str, Tensor] = metric.compute()
        total = torch.stack([self.weights[name] * values[name] for name in self.objectives]).sum()
        return {"loss": total, **values}

    def verdict(self, figures: Mapping[str, float]) -> dict[str, str] | None:
        """Say which objectives beat who knows nothing.

        Args:
            figures: Of the best validation, by name.
        """
        told, beaten = [], True
        for name, objective in self.objectives.items():
            value, trivial = figures[name], figures[f"{name}{TRIVIAL}"]
            better = value < trivial
            beaten &= better
            against = f"{cast(Objective, objective).knows_nothing} has {trivial:.4f}"
            # Of a batch of one image nothing can be told apart, so there is nothing to beat.
            outcome = "beaten" if better else "NOT BEATEN" if trivial > 0 else "NOT TOLD, validation has one image a batch"
            told.append(f"{name} {value:.4f}, {against}: {outcome}")
        text = f"Pretraining on held-out images: {'; '.join(told)}."
        if not beaten:
            text += " What is not beaten taught the encoder nothing: train longer, lower the learning rate, or leave it out."
        return {"verdict": "beaten" if beaten else "not beaten", "text": text}


class PretrainingMetric(Metric):
    """Gather losses over images, and ShED's cells over all.

    Args:
        names: Of the objectives.
    """

    full_state_update = False
    sums: Tensor
    n_images: Tensor
    hits: Tensor
    cells: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(self.names), 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cells", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, told: Mapping[str, Told], n_images: int) -> None:
        """Add a batch of images."""
        for row, name in enumerate(self.names):
            self.sums[row] += torch.stack([told[name].loss.detach(), told[name].trivial.detach()]).to(self.sums) * n_images
            hits, cells = told[name].hits, told[name].cells
            if hits is not None and cells is not None:
                self.hits += hits.to(self.hits)
                self.cells += cells.to(self.cells)
        self.n_images += n_images

    def compute(self) -> dict[str, Tensor]:
        """Return means by name; NaN before the first batch."""
        means = (self.sums / self.n_images).float()
        found: dict[str, Tensor] = {}
        for row, name in enumerate(self.names):
            found |= {name: means[row, 0], f"{name}{TRIVIAL}": means[row, 1]}
            if name == ShuffledCells.name:
                found[f"{name}{BALANCED}"] = (self.hits / self.cells).mean().float()
        return found


def _checked(segmenter: Segmenter) -> Backbone:
    if not isinstance(segmenter, SamSegmenter) or segmenter.not_mergeable() is not None:
        raise RecipeError(
            "model.task: Pretraining trains the image encoder of a plain SAM. Leave model.segmenter, prompt_encoder, fusion "
            "and side out."
        )
    backbone = segmenter.backbone
    learning = [name for name, p in backbone.named_parameters() if p.requires_grad]
    outside = [name for name in learning if not name.startswith("image_encoder.")]
    if outside or not learning:
        got = f"{outside[0]} learns" if outside else "nothing of it learns"
        raise RecipeError(
            f"model.task: Pretraining reaches the image encoder alone, but {got}. Set model.backbone.trainable: "
            "[image_encoder], or a tuner of the encoder such as LoRA or BiasTuning."
        )
    return backbone


def _keep_statistics(backbone: Backbone) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _check_numbers(weights: Mapping[str, float], ratios: Mapping[str, float], temperature: float) -> None:
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise RecipeError(f"model.task: expected weights of at least 0, one of them above, got {dict(weights)}.")
    for name, ratio in ratios.items():
        if not 0 < ratio < 1:
            raise RecipeError(f"model.task.{name}: expected a part between 0 and 1, got {ratio}.")
    if not temperature > 0:
        raise RecipeError(f"model.task.temperature: expected a number above 0, got {temperature}.")
