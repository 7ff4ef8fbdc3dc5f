"""The image that each thread of a predictor asks about."""

from __future__ import annotations

import threading
from typing import Any

from medsam_tune.types import SegmentationBatch


class CurrentImages:
    """Hold one encoded image for each thread, and the lock under which the network answers one of them at a time.

    Args:
        shared: What every thread sees that has set no image of its own.
        lock: Of the network; a new one by default.
    """

    def __init__(self, shared: SegmentationBatch | None = None, lock: threading.RLock | None = None) -> None:
        self.lock = lock or threading.RLock()
        self._shared, self._own = shared, threading.local()

    def set(self, batch: SegmentationBatch) -> None:
        """Make a batch the one of this thread."""
        self._own.batch = batch

    def reset(self) -> None:
        """Forget the batches of all threads."""
        self._shared, self._own = None, threading.local()

    def find(self) -> SegmentationBatch | None:
        """Return the batch of this thread, or None where it has none."""
        batch: SegmentationBatch | None = getattr(self._own, "batch", self._shared)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy keeps: this thread's image, for all of its threads."""
        return {"shared": self.find()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what ``__getstate__`` returned."""
        self.lock = threading.RLock()
        self._shared, self._own = state["shared"], threading.local()
