"""Channels of a case, told from its files: which there are, and which three an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from medsam_tune.data.formats import ChannelFiles, NiftiChannels, NiftiFormat
from medsam_tune.data.formats.channels import SHOWN
from medsam_tune.data.formats.nifti import fourth_axis
from medsam_tune.data.layouts.base import Pairing
from medsam_tune.data.layouts.words import CHANNEL_WORDS, channel_rank, channel_span
from medsam_tune.data.patterns import PathPattern

_COLOURS = ("red", "green", "blue")
# More positions of a fourth axis are moments of a film.
_MOST_INSIDE = 8


def channel_endings(patterns: Sequence[str]) -> list[str]:
    """Return the ends of image patterns that differ by the channel alone; empty where they differ by something else.

    Examples:
        >>> channel_endings(["{name}_flair", "{name}_t1ce"]), channel_endings(["{name}/t1", "{name}/t2"])
        (['_flair', '_t1ce'], ['/t1', '/t2'])
        >>> channel_endings(["{name}_flair", "other/{name}"])
        []
    """
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*patterns, strict=False))
    shared = "".join(letters[0] for letters in same)
    start = max((shared.rfind(sign) for sign in "_-./ "), default=-1)
    while start > 0 and shared[start - 1] in "_-. ":
        start -= 1
    endings = [pattern[start:] for pattern in patterns]
    if start <= 0 or len(endings) < 2 or "}" in "".join(endings):
        return []
    bare = [ending.strip("_-./ ") for ending in endings]
    known = [channel_span(f"x_{name}") is not None or name.lower() in CHANNEL_WORDS for name in bare]
    return endings if all(known) else []


def with_channels(found: Pairing, endings: Sequence[str], names: Mapping[str, str]) -> Pairing:
    """Return a pairing whose images show up to three channels; what they are is a note.

    Args:
        found: Its images are the files of one of the channels.
        endings: The end of each channel's file names.
        names: What channels are called, by their ends.
    """
    shown = _chosen({ending: names.get(ending, ending.strip("_-./ ")) for ending in endings})
    ends = tuple(endings)
    base = found.images.text.removesuffix(next(ending for ending in endings if found.images.text.endswith(ending)))
    first = {file.stem: file for file in (*(pair.image for pair in found.pairs), *found.strangers)}
    pairs = []
    for pair in found.pairs:
        stem = pair.image.stem
        own = next(ending for ending in ends if f"/{stem}".endswith(ending))
        of_first = f"/{stem}".removesuffix(own).removeprefix("/") + next(iter(shown))
        pairs.append(replace(pair, image=first.get(of_first.removeprefix("/"), pair.image)))
    return replace(
        found,
        format=ChannelFiles(found.format, list(shown)),
        mask_format=found.mask_format or found.format,
        images=PathPattern(base),
        pairs=tuple(pairs),
        contrast=None,
        strangers=tuple(file for file in found.strangers if not f"/{file.stem}".endswith(ends)),
        notes=(*found.notes, _told(shown, [names.get(ending, ending) for ending in endings], list(shown))),
    )


def with_fourth_axis(found: Pairing, names: Sequence[str] = ()) -> Pairing:
    """Return a pairing that reads up to three channels of NIfTI volumes of four axes; any other as it is.

    Args:
        found: Of any layout.
        names: What channels are called, in their order, where the folder says so.
    """
    if type(found.format) is not NiftiFormat or not found.pairs:
        return found
    count = fourth_axis(found.pairs[0].image.path)
    if not 1 < count <= _MOST_INSIDE:
        return found
    shown = _chosen({str(place): names[place] if place < len(names) else str(place) for place in range(count)})
    return replace(
        found,
        format=NiftiChannels([int(place) for place in shown]),
        mask_format=NiftiFormat(),
        contrast=None,
        notes=(*found.notes, _told(shown, list(names) or list(map(str, range(count))), [int(place) for place in shown])),
    )


def _chosen(names: Mapping[str, str]) -> dict[str, str]:
    """Return up to three channels: those of MR that show most, then in the order of the folder."""
    order = list(names)
    ranked = sorted(order, key=lambda key: (channel_rank(names[key]), order.index(key)))[:SHOWN]
    return {key: names[key] for key in ranked}


def _told(shown: Mapping[str, str], names: Sequence[str], keys: Sequence[object]) -> str:
    colours = ", ".join(f"{name} is {colour}" for name, colour in zip(shown.values(), _COLOURS, strict=False))
    return (
        f"{len(names)} channels ({', '.join(names)}), of which an image shows up to three: {colours}; others, or a single one, "
        f"by data.source.format.channels: [{', '.join(map(str, keys))}]"
    )
