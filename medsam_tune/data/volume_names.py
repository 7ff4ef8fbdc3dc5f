"""Which case a volume and its masks belong to, told from their names, and how the masks of a case are read.

A name is the path of the file, or what stands in the brackets of a pattern. A case has one file of masks, or one a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats import Format, VolumeHeader
from medsam_tune.data.mask_files import LABEL, MaskFile, NamePattern, masks_of_images
from medsam_tune.errors import DataError

NNUNET_CHANNEL = "_0000"
"""What nnU-Net adds to the name of an image with one channel."""


class VolumeNames:
    """Read the names of volumes and masks.

    Args:
        format: Of the images.
        mask_format: Of the masks.
        mask_pattern: ``data.source.mask_pattern``.
        image_pattern: ``data.source.image_pattern``.

    Raises:
        RecipeError: If a pattern is none.
    """

    def __init__(self, format: Format, mask_format: Format, mask_pattern: str | None, image_pattern: str | None) -> None:
        self.format, self.mask_format = format, mask_format
        self.masks = None if mask_pattern is None else NamePattern("data.source.mask_pattern", mask_pattern, named=(LABEL,))
        self.images = None if image_pattern is None else NamePattern("data.source.image_pattern", image_pattern, named=())

        # False where masks themselves end in four digits, which then number cases.
        self.strips_channel = True
        self._parts: dict[Path, tuple[MaskFile, ...]] = {}
        self._labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"VolumeNames({type(self.format).__name__}, {self.masks!r}, {self.images!r})"

    @property
    def hint(self) -> str:
        """Say how names pair, for a message."""
        ending = self.format.endings[0]
        if self.masks is None and self.images is None:
            return f"image 'a{ending}' or 'a{NNUNET_CHANNEL}{ending}' needs mask 'a{self.mask_format.endings[0]}'"
        return f"names are what stands in the brackets of mask_pattern {self.masks!r} and image_pattern {self.images!r}"

    def images_among(self, files: Iterable[Path], folder: Path, *, shared: bool) -> list[Path]:
        """Return the images of a folder; of one that masks share, what is no mask."""
        return [path for path in files if not (shared and self._is_mask(path, folder))]

    def masks_among(self, files: Iterable[Path], folder: Path, *, shared: bool) -> list[Path]:
        """Return the masks of a folder; of one that images share, what matches ``mask_pattern`` if there is one."""
        return [path for path in files if not shared or self.masks is None or self._is_mask(path, folder)]

    def case_of(self, path: Path, folder: Path) -> str:
        """Return the case of an image.

        Raises:
            DataError: If its name does not match ``image_pattern``.
        """
        name = self.format.name_of(path, folder)
        if self.images is not None:
            return _read(name, self.images, path)
        return name.removesuffix(NNUNET_CHANNEL) if self.strips_channel and not self.format.holds_labels else name

    def see_masks(self, files: Iterable[Path], folder: Path) -> None:
        """Take ``_0000`` for a part of a case's name where the masks have it too, as ``amos_0000``."""
        self.strips_channel = not any(self.mask_format.name_of(path, folder).endswith(NNUNET_CHANNEL) for path in files)

    def cases_of_masks(self, files: Sequence[Path], folder: Path, images: Mapping[str, Path]) -> dict[Path, str]:
        """Return the case of each file of masks, by ``mask_pattern``, else as their format tells it; of class files the first.

        Raises:
            DataError: If a name does not match, two files are for one case and class, or a file cannot be read.
        """
        if self.masks is None:
            return self.mask_format.image_names(files, folder, images)
        named = [(self.mask_format.name_of(path, folder), path) for path in files]
        if not self.masks.has_labels:
            return {path: _read(name, self.masks, path) for name, path in named}
        return {path: case for case, path in self.use(masks_of_images(named, self.masks)).items()}

    def use(self, of_case: Mapping[str, tuple[MaskFile, ...]]) -> dict[str, Path]:
        """Read the masks of each case from these files, one a class, or one that has no class; return the first file of each.

        Raises:
            DataError: If a case has several files that are for no class.
        """
        for case, parts in of_case.items():
            if len(parts) > 1 and not all(part.label for part in parts):
                raise DataError(
                    f"{parts[1].path}: is a second mask of {case!r}. A volume has one file of masks, or one a class."
                )
        self._parts = {parts[0].path: parts for parts in of_case.values() if parts[0].label}
        self._labels = tuple(sorted({part.label for parts in self._parts.values() for part in parts}))
        return {case: parts[0].path for case, parts in of_case.items()}

    def files_of(self, masks: Path) -> tuple[Path, ...]:
        """Return the files that a case's masks are read from."""
        return tuple(part.path for part in self._parts.get(masks, (MaskFile(masks),)))

    def check_labels(self, masks: Path, image: VolumeHeader) -> bool:
        """Compare the place of all masks of a case with its image's; tell whether there are any.

        Raises:
            DataError: If a file cannot be read, or its voxels are not the image's.
        """
        return all([self.mask_format.check_labels(path, image) for path in self.files_of(masks)])

    def label_names(self, masks: Path) -> dict[int, str]:
        """Return what the files call their values; classes of files are numbered 1, 2, ... by their names."""
        if masks in self._parts:
            return dict(enumerate(self._labels, start=1))
        return self.mask_format.read_label_names(masks)

    def read_labels(self, masks: Path, image: VolumeHeader) -> NDArray[np.int32]:
        """Read the masks of a case on the voxels of its image; classes that overlap are layers in a last axis.

        Raises:
            DataError: If a file cannot be read.
        """
        if masks not in self._parts:
            return self.mask_format.read_labels_on(masks, image)
        layers = [self._of_class(part, image) for part in self._parts[masks]]
        together = np.sum([layer > 0 for layer in layers], axis=0)
        return np.max(layers, axis=0) if together.max(initial=0) <= 1 else np.stack(layers, axis=-1)

    def _of_class(self, part: MaskFile, image: VolumeHeader) -> NDArray[np.int32]:
        number = self._labels.index(part.label) + 1
        return np.where(self.mask_format.read_labels_on(part.path, image) > 0, np.int32(number), np.int32(0))

    def _is_mask(self, path: Path, folder: Path) -> bool:
        return self.masks is not None and self.masks.read(self.mask_format.name_of(path, folder)) is not None


def _read(name: str, pattern: NamePattern, path: Path) -> str:
    parts = pattern.read(name)
    if parts is None:
        raise DataError(
            f"{path}: its name does not {pattern.rule}. Rename it, change {pattern.key}, or name it in data.source.exclude."
        )
    return parts[0]
