"""Turn the test metric into summary.json and test_cases.csv."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from medsam_tune import __version__
from medsam_tune.backbone.freezing import trainable_report
from medsam_tune.evaluation.measures import NSD_TOLERANCE, CaseMeasures, measure_cases, summarise_measures
from medsam_tune.evaluation.summary import summarise, write_case_table
from medsam_tune.files import write_json
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.training.checkpoint import read_checkpoint
from medsam_tune.training.module import TuningModule, tuned
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.saving import best_score

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.metrics.overlap import CaseScores
    from medsam_tune.training.callbacks import StageClock

PACKAGES = ("torch", "torchvision", "lightning", "segment-anything", "timm", "monai", "peft")


class TestResults(Callback):
    """Keep the test scores and write them into the run folder on rank 0.

    Attributes:
        scores: The scores of all ranks after a test, or None.
        measures: Distances and sizes of the same cases, or None.
        baseline_scores: Scores of the untuned network on the same cases, by way of asking, once they were made.
        summary: What ``summary.json`` holds.
        found: What a callback found for keys of the recipe, such as ``data.batch_size``.
        nsd_tolerance: ``run.nsd_tolerance_mm``.
        pretraining: On what the weights were pretrained, where they were.
    """

    __test__ = False  # pytest would collect a class of this name

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self.clock: StageClock | None = None
        self.scores: CaseScores | None = None
        self.measures: CaseMeasures | None = None
        self.baseline_scores: dict[str, CaseScores] = {}
        self.summary: dict[str, Any] = {}
        self.found: dict[str, int] = {}
        self.nsd_tolerance = NSD_TOLERANCE
        self.pretraining: dict[str, Any] | None = None
        self._tested_step: int | None = None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._tested_step = checkpoint["global_step"]

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A collective: every rank takes part, whoever writes.
        metric = tuned(pl_module).test_metric
        self.scores = metric.scores() if isinstance(metric, OverlapMetric) else None

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = tuned(pl_module)
        module.test_metric.reset()
        if not trainer.is_global_zero or self.folder is None or self.scores is None:
            return
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.measures = measure_cases(self.scores, data.voxel_sizes("test"), tolerance=self.nsd_tolerance)
        self.write_cases(data)
        self.summary = {
            "test": {
                **summarise(self.scores, data.case_names, data.label_names, data.case_patients),
                **summarise_measures(self.scores, self.measures, data.case_patients),
            },
            **self._facts(trainer, module),
        }
        self.write()

    def write_cases(self, data: SegmentationDataModule) -> None:
        """Write the table of test cases, with the Dice of the untuned network once it is known."""
        if self.folder is not None and self.scores is not None and self.measures is not None:
            names = data.case_names, data.label_names, data.case_patients
            write_case_table(self.folder.test_cases, self.scores, self.measures, *names, untuned=self.untuned_dice())

    def untuned_dice(self) -> dict[tuple[int, int], float]:
        """Return the Dice of the network that the verdict is against, by case index and label; empty before there is one."""
        scores = self.baseline_scores.get((self.summary.get("verdict") or {}).get("against") or "")
        if scores is None:
            return {}
        keys = zip(scores.case_index.tolist(), scores.label.tolist(), strict=True)
        return {key: float(dice) for key, dice in zip(keys, scores.dice, strict=True) if not np.isnan(dice)}

    def take_untested(self, trainer: pl.Trainer, module: TuningModule, best: Path) -> None:
        """Load the best weights and write the summary of a task that has no test.

        Args:
            trainer: After the training.
            module: Its module.
            best: The checkpoint.
        """
        checkpoint = read_checkpoint(best)
        self._tested_step = checkpoint["global_step"]
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        score = best_score(trainer)
        figures = {} if score is None else {module.task.monitor: score}
        if self.folder is not None and score is not None:
            figures |= validation_of(self.folder.metrics_csv, module.task.monitor, score)
        self.summary = {"validation": figures, **self._facts(trainer, module)}
        verdict = module.task.verdict({name.removeprefix("val/"): value for name, value in figures.items()})
        if trainer.is_global_zero:
            self.write(**({} if verdict is None else {"verdict": verdict}))

    def _facts(self, trainer: pl.Trainer, module: TuningModule) -> dict[str, Any]:
        weights = module.segmenter.base_weights()
        return {
            "parameters": parameter_counts(module),
            "base_weights": None if weights is None else {"name": weights.name, "sha256": weights.sha256},
            "tested_step": self._tested_step,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "versions": versions(),
            **({"found": self.found} if self.found else {}),
            **({"pretraining": self.pretraining} if self.pretraining else {}),
        }

    def write(self, **more: Any) -> None:  # noqa: ANN401 - JSON values
        """Add ``more`` to the summary and write it, a verdict first, with the seconds and the peak memory so far."""
        if self.folder is None:
            return
        self.summary |= more
        if verdict := self.summary.pop("verdict", None):
            self.summary = {"verdict": verdict, **self.summary}
        self.summary["seconds"] = dict(self.clock.seconds) if self.clock else {}
        self.summary["peak_memory_gb"] = peak_memory_gb()
        write_json(self.folder.summary, self.summary)


def validation_of(table: Path, monitor: str, score: float) -> dict[str, float]:
    """Return all figures of the validation that gave the best score, by name; empty where no table tells them.

    Args:
        table: ``metrics.csv``.
        monitor: The figure that chose.
        score: Its value.
    """
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(monitor)]
    if not rows:
        return {}
    best = min(rows, key=lambda row: abs(float(row[monitor]) - score))
    return {name: float(value) for name, value in best.items() if name.startswith("val/") and value}


def parameter_counts(module: TuningModule) -> dict[str, int]:
    """Return how many parameters are trained and how many there are, in the network and in its task."""
    reports = [trainable_report(part) for part in (module.segmenter, module.task)]
    return {"trained": sum(report.trained for report in reports), "total": sum(report.total for report in reports)}


def peak_memory_gb() -> float:
    """Return the process's peak memory in GB (10^9 bytes): of the CUDA device where one was used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 3)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    # Our own is written down: a checkout on PYTHONPATH is installed nowhere.
    ours = {"python": platform.python_version(), "medsam-tune": __version__}
    return ours | {name: importlib.metadata.version(name) for name in PACKAGES}
