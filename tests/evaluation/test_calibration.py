import csv

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from medsam_tune.backbone import SamBackbone
from medsam_tune.evaluation.calibration import (
    Certainty,
    bin_pixels,
    calibration_error,
    read_certainty,
    score_certainty,
    summarise_certainty,
    write_certainty,
)
from medsam_tune.geometry import to_original
from medsam_tune.prompts import BoxPrompt, PointPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter, class_log_odds
from tests.class_batches import make_class_batch
from tests.factories import make_batch

NO_BINS = np.zeros((3, 10))


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_is_torchmetrics(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(20, 30, generator=generator)
    true = torch.rand(20, 30, generator=generator) < (logits / 2).sigmoid()
    wanted = binary_calibration_error(logits.sigmoid().flatten(), true.flatten().int(), n_bins=10, norm="l1")
    assert calibration_error(bin_pixels(logits, true)) == pytest.approx(wanted.item(), abs=1e-5)


def test_four_by_four_by_hand():
    logits, true = torch.full((4, 4), -20.0), torch.zeros(4, 4, dtype=torch.bool)
    true[1, 1] = true[1, 2] = True
    logits[1, 1] = 0.0  # probability 1/2
    # Around the two pixels lies a rim of one: 3 x 4 pixels, the object pixel of probability 0 among them.
    bins = bin_pixels(logits, true)
    assert bins[0].tolist() == [11, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert bins[2, [0, 5]].tolist() == [1, 1]
    assert calibration_error(bins) == pytest.approx((1 + 0.5) / 12)
    assert np.isnan(calibration_error(bin_pixels(torch.full((4, 4), -20.0), torch.zeros(4, 4, dtype=torch.bool))))


def test_pixels_that_nobody_annotated_are_left_out():
    logits, true = torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0] = True
    assert bin_pixels(logits, true, known)[0].sum() == 4


def test_selective_dice_leaves_the_least_certain_tenth_out():
    doubts = {case: 0.1 * case for case in range(20)}
    dice = {case: 1.0 - 0.01 * case for case in range(20)}
    found = summarise_certainty(Certainty({}, doubts, "box_ensemble"), dice, [str(case) for case in range(20)])
    assert found["uncertainty"] == {"kind": "box_ensemble", "spearman": pytest.approx(1.0), "n_cases": 20}
    assert found["selective"]["n_dropped"] == 2
    assert found["selective"]["kept"] == pytest.approx(np.mean([dice[case] for case in range(18)]))
    assert found["selective"]["all"] == pytest.approx(np.mean(list(dice.values())))
    assert (found["ece"]["mean"], found["bins"]) == (None, [])


def test_one_case_has_no_selective_dice():
    bins = NO_BINS.copy()
    bins[:, 9] = 10, 9.5, 9
    found = summarise_certainty(Certainty({0: bins}, {0: 0.3}, "one_answer"), {0: 0.9}, ["a"])
    assert (found["selective"], found["uncertainty"]["spearman"]) == (None, None)
    assert found["ece"]["mean"] == pytest.approx(0.05)
    assert found["bins"] == [{"pixels": 10, "probability": pytest.approx(0.95), "object_share": 0.9}]


@pytest.mark.parametrize(("prompt", "kind"), [(BoxPrompt(), "box_ensemble"), (PointPrompt(), "one_answer")])
def test_a_network_that_is_asked_with_boxes_is_asked_with_moved_ones_too(prompt, kind):
    segmenter = SamSegmenter(SamParts(SamBackbone("random_tiny"), prompt))
    batch = make_batch(sizes=((40, 64), (64, 48)), objects=(2, 1))
    once, again = (score_certainty(segmenter, [batch]) for _ in range(2))
    assert once.kind == kind
    assert once.uncertainty == again.uncertainty
    assert all(0 <= bits <= 1 for bits in once.uncertainty.values())
    assert all(np.array_equal(once.bins[case], again.bins[case]) for case in (0, 1))


def test_images_give_the_same_figures_together_and_apart():
    segmenter = SamSegmenter(SamParts(SamBackbone("random_tiny"), BoxPrompt()))
    batch = make_batch(sizes=((40, 64), (64, 48)), objects=(2, 1))
    together, apart = score_certainty(segmenter, [batch]), score_certainty(segmenter, [batch.part(0, 1), batch.part(1, 2)])
    assert together.uncertainty == pytest.approx(apart.uncertainty, abs=1e-5)


def test_classes_are_held_against_all_else_by_their_softmax_probability():
    segmenter = SemanticSegmenter(SamParts(SamBackbone("random_tiny")), ("wall", "lumen")).eval()
    batch = make_class_batch(2, sizes=((40, 64),))
    with torch.no_grad():
        probs = segmenter(batch).class_logits.softmax(dim=1)[:, 1:]
    rows = to_original(probs.logit(), batch.frames[0], 64)[0]
    wanted = sum(bin_pixels(row, mask) for row, mask in zip(rows, batch.original_masks[0].dense(), strict=True))
    said = score_certainty(segmenter, [batch])
    assert said.kind == "one_answer"
    np.testing.assert_allclose(said.bins[0], wanted, rtol=1e-4)


def test_log_odds_of_classes_are_those_of_the_softmax():
    scores = 5 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(class_log_odds(scores).sigmoid(), scores.softmax(dim=1))
    # No margin to the best of the others is one: three equal scores are a third each.
    torch.testing.assert_close(class_log_odds(torch.zeros(1, 3, 1, 1)).sigmoid(), torch.full((1, 3, 1, 1), 1 / 3))


def test_table_of_certainty_is_read_again(tmp_path):
    path = tmp_path / "certainty.csv"
    assert read_certainty(path) == []
    certainty = Certainty({0: NO_BINS}, {0: 0.25}, "one_answer")
    write_certainty(path, certainty, {0: 0.5, 1: 0.75}, ["a", "b"])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [tuple(row.values())[:4] for row in rows] == [("a", "0.500000", "0.250000", ""), ("b", "0.750000", "", "")]
    assert read_certainty(path) == [("a", 0.25, 0.5)]
    assert read_certainty(path, untuned=True) == []
    untuned = Certainty({}, {0: 0.75, 1: 0.5}, "one_answer"), {0: 0.25, 1: 0.125}
    write_certainty(path, certainty, {0: 0.5, 1: 0.75}, ["a", "b"], untuned=untuned)
    assert read_certainty(path) == [("a", 0.25, 0.5)]
    assert read_certainty(path, untuned=True) == [("a", 0.75, 0.25), ("b", 0.5, 0.125)]


def test_table_of_certainty_of_an_earlier_version_has_no_untuned_network(tmp_path):
    path = tmp_path / "certainty.csv"
    path.write_text("case,dice,uncertainty_bits,calibration_error\na,0.5,0.25,\n")
    assert read_certainty(path) == [("a", 0.25, 0.5)]
    assert read_certainty(path, untuned=True) == []
