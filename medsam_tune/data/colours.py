"""Masks drawn in colours, as web annotation tools export them: a table says which colour is what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.raster import colour_counts, is_lossy, read_colours
from medsam_tune.errors import DataError, RecipeError

BACKGROUND, IGNORED = "background", "ignored"
"""Names of a colour table that are no labels: what shows nothing, as black does, and what nobody annotated."""

# More colours than anyone draws with: what lies between two of them at a smooth edge.
_MANY = 8
_SHOWN = 5


class ColourTable:
    """Number the colours of masks: 0 is background, 1, 2, ... the labels in the table's order, then what nobody annotated.

    Black and transparent pixels are background; black is not where the table gives it another name.

    Args:
        colours: Name to (red, green, blue), 0 to 255; ``background`` and ``ignored`` are no labels.

    Raises:
        RecipeError: If a colour is none, two names share one, or there is no label.

    Example:
        >>> ColourTable({"lumen": [255, 0, 0], "ignored": [128, 128, 128], "wall": [0, 0, 255]}).labels
        ('lumen', 'wall')
    """

    def __init__(self, colours: Mapping[str, Sequence[int]]) -> None:
        names: dict[int, str] = {}
        for name, colour in colours.items():
            code = _code(name, colour)
            if code in names:
                raise RecipeError(f"data.colours.{name}: {list(colour)} is {names[code]} too. Give each its own.")
            names[code] = name
        self.labels = tuple(name for name in colours if name not in (BACKGROUND, IGNORED))
        if not self.labels:
            raise RecipeError("data.colours: names no label. Name the colours of your masks: {lumen: [255, 0, 0]}.")
        self._names = {0: BACKGROUND, **names}

    def __repr__(self) -> str:
        return f"ColourTable({ {name: _rgb(code) for code, name in self._names.items()} })"

    @property
    def ignored_value(self) -> int | None:
        """Return the number of the colour called ``ignored``, or None where there is none."""
        return len(self.labels) + 1 if IGNORED in self._names.values() else None

    def read(self, path: Path) -> NDArray[np.int32]:
        """Read a mask as numbers (H, W); a palette image shows the colours of its palette.

        Raises:
            DataError: If the file cannot be read, or a pixel has a colour that is not in the table; all are listed with their
                pixels and the nearest colour of the table.
        """
        colours, transparent = read_colours(path)
        found, where, pixels = colour_counts(colours[~transparent])
        unknown = [(int(code), int(n)) for code, n in zip(found, pixels, strict=True) if int(code) not in self._names]
        if unknown:
            raise DataError(self._unknown(path, unknown))
        numbers = {BACKGROUND: 0, **{name: k for k, name in enumerate(self.labels, start=1)}, IGNORED: len(self.labels) + 1}
        values = np.zeros(transparent.shape, np.int32)
        values[~transparent] = np.array([numbers[self._names[int(code)]] for code in found], np.int32)[where]
        return values

    def _unknown(self, path: Path, unknown: list[tuple[int, int]]) -> str:
        listed = sorted(unknown, key=lambda each: -each[1])
        parts = [f"{_rgb(code)} on {pixels} pixels (nearest: {self._nearest(code)})" for code, pixels in listed[:_SHOWN]]
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        head = f"{path}: colours that are not in data.colours: {', '.join(parts)}{more}."
        if is_lossy(path) or len(listed) > _MANY:
            why = "JPEG changes colours" if is_lossy(path) else "So many come from JPEG or from smooth (anti-aliased) edges"
            return f"{head} {why}, and a mixed colour shows nothing. Export the masks as PNG, without smoothing."
        return f"{head} Name them there (`{BACKGROUND}` and `{IGNORED}` are names too), or correct the mask."

    def _nearest(self, code: int) -> str:
        def distance(other: int) -> int:
            return sum((a - b) ** 2 for a, b in zip(_rgb(code), _rgb(other), strict=True))

        nearest = min(self._names, key=distance)
        return f"{self._names[nearest]} {_rgb(nearest)}"


def _code(name: str, colour: Sequence[Any]) -> int:
    if len(colour) != 3 or any(not isinstance(level, int) or not 0 <= level <= 255 for level in colour):
        raise RecipeError(f"data.colours.{name}: expected [red, green, blue] from 0 to 255, got {list(colour)}.")
    red, green, blue = colour
    return int(red) << 16 | int(green) << 8 | int(blue)


def _rgb(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]
