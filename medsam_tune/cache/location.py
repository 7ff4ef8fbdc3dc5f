"""Where stores live, what they hold, and how to be rid of them; light enough for a command line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.cache.keys import store_name
from medsam_tune.cache.shards import SHARD_PATTERN, WHEN_FULL, CorruptShardError, shard_keys
from medsam_tune.cache.store import EmbeddingStore
from medsam_tune.errors import DataError
from medsam_tune.files import TEMPORARY_PREFIX, write_json
from medsam_tune.folders import cache_folder, expand

if TYPE_CHECKING:
    from medsam_tune.geometry import InputRule

INFO_FILE = "info.json"


@dataclass(frozen=True)
class CacheSummary:
    """Describe one store.

    Attributes:
        folder: Where it is.
        name: The folder's name: weights, input rule, precision.
        images: Number of different embeddings that can be read.
        bytes: Size of all its files.
        weights: Name of the weights.
        created: ISO 8601 time in UTC, empty when unknown.
    """

    folder: Path
    name: str
    images: int
    bytes: int
    weights: str
    created: str


def cache_root() -> Path:
    """Return ``$MEDSAM_TUNE_CACHE``, or ``~/.cache/medsam_tune``."""
    chosen = os.environ.get("MEDSAM_TUNE_CACHE")
    return expand(chosen, "MEDSAM_TUNE_CACHE") if chosen else cache_folder()


def embeddings_folder(root: Path | None = None) -> Path:
    """Return the folder that holds all embedding stores under ``root`` (default: ``cache_root()``)."""
    return (root or cache_root()) / "embeddings"


def open_store(*, weights_name: str, weights_sha256: str, rule: InputRule, root: Path | None = None) -> EmbeddingStore:
    """Open the store for these weights under this input rule, making it when there is none.

    Args:
        weights_name: For listings only.
        weights_sha256: Checksum of the weights.
        rule: The backbone's input rule.
        root: The cache's root folder; ``cache_root()`` by default.

    Raises:
        DataError: If the folder cannot be made or written.
    """
    store = EmbeddingStore(embeddings_folder(root) / store_name(weights_sha256, rule))
    path = store.folder / INFO_FILE
    if not path.exists():
        created = datetime.now(UTC).isoformat(timespec="seconds")
        info = {"weights": weights_name, "weights_sha256": weights_sha256, "input_rule": asdict(rule), "created": created}
        write_json(path, info, when_full=WHEN_FULL)
    return store


def entries(root: Path | None = None) -> list[CacheSummary]:
    """List the stores under a root folder, by name; damaged shards count in bytes but not in images."""
    parent = embeddings_folder(root)
    if not parent.is_dir():
        return []
    return [_summarise(folder) for folder in sorted(parent.iterdir()) if _is_store(folder)]


def clear(folder: Path) -> int:
    """Remove one store: its shards, its info file and leftovers of killed writers, and nothing else.

    Returns:
        Bytes freed.

    Raises:
        DataError: If the folder is no store.
    """
    if not _is_store(folder):
        raise DataError(
            f"{folder}: is no embedding cache, so nothing was removed. `medsam-tune cache list` names those there are."
        )
    freed = 0
    for path in _own_files(folder):
        freed += path.stat().st_size
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return freed


def _is_store(folder: Path) -> bool:
    return folder.is_dir() and ((folder / INFO_FILE).is_file() or any(folder.glob(SHARD_PATTERN)))


def _own_files(folder: Path) -> list[Path]:
    info = folder / INFO_FILE
    return [*folder.glob(SHARD_PATTERN), *folder.glob(f"{TEMPORARY_PREFIX}*"), *([info] if info.exists() else [])]


def _summarise(folder: Path) -> CacheSummary:
    info = _read_info(folder / INFO_FILE)
    keys: set[str] = set()
    for path in folder.glob(SHARD_PATTERN):
        try:
            keys |= shard_keys(path)
        except (CorruptShardError, FileNotFoundError):
            continue  # not readable, so not an image; opening the store says so
    size = sum(path.stat().st_size for path in _own_files(folder))
    return CacheSummary(folder, folder.name, len(keys), size, info.get("weights", "unknown"), info.get("created", ""))


def _read_info(path: Path) -> dict[str, str]:
    try:
        info = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return {key: value for key, value in info.items() if isinstance(value, str)} if isinstance(info, dict) else {}
