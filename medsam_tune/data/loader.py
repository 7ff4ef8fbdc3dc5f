"""A loader that remembers how far into an epoch it is, so that a killed run goes on with the batch it would have seen next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from medsam_tune.data.dataset import PreparedItem
from medsam_tune.data.sampler import EpochSampler


class ResumableLoader(DataLoader[tuple[PreparedItem, ...]]):
    """Serve the batches of an ``EpochSampler``; Lightning stores ``state_dict`` in its checkpoints and hands it back.

    The state is (epoch, batches served): with the sampler's seed it names the next batch. Batches that workers have read ahead
    do not count.
    """

    batches_served = 0
    _resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: the sampler's epoch is read at the first batch, after Lightning has set it.
        self.batches_served, self._resume_at = self._resume_at, 0
        self._epoch_sampler.skip(self.batches_served * (self.batch_size or 1))
        for batch in super().__iter__():
            self.batches_served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of batches served in it."""
        return {"epoch": self._epoch_sampler.epoch, "batches": self.batches_served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin after the batches that ``state`` counts; a finished epoch begins anew."""
        self._epoch_sampler.set_epoch(state["epoch"])
        self._resume_at = state["batches"] % max(1, len(self))

    @property
    def _epoch_sampler(self) -> EpochSampler:
        if not isinstance(self.sampler, EpochSampler):
            raise TypeError(f"sampler must be an EpochSampler, got {type(self.sampler).__name__}.")
        return self.sampler
