"""How two quantities go together when others are held still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class PartialCorrelation:
    """Hold a partial rank correlation.

    Attributes:
        rho: In -1 to 1; NaN where there are too few rows or a quantity does not vary.
        p: Two-sided, as if rows were independent; NaN as ``rho``.
        n: Rows.
    """

    rho: float
    p: float
    n: int


def partial_spearman(x: ArrayLike, y: ArrayLike, others: Mapping[str, ArrayLike] | None = None) -> PartialCorrelation:
    """Return the Spearman correlation of two quantities with others held still: ranks, without what the others' ranks explain.

    Args:
        x: (N,) finite values.
        y: (N,).
        others: (N,) each.

    Examples:
        >>> partial_spearman([1, 2, 3, 4], [1, 4, 9, 16]).rho
        1.0

    Source: Kendall 1942, Partial rank correlation, by regression on ranks; p from Student's t with N - 2 - k
    degrees of freedom.
    """
    from scipy.special import stdtr
    from scipy.stats import rankdata

    held = [rankdata(np.asarray(values, np.float64)) for values in (others or {}).values()]
    first, second = (rankdata(np.asarray(values, np.float64)) for values in (x, y))
    n, freedom = len(first), len(first) - 2 - len(held)
    a, b = (_residuals(values, held) for values in (first, second))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    # What is left of a quantity that the others explain wholly is rounding.
    if freedom < 1 or spread <= 1e-9 * n**3:
        return PartialCorrelation(float("nan"), float("nan"), n)
    rho = float(np.clip(a @ b / spread, -1, 1))
    t = np.inf if abs(rho) == 1 else abs(rho) * np.sqrt(freedom / (1 - rho**2))
    return PartialCorrelation(rho, float(2 * stdtr(freedom, -t)), n)


def _residuals(values: NDArray[np.float64], held: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    design = np.column_stack([np.ones_like(values), *held])
    left: NDArray[np.float64] = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return left
