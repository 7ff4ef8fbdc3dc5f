"""Find the files of a folder; what cannot be read or followed is named, never left out in silence."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from medsam_tune.errors import DataError, all_usable


@dataclass(frozen=True)
class Scan:
    """Hold what lies below a folder.

    Attributes:
        files: Files with one of the wanted endings, sorted.
        others: All other files, sorted; hidden ones do not count.
    """

    files: list[Path]
    others: list[Path]


def scan_folder(folder: Path, endings: tuple[str, ...]) -> Scan:
    """Find the files below ``folder`` whose lower-case name has one of the endings; linked folders are entered.

    Raises:
        PartlyUsable: If a folder cannot be read, a link is broken or leads back to where it stands, something with a wanted
            ending is no file, or a name is not text. All of them are listed.
    """
    faults: list[str] = []
    found = [path for path in _walk(folder, (), faults) if _is_sound(path, endings, faults)]
    wanted = sorted(path for path in found if path.name.lower().endswith(endings))
    scan = Scan(wanted, sorted(set(found) - set(wanted)))
    return all_usable(scan, faults, f"{folder}: {len(faults)} entries cannot be used")


def outside(files: Iterable[Path], folder: Path, other: Path) -> list[Path]:
    """Return the files below a folder without those of another folder that lies in it."""
    # Not resolved: a folder may hold links to files that lie elsewhere.
    if folder == other or not other.is_relative_to(folder):
        return list(files)
    return [path for path in files if not path.is_relative_to(other)]


def leave_out(found: Scan, root: Path, exclude: Iterable[str]) -> Scan:
    """Return what was found without the files that a recipe excludes (``data.source.exclude``).

    Args:
        found: From ``scan_folder``.
        root: The data folder.
        exclude: Paths below it, with or without ending, where ``*`` is any text.

    Example:
        >>> leave_out(Scan([Path("d/fov/1.png"), Path("d/images/1.png")], []), Path("d"), ["fov/*"]).files
        [PosixPath('d/images/1.png')]
    """
    patterns = list(exclude)

    def is_left_out(path: Path) -> bool:
        name = path.relative_to(root).as_posix()
        names = (name, name.removesuffix(path.suffix), name.removesuffix("".join(path.suffixes[-2:])))
        return any(fnmatchcase(each, pattern) for pattern in patterns for each in names)

    return Scan(*([path for path in paths if not is_left_out(path)] for paths in (found.files, found.others)))


def existing_folder(root: Path, name: str, key: str) -> Path:
    """Return ``root / name``.

    Raises:
        DataError: If it is not a folder; the message lists what ``root`` holds.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Set data.root to the folder that holds your images and masks.")
    folder = root / name
    if not folder.is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        raise DataError(f"{folder}: no such folder; {root} holds the folders {there}. Set data.source.{key} to one of them.")
    return folder


def _walk(folder: Path, above: tuple[Path, ...], faults: list[str]) -> list[Path]:
    """Return every entry below a folder that is no folder; hidden ones are left alone."""
    real = folder.resolve()
    if real in above:
        faults.append(f"{folder}: is a link to a folder that it stands in. Remove the link.")
        return []
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        faults.append(f"{folder}: cannot be read ({error.strerror}), so its files would be missing. Allow it, or move it away.")
        return []
    found: list[Path] = []
    for name in names:
        path = folder / name
        try:
            found += _walk(path, (*above, real), faults) if path.is_dir() else [path]
        except OSError as error:
            faults.append(f"{path}: cannot be looked at ({error.strerror}). Allow it, or move it away.")
    return found


def _is_sound(path: Path, endings: tuple[str, ...], faults: list[str]) -> bool:
    """Tell whether a path is a file that can be looked at; note what is wrong with one that is wanted."""
    if not path.exists():
        faults.append(f"{path}: is a broken link to {os.readlink(path)}. Restore the file or remove the link.")
        return False
    if not path.name.lower().endswith(endings):
        return True
    if not path.is_file():
        faults.append(f"{path}: has the name of an image but is no file. Remove it.")
        return False
    try:
        str(path).encode()
    except UnicodeEncodeError:
        faults.append(f"{str(path).encode(errors='replace').decode()}: its name is not UTF-8 text. Rename the file.")
        return False
    return True
