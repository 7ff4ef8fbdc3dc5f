"""Which case a volume and its masks belong to, told from their names: the path, or what stands in the brackets of a pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medsam_tune.data.formats import Format
from medsam_tune.data.mask_files import NamePattern
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
        self.masks = None if mask_pattern is None else NamePattern("data.source.mask_pattern", mask_pattern, named=())
        self.images = None if image_pattern is None else NamePattern("data.source.image_pattern", image_pattern, named=())

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
        return name if self.format.holds_labels else name.removesuffix(NNUNET_CHANNEL)

    def cases_of_masks(self, files: Sequence[Path], folder: Path, images: Mapping[str, Path]) -> dict[Path, str]:
        """Return the case of each file of masks: by ``mask_pattern``, else as their format tells it.

        Raises:
            DataError: If a name does not match, or a file cannot be read.
        """
        if self.masks is None:
            return self.mask_format.image_names(files, folder, images)
        return {path: _read(self.mask_format.name_of(path, folder), self.masks, path) for path in files}

    def _is_mask(self, path: Path, folder: Path) -> bool:
        return self.masks is not None and self.masks.read(self.mask_format.name_of(path, folder)) is not None


def _read(name: str, pattern: NamePattern, path: Path) -> str:
    parts = pattern.read(name)
    if parts is None:
        raise DataError(
            f"{path}: its name does not {pattern.rule}. Rename it, change {pattern.key}, or name it in data.source.exclude."
        )
    return parts[0]
