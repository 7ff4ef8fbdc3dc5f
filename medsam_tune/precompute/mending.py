"""Mend a cache: remove what is damaged, of other origin or left by killed processes, so that only that is computed again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsam_tune.errors import DataError
from medsam_tune.leftovers import TEMPORARY_PREFIX, abandoned_in, remove_abandoned
from medsam_tune.precompute.location import INFO_FILE, entries
from medsam_tune.precompute.shards import SHARD_PATTERN, CorruptShardError, shard_keys
from medsam_tune.precompute.store import Store, logger


def mend(root: Path) -> list[str]:
    """Mend every store below a cache's root folder, and remove temporary files whose process is gone.

    Every number of every entry is read and its checksum compared.

    Returns:
        A line for each thing that was done; none where all is sound.

    Raises:
        DataError: If something may not be read or changed.
    """
    done = _without_leftovers(root)
    for summary in entries(root):
        folder = summary.folder
        foreign = _without_foreign_shards(folder)
        done += [f"{path}: removed; its values are of other origin" for path in foreign]
        if _has_broken_info(folder):
            (folder / INFO_FILE).unlink()
            done.append(f"{folder / INFO_FILE}: removed; it was no JSON and is written anew")
        n_damaged, shards = _without_damaged(folder)
        if n_damaged or shards:
            done.append(
                f"{folder}: {n_damaged} damaged entries and {shards} unreadable shards removed; they are computed again"
            )
    return done


def _without_foreign_shards(folder: Path) -> list[Path]:
    identity, foreign = folder.name.rpartition("-")[2], []
    for path in sorted(folder.glob(SHARD_PATTERN)):
        try:
            keys = shard_keys(path)
        except CorruptShardError:
            continue  # counted among the damaged
        if not all(key.startswith(f"{identity}-") for key in keys):
            path.unlink()
            foreign.append(path)
    return foreign


def _without_damaged(folder: Path) -> tuple[int, int]:
    """Return how many entries, and how many whole shards, were damaged and are gone."""
    before = len(list(folder.glob(SHARD_PATTERN)))
    with _silent():
        store = Store(folder, folder.name.rpartition("-")[2])
        shards = before - len(list(folder.glob(SHARD_PATTERN)))
        return len(store.discard_corrupt(store.keys())), shards


def _has_broken_info(folder: Path) -> bool:
    path = folder / INFO_FILE
    if not path.is_file():
        return False
    try:
        return not isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (ValueError, RecursionError):
        return True
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Change its permissions.") from error


def _without_leftovers(root: Path) -> list[str]:
    done = []
    for folder in sorted({path.parent for path in root.rglob(f"{TEMPORARY_PREFIX}*")}):
        if left := abandoned_in(folder):
            remove_abandoned(folder)
            done.append(f"{folder}: {len(left)} temporary files of killed processes removed")
    return done


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the store's own notices back: what it did is told in one line."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
