"""What stored values must be before they count as grey levels or labels; every format asks here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError

LARGEST_LABEL = 2**31 - 1
"""Labels travel as int32."""

# Beyond it a floating-point type skips whole numbers, so two labels may have been merged when the file was written.
_EXACT = {np.dtype(np.float16): 2**11, np.dtype(np.float32): 2**24}


def check_grey_values(values: NDArray[Any], path: object) -> NDArray[Any]:
    """Return the values of an image unchanged.

    Raises:
        DataError: If they are no real numbers, or one is NaN or infinite.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: stores {values.dtype}, expected real numbers. Save grey levels or magnitudes.")
    if values.dtype.kind == "f":
        n_bad = int((~np.isfinite(values)).sum())
        if n_bad:
            raise DataError(f"{path}: {n_bad} of {values.size} values are NaN or infinite. Repair or remove the file.")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def exact_labels(values: NDArray[Any], path: object) -> NDArray[np.int32]:
    """Return label values as int32, each as the file holds it.

    Raises:
        DataError: If they are no real numbers, a value is no whole number from 0 to 2**31 - 1, or the file's type is too coarse
            for a value that it holds.

    Examples:
        >>> exact_labels(np.array([0.0, 16777216.0]), "a.nii").tolist()
        [0, 16777216]
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: stores {values.dtype}, expected label values. Save the mask as integers.")
    if values.dtype.kind == "f":
        _check_whole(values, path)
    elif values.size and (int(values.min()) < 0 or int(values.max()) > LARGEST_LABEL):
        _refuse(values, (values < 0) | (values > LARGEST_LABEL), path)
    return values.astype(np.int32)


def _check_whole(values: NDArray[Any], path: object) -> None:
    with np.errstate(invalid="ignore"):
        wrong = ~np.isfinite(values) | (values < 0) | (values > LARGEST_LABEL) | (np.floor(values) != values)
    if wrong.any():
        _refuse(values, wrong, path)
    limit = _EXACT.get(values.dtype.newbyteorder("="))
    if limit is not None and values.size and float(values.max()) > limit:
        raise DataError(
            f"{path}: holds label {int(values.max())} as {values.dtype}, which skips numbers above {limit}, so labels may "
            "have been merged. Save the mask as integers."
        )


def _refuse(values: NDArray[Any], wrong: NDArray[np.bool_], path: object) -> None:
    examples = [value.item() for value in np.unique(values[wrong])[:4]]
    raise DataError(
        f"{path}: {int(wrong.sum())} label values are no whole numbers from 0 to {LARGEST_LABEL}, such as {examples}. "
        "Resample label maps with nearest neighbour, give background 0, and save them as integers."
    )
