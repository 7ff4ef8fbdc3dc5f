"""Sweeps over the values of a recipe: W&B's files, run on this machine through Optuna."""

from medsam_tune.sweeps.parameters import Parameter
from medsam_tune.sweeps.sweep_file import Sweep, expand_command, read_sweep

__all__ = ["Parameter", "Sweep", "expand_command", "read_sweep"]
