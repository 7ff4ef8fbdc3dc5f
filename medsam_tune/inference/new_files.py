"""The files that a model is asked about: found, named as their masks will be, and matched with what was drawn on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsam_tune.data.formats import FORMATS, Format, RasterFormat, format_of, writer_for
from medsam_tune.data.layouts.masks_among import masks_among
from medsam_tune.data.names import file_name
from medsam_tune.data.pairing import first_names
from medsam_tune.data.shards.scanning import holds_shards, open_index
from medsam_tune.data.volume_names import NNUNET_CHANNEL
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.prompt_files import DrawnObject

# Where the images of a data set lie below it: ours and most others', nnU-Net's new cases, MedSAM's.
_IMAGE_FOLDERS = ("images", "imagesTs", "imgs")


@dataclass(frozen=True)
class NewFile:
    """Hold one file that is asked about: its path, its name in the output, who reads it and who writes its mask."""

    path: Path
    name: str
    format: Format
    writer: Format | None = None

    def written(self, out: Path) -> Path:
        """Return the file of its mask below the folder of the masks."""
        return self.writes.written_as(out / file_name(self.name))

    @property
    def writes(self) -> Format:
        """Return who writes the mask: the reader, unless another was asked for."""
        return self.writer or self.format


def find_files(
    place: Path,
    formats: Sequence[Format] = FORMATS,
    *,
    without: Collection[Path] = (),
    to: str | None = None,
    keep_patient: bool = False,
) -> list[NewFile]:
    """Return the images and volumes at a place: one file, or a folder with all below it.

    A folder that has ``images``, ``imagesTs`` or ``imgs`` below it, as data sets have, is read there. nnU-Net's name of the
    first channel, ``_0000``, is no part of a case's name where all files have it.

    Args:
        place: The file or folder.
        formats: Who may read a file.
        without: Files that are left out, such as ``masks_in`` finds.
        to: As for ``writer_for``.
        keep_patient: As for ``writer_for``.

    Raises:
        DataError: If nothing is there, two files would have one mask, or a case has several channels.
    """
    if not place.exists():
        raise DataError(f"{place}: no such file or folder. Give an image, a volume, or a folder of them.")
    if holds_shards(place):
        return _in_shards(place, to=to, keep_patient=keep_patient)
    folder = place.parent if place.is_file() else _image_folder(place)
    files = [
        NewFile(path, read.name_of(path, folder), read, writer_for(read, to, keep_patient=keep_patient))
        for path, read in sorted(_read_by(place, folder, formats).items())
        if path not in without
    ]
    if not files:
        endings = ", ".join(ending for each in formats for ending in each.endings)
        raise DataError(f"{place}: holds no file with one of the endings {endings}. Give images or volumes.")
    files = _without_channel(files, folder)
    counts = Counter(file.written(folder) for file in files)
    if twice := sorted({file.name for file in files if counts[file.written(folder)] > 1}):
        raise DataError(f"{place}: {first_names(twice)}: several files of that name would have one mask file. Rename them.")
    return files


def masks_in(place: Path, formats: Sequence[Format] = FORMATS) -> frozenset[Path]:
    """Return the files of a folder that are masks of others there, as in the folder of a training; none for a file.

    Args:
        place: The file or folder.
        formats: Who may read a file.
    """
    if not place.is_dir() or holds_shards(place):
        return frozenset()
    folder = _image_folder(place)
    return masks_among(folder, _read_by(place, folder, formats))


def check_place(place: Path, out: Path) -> None:
    """Refuse to write where the input lies.

    Raises:
        RecipeError: If the folder of the masks is the input's, or lies in it.
    """
    if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise RecipeError(f"-o: {out} lies in the input folder {place}, which is only read. Give a folder outside of it.")
    if out.exists() and not out.is_dir():
        raise RecipeError(f"-o: {out}: is a file. Name a folder for the masks.")


def match_prompts(files: Sequence[NewFile], drawn: Iterable[DrawnObject], source: Path) -> dict[Path, list[DrawnObject]]:
    """Return what was drawn for each file; a name is that of the file, its path below the folder, with or without ending.

    Raises:
        DataError: If a name belongs to no file, or to several.
    """
    places: dict[str, set[Path]] = {}
    for file in files:
        ending = _ending(file)
        names = (file.name, f"{file.name}{ending}", Path(file.name).name, file.path.name, _bare(file), str(file.path))
        for name in names:
            places.setdefault(name, set()).add(file.path)
    found: dict[Path, list[DrawnObject]] = {}
    unknown: set[str] = set()
    for each in drawn:
        paths = places.get(each.image, set())
        if len(paths) == 1:
            found.setdefault(next(iter(paths)), []).append(each)
        else:
            unknown.add(each.image)
    if unknown:
        raise DataError(
            f"{source}: {len(unknown)} names belong to no file, or to several: {first_names(sorted(unknown))}. "
            "Write the file's path below the input folder."
        )
    return found


def _in_shards(place: Path, *, to: str | None, keep_patient: bool) -> list[NewFile]:
    """Return the images of a folder of shards."""
    read = RasterFormat()
    writer = writer_for(read, to, keep_patient=keep_patient)
    return [NewFile(image, name, read, writer) for name, image, _ in sorted(open_index(place).paths(place))]


def _read_by(place: Path, folder: Path, formats: Sequence[Format]) -> dict[Path, Format]:
    """Return who reads each image at a place."""
    if place.is_file():
        known = format_of(place, formats)
        return {} if known is None else {place: known}
    readers: dict[Path, list[Format]] = {}
    for each in formats:
        for path in each.find(folder).files:
            readers.setdefault(path, []).append(each)
    return {path: format_of(path, fitting) or fitting[0] for path, fitting in readers.items()}


def _image_folder(place: Path) -> Path:
    return next((place / name for name in _IMAGE_FOLDERS if (place / name).is_dir()), place)


def _without_channel(files: list[NewFile], folder: Path) -> list[NewFile]:
    """Take nnU-Net's channel off the names; a case of several channels is no image of this package."""
    nnunet = folder.name.startswith("imagesT")
    # A frame of a film may be number 0.
    numbered = [
        file for file in files if file.name.endswith(NNUNET_CHANNEL) and (nnunet or not isinstance(file.format, RasterFormat))
    ]
    if len(numbered) == len(files):
        return [replace(file, name=file.name.removesuffix(NNUNET_CHANNEL)) for file in files]
    names = {file.name for file in files}
    first = [file.name.removesuffix(NNUNET_CHANNEL) for file in numbered]
    several = [name for name in first if f"{name}_0001" in names]
    if several and nnunet:
        raise DataError(
            f"{folder}: {first_names(several)}: cases of several channels (_0000, _0001, ...), but a model reads one image. "
            "Give a folder of one channel."
        )
    return files


def _bare(file: NewFile) -> str:
    return file.path.name[: len(file.path.name) - len(_ending(file))]


def _ending(file: NewFile) -> str:
    longest = max((e for e in file.format.endings if file.path.name.lower().endswith(e)), key=len, default="")
    return file.path.name[len(file.path.name) - len(longest) :]
