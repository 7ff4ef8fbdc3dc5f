"""What one broken input is: how it is made, the command that meets it, and what the one line must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RUN = ("run", "tiny.yaml")
VOLUMES = ("run", "volumes.yaml")
NPZ = ("run", "npz.yaml")
RUN_FOLDER = Path("done")


@dataclass(frozen=True)
class Case:
    """One broken input.

    Args:
        name: What is broken, in words.
        spoil: Breaks it; the current folder is a fresh workplace.
        command: The words after ``medsam-tune``.
        culprit: The file or key that the line names.
        said: A part of the reason.
    """

    name: str
    spoil: Callable[[], object]
    command: tuple[str, ...]
    culprit: str
    said: str = ""


def nothing() -> None:
    """Break nothing: the fault is in the command itself."""


def wrote(path: str, content: str | bytes) -> Callable[[], object]:
    """Return what replaces a file."""
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def edited(path: str, old: str, new: str) -> Callable[[], object]:
    """Return what replaces a part of a text, which must be there."""

    def edit() -> None:
        text = Path(path).read_text()
        assert old in text, f"{path} holds no {old}"
        Path(path).write_text(text.replace(old, new, 1))

    return edit
