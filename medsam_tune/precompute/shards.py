"""One shard: a safetensors file of tensors with a checksum for each, written whole or not at all."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.errors import DataError
from medsam_tune.files import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

SHARD_PATTERN = "shard-*.safetensors"
WHEN_FULL = (
    "What is cached stays usable: free some space and run again, run `medsam-tune cache clear`, or set data.cache_folder or "
    "MEDSAM_TUNE_CACHE to a folder on another disk."
)


class CorruptShardError(Exception):
    """Report a shard, or one tensor in it, that cannot be read or has another checksum than when it was written."""


def write_shard(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as one new shard.

    Its name is random, so two processes never write the same file.

    Args:
        folder: An existing folder.
        tensors: By key, on the CPU.

    Raises:
        DataError: If the disk is full or the folder cannot be written; nothing half-written stays.
    """
    packed = {key: tensor.contiguous() for key, tensor in tensors.items()}
    checksums = {key: checksum(tensor) for key, tensor in packed.items()}
    path = folder / f"shard-{uuid.uuid4().hex[:16]}.safetensors"
    return write_safetensors(path, packed, checksums, error=DataError, when_full=WHEN_FULL)


def shard_keys(path: Path) -> frozenset[str]:
    """Return a shard's keys from its header alone.

    Raises:
        CorruptShardError: If the header is damaged or the file is shorter or longer than the header says.
        DataError: If the shard may not be read.
        FileNotFoundError: If the shard is gone.
    """
    from safetensors import safe_open

    with _corruption(path), safe_open(path, framework="numpy") as shard:
        return frozenset(shard.keys())


def read_tensor(path: Path, key: str, *, verify: bool) -> Tensor:
    """Read one tensor through a memory map.

    Args:
        path: The shard.
        key: A key of that shard.
        verify: Also compare the stored checksum and look for NaN.

    Raises:
        CorruptShardError: If the shard is damaged, the checksum differs or a number is none.
        DataError: If the shard may not be read.
        FileNotFoundError: If the shard is gone.
    """
    from safetensors import safe_open

    with _corruption(path), safe_open(path, framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(key)
        expected = (shard.metadata() or {}).get(key) if verify else None
    if verify and checksum(tensor) != expected:
        raise CorruptShardError(f"{path}: the checksum of entry {key} differs from the one written with it")
    if verify and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise CorruptShardError(f"{path}: entry {key} holds NaN or infinity")
    return tensor


def checksum(tensor: Tensor) -> str:
    """Return the crc32 of a contiguous tensor's bytes as eight hexadecimal digits."""
    return f"{zlib.crc32(tensor.numpy().data):08x}"


@contextmanager
def _corruption(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, PermissionError) as error:
        if path.exists() and not os.access(path, os.R_OK):
            raise DataError(f"{path}: may not be read. Change its permissions, or set another data.cache_folder.") from error
        raise CorruptShardError(f"{path}: {error}") from error
