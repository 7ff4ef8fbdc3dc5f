"""Room for what loader workers hand over: their batches lie in shared memory, and a worker that finds none waits for ever."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from medsam_tune.data.chunks import ChunkDataset, collate_chunks
from medsam_tune.errors import RecipeError

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule, Stage

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps it; other systems set it no such limit."""
PREFETCH = 2
"""Batches that torch lets each worker read ahead."""
WORKER_TIMEOUT_SECONDS = 600
"""How long a worker may take for a batch: shared memory that had room at the start may fill up later."""
EMBEDDING_CHANNELS = 256
"""Of SAM's image embedding; facebookresearch/segment-anything @ dca509f, build_sam.py."""


def check_workers(data: SegmentationDataModule, stage: Stage, *, processes: int = 1) -> None:
    """Refuse workers whose batches would not fit into the machine's shared memory.

    The first item of the stage is read and stands for all of them. Each process holds what its workers read ahead, the batch
    that it works on, and the next one; an epoch may have fewer.

    Args:
        data: Opened.
        stage: Whose batches.
        processes: Of a distributed run on this machine.

    Raises:
        RecipeError: With the bytes, and what to change.
    """
    dataset = data.dataset(stage)
    if not data.num_workers or not len(dataset):
        return
    batch = collate_chunks([ChunkDataset(dataset, data.chunks(stage)[:1])[0]])
    one = tensor_bytes(batch)
    if data.cache_embeddings and batch.image_embeddings is None:
        one += batch.n_images * 4 * EMBEDDING_CHANNELS * (dataset.settings.input_rule.grid or 0) ** 2
    chunks = -(-len(data.chunks(stage)) // processes)
    size = min(data.chunks_per_batch(stage), chunks)
    n_batches = min(-(-chunks // size), data.num_workers * PREFETCH + 2)
    check_shared_memory(size * one, batches=processes * n_batches)


def check_shared_memory(batch_bytes: int, *, batches: int) -> None:
    """Refuse batches that need more shared memory than is free.

    Args:
        batch_bytes: Of one batch.
        batches: That may wait at one time.

    Raises:
        RecipeError: With the bytes, and what to change.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if batches * batch_bytes > free:
        raise RecipeError(
            f"data.num_workers: workers need room for {batches} batches of {batch_bytes / 1e6:,.1f} MB in {SHARED_MEMORY}, "
            f"which has {free / 1e6:,.1f} MB free. Set data.num_workers: 0, lower data.batch_size, or give a container "
            f"--shm-size={batches * batch_bytes // 10**9 + 1}g."
        )


def tensor_bytes(holder: object) -> int:
    """Return the bytes of all tensors of a batch, those of its parts included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(holder))


def _tensors(holder: object) -> Iterator[Tensor]:
    if isinstance(holder, Tensor):
        yield holder
    elif isinstance(holder, tuple):
        for part in holder:
            yield from _tensors(part)
    elif is_dataclass(holder):
        for field in fields(holder):
            yield from _tensors(getattr(holder, field.name))
