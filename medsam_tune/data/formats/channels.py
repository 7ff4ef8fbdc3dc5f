"""Several channels of one case, such as the contrasts of MR, as the red, green and blue of one image.

Each channel becomes grey levels by its own percentiles: contrasts have no scale in common. What SAM reads are three channels,
so up to three can be shown; of two, the second is blue too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, check_same_grid, reorder
from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.data.intensity import PERCENTILE, Intensity, apply_intensity_8bit, check_percentiles
from medsam_tune.data.scan import Scan
from medsam_tune.errors import DataError, RecipeError

SHOWN = 3
"""How many channels an image has room for."""


@dataclass(frozen=True)
class ChannelHeader(VolumeHeader):
    """Hold the first channel's header.

    Attributes:
        parts: The headers of all channels, the first one's too.
    """

    parts: tuple[VolumeHeader, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files of all channels."""
        return tuple(file for part in self.parts for file in part.files)


class ChannelFiles(Format):
    """Read one file a channel, told by the ends of their names, as one image.

    A case is named without the ending: ``p1_flair`` and ``p1_t2`` are ``p1``.

    Args:
        format: Reads each file.
        channels: One to three endings of the files' names, without the format's own, in the order red, green, blue:
            ``[_0000, _0001, _0003]`` of nnU-Net, ``[_flair, _t1ce, _t2]`` of BraTS, ``[/flair, /t2]`` for files of a folder.
        percentiles: Percentiles of each channel that become 0 and 255.
    """

    holds_grey_levels = True

    def __init__(self, format: Format, channels: list[str], percentiles: tuple[float, float] = (0.5, 99.5)) -> None:
        _check_channels(channels, "endings of file names, such as [_flair, _t2]")
        check_percentiles(percentiles, "data.source.format.percentiles")
        self.format, self.channels, self.percentiles = format, list(channels), percentiles
        self.endings = format.endings

    def read_header(self, path: Path) -> VolumeHeader:
        """Read the headers of all channels.

        Raises:
            DataError: If the file is not of the first channel, another one is missing, or they do not lie on one grid.
        """
        first, *others = (self.format.read_header(file) for file in self._files(path))
        for other in others:
            check_same_grid(first, other)
        facts = (first.path, first.stored_shape, first.affine, first.is_volume, first.patient_id, first.states_spacing)
        return ChannelHeader(*facts, parts=(first, *others))

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read grey levels 0..255 of each channel, stacked in a last axis of 3; of a single channel without it."""
        rule = Intensity("percentile", self.percentiles)
        first = self.format.read_header(path)
        levels = []
        for file in self._files(path):
            values = self.format.read_image(file)
            if values.ndim > 3:
                raise DataError(f"{file}: is in colours, a channel is grey. Read it alone: remove data.source.format.channels.")
            levels.append(reorder(apply_intensity_8bit(values, rule, file), self.format.read_header(file), first))
        return _as_colours(levels)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read masks as the format of the files does."""
        return self.format.read_labels(path)

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write masks as the format of the files does."""
        return self.format.write_labels(stem, labels, header, names)

    def written_as(self, stem: Path) -> Path:
        """Return the file that ``write_labels`` writes."""
        return self.format.written_as(stem)

    def find(self, folder: Path) -> Scan:
        """Find the files of the first channel; those of the others belong to them."""
        found = self.format.find(folder)
        firsts = [path for path in found.files if self._stem(path, folder).endswith(self.channels[0])]
        parts = {part for path in firsts for part in self._candidates(path)}
        return Scan(firsts, [*found.others, *(path for path in found.files if path not in parts)])

    def name_of(self, path: Path, folder: Path) -> str:
        """Return the path below ``folder`` without the channel."""
        name = self.format.name_of(path, folder)
        ending = self.channels[0]
        if f"/{name}" == ending:
            return folder.name
        return name.removesuffix(ending)

    def describe(self) -> dict[str, Any]:
        """Return what an export says of the channels, for ``channels_of``."""
        return {"format": type(self.format).__name__, "names": self.channels, "percentiles": list(self.percentiles)}

    def _stem(self, path: Path, folder: Path) -> str:
        return f"/{self.format.name_of(path, folder)}"

    def _files(self, path: Path) -> list[Path]:
        found = []
        for channel, beside in zip(self.channels, self._options(path), strict=True):
            file = next((each for each in beside if each.is_file()), None)
            if file is None:
                raise DataError(f"{path}: has no file of the channel {channel!r} beside it ({beside[0].name}). Add it.")
            found.append(file)
        return found

    def _candidates(self, path: Path) -> list[Path]:
        return [each for beside in self._options(path) for each in beside]

    def _options(self, path: Path) -> list[list[Path]]:
        """Return where the file of each channel may lie: beside the first one's, with any ending of the format."""
        ending = next((each for each in sorted(self.endings, key=len, reverse=True) if path.name.lower().endswith(each)), "")
        stem = f"/{path.name[: len(path.name) - len(ending)]}"
        if not stem.endswith(self.channels[0]):
            raise DataError(
                f"{path}: is no file of the first channel {self.channels[0]!r}. Give that one; {self.channels[1:]} are found "
                "beside it."
            )
        case = stem.removesuffix(self.channels[0])
        given = path.name[len(path.name) - len(ending) :]
        names = [f"{case}{channel}".removeprefix("/") for channel in self.channels]
        return [[path.with_name(f"{name}{each}") for each in dict.fromkeys((given, *self.endings))] for name in names]


class NiftiChannels(NiftiFormat):
    """Read NIfTI volumes of four axes, whose last one holds the channels, as the Medical Segmentation Decathlon stores them.

    Args:
        channels: One to three positions along the fourth axis, from 0, in the order red, green, blue.
        percentiles: Percentiles of each channel that become 0 and 255.
    """

    holds_grey_levels = True

    def __init__(self, channels: list[int], percentiles: tuple[float, float] = (0.5, 99.5)) -> None:
        _check_channels(channels, "positions along the fourth axis, such as [0, 1, 3]")
        check_percentiles(percentiles, "data.source.format.percentiles")
        self.channels, self.percentiles = list(channels), percentiles
        self.axes = 4

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read grey levels 0..255 of each channel, stacked in a last axis of 3; of a single channel without it."""
        values = super().read_image(path)
        if max(self.channels) >= values.shape[3]:
            raise DataError(f"{path}: has {values.shape[3]} channels, from 0. Correct data.source.format.channels.")
        rule = Intensity("percentile", self.percentiles)
        return _as_colours([apply_intensity_8bit(values[..., channel], rule, path) for channel in self.channels])

    def describe(self) -> dict[str, Any]:
        """Return what an export says of the channels, for ``channels_of``."""
        return {"format": "NiftiChannels", "names": self.channels, "percentiles": list(self.percentiles)}


def channels_of(described: Mapping[str, Any], formats: Sequence[Format]) -> Format:
    """Return the format that an export describes (``describe``).

    Raises:
        DataError: If the description is damaged.
    """
    try:
        low, high = described.get("percentiles", PERCENTILE.percentiles)
        if described["format"] == "NiftiChannels":
            return NiftiChannels([int(each) for each in described["names"]], (float(low), float(high)))
        inner = next(each for each in formats if type(each).__name__ == described["format"])
        return ChannelFiles(inner, [str(each) for each in described["names"]], (float(low), float(high)))
    except (KeyError, TypeError, ValueError, StopIteration, RecipeError) as error:
        raise DataError(f"export.json: its channels cannot be read ({error}). Export the run again.") from error


def _check_channels(channels: Sequence[object], expected: str) -> None:
    if not 1 <= len(channels) <= SHOWN or len(set(channels)) < len(channels) or any(each == "" for each in channels):
        raise RecipeError(f"data.source.format.channels: expected one to {SHOWN} different {expected}, got {list(channels)}.")


def _as_colours(levels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if len(levels) == 1:
        return levels[0]
    return np.stack([*levels, levels[-1]][:SHOWN], axis=-1)
