"""One shard: a safetensors file of tensors with a checksum for each, written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

SHARD_PATTERN = "shard-*.safetensors"
TEMPORARY_PREFIX = ".partial-"


class CorruptShardError(Exception):
    """Report a shard, or one tensor in it, that cannot be read or has another checksum than when it was written."""


def write_shard(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as one new shard: temporary file, fsync, rename.

    Its name is random, so two processes never write the same file.

    Args:
        folder: An existing folder.
        tensors: By key, on the CPU.

    Raises:
        DataError: If the disk is full or the folder cannot be written; nothing half-written stays.
    """
    from safetensors.torch import save

    packed = {key: tensor.contiguous() for key, tensor in tensors.items()}
    payload = save(packed, metadata={key: checksum(tensor) for key, tensor in packed.items()})
    path = folder / f"shard-{uuid.uuid4().hex[:16]}.safetensors"
    write_atomic(path, payload)
    return path


def write_atomic(path: Path, payload: bytes) -> None:
    """Write a file through a temporary file beside it, so that no reader ever sees half of it.

    Raises:
        DataError: If the disk is full or the folder cannot be written; the temporary file is removed.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(_write_error(path.parent, len(payload), error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def shard_keys(path: Path) -> frozenset[str]:
    """Return a shard's keys from its header alone.

    Raises:
        CorruptShardError: If the header is damaged or the file is shorter or longer than the header says.
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
        verify: Also compare the stored checksum.

    Raises:
        CorruptShardError: If the shard cannot be read or the checksum differs.
        FileNotFoundError: If the shard is gone.
    """
    from safetensors import safe_open

    with _corruption(path), safe_open(path, framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(key)
        expected = (shard.metadata() or {}).get(key) if verify else None
    if verify and checksum(tensor) != expected:
        raise CorruptShardError(f"{path}: the checksum of entry {key} differs from the one written with it")
    return tensor


def checksum(tensor: Tensor) -> str:
    """Return the crc32 of a contiguous tensor's bytes as eight hexadecimal digits."""
    return f"{zlib.crc32(tensor.numpy().data):08x}"


@contextmanager
def _corruption(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise CorruptShardError(f"{path}: {error}") from error


def _write_error(folder: Path, needed_bytes: int, error: OSError) -> str:
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return f"{folder}: the cache cannot be written: {error.strerror}. Check the folder's permissions or choose another."
    free_bytes = shutil.disk_usage(folder).free
    return (
        f"{folder}: the disk is full while caching: {needed_bytes / 1e6:.1f} MB needed, {free_bytes / 1e6:.1f} MB free. "
        "What is written stays usable: free some space and run again, run `medsam-tune cache clear`, "
        "or set data.cache_folder or MEDSAM_TUNE_CACHE to a folder on another disk."
    )
