"""From any source to a folder of shards that ``ImageShards`` reads, and WebDataset; a killed preparation goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.formats.raster import encode_png
from medsam_tune.data.names import flat_file_name
from medsam_tune.data.prepare import IGNORE_LABEL, Prepared, check_kept_cases, label_map, pixels_of, stated_spacing
from medsam_tune.data.shards.index import INDEX_FILE, ShardIndex, load_index
from medsam_tune.data.shards.writing import PackedSample, ShardLimit, ShardWriter, packed_size
from medsam_tune.data.split_file import save_splits
from medsam_tune.data.splits import Splits
from medsam_tune.errors import DataError
from medsam_tune.files import write_fault, write_json, write_text

_PLAN, _SUFFIX = "plan.txt", ".unfinished"


@dataclass(frozen=True)
class _Progress:
    """Hold how far a preparation is: the shards that stand, the items that they and what was left out account for."""

    parts: tuple[ShardIndex, ...] = ()
    items: int = 0
    empty: int = 0

    def after(self, part: ShardIndex) -> _Progress:
        """Return the progress with one more shard."""
        items, empty = int(part.record["items"]), int(part.record["empty"])
        return _Progress((*self.parts, part), items, empty)


def prepare_shards(
    source: SegmentationSource,
    folder: Path,
    *,
    limit: ShardLimit,
    splits: Splits,
    checksums: Mapping[str, str],
    keep_empty: bool = True,
) -> Prepared:
    """Write every item of an opened source into shards; the folder appears when all of it is there.

    Until then shards are written beside it, in ``FOLDER.unfinished``, each whole or not at all. The same call goes on after
    the last of them.

    Args:
        source: Opened with masks.
        folder: Must not exist.
        limit: When a shard is full.
        splits: Written as ``splits.json``; its patients go into the shards.
        checksums: From ``check_cases``: a preparation of other data is not gone on with.
        keep_empty: False leaves out images without an object.

    Raises:
        DataError: As ``prepare_folder``; also if an unfinished preparation was of other data or settings.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already. Name a new folder, or remove this one.")
    unfinished = folder.with_name(f"{folder.name}{_SUFFIX}")
    items = source.select(range(len(source)), "evaluate")
    progress = _begun(unfinished, _plan(source, items, limit, splits, checksums, keep_empty=keep_empty))
    for part in _write_rest(source, items, unfinished, progress, limit, splits, keep_empty=keep_empty):
        progress = progress.after(part)
    index = ShardIndex.join(progress.parts)
    check_kept_cases(source, index.texts["cases"], folder)
    prepared = _finished(source, index, splits, folder, progress.empty)
    _close(unfinished, index, folder, prepared, splits, source)
    return prepared


def _plan(
    source: SegmentationSource,
    items: Sequence[int],
    limit: ShardLimit,
    splits: Splits,
    checksums: Mapping[str, str],
    *,
    keep_empty: bool,
) -> str:
    """Return a checksum of all that decides what the shards hold."""
    names = source.image_ids()
    facts = (source.describe(), [names[item] for item in items], sorted(checksums.items()), asdict(limit), keep_empty)
    parts = (splits.train, splits.val, splits.test, sorted(splits.patients.items()))
    text = json.dumps([facts, parts], default=str, sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _begun(unfinished: Path, plan: str) -> _Progress:
    """Return how far an earlier call came; nothing where there was none."""
    path = unfinished / _PLAN
    if not path.is_file():
        write_text(path, plan)
        return _Progress()
    if path.read_text(encoding="utf-8") != plan:
        raise DataError(
            f"{unfinished}: is an unfinished preparation of other data or settings. Remove it, or name another FOLDER."
        )
    progress = _Progress()
    while (record := unfinished / f"{_shard_name(len(progress.parts))}.safetensors").is_file():
        part = load_index(record)
        shard = unfinished / _shard_name(len(progress.parts))
        if not shard.is_file() or part.shards != {shard.name: shard.stat().st_size}:
            break  # written again
        progress = progress.after(part)
    return progress


def _write_rest(
    source: SegmentationSource,
    items: Sequence[int],
    folder: Path,
    done: _Progress,
    limit: ShardLimit,
    splits: Splits,
    *,
    keep_empty: bool,
) -> Iterator[ShardIndex]:
    """Write the shards that are missing, a sample at a time, and yield the index of each, which is on the disk by then."""
    samples = _kept(source, items, done, splits, keep_empty=keep_empty)
    sample, before = next(samples)
    for number in count(len(done.parts)):
        if sample is None:
            return
        with ShardWriter(folder / _shard_name(number)) as shard:
            while sample is not None and not limit.is_full(len(shard), shard.size, packed_size(sample)):
                shard.add(sample)
                sample, before = next(samples)
        yield _recorded(shard, before)


def _kept(
    source: SegmentationSource, items: Sequence[int], done: _Progress, splits: Splits, *, keep_empty: bool
) -> Iterator[tuple[PackedSample | None, dict[str, str]]]:
    """Yield each sample that is kept, and what lies before it: items, and items that show no object; None at the end."""
    empty = done.empty
    for position in range(done.items, len(items)):
        sample, shows_object = _packed(source, items[position], splits)
        if shows_object or keep_empty:
            yield sample, {"items": str(position), "empty": str(empty)}
        empty += not shows_object
    yield None, {"items": str(len(items)), "empty": str(empty)}


def _recorded(shard: ShardWriter, before: Mapping[str, str]) -> ShardIndex:
    """Write how far the preparation is after a shard: that the shard counts."""
    part = shard.index(before)
    part.save(shard.path.with_name(f"{shard.path.name}.safetensors"))
    return part


def _packed(source: SegmentationSource, item: int, splits: Splits) -> tuple[PackedSample, bool]:
    """Return an item as it is stored, and whether it shows an object."""
    try:
        sample = source[item]
    except OSError as error:
        # Within a shard that is being written it would be told as a fault of that.
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Allow it, or put it back.") from error
    case = flat_file_name(sample.case_id)
    spacing = stated_spacing(source, item, sample)
    image, mask = (encode_png(values, spacing_mm=spacing) for values in (pixels_of(sample), label_map(sample)))
    record: dict[str, object] = {"case": case, "spacing_mm": list(sample.spacing_mm)}
    if case in splits.patients:
        record["patient"] = splits.patients[case]
    packed = PackedSample(f"{case}/{flat_file_name(sample.image_id)}", image, mask, sample.masks.size, record)
    return packed, bool(sample.masks.any())


def _finished(source: SegmentationSource, index: ShardIndex, splits: Splits, folder: Path, empty: int) -> Prepared:
    ignored = None if source.ignore_label is None else IGNORE_LABEL
    n_cases = len(set(index.texts["cases"]))
    return Prepared(folder, len(index), n_cases, empty, source.label_names(), ignored, shards=len(index.shards))


def _close(
    unfinished: Path, index: ShardIndex, folder: Path, prepared: Prepared, splits: Splits, source: SegmentationSource
) -> None:
    """Write what stands beside the shards, and give the folder its name."""
    index.save(unfinished / INDEX_FILE)
    save_splits(splits, unfinished / "splits.json")
    record = {
        "source": source.describe(),
        "labels": {name: [value] for value, name in prepared.labels.items()},
        "ignore_label": prepared.ignore_label,
        "images": prepared.images,
        "images_without_object": prepared.empty,
        "shards": prepared.shards,
    }
    write_json(unfinished / "prepared.json", record)
    try:
        for name in (_PLAN, *(f"{shard}.safetensors" for shard in index.shards)):
            (unfinished / name).unlink()
        os.rename(unfinished, folder)
    except OSError as fault:
        raise DataError(write_fault(folder, fault)) from fault


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"
