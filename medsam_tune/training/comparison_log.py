"""A comparison on Weights & Biases: leaderboard, paired differences and cases as tables, worst cases as overlays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.evaluation.comparison_page import ComparedSlices, ComparisonContent, leaderboard
from medsam_tune.evaluation.overlays import OverlaySlice, Shape

_CLASSES = {0: "background", 1: "object"}
_PAIR_COLUMNS = ["first", "second", "difference", "ci95_low", "ci95_high", "n_cases", "p", "p_holm"]


def log_comparison(content: ComparisonContent, shown: ComparedSlices, project: str) -> str:
    """Log a comparison as a W&B run of its own, online or, under ``WANDB_MODE=offline``, in the folder ``wandb``.

    Args:
        content: What the page says.
        shown: How each run sees the worst cases.
        project: The W&B project.

    Returns:
        The folder of the W&B run's files.
    """
    import wandb

    run = wandb.init(project=project, job_type="compare", settings=wandb.Settings(x_disable_meta=True))
    headers, rows = leaderboard(content)
    pairs = [
        [
            *(pair.first, pair.second, pair.mean),
            *((None, None) if pair.interval is None else (pair.interval.low, pair.interval.high)),
            *(pair.n_cases, pair.p, pair.p_holm),
        ]
        for pair in content.differences
    ]
    cases = [[run_.letter, case, dice] for run_ in content.runs for case, dice in sorted(run_.table.dice.items())]
    run.log(
        {
            "compare/leaderboard": wandb.Table(columns=headers, data=rows),
            "compare/differences": wandb.Table(columns=_PAIR_COLUMNS, data=pairs),
            "compare/cases": wandb.Table(columns=["run", "case", "dice"], data=cases),
            "compare/worst": [
                _overlay(overlay, f"{case}, {letter}")
                for case, slices in shown.slices.items()
                for letter, overlay in slices.items()
            ],
        }
    )
    place = str(run.dir)
    run.finish()
    return place


def _overlay(overlay: OverlaySlice, caption: str) -> Any:  # noqa: ANN401 - wandb is not typed
    import wandb

    kinds = {"ground_truth": overlay.truth, "prediction": overlay.prediction, "untuned": overlay.untuned}
    size = overlay.image.shape[:2]
    masks = {name: {"mask_data": _joined(shapes, size), "class_labels": _CLASSES} for name, shapes in kinds.items()}
    return wandb.Image(overlay.image, masks=masks, caption=caption)


def _joined(shapes: Sequence[Shape], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Paint objects on one mask (H, W)."""
    mask = np.zeros(size, np.uint8)
    for shape in shapes:
        height, width = shape.size
        mask[shape.top : shape.top + height, shape.left : shape.left + width] |= shape.mask
    return mask
