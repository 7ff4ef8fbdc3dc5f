"""The seam of how queries are drawn from the truth, in training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from medsam_tune.types import Queries, SegmentationBatch


class PromptSampler(ABC):
    """Give each object of a batch a prompt, as a user who knows the answer would.

    A sampler is no network: it has no parameters and makes no embeddings. Whatever it leaves to chance is a function of
    ``batch.seed``, ``batch.epoch``, the image's name and the object's row, and of nothing else.
    """

    @abstractmethod
    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return ``batch.queries`` with the prompts of its N objects.

        Args:
            batch: Frames, and the truth where ``reads_truth``.
            mask_side: 4g, the side of a mask prompt.

        Raises:
            ValueError: If it reads the truth and the batch has none.
        """

    def reads_truth(self) -> bool:
        """Tell whether the prompt is drawn from the true masks, which new images do not have. True by default."""
        return True
