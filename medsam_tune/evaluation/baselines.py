"""What the untuned model reaches on the same images under a given prompt, and the tuned one under each kind of inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.evaluation.predict import update_metric
from medsam_tune.metrics.overlap import CaseScores, OverlapMetric
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import SegmentationBatch, Truth


def evaluate_prompts(
    backbone: Backbone,
    batches: Iterable[SegmentationBatch],
    samplers: Mapping[str, PromptSampler],
    *,
    objects_per_decode: int = 0,
) -> dict[str, CaseScores]:
    """Score one backbone under several ways of prompting in one pass over the batches.

    Each image is encoded once, or not at all where the batch brings its embedding from the cache.

    Args:
        backbone: The untuned network: a fresh one of the same weights, or the run's own where nothing in it was
            trained. It is put into eval mode.
        batches: Test batches; moved to the backbone's device.
        samplers: Prompt samplers by the name their scores are returned under, such as ``oracle_box``.
        objects_per_decode: Objects decoded at once; 0 decodes all together.

    Returns:
        The scores of each sampler, by its name.
    """
    segmenters = {
        name: SamSegmenter(SamParts(backbone, sampler, objects_per_decode=objects_per_decode)).eval()
        for name, sampler in samplers.items()
    }
    device = next(backbone.parameters()).device
    # Rank 0 alone does this; gathering would wait for ranks that are gone.
    metrics = {name: OverlapMetric(gather=False).to(device) for name in samplers}
    with torch.no_grad():
        for batch in batches:
            _score(backbone, batch.to(device), segmenters, metrics)
    return {name: metric.scores() for name, metric in metrics.items()}


def shown_objects(batch: SegmentationBatch) -> SegmentationBatch:
    """Return the batch without objects that are empty at their original size: nobody draws a box for what is not there."""
    shown = [masks.flatten(1).any(dim=1) for masks in batch.original_masks]
    rows = torch.cat(shown)
    originals = tuple(masks[kept] for masks, kept in zip(batch.original_masks, shown, strict=True))
    return replace(batch, queries=batch.queries.rows(rows), truth=Truth(batch.masks[rows], originals))


def evaluate_inference(segmenter: Segmenter, batches: Iterable[SegmentationBatch]) -> dict[str, CaseScores]:
    """Score every kind of inference a fused network offers, in one pass over the batches.

    Args:
        segmenter: A trained network with a fusion; it is put into eval mode.
        batches: Test batches with priors; moved to the segmenter's device.

    Returns:
        The scores under ``raw``, ``augmented``, ``mean`` and ``min_entropy``; nothing where there is no fusion or no batch.

    Raises:
        RecipeError: If a batch has no priors.
    """
    segmenter.eval()
    device = next(segmenter.parameters()).device
    metrics: dict[str, OverlapMetric] = {}
    with torch.no_grad():
        for batch in batches:
            on_device = batch.to(device)
            for name, prediction in segmenter.inference_variants(on_device).items():
                metric = metrics.setdefault(name, OverlapMetric(gather=False).to(device))
                update_metric(metric, on_device, prediction, segmenter.input_rule.side)
    return {name: metric.scores() for name, metric in metrics.items()}


def _score(
    backbone: Backbone,
    batch: SegmentationBatch,
    segmenters: Mapping[str, nn.Module],
    metrics: Mapping[str, OverlapMetric],
) -> None:
    if batch.image_embeddings is None:
        batch = replace(batch, image_embeddings=backbone.pack(backbone.encode(batch.encoder_input())))
    for name, segmenter in segmenters.items():
        update_metric(metrics[name], batch, segmenter(batch), backbone.input_rule.side)
