"""What is reported: overlap by case, and how far it may be from the truth."""

from medsam_tune.metrics.interval import Interval, mean_interval
from medsam_tune.metrics.overlap import CaseScores, OverlapMetric, SliceScores, overlap_counts

__all__ = ["CaseScores", "Interval", "OverlapMetric", "SliceScores", "mean_interval", "overlap_counts"]
