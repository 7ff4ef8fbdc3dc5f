from dataclasses import replace

import numpy as np
import torch

from medsam_tune.evaluation.predict import predict_masks, update_metric
from medsam_tune.inference import stitching
from medsam_tune.inference.stitching import asked_images, mask_chunks
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.metrics.surface import OutlineMetric, case_distances, case_instances
from medsam_tune.types import MaskPrediction
from tests.factories import make_batch


def perfect(batch):
    """Logits whose sign is the ground truth at the input's resolution, behind a second mask that must not be read."""
    logits = torch.where(batch.masks, 8.0, -8.0)
    return MaskPrediction(torch.cat([logits, -logits], dim=1))


def test_ground_truth_as_logits_scores_one_where_no_resampling_is_needed():
    batch = make_batch(sizes=((64, 48), (40, 64)), objects=(2, 1))
    metric = OverlapMetric()
    update_metric(metric, batch, perfect(batch), 64)
    scores = metric.scores()
    assert scores.dice.tolist() == [1.0, 1.0]
    assert scores.tp.tolist() == [int(masks.areas().sum()) for masks in batch.original_masks]


def test_masks_come_back_at_each_images_own_size_and_in_the_order_of_its_objects():
    batch = make_batch(sizes=((100, 80), (30, 64)), objects=(2, 0))
    first, second = predict_masks(perfect(batch), batch, 64)
    assert second.shape == (0, 30, 64)
    truth = batch.original_masks[0].dense()
    overlap = [[int((first[i] & truth[j]).sum()) for j in range(2)] for i in range(2)]
    assert overlap[0][0] > 0.9 * int(truth[0].sum())
    assert overlap[1][1] > 0.9 * int(truth[1].sum())


def test_threshold_is_taken_once_after_resampling():
    # Two low-res columns +1 and -3: the zero crossing lies a quarter of the way between their centres.
    batch = make_batch(sizes=((64, 64),))
    logits = torch.tensor([1.0, -3.0]).expand(1, 1, 2, 2)
    (resampled,) = predict_masks(MaskPrediction(logits), batch, 64)
    assert int(resampled[0, 0].sum()) == 24  # centres at columns 15.5 and 47.5; 15.5 + 32 / 4 = 23.5


def test_counts_keep_sample_case_and_label():
    batch = make_batch(sizes=((64, 64), (64, 64)))
    batch.labels[:] = torch.tensor([3, 5])
    batch.case_index[:] = torch.tensor([7, 7])
    batch.sample_index[:] = torch.tensor([20, 21])
    metric = OverlapMetric()
    update_metric(metric, batch, perfect(batch), 64)
    slices = metric.scores().slices
    assert slices.sample_index.tolist() == [20, 21]
    assert slices.case_index.tolist() == [7, 7]
    assert slices.label.tolist() == [3, 5]


def test_a_few_objects_at_a_time_give_the_same_masks_and_counts(monkeypatch):
    batch = make_batch(sizes=((100, 80), (64, 64)), objects=(5, 3))
    together, metric = predict_masks(perfect(batch), batch, 64), OverlapMetric()
    update_metric(metric, batch, perfect(batch), 64)
    monkeypatch.setattr(stitching, "_PIXELS_AT_ONCE", 2 * 100 * 80)
    assert [len(masks) for masks in mask_chunks(perfect(batch), batch, asked_images(batch)[0], 64)] == [2, 2, 1]
    assert all(map(torch.equal, predict_masks(perfect(batch), batch, 64), together))
    apart = OverlapMetric()
    update_metric(apart, batch, perfect(batch), 64)
    assert torch.equal(torch.cat(apart.rows), torch.cat(metric.rows))


def test_one_object_larger_than_the_limit_is_brought_back_alone(monkeypatch):
    monkeypatch.setattr(stitching, "_PIXELS_AT_ONCE", 1)
    batch = make_batch(sizes=((64, 64),), objects=(2,))
    assert [len(masks) for masks in mask_chunks(perfect(batch), batch, asked_images(batch)[0], 64)] == [1, 1]


def test_pixels_that_nobody_annotated_count_neither_for_nor_against():
    batch = make_batch(sizes=((64, 48), (40, 64)))
    everywhere = MaskPrediction(torch.full((2, 1, 64, 64), 8.0))
    ignored = tuple(~masks[0] for masks in batch.original_masks)
    partly = replace(batch, ignored=torch.zeros(2, 1, 64, 64, dtype=torch.bool), original_ignored=ignored)
    scores = []
    for each in (batch, partly):
        metric = OverlapMetric()
        update_metric(metric, each, everywhere, 64)
        scores.append(metric.scores().dice)
    assert (scores[0] < 0.3).all()
    assert scores[1].tolist() == [1.0, 1.0]


def test_a_test_gathers_the_outline_of_all_objects_of_a_label_together():
    batch = make_batch(sizes=((64, 48), (40, 64)), objects=(2, 1))
    metric = OutlineMetric()
    update_metric(metric, batch, perfect(batch), 64)
    scores = metric.scores()
    assert [each.hd for each in case_distances(scores, {})] == [0.0] * len(scores.case_index)
    assert len(set(scores.outlines[:, 2].tolist())) == 2  # each image is a volume of its own


def test_answers_to_several_objects_of_a_label_are_instances():
    batch = make_batch(sizes=((64, 48), (40, 64)), objects=(2, 1))
    metric = OutlineMetric()
    update_metric(metric, batch, perfect(batch), 64)
    (first, second), _ = case_instances(metric.scores())
    # Two rectangles that overlap, both found: each shares all of itself.
    assert first == 1.0
    assert np.isnan(second)


def test_a_few_objects_at_a_time_give_the_same_outlines(monkeypatch):
    batch = make_batch(sizes=((100, 80), (64, 64)), objects=(5, 3))
    together, apart = OutlineMetric(), OutlineMetric()
    update_metric(together, batch, perfect(batch), 64)
    monkeypatch.setattr(stitching, "_PIXELS_AT_ONCE", 100 * 80)
    update_metric(apart, batch, perfect(batch), 64)
    assert (together.scores().outlines == apart.scores().outlines).all()
    assert (together.scores().instances == apart.scores().instances).all()
