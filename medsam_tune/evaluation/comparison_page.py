"""Several runs held against each other on one page: leaderboard, paired differences, costs, and the cases that fail."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.evaluation import page
from medsam_tune.evaluation.case_tables import CaseTable, PairedDifference
from medsam_tune.evaluation.overlays import OverlaySlice
from medsam_tune.evaluation.report import PAGE_LIMIT_BYTES
from medsam_tune.evaluation.scatter import Axes, Point, scatter
from medsam_tune.files import write_text
from medsam_tune.metrics.interval import METHOD_NAMES, Interval

_ABSENT = "\N{EN DASH}"
_LINES = (
    ("truth", "ground truth"),
    ("tuned", "this run"),
    ("untuned", "the untuned network, asked alike"),
    ("prompt", "prompts"),
)


@dataclass(frozen=True)
class ComparedRun:
    """Hold what a comparison says of one run.

    Attributes:
        letter: What it goes by, such as ``A``.
        name: What it is called.
        table: Its test cases.
        trained: Trained parameters, or None where its summary does not say.
        seconds: Of its training, or None.
    """

    letter: str
    name: str
    table: CaseTable
    trained: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ComparedPanel:
    """Hold how one run sees a slice of a case.

    Attributes:
        case: The case.
        letter: The run.
        svg: Of ``overlays.draw_slice``.
        caption: Text below it.
    """

    case: str
    letter: str
    svg: str
    caption: str


@dataclass(frozen=True)
class ComparedSlices:
    """Hold how each run sees the worst cases.

    Attributes:
        slices: For each case the slice as each run sees it, by letter.
        note: Which runs could not be asked, and why; empty where all could.
    """

    slices: Mapping[str, Mapping[str, OverlaySlice]]
    note: str = ""


@dataclass(frozen=True)
class ComparisonContent:
    """Hold what the page says.

    Attributes:
        runs: The runs, in the order in which they were given.
        differences: Of every two, named by letter.
        panels: The worst cases, run by run; taken while the page has room.
        note: Why pictures are missing, or empty.
        title: Of the page.
    """

    runs: Sequence[ComparedRun]
    differences: Sequence[PairedDifference]
    panels: Iterable[ComparedPanel] = ()
    note: str = ""
    title: str = "Runs compared"


def ranked(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs by mean Dice, the best first; one without a value last."""
    return sorted(runs, key=lambda run: (math.isnan(run.table.mean), -run.table.mean))


def leaderboard(content: ComparisonContent) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of the leaderboard, each with its paired difference to the best."""
    order = ranked(content.runs)
    best = order[0]
    against = {frozenset((pair.first, pair.second)): pair for pair in content.differences}
    several = len(content.differences) > 1
    headers = ["run", "Dice", "95 % interval", f"minus {best.letter}", "p (Holm)" if several else "p"]
    headers += ["IoU", "NSD", "HD95", "trained", "seconds"]
    rows = []
    for run in order:
        pair = against.get(frozenset((run.letter, best.letter)))
        rows.append(
            [
                f"{run.letter}: {run.name}",
                _figure(run.table.mean),
                _short(run.table.interval()),
                *(_against(pair, run.letter) if pair is not None else (_ABSENT, _ABSENT)),
                *(_figure(_mean(run.table.figures.get(name))) for name in ("iou", "nsd")),
                _distance(run.table.figures.get("hd95")),
                _ABSENT if run.trained is None else f"{run.trained:,}",
                _ABSENT if run.seconds is None else f"{run.seconds:,.0f}",
            ]
        )
    return headers, rows


def worst_cases(runs: Sequence[ComparedRun], most: int) -> list[str]:
    """Return the cases with the lowest mean Dice over the runs, the worst first."""
    shared = set.intersection(*(set(run.table.dice) for run in runs)) if runs else set()
    means = {case: statistics.mean(run.table.dice[case] for run in runs) for case in shared}
    return sorted(means, key=lambda case: (means[case], case))[:most]


def write_comparison(path: Path, content: ComparisonContent) -> Path:
    """Write the page, atomically, with all pictures and styles inside.

    Returns:
        The file, of ``PAGE_LIMIT_BYTES`` at most.

    Raises:
        DataError: If the file cannot be written.
    """
    parts = [page.heading(content.title, 1), *_board(content), *_pairs(content), *_plots(content.runs), *_cases(content.runs)]
    room = PAGE_LIMIT_BYTES - len(page.page(content.title, parts).encode()) - 4096
    return write_text(path, page.page(content.title, [*parts, *_gallery(content, room)]))


def _board(content: ComparisonContent) -> list[str]:
    (run, dice, interval, *headers), rows = leaderboard(content)
    # The interval goes with its figure, so that a narrow page can show it below.
    headers = [run, f"{dice} ({interval})", *headers]
    rows = [[name, mean if ends == _ABSENT else f"{mean} ({ends})", *others] for name, mean, ends, *others in rows]
    cells = [[page.Cell(text, _value(text)) if column else text for column, text in enumerate(row)] for row in rows]
    table = page.table(headers, cells, strong=(0,), sortable=True)
    return [page.heading("Leaderboard", name="leaderboard"), table, page.paragraph(_unit(content.runs), kind="muted")]


def _pairs(content: ComparisonContent) -> list[str]:
    several = len(content.differences) > 1
    headers = ["", "difference", "95 % interval", "cases", "p", *(["p (Holm)"] if several else []), ""]
    rows = []
    for pair in content.differences:
        p = pair.p_holm if several else pair.p
        told = "no interval" if math.isnan(p) else "differ" if p <= 0.05 else "not told from chance"
        corrected = [_p(pair.p_holm)] if several else []
        values = [f"{pair.mean:+.4f}", _ends(pair.interval, "+"), str(pair.n_cases), _p(pair.p), *corrected]
        rows.append([f"{pair.first} \N{MINUS SIGN} {pair.second}", *values, told])
    return [page.heading("Paired differences", name="differences"), page.table(headers, rows)]


def _plots(runs: Sequence[ComparedRun]) -> list[str]:
    costs: dict[str, list[float | None]] = {
        "trained parameters": [run.trained for run in runs],
        "seconds of training": [run.seconds for run in runs],
    }
    drawn = []
    for name, values in costs.items():
        points = []
        for run, value in zip(runs, values, strict=True):
            if value:
                interval = run.table.interval()
                low, high = (None, None) if interval is None else (interval.low, interval.high)
                points.append(Point(float(value), run.table.mean, f"{run.letter}: {run.name}", run.letter, low, high))
        drawn.append(scatter(points, Axes(f"Dice against {name}", name, "Dice", is_log=True)))
    best, *others = ranked(runs)
    for run in others:
        shared = sorted(set(best.table.dice) & set(run.table.dice))
        points = [
            Point(
                best.table.dice[case], run.table.dice[case], f"{case}: {best.table.dice[case]:.3f}, {run.table.dice[case]:.3f}"
            )
            for case in shared
        ]
        axes = Axes(f"Dice by case: {run.letter} over {best.letter}", f"Dice of {best.letter}", "Dice", has_diagonal=True)
        drawn.append(scatter(points, axes))
    return [page.heading("What it costs, and case by case", name="plots"), page.plots(drawn)]


def _cases(runs: Sequence[ComparedRun]) -> list[str]:
    headers = ["case", *(run.letter for run in runs), "mean", "range"]
    shown = sorted(set().union(*(run.table.dice for run in runs)))
    rows: list[tuple[float, list[str | page.Cell]]] = []
    for case in shown:
        values = [run.table.dice.get(case, math.nan) for run in runs]
        known = [value for value in values if not math.isnan(value)]
        figures = [*values, statistics.mean(known), max(known) - min(known)]
        rows.append((statistics.mean(known), [case, *(page.Cell(_figure(value), value) for value in figures)]))
    ordered = [row for _, row in sorted(rows, key=lambda row: row[0])]
    return [page.heading("Test cases", name="cases"), page.table(headers, ordered, sortable=True)]


def _gallery(content: ComparisonContent, room: int) -> list[str]:
    taken: dict[str, list[ComparedPanel]] = {}
    for case, panels in itertools.groupby(content.panels, key=lambda panel: panel.case):
        of_case = list(panels)
        room -= sum(len(page.panel(each.svg, each.caption).encode()) for each in of_case)
        if room < 0:
            break
        taken[case] = of_case
    if not taken and not content.note:
        return []
    parts = [page.heading("Worst cases", name="worst")]
    if taken:
        parts += [page.legend(_LINES), page.paragraph("A click enlarges a slice.", kind="muted")]
    for case, of_case in taken.items():
        parts += [page.heading(case, 3), page.panels(page.panel(each.svg, each.caption) for each in of_case)]
    return [*parts, page.paragraph(content.note, kind="muted")] if content.note else parts


def _unit(runs: Sequence[ComparedRun]) -> str:
    table = runs[0].table
    people = len(set(table.patients_of(table.dice)))
    unit = f"{people} patients" if people < len(table.dice) else "cases"
    interval = table.interval()
    method = "" if interval is None else f", by {METHOD_NAMES[interval.method]}"
    return (
        f"{len(table.dice)} test cases. Intervals and the paired t test are over {unit}{method}. "
        "A distance is the mean over cases with a finite one."
    )


def _against(pair: PairedDifference, letter: str) -> tuple[str, str]:
    sign = 1 if pair.first == letter else -1
    ends = pair.interval
    low, high = (math.nan, math.nan) if ends is None else sorted((sign * ends.low, sign * ends.high))
    shown = "" if ends is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{sign * pair.mean:+.4f}{shown}", _p(pair.p_holm)


def _mean(values: Mapping[str, float] | None) -> float:
    return statistics.mean(values.values()) if values else math.nan


def _distance(values: Mapping[str, float] | None) -> str:
    finite = [value for value in (values or {}).values() if math.isfinite(value)]
    missing = len(values or {}) - len(finite)
    shown = _figure(statistics.mean(finite)) if finite else _ABSENT
    return f"{shown} ({missing} infinite)" if missing else shown


def _figure(value: float) -> str:
    return _ABSENT if math.isnan(value) else f"{value:.4f}"


def _ends(interval: Interval | None, sign: str) -> str:
    return _ABSENT if interval is None else f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f} ({interval.method})"


def _short(interval: Interval | None) -> str:
    return _ABSENT if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _p(value: float) -> str:
    return _ABSENT if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _value(text: str) -> float | None:
    """Return the number that a cell begins with, by which its column is sorted."""
    try:
        return float(text.split(" ")[0].replace(",", ""))
    except ValueError:
        return None
