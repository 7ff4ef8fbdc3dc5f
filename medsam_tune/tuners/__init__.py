"""What is inserted into the backbone. Names are imported on first use: a tuner that is not asked for loads nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam_tune.tuners.base import NoTuner, Tuner
    from medsam_tune.tuners.bottleneck_adapter import BottleneckAdapter
    from medsam_tune.tuners.peft_tuner import PeftTuner
    from medsam_tune.tuners.samed import SamedTuner

__all__ = ["BottleneckAdapter", "NoTuner", "PeftTuner", "SamedTuner", "Tuner"]

_HOMES = {
    "BottleneckAdapter": "bottleneck_adapter",
    "NoTuner": "base",
    "PeftTuner": "peft_tuner",
    "SamedTuner": "samed",
    "Tuner": "base",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
