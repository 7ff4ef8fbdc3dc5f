"""Test figures for summary.json and test_cases.csv, and the cases worth looking at."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.evaluation.measures import CaseMeasures
from medsam_tune.files import write_text
from medsam_tune.metrics.interval import mean_interval
from medsam_tune.metrics.overlap import CaseScores

CASE_TABLE_COLUMNS = (
    *("case", "label", "n_slices", "tp", "fp", "fn", "dice", "iou"),
    *("hd95", "hd95_unit", "true_size", "predicted_size", "size_unit", "excluded"),
)


def summarise(
    scores: CaseScores,
    case_names: Sequence[str],
    label_names: Mapping[int, str],
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Summarise test scores as JSON values.

    Args:
        scores: From ``OverlapMetric.scores``.
        case_names: Name of each case index.
        label_names: Name of each label.
        patients: Patient of each case index; without it every case is a patient of its own.

    Returns:
        ``dice`` and ``iou`` over cases (a case's value is the mean over its labels), each with ``mean``, ``std`` (of the
        sample, n - 1), ``ci95`` of that mean with the patient as the unit, and ``ci95_method`` (``t`` or ``bca``); ``n_cases``
        and ``n_patients`` scored; ``n_excluded`` pairs of
        case and label with no foreground in truth and prediction, and the cases that have nothing else (``excluded_cases``);
        the same ``per_label``; and ``slices``, Dice by slice with ``n``, without an interval because a patient's slices are not
        independent; ``objects``, the same by object. None stands for what too few values leave undefined.
    """
    kept = ~scores.slices.excluded
    people = case_names if patients is None else patients
    scored = [people[case] for case in scores.scored_cases()]
    return {
        "dice": figures(scores.case_dice(), scored),
        "iou": figures(scores.case_iou(), scored),
        "n_cases": len(scored),
        "n_patients": len(set(scored)),
        "n_excluded": int(scores.excluded.sum()),
        "excluded_cases": [case_names[case] for case in np.setdiff1d(scores.case_index, scores.scored_cases())],
        "per_label": {
            label_name(label, label_names): _label_figures(scores, scores.label == label, people)
            for label in np.unique(scores.label)
        },
        "slices": {"dice": _mean_and_std(scores.slices.dice[kept]), "n": int(kept.sum())},
        "objects": {"dice": _mean_and_std(scores.object_dice), "n": len(scores.object_dice)},
    }


def write_case_table(
    path: Path, scores: CaseScores, measures: CaseMeasures, case_names: Sequence[str], label_names: Mapping[int, str]
) -> Path:
    """Write one row per case and label to a CSV file, atomically.

    Dice, IoU and distance are empty where the row is excluded; the distance is ``inf`` where one of the two masks is missing.

    Raises:
        DataError: If the file cannot be written.
    """
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CASE_TABLE_COLUMNS)
    for row in range(len(scores.case_index)):
        excluded = bool(scores.excluded[row])
        ratios = (scores.dice[row], scores.iou[row], measures.hd95[row])
        writer.writerow(
            [
                case_names[scores.case_index[row]],
                label_name(scores.label[row], label_names),
                *(int(column[row]) for column in (scores.n_slices, scores.tp, scores.fp, scores.fn)),
                *("" if excluded else f"{value:.6f}" for value in ratios),
                measures.distance_unit[row],
                *(f"{sizes[row]:.6f}" for sizes in (measures.true_size, measures.predicted_size)),
                measures.size_unit[row],
                str(excluded).lower(),
            ]
        )
    write_text(path, buffer.getvalue())
    return path


def pick_cases(scores: CaseScores) -> list[tuple[str, int]]:
    """Return (``best``, case index), (``median``, ...), (``worst``, ...) by Dice; best and worst of two, ``only`` of one."""
    cases = scores.scored_cases()[np.argsort(-scores.case_dice(), kind="stable")]
    places = {"best": 0, "median": len(cases) // 2, "worst": len(cases) - 1}
    wanted = ("best", "median", "worst") if len(cases) > 2 else ("best", "worst")
    if len(cases) < 2:
        # Neither the best nor the worst of anything.
        return [("only", int(case)) for case in cases]
    return [(name, int(cases[places[name]])) for name in wanted]


def pick_slices(scores: CaseScores, case: int, *, count: int = 4) -> list[int]:
    """Return the sample indices of up to ``count`` slices of a case with most foreground (true or predicted), in order."""
    slices = scores.slices
    rows = slices.case_index == case
    samples, which = np.unique(slices.sample_index[rows], return_inverse=True)
    pixels = np.bincount(which, weights=(2 * slices.tp + slices.fp + slices.fn)[rows], minlength=len(samples))
    return sorted(samples[np.argsort(-pixels, kind="stable")[:count]].tolist())


def label_name(label: int, label_names: Mapping[int, str]) -> str:
    """Return the name of a label, or its number where it has none."""
    return label_names.get(int(label), f"label {int(label)}")


def figures(values: NDArray[np.float64], patients: Sequence[str]) -> dict[str, Any]:
    """Return mean, standard deviation and interval of one figure a case, between 0 and 1, as JSON values.

    Args:
        values: One a case.
        patients: The patient of each case.
    """
    interval = mean_interval(values, groups=patients, bounds=(0.0, 1.0))
    return {
        **_mean_and_std(values),
        "ci95": None if interval is None else [interval.low, interval.high],
        "ci95_method": None if interval is None else interval.method,
    }


def _mean_and_std(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {
        "mean": float(values.mean()) if values.size else None,
        "std": float(values.std(ddof=1)) if values.size > 1 else None,
    }


def _label_figures(scores: CaseScores, rows: NDArray[np.bool_], people: Sequence[str]) -> dict[str, Any]:
    kept = rows & ~scores.excluded
    patients = [people[case] for case in scores.case_index[kept]]
    return {
        "dice": figures(scores.dice[kept], patients),
        "iou": figures(scores.iou[kept], patients),
        "n_cases": len(patients),
        "n_patients": len(set(patients)),
        "n_excluded": int((rows & scores.excluded).sum()),
    }
