"""How far two surfaces are apart: HD, HD95, average surface distance and normalised surface Dice, for images and for volumes.

The surface of a mask is its pixels that have a side in common with the background or with the border of the array; of a volume,
its voxels that have a face in common with them. Distances run between centres of such pixels, at the spacing that is given.

The rule for empty masks, here and everywhere in this package: where neither truth nor prediction shows anything there is no
figure (NaN), and the pair is excluded and counted. Where one of the two shows nothing every distance is infinite and the
surface Dice is 0: nothing predicted is never 0 mm from anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PERCENTILE = 95


@dataclass(frozen=True)
class SurfaceDistances:
    """Hold how far each surface pixel of two masks is from the other mask's nearest one.

    Attributes:
        from_true: (T,) float64, of the truth's surface pixels; infinite where the prediction shows nothing.
        from_predicted: (P,) float64, of the prediction's.
    """

    from_true: NDArray[np.float64]
    from_predicted: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Iterable[SurfaceDistances]) -> SurfaceDistances:
        """Return the distances of several images as those of one case."""
        found = list(parts)
        nothing = np.zeros(0, np.float64)
        return cls(
            np.concatenate([nothing, *(part.from_true for part in found)]),
            np.concatenate([nothing, *(part.from_predicted for part in found)]),
        )

    @property
    def hd(self) -> float:
        """Return the Hausdorff distance: the largest of all distances."""
        both = self._both()
        return float(both.max()) if both.size else float("nan")

    @property
    def hd95(self) -> float:
        """Return the 95th percentile of the distances each way, the larger of the two.

        It is infinite where more than one pixel in twenty of a case of several images has nothing to be near to.
        """
        if not self._both().size:
            return float("nan")
        return max(_percentile(self.from_true), _percentile(self.from_predicted))

    @property
    def asd(self) -> float:
        """Return the average symmetric surface distance: the mean over the pixels of both surfaces."""
        both = self._both()
        return float(both.mean()) if both.size else float("nan")

    def nsd(self, tolerance: float) -> float:
        """Return the normalised surface Dice: the share of both surfaces that lies within ``tolerance`` of the other.

        Source: Nikolov et al. 2021, J Med Internet Res 23:e26151, with surface pixels in place of surface elements, as MONAI's
        ``compute_surface_dice`` counts them.
        """
        both = self._both()
        # 1.2 and 1.6 mm make 2 mm, whatever the last bit of the root.
        return float((both <= tolerance * (1 + 1e-9)).mean()) if both.size else float("nan")

    def _both(self) -> NDArray[np.float64]:
        return np.concatenate([self.from_true, self.from_predicted])


def surface_distances(
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    positions: NDArray[np.integer] | None = None,
) -> SurfaceDistances:
    """Measure two masks of an image (H, W) or of a volume (D, H, W).

    Args:
        predicted: bool.
        true: bool, of the same shape.
        spacing: Distance of neighbours along each axis, in the unit of the result.
        positions: (D,) ascending places of a volume's slices, where some of it was left out. Nothing is known between slices
            that are no neighbours, so none of their pixels is surface for what lies there.

    Raises:
        ValueError: If the shapes differ or the spacing does not fit them.

    Examples:
        >>> true, found = np.zeros((2, 4, 4), bool)
        >>> true[1, 0], found[1, 3] = True, True
        >>> distances = surface_distances(found, true, (0.5, 2.0))
        >>> distances.hd, distances.asd, distances.nsd(5.9), distances.nsd(6.0)
        (6.0, 6.0, 0.0, 1.0)
    """
    if predicted.shape != true.shape or true.ndim != len(spacing) or true.ndim not in (2, 3):
        raise ValueError(
            f"masks must have one shape (H, W) or (D, H, W) and a spacing for each axis, got {predicted.shape}, {true.shape} "
            f"and {tuple(spacing)}. Measure one image or one volume at a time."
        )
    ours, theirs = (_points(mask, spacing, positions) for mask in (predicted, true))
    return SurfaceDistances(from_true=_nearest(theirs, ours), from_predicted=_nearest(ours, theirs))


def surface(mask: NDArray[np.bool_], positions: NDArray[np.integer] | None = None) -> NDArray[np.bool_]:
    """Return which pixels of a mask (H, W) or (D, H, W) are its surface.

    Args:
        mask: bool.
        positions: As in ``surface_distances``.

    Examples:
        >>> surface(np.ones((3, 3), bool)).astype(int).tolist()
        [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    """
    inside = mask.copy()
    for axis in range(mask.ndim):
        forward = np.moveaxis(inside, axis, 0)
        own = np.moveaxis(mask, axis, 0)
        before, after = np.zeros_like(own), np.zeros_like(own)
        before[1:], after[:-1] = own[:-1], own[1:]
        if axis == 0 and positions is not None and mask.ndim == 3:
            apart = np.flatnonzero(np.diff(positions) > 1)
            before[apart + 1], after[apart] = True, True
        forward &= before & after
    return mask & ~inside


def _points(mask: NDArray[np.bool_], spacing: Sequence[float], positions: NDArray[np.integer] | None) -> NDArray[np.float64]:
    """Return where the surface lies (P, axes), in the unit of the spacing."""
    places = np.argwhere(surface(mask, positions)).astype(np.float64)
    if positions is not None and mask.ndim == 3:
        places[:, 0] = np.asarray(positions, np.float64)[places[:, 0].astype(np.int64)]
    scaled: NDArray[np.float64] = places * np.asarray(spacing, np.float64)
    return scaled


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each of ``points`` (P, axes) is from the nearest of ``others``."""
    from scipy.spatial import KDTree

    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    return np.asarray(KDTree(others).query(points)[0], np.float64)


def _percentile(distances: NDArray[np.float64]) -> float:
    """Return the percentile between the two nearest ranks; infinite where one of them is, 0 of nothing."""
    if not distances.size:
        return 0.0
    ordered = np.sort(distances)
    rank = _PERCENTILE / 100 * (len(ordered) - 1)
    low, high = ordered[int(np.floor(rank))], ordered[int(np.ceil(rank))]
    # Infinity minus itself is no number.
    return float(high) if np.isinf(high) else float(low + (high - low) * (rank % 1))
