"""Which of a decoder's candidates counts: three rules that a user could follow, and an oracle that knows the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["token0", "first", "pred_iou", "oracle"]
RULES: dict[Rule, str] = {
    "token0": "the single mask, which tuning trains",
    "first": "the first of the three candidates",
    "pred_iou": "the candidate of the highest predicted IoU",
    "oracle": "the candidate closest to the truth, which no user knows",
}


@dataclass(frozen=True)
class Candidates:
    """Hold what a network answered to one question: the single mask, and SAM's three where it has them.

    Attributes:
        masks: (K, H, W) bool, K = 4: mask token 0, then tokens 1 to 3; K = 1 where a network has one mask alone.
        predicted_iou: (K,), or None where the network predicts none.
    """

    masks: NDArray[np.bool_]
    predicted_iou: NDArray[np.float64] | None

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules that can be followed."""
        if len(self.masks) == 1:
            return ("token0",)
        return tuple(rule for rule in RULES if rule != "pred_iou" or self.predicted_iou is not None)


def choose(rule: Rule, candidates: Candidates, scores: Sequence[float]) -> int:
    """Return which candidate a rule takes.

    ``first``, ``pred_iou`` and ``oracle`` choose among the same three; ``token0`` is the single mask.

    Args:
        rule: One of ``candidates.rules()``.
        candidates: The answer.
        scores: (K,) of each candidate against the truth, read by the oracle alone.

    Raises:
        ValueError: If the network has no such candidates.
    """
    if rule not in candidates.rules():
        raise ValueError(f"rule must be one of {', '.join(candidates.rules())}, got {rule}: there is one mask, or no estimate.")
    if rule == "token0":
        return 0
    if rule == "first":
        return 1
    ranked = candidates.predicted_iou if rule == "pred_iou" else scores
    return 1 + int(np.argmax(np.asarray(ranked)[1:]))


def join(answers: Sequence[Candidates]) -> Candidates:
    """Join the answers to the boxes of one question, candidate by candidate; a predicted IoU is the mean over the boxes."""
    if len(answers) == 1:
        return answers[0]
    masks = np.logical_or.reduce([each.masks for each in answers])
    estimates = [each.predicted_iou for each in answers]
    known = [each for each in estimates if each is not None]
    return Candidates(masks, np.mean(known, axis=0) if len(known) == len(estimates) else None)
