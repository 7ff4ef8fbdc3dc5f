"""Test figures for summary.json and test_cases.csv, and the cases worth looking at."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.evaluation.figures import data_sets, figures, figures_over_patients, mean_and_std
from medsam_tune.evaluation.measures import CaseMeasures
from medsam_tune.files import write_text
from medsam_tune.metrics.overlap import CaseScores

CASE_TABLE_COLUMNS = (
    *("case", "label", "n_slices", "tp", "fp", "fn", "dice", "iou"),
    *("hd95", "hd95_unit", "true_size", "predicted_size", "size_unit", "excluded"),
    *("patient", "size_difference", "hd", "asd", "nsd", "s_measure", "aji", "pixel_f"),
    *("empty_slices", "false_positive_slices", "untuned_dice"),
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
        the same ``per_label``, with the slices that show nothing of it and those of them on which something was found; and
        ``slices``, Dice by slice with ``n``, without an interval because a patient's slices are not independent; ``objects``,
        the same by object. ``per_data_set``, the same as ``per_label``, stands there where all names of cases begin with one of
        several folders. ``balanced`` is the mean over targets, each a label in a data set, of the mean over its cases: in it a
        rare target weighs as much as a frequent one. ``patients``, where several cases are of one, is the mean over patients.
        None stands for what too few values leave undefined.
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
        **_groups(scores, case_names, people),
        "slices": {"dice": mean_and_std(scores.slices.dice[kept]), "n": int(kept.sum())},
        "objects": {"dice": mean_and_std(scores.object_dice), "n": len(scores.object_dice)},
    }


def write_case_table(
    path: Path,
    scores: CaseScores,
    measures: CaseMeasures,
    case_names: Sequence[str],
    label_names: Mapping[int, str],
    patients: Sequence[str] | None = None,
    *,
    untuned: Mapping[tuple[int, int], float] | None = None,
) -> Path:
    """Write one row per case and label to a CSV file, atomically.

    ``untuned`` is the Dice of the untuned network by case index and label, where it was scored. A figure is empty where it is
    undefined, as all are where the row is excluded; a distance is ``inf`` where one of the two masks is missing. ``hd``,
    ``hd95`` and ``asd`` are in ``hd95_unit``, sizes and their difference in ``size_unit``.

    Raises:
        DataError: If the file cannot be written.
    """
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CASE_TABLE_COLUMNS)
    people = case_names if patients is None else patients
    for row, case in enumerate(scores.case_index.tolist()):
        values = (scores.dice[row], scores.iou[row], measures.hd95[row])
        more = (measures.hd, measures.asd, measures.nsd, measures.s_measure, measures.aji, measures.pixel_f)
        writer.writerow(
            [
                case_names[case],
                label_name(scores.label[row], label_names),
                *(int(column[row]) for column in (scores.n_slices, scores.tp, scores.fp, scores.fn)),
                *map(_text, values),
                measures.distance_unit[row],
                *(_text(sizes[row]) for sizes in (measures.true_size, measures.predicted_size)),
                measures.size_unit[row],
                str(bool(scores.excluded[row])).lower(),
                people[case],
                _text(measures.size_difference[row]),
                *(_text(column[row]) for column in more),
                *(int(column[row]) for column in (measures.empty_slices, measures.false_positive_slices)),
                _text((untuned or {}).get((case, int(scores.label[row])), math.nan)),
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


def _label_figures(scores: CaseScores, rows: NDArray[np.bool_], people: Sequence[str]) -> dict[str, Any]:
    kept = rows & ~scores.excluded
    patients = [people[case] for case in scores.case_index[kept]]
    slices = scores.slices
    cases, labels = scores.case_index[rows], scores.label[rows]
    empty = (slices.tp + slices.fn == 0) & np.isin(slices.case_index, cases) & np.isin(slices.label, labels)
    return {
        "dice": figures(scores.dice[kept], patients),
        "iou": figures(scores.iou[kept], patients),
        "n_cases": len(set(scores.case_index[kept].tolist())),
        "n_patients": len(set(patients)),
        "n_excluded": int((rows & scores.excluded).sum()),
        "empty_slices": int(empty.sum()),
        "false_positive_slices": int((empty & (slices.fp > 0)).sum()),
    }


def _groups(scores: CaseScores, case_names: Sequence[str], people: Sequence[str]) -> dict[str, Any]:
    """Return the figures by data set, over targets and over patients, as far as there are several."""
    sets = data_sets([case_names[case] for case in scores.case_index])
    keys = list(zip(sets or [""] * len(scores.case_index), scores.label.tolist(), strict=True))
    kept = ~scores.excluded
    targets: dict[tuple[str, int], list[int]] = {}
    for row in np.flatnonzero(kept).tolist():
        targets.setdefault(keys[row], []).append(row)
    found: dict[str, Any] = {}
    if sets:
        named = np.array(sets)
        found["per_data_set"] = {name: _label_figures(scores, named == name, people) for name in sorted(set(sets))}
    means = {name: [float(getattr(scores, name)[rows].mean()) for rows in targets.values()] for name in ("dice", "iou")}
    found["balanced"] = {
        **{name: mean_and_std(np.array(values, np.float64)) for name, values in means.items()},
        "n_targets": len(targets),
    }
    cases = scores.scored_cases()
    patients = [people[case] for case in cases]
    if len(set(patients)) < len(patients):
        found["patients"] = {
            name: figures_over_patients(values, patients)
            for name, values in (("dice", scores.case_dice()), ("iou", scores.case_iou()))
        }
    return found


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
