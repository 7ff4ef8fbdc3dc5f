"""Write samples into tar files of WebDataset's form, one shard after the other, each whole or not at all.

Source of the names: webdataset/webdataset @ v0.2.86, tariterators.py: the key is a member's path up to the first dot of its
last part, the rest says which part of the sample it is.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from medsam_tune.data.shards.index import Entry, ShardIndex
from medsam_tune.data.shards.members import digest_of
from medsam_tune.errors import RecipeError
from medsam_tune.files import atomic_file

_BLOCK = tarfile.BLOCKSIZE
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_LIMIT = re.compile(r"(\d+)\s*([KMG]I?B|)", re.IGNORECASE)


@dataclass(frozen=True)
class ShardLimit:
    """Say when a shard is full: at a number of images, or before a number of bytes.

    Attributes:
        images: Images a shard; None where bytes decide.
        bytes: Of a tar file; a sample that is larger has a shard of its own. None where images decide.
    """

    images: int | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, text: str) -> ShardLimit:
        """Read ``1000`` (images) or ``500MB``, ``1GiB`` (size).

        Raises:
            RecipeError: If it is neither.
        """
        found = _LIMIT.fullmatch(text.strip())
        if found is None or int(found[1]) < 1:
            raise RecipeError(f"--shards: expected images a shard, such as 1000, or a size, such as 500MB; got {text!r}.")
        number = int(found[1]) * _UNITS[found[2].upper()]
        return cls(bytes=number) if found[2] else cls(images=number)

    def is_full(self, n_images: int, n_bytes: int, more_bytes: int) -> bool:
        """Tell whether a sample of ``more_bytes`` belongs into the next shard."""
        if self.images is not None:
            return n_images >= self.images
        return n_images > 0 and n_bytes + more_bytes > (self.bytes or 0)


@dataclass(frozen=True)
class PackedSample:
    """Hold one sample as it stands in a tar file.

    Attributes:
        name: Of the image, a path below a folder.
        image: PNG file.
        mask: PNG file.
        size: (H, W).
        record: Further facts for its JSON; ``case`` and ``patient`` go into the index too.
    """

    name: str
    image: bytes
    mask: bytes
    size: tuple[int, int]
    record: Mapping[str, object]

    def members(self) -> dict[str, bytes]:
        """Return the content of the members by name, the image first."""
        key = key_of(self.name)
        record = json.dumps({"image": self.name, **self.record}, ensure_ascii=False).encode()
        return {f"{key}.png": self.image, f"{key}.mask.png": self.mask, f"{key}.json": record}


class ShardWriter:
    """Write the samples of one shard as they come; the tar file takes its name at the end of the block, whole or not at all.

    Args:
        path: Of the tar file.

    Attributes:
        path: Of the tar file.
        entries: Of its index.

    Raises:
        DataError: If it cannot be written, with the path and the remedy; nothing is left then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._bytes = 0
        self._whole = atomic_file(path)

    def __enter__(self) -> Self:
        """Open a temporary file."""
        self._file = self._whole.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None) -> None:
        """Write the end mark and give the file its name, or remove it."""
        if kind is None:
            self._file.write(bytes(2 * _BLOCK))
        self._whole.__exit__(kind, raised, traceback)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.entries)

    @property
    def size(self) -> int:
        """Return the bytes of the tar file without its end mark."""
        return self._bytes

    def add(self, sample: PackedSample) -> None:
        """Append a sample; nothing of it but its index entry stays in memory.

        Raises:
            OSError: If the disk is full, say; the end of the block turns it into a ``DataError``.
        """
        members = sample.members()
        places = [(self._append(name, content), len(content)) for name, content in members.items()]
        self._whole.check()
        image, mask, _ = members
        numbers = (0, *places[0], *places[1], *sample.size)
        case, patient = (str(sample.record.get(fact) or "") for fact in ("case", "patient"))
        digests = digest_of(sample.image) + digest_of(sample.mask)
        self.entries.append(Entry(sample.name, image, mask, numbers, case, patient, digests))

    def index(self, record: Mapping[str, str]) -> ShardIndex:
        """Return the index of the shard after the block.

        Args:
            record: Facts for the index.
        """
        return ShardIndex.of({self.path.name: self._bytes + 2 * _BLOCK}, self.entries, record)

    def _append(self, name: str, content: bytes) -> int:
        """Append a member and return the offset of its first byte."""
        header = header_of(name, len(content))
        offset = self._bytes + len(header)
        padding = bytes(-len(content) % _BLOCK)
        for piece in (header, content, padding):
            self._file.write(piece)
        self._bytes = offset + len(content) + len(padding)
        return offset


def header_of(name: str, size: int) -> bytes:
    """Return the header of a member: nothing of this machine, its user or the time stands in it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def packed_size(sample: PackedSample) -> int:
    """Return the bytes that a sample takes in a tar file."""
    members = sample.members()
    return sum(len(header_of(name, len(content))) + -(-len(content) // _BLOCK) * _BLOCK for name, content in members.items())


def key_of(name: str) -> str:
    """Return the key of an image: its name with no dot in the last part.

    Example:
        >>> key_of("p.1/slice.3")
        'p.1/slice%2E3'
    """
    folder, slash, last = name.rpartition("/")
    # Two names never give one key.
    return folder + slash + re.sub(r"%(?=2[5E])", "%25", last).replace(".", "%2E")
