"""A member of a tar file as a path: every reader of image files reads it where it lies, and nothing is unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from medsam_tune.errors import DataError

LARGEST_MEMBER = 1 << 30
"""Bytes of an image or a mask; what claims more is refused before any memory is asked for."""
DIGEST_BYTES = 8
# Of 1,024 that a process may usually have open.
_OPEN_FILES = 32

# Before Python 3.12 only the system's own kind of path can be derived from.
_Path: Any = Path if TYPE_CHECKING else type(Path())


class ShardFiles:
    """Read pieces of files; each process opens its own handles, at most 32 at a time.

    Args:
        paths: The shards.

    Attributes:
        paths: The shards.
        dates: When each was changed last, in ns.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.dates = tuple(path.stat().st_mtime_ns for path in self.paths)
        self._renew()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of a shard from ``offset``, or what is left of it.

        Args:
            number: Of the shard.
            offset: From the file's beginning.
            size: In bytes.

        Raises:
            OSError: If the shard is gone or cannot be read.
        """
        if self._process != os.getpid():
            self.close()
            self._renew()
        with self._lock:
            file = self._handle(number)
            file.seek(offset)
            return file.read(size)

    def close(self) -> None:
        """Close what this process has open; it is opened again when something is read."""
        while self._handles:
            self._handles.popitem()[1].close()

    def __del__(self) -> None:
        # Not there where a shard is missing.
        if "_handles" in vars(self):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "dates": self.dates}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew()

    def _renew(self) -> None:
        """Forget the handles of another process: two that share one would move each other's position."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._handles: OrderedDict[int, BinaryIO] = OrderedDict()

    def _handle(self, number: int) -> BinaryIO:
        if number not in self._handles:
            if len(self._handles) == _OPEN_FILES:
                self._handles.popitem(last=False)[1].close()
            self._handles[number] = self.paths[number].open("rb")
        self._handles.move_to_end(number)
        return self._handles[number]


class MemberPath(_Path):  # type: ignore[misc]
    """Stand for a member of a shard as ``SHARD/MEMBER``; it opens and has a size and a date, as a file does.

    What is derived from it, such as its parent, is an ordinary path.
    """

    _files: ShardFiles | None = None
    _number = _offset = _size = 0
    _digest = b""
    _patient: str | None = None

    @property
    def patient(self) -> str | None:
        """Return the patient that the sample names, or None."""
        return self._patient

    def open(self, mode: str = "r", *rest: Any, **settings: Any) -> IO[Any]:  # noqa: ANN401 - as pathlib declares it
        """Return the content as a file in memory.

        Raises:
            DataError: If the shard is gone or cut off, or the content has another checksum than when it was written.
        """
        if self._files is None or mode != "rb":
            return super().open(mode, *rest, **settings)  # type: ignore[no-any-return]
        return _Content(self, self._content(self._files))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the member's size and its shard's date."""
        if self._files is None:
            return super().stat(follow_symlinks=follow_symlinks)  # type: ignore[no-any-return]
        date = self._files.dates[self._number]
        seconds = date // 10**9
        return os.stat_result((0o100444, 0, 0, 1, 0, 0, self._size, seconds, seconds, seconds), {"st_mtime_ns": date})

    def resolve(self, strict: bool = False) -> Path:
        """Return the path: shards are named by resolved paths."""
        return self if self._files is not None else super().resolve(strict)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._files is None:
            return Path, (str(self),)
        place = (self._number, self._offset, self._size)
        return _restored, (str(self), self._files, place, self._digest, self._patient)

    def _content(self, files: ShardFiles) -> bytes:
        if self._size > LARGEST_MEMBER:
            raise DataError(f"{self}: has {self._size} bytes, at most {LARGEST_MEMBER} are read. Remove the member.")
        try:
            content = files.read(self._number, self._offset, self._size)
        except OSError as error:
            raise DataError(f"{self}: cannot be read ({error.strerror}). Put the shard back, or allow it.") from error
        if len(content) < self._size:
            raise DataError(f"{self}: is cut off after {len(content)} of {self._size} bytes. Copy the shard again.")
        if self._digest and digest_of(content) != self._digest:
            raise DataError(f"{self}: is not what was written (its checksum differs). Copy the shard again.")
        return content


class _Content(io.BytesIO):
    """Bytes that messages of libraries call by the member's name."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(content)
        self._path = path

    def __repr__(self) -> str:
        return repr(str(self._path))


def member_path(
    files: ShardFiles, name: str, place: tuple[int, int, int], *, digest: bytes = b"", patient: str | None = None
) -> MemberPath:
    """Return the path of a member.

    Args:
        files: The shards.
        name: Of the member.
        place: Number of the shard, offset and size in bytes.
        digest: What ``digest_of`` gave when it was written; empty where nobody knows.
        patient: That the sample names.
    """
    return _restored(f"{files.paths[place[0]]}/{name}", files, place, digest, patient)


def digest_of(content: bytes) -> bytes:
    """Return the checksum of a member, 8 bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def readable(path: Path) -> Path | IO[bytes]:
    """Return what libraries read that know no members of shards: the path itself, or a member's content."""
    return path.open("rb") if isinstance(path, MemberPath) else path


def stated_patient(path: Path) -> str | None:
    """Return the patient that a member of a shard names; None for any other file."""
    return path.patient if isinstance(path, MemberPath) else None


def _restored(path: str, files: ShardFiles, place: tuple[int, int, int], digest: bytes, patient: str | None) -> MemberPath:
    member = MemberPath(path)
    member._files, (member._number, member._offset, member._size) = files, place
    member._digest, member._patient = digest, patient
    return member
