"""Score whole-image answers, the masks that a network finds without being told where to look, against instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.evaluation.figures import figures
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.automatic_settings import AutomaticSettings
from medsam_tune.metrics.instances import (
    InstanceMatches,
    accuracy,
    aggregated_jaccard,
    coco_average_precision,
    f1,
    match_instances,
    panoptic_quality,
    pixel_f,
)
from medsam_tune.samples import Sample

Matches = Mapping[str, Sequence[InstanceMatches]]
"""The matches of each case's images."""


def score_automatic(backbone: Backbone, samples: Iterable[Sample], settings: AutomaticSettings) -> Matches:
    """Find masks in each image and match them with its instances.

    Args:
        backbone: On the device it works on; put into eval mode.
        samples: Images with one row an instance. Pixels that nobody annotated count on neither side.
        settings: Of the automatic masks.
    """
    generator = AutomaticMaskGenerator(backbone.eval(), settings.as_priors())
    found: dict[str, list[InstanceMatches]] = {}
    for sample in samples:
        masks = generator.generate(sample.image)
        answers, kept = _shown(masks.masks, sample.ignored)
        true, _ = _shown(sample.masks.dense(), sample.ignored)
        matches = match_instances(answers, true, masks.predicted_iou[kept])
        found.setdefault(sample.case_id, []).append(matches)
    return found


def summarise_instances(matches: Matches, patients: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Summarise matches as JSON values.

    Args:
        matches: From ``score_automatic``.
        patients: The patient of each case, the unit of an interval; every case is one by default.

    Returns:
        Over all images, ranked by score: ``ap_coco`` (mean over the IoU thresholds 0.5 to 0.95) and ``ap50_coco``. Over cases,
        each as ``mean``, ``std``, ``ci95`` and ``ci95_method``: ``ap_stardist`` (TP / (TP + FP + FN), mean over the same
        thresholds), ``ap50_stardist``, ``f1_50``, ``pq``, ``aji`` and ``pixel_f``. ``n_true`` and ``n_found`` count objects and
        masks, ``n_cases`` the cases with any of them. None stands for what is undefined.
    """
    every = [each for images in matches.values() for each in images]
    counted = {case: images for case, images in matches.items() if sum(each.n_true + each.n_found for each in images)}
    cases, people = list(counted.values()), [(patients or {}).get(case, case) for case in counted]
    ap = coco_average_precision(every)
    per_case = {
        "ap_stardist": [accuracy(images).mean() for images in cases],
        "ap50_stardist": [accuracy(images)[0] for images in cases],
        "f1_50": [f1(images)[0] for images in cases],
        "pq": [panoptic_quality(images) for images in cases],
        "aji": [aggregated_jaccard(images) for images in cases],
        "pixel_f": [pixel_f(images) for images in cases],
    }
    return {
        "ap_coco": None if np.isnan(ap).any() else float(ap.mean()),
        "ap50_coco": None if np.isnan(ap).any() else float(ap[0]),
        **{name: figures(np.array(values, np.float64), people) for name, values in per_case.items()},
        "n_cases": len(cases),
        "n_true": sum(each.n_true for each in every),
        "n_found": sum(each.n_found for each in every),
    }


def instance_line(summary: Mapping[str, Any]) -> str:
    """Return a summary's figures in one line."""
    coco = {"AP (COCO)": summary["ap_coco"], "AP50 (COCO)": summary["ap50_coco"]}
    names = {"ap50_stardist": "TP/(TP+FP+FN) at 0.5", "f1_50": "F1 at 0.5", "pq": "PQ", "aji": "AJI", "pixel_f": "pixel F"}
    values = {**coco, **{title: summary[name]["mean"] for name, title in names.items()}}
    shown = ", ".join(f"{title} {'undefined' if value is None else format(value, '.3f')}" for title, value in values.items())
    return f"{shown}; {summary['n_found']} masks, {summary['n_true']} objects"


def _shown(masks: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the masks without ignored pixels, those that have no other aside, and which are kept."""
    known = masks if ignored is None else masks & ~ignored
    kept = known.flatten(1).any(dim=1)
    return known[kept], kept
