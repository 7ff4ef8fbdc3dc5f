"""The seam of folder layouts: which file is an image, which is its mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from medsam_tune.data.coco_files import CocoContent
from medsam_tune.data.formats import FORMATS, DicomFormat, Format, format_of
from medsam_tune.data.formats.dicom.reading import is_dicom
from medsam_tune.data.formats.tiff import TiffFormat
from medsam_tune.data.mask_files import MaskFile
from medsam_tune.data.pair_table import Row
from medsam_tune.data.patterns import LABEL, PathPattern
from medsam_tune.data.scan import scan_folder
from medsam_tune.errors import DataError

_LOOKED_AT = 8


@dataclass(frozen=True)
class DataFile:
    """Hold a file that a format reads.

    Attributes:
        path: The file.
        stem: Its path below the data folder, without the ending.
    """

    path: Path
    stem: str


@dataclass(frozen=True)
class Listing:
    """Hold what lies below a data folder, as one format sees it.

    Attributes:
        root: The data folder.
        format: Reads the files.
        files: Those with one of its endings, sorted.
        others: All other files.
    """

    root: Path
    format: Format
    files: tuple[DataFile, ...]
    others: tuple[Path, ...]

    def by_folder(self) -> dict[str, dict[str, DataFile]]:
        """Return the files of each folder by their names without ending; folders as paths below the root."""
        folders: dict[str, dict[str, DataFile]] = {}
        for file in self.files:
            folder, _, name = file.stem.rpartition("/")
            folders.setdefault(folder, {})[name] = file
        return folders


@dataclass(frozen=True)
class Pair:
    """Hold an image and its masks: one file, or one for each class or object.

    Attributes:
        name: Of the image.
        image: Its file.
        masks: The files of its masks.
        numbers: The number of the class that each of them is for; empty where one file holds all.
    """

    name: str
    image: DataFile
    masks: tuple[DataFile, ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pairing:
    """Hold how images and masks of a folder belong together.

    Attributes:
        layout: The layout's name.
        format: Reads the files.
        mask_format: Reads the masks where they are of another format.
        images: Where images lie.
        masks: Where masks lie.
        pairs: What belongs together.
        labels: Name to mask values where the folder names them.
        without_mask: Images of the same place that have no mask.
        without_image: Masks of the same place that have no image.
        ignore_label: The mask value of pixels that nobody annotated, where the folder names it.
        new_images: Folder of images to predict, below the root.
        contrast: What the image shows where the folder says it, such as ``CT``.
        notes: What was decided among several possibilities, one sentence each.
        strangers: Files of the format that are neither of a pair nor without a partner.
        listed: Whether names do not say what belongs together, so that a recipe needs a table of the pairs.
        annotations: The objects of all images, where they stand in annotation files.
        written: The COCO file that a recipe needs, as JSON values, where the annotation files are of another kind.
        shard_cases: The case of each image of a folder of shards, as far as its records name any; None of any other folder.
    """

    layout: str
    format: Format
    images: PathPattern
    masks: PathPattern
    pairs: tuple[Pair, ...]
    labels: dict[str, list[int]] | None = None
    without_mask: tuple[DataFile, ...] = ()
    without_image: tuple[DataFile, ...] = ()
    ignore_label: int | None = None
    new_images: str | None = None
    contrast: str | None = None
    mask_format: Format | None = None
    notes: tuple[str, ...] = ()
    strangers: tuple[DataFile, ...] = ()
    listed: bool = False
    annotations: CocoContent | None = None
    written: object = None
    shard_cases: Mapping[str, str] | None = None

    def table(self, *, without: Collection[str] = ()) -> list[Row]:
        """Return the pairs as the rows of a table.

        Args:
            without: Names of pairs that are left out.
        """
        classes = self.masks.choices.get(LABEL, ())
        rows = []
        for pair in self.pairs:
            numbers = pair.numbers or (0,) * len(pair.masks)
            for number, mask in zip(numbers, pair.masks, strict=True):
                label = classes[number - 1] if classes and number else ""
                instance = str(number) if number and not classes else ""
                rows += [(pair.image.path, MaskFile(mask.path, label, instance))] if pair.name not in without else []
        return rows


class Layout(ABC):
    """Find the images and masks of one kind of folder.

    Attributes:
        name: What the layout is called in messages.
    """

    name: ClassVar[str]

    @abstractmethod
    def find(self, listing: Listing) -> Pairing | str:
        """Return how the files pair, or why this is no such folder; empty where nothing speaks for this layout at all.

        Pixels are looked at only where names say nothing.

        Raises:
            DataError: If the folder is meant to be of this layout and its description is damaged.
        """


def list_folder(root: Path) -> list[Listing]:
    """List a folder once for each format of which it holds a file; the format with the most files comes first.

    Raises:
        DataError: If the folder is missing, cannot be read, or holds no file that any format reads.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder that holds your images and masks.")
    endings = tuple(ending for reader in FORMATS for ending in reader.endings)
    scan = scan_folder(root, endings)
    everything = [*scan.files, *scan.others]
    reader_of = _readers(everything)
    listings = [_of_format(root, reader, everything, reader_of) for reader in FORMATS]
    found = sorted((listing for listing in listings if listing.files), key=lambda listing: -len(listing.files))
    if not found:
        seen = sorted({path.suffix.lower() or path.name for path in scan.others})
        held = f"it holds {len(scan.others)} files of other kinds: {', '.join(seen[:8])}" if seen else "it is empty"
        raise DataError(f"{root}: no image found; {held}. Files that are read end in {', '.join(dict.fromkeys(endings))}.")
    return found


def _readers(files: Sequence[Path]) -> dict[Path, Format | None]:
    """Return the format of each file; where a TIFF holds several pages, all of them are volumes."""
    volumes = next(each for each in FORMATS if isinstance(each, TiffFormat))
    pages = {path: None for path in files if path.name.lower().endswith(volumes.endings)}
    holds_stacks = any(_has_pages(path) for path in list(pages)[:_LOOKED_AT])
    return {path: volumes if holds_stacks and path in pages else format_of(path) for path in files}


def _has_pages(path: Path) -> bool:
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            return int(getattr(image, "n_frames", 1)) > 1
    except (OSError, SyntaxError, ValueError):
        return False


def _of_format(root: Path, form: Format, everything: Sequence[Path], reader_of: Mapping[Path, Format | None]) -> Listing:
    """List the images of a format; a series of DICOM files is one, whatever the files are called."""
    paths = [path for path in everything if reader_of[path] is form]
    if isinstance(form, DicomFormat):
        paths = form.find(root).files if paths or any(is_dicom(path) for path in everything if not path.suffix) else []
    files = tuple(DataFile(path, form.name_of(path, root)) for path in paths)
    return Listing(root, form, files, tuple(sorted(set(everything) - set(paths))))


def pairing_of(layout: str, listing: Listing, images: PathPattern, masks: PathPattern) -> Pairing:
    """Pair the files of a listing by two patterns; a file that fits both is a mask.

    Args:
        layout: The layout's name.
        listing: The files.
        images: Where images lie.
        masks: Where masks lie; its fields stand in the same order.
    """
    masks_of: dict[str, list[DataFile]] = {}
    image_of: dict[str, DataFile] = {}
    strangers: list[DataFile] = []
    for file in listing.files:
        if (name := masks.name_of(file.stem)) is not None:
            masks_of.setdefault(name, []).append(file)
        elif (name := images.name_of(file.stem)) is not None:
            image_of.setdefault(name, file)
        else:
            strangers.append(file)
    return Pairing(
        layout,
        listing.format,
        images,
        masks,
        tuple(_pair(name, image_of[name], masks_of[name], masks) for name in sorted(image_of.keys() & masks_of.keys())),
        without_mask=tuple(image_of[name] for name in sorted(image_of.keys() - masks_of.keys())),
        without_image=tuple(file for name in sorted(masks_of.keys() - image_of.keys()) for file in masks_of[name]),
        strangers=tuple(strangers),
    )


def _pair(name: str, image: DataFile, files: list[DataFile], masks: PathPattern) -> Pair:
    labels = masks.choices.get(LABEL, ())
    held = [(masks.match(file.stem) or {}).get(LABEL, "") for file in files]
    numbers = tuple(labels.index(label) + 1 for label in held) if labels else tuple(range(1, len(files) + 1))
    return Pair(name, image, tuple(files), numbers if labels or len(files) > 1 else ())
