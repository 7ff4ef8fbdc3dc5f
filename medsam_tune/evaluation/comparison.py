"""Is the tuned network better than the untuned one on the same cases? The paired difference and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from medsam_tune.metrics.interval import mean_interval
from medsam_tune.metrics.overlap import CaseScores

Case = TypeVar("Case", int, str)
Verdict = Literal["better", "not shown to be better", "worse", "not compared"]
_FAIR = {
    "same_prompts": "under the same prompts",
    "no_prompt": "without a prompt",
    "whole_image_box": "with the box of the whole image",
}


def paired_difference(tuned: CaseScores, untuned: CaseScores, patients: Sequence[str] | None = None) -> dict[str, Any]:
    """Return how much more Dice the tuned network has by case, as JSON values.

    A case counts where both have a value; one without foreground in truth and prediction has none.

    Args:
        tuned: Scores of the tuned network.
        untuned: Scores of the untuned one on the same cases.
        patients: Patient of each case index; without it every case is a patient of its own.

    Returns:
        ``mean`` of tuned minus untuned, ``ci95`` with ``ci95_method`` (None for fewer than two patients), ``n_cases`` and
        ``n_patients``, and the ``verdict``: ``better`` and ``worse`` only where the interval leaves 0 out; None without a pair.
    """
    ours, theirs = (dict(zip(s.scored_cases().tolist(), s.case_dice().tolist(), strict=True)) for s in (tuned, untuned))
    return difference_of(ours, theirs, dict(enumerate(patients)) if patients is not None else {})


def difference_of(tuned: Mapping[Case, float], untuned: Mapping[Case, float], patients: Mapping[Case, str]) -> dict[str, Any]:
    """Return what ``paired_difference`` does, of the Dice of each case.

    Args:
        tuned: Of the tuned network.
        untuned: Of the untuned one.
        patients: A case that is not there is a patient of its own.
    """
    both = [case for case in tuned if case in untuned]
    gains = np.array([tuned[case] - untuned[case] for case in both])
    people = [patients.get(case, case) for case in both]
    interval = mean_interval(gains, groups=people, bounds=(-1.0, 1.0))
    ends = None if interval is None else (interval.low, interval.high)
    return {
        "mean": float(gains.mean()) if gains.size else None,
        "ci95": None if ends is None else list(ends),
        "ci95_method": None if interval is None else interval.method,
        "n_cases": len(both),
        "n_patients": len(set(people)),
        "verdict": _verdict(ends) if gains.size else None,
    }


def verdict_sentence(difference: Mapping[str, Any], against: str) -> str:
    """Say what ``paired_difference`` found.

    Args:
        difference: What it returned, with at least one pair.
        against: What was compared with, in words, such as ``under the same prompts``.

    Returns:
        One sentence.
    """
    ends, cases, patients = difference["ci95"], difference["n_cases"], difference["n_patients"]
    if ends is None:
        only = "case" if cases == 1 else "patient"
        how = f"on the one test {only}, which shows nothing: it has no interval; folds=K tests every {only} once"
    else:
        of = "" if cases == patients else f" of {patients} patients"
        how = f"(paired over {cases} cases{of}, 95 % interval {ends[0]:+.3f} to {ends[1]:+.3f})"
    return f"{difference['verdict'].capitalize()} than the untuned network {against}: Dice {difference['mean']:+.3f} {how}."


def verdict_of(baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a run may say of itself: the ``verdict``, the ``text``, ``against`` which baseline, and the ``difference``.

    Args:
        baselines: Summaries of the untuned network by name, each with its ``tuned_minus_this``. The comparison is with the
            one that is asked as the tuned network is; where that gets no prompt, with the better of no prompt (without which
            most released networks find nothing) and the box of the whole image, neither of which says where the object is.

    Returns:
        As above; ``not compared`` where no case pairs the two.
    """
    alike = [name for name in _FAIR if name in baselines and baselines[name]["tuned_minus_this"]["verdict"] is not None]
    if not alike:
        return not_compared("no test case has a Dice of both, since truth and predictions are empty")
    if alike[0] != "same_prompts":
        alike.sort(key=lambda name: float(baselines[name]["tuned_minus_this"]["mean"]))
    against = alike[0]
    return verdict_against(against, baselines[against]["tuned_minus_this"])


def verdict_against(against: str, difference: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``verdict_of`` does, of one difference.

    Args:
        against: ``same_prompts``, ``no_prompt`` or ``whole_image_box``.
        difference: Of ``paired_difference``, with a pair.
    """
    figures = {name: difference[name] for name in ("mean", "ci95", "ci95_method", "n_cases", "n_patients")}
    text = verdict_sentence(difference, _FAIR[against])
    return {"verdict": difference["verdict"], "text": text, "against": against, "difference": figures}


def not_compared(why: str) -> dict[str, Any]:
    """Return the verdict of a run that has nothing to be compared with.

    Args:
        why: The rest of the sentence, such as ``run.baselines is false``.
    """
    verdict: Verdict = "not compared"
    return {"verdict": verdict, "text": f"Not compared with an untuned network: {why}.", "against": None, "difference": None}


def _verdict(ends: tuple[float, float] | None) -> Verdict:
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "not shown to be better"
    return "better" if ends[0] > 0 else "worse"
