"""Automatic masks as SAMAug's priors: run-length coded, with their scores, keyed by all that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from medsam_tune.errors import DataError
from medsam_tune.precompute.base import Item, Precompute
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.precompute.store import Store
from medsam_tune.types import AutomaticMasks

if TYPE_CHECKING:
    from torch import Tensor

    from medsam_tune.geometry import InputRule

# Part of every identity: raise it when a change of the code changes which masks are found or how they are stored.
PRIOR_FORMAT = 2

Generate = Callable[["Tensor"], AutomaticMasks]


@dataclass(frozen=True)
class PriorOrigin:
    """Say what priors are made with; what differs in any of it is kept apart.

    Attributes:
        settings: Grid and thresholds; the names of weights and file are for people and make no difference.
        weights_sha256: Checksum of the weights.
        rule: What the weights expect of an image.
    """

    settings: PriorSettings
    weights_sha256: str
    rule: InputRule


class PriorPrecompute(Precompute["Tensor", AutomaticMasks]):
    """Find the automatic masks of an image at its original size.

    An image takes seconds to minutes, so a kill loses little, and nothing is made again to see whether it is stale.

    Args:
        origin: What they are made with.
        load: Returns an item's image (3, H, W) in 0..255 as stored.
        build: Returns the generator; called once, and only where something is missing.
    """

    kind = "priors"
    doing = "Finding masks"
    flush_seconds = 15.0
    verified = 0

    def __init__(self, origin: PriorOrigin, load: Callable[[Item], Tensor], build: Callable[[], Generate]) -> None:
        self.origin = origin
        self._load, self._build = load, build
        self._generate: Generate | None = None

    def facts(self) -> dict[str, Any]:
        """Return weights, input rule and the settings that choose masks."""
        named = {"weights", "checkpoint"}
        settings = {name: value for name, value in asdict(self.origin.settings).items() if name not in named}
        return {
            "format": PRIOR_FORMAT,
            "weights_sha256": self.origin.weights_sha256,
            "input_rule": asdict(self.origin.rule),
            "settings": settings,
        }

    def weights_name(self) -> str:
        """Return what the weights are called."""
        return self.origin.settings.weights

    def read(self, item: Item) -> Tensor:
        """Return an item's image (3, H, W)."""
        return self._load(item)

    def pixels(self, image: Tensor) -> tuple[str, Tensor]:
        """Return the pixels; nothing else matters."""
        return "", image

    def compute(self, images: Sequence[Tensor]) -> Sequence[AutomaticMasks]:
        """Find the masks of each image."""
        if self._generate is None:
            self._generate = self._build()
        return [self._generate(image) for image in images]

    def pack(self, value: AutomaticMasks) -> Tensor:
        """Lay out one image's masks as int32: H, W, K, the number of runs of each mask, both scores' bits, the runs.

        Raises:
            DataError: If a score is not finite.
        """
        import torch

        from medsam_tune.precompute.run_lengths import encode_masks

        scores = torch.cat([value.predicted_iou, value.stability_score]).float().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise DataError("data.priors: the masks' scores hold NaN or infinity. Check data.priors.weights for NaN.")
        masks = value.masks.cpu()
        runs, lengths = encode_masks(masks)
        head = torch.tensor([*masks.shape[1:], len(masks)])
        return torch.cat([head.int(), lengths.int(), scores.view(torch.int32), runs.int()])

    @staticmethod
    def unpack(entry: Tensor) -> AutomaticMasks:
        """Return the masks and scores bit by bit.

        Raises:
            ValueError: If the numbers lay out no masks.
        """
        import torch

        from medsam_tune.precompute.run_lengths import decode_masks

        height, width, n_masks = entry[:3].tolist()
        n_runs = len(entry) - 3 - 3 * n_masks
        if n_masks < 0 or n_runs < 0:
            raise ValueError(f"{n_masks} masks cannot stand in {len(entry)} numbers.")
        lengths, ious, stability, runs = torch.split(entry[3:], [n_masks, n_masks, n_masks, n_runs])
        masks = decode_masks(runs, lengths, (height, width))
        return AutomaticMasks(masks, ious.clone().view(torch.float32), stability.clone().view(torch.float32))


@dataclass(frozen=True)
class PriorCounts:
    """Say what the priors of a data set are like.

    Attributes:
        images: Items counted.
        masks: Masks over all of them.
        empty: Items in which no mask was kept; their prior maps are zero.
    """

    images: int
    masks: int
    empty: int

    def __str__(self) -> str:
        mean = self.masks / self.images if self.images else 0.0
        return f"{self.images} images, {mean:.1f} masks an image, {self.empty} images without a mask"


def count_masks(store: Store, keys: Iterable[str]) -> PriorCounts:
    """Count the masks of images that are in the store, without decoding them; a key of several items counts for each.

    Raises:
        DataError: If an entry is missing or damaged.
    """
    counts = [int(store.read(key)[2]) for key in keys]
    return PriorCounts(len(counts), sum(counts), counts.count(0))
