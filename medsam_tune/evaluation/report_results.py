"""The report's verdict and its tables of test figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsam_tune.evaluation import page
from medsam_tune.metrics.interval import METHOD_NAMES

_ABSENT = "\N{EN DASH}"
_HEADERS = ("Dice", "std", "95 % interval", "IoU", "cases")
_STYLES = {"better": "verdict good", "worse": "verdict bad"}

Summary = Mapping[str, Any]


def opening(verdict: Summary, test: Summary, trained: Sequence[tuple[str, int, int]]) -> list[str]:
    """Return the verdict and the figures that matter most, as pieces of the page.

    Args:
        verdict: What ``verdict_of`` returned, or nothing.
        test: What ``summarise`` returned, or nothing.
        trained: Rows (group of parameters, trained, total).
    """
    parts = []
    if verdict.get("text"):
        parts.append(page.paragraph(verdict["text"], kind=_STYLES.get(str(verdict.get("verdict")), "verdict")))
    values = []
    for name, key in (("Dice", "dice"), ("IoU", "iou")):
        if (figures := test.get(key)) and figures["mean"] is not None:
            values.append((f"{figures['mean']:.3f}", f"test {name}{_interval_text(figures)}"))
    distances = test.get("hd95") or {}
    if distances.get("mean") is not None:
        values.append((f"{distances['mean']:.3g} {distances['unit']}", f"test HD95{_missing_text(distances)}"))
    if test.get("n_cases"):
        values.append((str(test["n_cases"]), f"test cases{_of_patients(test)}"))
    if trained:
        learning, total = sum(row[1] for row in trained), sum(row[2] for row in trained)
        values.append((_share(learning, total), f"of {total:,} parameters trained"))
    return [*parts, page.tiles(values)] if values else parts


def results(
    test: Summary, baselines: Mapping[str, Summary], moved_boxes: Summary, inference: Mapping[str, Summary]
) -> list[str]:
    """Return the test figures beside those of the untuned network, as pieces of the page.

    Args:
        test: What ``summarise`` returned for the tuned network; nothing gives no table.
        baselines: The same by name for the untuned network, each with its paired ``tuned_minus_this``.
        moved_boxes: What ``score_moved_boxes`` returned, or nothing.
        inference: Summaries by kind of inference.
    """
    if not test:
        return []
    untuned = [_baseline_row(name, summary) for name, summary in baselines.items()]
    rows = [*untuned[:1], [*_result_row("tuned", test), _ABSENT], *untuned[1:]]
    parts = [page.table(("model", *_HEADERS, "tuned minus this"), rows, strong=(len(untuned[:1]),))]
    if len(labels := test.get("per_label") or {}) > 1:
        named = [_result_row(str(name), summary) for name, summary in labels.items()]
        parts += [page.heading("By label", 3), page.table(("label", *_HEADERS), named)]
    parts += _measures(test)
    if moved_boxes:
        parts += _moved_boxes(test, baselines, moved_boxes)
    if inference:
        kinds = [_result_row(name.replace("_", " "), summary) for name, summary in inference.items()]
        parts += [page.heading("By kind of inference", 3), page.table(("inference", *_HEADERS), kinds)]
    return [page.heading("Test results", name="test-results"), *parts, page.paragraph(_unit_note(test), kind="muted")]


def _measures(test: Summary) -> list[str]:
    """Return what a test measured beside Dice and IoU, and means over other units than the case."""
    rows = []
    for key, name in (("hd", "Hausdorff distance"), ("hd95", "HD95"), ("asd", "average surface distance")):
        found = test.get(key) or {}
        if found.get("mean") is not None and found.get("n"):
            missing = f"{found['n_infinite']} more infinite" if found["n_infinite"] else ""
            rows.append([f"{name} ({found['unit']})", f"{found['mean']:.3g}", _figure(found["std"]), missing])
    for key, name in (("nsd", "NSD"), ("s_measure", "S-measure"), ("aji", "AJI"), ("pixel_f", "pixel F")):
        if found := test.get(key):
            within = f" within {found['tolerance']:g} {found['unit'] or 'mm or px'}" if key == "nsd" else ""
            rows.append([f"{name}{within}", _figure(found["mean"]), _figure(found["std"]), _interval_text(found).lstrip(", ")])
    if difference := test.get("size_difference"):
        unit = difference["unit"].replace("mm2", "mm\N{SUPERSCRIPT TWO}")
        absolute = f"{difference['mean_absolute']:.3g} without its sign"
        rows.append([f"size, predicted minus true ({unit})", f"{difference['mean']:+.3g}", _ABSENT, absolute])
    for key, name in (("balanced", "Dice, mean over targets"), ("patients", "Dice, mean over patients")):
        if (found := test.get(key)) and (key == "patients" or found["n_targets"] > 1):
            dice = found["dice"]
            rows.append([name, _figure(dice["mean"]), _figure(dice["std"]), _interval_text(dice).lstrip(", ")])
    for name, found in (test.get("per_data_set") or {}).items():
        dice = found["dice"]
        rows.append([f"Dice on {name}", _figure(dice["mean"]), _figure(dice["std"]), _interval_text(dice).lstrip(", ")])
    labels = (test.get("per_label") or {}).values()
    empty, wrong = (sum(each.get(key, 0) for each in labels) for key in ("empty_slices", "false_positive_slices"))
    if empty:
        rows.append(["slices without the object", f"{empty:,}", _ABSENT, f"something was found on {wrong:,} of them"])
    return [page.heading("Other figures", 3), page.table(("", "mean", "std", ""), rows)] if rows else []


def _moved_boxes(test: Summary, baselines: Mapping[str, Summary], moved: Summary) -> list[str]:
    """Return Dice under the exact box and under one drawn a little wrong, for the tuned and the untuned network."""
    exact = {"tuned": test, "untuned": baselines.get("same_prompts", {})}
    rows = []
    for name, summary in moved["dice"].items():
        before, loss = exact[name].get("dice"), moved["minus_exact"][name]
        rows.append([name, _figure(before and before["mean"]), _figure(summary["mean"]), _difference(loss)])
    headers = ("model", "Dice, box as drawn", "Dice, box moved", "moved minus as drawn")
    share = f"{100 * moved['share']:g} %"
    note = f"In the second column each side of every box is moved by {share} of the box's width or height, in or out at random."
    return [page.heading("How much a badly drawn box costs", 3), page.table(headers, rows), page.paragraph(note, kind="muted")]


def _result_row(name: str, summary: Summary) -> list[str]:
    dice = summary["dice"]
    interval = dice.get("ci95")
    shown = _ABSENT if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return [name, _figure(dice["mean"]), _figure(dice["std"]), shown, _figure(summary["iou"]["mean"]), str(summary["n_cases"])]


def _baseline_row(name: str, summary: Summary) -> list[str]:
    return [*_result_row(f"untuned, {name.replace('_', ' ')}", summary), _difference(summary["tuned_minus_this"])]


def _difference(difference: Summary) -> str:
    if difference["mean"] is None:
        return _ABSENT
    ends = difference["ci95"]
    return f"{difference['mean']:+.3f}" + ("" if ends is None else f" ({ends[0]:+.3f} to {ends[1]:+.3f})")


def _figure(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.3f}"


def _interval_text(figures: Summary) -> str:
    interval = figures.get("ci95")
    return "" if interval is None else f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"


def _missing_text(distances: Summary) -> str:
    count = distances["n_infinite"]
    return f", mean of {distances['n']}; {count} more {'is' if count == 1 else 'are'} infinite" if count else ", mean"


def _unit_note(test: Summary) -> str:
    note = "The unit is the case: pixels are pooled over a case's slices at native resolution, for each label."
    excluded = test.get("n_excluded")
    if excluded:
        note += f" {excluded} pairs of case and label with neither ground truth nor prediction are left out."
    slices = test.get("slices") or {}
    if slices.get("n"):
        note += f" Slice by slice, the mean Dice is {_figure(slices['dice']['mean'])} over {slices['n']} slices."
    method = METHOD_NAMES.get(test["dice"].get("ci95_method"))
    if method is None:
        return note
    unit = f"patients, who may have several cases ({test['n_patients']} in all)" if _of_patients(test) else "cases"
    return f"{note} Intervals are over {unit}, by {method}."


def _of_patients(test: Summary) -> str:
    return "" if test["n_patients"] == test["n_cases"] else f" of {test['n_patients']} patients"


def _share(part: int, whole: int) -> str:
    """Write a share in per cent with two digits, and whole numbers from 10 on."""
    share = 100 * part / max(1, whole)
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"
