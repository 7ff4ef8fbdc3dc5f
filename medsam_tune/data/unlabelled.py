"""Images that nobody labelled: every file below a folder that any format of the package reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from medsam_tune.data.base import Purpose, SegmentationSource, VoxelSize
from medsam_tune.data.facts import thickest_axis
from medsam_tune.data.formats import FORMATS, Format, format_of
from medsam_tune.data.intensity import Intensity
from medsam_tune.data.scan import leave_out
from medsam_tune.data.slices import ALL_SLICES, AXIS_NUMBER, Axis, SliceRule
from medsam_tune.data.volumes import VolumeSource
from medsam_tune.errors import DataError, RecipeError, data_error
from medsam_tune.samples import Sample

_IMAGE_FOLDERS = ("images", "imagesTr", "imagesTs", "imgs")


class UnlabelledFolder(SegmentationSource):
    """Serve the images and the slices of the volumes below a folder, whatever their formats; masks are never read.

    Where the folder has ``images``, ``imagesTr``, ``imagesTs`` or ``imgs`` below it, as data sets have, only these are read.
    Each file is a case, and so is each DICOM series.

    Args:
        axis: Along which volumes are cut; ``auto``: where voxels are longest by half, else axial. A later training that cuts
            along another axis sees other images.
        intensity: How stored values become 0..255; by default 8 bit as stored, all others by the percentiles 0.5 and 99.5.
        slices: Which slices of a volume are validated on (and trained on, unless ``train_slices`` says otherwise).
        train_slices: Which are trained on.
        exclude: Paths below the folder that are left out, with or without ending, where ``*`` is any text.
    """

    def __init__(
        self,
        axis: Axis | Literal["auto"] = "auto",
        intensity: Intensity | None = None,
        slices: SliceRule = ALL_SLICES,
        train_slices: SliceRule | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        if axis != "auto" and axis not in AXIS_NUMBER:
            raise RecipeError(f"data.source.axis: expected auto or one of {list(AXIS_NUMBER)}, got {axis!r}.")
        self.axis, self.intensity, self.exclude = axis, intensity, exclude or []
        self.slices, self.train_slices = slices, train_slices or slices
        self._parts: list[VolumeSource] = []
        self._starts: list[int] = [0]

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Find the files and read their headers.

        Raises:
            DataError: If masks are required, nothing is found, names clash, or headers cannot be read; all faults are listed.
        """
        if require_masks:
            raise DataError(
                f"{root}: UnlabelledFolder reads no masks, so nothing can be segmented or scored with it. Name another "
                "data.source, or a task without masks."
            )
        if not root.is_dir():
            raise DataError(f"{root}: no such folder. Set data.root to the folder of the images.")
        faults: list[str] = []
        groups: dict[tuple[int, Axis], dict[str, Path]] = {}
        for name, (path, number) in self._files(root, faults).items():
            try:
                groups.setdefault((number, self._axis_of(path, FORMATS[number])), {})[name] = path
            except DataError as error:
                faults.append(str(error))
        self._show(groups)
        if faults:
            raise data_error(f"{root}: {len(faults)} faults in the data", faults)
        if not len(self):
            endings = ", ".join(ending for each in FORMATS for ending in each.endings)
            raise DataError(
                f"{root}: holds no image with one of the endings {endings}. Set data.root to the folder of the images."
            )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        part, inner = self._inner(index)
        return replace(part[inner], index=index)

    def case_ids(self) -> tuple[str, ...]:
        """Return the file of each image, its path below the folder without ending."""
        return tuple(name for part in self._parts for name in part.case_ids())

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each image or slice."""
        return tuple(name for part in self._parts for name in part.image_ids())

    def label_names(self) -> dict[int, str]:
        """Return none."""
        return {}

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        return {
            "source": type(self).__name__,
            "format": "any",
            "images": len(self),
            "cases": len(set(self.case_ids())),
            "axis": self._parts[0].axis if self._parts else "axial",
            "intensity": asdict(self.intensity) if self.intensity else None,
            "slices": asdict(self.slices),
            "train_slices": asdict(self.train_slices),
        }

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Keep the slices that ``train_slices`` or ``slices`` choose."""
        kept: set[int] = set()
        for start, part in zip(self._starts, self._parts, strict=False):
            kept |= {start + inner for inner in part.select(range(len(part)), purpose)}
        return [index for index in indices if index in kept]

    def patient_ids(self) -> tuple[str | None, ...]:
        """Return the patient that each file's header names."""
        return tuple(patient for part in self._parts for patient in part.patient_ids())

    def places(self) -> tuple[tuple[str, int], ...]:
        """Return the volume of each slice and its position."""
        return tuple(place for part in self._parts for place in part.places())

    def voxel_size(self, index: int) -> VoxelSize | None:
        """Return the size of the voxels as the file states it."""
        part, inner = self._inner(index)
        return part.voxel_size(inner)

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) from the file's header."""
        part, inner = self._inner(index)
        return part.size(inner)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the files of an image, of a DICOM series all."""
        part, inner = self._inner(index)
        return part.files(inner)

    def check_case(self, indices: Sequence[int]) -> None:
        """Read a file once, whatever the number of its slices."""
        places: dict[int, list[int]] = {}
        for index in indices:
            number = bisect_right(self._starts, index) - 1
            places.setdefault(number, []).append(index - self._starts[number])
        for number, inner in places.items():
            self._parts[number].check_case(inner)

    def _files(self, root: Path, faults: list[str]) -> dict[str, tuple[Path, int]]:
        """Return each file with the number of the format that reads it, by name."""
        folders = [root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()] or [root]
        found: dict[str, tuple[Path, int]] = {}
        for folder in folders:
            readers: dict[Path, list[Format]] = {}
            for each in FORMATS:
                for path in leave_out(each.find(folder), root, self.exclude).files:
                    readers.setdefault(path, []).append(each)
            for path, fitting in sorted(readers.items()):
                read = format_of(path, fitting) or fitting[0]
                name = read.name_of(path, folder if len(folders) == 1 else root)
                if name in found:
                    faults.append(f"{path}: has the name of {found[name][0]}, {name}. Rename one of them.")
                found.setdefault(name, (path, FORMATS.index(read)))
        return found

    def _axis_of(self, path: Path, form: Format) -> Axis:
        header = form.read_header(path)
        if self.axis != "auto":
            return self.axis
        return thickest_axis(header.voxel_mm) if header.is_volume else "axial"

    def _show(self, groups: dict[tuple[int, Axis], dict[str, Path]]) -> None:
        self._parts, self._starts = [], [0]
        for (number, axis), images in groups.items():
            part = VolumeSource(
                FORMATS[number], axis=axis, intensity=self.intensity, slices=self.slices, train_slices=self.train_slices
            )
            part.open_images(images)
            self._parts.append(part)
            self._starts.append(self._starts[-1] + len(part))

    def _inner(self, index: int) -> tuple[VolumeSource, int]:
        number = bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]
