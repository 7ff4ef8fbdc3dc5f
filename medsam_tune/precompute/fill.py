"""The job that fills a store: every image whose value is missing goes through the frozen network once.

Each of ``world`` processes answers for its own share of the different images (every world-th), so processes agree without
talking; they must wait for each other before the first lookup.
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsam_tune.errors import memory_advice, ran_out_of_memory
from medsam_tune.precompute.bar import DelayedBar
from medsam_tune.precompute.base import Filled, Image, Item, Lookup, Precompute, Value
from medsam_tune.precompute.store import Store

logger = logging.getLogger("medsam_tune")
# data.batch_size is that of the steps, and a step is not what failed.
_NOT_ONE = (
    "One image at a time does not fit beside the frozen network: end what else takes memory, or set smaller weights. What is "
    "cached stays usable."
)


def fill(
    store: Store,
    precompute: Precompute[Image, Value],
    items: Sequence[Item],
    *,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
    seed: int = 0,
) -> Filled:
    """Compute what the store lacks; after a kill, a second call goes on where the first one stopped.

    Every process reads all items for their keys, then checks and computes its own share.

    Args:
        store: From ``open_store``.
        precompute: What is computed and how.
        items: Names of the images; the same in every process.
        rank: This process's number.
        world: Number of processes.
        progress: Show a bar on rank 0 when it takes longer than two seconds.
        seed: Chooses the values that are computed again to see whether the store is stale.

    Raises:
        DataError: If the disk is full, the folder cannot be written or a value is not finite.
        ValueError: If an item shows other pixels at its second reading.
    """
    start = time.monotonic()
    with DelayedBar(shown=progress and rank == 0) as bar:
        keys = {item: _key_of(item, precompute, bar) for item in bar.over("Reading images", items)}
        share = share_of(keys, rank=rank, world=world)
        store.refresh()
        store.discard_corrupt(share.values())
        verify_sample(store, precompute, share, n=precompute.verified, seed=seed)
        missing = [item for item, key in share.items() if key not in store]
        _compute_all(store, precompute, missing, share, bar)
    return Filled(keys, len(missing), time.monotonic() - start)


def verify_sample(
    store: Store, precompute: Precompute[Image, Value], keys: Mapping[Item, str], *, n: int = 1, seed: int = 0
) -> bool:
    """Compute a few kept values again; if one differs, remove all of ``keys`` from the store with a notice.

    Args:
        store: What is checked.
        precompute: What is computed and how.
        keys: The key of each item; those the store lacks are left aside.
        n: How many are computed again.
        seed: Chooses which.

    Returns:
        Whether the store may be used; False means that its entries are gone and must be filled again.

    Raises:
        DataError: If a checked entry is corrupt on disk.
    """
    kept = [item for item, key in keys.items() if key in store]
    for item in random.Random(seed).sample(kept, min(n, len(kept))):
        (fresh,) = _compute([item], precompute, keys)
        difference = precompute.difference(store.get(keys[item], precompute.unpack), fresh)
        if difference:
            logger.warning(
                "%s: what is kept for image %s differs from what is computed now (%s). "
                "The %d entries of this run are removed and computed again.",
                store.folder, item, difference, len(kept),
            )  # fmt: skip
            store.discard(keys.values())
            return False
    return True


def lookup(store: Store, precompute: Precompute[Image, Value], keys: Mapping[Item, str]) -> Lookup[Value]:
    """Return a picklable function from the numbers of an item to its value.

    Shards that other processes wrote are read in; call it after all processes have filled the store.
    """
    store.refresh()
    return Lookup(store, keys, precompute.unpack)


def share_of(keys: Mapping[Item, str], *, rank: int, world: int) -> dict[Item, str]:
    """Return the keys of this process's items: every world-th of the different keys, each by its first item."""
    first: dict[str, Item] = {}
    for item, key in keys.items():
        first.setdefault(key, item)
    return {item: key for key, item in list(first.items())[rank::world]}


def _key_of(item: Item, precompute: Precompute[Image, Value], bar: DelayedBar) -> str:
    key = precompute.key(precompute.read(item))
    bar.advance(1)
    return key


def _compute_all(
    store: Store,
    precompute: Precompute[Image, Value],
    missing: Sequence[Item],
    keys: Mapping[Item, str],
    bar: DelayedBar,
) -> None:
    buffer = _Buffer(store, precompute.flush_images, precompute.flush_seconds)
    bar.over(precompute.doing, missing)
    left, at_once = list(missing), precompute.batch_size
    while left:
        batch = left[:at_once]
        values = _compute_if_it_fits(batch, precompute, keys)
        if values is None:
            at_once = len(batch) // 2
            continue
        for item, value in zip(batch, values, strict=True):
            # Packed at once: the automatic masks of an image take hundreds of megabytes.
            buffer.add(keys[item], precompute.pack(value))
        bar.advance(len(batch))
        del left[: len(batch)]
    buffer.flush()


def _compute_if_it_fits(
    batch: Sequence[Item], precompute: Precompute[Image, Value], keys: Mapping[Item, str]
) -> Sequence[Value] | None:
    """Return the values of a batch, or None where fewer images at once may fit into memory."""
    try:
        with memory_advice(_NOT_ONE):
            return _compute(batch, precompute, keys)
    except (MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not ran_out_of_memory(error):
            raise
        logger.warning("%d images at once do not fit into memory; half as many are tried.", len(batch))
        # What its frames hold is all that the batch had made.
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _compute(batch: Sequence[Item], precompute: Precompute[Image, Value], keys: Mapping[Item, str]) -> Sequence[Value]:
    images = [precompute.read(item) for item in batch]
    for item, image in zip(batch, images, strict=True):
        if precompute.key(image) != keys[item]:
            raise ValueError(f"read must return the same pixels at every call, not so for item {item}. Seed its augmentation.")
    # Not inference_mode: autograd could not use its tensors later.
    with torch.no_grad():
        return precompute.compute(images)


@dataclass
class _Buffer:
    """Collect entries and write them as one shard when there are enough or enough time has gone."""

    store: Store
    most: int
    seconds: float
    entries: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def add(self, key: str, entry: Tensor) -> None:
        self.entries[key] = entry
        if len(self.entries) >= self.most or time.monotonic() - self.since > self.seconds:
            self.flush()

    def flush(self) -> None:
        if self.entries:
            self.store.write(self.entries)
        self.entries, self.since = {}, time.monotonic()
