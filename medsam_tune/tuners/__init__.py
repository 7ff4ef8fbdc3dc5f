"""What is inserted into the backbone."""

from medsam_tune.tuners.base import NoTuner, Tuner

__all__ = ["NoTuner", "Tuner"]
