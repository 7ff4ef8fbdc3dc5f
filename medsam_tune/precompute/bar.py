"""The progress bar of a job whose length nobody knows beforehand."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from medsam_tune.terminal import is_watched

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")

_SILENT_SECONDS = 2.0


class DelayedBar:
    """A progress bar on a terminal's standard error that appears only when the work takes longer than two seconds.

    Args:
        shown: False never shows it.
    """

    def __init__(self, *, shown: bool) -> None:
        self._start = time.monotonic()
        self._started = False
        self._progress = _make_progress() if shown and is_watched(sys.stderr) else None

    def __enter__(self) -> DelayedBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None and self._started:
            self._progress.stop()

    def over(self, description: str, items: Sequence[Item]) -> Sequence[Item]:
        """Begin a row of the bar for these items and return them."""
        if self._progress is not None:
            self._progress.add_task(description, total=len(items))
        return items

    def advance(self, steps: int) -> None:
        """Move the newest row forward."""
        if self._progress is None:
            return
        self._progress.advance(self._progress.task_ids[-1], steps)
        if not self._started and time.monotonic() - self._start > _SILENT_SECONDS:
            self._progress.start()
            self._started = True


def _make_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True, force_jupyter=False), transient=True)
