"""Image in, mask logits out."""

from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.task import TaskSegmenter

__all__ = ["SamSegmenter", "Segmenter", "TaskSegmenter"]
