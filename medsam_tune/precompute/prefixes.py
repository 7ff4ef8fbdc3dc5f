"""Encoder prefixes: what the fixed first blocks of an encoder make of one network input, kept in fp16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from medsam_tune.precompute.base import Item
from medsam_tune.precompute.embeddings import EmbeddingPrecompute

if TYPE_CHECKING:
    from torch import Tensor

    from medsam_tune.geometry import Frame, InputRule


class PrefixPrecompute(EmbeddingPrecompute):
    """Compute the input of one block of the encoder from a network input; keyed as embeddings are, and by the block.

    Args:
        before: Dotted name of the block, such as ``image_encoder.blocks.9``.
        weights_name: For listings only.
        weights_sha256: Checksum of the weights.
        rule: The backbone's input rule.
        load: Returns an item's network input (3, S, S) in 0..255 and its frame.
        encode: Maps images (B, 3, S, S) on the CPU and B frames to the block's input (B, ...).
        batch_size: Images encoded at once.
    """

    kind = "prefixes"

    def __init__(
        self,
        before: str,
        *,
        weights_name: str,
        weights_sha256: str,
        rule: InputRule,
        load: Callable[[Item], tuple[Tensor, Frame]],
        encode: Callable[[Tensor, Sequence[Frame]], Tensor],
        batch_size: int = 1,
    ) -> None:
        super().__init__(
            weights_name=weights_name,
            weights_sha256=weights_sha256,
            rule=rule,
            load=load,
            encode=encode,
            batch_size=batch_size,
        )
        self.before = before

    def facts(self) -> dict[str, Any]:
        """Return the facts of an embedding, and the block."""
        return {**super().facts(), "before": self.before}
