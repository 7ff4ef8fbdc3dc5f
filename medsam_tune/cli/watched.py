"""The bar of a command that answers one file or case after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from medsam_tune.terminal import is_watched

T = TypeVar("T")


def behind_a_bar(answers: Iterable[T], title: str, *, total: int) -> list[T]:
    """Return all answers, behind a bar on standard error that counts them where somebody watches.

    Args:
        answers: Made one by one.
        title: What is done.
        total: How many there will be.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, force_jupyter=False)
    return list(track(answers, title, total=total, console=console, transient=True, disable=not is_watched(sys.stderr)))
