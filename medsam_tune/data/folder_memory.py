"""What a folder was found to be, remembered by the size and date of its files, so that a second start need not read them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsam_tune import __version__
from medsam_tune.errors import DataError
from medsam_tune.files import write_json
from medsam_tune.precompute.location import cache_root


def remembered(root: Path, question: str, answer: Callable[[], dict[str, Any]], *, cache: Path | None = None) -> dict[str, Any]:
    """Return what is remembered of a folder as it is now, or find it out and remember it.

    Args:
        root: The folder.
        question: What is asked of it; each question has an answer of its own.
        answer: Finds it out, as JSON values.
        cache: The cache's root folder; ``cache_root()`` by default.
    """
    store = (cache or cache_root()) / "folders" / f"{_digest(root, question)}.json"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    if isinstance(known, dict):
        return known
    found = answer()
    # A folder that cannot be written costs a second look next time, nothing else.
    with suppress(DataError):
        write_json(store, found)
    return found


def beside_folder(root: Path, *, cache: Path | None = None) -> Path:
    """Return the file, without ending, beside which a list of a folder's files is kept, where nobody says where.

    Args:
        root: The folder.
        cache: As for ``remembered``.
    """
    return (cache or cache_root()) / "folders" / _digest(root, "list")


def _digest(root: Path, question: str) -> str:
    digest = hashlib.blake2b(f"{__version__} {question} {root.resolve()}".encode(errors="surrogatepass"), digest_size=16)
    for folder, below, files in os.walk(root, followlinks=False):
        below.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            with suppress(OSError):
                status = os.stat(path)
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()
