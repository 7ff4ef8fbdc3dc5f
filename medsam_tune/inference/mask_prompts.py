"""The box of every object of masks that somebody has, as prompts: what the model would say if a user had drawn them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medsam_tune.data.formats import FORMATS, Format, VolumeHeader, format_of
from medsam_tune.data.labels import find_instances, find_objects, holds_ids
from medsam_tune.data.pairing import first_names
from medsam_tune.data.targets import apply_target
from medsam_tune.errors import DataError
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.masks import ObjectMasks
from medsam_tune.samples import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

Prompts = Callable[[NewFile], Sequence[DrawnObject]]
"""Returns what is drawn on a file; called when its turn comes."""


@dataclass(frozen=True)
class _MaskFile:
    path: Path
    format: Format

    def read_on(self, image: VolumeHeader) -> NDArray[Any]:
        """Read the masks in the order of an image's voxels."""
        header = None if image.is_volume else self.format.read_label_header(self.path)
        if header is None or header.is_volume:
            return self.format.read_labels_on(self.path, image)
        if header.stored_shape != image.stored_shape:
            # Few programs write a picture's spacing, so its size is all that can be compared.
            sizes = " x ".join(map(str, header.stored_shape[1:])), " x ".join(map(str, image.stored_shape[1:]))
            raise DataError(f"{self.path}: mask is {sizes[0]} (H x W), its image is {sizes[1]}. Give the mask of this image.")
        return self.format.read_labels(self.path)


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
    masks = _masks_by_name(files, place, formats)
    if len(files) == 1 and place.is_file():
        pairs = {files[0].path: next(iter(masks.values()))}
    else:
        named = {**{_without_affix(name): mask for name, mask in masks.items()}, **masks}
        found = {file.path: named.get(file.name, named.get(_without_affix(file.name))) for file in files}
        pairs = {path: mask for path, mask in found.items() if mask is not None}
    if not pairs:
        raise DataError(
            f"--every-object-of: {place} has masks named {first_names(sorted(masks))}, none of them as a file of the input: "
            f"{first_names([file.name for file in files])}. Give each mask the name of its image."
        )

    def drawn(file: NewFile) -> Sequence[DrawnObject]:
        if file.path not in pairs:
            raise DataError(f"{file.path}: has no mask of its name in {place}. Add it, or take the file out.")
        return _boxes_of(file, pairs[file.path], data)

    return drawn


def _masks_by_name(files: Sequence[NewFile], place: Path, formats: Sequence[Format]) -> dict[str, _MaskFile]:
    """Return the masks at a place by the names of their images."""
    if not place.exists():
        raise DataError(f"--every-object-of: {place}: no such file or folder. Give a mask, or a folder of masks.")
    folder = place.parent if place.is_file() else place
    images = {file.name: file.path for file in files}
    found: dict[str, _MaskFile] = {}
    for each in formats:
        paths = [place] if place.is_file() and format_of(place, formats) is each else []
        paths = paths if place.is_file() else each.find_labels(folder).files
        names = each.image_names(paths, folder, images) if paths else {}
        found |= {name: _MaskFile(path, each) for path, name in names.items() if format_of(path, formats) in (each, None)}
    if not found:
        endings = ", ".join(ending for each in formats for ending in each.endings)
        raise DataError(f"--every-object-of: {place} holds no file with one of the endings {endings}. Give masks.")
    return found


def _without_affix(name: str) -> str:
    folder, slash, own = name.rpartition("/")
    for affix in _AFFIXES:
        for joint in "_-":
            if own.lower().endswith(f"{joint}{affix}") or own.lower().startswith(f"{affix}{joint}"):
                cut = len(affix) + 1
                return folder + slash + (own[:-cut] if own.lower().endswith(f"{joint}{affix}") else own[cut:])
    return name


def _boxes_of(file: NewFile, mask: _MaskFile, data: TrainedData) -> list[DrawnObject]:
    """Return one box an object and slice, with the label that the object has in the mask."""
    slices = SlicedFile(file, data)
    stored = mask.read_on(slices.header)
    if data.mask_threshold is not None:
        stored = (stored > data.mask_threshold).astype(np.int32)
    ids = data.target == "per_instance" and holds_ids(stored)
    # Pieces of a slice are numbered anew in the next one.
    told_apart = data.target == "per_instance" and (ids or not slices.header.is_volume)
    drawn: list[DrawnObject] = []
    for position in range(len(slices)):
        masks, labels = _objects(slices.cut(stored, position), data, ids=ids, told_apart=told_apart)
        drawn += [
            DrawnObject(file.name, position, label, box=(float(left), float(top), right - 1.0, bottom - 1.0))
            for (top, left, bottom, right), label in zip(masks.boxes, labels, strict=True)
        ]
    return drawn


def _objects(values: NDArray[Any], data: TrainedData, *, ids: bool, told_apart: bool) -> tuple[ObjectMasks, list[str]]:
    """Return the objects of a slice as the training made them, none without a pixel, and their labels.

    Args:
        values: (H, W), or (H, W, L) in layers.
        data: What the model was trained on.
        ids: Whether each value is an instance.
        told_apart: Whether an instance is called by its number, not by its label.
    """
    groups = {name: list(group) for name, group in data.labels.items()} if all(data.labels.values()) and data.labels else None
    values = np.ascontiguousarray(values)
    if data.target == "per_instance" and values.ndim == 2:
        found = find_instances(values, groups, ids=ids)
    else:
        found = find_objects(values, groups)
    sample = Sample(torch.zeros(3, *values.shape[:2]), found.masks, found.labels, "", "", object_ids=found.object_ids)
    sample = apply_target(sample, "per_label" if data.target == "per_class" else data.target)
    sample = sample.rows(sample.masks.shown())
    if data.target == "binary":
        return sample.masks, [""] * len(sample.masks)
    if told_apart and sample.object_ids is not None:
        return sample.masks, [str(number) for number in sample.object_ids.tolist()]
    names = list(groups or ())
    return sample.masks, [names[number - 1] if names else str(number) for number in sample.labels.tolist()]
