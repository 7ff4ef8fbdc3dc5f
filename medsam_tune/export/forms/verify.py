"""Check an export in the tool it was made for, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_tune.errors import CheckpointError
from medsam_tune.export.forms import foreign
from medsam_tune.export.forms.base import read_record

LARGEST_SHARE = 1e-3
"""How far a logit may lie from the tuned network's, as a share of the largest: float32 kernels differ by about 1e-6."""
LARGEST_PIXEL_SHARE = 1e-3
"""How many pixels of the masks may differ: those whose logit lies within that distance of 0."""


def verify_form(folder: str | Path, *, base: Path | None = None) -> dict[str, Any]:
    """Load an export in the foreign tool and ask it what its reference asks; nothing of this package is imported there.

    Args:
        folder: What ``write_form`` wrote.
        base: The file of the base weights, for an adapter alone.

    Returns:
        The figures: ``questions``, ``logits_differ_by``, ``logits_differ_by_share``, ``pixels_that_differ``, ``pixels``.

    Raises:
        CheckpointError: If a file is missing or another one, the tool cannot load it, or its answers are others.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    words = [sys.executable, str(Path(foreign.__file__)), str(record["form"]), str(folder.resolve())]
    done = subprocess.run([*words, *([str(base)] if base else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if said.startswith("ModuleNotFoundError"):
            raise CheckpointError(
                f"{folder}: is written, but not checked: {record['loads_in']} is not installed ({said}). Install it, then "
                f"`medsam-tune export --verify {folder}`."
            )
        raise CheckpointError(f"{folder}: {record['loads_in']} cannot use it: {said}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    check_figures(folder, record, figures)
    return figures


def check_figures(folder: Path, record: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Refuse answers that are not those of the tuned network.

    Raises:
        CheckpointError: With the figures.
    """
    pixels = figures["pixels_that_differ"] / max(1, figures["pixels"])
    if figures["logits_differ_by_share"] > LARGEST_SHARE or pixels > LARGEST_PIXEL_SHARE:
        raise CheckpointError(
            f"{folder}: loads in {record['loads_in']}, but answers otherwise than the tuned network: logits differ by "
            f"{figures['logits_differ_by_share']:.2g} of the largest, {figures['pixels_that_differ']} of {figures['pixels']} "
            "pixels of the masks differ. Export the run again."
        )
