"""The seam of what is learned: the losses of a step, the figure that chooses the best weights, what follows the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric

from medsam_tune.losses.base import MaskLoss
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import MaskPrediction, SegmentationBatch

Stage = Literal["test", "baselines", "export"]


class Task(nn.Module, ABC):
    """Say how a segmenter learns; parameters of its own, such as a head, learn with it and are no part of an export.

    Without masks a task gets batches without truth, and images that nobody labelled are data enough.

    Attributes:
        needs_masks: Whether images without a mask are refused.
        monitor: The figure of a validation that chooses ``best.ckpt``, as ``val/<name>`` of one of ``figures``.
        goal: Whether its best value is the highest or the lowest.
        stages: What follows the training of ``medsam-tune run``; a report needs the test.
    """

    needs_masks: bool = False
    monitor: str = "val/loss"
    goal: Literal["max", "min"] = "min"
    stages: frozenset[Stage] = frozenset({"export"})

    def attach(self, segmenter: Segmenter) -> None:
        """Build what depends on the network's sizes; called once, before training. Nothing by default."""

    @abstractmethod
    def training_losses(self, segmenter: Segmenter, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return the scalar terms of one training step, by name; their sum is minimised by one backward pass.

        Args:
            segmenter: The network.
            batch: Images; whatever is drawn for it follows its ``seed``, its ``epoch`` and the names of the images.
            loss: The recipe's ``model.loss``, for tasks that compare masks.
        """

    def metric(self) -> Metric:
        """Return what gathers a validation or a test over batches and processes; by default a mean over images."""
        return MeanMetric(nan_strategy="disable")

    def test_metric(self) -> Metric:
        """Return what gathers a test, which may cost more; by default the same."""
        return self.metric()

    def score(self, metric: Metric, segmenter: Segmenter, batch: SegmentationBatch, loss: MaskLoss) -> MaskPrediction | None:
        """Add a batch to ``metric``; by default the sum of its training losses.

        Returns:
            What the network predicted, for whoever draws it; None where no masks are predicted.
        """
        terms = self.training_losses(segmenter, batch, loss)
        metric.update(torch.stack(list(terms.values())).sum(), batch.n_images)
        return None

    def verdict(self, figures: Mapping[str, float]) -> dict[str, str] | None:
        """Return what nobody must overlook, as ``verdict`` and ``text``; None, as by default, where there is nothing.

        Args:
            figures: Those of the best validation, by name.
        """
        return None

    def figures(self, metric: Metric) -> dict[str, Tensor]:
        """Return scalars by name; by default ``loss``."""
        return {"loss": metric.compute()}
