"""The one mechanism: what a frozen network computes once per image, how it is keyed and how it is kept."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from medsam_tune.precompute.store import Store

Item = tuple[int, ...]
"""Name of an image in the data, such as (source index, view)."""
Image = TypeVar("Image")
Value = TypeVar("Value")


class Precompute(ABC, Generic[Image, Value]):
    """Say how one kind of value is computed from an image and kept.

    ``fill`` calls ``read`` and ``key`` for every item, ``compute`` for those the store lacks, and ``pack`` for what it keeps;
    ``Lookup`` calls ``unpack``.

    Attributes:
        kind: Folder below the cache's root that holds the stores of this kind.
        doing: What the progress bar says while values are computed.
        batch_size: Images computed at once.
        flush_images: Computed values after which a shard is written; a kill loses at most these.
        flush_seconds: Seconds after which a shard is written in any case.
        verified: How many values that are there already are computed again at the start, to see whether the store is stale.
    """

    kind: ClassVar[str]
    doing: ClassVar[str]
    batch_size: int = 1
    flush_images: int = 16
    flush_seconds: float = 60.0
    verified: int = 1

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return all that a value depends on beside its image, as JSON values; ``weights_sha256`` is among them."""

    @abstractmethod
    def weights_name(self) -> str:
        """Return what the weights are called, for listings only."""

    @abstractmethod
    def read(self, item: Item) -> Image:
        """Return an item's image; the same pixels at every call."""

    @abstractmethod
    def pixels(self, image: Image) -> tuple[str, Tensor]:
        """Return what the value depends on in an image: everything but the pixels as text, and the pixels."""

    @abstractmethod
    def compute(self, images: Sequence[Image]) -> Sequence[Value]:
        """Return the value of each image, on any device; called without gradients."""

    @abstractmethod
    def pack(self, value: Value) -> Tensor:
        """Return the tensor, on the CPU, that stands for a value on disk.

        Raises:
            DataError: If the value holds NaN or infinity.
        """

    @staticmethod
    @abstractmethod
    def unpack(entry: Tensor) -> Value:
        """Return the value that ``pack`` wrote.

        Raises:
            ValueError: If the tensor stands for none.
        """

    def difference(self, kept: Value, fresh: Value) -> str:
        """Say how a value in the store differs from one computed now, or return an empty text where it does not."""
        a, b = self.pack(kept), self.pack(fresh)
        return "" if a.shape == b.shape and bool((a == b).all()) else "other numbers"

    def identity(self) -> str:
        """Return the checksum of the facts: 16 hexadecimal digits."""
        return hashlib.blake2b(json.dumps(self.stored_facts(), sort_keys=True).encode(), digest_size=8).hexdigest()

    def stored_facts(self) -> dict[str, Any]:
        """Return the facts as JSON gives them back."""
        return dict(json.loads(json.dumps({"kind": self.kind, **self.facts()})))

    def key(self, image: Image) -> str:
        """Return the key of an image: the identity and 32 hexadecimal digits of its content.

        The file's name, its place and the epoch are irrelevant to the value and stay out of it.
        """
        text, pixels = self.pixels(image)
        pixels = pixels.detach().float().cpu().contiguous()
        digest = hashlib.blake2b(f"{tuple(pixels.shape)} {text}".encode(), digest_size=16)
        digest.update(pixels.numpy().data)
        return f"{self.identity()}-{digest.hexdigest()}"


@dataclass(frozen=True)
class Filled:
    """Say what filling a store found and did.

    Attributes:
        keys: The key of every item; items with equal pixels share one.
        made: Values this process computed.
        seconds: Time this process spent, reading and keying included.
    """

    keys: Mapping[Item, str]
    made: int
    seconds: float


@dataclass(frozen=True)
class Lookup(Generic[Value]):
    """Find the values of items; it holds no open file, so data loader workers may take it along.

    Attributes:
        store: Where they are.
        keys: From ``fill``.
        unpack: ``Precompute.unpack``.
    """

    store: Store
    keys: Mapping[Item, str]
    unpack: Callable[[Tensor], Value]

    def __call__(self, *item: int) -> Value:
        """Return the value of an item exactly as it was kept.

        Raises:
            DataError: If the entry is missing or damaged.
        """
        return self.store.get(self.keys[item], self.unpack)
