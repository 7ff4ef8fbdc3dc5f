"""The recipe keys under ``run``: everything about a run that is neither model, data nor trainer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.measures import NSD_TOLERANCE
from medsam_tune.inference.automatic_settings import AutomaticSettings

_NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,63}", re.ASCII)


@dataclass
class RunSettings:
    """Settings of a run.

    Attributes:
        folder: Where run folders are made: ``<folder>/<data>/<recipe>-<name>/<timestamp>``.
        name: What tells the runs of one recipe apart; letters, digits, ``.``, ``_`` and ``-``.
        save_every_n_steps: Optimizer steps between two writes of ``last.ckpt``; a killed run loses at most these.
        early_stopping_patience: Validations without a better Dice before training stops; None never stops early.
        baselines: Also score the untuned network on the test cases: asked as the tuned one is, and with boxes.
        report: Also write the HTML report.
        box_jitter: Share of its width and height by which each side of a test's box is moved, in or out, in one more scoring of
            networks that are asked with boxes; 0 leaves it out.
        nsd_tolerance_mm: Distance within which surfaces agree in a test's normalised surface Dice, in mm; in pixels where no
            file states a spacing.
        calibration: Also hold the tuned network's probabilities, and its uncertainty under moved boxes, against its errors.
        automatic: Also find masks in the test images without a prompt and compare them with the instances (``data.target:
            per_instance``), before and after tuning: average precision, panoptic quality, AJI, F1. Not by default.
        compile: Train the encoder's blocks through ``torch.compile``; on a GPU, where the encoder runs in each step.
    """

    folder: str = "runs"
    name: str | None = None
    save_every_n_steps: int = 50
    early_stopping_patience: int | None = None
    baselines: bool = True
    report: bool = True
    box_jitter: float = 0.1
    nsd_tolerance_mm: float = NSD_TOLERANCE
    calibration: bool = True
    automatic: AutomaticSettings | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if not self.folder.strip():
            raise RecipeError("run.folder: is empty, so runs would lie in the current folder. Give one, such as runs.")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise RecipeError(
                f"run.name: {self.name!r} becomes part of a folder's name. Give letters, digits, '.', '_' and '-', 64 at most."
            )
        if self.save_every_n_steps < 1:
            raise RecipeError(f"run.save_every_n_steps: must be at least 1, got {self.save_every_n_steps}.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise RecipeError(f"run.early_stopping_patience: must be at least 1 or null, got {self.early_stopping_patience}.")
        if not 0 <= self.nsd_tolerance_mm < float("inf"):
            raise RecipeError(f"run.nsd_tolerance_mm: must be at least 0 mm, got {self.nsd_tolerance_mm}; 2 is MedSAM's.")
        if not 0 <= self.box_jitter < 1:
            raise RecipeError(f"run.box_jitter: must be at least 0 and below 1, got {self.box_jitter}; 0.1 is 10 %.")
