"""The order of a training epoch: a function of seed and epoch alone, so it can be cut between ranks and taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """Name an item of a dataset in an epoch; the dataset derives augmentation and object choice from both."""

    epoch: int
    item: int


class EpochSampler(Sampler[Draw]):
    """Yield this rank's share of the items of an epoch.

    Every rank draws the same permutation, repeats its beginning until all ranks have the same number, and takes every
    ``world``-th item. In evaluation the repeated items are told by their sample index and counted once.

    Args:
        n_items: Items of the dataset.
        seed: Seed of the permutations.
        shuffle: False keeps the dataset's order.
        rank: This process, 0 to world - 1.
        world: Number of processes.
    """

    def __init__(self, n_items: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, world: int = 1) -> None:
        self.n_items, self.seed, self.shuffle, self.rank, self.world = n_items, seed, shuffle, rank, world
        self.epoch = 0
        self._skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def skip(self, n_items: int) -> None:
        """Leave out this rank's first ``n_items`` in the next iteration only: what was seen before an interruption."""
        self._skip = n_items

    def __len__(self) -> int:
        """Return the number of items of a whole epoch on this rank; a skip does not change it."""
        return -(-self.n_items // self.world)

    def __iter__(self) -> Iterator[Draw]:
        order, epoch = self._order(), self.epoch
        start, self._skip = self._skip, 0
        for item in order[start:]:
            yield Draw(epoch, item)

    def _order(self) -> list[int]:
        if self.n_items == 0:
            return []
        order = list(range(self.n_items))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.n_items, generator=generator).tolist()
        total = len(self) * self.world
        padded = (order * -(-total // self.n_items))[:total]
        return padded[self.rank :: self.world]
