"""How long each epoch took, its validation included, in ``epochs.csv``; metrics.csv holds nothing that the clock decides."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from medsam_tune.files import write_text

_COLUMNS = ("epoch", "step", "seconds")


class EpochClock(Callback):
    """Write a row for each epoch that was trained from its first batch to its last.

    Args:
        path: The table; a continued run appends to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: float | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if batch_idx == 0:
            self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        started, self._started = self._started, None
        # An epoch that was resumed in its middle has no time of its own.
        if started is None or not trainer.is_global_zero:
            return
        kept = [row for row in self._rows() if int(row["epoch"]) < trainer.current_epoch]
        seconds = f"{time.perf_counter() - started:.3f}"
        self._write([*kept, {"epoch": str(trainer.current_epoch), "step": str(trainer.global_step - 1), "seconds": seconds}])

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, str]]) -> None:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, buffer.getvalue())
