"""Whether somebody watches: bars are drawn on terminals alone."""

from __future__ import annotations

import sys
from typing import TextIO


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, which keeps every frame of a bar."""
    return "ipykernel" in sys.modules


def is_watched(stream: TextIO) -> bool:
    """Tell whether a bar may be drawn on a stream: on a terminal, and not in a notebook.

    Args:
        stream: ``sys.stdout`` or ``sys.stderr``. The kernel of a notebook calls its own a terminal.
    """
    return not in_notebook() and stream.isatty()
