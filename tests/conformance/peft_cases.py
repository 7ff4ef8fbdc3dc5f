"""The tuners of the peft library that the conformance suite runs over: name to (maker, encoder families)."""

from __future__ import annotations

from collections.abc import Callable

from medsam_tune.tuners.base import Tuner

PEFT_CASES: dict[str, tuple[Callable[[], Tuner], tuple[str, ...]]] = {}
