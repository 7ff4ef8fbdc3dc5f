"""From what a folder is to the ``data`` section of a recipe that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medsam_tune.data.fingerprint import Fingerprint
from medsam_tune.data.formats import (
    ChannelFiles,
    DicomFormat,
    Format,
    NiftiChannels,
    NiftiFormat,
    NpzFormat,
    RasterFormat,
)
from medsam_tune.data.layouts.base import DataFile, Pair, Pairing
from medsam_tune.data.pair_table import write_table
from medsam_tune.data.patterns import left_out, source_places
from medsam_tune.data.prepare import CT_WINDOWS
from medsam_tune.data.targets import Target
from medsam_tune.files import write_json

Prompt = Literal["none", "box", "click"]

_AIR_HU = -900.0
# More pieces than that in a slice are objects one by one, to whoever draws boxes round them.
_SEVERAL = 3


@dataclass(frozen=True)
class DataSettings:
    """Hold what a recipe says of a folder.

    Attributes:
        class_path: Of the source.
        init_args: Its settings.
        keys: Further keys of the ``data`` section, such as ``target``.
        why: Key to the reason for it, one sentence each.
    """

    class_path: str
    init_args: dict[str, Any]
    keys: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)


def data_settings(
    found: Fingerprint,
    target: Target,
    *,
    side: int | None = None,
    leave_out_faulty: bool = True,
    beside: Path = Path("data"),
) -> DataSettings:
    """Return the source, its settings and the keys of the ``data`` section for a folder.

    Args:
        found: The folder's fingerprint.
        target: What one object is.
        side: The side of the network's input, for tiles; without it images are not cut.
        leave_out_faulty: Exclude what cannot be read; False leaves that to be refused.
        beside: The file, without ending, beside which ``write_needed`` writes what the source needs beside the folder.
    """
    class_path, settings = source_of(found, beside)
    why: dict[str, str] = {}
    if found.is_volume:
        axis = max(set(axes := [each.axis for each in found.facts if each.axis]), key=axes.count)
        settings["axis"] = axis
        why["axis"] = "slices are cut where voxels are longest" if axis != "axial" else "slices as radiologists look at them"
        settings |= _grey_values(found, class_path, why)
    settings |= _mask_values(found, class_path, target, why)
    if excluded := _left_out(found, faulty=leave_out_faulty):
        settings["exclude"] = excluded
        why["exclude"] = "what is neither image nor mask, has no partner or cannot be read: see the fingerprint"
    keys: dict[str, Any] = {"target": target}
    if target == "binary" and len(found.rule.labels) > 1:
        why["target"] = "the classes overlap, so they are one object together; data.source.labels: {a: [a]} keeps one of them"
    if found.rule.kind == "colours":
        keys["colours"] = found.rule.labels
    if found.rule.ignore_label is not None:
        keys["ignore_label"] = found.rule.ignore_label
    if side is not None and (size := found.tile_size(side)) is not None:
        keys["tiles"] = {"size": size}
        why["tiles"] = f"the middle object is {found.median_thickness(side):.1f} pixels thick where the whole image has {side}"
    if found.patient is not None and found.n_patients() >= _SEVERAL:
        keys["patient"] = found.patient if found.table is None else str(_patient_file(beside))
        if found.table is not None:
            why["patient"] = f"as column {found.table.column} of {found.table.file} says, names as checksums"
    return DataSettings(class_path, settings, keys, why)


def source_of(found: Fingerprint, beside: Path) -> tuple[str, dict[str, Any]]:
    """Return the class of the source that reads a layout, and where it finds images and masks."""
    pairing = found.pairing
    if pairing.annotations is not None:
        return "medsam_tune.data.CocoImages", _annotation_places(found, beside)
    if pairing.shard_cases is not None:
        return "medsam_tune.data.ImageShards", {}
    one_format = pairing.mask_format is None or type(pairing.mask_format) is type(pairing.format)
    images = isinstance(pairing.format, RasterFormat) and one_format
    places = source_places(pairing.images, pairing.masks, takes_suffix=images)
    if pairing.listed:
        places = {"pairs": str(_table_file(beside))}
    if images:
        return "medsam_tune.data.ImageFolder", places
    if type(pairing.format) is NiftiFormat and one_format:
        return "medsam_tune.data.NiftiVolumes", places
    if isinstance(pairing.format, NpzFormat):
        return "medsam_tune.data.MedsamNpz", {}
    formats = {"format": _class_of(pairing.format)}
    if pairing.format.holds_labels:
        return "medsam_tune.data.VolumeSource", {**formats, "images": "."}
    if pairing.mask_format is not None:
        formats["mask_format"] = _class_of(pairing.mask_format)
    elif isinstance(pairing.format, DicomFormat) and not pairing.listed:
        # Its files say themselves which of them are masks, and of which series.
        places = {"images": ".", "masks": "."}
    return "medsam_tune.data.VolumeSource", {**formats, **places}


def write_needed(found: Fingerprint, beside: Path) -> list[Path]:
    """Write what the source needs beside the folder: patients, a table of pairs, or annotations as COCO; return the files.

    Args:
        found: The folder's fingerprint.
        beside: As for ``data_settings``.

    Raises:
        DataError: If a file cannot be written.
    """
    pairing = found.pairing
    files = [] if found.table is None else [found.table.write(_patient_file(beside))]
    if pairing.written is not None:
        return [*files, write_json(_coco_file(beside), pairing.written)]
    if pairing.listed:
        return [*files, write_table(_table_file(beside), pairing.table(without=found.faulty), found.root)]
    return files


def _patient_file(beside: Path) -> Path:
    return beside.absolute().with_name(f"{beside.name}.patients.csv")


def _table_file(beside: Path) -> Path:
    return beside.absolute().with_name(f"{beside.name}.pairs.csv")


def _coco_file(beside: Path) -> Path:
    return beside.absolute().with_name(f"{beside.name}.coco.json")


def _annotation_places(found: Fingerprint, beside: Path) -> dict[str, Any]:
    content = found.pairing.annotations
    files = sorted({path.relative_to(found.root).as_posix() for path in content.files.values()}) if content else []
    read: list[str] = files if found.pairing.written is None else [str(_coco_file(beside))]
    places: dict[str, Any] = {"images": ".", "annotations": read[0] if len(read) == 1 else read}
    # A category without an object, such as the one above all others, is no class.
    if content is not None and len(content.used()) < len(content.categories):
        places["labels"] = {name: [name] for name in content.used()}
    return places


def _class_of(form: Format) -> dict[str, Any]:
    class_path = f"medsam_tune.data.formats.{type(form).__name__}"
    if isinstance(form, ChannelFiles):
        return {"class_path": class_path, "init_args": {"format": _class_of(form.format), "channels": form.channels}}
    if isinstance(form, NiftiChannels):
        return {"class_path": class_path, "init_args": {"channels": form.channels}}
    return {"class_path": class_path}


def target_of(found: Fingerprint, prompt: Prompt) -> Target:
    """Return what one object is: each class has a mask without a prompt, each label or instance a box or click with one."""
    if prompt == "none":
        apart = len(found.rule.labels) > 1 and not any(each.overlaps for each in found.facts)
        return "per_class" if apart else "binary"
    if found.rule.kind == "instances" or (not found.rule.labels and found.objects_an_image() >= _SEVERAL):
        return "per_instance"
    return "per_label"


def _mask_values(found: Fingerprint, class_path: str, target: Target, why: dict[str, str]) -> dict[str, Any]:
    rule = found.rule
    if class_path.endswith("CocoImages"):
        return {}
    if rule.kind == "classes":
        return {"labels": rule.labels}
    if rule.kind == "one object" and target == "per_class":
        values = sorted({value for each in found.facts for value in each.counts} - {rule.ignore_label})
        # Where no mask shows anything, the search for objects refuses the data as it does for every other recipe.
        return {"labels": {"object": values or [1]}}
    if not class_path.endswith(("ImageFolder", "ImageShards")):
        return {}
    if rule.kind == "lossy":
        why["mask_threshold"] = "masks were compressed with losses"
        return {"mask_threshold": 127}
    if rule.kind == "instances" and target != "per_instance":
        why["mask_threshold"] = "values number objects; here all of them together are one"
        return {"mask_threshold": 0}
    return {}


def _left_out(found: Fingerprint, *, faulty: bool) -> list[str]:
    """Return what the source must not read: faulty pairs, files without a partner, and others in the same folders."""
    pairing = found.pairing
    if pairing.listed:
        return []
    read = {pair.name: pair for pair in pairing.pairs}
    unread = [file.stem for name in found.faulty for file in _files_of(read[name], pairing)] if faulty else []
    lonely = [file.stem for file in (*pairing.without_mask, *pairing.without_image)]
    folders = tuple("" if place.folder == "." else f"{place.folder}/" for place in (pairing.images, pairing.masks))
    others = [file.stem for file in pairing.strangers if file.stem.startswith(folders)]
    taken = [file.stem for pair in pairing.pairs if pair.name not in found.faulty for file in _files_of(pair, pairing)]
    return left_out(dict.fromkeys([*unread, *lonely, *others]), taken)


def _files_of(pair: Pair, pairing: Pairing) -> tuple[DataFile, ...]:
    """Return the files that are a pair's alone."""
    return (pair.image, *(() if pairing.annotations is not None else pair.masks))


def _grey_values(found: Fingerprint, class_path: str, why: dict[str, str]) -> Mapping[str, Any]:
    """Return a window for CT, whose values mean the same in every volume, and nothing for other images."""
    sampled = np.array([value for each in found.facts for value in each.labelled_values])
    lowest = [each.image_range[0] for each in found.facts]
    if not (found.pairing.contrast or "").upper().startswith("CT") and not _is_ct(lowest, found):
        return {}
    inside = {name: float(np.mean((sampled >= low) & (sampled <= high))) for name, (low, high) in CT_WINDOWS.items()}
    # The first window that shows nearly all of what is labelled, else the one that shows most of it.
    best = next((name for name in CT_WINDOWS if inside[name] >= 0.95), max(inside, key=lambda name: inside[name]))
    why["window"] = f"CT: the {best} window holds {inside[best]:.0%} of the labelled voxels"
    window = list(CT_WINDOWS[best])
    return {"window": window} if class_path.endswith("NiftiVolumes") else {"intensity": {"rule": "window", "window": window}}


def _is_ct(lowest: list[float], found: Fingerprint) -> bool:
    signed = all(not each.dtype.startswith("uint") for each in found.facts)
    return signed and sorted(lowest)[len(lowest) // 2] <= _AIR_HU
