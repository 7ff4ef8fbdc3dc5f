"""From rows to figures: means over cases with intervals by patient, beside those over objects and over targets."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.evaluation.figures import data_sets, figures, figures_over_patients
from medsam_tune.evaluation.measures import DISTANCES, NSD_TOLERANCE, SHARES
from medsam_tune.protocols.base import CLICKS, Protocol, Row
from medsam_tune.protocols.correlation import partial_spearman
from medsam_tune.protocols.mazurowski import NOC_THRESHOLDS, clicks_needed
from medsam_tune.protocols.selection import RULES

METRICS = ("dice", "iou")
ATTRIBUTES = ("area", "aspect", "contrast", "fourier_order")
FEWEST_CORRELATED = 10
_Object = tuple[str, str, str]


def summarise_rows(rows: Sequence[Row], protocol: Protocol) -> dict[str, Any]:
    """Summarise the rows of an evaluation as JSON values.

    Returns:
        ``entries``: for each model, rule of selection and place on the protocol's axes ``dice`` and ``iou`` over cases
        (``mean``, ``std``, ``ci95`` with the patient as the unit, ``ci95_method``), the plain means ``by_object`` and the
        balanced ones ``by_target`` (each label of each data set weighs the same), ``per_label``, ``per_data_set`` where all
        names of cases begin with one of several folders, ``by_patient``, the figures of patients' own means, where several
        cases are of one, ``n_objects``, ``n_cases``, ``n_patients``, and ``oracle``, true where the truth chose. Draws of an
        object are averaged first. Of the plain test also, over all labels and ``per_label``: distances, shares,
        ``size_difference``, ``empty_slices`` and ``false_positive_slices``. Of the Mazurowski protocol also
        ``clicks_needed``, of the Huang protocol ``correlations``.
    """
    keys = ("model", *protocol.axes, *(["selection"] if "selection" in protocol.columns else []))
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[tuple(row[name] for name in keys)].append(row)
    entries = [{**dict(zip(keys, key, strict=True)), **_figures(found)} for key, found in grouped.items()]
    for entry in entries:
        entry["oracle"] = entry.get("selection") == "oracle"
    summary: dict[str, Any] = {"entries": entries}
    if CLICKS in protocol.axes:
        summary["clicks_needed"] = _clicks_needed(rows)
    if "fourier_order" in protocol.columns:
        summary["correlations"] = _correlations(grouped, keys)
    return summary


def describe_rules() -> dict[str, str]:
    """Return what each rule of selection takes, for a legend."""
    return {str(rule): meaning for rule, meaning in RULES.items()}


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    objects = _object_means([row for row in rows if row["dice"] is not None])
    labels = sorted({row["label"] for row in rows})
    return {
        **_over_cases(objects),
        "by_object": {metric: _mean(each[metric] for each in objects) for metric in METRICS},
        **_groups(objects),
        "per_label": {
            label: {
                **_over_cases([each for each in objects if each["label"] == label]),
                **_measured([row for row in rows if row["label"] == label]),
            }
            for label in labels
        },
        **_measured(rows),
    }


def _groups(objects: Sequence[Row]) -> dict[str, Any]:
    """Return the means over targets, each a label in a data set, and the figures by data set and by patient, if of several."""
    sets = data_sets([each["case"] for each in objects])
    own = dict(zip((each["case"] for each in objects), sets or [""] * len(objects), strict=True))
    targets: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for each in objects:
        targets[own[each["case"]], each["label"]].append(each)
    over = [_over_cases(found) for found in targets.values()]
    found: dict[str, Any] = {"by_target": {metric: _mean(each[metric]["mean"] for each in over) for metric in METRICS}}
    if sets:
        found["per_data_set"] = {
            name: _over_cases([each for each in objects if own[each["case"]] == name]) for name in sorted(set(sets))
        }
    means, patients = _case_means(objects)
    if len(set(patients)) < len(patients):
        found["by_patient"] = {metric: figures_over_patients(values, patients) for metric, values in means.items()}
    return found


def _object_means(rows: Iterable[Row]) -> list[Row]:
    """Return each object with the mean over its draws."""
    found: dict[_Object, list[Row]] = defaultdict(list)
    for row in rows:
        found[_object(row)].append(row)
    return [
        {**drawn[0], **{metric: statistics.fmean(each[metric] for each in drawn) for metric in METRICS}}
        for drawn in found.values()
    ]


def _object(row: Row) -> _Object:
    return str(row["case"]), str(row.get("image", "")), str(row.get("object", row["label"]))


def _over_cases(objects: Sequence[Row]) -> dict[str, Any]:
    """Return the figures over cases, each with the mean over its objects."""
    means, patients = _case_means(objects)
    return {
        **{metric: figures(values, patients) for metric, values in means.items()},
        "n_objects": len(objects),
        "n_cases": len(patients),
        "n_patients": len(set(patients)),
    }


def _case_means(objects: Sequence[Row]) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Return the mean over the objects of each case, by metric, and the patient of each case."""
    cases: dict[str, list[Row]] = defaultdict(list)
    for each in objects:
        cases[each["case"]].append(each)
    means = {
        metric: np.array([statistics.fmean(each[metric] for each in found) for found in cases.values()], np.float64)
        for metric in METRICS
    }
    return means, [found[0]["patient"] for found in cases.values()]


def _measured(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what a plain test measures beside Dice and IoU; nothing of protocols that ask for objects one by one."""
    if "hd95" not in rows[0]:
        return {}
    return {"n_excluded": sum(row["excluded"] for row in rows), **_distances(rows), **_size_difference(rows)}


def _distances(rows: Sequence[Row]) -> dict[str, Any]:
    """Return means over cases and labels: of distances those that are finite, whose others are counted."""
    kept = [row for row in rows if not row["excluded"]]
    units = {row["distance_unit"] for row in kept}
    unit = units.pop() if len(units) == 1 else None
    found: dict[str, Any] = {}
    for name in DISTANCES:
        finite = [row[name] for row in kept if math.isfinite(row[name])]
        mean = None if unit is None else _mean(finite)
        found[name] = {"mean": mean, "n": len(finite), "n_infinite": len(kept) - len(finite), "unit": unit}
    for name in SHARES:
        found[name] = {"mean": _mean(row[name] for row in kept if row[name] is not None)}
    found["nsd"] |= {"tolerance": NSD_TOLERANCE, "unit": unit}
    slices = {name: sum(row[name] for row in rows) for name in ("empty_slices", "false_positive_slices")}
    return {**found, **slices}


def _size_difference(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the mean of predicted minus true size over cases and labels, and that without signs, where all have one unit."""
    kept = [row for row in rows if not row["excluded"]]
    units = {row["size_unit"] for row in kept}
    if len(units) != 1:
        return {}
    found = [row["size_difference"] for row in kept]
    return {"size_difference": {"mean": _mean(found), "mean_absolute": _mean(map(abs, found)), "unit": units.pop()}}


def _clicks_needed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how many clicks it takes to reach an IoU, over cases; an object that never does counts with all its clicks."""
    ways: dict[tuple[str, str, str], dict[_Object, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["strategy"] == CLICKS:
            ways[row["model"], row["error_map"], row["selection"]][_object(row)].append(row)
    found = []
    for (model, error_map, selection), objects in ways.items():
        for threshold in NOC_THRESHOLDS:
            counts = []
            for steps in objects.values():
                ordered = sorted(steps, key=lambda row: int(row["clicks"]))
                needed, reached = clicks_needed([row["iou"] for row in ordered], threshold)
                counts.append((steps[0]["case"], steps[0]["patient"], needed, reached))
            found.append(
                {
                    **{"model": model, "error_map": error_map, "selection": selection, "iou": threshold},
                    "clicks": statistics.fmean(needed for *_, needed, _ in counts),
                    "reached": statistics.fmean(reached for *_, reached in counts),
                    "most": max(needed for *_, needed, _ in counts),
                    "n_objects": len(counts),
                    "oracle": selection == "oracle",
                }
            )
    return found


def _correlations(grouped: Mapping[tuple[Any, ...], Sequence[Row]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return how Dice goes with each attribute, the others held still, where prompts were not moved and objects suffice."""
    found = []
    for key, rows in grouped.items():
        named = dict(zip(keys, key, strict=True))
        objects = [each for each in _object_means(rows) if all(each[name] is not None for name in ATTRIBUTES)]
        if named["displacement"] or len(objects) < FEWEST_CORRELATED:
            continue
        values = {name: [each[name] for each in objects] for name in (*ATTRIBUTES, "dice")}
        for attribute in ATTRIBUTES:
            others = {name: values[name] for name in ATTRIBUTES if name != attribute}
            partial = partial_spearman(values[attribute], values["dice"], others)
            told = {name: None if math.isnan(value) else value for name, value in (("rho", partial.rho), ("p", partial.p))}
            found.append({**named, "attribute": attribute, **told, "n": partial.n})
    return found


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
