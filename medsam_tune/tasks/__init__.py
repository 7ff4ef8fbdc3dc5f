"""What training means: segmentation, or anything else that a network can learn from images."""

from medsam_tune.tasks.base import Task
from medsam_tune.tasks.pretraining import Pretraining
from medsam_tune.tasks.segmentation import SegmentationTask

__all__ = ["Pretraining", "SegmentationTask", "Task"]
