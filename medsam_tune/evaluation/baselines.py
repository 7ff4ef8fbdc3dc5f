"""What the untuned network reaches on the same images, asked as the tuned one is, and the tuned one under each inference."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal

import torch

from medsam_tune.evaluation.predict import update_metric
from medsam_tune.inference.stitching import answer, embedded
from medsam_tune.metrics.overlap import CaseScores, OverlapMetric
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import SegmentationBatch, Truth

BOXES: dict[str, Literal["whole_image", "tight"]] = {"whole_image_box": "whole_image", "oracle_box": "tight"}
"""Boxes that every untuned network is also asked with."""


def untuned_networks(segmenter: SamSegmenter) -> dict[str, Segmenter]:
    """Return what a tuned network is compared with, by name, all over one released backbone on the tuned one's device.

    First, where there is such, the released network asked exactly as the tuned one is: ``same_prompts``, with the same queries,
    draws and rounds of clicks, or ``no_prompt`` where the tuned one gets none. Then ``whole_image_box``, which like no prompt
    says nothing about the object, and ``oracle_box``, the tight box of the truth.
    """
    alike = segmenter.untuned()
    backbone = alike.backbone if isinstance(alike, SamSegmenter) else segmenter.backbone.fresh()
    name = "no_prompt" if segmenter.prompts is None else "same_prompts"
    networks: dict[str, Segmenter] = {} if alike is None else {name: alike}
    for name, kind in BOXES.items():
        networks[name] = SamSegmenter(SamParts(backbone, BoxPrompt(kind), objects_per_decode=segmenter.objects_per_decode))
    device = next(segmenter.parameters()).device
    return {name: network.to(device) for name, network in networks.items()}


def evaluate_segmenters(
    segmenters: Mapping[str, Segmenter], batches: Iterable[SegmentationBatch], *, only_shown: Collection[str] = ()
) -> dict[str, CaseScores]:
    """Score networks over one backbone in one pass over the batches.

    Each image is encoded once, or not at all where the batch brings its embedding from the cache.

    Args:
        segmenters: Networks whose image embeddings are the same, by the name their scores are returned under; put into eval
            mode.
        batches: Test batches; moved to the networks' device.
        only_shown: Names of networks that are asked only for objects that an image shows.

    Returns:
        The scores of each network, by its name.
    """
    first = next(iter(segmenters.values()))
    device = next(first.parameters()).device
    # Rank 0 alone does this; gathering would wait for ranks that are gone.
    metrics = {name: OverlapMetric(gather=False).to(device) for name in segmenters}
    with torch.no_grad():
        for batch in batches:
            on_device = batch.to(device)
            whole = embedded(first.eval(), on_device) if batch.image_embeddings is None else on_device
            for name, segmenter in segmenters.items():
                asked = shown_objects(whole) if name in only_shown else whole
                update_metric(metrics[name], asked, answer(segmenter.eval(), asked), segmenter.input_rule.side)
    return {name: metric.scores() for name, metric in metrics.items()}


def shown_objects(batch: SegmentationBatch) -> SegmentationBatch:
    """Return the batch without objects that are empty at their original size: nobody draws a box for what is not there."""
    shown = [masks.shown() for masks in batch.original_masks]
    rows = torch.cat(shown).to(batch.image_index.device)
    originals = tuple(masks.rows(kept) for masks, kept in zip(batch.original_masks, shown, strict=True))
    ids = None if batch.object_ids is None else batch.object_ids[rows]
    truth = Truth(batch.known_truth.masks.rows(rows), originals)
    return replace(batch, queries=batch.queries.rows(rows), object_ids=ids, truth=truth)


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
