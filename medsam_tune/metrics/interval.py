"""How far a mean over few cases may be from the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, seed: int = 0, resamples: int = 9999
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean, resampling cases.

    Args:
        values: One finite number a case.
        level: Coverage, between 0 and 1.
        seed: Makes the interval reproducible.
        resamples: Number of bootstrap samples.

    Returns:
        Lower and upper end, or None for fewer than two cases, which have no interval.

    Raises:
        ValueError: If a value is NaN or infinite.

    Example:
        >>> bootstrap_interval([0.8, 0.8, 0.8])
        (0.8, 0.8)

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; computed by scipy.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(sample).all():
        raise ValueError(f"values must be finite, got {sample[~np.isfinite(sample)][0]}. Leave excluded cases out.")
    if sample.size < 2:
        return None
    if sample.min() == sample.max():
        return float(sample[0]), float(sample[0])
    return _percentile_interval(sample, level, seed, resamples)


def _percentile_interval(sample: np.ndarray, level: float, seed: int, resamples: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    # random_state is rng's older name, which every supported scipy takes; batch bounds the memory.
    result = bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        batch=1000,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
