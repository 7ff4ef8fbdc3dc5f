"""A folder of shards as a mapping from key to tensor, safe under several processes without locks.

Shards are written whole under random names and never changed, so readers and writers need no lock; the same key in two shards
is harmless. A damaged shard is noticed, removed and thereby rebuilt by whoever fills the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from medsam_tune.errors import DataError
from medsam_tune.files import write_fault
from medsam_tune.leftovers import remove_abandoned
from medsam_tune.precompute.shards import SHARD_PATTERN, CorruptShardError, read_tensor, shard_keys, write_shard

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("medsam_tune")

Value = TypeVar("Value")


class Store:
    """Keep tensors in shards under one folder.

    It holds no open file, so it may be pickled and used in forked or spawned workers.

    Args:
        folder: Created if missing.
        identity: From ``Precompute.identity``; every key begins with it, so that values of other origin are never found here.

    Raises:
        DataError: If the folder cannot be made or read, or a file in it holds values of other origin.

    Examples:
        >>> import tempfile, torch
        >>> store = Store(Path(tempfile.mkdtemp()), "0123456789abcdef")
        >>> store.write({"0123456789abcdef-a": torch.ones(2, 3)})
        >>> store.read("0123456789abcdef-a").sum()
        tensor(6.)
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = Path(folder)
        self.identity = identity
        self._shards: dict[Path, frozenset[str]] = {}
        self._index: dict[str, Path] = {}
        self._verified: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(write_fault(self.folder, error)) from error
        self.refresh()

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def keys(self) -> set[str]:
        """Return the keys known since the last ``refresh`` or ``write``."""
        return set(self._index)

    def refresh(self) -> None:
        """Read the folder again: others' shards appear, removed ones vanish, damaged ones are removed with a notice.

        Raises:
            DataError: If a shard may not be read, or holds values of other origin.
        """
        present = set(self.folder.glob(SHARD_PATTERN))
        for path in sorted(self._shards.keys() - present):
            self._forget(path)
        for path in sorted(present - self._shards.keys()):
            try:
                self._add(path, shard_keys(path))
            except FileNotFoundError:
                continue  # another process replaced it in this moment
            except CorruptShardError as error:
                _notice(error, "The shard is removed and its images are computed again.")
                path.unlink(missing_ok=True)

    def discard_corrupt(self, keys: Iterable[str]) -> set[str]:
        """Verify the checksums of ``keys`` that this process has not read yet and remove damaged tensors with a notice.

        The sound tensors of a damaged shard are kept in a new one. Abandoned temporary files are removed too.

        Returns:
            The keys that were damaged.
        """
        remove_abandoned(self.folder)
        damaged = set()
        for key in sorted((set(keys) & self._index.keys()) - self._verified):
            try:
                self._read(key)
            except CorruptShardError as error:
                _notice(error, "It is removed and the image is computed again.")
                damaged.add(key)
        self.discard(damaged)
        return damaged

    def discard(self, keys: Iterable[str]) -> None:
        """Remove tensors; shards that also hold others are written again without them."""
        unwanted = set(keys)
        for path, held in list(self._shards.items()):
            if held & unwanted:
                self._rewrite(path, held - unwanted)

    def read(self, key: str) -> Tensor:
        """Return one tensor as it was written; its checksum is compared on the first read in a process.

        Raises:
            DataError: If no shard holds the key, or its shard is damaged.
        """
        try:
            return self._read(key)
        except CorruptShardError as error:
            raise DataError(
                f"{error}. Run the same command again: it removes and rebuilds what is damaged; or delete the folder."
            ) from error

    def get(self, key: str, unpack: Callable[[Tensor], Value]) -> Value:
        """Return the value that one tensor stands for.

        Raises:
            DataError: If no shard holds the key, its shard is damaged, or the tensor stands for no value.
        """
        try:
            return unpack(self.read(key))
        except ValueError as error:
            raise DataError(f"{self.folder}: entry {key} is damaged: {error} Delete the folder and run again.") from error

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors, at least one, as one shard.

        Raises:
            DataError: If the disk is full or the folder cannot be written.
        """
        self._add(write_shard(self.folder, tensors), frozenset(tensors))

    def _read(self, key: str) -> Tensor:
        verify = key not in self._verified
        try:
            tensor = read_tensor(self._path_of(key), key, verify=verify)
        except FileNotFoundError:
            self.refresh()
            tensor = read_tensor(self._path_of(key), key, verify=verify)
        self._verified.add(key)
        return tensor

    def _path_of(self, key: str) -> Path:
        if key not in self._index:
            self.refresh()
        if key not in self._index:
            raise DataError(
                f"{self.folder}: holds no entry {key}. Run the same command again to fill the cache, and do not clear it "
                "while a run is using it."
            )
        return self._index[key]

    def _rewrite(self, path: Path, kept_keys: frozenset[str]) -> None:
        kept = {}
        for key in kept_keys:
            try:
                kept[key] = read_tensor(path, key, verify=True)
            except (CorruptShardError, FileNotFoundError):
                continue  # damaged too, or another process is rewriting the same shard
        if kept:
            self.write(kept)
        path.unlink(missing_ok=True)
        self._forget(path)

    def _add(self, path: Path, keys: frozenset[str]) -> None:
        foreign = sorted(key for key in keys if not key.startswith(f"{self.identity}-"))
        if foreign:
            raise DataError(
                f"{path}: holds values made with other weights or settings ({foreign[0].partition('-')[0]}, expected "
                f"{self.identity}). They are not used; delete the file or put it back into the folder it came from."
            )
        self._shards[path] = keys
        self._index.update(dict.fromkeys(keys, path))
        self._verified -= keys

    def _forget(self, path: Path) -> None:
        lost = self._shards.pop(path, frozenset())
        for key in lost:
            if self._index.get(key) == path:
                del self._index[key]
        for other, keys in self._shards.items():
            self._index.update(dict.fromkeys(keys & lost, other))


def _notice(error: CorruptShardError, action: str) -> None:
    logger.warning("%s. %s", error, action)
