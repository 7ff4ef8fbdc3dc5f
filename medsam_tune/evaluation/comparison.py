"""Is the tuned network better than the untuned one on the same cases? The paired difference and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from medsam_tune.metrics.interval import mean_interval
from medsam_tune.metrics.overlap import CaseScores

Verdict = Literal["better", "not shown to be better", "worse"]
_FAIR = {
    "same_prompts": "under the same prompts",
    "no_prompt": "without a prompt",
    "whole_image_box": "with the box of the whole image",
}


def paired_difference(tuned: CaseScores, untuned: CaseScores) -> dict[str, Any]:
    """Return how much more Dice the tuned network has by case, as JSON values.

    A case counts where both have a value; one without foreground in truth and prediction has none.

    Returns:
        ``mean`` of tuned minus untuned, ``ci95`` with ``ci95_method`` (None for fewer than two cases), ``n_cases``, and the
        ``verdict``: ``better`` and ``worse`` only where the interval leaves 0 out; None without a pair.
    """
    ours, theirs = (dict(zip(s.scored_cases().tolist(), s.case_dice().tolist(), strict=True)) for s in (tuned, untuned))
    gains = np.array([ours[case] - theirs[case] for case in ours if case in theirs])
    interval = mean_interval(gains, bounds=(-1.0, 1.0))
    ends = None if interval is None else (interval.low, interval.high)
    return {
        "mean": float(gains.mean()) if gains.size else None,
        "ci95": None if ends is None else list(ends),
        "ci95_method": None if interval is None else interval.method,
        "n_cases": int(gains.size),
        "verdict": _verdict(ends) if gains.size else None,
    }


def verdict_sentence(difference: Mapping[str, Any], against: str) -> str:
    """Say what ``paired_difference`` found.

    Args:
        difference: What it returned.
        against: What was compared with, in words, such as ``under the same prompts``.

    Returns:
        One sentence; empty where there is nothing to compare.
    """
    if difference["verdict"] is None:
        return ""
    ends = difference["ci95"]
    shown = "" if ends is None else f", 95 % interval {ends[0]:+.3f} to {ends[1]:+.3f}"
    cases = f"{difference['n_cases']} case{'s' if difference['n_cases'] > 1 else ''}"
    found = f"Dice {difference['mean']:+.3f} (paired over {cases}{shown})"
    return f"{difference['verdict'].capitalize()} than the untuned network {against}: {found}."


def verdict_of(baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what a run may say of itself: ``against`` which baseline, the ``verdict``, and the ``text``.

    Args:
        baselines: Summaries of the untuned network by name, each with its ``tuned_minus_this``. The comparison is with the
            one that is asked as the tuned network is; where that gets no prompt, with the better of no prompt (without which
            most released networks find nothing) and the box of the whole image, neither of which says where the object is.

    Returns:
        None where nothing can be compared.
    """
    alike = [name for name in _FAIR if name in baselines and baselines[name]["tuned_minus_this"]["verdict"] is not None]
    if not alike:
        return None
    if alike[0] != "same_prompts":
        alike.sort(key=lambda name: float(baselines[name]["tuned_minus_this"]["mean"]))
    against = alike[0]
    difference = baselines[against]["tuned_minus_this"]
    text = verdict_sentence(difference, _FAIR[against])
    return {"against": against, "verdict": difference["verdict"], "text": text}


def _verdict(ends: tuple[float, float] | None) -> Verdict:
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "not shown to be better"
    return "better" if ends[0] > 0 else "worse"
