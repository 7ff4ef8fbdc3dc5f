"""The run folder's own loggers: one metrics.csv that survives a resume, and TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from medsam_tune.files import write_text
from medsam_tune.training.run_folder import is_rank_zero


class _ContinuedWriter(ExperimentWriter):
    """Append to an existing metrics.csv instead of deleting it."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(next(csv.reader(file), []))

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns; Lightning would empty the file first, and a kill would leave it so."""
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        _write_rows(path, fieldnames, rows)

    def _check_log_dir_exists(self) -> None:
        """Leave earlier rows where they are."""


class RunCsvLogger(CSVLogger):
    """Write ``metrics.csv`` into the run folder itself; a continued run appends its rows.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder, name="", version="", flush_logs_every_n_steps=1)

    def forget_from(self, step: int, *, validation_pending: bool = False) -> None:
        """Remove the rows that a continued run will write again: those at ``step`` and later, and those of a test.

        Args:
            step: Optimizer steps that the checkpoint counts.
            validation_pending: Whether the validation after the last of them is repeated, and the end of the epoch with it.
        """
        path = Path(self.save_dir) / "metrics.csv"
        if not path.is_file() or not is_rank_zero():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
        _write_rows(path, header, [row for row in rows if _is_kept(row, step, validation_pending=validation_pending)])

    @property
    def log_dir(self) -> str:
        """Return the run folder."""
        return self.save_dir

    @property
    def experiment(self) -> ExperimentWriter:
        """Return the writer on rank 0, opened on first use; other ranks get Lightning's dummy."""
        if self._experiment is None and is_rank_zero():
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        writer: Any = self._experiment if self._experiment is not None else super().experiment
        return cast("ExperimentWriter", writer)


def _is_kept(row: dict[str, str], step: int, *, validation_pending: bool) -> bool:
    if None in row.values() or not row["step"].isdigit():
        return False  # a line that a kill cut short
    if any(value for name, value in row.items() if name.startswith("test/")):
        return False
    repeated = validation_pending and not row.get("train/loss_step")
    return int(row["step"]) < step - repeated


def _write_rows(path: Path, header: list[str], rows: list[dict[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def run_loggers(folder: Path, chosen: list[Logger] | None) -> list[Logger]:
    """Return metrics.csv plus the recipe's loggers, or plus TensorBoard where the recipe names none.

    A W&B run that an earlier training of this process left open is finished first: the new one would log into it. W&B notes no
    command line, user and folder of its own accord: a path may name a patient, and what the run needs stands in its config.
    """
    _finish_earlier_wandb()
    os.environ.setdefault("WANDB_X_DISABLE_META", "true")
    others = [TensorBoardLogger(save_dir=folder, name="", version="tensorboard")] if chosen is None else chosen
    return [RunCsvLogger(folder), *others]


def _finish_earlier_wandb() -> None:
    wandb = sys.modules.get("wandb")
    # Only a run of ours says which run folder it belongs to; one that the user opened stays.
    if wandb is not None and wandb.run is not None and wandb.run.config.get("run") is not None:
        wandb.finish()
