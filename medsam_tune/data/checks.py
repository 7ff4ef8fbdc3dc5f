"""Read every case once before the first step, so that a faulty file of the test part is not found after the training.

What was found sound is remembered by the size and date of its files; nothing but checksums is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.targets import MAY_BE_EMPTY, Target
from medsam_tune.errors import DataError, DataFaults, data_error
from medsam_tune.files import write_json
from medsam_tune.precompute.location import cache_root
from medsam_tune.terminal import is_watched

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule

_BLOCK = 1 << 20
# Fewer cases are read before a bar could be looked at.
_BAR_FROM = 20
_REMEMBERED = 100_000


def open_checked(source: SegmentationSource, root: Path, *, require_masks: bool, cache: Path | None = None) -> dict[str, str]:
    """Open a source and check every case, so that what headers tell and what only the content tells is listed together.

    Args:
        source: Not opened yet.
        root: Its folder.
        require_masks: As for ``SegmentationSource.open``.
        cache: As for ``check_cases``.

    Returns:
        As ``check_cases``.

    Raises:
        DataError: If the folder is not as the source expects it, or listing every case that cannot be used.
    """
    try:
        source.open(root, require_masks=require_masks)
    except DataError as error:
        if not len(source):
            raise
        told = error.faults if isinstance(error, DataFaults) else [str(error)]
        told = [*told, *_faults_inside(source, cache)]
        raise data_error(f"{root}: {len(told)} faults in the data", told) from error
    return check_cases(source, cache=cache)


def _faults_inside(source: SegmentationSource, cache: Path | None) -> Sequence[str]:
    try:
        check_cases(source, cache=cache)
    except DataError as error:
        return error.faults if isinstance(error, DataFaults) else [str(error)]
    return []


def check_cases(source: SegmentationSource, *, cache: Path | None = None) -> dict[str, str]:
    """Read and check every case of an opened source, those that are remembered as sound aside.

    Args:
        source: An opened source.
        cache: The cache's root folder; ``cache_root()`` by default.

    Returns:
        Case to the checksum of its files' content; cases of sources that name no files are left out.

    Raises:
        DataError: Listing every case that cannot be used, each with its own message.
    """
    indices: dict[str, list[int]] = {}
    for index, case_id in enumerate(source.case_ids()):
        indices.setdefault(case_id, []).append(index)
    store = (cache or cache_root()) / "checked" / f"{_rules(source)}.json"
    remembered = _read_store(store)
    files = {case: source.case_files(members) for case, members in indices.items()}
    stamps = {case_id: _stamp(paths) for case_id, paths in files.items() if paths}
    unseen = [case_id for case_id in indices if stamps.get(case_id) not in remembered]
    sound: dict[str, str] = {}
    faults: dict[str, Sequence[str]] = {}
    for case_id in _with_bar(unseen):
        try:
            source.check_case(indices[case_id])
            if case_id in stamps:
                sound[stamps[case_id]] = _content(files[case_id])
        except DataError as error:
            faults[case_id] = error.faults if isinstance(error, DataFaults) else [str(error)]
        except OSError as error:
            faults[case_id] = [f"{error.filename}: cannot be read ({error.strerror}). Allow it, or remove the case."]
    known = {**remembered, **sound}
    if sound:
        # A folder that cannot be written costs a second look next time, no training.
        with suppress(DataError):
            write_json(store, dict(list(known.items())[-_REMEMBERED:]))
    if faults:
        listed = [fault for of_case in faults.values() for fault in of_case]
        raise data_error(f"{len(faults)} of {len(indices)} cases cannot be used", listed)
    return {case_id: known[stamp] for case_id, stamp in stamps.items()}


def items_with_objects(source: SegmentationSource, indices: list[int], target: Target, root: str) -> list[int]:
    """Check that training has something to learn; images without an object stay only where a mask may be empty.

    Args:
        source: An opened source.
        indices: The training items.
        target: What one object is.
        root: The data folder, for the message.

    Raises:
        DataError: If no item shows an object.
    """
    shows_object = (index for index in indices if bool(source[index].masks.any()))
    # Such a target keeps empty images as negatives, so the first object is enough and the rest need not be read.
    found = list(islice(shows_object, 1) if target in MAY_BE_EMPTY else shows_object)
    if not found:
        raise DataError(
            f"{root}: no object in any training image ({len(indices)} looked at). "
            "Check data.source.labels, mask_threshold and slices, or whether the masks are empty."
        )
    return indices if target in MAY_BE_EMPTY else found


def check_validation(data: SegmentationDataModule) -> None:
    """Refuse validation images of which none shows an object: no epoch could be told to be better than another.

    Raises:
        DataError: With the cases, and how to draw others.
    """
    dataset = data.dataset("val")
    if any(bool(dataset.views.source[index].masks.any()) for index in dataset.indices):
        return
    cases = data.splits.val
    named = f"{', '.join(cases[:5])}{' ...' if len(cases) > 5 else ''}" or "none"
    raise DataError(
        f"{data.root}: no object in any validation image (cases: {named}), so no epoch could be called the best. "
        "Choose another data.split.seed, or name the cases in data.split.file."
    )


def _with_bar(cases: Sequence[str]) -> Iterable[str]:
    from rich.console import Console
    from rich.progress import track

    shown = len(cases) >= _BAR_FROM and is_watched(sys.stderr) and os.environ.get("LOCAL_RANK", "0") == "0"
    return track(cases, "Check data", console=Console(stderr=True, force_jupyter=False), transient=True, disable=not shown)


def _rules(source: SegmentationSource) -> str:
    """Return a checksum of what decides whether a file is sound, beside the file itself."""
    return hashlib.blake2b(_told(source).encode(), digest_size=8).hexdigest()


def _told(value: object) -> str:
    """Return an object's class and settings; of what is private or computed by ``open`` nothing."""
    if type(value).__repr__ is not object.__repr__:
        return repr(value)
    settings = {name: _told(setting) for name, setting in sorted(vars(value).items()) if not name.startswith("_")}
    return f"{type(value).__module__}.{type(value).__qualname__} {settings}"


def _stamp(files: Sequence[Path]) -> str:
    facts = [(str(path.resolve()), *_size_and_date(path)) for path in files]
    return hashlib.blake2b(repr(facts).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _size_and_date(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1  # reading it says why
    return status.st_size, status.st_mtime_ns


def _content(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _read_store(path: Path) -> Mapping[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
    return content if known else {}
