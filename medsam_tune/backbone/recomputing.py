"""Blocks that can forget what they computed and compute it again in the backward pass, which trades time for memory."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RecomputingBlock(nn.Module):
    """Run ``mix``; with ``checkpointing`` only its input is kept for the backward pass, which runs it once more.

    Random numbers (dropout, DropPath) are drawn again as they were, so results and gradients stay the same.

    Attributes:
        checkpointing: Whether the block forgets; without gradients it has no effect.
    """

    checkpointing: bool = False

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """Map tokens or maps to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens or maps to the same shape."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self.mix(x)
        mixed: Tensor = checkpoint(self.mix, x, use_reentrant=False)
        return mixed


def set_checkpointing(encoder: nn.Module, *, checkpointing: bool) -> None:
    """Let every block of an encoder forget what it computed, or keep it."""
    for module in encoder.modules():
        if isinstance(module, RecomputingBlock):
            module.checkpointing = checkpointing
