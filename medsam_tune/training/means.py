"""Means of the training losses over an epoch, which a checkpoint can hold in the middle of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class RunningMeans:
    """Sum weighted losses by name; sums and weight travel in checkpoints, so a resumed epoch reports the mean of all of it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Add one batch.

        Args:
            values: Scalars, the same names in every batch.
            weight: Objects in the batch.
        """
        for name, value in values.items():
            weighted = value.detach().float() * weight
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._weight += weight

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the mean of each loss so far; nothing before the first batch.

        Args:
            reduce: Sums a tensor over the processes.
        """
        state = self.state_dict(reduce)
        weight = state.pop("weight", torch.ones(()))
        return {name: value / weight for name, value in state.items()}

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the sums over all processes by name, and their ``weight``; nothing before the first batch."""
        if not self._sums:
            return {}
        names = list(self._sums)
        weight = torch.tensor(float(self._weight), device=self._sums[names[0]].device)
        summed = reduce(torch.stack([*(self._sums[name] for name in names), weight]))
        return dict(zip([*names, "weight"], summed.unbind(), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from the sums of ``state``; give them to one process only, since all are summed again."""
        self._sums = {name: value.to(device) for name, value in state.items() if name != "weight"}
        self._weight = int(state["weight"]) if state else 0

    def reset(self) -> None:
        """Begin the next epoch."""
        self._sums, self._weight = {}, 0
