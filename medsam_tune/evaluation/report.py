"""One HTML file that tells what was trained, on what, how good it is, how it looks and how to use it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam_tune.evaluation import page
from medsam_tune.evaluation.report_cases import CasePanel, CaseRow, ShownCase, case_table, gallery
from medsam_tune.evaluation.report_certainty import certainty_section
from medsam_tune.evaluation.report_results import opening, results
from medsam_tune.files import write_text

REPORT_FILE = "index.html"
PAGE_LIMIT_BYTES = 5_000_000
"""No page is larger, so that it can be mailed; pictures are left out where there are too many."""
_ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class DataContent:
    """Hold what the report says about the data; whatever is left empty is left out of the page.

    Attributes:
        facts: What the source says about itself, and what was measured: sizes, spacing, objects.
        splits: Counts by split, such as ``{"train": {"cases": 28, "images": 84}}``.
        labels: Rows (label, images that show it, objects, median size).
        size_unit: Unit of the sizes.
        histogram: PNG of the object sizes.
        samples: Training images with the contours of their masks.
        attribution: Where a bundled sample comes from.
    """

    facts: Mapping[str, object] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    labels: Sequence[tuple[str, int, int, str]] = ()
    size_unit: str = "px"
    histogram: bytes | None = None
    samples: Sequence[CasePanel] = ()
    attribution: str = ""


@dataclass(frozen=True)
class ReportContent:
    """Hold what the report says; whatever is left empty is left out of the page.

    Attributes:
        title: The recipe's name or the run's.
        data_name: What the data are called.
        description: What was done, in words, by heading: what the recipe's comment says of the method.
        trained: Rows (group of parameters, trained, total).
        data: What the report says about the data.
        test: What ``summarise`` returned for the test split.
        baselines: The same by name, for the untuned model, each with its paired ``tuned_minus_this``; first the one that is
            asked as the tuned model is.
        verdict: Whether the tuned model is better than the untuned one, as ``verdict_of`` returns it.
        moved_boxes: What ``score_moved_boxes`` returned: Dice where each box is drawn a little wrong.
        calibration: What ``summarise_certainty`` returned, or nothing.
        doubts: Case, uncertainty in bits and Dice of each test case.
        untuned_doubts: The same of the untuned network.
        inference: Summaries by name, for the tuned model under each kind of inference it offers.
        curves: PNG of ``draw_curves``.
        cases: Every test case and label.
        shown: The test cases in the order in which they are shown.
        panels: Their slices, the most important first; as many are taken as the page has room for.
        settings: What the training was asked to do, by key.
        reload_code: Lines of Python that reload the export and use it.
        predict_command: The command that uses the model on files.
        run_command: The command that runs all of it again.
        config: The resolved recipe.
        facts: Facts by block, such as ``{"Time": {"fit": "12 s"}}``.
        files: Addresses of the run's files from the report's folder, by name.
        packages: Name and version of each installed package, one a line.
        citations: BibTeX of what the run rests on.
    """

    title: str
    data_name: str = ""
    description: Mapping[str, str] = field(default_factory=dict)
    trained: Sequence[tuple[str, int, int]] = ()
    data: DataContent = DataContent()
    test: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    moved_boxes: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    doubts: Sequence[tuple[str, float, float]] = ()
    untuned_doubts: Sequence[tuple[str, float, float]] = ()
    inference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curves: bytes | None = None
    cases: Sequence[CaseRow] = ()
    shown: Sequence[ShownCase] = ()
    panels: Iterable[CasePanel] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    reload_code: str = ""
    predict_command: str = ""
    run_command: str = ""
    config: str = ""
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    packages: str = ""
    citations: str = ""


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write ``folder/index.html``, atomically, with all pictures and styles inside.

    Returns:
        The file, of ``PAGE_LIMIT_BYTES`` at most.

    Raises:
        DataError: If the folder cannot be written.
    """
    before = [*_head(content), *results(content.test, content.baselines, content.moved_boxes, content.inference)]
    before += certainty_section(content.calibration, content.doubts, content.untuned_doubts)
    table = case_table(content.cases, content.shown)
    after = [*_training(content), *_data(content.data), *_use(content), *_again(content), *_citations(content)]
    room = PAGE_LIMIT_BYTES - len(page.page(content.title, [*before, *table, *after]).encode())
    parts = [*before, *table, *gallery(content.shown, content.panels, room=room), *after]
    path = folder / REPORT_FILE
    write_text(path, page.page(content.title, parts))
    return path


def _head(content: ReportContent) -> list[str]:
    parts = [page.heading(content.title, 1)]
    if content.data_name:
        parts.append(page.paragraph(f"on {content.data_name}", kind="muted"))
    parts += opening(content.verdict, content.test, content.trained)
    if content.description:
        parts.append(page.facts(content.description))
    sections: dict[str, object] = {
        "Test results": content.test,
        "How sure it is": content.calibration,
        "Test cases": content.cases,
        "Training": content.curves or content.trained,
        "Data": content.data != DataContent(),
        "Use the model": content.reload_code,
        "Run it again": content.run_command or content.facts,
        "Cite": content.citations,
    }
    targets = {name: f"#{_name(name)}" for name, there in sections.items() if there}
    return [*parts, page.links(targets)] if len(targets) > 1 else parts


def _name(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _section(heading: str) -> str:
    return page.heading(heading, name=_name(heading))


def _training(content: ReportContent) -> list[str]:
    parts = []
    if content.curves is not None:
        alternative = "Loss, validation figures, learning rate and seconds of each epoch"
        parts.append(page.picture(content.curves, alternative=alternative))
    if content.trained:
        rows = [
            [name, f"{trained:,}", f"{total:,}", f"{100 * trained / total:.3g} %" if total else _ABSENT]
            for name, trained, total in content.trained
        ]
        parts.append(page.table(("parameters", "trained", "total", "share"), rows))
    if content.settings:
        parts.append(page.folded("Settings of the training", page.facts(content.settings)))
    return [_section("Training"), *parts] if parts else []


def _data(data: DataContent) -> list[str]:
    if data == DataContent():
        return []
    parts = [_section("Data")]
    if data.splits:
        counts = list(dict.fromkeys(name for split in data.splits.values() for name in split))
        rows = [
            [name, *(f"{split[count]:,}" if count in split else _ABSENT for count in counts)]
            for name, split in data.splits.items()
        ]
        parts.append(page.table(("split", *counts), rows))
    if data.labels:
        headers = ("label", "images that show it", "objects", f"median size ({data.size_unit})")
        parts.append(page.table(headers, [[name, f"{images:,}", f"{n:,}", size] for name, images, n, size in data.labels]))
    if data.histogram is not None:
        parts.append(page.picture(data.histogram, alternative="How large the objects are"))
    if data.samples:
        parts += [page.heading("Training images", 3), page.panels(page.panel(each.svg, each.caption) for each in data.samples)]
    if data.facts:
        parts.append(page.facts(data.facts))
    return [*parts, page.paragraph(data.attribution, kind="muted prose")] if data.attribution else parts


def _use(content: ReportContent) -> list[str]:
    parts = [page.code(content.reload_code)] if content.reload_code else []
    if content.predict_command:
        parts += [page.paragraph("Or on files and folders:"), page.code(content.predict_command)]
    return [_section("Use the model"), *parts] if parts else []


def _again(content: ReportContent) -> list[str]:
    parts = [page.code(content.run_command)] if content.run_command else []
    blocks = [page.heading(title, 3) + page.facts(values) for title, values in content.facts.items() if values]
    if content.files:
        parts.append(page.links(content.files))
    if blocks:
        parts.append(page.columns(blocks))
    if content.config:
        parts.append(page.folded("The resolved recipe", page.code(content.config)))
    if content.packages:
        parts.append(page.folded("Installed packages", page.code(content.packages)))
    return [_section("Run it again"), *parts] if parts else []


def _citations(content: ReportContent) -> list[str]:
    return [_section("Cite"), page.code(content.citations)] if content.citations else []
