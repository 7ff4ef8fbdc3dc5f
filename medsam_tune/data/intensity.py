"""How stored values become grey levels 0..255: a rule that is named, recorded, and the same for every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError, RecipeError


@dataclass(frozen=True)
class Intensity:
    """State how the values of an image file become 0..255.

    Attributes:
        rule: ``as_stored``: the values are grey levels already; ``full_range``: 0 to the type's largest value;
            ``percentile``: two percentiles of each image; ``window``: two fixed values.
        percentiles: Lower and upper percentile of ``percentile``, in 0..100.
        window: Lower and upper stored value of ``window``.
    """

    rule: Literal["as_stored", "full_range", "percentile", "window"] = "as_stored"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_percentiles(self.percentiles, "data.source.intensity.percentiles")
        check_window(self.window, "data.source.intensity.window")
        if (self.rule == "window") != (self.window is not None):
            raise RecipeError(
                f"data.source.intensity: rule {self.rule!r} came with window {self.window}. "
                "Give both rule: window and window: [low, high], or neither."
            )


def check_percentiles(percentiles: tuple[float, float], key: str) -> None:
    """Refuse percentiles that are not 0 <= low < high <= 100.

    Raises:
        RecipeError: With the recipe's key and the values.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise RecipeError(f"{key}: expected 0 <= low < high <= 100, got {low}, {high}.")


def check_window(window: tuple[float, float] | None, key: str) -> None:
    """Refuse a window whose first value is not below its second.

    Raises:
        RecipeError: With the recipe's key and the values.
    """
    if window is not None and not window[0] < window[1]:
        raise RecipeError(f"{key}: expected low < high, got {window[0]}, {window[1]}.")


AS_STORED = Intensity("as_stored")
PERCENTILE = Intensity("percentile")
UNNAMED_RULE = "8 bit as stored, others percentile 0.5 to 99.5 per image"
"""What is recorded of images where a recipe names no rule."""


def default_intensity(values: NDArray[Any]) -> Intensity:
    """Return the rule where a recipe names none: 8 bit as stored, all others by the percentiles 0.5 and 99.5."""
    return AS_STORED if values.dtype == np.uint8 else PERCENTILE


def to_grey_levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Map ``low``..``high`` linearly to 0..255 and clip; where ``low == high`` (a constant image) everything becomes 0.

    The limits come from the rule, never from the values after clipping, so one stored value gives one grey level.

    Examples:
        >>> to_grey_levels(np.array([-10.0, 0.0, 50.0, 100.0]), 0.0, 100.0).tolist()
        [0.0, 0.0, 127.5, 255.0]
    """
    if high <= low:
        return np.zeros(values.shape, np.float32)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.clip(scaled, 0.0, 255.0).astype(np.float32)


def percentile_limits(values: NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return two percentiles of an image as the limits of its grey levels.

    Where both fall on one value although there are others (a signal in less than half a percent of the pixels, as in PET or
    angiography), that value is the background, and the limits are widened to the percentiles of all others. So only a constant
    image has equal limits.

    Examples:
        >>> percentile_limits(np.array([0] * 999 + [70]), (0.5, 99.5))
        (0.0, 70.0)
    """
    low, high = (float(limit) for limit in np.percentile(values, percentiles))
    signal = values[values != low] if high <= low else values[:0]
    if signal.size:
        below, above = (float(limit) for limit in np.percentile(signal, percentiles))
        return min(low, below), max(high, above)
    return low, high


def apply_intensity(values: NDArray[Any], intensity: Intensity, path: object) -> NDArray[np.float32]:
    """Bring the stored values of one image to float32 in 0..255.

    Raises:
        DataError: If ``as_stored`` meets a value outside 0..255, or ``full_range`` meets a type without a fixed range.
    """
    limits = _limits(values, intensity, path)
    return values.astype(np.float32) if limits is None else to_grey_levels(values, *limits)


def apply_intensity_8bit(values: NDArray[Any], intensity: Intensity, path: object) -> NDArray[np.uint8]:
    """Bring the stored values of a volume to whole grey levels 0..255 by one rule for all of it, a part at a time.

    Raises:
        DataError: As ``apply_intensity``.
    """
    limits = _limits(values, intensity, path)
    levels = np.empty(values.shape, np.uint8, order="F" if values.flags.f_contiguous else "C")
    axis = values.ndim - 1 if values.flags.f_contiguous else 0
    for part, stored in zip(np.moveaxis(levels, axis, 0), np.moveaxis(values, axis, 0), strict=True):
        part[...] = np.rint(stored if limits is None else to_grey_levels(stored, *limits))
    return levels


def _limits(values: NDArray[Any], intensity: Intensity, path: object) -> tuple[float, float] | None:
    """Return the stored values that become 0 and 255, or None where values are grey levels already."""
    if intensity.rule == "percentile":
        return percentile_limits(values, intensity.percentiles)
    if intensity.window is not None:
        return intensity.window
    if intensity.rule == "full_range":
        return 0.0, _largest(values, path)
    if values.size and (values.min() < 0 or values.max() > 255):
        raise DataError(
            f"{path}: values {values.min()} to {values.max()} are not grey levels 0..255. "
            "Set data.source.intensity.rule to full_range, percentile or window."
        )
    return None


def _largest(values: NDArray[Any], path: object) -> float:
    if values.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{path}: stores {values.dtype}, which has no full range. Set data.source.intensity.rule to percentile or window."
        )
    return float(np.iinfo(values.dtype).max)
