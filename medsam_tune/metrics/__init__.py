"""What is reported: overlap by case, how far surfaces are apart, and how far a figure may be from the truth."""

from medsam_tune.metrics.distances import SurfaceDistances, surface_distances
from medsam_tune.metrics.interval import Interval, mean_interval
from medsam_tune.metrics.overlap import CaseScores, OverlapMetric, SliceScores, overlap_counts
from medsam_tune.metrics.structure import s_measure
from medsam_tune.metrics.surface import OutlineMetric, OutlinePlace, case_distances, outline

__all__ = [
    "CaseScores",
    "Interval",
    "OutlineMetric",
    "OutlinePlace",
    "OverlapMetric",
    "SliceScores",
    "SurfaceDistances",
    "case_distances",
    "mean_interval",
    "outline",
    "overlap_counts",
    "s_measure",
    "surface_distances",
]
