"""Image in, mask logits out."""

from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.segmenters.task import TaskSegmenter

__all__ = ["InteractiveSegmenter", "SamParts", "SamSegmenter", "Segmenter", "SemanticSegmenter", "TaskSegmenter"]
