"""The only place that writes files: whole or not at all, with one clear error. Also checksums and reading JSON.

Everything is written under a temporary name in its own folder, brought to the disk (fsync) and renamed. Whatever fails on the
way, the temporary file is removed and what stood there before is untouched. What a killed process left is removed by the next
one that writes into the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from medsam_tune.errors import CheckpointError, DataError, MedsamTuneError
from medsam_tune.leftovers import temporary_name, tidy_once

if TYPE_CHECKING:
    from torch import Tensor

WHEN_FULL = "Free space there or choose another folder."

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDIES = {
    errno.EACCES: "Check the folder's permissions or choose another.",
    errno.EPERM: "Check the folder's permissions or choose another.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.EEXIST: "A file stands in the folder's place: choose another folder.",
    errno.ENOTDIR: "A file stands in the folder's place: choose another folder.",
    errno.EISDIR: "A folder stands in the file's place: choose another name.",
}


def write_bytes(path: Path, content: bytes, *, error: type[MedsamTuneError] = DataError, when_full: str = WHEN_FULL) -> Path:
    """Write ``content`` so that ``path`` holds either the old content or all of the new one.

    Args:
        path: Missing folders above it are made.
        content: All of the file.
        error: What is raised when it cannot be written.
        when_full: What to do about a full disk, as a sentence.

    Returns:
        ``path``.

    Raises:
        MedsamTuneError: Of type ``error``, with the path and the remedy; the temporary file is removed.
    """
    with atomic_file(path, error=error, when_full=when_full) as file:
        file.write(content)
    return path


def write_text(
    path: Path,
    text: str,
    *,
    error: type[MedsamTuneError] = DataError,
    when_full: str = WHEN_FULL,
    private: bool = False,
) -> Path:
    """Write ``text`` as UTF-8; see ``write_bytes``. A ``private`` file can be read by its owner alone."""
    with atomic_file(path, error=error, when_full=when_full, private=private) as file:
        file.write(text.encode())
    return path


def write_json(path: Path, data: object, *, error: type[MedsamTuneError] = DataError, when_full: str = WHEN_FULL) -> Path:
    """Write ``data`` as JSON; see ``write_bytes``.

    Paths become strings, one-element arrays and tensors numbers; NaN and infinity become null, because JSON has neither.

    Raises:
        TypeError: If a value has no JSON form.
    """
    value = _jsonable(data)
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    if not _is_unicode(text):
        text = json.dumps(value, indent=2, allow_nan=False)
    return write_text(path, text + "\n", error=error, when_full=when_full)


def write_torch(
    path: Path, content: object, *, error: type[MedsamTuneError] = CheckpointError, when_full: str = WHEN_FULL
) -> Path:
    """Write ``content`` with ``torch.save``; see ``write_bytes``."""
    import torch

    with atomic_file(path, error=error, when_full=when_full) as file:
        torch.save(content, file)
    return path


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    error: type[MedsamTuneError] = CheckpointError,
    when_full: str = WHEN_FULL,
) -> Path:
    """Write tensors that lie on the CPU and share no memory; see ``write_bytes``."""
    from safetensors.torch import save

    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(packed, metadata=dict(metadata)), error=error, when_full=when_full)


class atomic_file:
    """Open a temporary file for writing that takes the name ``path`` at the end of the block.

    The first fault of the disk is kept and raised when the block ends; until then later writes are dropped. So a library that
    turns such faults into others of its own (``torch.save`` raises "unexpected pos") cannot hide the cause.

    Args:
        path: Missing folders above it are made.
        error: What is raised when it cannot be written.
        when_full: What to do about a full disk, as a sentence.
        private: Let nobody but the owner read the file.

    Raises:
        MedsamTuneError: Of type ``error``, with the path and the remedy; the temporary file is removed.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_file(path) as file:
        ...     written = file.write(b"whole")
        >>> path.read_bytes()
        b'whole'
    """

    def __init__(
        self,
        path: Path,
        *,
        error: type[MedsamTuneError] = DataError,
        when_full: str = WHEN_FULL,
        private: bool = False,
    ) -> None:
        self.path = Path(path)
        self._private = private
        self.error = error
        self.when_full = when_full
        self._temporary = self.path.with_name(temporary_name())
        self._fault: OSError | None = None

    def __enter__(self) -> BinaryIO:
        """Return the file; it has ``write`` and ``flush``."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tidy_once(self.path.parent)
            self._file = self._temporary.open("xb")
            if self._private:
                self._temporary.chmod(0o600)
        except OSError as fault:
            raise self.error(write_fault(self.path, fault, self.when_full)) from fault
        return cast("BinaryIO", self)

    def write(self, content: bytes) -> int:
        """Write bytes; nothing is written any more after a fault of the disk."""
        if self._fault is None:
            try:
                return self._file.write(content)
            except OSError as fault:
                self._fault = fault
        return memoryview(content).nbytes

    def check(self) -> None:
        """Raise the first fault of the disk so far: a block that writes for hours need not go on to its end.

        Raises:
            OSError: The fault, which the end of the block turns into its error.
        """
        if self._fault is not None:
            raise self._fault

    def flush(self) -> None:
        """Do nothing: the end of the block brings everything to the disk."""

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None) -> None:
        """Give the file its name, or remove it."""
        if isinstance(raised, OSError):
            self._fault = self._fault or raised
        try:
            self._close()
            if kind is None and self._fault is None:
                os.replace(self._temporary, self.path)
        except OSError as fault:
            self._fault = self._fault or fault
        finally:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
        if self._fault is not None and (kind is None or issubclass(kind, Exception)):
            raise self.error(write_fault(self.path, self._fault, self.when_full)) from self._fault

    def _close(self) -> None:
        try:
            if self._fault is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as fault:
            self._fault = fault
        finally:
            with suppress(OSError):
                self._file.close()


@contextmanager
def atomic_folder(
    folder: Path, *, replace: bool = False, error: type[MedsamTuneError] = DataError, when_full: str = WHEN_FULL
) -> Iterator[Path]:
    """Yield a hidden folder beside ``folder`` that takes its name at the end, and goes away after an error.

    Args:
        folder: Missing folders above it are made.
        replace: Take the place of a folder that is there; the old one is removed only after the new one stands.
        error: What is raised when something cannot be written.
        when_full: What to do about a full disk, as a sentence.

    Raises:
        MedsamTuneError: Of type ``error``, with the path and the remedy.
    """
    unfinished = folder.with_name(temporary_name())
    try:
        unfinished.mkdir(parents=True)
        tidy_once(folder.parent)
        yield unfinished
        _take_place(unfinished, folder, replace=replace)
    except OSError as fault:
        raise error(write_fault(folder, fault, when_full)) from fault
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def staging(folder: Path, *, error: type[MedsamTuneError] = DataError) -> Iterator[Path]:
    """Yield a hidden folder below ``folder``, from which ``place_staged`` moves files; it goes away with what is left in it.

    Raises:
        MedsamTuneError: Of type ``error``, with the path and the remedy.
    """
    unfinished = folder / temporary_name()
    try:
        unfinished.mkdir(parents=True)
        tidy_once(folder)
        yield unfinished
    except OSError as fault:
        raise error(write_fault(folder, fault)) from fault
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def place_staged(staged: Path, folder: Path) -> Path:
    """Move a file out of a staging folder to the same place below ``folder``, where it stands whole from then on.

    Args:
        staged: The file, below a folder of ``staging``.
        folder: Whose staging folder it is.

    Returns:
        Where it is now.
    """
    place = folder / Path(*staged.relative_to(folder).parts[1:])
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staged, place)
    return place


def write_fault(path: Path, fault: OSError, when_full: str = WHEN_FULL) -> str:
    """Say in one line that ``path`` could not be written, why, and what to do.

    Args:
        path: What was to be written.
        fault: What the operating system said.
        when_full: What to do about a full disk, as a sentence.
    """
    if fault.errno not in _NO_SPACE:
        return f"{path}: could not be written ({fault.strerror or fault}). {_REMEDIES.get(fault.errno or 0, WHEN_FULL)}"
    return f"{path}: could not be written ({fault.strerror}, {_free(path)} MB free). {when_full}"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    return digest_of(path, "sha256")


def digest_of(path: Path, kind: str) -> str:
    """Return the hexadecimal checksum of a file.

    Args:
        path: The file.
        kind: As ``hashlib`` names it: ``sha256``, ``md5``.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def read_json(path: Path, remedy: str, *, error: type[MedsamTuneError] = DataError) -> Any:  # noqa: ANN401 - JSON is anything
    """Read a JSON file that people or other machines may have touched.

    Args:
        path: The file.
        remedy: What to do when it cannot be read, as a sentence.
        error: What is raised then.

    Raises:
        MedsamTuneError: Of type ``error``, if the file is missing, unreadable, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}). {remedy}") from fault
    except (ValueError, RecursionError) as fault:
        raise error(f"{path}: is no JSON ({_first_line(fault)}). {remedy}") from fault


def _take_place(unfinished: Path, folder: Path, *, replace: bool) -> None:
    if not (replace and folder.exists()):
        unfinished.rename(folder)
        return
    old = folder.with_name(temporary_name())
    folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old)


def _free(path: Path) -> int:
    there = next(parent for parent in path.absolute().parents if parent.exists())
    return round(shutil.disk_usage(there).free / 1e6)


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def _is_unicode(text: str) -> bool:
    """Tell whether text can be written as UTF-8; a file's name that is none came in with surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if callable(item := getattr(value, "item", None)):
        value = item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
