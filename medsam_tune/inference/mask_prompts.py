"""The box of every object of masks that somebody has, as prompts: what the model would say if a user had drawn them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes  # type: ignore[import-untyped]

from medsam_tune.data.formats import FORMATS, Format, VolumeHeader, check_same_grid, format_of
from medsam_tune.data.labels import find_objects
from medsam_tune.data.pairing import first_names
from medsam_tune.data.scan import scan_folder
from medsam_tune.data.slices import take_slice
from medsam_tune.data.targets import apply_target
from medsam_tune.errors import DataError
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.types import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

Prompts = Callable[[NewFile], Sequence[DrawnObject]]
"""Returns what is drawn on a file; called when its turn comes."""

_AFFIXES = ("mask", "masks", "seg", "segs", "segmentation", "label", "labels", "gt")


def prompts_of_masks(files: Sequence[NewFile], place: Path, data: TrainedData, formats: Sequence[Format] = FORMATS) -> Prompts:
    """Return what asks with the box of every object of the masks at a place.

    What one object is, the training says: its target, its labels, its threshold; a released network is asked about every value.

    Args:
        files: The files that are asked about.
        place: A mask for the one file, or a folder of masks of the same names; ``_mask``, ``_seg``, ``_label`` and the like at
            the beginning or the end of a mask's name do not count.
        data: What the model was trained on.
        formats: Who may read a mask.

    Raises:
        DataError: If nothing is there, or no mask belongs to any of the files.
    """
    masks = _masks_by_name(place, formats)
    if len(files) == 1 and place.is_file():
        pairs = {files[0].path: place}
    else:
        pairs = {file.path: mask for file in files if (mask := _mask_of(file, masks)) is not None}
    if not pairs:
        raise DataError(
            f"--every-object-of: {place} has masks named {first_names(sorted(masks))}, none of them as a file of the input: "
            f"{first_names([file.name for file in files])}. Give each mask the name of its image."
        )

    def drawn(file: NewFile) -> Sequence[DrawnObject]:
        if file.path not in pairs:
            raise DataError(f"{file.path}: has no mask of its name in {place}. Add it, or take the file out.")
        return _boxes_of(file, pairs[file.path], data, formats)

    return drawn


def _masks_by_name(place: Path, formats: Sequence[Format]) -> dict[str, Path]:
    if not place.exists():
        raise DataError(f"--every-object-of: {place}: no such file or folder. Give a mask, or a folder of masks.")
    folder = place.parent if place.is_file() else place
    endings = tuple(ending for each in formats for ending in each.endings)
    paths = [place] if place.is_file() else scan_folder(folder, endings).files
    found: dict[str, Path] = {}
    for path in paths:
        if (read := format_of(path, formats)) is None:
            continue
        found.setdefault(_without_affix(read.name_of(path, folder)), path)
        found[read.name_of(path, folder)] = path
    if not found:
        raise DataError(f"--every-object-of: {place} holds no file with one of the endings {', '.join(endings)}. Give masks.")
    return found


def _mask_of(file: NewFile, masks: Mapping[str, Path]) -> Path | None:
    return masks.get(file.name) or masks.get(_without_affix(file.name))


def _without_affix(name: str) -> str:
    folder, slash, own = name.rpartition("/")
    for affix in _AFFIXES:
        for joint in "_-":
            if own.lower().endswith(f"{joint}{affix}") or own.lower().startswith(f"{affix}{joint}"):
                cut = len(affix) + 1
                return folder + slash + (own[:-cut] if own.lower().endswith(f"{joint}{affix}") else own[cut:])
    return name


def _boxes_of(file: NewFile, mask: Path, data: TrainedData, formats: Sequence[Format]) -> list[DrawnObject]:
    """Return one box an object and slice, with the label that the object has in the mask."""
    read = format_of(mask, formats)
    header = None if read is None else read.read_label_header(mask)
    if read is None or header is None:
        raise DataError(f"{mask}: holds no masks. Give a file of masks.")
    slices = SlicedFile(file, data)
    _check_fits(slices.header, header)
    volume = header.to_ras(read.read_labels(mask))
    axis = data.axis if header.is_volume else "axial"
    drawn: list[DrawnObject] = []
    for position in range(len(slices)):
        masks, labels = _objects(take_slice(volume, axis, position), data)
        boxes = masks_to_boxes(masks).tolist() if len(masks) else []
        drawn += [
            DrawnObject(file.name, position, label, box=(box[0], box[1], box[2], box[3]))
            for box, label in zip(boxes, labels, strict=True)
        ]
    return drawn


def _check_fits(image: VolumeHeader, mask: VolumeHeader) -> None:
    if image.is_volume and mask.is_volume:
        check_same_grid(image, mask)
    elif image.stored_shape != mask.stored_shape:
        # A picture's spacing is written by few programs.
        raise DataError(
            f"{mask.path}: mask has the size {mask.stored_shape}, its image {image.stored_shape}. Give the mask of this image."
        )


def _objects(values: NDArray[Any], data: TrainedData) -> tuple[Tensor, list[str]]:
    """Return the objects (N, H, W) of a slice as the training made them, those of no pixel left out, and their labels."""
    if data.mask_threshold is not None:
        values = (values > data.mask_threshold).astype(np.int32)
    found = find_objects(np.ascontiguousarray(values), {name: list(group) for name, group in data.labels.items()} or None)
    sample = Sample(torch.zeros(3, *values.shape), found.masks, found.labels, image_id="", case_id="")
    target = "per_label" if data.target == "per_class" else data.target
    sample = apply_target(sample, target)
    shown = sample.masks.flatten(1).any(dim=1)
    masks, numbers = sample.masks[shown], sample.labels[shown].tolist()
    if target == "binary":
        return masks, [""] * len(masks)
    names = list(data.labels)
    return masks, [names[number - 1] if names else str(number) for number in numbers]
