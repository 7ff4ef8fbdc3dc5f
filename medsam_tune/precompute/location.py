"""Where stores live, what they hold, and how to be rid of them; light enough for a command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError
from medsam_tune.files import read_json, write_fault, write_json
from medsam_tune.folders import cache_folder, expand
from medsam_tune.leftovers import TEMPORARY_PREFIX
from medsam_tune.precompute.base import Image, Precompute, Value
from medsam_tune.precompute.shards import SHARD_PATTERN, WHEN_FULL, CorruptShardError, shard_keys
from medsam_tune.precompute.store import Store

INFO_FILE = "info.json"


@dataclass(frozen=True)
class StoreSummary:
    """Describe one store.

    Attributes:
        folder: Where it is.
        kind: What it holds: ``embeddings``, ``prefixes`` or ``priors``.
        name: The folder's name: weights and identity.
        images: Number of different images whose value can be read.
        bytes: Size of all its files.
        weights: Name of the weights.
        created: ISO 8601 time in UTC, empty when unknown.
    """

    folder: Path
    kind: str
    name: str
    images: int
    bytes: int
    weights: str
    created: str


def cache_root() -> Path:
    """Return ``$MEDSAM_TUNE_CACHE``, or ``~/.cache/medsam_tune``."""
    chosen = os.environ.get("MEDSAM_TUNE_CACHE")
    return expand(chosen, "MEDSAM_TUNE_CACHE") if chosen else cache_folder()


def open_store(precompute: Precompute[Image, Value], root: Path | None = None) -> Store:
    """Open the store for what ``precompute`` computes, making it when there is none.

    Args:
        precompute: Its facts name the store.
        root: The cache's root folder; ``cache_root()`` by default.

    Raises:
        DataError: If the folder cannot be made or written, or what it says of itself is of other origin.
    """
    identity, facts = precompute.identity(), precompute.stored_facts()
    name = f"{facts['weights_sha256'][:12]}-{identity}"
    store = Store((root or cache_root()) / precompute.kind / name, identity)
    path = store.folder / INFO_FILE
    if path.exists():
        _check_info(path, facts)
    else:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, {"weights": precompute.weights_name(), "created": created, **facts}, when_full=WHEN_FULL)
    return store


def entries(root: Path | None = None) -> list[StoreSummary]:
    """List the stores under a root folder, by kind and name; damaged shards count in bytes but not in images.

    Stores that an earlier version wrote are among them, so that they can be cleared.
    """
    return [_summarise(folder) for folder in _stores(root or cache_root())]


def clear(folder: Path) -> int:
    """Remove one store: its shards, its info file and leftovers of killed writers, and nothing else.

    Returns:
        Bytes freed.

    Raises:
        DataError: If the folder is no store, or may not be changed.
    """
    if not _is_store(folder):
        raise DataError(f"{folder}: is no store, so nothing was removed. `medsam-tune cache list` names those there are.")
    freed = 0
    try:
        for path in _own_files(folder):
            size = path.stat().st_size
            path.unlink()
            freed += size
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        said = write_fault(folder, error).replace("could not be written", "cannot be cleared")
        raise DataError(f"{said} {freed} bytes of it were removed.") from error
    return freed


def _stores(root: Path) -> Iterator[Path]:
    """Return the stores below the root, each in the folder of its kind."""
    for kind in _folders(root):
        yield from (folder for folder in _folders(kind) if _is_store(folder))


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []  # not there, or not ours to read


def _is_store(folder: Path) -> bool:
    # A folder that may not be looked into holds nothing as far as anyone can tell.
    with suppress(OSError):
        return folder.is_dir() and ((folder / INFO_FILE).is_file() or any(folder.glob(SHARD_PATTERN)))
    return False


def _own_files(folder: Path) -> list[Path]:
    info = folder / INFO_FILE
    return [*folder.glob(SHARD_PATTERN), *folder.glob(f"{TEMPORARY_PREFIX}*"), *([info] if info.exists() else [])]


def _summarise(folder: Path) -> StoreSummary:
    info: dict[str, Any] = {}
    with suppress(DataError):
        found = read_json(folder / INFO_FILE, "")
        info = found if isinstance(found, dict) else {}
    keys: set[str] = set()
    for path in folder.glob(SHARD_PATTERN):
        # What cannot be read is no image; opening the store says so.
        with suppress(CorruptShardError, FileNotFoundError, DataError):
            keys |= shard_keys(path)
    size = sum(path.stat().st_size for path in _own_files(folder))
    weights, created = str(info.get("weights", "unknown")), str(info.get("created", ""))
    return StoreSummary(folder, folder.parent.name, folder.name, len(keys), size, weights, created)


def _check_info(path: Path, facts: dict[str, Any]) -> None:
    info = read_json(path, "Delete the folder; what it holds is computed again.")
    found = info if isinstance(info, dict) else {}
    for name, value in facts.items():
        if found.get(name) != value:
            raise DataError(
                f"{path}: these values were made with {name} {found.get(name)!r}, expected {value!r}. "
                "They are not used; delete the folder or rename it to what it was."
            )
