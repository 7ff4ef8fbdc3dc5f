"""A figure over cases as JSON values: mean, standard deviation, interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.metrics.interval import mean_interval


def figures(values: NDArray[np.float64], patients: Sequence[str]) -> dict[str, Any]:
    """Return mean, standard deviation and interval of one figure a case, between 0 and 1, as JSON values.

    Args:
        values: One a case.
        patients: The patient of each case.
    """
    interval = mean_interval(values, groups=patients, bounds=(0.0, 1.0))
    return {
        **mean_and_std(values),
        "ci95": None if interval is None else [interval.low, interval.high],
        "ci95_method": None if interval is None else interval.method,
    }


def mean_and_std(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return ``mean`` and the sample's ``std``, None where too few values leave them undefined."""
    return {
        "mean": float(values.mean()) if values.size else None,
        "std": float(values.std(ddof=1)) if values.size > 1 else None,
    }


def figures_over_patients(values: NDArray[np.float64], patients: Sequence[str]) -> dict[str, Any]:
    """Return the figures of patients' own means, in which a patient of many cases weighs as much as one of a single case.

    Args:
        values: One a case.
        patients: The patient of each case.
    """
    names = sorted(set(patients))
    own = np.array(patients)
    return figures(np.array([values[own == name].mean() for name in names], np.float64), names)


def data_sets(case_names: Sequence[str]) -> list[str]:
    """Return the data set of each case, the first folder of its name; empty where names tell of one alone.

    Examples:
        >>> data_sets(["ct/1", "mr/1", "mr/2"]), data_sets(["ct/1", "ct/2"]), data_sets(["1", "mr/2"])
        (['ct', 'mr', 'mr'], [], [])
    """
    parts = [name.partition("/") for name in case_names]
    sets = [first for first, _, rest in parts if rest]
    return sets if len(sets) == len(parts) and len(set(sets)) > 1 else []
