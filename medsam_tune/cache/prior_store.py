"""Automatic masks on disk: run-length coded, with their scores, keyed by all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.cache.location import INFO_FILE, cache_root
from medsam_tune.cache.prior_settings import PriorSettings
from medsam_tune.cache.shards import WHEN_FULL
from medsam_tune.cache.store import ShardStore
from medsam_tune.errors import DataError
from medsam_tune.files import read_json, write_json
from medsam_tune.types import AutomaticMasks

if TYPE_CHECKING:
    from torch import Tensor

    from medsam_tune.geometry import InputRule

# Part of every identity: raise it when a change of the code changes which masks are found or how they are stored.
PRIOR_FORMAT = 1


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

    def facts(self) -> dict[str, Any]:
        """Return all that the masks depend on beside the image, as JSON values."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in {"weights", "checkpoint"}}
        facts = {
            "prior_format": PRIOR_FORMAT,
            "weights_sha256": self.weights_sha256,
            "input_rule": asdict(self.rule),
            "settings": settings,
        }
        return dict(json.loads(json.dumps(facts)))

    def identity(self) -> str:
        """Return the checksum of the facts: 16 hexadecimal digits."""
        return hashlib.blake2b(json.dumps(self.facts(), sort_keys=True).encode(), digest_size=8).hexdigest()


class PriorStore(ShardStore):
    """Keep the automatic masks of images made with the same weights and settings.

    Args:
        folder: Created if missing.
        identity: From ``PriorOrigin.identity``; part of every key, so that priors of other origin are never found here.

    Raises:
        DataError: If the folder cannot be made or read, or a file in it holds priors of other origin.

    Example:
        >>> import tempfile, torch
        >>> store = PriorStore(Path(tempfile.mkdtemp()), "0123456789abcdef")
        >>> key = store.key_of(torch.zeros(3, 2, 2))
        >>> store.put([key], [AutomaticMasks(torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1), torch.ones(1))])
        >>> store.get(key).masks.sum()
        tensor(4)
    """

    remade = "segmented again"

    def __init__(self, folder: Path, identity: str) -> None:
        self.identity = identity
        super().__init__(folder)

    def key_of(self, image: Tensor) -> str:
        """Return the key of an image (3, H, W) in 0..255 at its original size: the identity and 32 hexadecimal digits."""
        pixels = image.detach().float().cpu().contiguous()
        digest = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
        digest.update(pixels.numpy().data)
        return f"{self.identity}-{digest.hexdigest()}"

    def get(self, key: str) -> AutomaticMasks:
        """Return the masks of one image exactly as they were put.

        Raises:
            DataError: If no shard holds the key, or its shard is damaged.
        """
        try:
            return _unpack(self.read(key))
        except ValueError as error:
            raise DataError(f"{self.folder}: entry {key} is damaged: {error} Delete the folder and run again.") from error

    def count(self, key: str) -> int:
        """Return the number of masks of one image.

        Raises:
            DataError: If no shard holds the key, or its shard is damaged.
        """
        return int(self.read(key)[2])

    def pack(self, key: str, found: AutomaticMasks) -> Tensor:
        """Return one image's entry for ``write``: its masks run-length coded, a few hundred bytes a mask.

        Raises:
            DataError: If a score is not finite.
        """
        import torch

        if not bool(torch.isfinite(torch.cat([found.predicted_iou, found.stability_score])).all()):
            raise DataError(f"{self.folder}: the scores of {key} hold NaN or infinity. Check data.priors.weights for NaN.")
        return _pack(found)

    def put(self, keys: Sequence[str], found: Sequence[AutomaticMasks]) -> None:
        """Write the masks of n images as one shard.

        Raises:
            ValueError: If the numbers of keys and images differ.
            DataError: If a score is not finite, the disk is full or the folder cannot be written.
        """
        if len(keys) != len(found):
            raise ValueError(f"keys must name every image, got {len(keys)} keys for {len(found)} images.")
        if keys:
            self.write({key: self.pack(key, masks) for key, masks in zip(keys, found, strict=True)})

    def _add(self, path: Path, keys: frozenset[str]) -> None:
        foreign = sorted(key for key in keys if not key.startswith(f"{self.identity}-"))
        if foreign:
            raise DataError(
                f"{path}: holds priors made with other weights or settings ({foreign[0].partition('-')[0]}, expected "
                f"{self.identity}). They are not used; delete the file or put it back into the folder it came from."
            )
        super()._add(path, keys)


def priors_folder(root: Path | None = None) -> Path:
    """Return the folder that holds all prior stores under ``root`` (default: ``cache_root()``)."""
    return (root or cache_root()) / "priors"


def open_prior_store(origin: PriorOrigin, root: Path | None = None) -> PriorStore:
    """Open the store for priors of this origin, making it when there is none.

    Args:
        origin: Weights, input rule and settings.
        root: The cache's root folder; ``cache_root()`` by default.

    Raises:
        DataError: If the folder cannot be made or written, or what it says of itself is not this origin.
    """
    identity = origin.identity()
    store = PriorStore(priors_folder(root) / f"{origin.weights_sha256[:12]}-{identity}", identity)
    path, facts = store.folder / INFO_FILE, origin.facts()
    if path.exists():
        _check_info(path, facts)
    else:
        info = facts | {"weights": origin.settings.weights, "created": datetime.now(UTC).isoformat(timespec="seconds")}
        write_json(path, info, when_full=WHEN_FULL)
    return store


def _check_info(path: Path, facts: dict[str, Any]) -> None:
    info = read_json(path, "Delete the folder; its priors are made again.")
    found = info if isinstance(info, dict) else {}
    for name, value in facts.items():
        if found.get(name) != value:
            raise DataError(
                f"{path}: these priors were made with {name} {found.get(name)!r}, expected {value!r}. "
                "They are not used; delete the folder or rename it to what it was."
            )


def _pack(found: AutomaticMasks) -> Tensor:
    """Lay out one image's masks as int32: H, W, K, the number of runs of each mask, both scores' bits, the runs."""
    import torch

    from medsam_tune.cache.prior_rle import encode_masks

    masks = found.masks.cpu()
    runs, lengths = encode_masks(masks)
    scores = torch.cat([found.predicted_iou, found.stability_score]).float().cpu().view(torch.int32)
    head = torch.tensor([*masks.shape[1:], len(masks)])
    return torch.cat([head.int(), lengths.int(), scores, runs.int()])


def _unpack(entry: Tensor) -> AutomaticMasks:
    import torch

    from medsam_tune.cache.prior_rle import decode_masks

    height, width, n_masks = entry[:3].tolist()
    n_runs = len(entry) - 3 - 3 * n_masks
    if n_masks < 0 or n_runs < 0:
        raise ValueError(f"{n_masks} masks cannot stand in {len(entry)} numbers.")
    lengths, ious, stability, runs = torch.split(entry[3:], [n_masks, n_masks, n_masks, n_runs])
    masks = decode_masks(runs, lengths, (height, width))
    return AutomaticMasks(masks, ious.clone().view(torch.float32), stability.clone().view(torch.float32))
