"""The report's test cases: every one in a table, and as many of their slices as the page has room for, failures first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medsam_tune.evaluation import page

_ABSENT = "\N{EN DASH}"
_LINES = (
    ("truth", "ground truth"),
    ("tuned", "tuned"),
    ("untuned", "untuned, asked alike"),
    ("prompt", "prompts: boxes, points (round: on the object, square: beside it)"),
)
_SUMMARY_BYTES = 400  # what a case takes beside its pictures


@dataclass(frozen=True)
class CaseRow:
    """Hold what is known of one test case and label.

    Attributes:
        case: The case.
        label: The label.
        n_slices: Slices that were tested.
        dice: None where the pair is excluded, like ``iou`` and ``hd95``.
        iou: IoU.
        hd95: May be infinite.
        distance_unit: Unit of ``hd95``.
        true_size: Volume or area over the slices that were tested.
        predicted_size: The same of the prediction.
        size_unit: Unit of the sizes.
        nsd: Normalised surface Dice; None where it is undefined.
        untuned_dice: Dice of the untuned network under the same queries; None where it was not scored.
    """

    case: str
    label: str
    n_slices: int
    dice: float | None
    iou: float | None
    hd95: float | None
    distance_unit: str
    true_size: float
    predicted_size: float
    size_unit: str
    untuned_dice: float | None = None
    nsd: float | None = None


@dataclass(frozen=True)
class ShownCase:
    """Hold how a case is announced.

    Attributes:
        case: The case.
        heading: Such as ``Worst: case_07, Dice 0.81``.
        is_open: Whether its pictures are there at first sight.
        n_slices: Slices that it has.
    """

    case: str
    heading: str
    is_open: bool = False
    n_slices: int = 1


@dataclass(frozen=True)
class CasePanel:
    """Hold one slice.

    Attributes:
        case: Its case.
        svg: The picture, of ``overlays.draw_slice``.
        caption: Text below it.
        position: Place among the slices of the case.
        is_picked: Whether it stands for its case; the others are shown on demand.
    """

    case: str
    svg: str
    caption: str
    position: int = 0
    is_picked: bool = True


def case_table(rows: Sequence[CaseRow], shown: Sequence[ShownCase]) -> list[str]:
    """Return heading and table of all test cases; nothing where there is none."""
    if not rows:
        return []
    names = {each.case: case_name(number) for number, each in enumerate(shown)}
    labelled, compared = len({row.label for row in rows}) > 1, any(row.untuned_dice is not None for row in rows)
    headers = ["case", *(["label"] if labelled else []), "slices", "Dice", *(["untuned Dice"] if compared else [])]
    measured = any(row.nsd is not None for row in rows)
    has = _Columns(labelled, compared, measured)
    cells = [_cells(row, names.get(row.case, ""), has) for row in rows]
    units = _one_or_all(row.distance_unit for row in rows), _one_or_all(row.size_unit for row in rows)
    headers += [
        "IoU",
        f"HD95{units[0]}",
        *(["NSD"] if measured else []),
        f"true size{units[1]}",
        f"predicted size{units[1]}",
        "difference",
    ]
    note = (
        "A click on a heading sorts. HD95: 95th percentile of the distance between the outlines; infinite where one of the two "
        "masks is missing. Sizes are over the slices that were tested; the difference is predicted minus true."
    )
    table = page.table(headers, cells, sortable=True)
    return [page.heading("Test cases", name="test-cases"), table, page.paragraph(note, kind="muted")]


def gallery(shown: Sequence[ShownCase], panels: Iterable[CasePanel], *, room: int) -> list[str]:
    """Return the cases with their slices; cases of one image stand side by side.

    Args:
        shown: The cases in their order on the page.
        panels: Slices, the most important first; taken until the room is used up, so that no more are drawn than are shown.
        room: Bytes that the pieces may take.
    """
    if not shown:
        return []
    taken: dict[str, list[CasePanel]] = {}
    used = 4096 + _SUMMARY_BYTES * len(shown)
    for panel in panels:
        size = len(page.panel(panel.svg, panel.caption).encode())
        if used + size > room:
            break
        used += size
        taken.setdefault(panel.case, []).append(panel)
    found = [(each, case_name(number), taken[each.case]) for number, each in enumerate(shown) if each.case in taken]
    if not found:
        return []
    if all(len(slices) == 1 for *_, slices in found):
        alone = (page.panel(slices[0].svg, f"{each.heading} ({slices[0].caption})", name=name) for each, name, slices in found)
        parts = [page.panels(alone)]
    else:
        parts = [_case(each, name, slices) for each, name, slices in found]
    note = "A click enlarges a slice; Esc or a second click shrinks it."
    count, total = sum(len(slices) for *_, slices in found), sum(each.n_slices for each in shown)
    if count < total:
        note += f" Shown are {count:,} of {total:,} slices, of {len(found):,} of {len(shown):,} cases, failures first."
    return [page.legend(_LINES), page.paragraph(note, kind="muted"), *parts]


def case_name(number: int) -> str:
    """Return the identifier of a shown case on the page, by its place."""
    return f"case-{number}"


def _case(shown: ShownCase, name: str, panels: Sequence[CasePanel]) -> str:
    ordered = sorted(panels, key=lambda panel: panel.position)
    picked, others = ([panel for panel in ordered if panel.is_picked is wanted] for wanted in (True, False))
    inner = page.panels(page.panel(panel.svg, panel.caption) for panel in picked)
    if others:
        count = f"{len(others)} further slice{'s' if len(others) > 1 else ''}"
        inner += page.folded(count, page.panels(page.panel(panel.svg, panel.caption) for panel in others))
    return page.folded(shown.heading, inner, kind="case", name=name, is_open=shown.is_open)


@dataclass(frozen=True)
class _Columns:
    """Say which columns the table has beside those that it always has."""

    label: bool
    untuned: bool
    nsd: bool


def _cells(row: CaseRow, link: str, has: _Columns) -> list[str | page.Cell]:
    difference = row.predicted_size - row.true_size
    return [
        page.Cell(row.case, link=link),
        *([row.label] if has.label else []),
        page.Cell(str(row.n_slices), row.n_slices),
        _ratio(row.dice),
        *([_ratio(row.untuned_dice)] if has.untuned else []),
        _ratio(row.iou),
        _distance(row.hd95),
        *([_ratio(row.nsd)] if has.nsd else []),
        *(page.Cell(_size(size), size) for size in (row.true_size, row.predicted_size)),
        page.Cell(f"{'+' if difference > 0 else ''}{_size(difference)}", difference),
    ]


def _size(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _ratio(value: float | None) -> page.Cell:
    return page.Cell(_ABSENT) if value is None else page.Cell(f"{value:.3f}", value)


def _distance(value: float | None) -> page.Cell:
    if value is None:
        return page.Cell(_ABSENT)
    return page.Cell("\N{INFINITY}", 1e9) if math.isinf(value) else page.Cell(f"{value:.2f}", value)


def _one_or_all(units: Iterable[str]) -> str:
    """Return the unit for a heading; all of them where cases differ."""
    return f" ({', '.join(sorted(set(units)))})".replace("mm2", "mm\N{SUPERSCRIPT TWO}")
