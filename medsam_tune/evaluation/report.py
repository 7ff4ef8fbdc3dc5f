"""One HTML file that tells what was trained, on what, how good it is, how it looks and how to use it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam_tune.evaluation import page
from medsam_tune.evaluation.overlays import PREDICTION_COLOUR, TRUTH_COLOUR
from medsam_tune.files import write_text
from medsam_tune.metrics.interval import METHOD_NAMES

REPORT_FILE = "index.html"
_ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class CaseFigure:
    """Hold one test case as a picture.

    Attributes:
        heading: Which case it is and why it is shown, such as ``Worst: case_07``.
        caption: Its figures, such as ``Dice 0.81 over 12 slices``.
        png: The overlay.
    """

    heading: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class ReportContent:
    """Hold what the report says; whatever is left empty is left out of the page.

    Attributes:
        title: The recipe's name or the run's.
        description: What was done, in words: the comment a recipe opens with.
        trained: Rows (group of parameters, trained, total).
        data: What the source says about itself.
        splits: Counts by split, such as ``{"train": {"cases": 28, "images": 84}}``.
        test: What ``summarise`` returned for the test split.
        baselines: The same by name, for the untuned model, each with its paired ``tuned_minus_this``; first the one that is
            asked as the tuned model is.
        verdict: Whether the tuned model is better than the untuned one, in a sentence.
        inference: The same by name, for the tuned model under each kind of inference it offers.
        curves: PNG of ``draw_curves``.
        cases: Best, median and worst test case.
        reload_code: Lines of Python that reload the export.
        run_command: The command that runs all of it again.
        versions: Version by package.
        seconds: Seconds by stage.
        more: Further facts by name, such as the base weights or the peak memory.
    """

    title: str
    description: str = ""
    trained: Sequence[tuple[str, int, int]] = ()
    data: Mapping[str, object] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: str = ""
    inference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curves: bytes | None = None
    cases: Sequence[CaseFigure] = ()
    reload_code: str = ""
    run_command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write ``folder/index.html``, atomically, with all pictures and styles inside.

    Returns:
        The file.

    Raises:
        DataError: If the folder cannot be written.
    """
    sections = [
        *_opening(content),
        *_results(content),
        *_pictures(content),
        *_training(content),
        *_data(content),
        *_again(content),
        *_costs(content),
    ]
    path = folder / REPORT_FILE
    write_text(path, page.page(content.title, sections))
    return path


def _opening(content: ReportContent) -> list[str]:
    parts = [page.heading(content.title, 1)]
    if content.verdict:
        parts.append(page.paragraph(content.verdict, kind="verdict"))
    if content.description:
        parts.append(page.paragraph(content.description, kind="muted prose"))
    values = []
    for name, key in (("Dice", "dice"), ("IoU", "iou")):
        if (figures := content.test.get(key)) and figures["mean"] is not None:
            values.append((f"{figures['mean']:.3f}", f"test {name}{_interval_text(figures)}"))
    if content.test.get("n_cases"):
        values.append((str(content.test["n_cases"]), f"test cases{_of_patients(content.test)}"))
    if content.trained:
        trained, total = sum(row[1] for row in content.trained), sum(row[2] for row in content.trained)
        values.append((_share(trained, total), f"of {total:,} parameters trained"))
    return [*parts, page.tiles(values)] if values else parts


def _interval_text(figures: Mapping[str, Any]) -> str:
    interval = figures.get("ci95")
    return "" if interval is None else f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"


def _results(content: ReportContent) -> list[str]:
    if not content.test:
        return []
    headers = ("model", "Dice", "std", "95 % interval", "IoU", "std", "95 % interval", "cases")
    untuned = [_baseline_row(name, summary) for name, summary in content.baselines.items()]
    rows = [*untuned[:1], [*_result_row("tuned", content.test), _ABSENT], *untuned[1:]]
    table = page.table((*headers, "tuned minus this"), rows, strong=(len(untuned[:1]),))
    parts = [page.heading("Test results"), table]
    if len(labels := content.test.get("per_label") or {}) > 1:
        rows = [_result_row(str(name), summary) for name, summary in labels.items()]
        parts += [page.heading("By label", 3), page.table(("label", *headers[1:]), rows)]
    if content.inference:
        rows = [_result_row(name.replace("_", " "), summary) for name, summary in content.inference.items()]
        parts += [page.heading("By kind of inference", 3), page.table(("inference", *headers[1:]), rows)]
    return [*parts, page.paragraph(_unit_note(content.test), kind="muted")]


def _result_row(name: str, summary: Mapping[str, Any]) -> list[str]:
    cells = [name]
    for key in ("dice", "iou"):
        figures = summary[key]
        interval = figures.get("ci95")
        cells += [_figure(figures["mean"]), _figure(figures["std"])]
        cells.append(_ABSENT if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}")
    return [*cells, str(summary["n_cases"])]


def _baseline_row(name: str, summary: Mapping[str, Any]) -> list[str]:
    row, difference = _result_row(f"untuned, {name.replace('_', ' ')}", summary), summary["tuned_minus_this"]
    if difference["mean"] is None:
        return [*row, _ABSENT]
    ends = difference["ci95"]
    return [*row, f"{difference['mean']:+.3f}" + ("" if ends is None else f" ({ends[0]:+.3f} to {ends[1]:+.3f})")]


def _figure(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.3f}"


def _unit_note(test: Mapping[str, Any]) -> str:
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


def _of_patients(test: Mapping[str, Any]) -> str:
    return "" if test["n_patients"] == test["n_cases"] else f" of {test['n_patients']} patients"


def _pictures(content: ReportContent) -> list[str]:
    if not content.cases:
        return []
    lines = [(TRUTH_COLOUR, "solid", "ground truth"), (PREDICTION_COLOUR, "dashed", "prediction")]
    parts = [page.heading("Test cases"), page.legend(lines)]
    for case in content.cases:
        parts += [page.heading(case.heading, 3), page.picture(case.png, alternative=case.heading, caption=case.caption)]
    return parts


def _training(content: ReportContent) -> list[str]:
    parts = []
    if content.curves is not None:
        parts += [page.heading("Training"), page.picture(content.curves, alternative="Loss and validation curves")]
    if content.trained:
        rows = [
            [name, f"{trained:,}", f"{total:,}", f"{100 * trained / total:.3g} %" if total else _ABSENT]
            for name, trained, total in content.trained
        ]
        parts += [page.heading("What was trained"), page.table(("parameters", "trained", "total", "share"), rows)]
    return parts


def _data(content: ReportContent) -> list[str]:
    if not (content.data or content.splits):
        return []
    parts = [page.heading("Data")]
    if content.splits:
        counts = sorted({name for split in content.splits.values() for name in split})
        rows = [
            [name, *(f"{split[count]:,}" if count in split else _ABSENT for count in counts)]
            for name, split in content.splits.items()
        ]
        parts.append(page.table(("split", *counts), rows))
    return [*parts, page.facts(content.data)] if content.data else parts


def _again(content: ReportContent) -> list[str]:
    parts = []
    if content.reload_code:
        parts += [page.heading("Use the model"), page.code(content.reload_code)]
    if content.run_command:
        parts += [page.heading("Run it again"), page.code(content.run_command)]
    return parts


def _costs(content: ReportContent) -> list[str]:
    seconds = {name: f"{value:,.1f} s" for name, value in content.seconds.items()}
    blocks = [
        page.heading(title, 3) + page.facts(values)
        for title, values in (("Time", seconds), ("Versions", content.versions), ("Further", content.more))
        if values
    ]
    return [page.heading("Costs and versions"), page.columns(blocks)] if blocks else []


def _share(part: int, whole: int) -> str:
    """Write a share in per cent with two digits, and whole numbers from 10 on."""
    share = 100 * part / max(1, whole)
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"
