"""The job that fills an embedding store: every image that is missing goes through the frozen encoder once.

Each of ``world`` processes answers for its own share of the different images (every world-th), so processes agree without
talking; they must wait for each other before the first lookup.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from medsam_tune.cache import EmbeddingStore, embedding_key
from medsam_tune.geometry import Frame

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger("medsam_tune")

Item = TypeVar("Item", bound=Hashable)
Load = Callable[[Item], tuple[Tensor, Frame]]
Encode = Callable[[Tensor, Sequence[Frame]], Tensor]

# A kill loses at most sixteen images or a minute of encoding, whichever is less, and the batch at hand.
FLUSH_IMAGES = 16
FLUSH_SECONDS = 60.0
# fp16 keeps 11 bits: rounding alone is about 2e-4 of the norm; another encoder is far above 1e-2.
STALE_RELATIVE_ERROR = 1e-2
_SILENT_SECONDS = 2.0


@dataclass(frozen=True)
class FilledStore(Generic[Item]):
    """Say what filling a store found and did.

    Attributes:
        keys: The key of every item; items with equal pixels share one.
        encoded: Images this process encoded.
        seconds: Time this process spent, reading and keying included.
    """

    keys: Mapping[Item, str]
    encoded: int
    seconds: float


def fill_store(
    store: EmbeddingStore,
    items: Sequence[Item],
    load: Load[Item],
    encode: Encode,
    *,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 1,
    progress: bool = True,
    verify: int = 1,
    seed: int = 0,
) -> FilledStore[Item]:
    """Encode what the store lacks; after a kill, a second call goes on where the first one stopped.

    Every process reads all items for their keys, then checks and encodes its own share.

    Args:
        store: Where embeddings are kept.
        items: Names of the images, such as (index, view); the same in every process.
        load: Returns an item's network input (3, S, S) in 0..255 and its frame; the same pixels at every call.
        encode: Maps images (B, 3, S, S) on the CPU and B frames to embeddings (B, C, g, g), in fp32 and on the device it likes.
        rank: This process's number.
        world: Number of processes.
        batch_size: Images encoded at once; 1 is fastest on CPU.
        progress: Show a bar on rank 0 when it takes longer than two seconds.
        verify: How many of the share's entries that the store already holds are encoded again, to see whether it is stale.
        seed: Chooses those entries.

    Raises:
        DataError: If the disk is full, the folder cannot be written or an embedding is not finite.
        ValueError: If ``load`` returns other pixels at its second call.
    """
    start = time.monotonic()
    with DelayedBar(shown=progress and rank == 0) as bar:
        keys = {item: _key_of(item, load, bar) for item in bar.over("Reading images", items)}
        share = share_of(keys, rank=rank, world=world)
        store.refresh()
        store.discard_corrupt(share.values())
        verify_sample(store, share, load, encode, n=verify, seed=seed)
        missing = [item for item, key in share.items() if key not in store]
        buffer = _Buffer(store)
        bar.over("Encoding images", missing)
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            buffer.add([share[item] for item in batch], _encode(batch, share, load, encode))
            bar.advance(len(batch))
        buffer.flush()
    return FilledStore(keys, len(missing), time.monotonic() - start)


def verify_sample(
    store: EmbeddingStore, keys: Mapping[Item, str], load: Load[Item], encode: Encode, *, n: int = 1, seed: int = 0
) -> bool:
    """Encode a few cached images again; if one differs, remove all of ``keys`` from the store with a notice.

    Args:
        store: What is checked.
        keys: The key of each item; those the store lacks are left aside.
        load: As in ``fill_store``.
        encode: As in ``fill_store``.
        n: How many are encoded again.
        seed: Chooses which.

    Returns:
        Whether the store may be used; False means that its entries are gone and must be filled again.

    Raises:
        DataError: If a checked embedding is corrupt on disk.
    """
    cached = [item for item, key in keys.items() if key in store]
    for item in random.Random(seed).sample(cached, min(n, len(cached))):
        fresh = _encode([item], keys, load, encode)[0].float().cpu()
        error = _relative_error(store.get(keys[item]), fresh)
        if error > STALE_RELATIVE_ERROR:
            logger.warning(
                "%s: the cached embedding of %s differs from a fresh one (relative error %.2g, expected below %g). "
                "The %d entries of this run are removed and encoded again.",
                store.folder, item, error, STALE_RELATIVE_ERROR, len(cached),
            )  # fmt: skip
            store.discard(keys.values())
            return False
    return True


def lookup(store: EmbeddingStore, keys: Mapping[tuple[int, int], str]) -> Callable[[int, int], Tensor]:
    """Return a picklable function from (index, view) to the cached embedding (C, g, g) float32.

    Shards that other processes wrote are read in; call it after all processes have filled the store.
    """
    store.refresh()
    return _Lookup(store, keys)


@dataclass(frozen=True)
class _Lookup:
    store: EmbeddingStore
    keys: Mapping[tuple[int, int], str]

    def __call__(self, index: int, view: int) -> Tensor:
        return self.store.get(self.keys[index, view])


@dataclass
class _Buffer:
    """Collect embeddings and write them as one shard when there are enough or enough time has gone."""

    store: EmbeddingStore
    keys: list[str] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, keys: Sequence[str], embeddings: Tensor) -> None:
        self.keys += keys
        self.embeddings.append(embeddings.cpu())
        if len(self.keys) >= FLUSH_IMAGES or time.monotonic() - self.since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.keys:
            self.store.put(self.keys, torch.cat(self.embeddings))
        self.keys, self.embeddings, self.since = [], [], time.monotonic()


def _key_of(item: Item, load: Load[Item], bar: DelayedBar) -> str:
    image, frame = load(item)
    bar.advance(1)
    return embedding_key(image, frame)


def share_of(keys: Mapping[Item, str], *, rank: int, world: int) -> dict[Item, str]:
    """Return the keys of this process's items: every world-th of the different keys, each by its first item."""
    first: dict[str, Item] = {}
    for item, key in keys.items():
        first.setdefault(key, item)
    return {item: key for key, item in list(first.items())[rank::world]}


def _encode(batch: Sequence[Item], keys: Mapping[Item, str], load: Load[Item], encode: Encode) -> Tensor:
    images, frames = zip(*(load(item) for item in batch), strict=True)
    for item, image, frame in zip(batch, images, frames, strict=True):
        if embedding_key(image, frame) != keys[item]:
            raise ValueError(f"load must return the same pixels at every call, not so for item {item}. Seed its augmentation.")
    # Not inference_mode: autograd could not use its tensors later.
    with torch.no_grad():
        return encode(torch.stack(images), frames).detach()


def _relative_error(cached: Tensor, fresh: Tensor) -> float:
    if cached.shape != fresh.shape:
        return float("inf")
    return float((cached - fresh).norm() / fresh.norm().clamp(min=torch.finfo(torch.float32).tiny))


class DelayedBar:
    """A progress bar on standard error that appears only when the work takes longer than two seconds.

    Args:
        shown: False never shows it.
    """

    def __init__(self, *, shown: bool) -> None:
        self._start = time.monotonic()
        self._started = False
        self._progress = _make_progress() if shown else None

    def __enter__(self) -> DelayedBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None and self._started:
            self._progress.stop()

    def over(self, description: str, items: Sequence[Item]) -> Sequence[Item]:
        """Begin a row of the bar for these items and return them."""
        if self._progress is not None:
            self._progress.add_task(description, total=len(items))
        return items

    def advance(self, steps: int) -> None:
        """Move the newest row forward."""
        if self._progress is None:
            return
        self._progress.advance(self._progress.task_ids[-1], steps)
        if not self._started and time.monotonic() - self._start > _SILENT_SECONDS:
            self._progress.start()
            self._started = True


def _make_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
