"""Image embeddings: a frozen encoder's answer to one network input, kept in fp16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medsam_tune.errors import DataError
from medsam_tune.precompute.base import Item, Precompute

if TYPE_CHECKING:
    from torch import Tensor

    from medsam_tune.geometry import Frame, InputRule

# Part of every identity: raise it when a change of the code changes what an encoder returns for the same input.
EMBEDDING_FORMAT = 2
# fp16 keeps 11 bits: rounding alone is about 2e-4 of the norm; another encoder is far above 1e-2.
STALE_RELATIVE_ERROR = 1e-2


class EmbeddingPrecompute(Precompute["tuple[Tensor, Frame]", "Tensor"]):
    """Compute the embedding (C, g, g) of a network input.

    Keys read the pixels after resizing, augmentation and padding, and the valid area.

    Args:
        weights_name: For listings only.
        weights_sha256: Checksum of the weights.
        rule: The backbone's input rule.
        load: Returns an item's network input (3, S, S) in 0..255 and its frame.
        encode: Maps images (B, 3, S, S) on the CPU and B frames to embeddings (B, C, g, g), in fp32 and on the device it likes.
        batch_size: Images encoded at once; 1 is fastest on CPU.
        engine: Name and version of what encodes; None for PyTorch.
    """

    kind = "embeddings"
    doing = "Encoding images"

    def __init__(
        self,
        *,
        weights_name: str,
        weights_sha256: str,
        rule: InputRule,
        load: Callable[[Item], tuple[Tensor, Frame]],
        encode: Callable[[Tensor, Sequence[Frame]], Tensor],
        batch_size: int = 1,
        engine: str | None = None,
    ) -> None:
        self._engine = engine
        self._name, self._sha256, self._rule = weights_name, weights_sha256, rule
        self._load, self._encode = load, encode
        self.batch_size = batch_size

    def facts(self) -> dict[str, Any]:
        """Return weights, input rule and precision."""
        return {
            "format": EMBEDDING_FORMAT,
            "weights_sha256": self._sha256,
            "input_rule": asdict(self._rule),
            "precision": "fp16" if self._engine is None else f"fp16, {self._engine}",
        }

    def weights_name(self) -> str:
        """Return what the weights are called."""
        return self._name

    def read(self, item: Item) -> tuple[Tensor, Frame]:
        """Return an item's network input (3, S, S) and its frame."""
        return self._load(item)

    def pixels(self, image: tuple[Tensor, Frame]) -> tuple[str, Tensor]:
        """Return the valid area, where the padding begins, and the pixels; the original size makes no difference."""
        pixels, frame = image
        return str(tuple(frame.input_size)), pixels

    def compute(self, images: Sequence[tuple[Tensor, Frame]]) -> Sequence[Tensor]:
        """Return one embedding (C, g, g) for each image."""
        import torch

        pixels, frames = zip(*images, strict=True)
        return list(self._encode(torch.stack(pixels), frames).detach().cpu())

    def pack(self, value: Tensor) -> Tensor:
        """Round an embedding to fp16.

        Raises:
            DataError: If a value is not finite in fp16.
        """
        import torch

        halves = value.detach().to("cpu", torch.float16)
        if not bool(torch.isfinite(halves).all()):
            raise DataError(
                "data.cache_embeddings: the encoder returned NaN, infinity or more than fp16 holds (65504), which cannot be "
                "cached. Set data.cache_embeddings: false, and check the weights and the images for NaN."
            )
        return halves

    @staticmethod
    def unpack(entry: Tensor) -> Tensor:
        """Return the embedding in float32."""
        return entry.float()

    def difference(self, kept: Tensor, fresh: Tensor) -> str:
        """Compare by the norm: fp16 rounds, and threads add in another order."""
        import torch

        fresh = fresh.float().cpu()
        if kept.shape != fresh.shape:
            return f"shape {tuple(kept.shape)}, now {tuple(fresh.shape)}"
        error = float((kept - fresh).norm() / fresh.norm().clamp(min=torch.finfo(torch.float32).tiny))
        if error <= STALE_RELATIVE_ERROR:
            return ""
        return f"relative error {error:.2g}, expected below {STALE_RELATIVE_ERROR:g}"
