"""What a badly drawn box costs: the same test with every side of every box moved by a share of the box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from medsam_tune.evaluation.baselines import evaluate_segmenters
from medsam_tune.metrics.overlap import CaseScores
from medsam_tune.prompts.sampling import BoxJitter, jitter_boxes, object_generators, whole_image_boxes
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import SegmentationBatch


def asks_with_boxes(segmenter: Segmenter, batch: SegmentationBatch) -> bool:
    """Tell whether a network is asked with boxes that a user has to draw, on a labelled batch."""
    if segmenter.asks_user() is None or not isinstance(segmenter, SamSegmenter):
        return False
    return segmenter.ask(batch).boxes is not None


def move_boxes(
    segmenter: SamSegmenter, batch: SegmentationBatch, share: float, *, purpose: str = "moved box"
) -> SegmentationBatch:
    """Return the batch with the queries that the network is asked with, each side of each box moved in or out.

    The move depends on the run's seed, the image and the object alone, so every network gets the same boxes.

    Args:
        segmenter: Draws the queries.
        batch: Labelled images.
        share: Of the box's width or height.
        purpose: Another one gives other moves.
    """
    queries = segmenter.ask(batch)
    if queries.boxes is None:
        return batch
    jitter = BoxJitter(high=share, low=share, unit="fraction", signed=True)
    whole = whole_image_boxes(batch.frames, queries.boxes.device)[batch.image_index]
    moved = jitter_boxes(queries.boxes, jitter, limits=whole, generators=object_generators(batch, purpose=purpose))
    return replace(batch, queries=replace(queries, boxes=moved))


def score_moved_boxes(
    networks: Mapping[str, SamSegmenter], batches: Iterable[SegmentationBatch], *, share: float
) -> dict[str, CaseScores]:
    """Score networks that have the same image embeddings under moved boxes, in one pass.

    Args:
        networks: By name; the first one draws the queries of all.
        batches: Test batches.
        share: Of a box's width or height by which each side moves.
    """
    first = next(iter(networks.values()))
    return evaluate_segmenters(networks, _moved(first, batches, share))


def _moved(segmenter: SamSegmenter, batches: Iterable[SegmentationBatch], share: float) -> Iterator[SegmentationBatch]:
    device = next(segmenter.parameters()).device
    for batch in batches:
        with torch.no_grad():
            yield move_boxes(segmenter, batch.to(device), share)
