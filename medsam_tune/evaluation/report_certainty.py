"""The report's part on how sure the network is of its answers, and whether it is right to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsam_tune.evaluation import page
from medsam_tune.evaluation.scatter import Axes, Point, scatter

_KINDS = {
    "box_ensemble": "the entropy of the mean answer to eight boxes, each side of which is moved by up to a tenth of the box",
    "one_answer": "the entropy of the answer",
}


def certainty_section(
    calibration: Mapping[str, Any],
    doubts: Sequence[tuple[str, float, float]],
    untuned_doubts: Sequence[tuple[str, float, float]] = (),
) -> list[str]:
    """Return the reliability curve, uncertainty against Dice, and selective Dice, as pieces of the page.

    Args:
        calibration: What ``summarise_certainty`` returned; nothing gives no section.
        doubts: Case, uncertainty in bits and Dice of each test case.
        untuned_doubts: The same of the untuned network.
    """
    if not calibration:
        return []
    untuned = calibration.get("untuned") or {}
    bins = [*_bins(calibration), *_bins(untuned, is_untuned=True)]
    cases = [*_cases(doubts), *_cases(untuned_doubts, is_untuned=True)]
    plots = [
        scatter(bins, Axes("Share of object pixels", "probability", "share", has_diagonal=True)),
        scatter(cases, Axes("Dice by case", "uncertainty (bits)", "Dice")),
    ]
    return [
        page.heading("How sure it is", name="how-sure-it-is"),
        page.tiles(_tiles(calibration)),
        page.plots(plots),
        page.paragraph(_note(calibration), kind="muted"),
    ]


def _cases(doubts: Sequence[tuple[str, float, float]], *, is_untuned: bool = False) -> list[Point]:
    name = ", untuned" if is_untuned else ""
    return [
        Point(doubt, dice, f"{case}{name}: Dice {dice:.3f}, {doubt:.3f} bits", is_untuned=is_untuned)
        for case, doubt, dice in doubts
    ]


def _bins(calibration: Mapping[str, Any], *, is_untuned: bool = False) -> list[Point]:
    name = "untuned" if is_untuned else "tuned"
    return [
        Point(
            each["probability"],
            each["object_share"],
            f"{name}: {each['pixels']:,} pixels of probability {each['probability']:.2f}",
            is_untuned=is_untuned,
        )
        for each in calibration.get("bins") or ()
    ]


def _tiles(calibration: Mapping[str, Any]) -> list[tuple[str, str]]:
    ece, selective = calibration["ece"], calibration["selective"]
    tiles = []
    if ece["mean"] is not None:
        before = ((calibration.get("untuned") or {}).get("ece") or {}).get("mean")
        untuned = "" if before is None else f"; untuned {before:.3f}"
        tiles.append((f"{ece['mean']:.3f}", f"expected calibration error, mean over cases{untuned}"))
    if (rank := calibration["uncertainty"]["spearman"]) is not None:
        tiles.append((f"{rank:+.2f}", "Spearman's correlation of uncertainty and error"))
    if selective is not None:
        count = selective["n_dropped"]
        dropped = "case" if count == 1 else f"{count} cases"
        tiles.append((f"{selective['kept']:.3f}", f"Dice without the least certain {dropped}, {selective['all']:.3f} with"))
    return tiles


def _note(calibration: Mapping[str, Any]) -> str:
    kind = _KINDS[calibration["uncertainty"]["kind"]]
    untuned = " The other colour is the untuned network's, asked alike." if calibration.get("untuned") else ""
    return (
        "On the dashed line a network is as often right as it says. Pixels are those of the box around truth and prediction, a "
        f"tenth larger. Uncertainty is {kind}, over the pixels that are called object, by case.{untuned}"
    )
