"""Whole-image answers against instances: which of the masks that were found is which object, and what follows.

Two definitions of average precision are in use, and they are not the same number:

- **COCO** (``coco_average_precision``): all masks of all images ranked by their score, each matched greedily to the best free
  object; the area under precision over recall, at one IoU threshold or averaged over 0.5, 0.55, ..., 0.95. Needs scores.
  Source: Lin et al. 2014, Microsoft COCO; cocodataset/cocoapi, ``PythonAPI/pycocotools/cocoeval.py``, 101 recalls.
- **StarDist and Data Science Bowl** (``accuracy``): TP / (TP + FP + FN), no scores and no curve. Source: Schmidt et al. 2018,
  Cell Detection with Star-convex Polygons; Caicedo et al. 2019, Nat. Methods 16:1247.

Counts come from the matching with the most pairs at a threshold (a pair has an IoU of at least that much), of those the one
with the largest IoU in sum, as ``stardist.matching`` does. Above 0.5, for masks that do not overlap, no other exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""COCO's IoU thresholds."""

_RECALLS = np.linspace(0, 1, 101)
# A threshold such as 0.6 is met by an IoU of 3/5, whatever its last bit.
_SLACK = 1e-9


@dataclass(frozen=True)
class InstanceMatches:
    """Hold what the P masks that were found in an image have in common with its T objects.

    Attributes:
        n_true: T.
        n_found: P.
        n_matched: (10,) int64, pairs at each of ``THRESHOLDS``.
        matched_iou: Sum of the IoU of the pairs above 0.5.
        n_above_half: Number of those pairs: panoptic quality asks for more than 0.5.
        shared_px: Pixels that each object shares with the mask of largest IoU, summed.
        joined_px: Pixels of each object and that mask together, and of the masks that are no object's, summed.
        pixels: True positive, false positive and false negative pixels of all masks joined against all objects joined.
        scores: (P,) float64.
        hits: (P, 10) bool, whether the mask is a true positive under COCO's greedy matching, in the order of ``scores``.
    """

    n_true: int
    n_found: int
    n_matched: NDArray[np.int64]
    matched_iou: float
    n_above_half: int
    shared_px: int
    joined_px: int
    pixels: tuple[int, int, int]
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]


def match_instances(found: Tensor, true: Tensor, scores: Tensor | None = None) -> InstanceMatches:
    """Match the masks found in an image with its objects.

    Args:
        found: (P, H, W) bool; masks may overlap.
        true: (T, H, W) bool, none of them empty.
        scores: (P,) how sure each mask is; equal for all by default.

    Raises:
        ValueError: If the sizes differ.

    Examples:
        >>> import torch
        >>> true = torch.tensor([[[True, True, False, False]], [[False, False, True, True]]])
        >>> found = torch.tensor([[[True, True, False, False]], [[False, False, True, False]]])
        >>> match_instances(found, true).n_matched.tolist()
        [2, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    if found.shape[1:] != true.shape[1:]:
        raise ValueError(f"masks must have one size, got {tuple(found.shape[1:])} and {tuple(true.shape[1:])}.")
    shared, found_px, true_px = _areas(found, true)
    joined = found_px[:, None] + true_px[None] - shared
    iou = np.divide(shared, joined, out=np.zeros(shared.shape), where=joined > 0)
    ranked = np.ones(len(found)) if scores is None else scores.double().numpy()
    pairs = _best_pairs(iou, 0.5)
    above = [iou[pair] for pair in pairs if iou[pair] > 0.5]
    shared_px, joined_px = _aggregated(shared, joined, iou, found_px, true_px)
    return InstanceMatches(
        n_true=len(true),
        n_found=len(found),
        n_matched=np.array([len(_best_pairs(iou, threshold)) for threshold in THRESHOLDS], np.int64),
        matched_iou=float(sum(above)),
        n_above_half=len(above),
        shared_px=shared_px,
        joined_px=joined_px,
        pixels=_pixels(found.any(dim=0), true.any(dim=0)),
        scores=ranked,
        hits=np.stack([_greedy_hits(iou, ranked, threshold) for threshold in THRESHOLDS], axis=1),
    )


def accuracy(matches: Sequence[InstanceMatches]) -> NDArray[np.float64]:
    """Return TP / (TP + FP + FN) over images at each of ``THRESHOLDS``: StarDist's average precision."""
    true, found, matched = _counts(matches)
    return _ratio(matched, true + found - matched)


def f1(matches: Sequence[InstanceMatches]) -> NDArray[np.float64]:
    """Return 2 TP / (2 TP + FP + FN) over images at each of ``THRESHOLDS``."""
    true, found, matched = _counts(matches)
    return _ratio(2 * matched, true + found)


def panoptic_quality(matches: Sequence[InstanceMatches]) -> float:
    """Return the summed IoU of pairs above 0.5 over TP + FP / 2 + FN / 2, over images.

    Source: Kirillov et al. 2019, Panoptic Segmentation, eq. 1.
    """
    true, found, _ = _counts(matches)
    return float(_ratio(np.array([2 * sum(each.matched_iou for each in matches)]), true + found)[0])


def aggregated_jaccard(matches: Sequence[InstanceMatches]) -> float:
    """Return the aggregated Jaccard index (AJI) over images.

    Each object takes the mask of largest IoU, which several may share; masks that none takes count as wrong.

    Source: Kumar et al. 2017, IEEE TMI 36:1550, algorithm 1.
    """
    shared, joined = (float(sum(getattr(each, name) for each in matches)) for name in ("shared_px", "joined_px"))
    return shared / joined if joined else float("nan")


def pixel_f(matches: Sequence[InstanceMatches]) -> float:
    """Return 2 TP / (2 TP + FP + FN) over the pixels of images, instances joined; NaN where nothing is there or found."""
    hit, false, missed = (sum(each.pixels[part] for each in matches) for part in range(3))
    wrong = false + missed
    return 2 * hit / (2 * hit + wrong) if hit + wrong else float("nan")


@dataclass(frozen=True)
class InstancePixels:
    """Hold what answers to an image's instances, one each, share with them, for the aggregated Jaccard index and pixel F.

    Attributes:
        shared_px: As in ``InstanceMatches``.
        joined_px: As there.
        pixels: As there.
    """

    shared_px: int
    joined_px: int
    pixels: tuple[int, int, int]


def instance_pixels(found: Sequence[NDArray[np.int64]], true: Sequence[NDArray[np.int64]]) -> InstancePixels:
    """Count what masks share with instances, from the pixels of each, so that memory follows their area and not their number.

    Args:
        found: For each mask the numbers of its pixels in the flattened image.
        true: The same for each instance.

    Examples:
        >>> instance_pixels([np.array([0, 1])], [np.array([1, 2]), np.array([3])])
        InstancePixels(shared_px=1, joined_px=4, pixels=(1, 1, 2))
    """
    masks, objects = ([each for each in given if each.size] for given in (found, true))
    found_px, true_px = (np.array([each.size for each in given], np.int64) for given in (masks, objects))
    width = 1 + max((int(each[-1]) for each in [*masks, *objects]), default=0)
    shared = _shared(*(_rows(given, width) for given in (masks, objects)))
    joined = found_px[:, None] + true_px[None] - shared
    iou = np.divide(shared, joined, out=np.zeros(shared.shape), where=joined > 0)
    shared_px, joined_px = _aggregated(shared, joined, iou, found_px, true_px)
    nothing = np.zeros(0, np.int64)
    predicted_px, all_px = (np.unique(np.concatenate([nothing, *given])) for given in (masks, objects))
    both = len(np.intersect1d(predicted_px, all_px, assume_unique=True))
    return InstancePixels(shared_px, joined_px, (both, len(predicted_px) - both, len(all_px) - both))


def coco_average_precision(matches: Sequence[InstanceMatches]) -> NDArray[np.float64]:
    """Return COCO's average precision over images at each of ``THRESHOLDS``; NaN without an object."""
    n_true = sum(each.n_true for each in matches)
    if n_true == 0:
        return np.full(len(THRESHOLDS), np.nan)
    scores = np.concatenate([each.scores for each in matches])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([each.hits for each in matches])[order]
    return np.array([_area_under(hits[:, k], n_true) for k in range(len(THRESHOLDS))])


def _areas(found: Tensor, true: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return shared pixels (P, T), and the pixels of each."""
    width = found[0].numel() if len(found) else true[0].numel() if len(true) else 0
    places = ([np.flatnonzero(mask.numpy()) for mask in masks] for masks in (found, true))
    shared = _shared(*(_rows(given, width) for given in places))
    return shared, found.flatten(1).sum(dim=1).numpy(), true.flatten(1).sum(dim=1).numpy()


def _rows(places: Sequence[NDArray[np.int64]], width: int) -> csr_array:
    """Return masks as rows (n, width) of a sparse table: of 200 nuclei on a megapixel, each is a few hundred pixels."""
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *(each.size for each in places)])
    columns = np.concatenate([np.zeros(0, np.int64), *places])
    return csr_array((np.ones(len(columns), np.int64), columns, ends), shape=(len(places), width))


def _shared(rows: csr_array, columns: csr_array) -> NDArray[np.int64]:
    return np.asarray((rows @ columns.T).todense(), np.int64).reshape(rows.shape[0], columns.shape[0])


def _pixels(found: Tensor, true: Tensor) -> tuple[int, int, int]:
    both = int((found & true).count_nonzero())
    return both, int(found.count_nonzero()) - both, int(true.count_nonzero()) - both


def _best_pairs(iou: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
    from scipy.optimize import linear_sum_assignment

    if not iou.size:
        return []
    allowed = iou >= threshold - _SLACK
    # A further pair outweighs any IoU, of which there are at most min(P, T).
    gain = np.where(allowed, 1 + iou / (2 * min(iou.shape)), 0.0)
    rows, columns = linear_sum_assignment(-gain)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if allowed[row, column]]


def _greedy_hits(iou: NDArray[np.float64], scores: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    hits, free = np.zeros(len(iou), np.bool_), np.ones(iou.shape[1], np.bool_)
    for row in np.argsort(-scores, kind="stable"):
        left = np.where(free, iou[row], -1.0)
        if left.size and left.max() >= threshold - _SLACK:
            hits[row], free[int(left.argmax())] = True, False
    return hits


def _aggregated(
    shared: NDArray[np.int64],
    joined: NDArray[np.int64],
    iou: NDArray[np.float64],
    found_px: NDArray[np.int64],
    true_px: NDArray[np.int64],
) -> tuple[int, int]:
    """Return numerator and denominator of the aggregated Jaccard index."""
    touched = iou.max(axis=0) > 0 if len(iou) else np.zeros(len(true_px), np.bool_)
    best = iou.argmax(axis=0)[touched] if len(iou) else np.zeros(0, np.int64)
    columns = np.flatnonzero(touched)
    used = np.zeros(len(found_px), np.bool_)
    used[best] = True
    wrong = int(found_px[~used].sum()) + int(true_px[~touched].sum())
    return int(shared[best, columns].sum()), int(joined[best, columns].sum()) + wrong


def _area_under(hits: NDArray[np.bool_], n_true: int) -> float:
    """Return the mean precision over 101 recalls, each the best at that recall or beyond."""
    tp = np.cumsum(hits)
    recall, precision = tp / n_true, tp / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALLS - _SLACK, side="left")
    return float(np.append(best, 0.0)[places].mean())


def _counts(matches: Sequence[InstanceMatches]) -> tuple[int, int, NDArray[np.int64]]:
    matched = np.sum([each.n_matched for each in matches], axis=0) if matches else np.zeros(len(THRESHOLDS), np.int64)
    return sum(each.n_true for each in matches), sum(each.n_found for each in matches), np.asarray(matched, np.int64)


def _ratio(part: NDArray[np.float64] | NDArray[np.int64], whole: int | NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.broadcast_to(np.asarray(whole, np.float64), part.shape)
    ratios: NDArray[np.float64] = np.divide(part, total, out=np.full(part.shape, np.nan), where=total > 0)
    return ratios
