"""Folders of nnU-Net and the Medical Segmentation Decathlon: ``imagesTr``, ``labelsTr``, ``dataset.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing, pairing_of
from medsam_tune.data.layouts.channels import with_channels, with_fourth_axis
from medsam_tune.data.layouts.listed import joined_places
from medsam_tune.data.patterns import PathPattern
from medsam_tune.errors import DataError
from medsam_tune.files import read_json

DESCRIPTION = "dataset.json"
_CHANNEL = re.compile(r"_(\d{4})$")
_REMEDY = "Repair the file, or move it away so that the folders' names decide."


class NnUnetFolders(Layout):
    """Read ``dataset.json`` and pair ``imagesTr/CASE_0000`` with ``labelsTr/CASE``."""

    name = "nnU-Net (dataset.json)"

    def find(self, listing: Listing) -> Pairing | str:
        """Pair by case; of several channels three are shown as colours."""
        described = [path for path in listing.others if path.name == DESCRIPTION]
        if not described:
            return ""
        if len(described) > 1:
            names = ", ".join(path.parent.relative_to(listing.root).as_posix() for path in described[:5])
            raise DataError(f"{listing.root}: holds several data sets ({names}). Give the folder of one of them.")
        content = read_json(described[0], _REMEDY)
        if not isinstance(content, Mapping) or "labels" not in content:
            return f"{DESCRIPTION} has no labels"
        return _paired(listing, described[0].parent, content)


def _paired(listing: Listing, folder: Path, content: Mapping[str, object]) -> Pairing | str:
    above = folder.relative_to(listing.root).as_posix()
    prefix = "" if above == "." else f"{above}/"
    images = _below(listing.files, f"{prefix}imagesTr/")
    masks = _below(listing.files, f"{prefix}labelsTr/")
    if not images or not masks:
        return f"{DESCRIPTION} is there, but imagesTr or labelsTr holds no file of this kind"
    # A case may end in four digits itself, as amos_0004; its labels then have the same name.
    numbered = all(_CHANNEL.search(name) for name in images) and not masks.keys() <= images.keys()
    first = "_0000" if numbered else ""
    places = (f"{prefix}imagesTr/{{name}}{first}", f"{prefix}labelsTr/{{name}}")
    found = pairing_of(NnUnetFolders.name, listing, *map(PathPattern, places))
    if not found.pairs:
        return "no case of imagesTr has its labels in labelsTr"
    labels, ignored, notes = _labels(content["labels"])
    channels = _names(content.get("channel_names") or content.get("modality"))
    several = numbered and len(channels) > 1
    if several:
        names = {f"_{place:04d}": name for place, name in enumerate(channels)}
        found = with_channels(found, list(names), names)
    elif len(channels) > 1:
        found = with_fourth_axis(found, channels)
    else:
        found = _with_validation(listing, prefix, first, found)
    return replace(
        found,
        labels=labels or None,
        ignore_label=ignored,
        new_images=f"{prefix}imagesTs" if _below(listing.files, f"{prefix}imagesTs/") else None,
        contrast=channels[0] if len(channels) == 1 else None,
        notes=(*found.notes, *notes),
    )


def _with_validation(listing: Listing, prefix: str, first: str, found: Pairing) -> Pairing:
    """Return the cases of ``imagesVa`` and ``labelsVa`` too, where there are any, as AMOS has them."""
    kept, held = (f"{prefix}imagesVa/{{name}}{first}", f"{prefix}labelsVa/{{name}}"), (found.images.text, found.masks.text)
    more = pairing_of(found.layout, listing, *map(PathPattern, kept))
    places = {where: [(pair.image, pair.masks[0]) for pair in each.pairs] for where, each in ((held, found), (kept, more))}
    return joined_places(found.layout, listing, places, held) or found


def _below(files: tuple[DataFile, ...], folder: str) -> dict[str, DataFile]:
    return {file.stem.removeprefix(folder): file for file in files if file.stem.startswith(folder)}


def _names(channels: object) -> list[str]:
    return [str(name) for _, name in sorted(channels.items())] if isinstance(channels, Mapping) else []


def _labels(stated: object) -> tuple[dict[str, list[int]], int | None, list[str]]:
    """Return name to values, the ignored value, and what could not be taken; ``name: 1``, ``name: [1, 2]`` or ``"1": name``."""
    if not isinstance(stated, Mapping):
        return {}, None, [f"{DESCRIPTION}'s labels are no table, so they are named by their values"]
    labels: dict[str, list[int]] = {}
    ignored = None
    for key, value in stated.items():
        name, values = (str(value), [int(key)]) if str(key).isdigit() and isinstance(value, str) else (str(key), value)
        numbers = values if isinstance(values, list) else [values]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            return {}, None, [f"{DESCRIPTION}'s label {name!r} has the values {numbers}, so labels are named by their values"]
        if name == "ignore":
            ignored = numbers[0]
        elif 0 not in numbers:
            labels[_plain(name, labels)] = numbers
    return labels, ignored, []


def _plain(name: str, taken: Mapping[str, object]) -> str:
    """Return a name that the recipe can hold: no text that YAML reads as a number or a truth value."""
    plain = re.sub(r"[^\w\- ]+", "_", name.strip()) or "label"
    return plain if plain not in taken else f"{plain}_{len(taken) + 1}"
