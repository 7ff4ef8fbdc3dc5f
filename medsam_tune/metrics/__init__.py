"""What is reported: overlap by case, how far outlines are apart, and how far a figure may be from the truth."""

from medsam_tune.metrics.interval import Interval, mean_interval
from medsam_tune.metrics.overlap import CaseScores, OverlapMetric, SliceScores, overlap_counts
from medsam_tune.metrics.surface import OutlineMetric, OutlinePlace, hausdorff95, outline

__all__ = [
    "CaseScores",
    "Interval",
    "OutlineMetric",
    "OutlinePlace",
    "OverlapMetric",
    "SliceScores",
    "hausdorff95",
    "mean_interval",
    "outline",
    "overlap_counts",
]
