"""The index of a folder of shards: the one beside them, or one that is made from their headers and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from medsam_tune.data.shards.headers import Member, check_name, is_plain, read_members
from medsam_tune.data.shards.index import FORMAT, INDEX_FILE, Entry, ShardIndex, check_shards, find_shards, load_index
from medsam_tune.errors import DataError, data_error
from medsam_tune.precompute.location import cache_root

# WebDataset's rule: a key ends at the first dot of the last part.
_NAME = re.compile(r"^((?:.*/|)[^./]+)\.([^/]+)$", re.DOTALL)
_IMAGE_WORDS, _MASK_WORDS = ("", "image", "img"), ("mask", "seg", "label", "gt")
IMAGE_ENDINGS = ("png", "jpg", "jpeg", "tif", "tiff", "bmp", "gif", "ppm", "pgm", "webp")
# What is longer is no record of a case.
_LONGEST_RECORD = 1 << 16


def holds_shards(folder: Path) -> bool:
    """Tell whether a folder is one of shards: it has an index, or tar files and neither images nor folders beside them."""
    if not folder.is_dir() or not find_shards(folder):
        return False
    if (folder / INDEX_FILE).is_file():
        return True
    others = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != ".tar"]
    return not any(path.is_dir() or path.suffix.lower().lstrip(".") in IMAGE_ENDINGS for path in others)


def open_index(folder: Path, *, cache: Path | None = None) -> ShardIndex:
    """Return the index of a folder of shards.

    The one beside them counts if there is one; else headers are read once, and what they say is kept in the cache until a
    shard changes its name, size or date.

    Args:
        folder: That holds the shards.
        cache: The cache's root folder; ``cache_root()`` by default.

    Raises:
        DataError: If there are no shards, one is damaged, or the index is not theirs.
    """
    if (path := folder / INDEX_FILE).is_file():
        index = load_index(path)
        check_shards(path, index)
        return index
    shards = find_shards(folder)
    if not shards:
        raise DataError(f"{folder}: holds no shard (*.tar). Set data.root to the folder of the tar files; unpack *.tar.gz.")
    kept = (cache or cache_root()) / "shards" / f"{_stamp(shards)}.safetensors"
    with suppress(DataError):
        return load_index(kept)
    index = scan_shards(shards)
    # A cache that cannot be written costs a second look next time, nothing else.
    with suppress(DataError):
        index.save(kept)
    return index


def scan_shards(shards: Sequence[Path]) -> ShardIndex:
    """Return the index of tar files that came without one, from their headers.

    Args:
        shards: In order.

    Raises:
        DataError: If a file is damaged, two members are the same part of one sample, or a mask has no image; all are listed.
    """
    samples: dict[str, _Sample] = {}
    faults: list[str] = []
    for number, shard in enumerate(shards):
        try:
            for member in read_members(shard):
                _take(samples, number, shard, member, faults)
        except DataError as error:
            faults.append(str(error))
    entries = [_entry(shards, key, sample, faults) for key, sample in samples.items()]
    if faults:
        raise data_error(f"{shards[0].parent}: {len(faults)} faults in the shards", faults)
    found = sorted((each for each in entries if each is not None), key=lambda each: each.name)
    twice = [after for before, after in pairwise(found) if before.name == after.name]
    if twice:
        raise DataError(f"{shards[twice[0].numbers[0]]}: member {twice[0].image}: the image {twice[0].name!r} is named twice.")
    return ShardIndex.of({shard.name: shard.stat().st_size for shard in shards}, found)


@dataclass
class _Sample:
    """Hold the members of one key."""

    shard: int
    parts: dict[str, Member] = field(default_factory=dict)


def _take(samples: dict[str, _Sample], number: int, shard: Path, member: Member, faults: list[str]) -> None:
    """Put a member to its sample; members that are neither image, mask nor record are left alone."""
    found = _NAME.match(member.name)
    part = None if found is None else _part(found[2].lower())
    if found is None or part is None:
        return
    sample = samples.setdefault(found[1], _Sample(number))
    if sample.shard != number or part in sample.parts:
        there = f"{sample.parts[part].name} of the same file" if sample.shard == number else "a member of another shard"
        faults.append(f"{shard}: member {member.name}: its key {found[1]!r} and part have {there} already. Rename one of them.")
        return
    sample.parts[part] = member


def _part(ending: str) -> str | None:
    word, _, kind = ending.rpartition(".")
    if ending == "json":
        return "record"
    if kind not in IMAGE_ENDINGS:
        return None
    return "image" if word in _IMAGE_WORDS else "mask" if word in _MASK_WORDS else None


def _entry(shards: Sequence[Path], key: str, sample: _Sample, faults: list[str]) -> Entry | None:
    shard, parts = shards[sample.shard], sample.parts
    if "image" not in parts:
        if "mask" in parts:
            faults.append(f"{shard}: member {parts['mask'].name}: there is no image {key}.png. Add it, or remove the mask.")
        return None
    try:
        record = _record(shard, parts["record"]) if "record" in parts else {}
        name = check_name(shard, record.get("image", key))
    except DataError as error:
        faults.append(str(error))
        return None
    image, mask = parts["image"], parts.get("mask", Member("", 0, 0))
    numbers = (sample.shard, image.offset, image.size, mask.offset, mask.size, 0, 0)
    return Entry(name, image.name, mask.name, numbers, record.get("case", ""), record.get("patient", ""))


def _record(shard: Path, member: Member) -> dict[str, str]:
    """Return what a sample's JSON says of image, case and patient."""
    if member.size > _LONGEST_RECORD:
        return {}
    with shard.open("rb") as file:
        file.seek(member.offset)
        content = file.read(member.size)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}: member {member.name}: is no JSON ({error}). Correct it, or leave it out.") from error
    stated = found if isinstance(found, dict) else {}
    texts = {name: value for name in ("image", "case", "patient") if isinstance(value := stated.get(name), str) and value}
    for name, text in texts.items():
        if not is_plain(text):
            raise DataError(f"{shard}: member {member.name}: its {name} {text[:50]!r} is no plain text. Correct it.")
    return texts


def _stamp(shards: Sequence[Path]) -> str:
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in shards]
    return hashlib.blake2b(f"{FORMAT} {facts}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
