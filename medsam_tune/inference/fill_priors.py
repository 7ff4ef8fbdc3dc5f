"""The job that fills a prior store: every image that is missing goes through the automatic mask generator once.

Processes share the images as in ``inference.embed``: every world-th of the different images is a process's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from medsam_tune.backbone.sam import SamBackbone
from medsam_tune.backbone.weights import WEIGHTS, fetch_weights
from medsam_tune.cache import PriorOrigin, PriorSettings, PriorStore
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.files import sha256_of
from medsam_tune.inference.embed import DelayedBar, share_of
from medsam_tune.types import AutomaticMasks

Load = Callable[[int], Tensor]
Generate = Callable[[Tensor], AutomaticMasks]

# An image takes seconds to minutes, so a kill loses at most the image at hand and these.
FLUSH_IMAGES = 16
FLUSH_SECONDS = 15.0


@dataclass(frozen=True)
class FilledPriors:
    """Say what filling a store found and did.

    Attributes:
        keys: The key of every item; items with equal pixels share one.
        made: Images this process made priors of.
        seconds: Time this process spent, reading and keying included.
    """

    keys: Mapping[int, str]
    made: int
    seconds: float


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


@dataclass(frozen=True)
class PriorLookup:
    """Find the masks of a source index; it holds no open file, so data loader workers may take it along.

    Attributes:
        store: Where the masks are.
        keys: From ``fill_priors``.
    """

    store: PriorStore
    keys: Mapping[int, str]

    def __call__(self, index: int) -> AutomaticMasks:
        """Return the automatic masks of the image at a source index.

        Raises:
            DataError: If the entry is missing or damaged.
        """
        return self.store.get(self.keys[index])


def prior_origin(settings: PriorSettings) -> PriorOrigin:
    """Return what priors of these settings depend on; released weights are identified by their file, without loading them.

    Raises:
        RecipeError: If the weights are unknown; the message names ``data.priors.weights``.
        CheckpointError: If a file cannot be found, downloaded or verified.
    """
    if settings.weights not in WEIGHTS:
        backbone = build_prior_network(settings)
        return PriorOrigin(settings, backbone.weights.sha256, backbone.input_rule)
    path = fetch_weights(settings.weights) if settings.checkpoint is None else Path(settings.checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Correct data.priors.checkpoint.")
    return PriorOrigin(settings, sha256_of(path), WEIGHTS[settings.weights].input_rule())


def build_prior_network(settings: PriorSettings) -> SamBackbone:
    """Build the frozen network that makes the priors.

    Raises:
        RecipeError: If the weights are unknown; the message names ``data.priors.weights``.
        CheckpointError: If a file cannot be found, verified or loaded strictly.
    """
    try:
        return SamBackbone(settings.weights, checkpoint=settings.checkpoint).eval()
    except RecipeError as error:
        raise RecipeError(str(error).replace("model.backbone.", "data.priors.")) from error


def fill_priors(
    store: PriorStore,
    items: Sequence[int],
    load: Load,
    build: Callable[[], Generate],
    *,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> FilledPriors:
    """Make the priors the store lacks; after a kill, a second call goes on where the first one stopped.

    Every process reads all items for their keys, then checks and makes its own share.

    Args:
        store: Where masks are kept.
        items: Source indices; the same in every process.
        load: Returns an item's image (3, H, W) in 0..255 as stored; the same pixels at every call.
        build: Returns the generator; called only where something is missing, and what it returns is let go at the end.
        rank: This process's number.
        world: Number of processes.
        progress: Show a bar on rank 0 when it takes longer than two seconds.

    Raises:
        DataError: If the disk is full, the folder cannot be written or a score is not finite.
        ValueError: If ``load`` returns other pixels at its second call.
    """
    start = time.monotonic()
    with DelayedBar(shown=progress and rank == 0) as bar:
        keys = {item: _key_of(item, store, load, bar) for item in bar.over("Reading images", items)}
        share = share_of(keys, rank=rank, world=world)
        store.refresh()
        store.discard_corrupt(share.values())
        missing = {item: key for item, key in share.items() if key not in store}
        if missing:
            _make(store, missing, load, build(), bar)
    return FilledPriors(keys, len(missing), time.monotonic() - start)


def count_masks(store: PriorStore, keys: Iterable[str]) -> PriorCounts:
    """Count the masks of images that are in the store; a key that stands for several items counts for each.

    Raises:
        DataError: If an entry is missing or damaged.
    """
    counts = [store.count(key) for key in keys]
    return PriorCounts(len(counts), sum(counts), counts.count(0))


def _make(store: PriorStore, missing: Mapping[int, str], load: Load, generate: Generate, bar: DelayedBar) -> None:
    buffer = _Buffer(store)
    for item in bar.over("Finding masks", list(missing)):
        image = load(item)
        if store.key_of(image) != missing[item]:
            raise ValueError(f"load must return the same pixels at every call, not so for item {item}.")
        buffer.add(missing[item], generate(image))
        bar.advance(1)
    buffer.flush()


@dataclass
class _Buffer:
    """Collect the masks of images and write them as one shard when there are enough or enough time has gone."""

    store: PriorStore
    entries: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def add(self, key: str, masks: AutomaticMasks) -> None:
        # Packed at once: the masks themselves take hundreds of megabytes an image.
        self.entries[key] = self.store.pack(key, masks)
        if len(self.entries) >= FLUSH_IMAGES or time.monotonic() - self.since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.entries:
            self.store.write(self.entries)
        self.entries, self.since = {}, time.monotonic()


def _key_of(item: int, store: PriorStore, load: Load, bar: DelayedBar) -> str:
    key = store.key_of(load(item))
    bar.advance(1)
    return key
