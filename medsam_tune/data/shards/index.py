"""Where each image and mask of a folder of shards lies: a table that is kept beside the shards, or made from their headers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.shards.headers import check_name
from medsam_tune.data.shards.members import DIGEST_BYTES, ShardFiles, member_path
from medsam_tune.errors import DataError
from medsam_tune.files import write_safetensors

if TYPE_CHECKING:
    from medsam_tune.data.shards.members import MemberPath

INDEX_FILE = "index.safetensors"
FORMAT = "medsam-tune shards 1"
_TEXTS = ("names", "images", "masks", "cases", "patients")
_REMEDY = "Remove it, and what the shards hold is read from their headers."


@dataclass(frozen=True)
class Entry:
    """Say where one sample lies.

    Attributes:
        name: Of the image.
        image: Name of the image's member.
        mask: Name of the mask's member; empty where there is none.
        numbers: Shard, offset and bytes of the image, offset and bytes of the mask, height and width; 0 where unknown.
        case: Its case; empty where the sample names none.
        patient: Its patient; empty where the sample names none.
        digests: Checksums of image and mask; empty where nobody made them.
    """

    name: str
    image: str
    mask: str
    numbers: tuple[int, int, int, int, int, int, int]
    case: str = ""
    patient: str = ""
    digests: bytes = b""


@dataclass(frozen=True)
class ShardIndex:
    """Hold the entries of shards, a column for each fact.

    Attributes:
        shards: Name and size in bytes of each shard, in order.
        texts: Columns of ``Entry`` by the names ``names``, ``images``, ``masks``, ``cases`` and ``patients``.
        numbers: (n, 7) int64, as in ``Entry``.
        digests: (n, 16) uint8, or (0, 16) where nobody made them.
        record: Further facts, as texts.
    """

    shards: Mapping[str, int]
    texts: Mapping[str, Sequence[str]]
    numbers: NDArray[np.int64]
    digests: NDArray[np.uint8]
    record: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, shards: Mapping[str, int], entries: Sequence[Entry], record: Mapping[str, str] | None = None) -> ShardIndex:
        """Return the index of some entries."""
        texts = {
            "names": [each.name for each in entries],
            "images": [each.image for each in entries],
            "masks": [each.mask for each in entries],
            "cases": [each.case for each in entries],
            "patients": [each.patient for each in entries],
        }
        numbers = np.array([each.numbers for each in entries], np.int64).reshape(-1, 7)
        known = all(each.digests for each in entries)
        digests = np.frombuffer(b"".join(each.digests for each in entries) if known else b"", np.uint8)
        return cls(shards, texts, numbers, digests.reshape(-1, 2 * DIGEST_BYTES), record or {})

    @classmethod
    def join(cls, parts: Sequence[ShardIndex]) -> ShardIndex:
        """Return one index of several, whose shards follow each other."""
        starts = np.cumsum([0, *(len(part.shards) for part in parts)])
        moved = [part.numbers + np.array([start, 0, 0, 0, 0, 0, 0]) for part, start in zip(parts, starts, strict=False)]
        known = all(len(part.digests) == len(part) for part in parts)
        return cls(
            {name: size for part in parts for name, size in part.shards.items()},
            {name: [text for part in parts for text in part.texts[name]] for name in _TEXTS},
            np.concatenate([np.empty((0, 7), np.int64), *moved]),
            np.concatenate([np.empty((0, 2 * DIGEST_BYTES), np.uint8), *(part.digests for part in parts if known)]),
        )

    def paths(self, folder: Path) -> list[tuple[str, MemberPath, MemberPath | None]]:
        """Return name, image and mask of each sample, in order.

        Args:
            folder: That holds the shards.
        """
        files = ShardFiles([folder.resolve() / name for name in self.shards])
        columns = zip(*(self.texts[name] for name in ("names", "images", "masks", "patients")), strict=True)
        digests = [row.tobytes() for row in self.digests] or [b""] * len(self)
        found = []
        for (name, image, mask, patient), row, digest in zip(columns, self.numbers.tolist(), digests, strict=True):
            first, second, person = digest[:DIGEST_BYTES], digest[DIGEST_BYTES:], patient or None
            image_path = member_path(files, image, (row[0], row[1], row[2]), digest=first, patient=person)
            mask_path = member_path(files, mask, (row[0], row[3], row[4]), digest=second, patient=person) if mask else None
            found.append((name, image_path, mask_path))
        return found

    def save(self, path: Path) -> Path:
        """Write the index, whole or not at all."""
        import torch

        texts = {name: np.frombuffer("\n".join(self.texts[name]).encode(), np.uint8) for name in _TEXTS}
        arrays: dict[str, NDArray[Any]] = {**texts, "numbers": self.numbers, "digests": self.digests}
        # One entry: several would come in another order at each writing.
        about = {"about": json.dumps({"format": FORMAT, "shards": dict(self.shards), "record": dict(self.record)})}
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return write_safetensors(path, tensors, about, error=DataError)


def load_index(path: Path) -> ShardIndex:
    """Read an index and check that it can be one; what it says of shards is compared with them by ``check_shards``.

    Raises:
        DataError: If the file is damaged, of another version, or says what cannot be.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["about"])
            arrays = {name: file.get_tensor(name) for name in (*_TEXTS, "numbers", "digests")}
        shards, record = about["shards"], about["record"]
        n_rows = len(arrays["numbers"])
        texts = {name: _lines(arrays[name], n_rows) for name in _TEXTS}
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: cannot be read as an index of shards ({_first_line(error)}). {_REMEDY}") from error
    if about.get("format") != FORMAT or not isinstance(record, dict):
        raise DataError(f"{path}: has the format {about.get('format')!r}, expected {FORMAT!r}. {_REMEDY}")
    found = ShardIndex(shards, texts, arrays["numbers"], arrays["digests"], record)
    if (fault := _fault(path, found)) is not None:
        raise DataError(f"{path}: is no sound index of shards ({fault}). {_REMEDY}")
    return found


def check_shards(path: Path, index: ShardIndex) -> None:
    """Compare the sizes of the shards beside an index with what it says.

    Raises:
        DataError: If a shard is missing, cut off, changed, or not in the index; all are listed in one line.
    """
    folder = path.parent
    there = {shard.name: shard.stat().st_size for shard in find_shards(folder)}
    wrong = [
        f"{name} is missing" if name not in there else f"{name} has {there[name]} bytes, expected {size}"
        for name, size in index.shards.items()
        if there.get(name) != size
    ]
    wrong += [f"{name} is not in it" for name in there if name not in index.shards]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(
            f"{path}: is not the index of the shards beside it: {', '.join(wrong[:5])}{more}. Copy the folder again, or remove "
            "the index if the shards are as they should be."
        )


def find_shards(folder: Path) -> list[Path]:
    """Return the tar files in a folder, not below it, by name."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def _lines(blob: NDArray[Any], n_rows: int) -> list[str]:
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise ValueError(f"texts are {blob.dtype}")
    lines = blob.tobytes().decode("utf-8").split("\n") if n_rows else []
    if len(lines) != n_rows:
        raise ValueError(f"{len(lines)} texts for {n_rows} samples")
    return lines


def _fault(path: Path, index: ShardIndex) -> str | None:
    """Say what is impossible about an index, or return None."""
    numbers, digests, sizes = index.numbers, index.digests, index.shards
    if numbers.dtype != np.int64 or numbers.shape != (len(numbers), 7) or (numbers < 0).any():
        return "its numbers are none"
    if digests.dtype != np.uint8 or digests.shape not in ((0, 2 * DIGEST_BYTES), (len(numbers), 2 * DIGEST_BYTES)):
        return "its checksums are none"
    if not isinstance(sizes, dict) or any("/" in name or not isinstance(size, int) for name, size in sizes.items()):
        return "its shards are none"
    if len(set(index.texts["names"])) < len(numbers):
        return "a name stands in it twice"
    try:
        for column in ("names", "images", "masks"):
            for name in index.texts[column]:
                if name or column != "masks":
                    check_name(path, name)
    except DataError as error:
        return str(error)
    if not len(numbers):
        return None
    if numbers[:, 0].max() >= len(sizes):
        return "it names a shard that is none"
    room = np.array(list(sizes.values()), np.int64)[numbers[:, 0]]
    for offset, size in ((1, 2), (3, 4)):
        if (numbers[:, size] > room).any() or (numbers[:, offset] > room - numbers[:, size]).any():
            return "a member lies outside of its shard"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
