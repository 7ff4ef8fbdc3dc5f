"""Does a network know how sure it may be? Reliability of its probabilities, and uncertainty held against error.

Reliability is over pixels at the images' own size, in the box around truth and prediction, enlarged by a tenth of its sides:
everywhere else a network is sure of the background, which would hide all else. The expected calibration error of a case is the
mean over bins of probability of how far the share of object pixels is from the mean probability, weighted by pixels.

Uncertainty is that of SAM-U where a user draws boxes: the entropy of the mean answer to moved boxes, over the pixels that any
of them calls object. A network that is asked otherwise has that of its one answer. Selective Dice leaves the least certain
tenth of the cases to a human.

Papers: Guo et al. 2017, On Calibration of Modern Neural Networks, ICML; Deng et al. 2023, SAM-U, arXiv 2307.04973 (as
``medsam_tune.inference.uncertainty`` measures it; here on the decoder's own grid); Geifman and El-Yaniv 2017, Selective
Classification for Deep Neural Networks, NeurIPS.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.evaluation.figures import figures
from medsam_tune.evaluation.moved_boxes import asks_with_boxes, move_boxes
from medsam_tune.files import write_text
from medsam_tune.inference.stitching import answer, asked_images, embedded, known_pixels, logit_chunks, true_masks
from medsam_tune.inference.uncertainty import BOX_SHARE, N_MOVED, mean_entropy_bits
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import class_log_odds
from medsam_tune.types import MaskPrediction, SegmentationBatch

N_BINS = 10
DROPPED = 0.1
"""Share of the cases that selective Dice leaves out."""

Kind = Literal["box_ensemble", "one_answer"]


@dataclass(frozen=True)
class Certainty:
    """Hold what a network says of its own answers, by case index.

    Attributes:
        bins: (3, N_BINS) float64 pixels, sum of their probabilities, and object pixels, by probability.
        uncertainty: Mean over the answers that show an object, in bits; a case without one has no entry.
        kind: How uncertainty was measured.
    """

    bins: Mapping[int, NDArray[np.float64]]
    uncertainty: Mapping[int, float]
    kind: Kind


def score_certainty(segmenter: Segmenter, batches: Iterable[SegmentationBatch]) -> Certainty:
    """Ask a network once for probabilities, and once more with moved boxes where it is asked with boxes.

    Args:
        segmenter: Put into eval mode.
        batches: Test batches; moved to the segmenter's device.

    Returns:
        What it says; of a network that labels pixels, of each class against all else.
    """
    segmenter.eval()
    device = next(segmenter.parameters()).device
    bins: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros((3, N_BINS)))
    found: dict[int, list[float]] = defaultdict(list)
    kind: Kind = "one_answer"
    with torch.no_grad():
        for batch in batches:
            on_device = batch.to(device)
            whole = embedded(segmenter, on_device) if batch.image_embeddings is None else on_device
            prediction = _with_probabilities(answer(segmenter, whole))
            _add_pixels(bins, segmenter, whole, prediction)
            answers = [prediction.low_res_masks[:, 0]]
            if isinstance(segmenter, SamSegmenter) and asks_with_boxes(segmenter, whole):
                kind, answers = "box_ensemble", _answers_to_moved_boxes(segmenter, whole)
            for number, row in enumerate(whole.image_index.tolist()):
                bits = mean_entropy_bits(torch.stack([each[number] for each in answers]).float().cpu())
                if bits is not None:
                    found[int(whole.case_index[row])].append(bits)
    return Certainty(dict(bins), {case: float(np.mean(values)) for case, values in found.items()}, kind)


def _with_probabilities(prediction: MaskPrediction) -> MaskPrediction:
    """Return the prediction with masks whose sigmoid is a probability: the margins of classes tell who wins and no more."""
    if prediction.class_logits is None:
        return prediction
    rows = class_log_odds(prediction.class_logits.float())[:, 1:].flatten(0, 1)[:, None]
    return replace(prediction, low_res_masks=rows, class_logits=None)


def _add_pixels(
    bins: dict[int, NDArray[np.float64]], segmenter: Segmenter, batch: SegmentationBatch, prediction: MaskPrediction
) -> None:
    """Add the pixels of a batch to the bins of their cases."""
    for image in asked_images(batch):
        known, truth, start = known_pixels(batch, image), true_masks(batch, image), 0
        for logits in logit_chunks(prediction, batch, image, segmenter.input_rule.side):
            true = truth.dense(slice(start, start + len(logits)))
            start += len(logits)
            for one, mask in zip(logits.cpu(), true.cpu(), strict=True):
                bins[image.case_index] += bin_pixels(one, mask, None if known is None else known.cpu())


def bin_pixels(logits: Tensor, true: Tensor, known: Tensor | None = None) -> NDArray[np.float64]:
    """Count the pixels of one object by probability: (3, N_BINS) pixels, sum of probabilities, object pixels.

    Args:
        logits: (H, W).
        true: (H, W) bool.
        known: (H, W) bool of what somebody annotated; all by default.

    Examples:
        >>> bin_pixels(torch.tensor([[0.0, 9.0]]), torch.tensor([[True, True]]))[:, [5, 9]].round(3).tolist()
        [[1.0, 1.0], [0.5, 1.0], [1.0, 1.0]]
    """
    shown = (logits > 0) | true
    counts = np.zeros((3, N_BINS))
    if not bool(shown.any()):
        return counts
    area = tuple(_enlarged(shown.any(dim=1 - axis)) for axis in (0, 1))
    kept = torch.ones_like(true)[area] if known is None else known[area]
    probs = logits[area][kept].double().sigmoid().numpy()
    objects = true[area][kept].numpy()
    places = np.minimum((probs * N_BINS).astype(np.int64), N_BINS - 1)
    for row, weights in enumerate((np.ones_like(probs), probs, objects.astype(np.float64))):
        counts[row] = np.bincount(places, weights=weights, minlength=N_BINS)
    return counts


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Return the expected calibration error of ``bin_pixels``, summed or not; NaN without a pixel."""
    pixels, probs, objects = bins
    return float(np.abs(probs - objects).sum() / pixels.sum()) if pixels.sum() else float("nan")


def summarise_certainty(certainty: Certainty, dice: Mapping[int, float], patients: Sequence[str]) -> dict[str, Any]:
    """Return calibration and uncertainty as JSON values.

    Args:
        certainty: Of ``score_certainty``.
        dice: Dice of each scored case, by case index.
        patients: Patient of each case index.

    Returns:
        ``ece``: the expected calibration error over cases, with its interval; ``bins``: pixels, mean probability and share of
        object pixels by bin, over all cases; ``uncertainty``: its ``kind``, Spearman's correlation ``spearman`` with the error
        1 - Dice, and ``n_cases``; ``selective``: mean Dice of the cases that are ``kept`` and of ``all`` where the least
        certain tenth, at least one, is dropped. None stands for what too few cases leave undefined.
    """
    errors = {case: calibration_error(bins) for case, bins in certainty.bins.items()}
    cases = [case for case, error in sorted(errors.items()) if not np.isnan(error)]
    pixels, probs, objects = np.sum([certainty.bins[case] for case in cases], axis=0) if cases else np.zeros((3, N_BINS))
    return {
        "ece": figures(np.array([errors[case] for case in cases], np.float64), [patients[case] for case in cases]),
        "bins": [
            {"pixels": int(n), "probability": float(p / n), "object_share": float(o / n)}
            for n, p, o in zip(pixels, probs, objects, strict=True)
            if n
        ],
        **_held_against_error(certainty, dice),
    }


def write_certainty(
    path: Path,
    certainty: Certainty,
    dice: Mapping[int, float],
    case_names: Sequence[str],
    *,
    untuned: tuple[Certainty, Mapping[int, float]] | None = None,
) -> Path:
    """Write one row a case, atomically: Dice, uncertainty in bits, calibration error; empty where there is none.

    Args:
        path: The file.
        certainty: Of the tuned network.
        dice: Its Dice, by case index.
        case_names: Name of each case index.
        untuned: The same two of the untuned network, whose Dice and uncertainty follow.

    Raises:
        DataError: If the file cannot be written.
    """
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    before, before_dice = untuned or (Certainty({}, {}, certainty.kind), {})
    writer.writerow(("case", "dice", "uncertainty_bits", "calibration_error", "untuned_dice", "untuned_uncertainty_bits"))
    for case in sorted({*dice, *certainty.uncertainty, *certainty.bins}):
        error = calibration_error(certainty.bins[case]) if case in certainty.bins else float("nan")
        values = [dice.get(case, np.nan), certainty.uncertainty.get(case, np.nan), error]
        values += [before_dice.get(case, np.nan), before.uncertainty.get(case, np.nan)]
        writer.writerow((case_names[case], *("" if np.isnan(value) else f"{value:.6f}" for value in values)))
    return write_text(path, buffer.getvalue())


def read_certainty(path: Path, *, untuned: bool = False) -> list[tuple[str, float, float]]:
    """Return case, uncertainty in bits and Dice of each case that has both; nothing where there is no such table.

    Args:
        path: The file.
        untuned: Those of the untuned network.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [f"{'untuned_' if untuned else ''}{name}" for name in ("uncertainty_bits", "dice")]
    found = [(row["case"], *(row.get(name) or "" for name in names)) for row in rows]
    return [(case, float(doubt), float(dice)) for case, doubt, dice in found if doubt and dice]


def _held_against_error(certainty: Certainty, dice: Mapping[int, float]) -> dict[str, Any]:
    both = sorted(set(dice) & set(certainty.uncertainty))
    doubts = np.array([certainty.uncertainty[case] for case in both])
    values = np.array([dice[case] for case in both])
    uncertainty = {"kind": certainty.kind, "spearman": _spearman(doubts, 1 - values), "n_cases": len(both)}
    if len(both) < 2:
        return {"uncertainty": uncertainty, "selective": None}
    n_dropped = max(1, round(DROPPED * len(both)))
    kept = np.argsort(doubts, kind="stable")[: len(both) - n_dropped]
    selective = {"kept": float(values[kept].mean()), "all": float(values.mean()), "n_dropped": n_dropped}
    return {"uncertainty": uncertainty, "selective": selective}


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    if len(first) < 3 or len(set(first.tolist())) < 2 or len(set(second.tolist())) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def _answers_to_moved_boxes(segmenter: SamSegmenter, batch: SegmentationBatch) -> list[Tensor]:
    moved = (move_boxes(segmenter, batch, BOX_SHARE, purpose=f"ensemble {number}") for number in range(N_MOVED))
    return [answer(segmenter, each).low_res_masks[:, 0] for each in moved]


def _enlarged(touched: Tensor) -> slice:
    """Return the span of an axis that is touched, a tenth longer on either side."""
    places = touched.nonzero()[:, 0]
    low, high = int(places[0]), int(places[-1]) + 1
    room = max(1, round((high - low) / 10))
    return slice(max(0, low - room), min(len(touched), high + room))
