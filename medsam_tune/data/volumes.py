"""Volumes of any format as 2-D slices along one axis of the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.base import Purpose, SegmentationSource, VoxelSize
from medsam_tune.data.formats import ChannelFiles, Format, NiftiChannels, VolumeHeader
from medsam_tune.data.intensity import AS_STORED, Intensity, apply_intensity_8bit, default_intensity
from medsam_tune.data.label_names import check_names, values_in_file
from medsam_tune.data.labels import (
    ONE_LABEL,
    check_ignore_label,
    check_labels,
    holds_ids,
    inverted,
    name_labels,
    name_values,
    no_objects,
    refuse_labels,
)
from medsam_tune.data.pair_table import named_rows, read_table
from medsam_tune.data.pairing import by_name, pair_files, refuse_other_pairs
from medsam_tune.data.recent import RecentArrays
from medsam_tune.data.scan import Scan, existing_folder, leave_out, outside
from medsam_tune.data.slices import ALL_SLICES, AXIS_NUMBER, Axis, SliceRule, put_slice, slice_spacing, take_slice
from medsam_tune.data.volume_names import NNUNET_CHANNEL, VolumeNames
from medsam_tune.errors import DataError, RecipeError, data_error, usable_part
from medsam_tune.samples import Sample


@dataclass(frozen=True)
class VolumeCase:
    """Hold one case: its image, the file of its masks where there is one, and what that file calls its values."""

    case_id: str
    image: VolumeHeader
    masks: Path | None
    names: Mapping[int, str] = field(default_factory=dict)


class VolumeSource(SegmentationSource):
    """Show the volumes of a folder as slices; one file is one case, a single image a volume of one slice.

    Volumes are turned to RAS order, grey values become 0..255 (rounded to 8 bits) by one rule for the whole volume, and the
    spacing of the slice's rows and columns is kept. A name is the path below the folder of the images, without ending. An image
    ``name_0000``, as nnU-Net stores it, pairs with the mask ``name``.

    Args:
        format: Reads the files and writes masks.
        images: Folder of the volumes, below the root.
        masks: Folder of the label maps; unused where the format keeps them in the image's file.
        axis: The patient axis along which slices are cut.
        labels: Name to label values, or to the names that the files give them; all others are background. Without it every
            value above 0 is a label of its own.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by the percentiles 0.5 and 99.5 of the
            whole volume.
        slices: Which slices are evaluated (and trained on, unless ``train_slices`` says otherwise).
        train_slices: Which slices are trained on.
        predict_slices: Which slices of new volumes are predicted.
        mask_format: Reads the masks, where they are files of another format than the images; their voxels must match.
        mask_pattern: Regular expression searched in a mask's name; its brackets, joined by ``/``, are the name of its image,
            ``(?P<label>...)`` is the class that the file is for. Where ``masks`` is the folder of the images too, what matches
            is a mask.
        image_pattern: The same for the names of images, without which a name is the path of the file.
        exclude: Files that are left out: paths below the root, with or without ending, where ``*`` is any text.
        pairs: A table of images and masks (``data.pair_table``), below the root or absolute, in place of folders and patterns.
    """

    def __init__(
        self,
        format: Format,
        images: str = "images",
        masks: str = "labels",
        axis: Axis = "axial",
        labels: dict[str, list[int]] | dict[str, list[int | str]] | None = None,
        intensity: Intensity | None = None,
        slices: SliceRule = ALL_SLICES,
        train_slices: SliceRule | None = None,
        predict_slices: SliceRule = ALL_SLICES,
        mask_format: Format | None = None,
        mask_pattern: str | None = None,
        image_pattern: str | None = None,
        exclude: list[str] | None = None,
        pairs: str | None = None,
    ) -> None:
        check_labels(labels)
        if axis not in AXIS_NUMBER:
            raise RecipeError(f"data.source.axis: expected one of {list(AXIS_NUMBER)}, got {axis!r}.")
        self.format, self.images, self.masks, self.axis = format, images, masks, axis
        self.mask_format = mask_format or format
        self.labels, self.intensity = labels, intensity
        self.names = VolumeNames(format, self.mask_format, mask_pattern, image_pattern)
        self.exclude, self.pairs = exclude or [], pairs
        self.slices, self.train_slices, self.predict_slices = slices, train_slices or slices, predict_slices
        self._cases: dict[str, VolumeCase] = {}
        self._items: list[tuple[str, int]] = []
        self._numbered: dict[str, bool] = {}
        self._volumes: RecentArrays[str] = RecentArrays(max_items=4, max_bytes=2 * 1024**3)
        self._cuts: RecentArrays[tuple[str, int]] = RecentArrays(max_items=100_000, max_bytes=256 * 1024**2)

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Scan a folder, pair volumes by name and compare the headers of each image and its mask; no voxel is read.

        Raises:
            DataError: If a folder is missing, names do not pair, or headers cannot be read or do not fit; all faulty files are
                listed.
        """
        check_ignore_label(self.ignore_label, self.labels)
        faults: list[str] = []
        cases: dict[str, VolumeCase] = {}
        for name, image, mask in self._pairs(root, faults, require_masks=require_masks):
            try:
                cases[name] = self._open_case(name, image, mask, require_masks=require_masks)
            except DataError as error:
                faults.append(str(error))
        # What is sound is shown all the same, so that its content can be looked at and all faults be listed together.
        self._show(cases)
        if faults:
            raise data_error(f"{root}: {len(faults)} faults in the data", faults)
        if require_masks:
            check_names(self.labels, {name: case.names for name, case in cases.items()}, self.ignore_label)

    def invert_masks(self) -> None:
        """Take what is 0 as the object.

        Raises:
            RecipeError: If the recipe names labels.
        """
        refuse_labels(self.labels is not None)
        self.inverted = True

    def open_images(self, images: Mapping[str, Path]) -> None:
        """Show image files that need not lie in one folder, by name and without masks, in place of ``open``.

        Raises:
            DataError: If a header cannot be read.
        """
        self._show({name: VolumeCase(name, self.format.read_header(path), None) for name, path in images.items()})

    def _show(self, cases: dict[str, VolumeCase]) -> None:
        self._cases = cases
        self._items = [(name, position) for name, case in cases.items() for position in range(self._length(case))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        case_id, position = self._items[index]
        case = self._cases[case_id]
        grey, *values = self._cuts.get((case_id, position), lambda: self._cut(case, position))
        shown = no_objects(grey.shape[:2])
        if values:
            labels = None if self.labels is None else values_in_file(self.labels, case.names)
            shown = self.objects_of(values[0], labels, ids=self._numbered.get(case_id))
        return Sample(
            _channels_first(grey),
            shown.masks,
            shown.labels,
            image_id=self._image_id(case, position),
            case_id=case_id,
            spacing_mm=slice_spacing(case.image.voxel_mm, self._axis(case)),
            index=index,
            volume_id=case_id,
            slice_index=position,
            ignored=shown.ignored,
            object_ids=shown.object_ids,
        )

    def case_ids(self) -> tuple[str, ...]:
        """Return the volume of each slice."""
        return tuple(case_id for case_id, _ in self._items)

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each slice: volume, axis and position in RAS order; a single image has its file's name."""
        return tuple(self._image_id(self._cases[case_id], position) for case_id, position in self._items)

    def named_labels(self) -> dict[int, str]:
        """Return the names that the recipe gives its labels."""
        return {} if self.labels is None else name_labels(self.labels)

    def label_values(self) -> dict[int, list[int]]:
        """Return the mask values of each label that the recipe names."""
        groups = {name: [value for value in group if isinstance(value, int)] for name, group in (self.labels or {}).items()}
        return dict(enumerate(groups.values(), start=1))

    def label_names(self) -> dict[int, str]:
        """Return the recipe's names, or the files'; without either read every mask once and call values ``label <value>``."""
        if self.labels is not None:
            return name_labels(self.labels)
        if self.target == "per_instance" or self.inverted:
            return dict(ONE_LABEL)
        cases = [case for case in self._cases.values() if case.masks is not None]
        named = {value: name for case in cases for value, name in sorted(case.names.items()) if value != self.ignore_label}
        if cases and all(case.names for case in cases):
            return named
        read = [self.names.read_labels(case.masks, case.image) for case in cases if case.masks is not None]
        return {**name_values(read, self.ignore_label), **named}

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        return {
            "source": type(self).__name__,
            "format": type(self.format).__name__,
            **({"channels": self.format.describe()} if isinstance(self.format, (ChannelFiles, NiftiChannels)) else {}),
            "images": len(self._items),
            "cases": len(self._cases),
            "axis": self.axis,
            "intensity": asdict(self.intensity)
            if self.intensity
            else "8 bit as stored, others percentile 0.5 to 99.5 per volume",
            "labels": self.labels or "each value above 0",
            "slices": asdict(self.slices),
            "train_slices": asdict(self.train_slices),
            "predict_slices": asdict(self.predict_slices),
        }

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Keep the slices that ``train_slices``, ``slices`` (to evaluate) or ``predict_slices`` choose."""
        rule = {"train": self.train_slices, "evaluate": self.slices, "predict": self.predict_slices}[purpose]
        chosen = {name: set(rule.positions(self._length(case))) for name, case in self._cases.items()}
        return [index for index in indices if self._items[index][1] in chosen[self._items[index][0]]]

    def patient_ids(self) -> tuple[str | None, ...]:
        """Return the patient that each slice's header names."""
        return tuple(self._cases[case_id].image.patient_id for case_id, _ in self._items)

    def places(self) -> tuple[tuple[str, int], ...]:
        """Return the volume of each slice and its position along the axis, in RAS order."""
        return tuple(self._items)

    def voxel_size(self, index: int) -> VoxelSize | None:
        """Return the size of the voxels as the image's header states it."""
        case = self._cases[self._items[index][0]]
        if not case.image.states_spacing:
            return None
        axis, sizes = self._axis(case), case.image.voxel_mm
        return VoxelSize(*slice_spacing(sizes, axis), sizes[AXIS_NUMBER[axis]] if case.image.is_volume else None)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the slice's image file and mask file."""
        case = self._cases[self._items[index][0]]
        masks = () if case.masks is None or case.masks in case.image.files else self.names.files_of(case.masks)
        # A series of masks, or a mask a slice, is a folder.
        single = (file for path in masks for file in (sorted(path.iterdir()) if path.is_dir() else (path,)))
        return (*case.image.files, *single)

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of a slice from its volume's header."""
        case = self._cases[self._items[index][0]]
        across, up = (n for axis, n in enumerate(case.image.shape) if axis != AXIS_NUMBER[self._axis(case)])
        return up, across

    def check_case(self, indices: Sequence[int]) -> None:
        """Read a volume and its masks once, whatever the number of slices."""
        for case_id in sorted({self._items[index][0] for index in indices}):
            self._read(self._cases[case_id])

    def position(self, index: int) -> tuple[str, int]:
        """Return the case of an item and its position along the axis, in RAS order."""
        return self._items[index]

    def header(self, case_id: str) -> VolumeHeader:
        """Return the header of a case's image: its path, its affine, its shape."""
        return self._cases[case_id].image

    def assemble(self, case_id: str, slices: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
        """Put slices (H, W) of whole numbers back into a volume in the file's own order, so that the image's affine fits.

        Args:
            case_id: The volume.
            slices: Position along the axis to values; other positions stay 0.
        """
        case = self._cases[case_id]
        kind = np.result_type(np.uint8, *(values.dtype for values in slices.values()))
        volume = np.zeros(case.image.shape, kind)
        for position, values in slices.items():
            put_slice(volume, self._axis(case), position, np.asarray(values))
        return case.image.to_stored(volume)

    def _pairs(self, root: Path, faults: list[str], *, require_masks: bool) -> list[tuple[str, Path, Path | None]]:
        if self.pairs is not None and require_masks:
            return self._listed(root, Path(self.pairs), faults)
        folder, mask_folder = existing_folder(root, self.images, "images"), root / self.masks
        images = leave_out(usable_part(lambda: self.format.find(folder), faults), root, self.exclude)
        together = folder.resolve() == mask_folder.resolve()
        shared = together and self.mask_format is self.format
        found = Scan([], [])
        if not self.format.holds_labels and (require_masks or mask_folder.is_dir()):
            mask_folder = existing_folder(root, self.masks, "masks")
            found = leave_out(usable_part(lambda: self.mask_format.find_labels(mask_folder), faults), root, self.exclude)
            self.names.see_masks(() if together else found.files, mask_folder)
        among = self.names.images_among(outside(images.files, folder, mask_folder), folder, shared=shared)
        named = usable_part(lambda: by_name(among, lambda path: self.names.case_of(path, folder)), faults)
        if self.format.holds_labels:
            if not named:
                raise DataError(f"{folder}: holds no {self.format.endings[0]} file. Set data.root to the folder of the files.")
            return [(name, path, path) for name, path in sorted(named.items())]
        files = self.names.masks_among(outside(found.files, mask_folder, folder), mask_folder, shared=together)
        cases = self.names.cases_of_masks(files, mask_folder, named)
        masks = usable_part(lambda: by_name(cases, cases.__getitem__), faults)
        # Where one folder holds the other, notes of all kinds lie beside the files.
        apart = not (folder.is_relative_to(mask_folder) or mask_folder.is_relative_to(folder))
        others, endings = (images.others if apart else [], found.others), self.format.endings
        usable_part(lambda: refuse_other_pairs(*others, _bare_name, endings=endings), faults)
        hint = self.names.hint
        return usable_part(lambda: pair_files(named, masks, root=root, require_masks=require_masks, hint=hint), faults)

    def _listed(self, root: Path, table: Path, faults: list[str]) -> list[tuple[str, Path, Path | None]]:
        rows = read_table(table, root)
        where = f"data.source.pairs: {table}"
        images, masks = usable_part(lambda: named_rows(rows, lambda path: self.format.name_of(path, root), where), faults)
        first = self.names.use(masks)
        return [(name, images[name], first[name]) for name in sorted(images)]

    def _open_case(self, name: str, image: Path, mask: Path | None, *, require_masks: bool) -> VolumeCase:
        header = self.format.read_header(image)
        if mask is None or not self.names.check_labels(mask, header):
            if require_masks:
                raise DataError(f"{image}: holds no masks. Add them or remove the file.")
            return VolumeCase(name, header, None)
        return VolumeCase(name, header, mask, self.names.label_names(mask))

    def _cut(self, case: VolumeCase, position: int) -> tuple[NDArray[Any], ...]:
        volumes = self._volumes.get(case.case_id, lambda: self._read(case))
        return tuple(take_slice(volume, self._axis(case), position) for volume in volumes)

    def _read(self, case: VolumeCase) -> tuple[NDArray[Any], ...]:
        path = case.image.path
        values = self.format.read_image(path)
        default = AS_STORED if self.format.holds_grey_levels else default_intensity(values)
        levels = apply_intensity_8bit(values, self.intensity or default, path)
        if case.masks is None:
            return (case.image.to_ras(levels),)
        masks = self.names.read_labels(case.masks, case.image)
        masks = inverted(masks, self.ignore_label) if self.inverted else masks
        if self.target == "per_instance":
            # Of the whole volume: a slice that one instance crosses twice shows one value too.
            self._numbered[case.case_id] = holds_ids(masks, ignore_label=self.ignore_label)
        return case.image.to_ras(levels), case.image.to_ras(masks)

    def _axis(self, case: VolumeCase) -> Axis:
        return self.axis if case.image.is_volume else "axial"

    def _length(self, case: VolumeCase) -> int:
        return case.image.shape[AXIS_NUMBER[self._axis(case)]]

    def _image_id(self, case: VolumeCase, position: int) -> str:
        return f"{case.case_id}_{self.axis}{position:03d}" if case.image.is_volume else case.case_id


def _channels_first(grey: NDArray[np.uint8]) -> Tensor:
    """Turn grey levels (H, W) or (H, W, 3) into float32 (3, H, W)."""
    levels = torch.from_numpy(grey).float()
    return levels.expand(3, -1, -1).contiguous() if levels.ndim == 2 else levels.permute(2, 0, 1).contiguous()


def _bare_name(path: Path) -> str:
    return path.name.split(".")[0].removesuffix(NNUNET_CHANNEL)
