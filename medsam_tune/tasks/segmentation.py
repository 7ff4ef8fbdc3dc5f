"""Learn to segment: masks are compared with masks, and Dice chooses the best weights."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor
from torchmetrics import Metric

from medsam_tune.evaluation.predict import update_metric
from medsam_tune.inference.stitching import answer
from medsam_tune.losses.base import MaskLoss
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.metrics.surface import OutlineMetric
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.tasks.base import Stage, Task
from medsam_tune.types import MaskPrediction, SegmentationBatch


class SegmentationTask(Task):
    """Minimise the recipe's loss on what the segmenter predicts; test, baselines, export and report follow."""

    needs_masks: bool = True
    monitor: str = "val/dice"
    goal: Literal["max", "min"] = "max"
    stages: frozenset[Stage] = frozenset({"test", "baselines", "export"})

    def training_losses(self, segmenter: Segmenter, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return the segmenter's own terms."""
        return segmenter.training_losses(batch, loss)

    def metric(self) -> OverlapMetric:
        """Return the pixel counts of objects, from which Dice and IoU by case follow."""
        return OverlapMetric()

    def test_metric(self) -> OutlineMetric:
        """Return the same with the outlines of the masks, from which distances follow."""
        return OutlineMetric()

    def score(self, metric: Metric, segmenter: Segmenter, batch: SegmentationBatch, loss: MaskLoss) -> MaskPrediction:
        """Count the pixels of the predicted and the true masks at the images' own sizes."""
        prediction = answer(segmenter, batch)
        update_metric(cast(OverlapMetric, metric), batch, prediction, segmenter.input_rule.side)
        return prediction

    def figures(self, metric: Metric) -> dict[str, Tensor]:
        """Return ``dice`` and ``iou``."""
        values = metric.compute()
        return {name: values[name].float() for name in ("dice", "iou")}
