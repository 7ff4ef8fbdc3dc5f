"""What the page of a comparison says beside the figures: what each run cost, and how each sees the cases that fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsam_tune.data.pairing import first_names
from medsam_tune.errors import MedsamTuneError
from medsam_tune.evaluation.comparison_page import (
    ComparedPanel,
    ComparedRun,
    ComparedSlices,
    ComparisonContent,
    worst_cases,
)
from medsam_tune.evaluation.overlays import OverlaySlice, draw_slice
from medsam_tune.files import read_json
from medsam_tune.runs.compare import Comparison
from medsam_tune.runs.run import Run
from medsam_tune.training.pooling import pooled_runs
from medsam_tune.training.run_folder import RunFolder


def compared_runs(comparison: Comparison) -> list[ComparedRun]:
    """Return the runs of a comparison under letters, with what each cost; of pooled repetitions the mean."""
    runs = []
    names = list(comparison.tables)
    for letter, name, title in zip(letters(len(names)), names, called(names), strict=True):
        # A test on other data trains nothing: what a run cost stands in its own summary.
        summary = _summary(Path(name).expanduser())
        trained = (summary.get("parameters") or {}).get("trained")
        seconds = (summary.get("seconds") or {}).get("fit")
        runs.append(ComparedRun(letter, title, comparison.tables[name], trained, seconds))
    return runs


def comparison_content(comparison: Comparison, shown: ComparedSlices) -> ComparisonContent:
    """Return what the page says.

    Args:
        comparison: The figures.
        shown: Of ``worst_slices``.
    """
    runs = compared_runs(comparison)
    named = dict(zip(comparison.tables, (run.letter for run in runs), strict=True))
    pairs = [replace(pair, first=named[pair.first], second=named[pair.second]) for pair in comparison.differences]
    return ComparisonContent(runs, pairs, _panels(runs, shown), shown.note)


def worst_slices(comparison: Comparison, *, most: int) -> ComparedSlices:
    """Ask every run for the cases that are worst over all of them.

    Args:
        comparison: The figures.
        most: Cases at most; 0 asks nothing.
    """
    runs = compared_runs(comparison)
    cases = worst_cases(runs, most)
    found: dict[str, dict[str, OverlaySlice]] = {case: {} for case in cases}
    notes = []
    for run, name in zip(runs, comparison.tables, strict=True):
        try:
            for case, overlay in _drawn(comparison, name, cases).items():
                found[case][run.letter] = overlay
        except MedsamTuneError as error:
            notes.append(f"{run.letter} is not shown: {error}")
        if gone := [str(member) for member in pooled_runs(Path(name).expanduser()).values() if not member.is_dir()]:
            notes.append(f"{run.letter} is not shown by {first_names(gone)}: not there.")
    return ComparedSlices({case: slices for case, slices in found.items() if slices}, " ".join(notes))


def called(names: Sequence[str]) -> list[str]:
    """Return what runs are called: the recipe with the run's name, and when it began where two would be called alike.

    Examples:
        >>> called(["runs/hippocampus/lora-rank-4/2026-01-31_12-00-00", "runs/hippocampus/msa/2026-01-31_13-00-00"])
        ['lora-rank-4', 'msa']
        >>> called(["runs/hippocampus/msa/first", "runs/hippocampus/msa/second"])
        ['msa, first', 'msa, second']
    """
    parts = [Path(name).parts for name in names]
    short = [found[-2] if len(found) > 1 else found[-1] for found in parts]
    if len(set(short)) == len(short) and all(len(found) > 1 for found in parts):
        return short
    return [", ".join(found[-2:]) for found in parts]


def letters(count: int) -> list[str]:
    """Return what runs go by: A, B, ..., or R1, R2, ... where there are more than letters."""
    return [f"R{number + 1}" if count > 26 else chr(ord("A") + number) for number in range(count)]


def _drawn(comparison: Comparison, name: str, cases: Sequence[str]) -> dict[str, OverlaySlice]:
    """Return the cases as a run sees them; of pooled repetitions each as the first that tested it."""
    folder, scored = Path(name).expanduser(), comparison.scored[name]
    members, tested = pooled_runs(folder), pooled_runs(scored)
    pairs = [(members[label], tested[label]) for label in members] if members else [(folder, scored)]
    found: dict[str, OverlaySlice] = {}
    for member, place in pairs:
        left = [case for case in cases if case not in found]
        if not left or not RunFolder(member).config.is_file():
            continue
        found |= Run.open(member).draw_cases(left, _tested_as(comparison, place))
    return found


def _tested_as(comparison: Comparison, place: Path) -> dict[str, str]:
    """Return what of a run's recipe differed when the figures in a folder were made."""
    if comparison.data is None:
        return {}
    return {"data.root": comparison.data, "data.split.file": str(RunFolder(place).splits)}


def _panels(runs: Sequence[ComparedRun], shown: ComparedSlices) -> Iterator[ComparedPanel]:
    for number, (case, slices) in enumerate(shown.slices.items()):
        for run in runs:
            if run.letter in slices:
                svg = draw_slice(slices[run.letter], name=f"c{number}{run.letter}")
                yield ComparedPanel(case, run.letter, svg, f"{run.letter}: Dice {run.table.dice[case]:.3f}")


def _summary(folder: Path) -> dict[str, Any]:
    path = RunFolder(folder).summary
    return dict(read_json(path, "Test the run again.")) if path.is_file() else {}
