import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist

from medsam_tune.metrics import OverlapMetric, overlap_counts
from tests.processes import noted_by_two_ranks

# sample, case, label, object, tp, fp, fn
ROWS = (
    (0, 0, 1, 0, 8, 2, 0),
    (1, 0, 1, 0, 0, 0, 4),
    (1, 0, 2, 1, 3, 1, 1),
    (2, 1, 1, 0, 5, 5, 5),
    (3, 1, 1, 0, 0, 0, 0),
    (4, 2, 1, 0, 0, 0, 0),
    (5, 3, 1, 0, 0, 7, 0),
)


def add(metric, rows):
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 7)
    metric.update(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4:])


def metric_of(rows):
    metric = OverlapMetric()
    add(metric, rows)
    return metric


def values(metric):
    return {name: value.item() for name, value in metric.compute().items()}


def test_counts_equal_the_confusion_of_a_small_mask():
    truth = torch.tensor([[[1, 1, 0], [1, 0, 0]]]).bool()
    prediction = torch.tensor([[[1, 0, 1], [1, 1, 1]]]).bool()
    assert overlap_counts(prediction, truth).tolist() == [[2, 3, 1]]


def test_counts_refuse_logits():
    with pytest.raises(ValueError, match="Threshold logits at 0 first"):
        overlap_counts(torch.randn(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))


def test_pixels_are_pooled_over_the_slices_of_a_case():
    scores = metric_of(ROWS).scores()
    assert scores.case_index.tolist() == [0, 0, 1, 2, 3]
    assert scores.label.tolist() == [1, 2, 1, 1, 1]
    assert scores.tp.tolist() == [8, 3, 5, 0, 0]
    assert scores.fp.tolist() == [2, 1, 5, 0, 7]
    assert scores.fn.tolist() == [4, 1, 5, 0, 0]
    assert scores.n_slices.tolist() == [2, 1, 2, 1, 1]
    assert scores.dice[:3].tolist() == pytest.approx([16 / 22, 6 / 8, 0.5])
    assert scores.iou[:3].tolist() == pytest.approx([8 / 14, 3 / 5, 1 / 3])


def test_headline_is_the_mean_over_cases_of_the_mean_over_their_labels():
    found = values(metric_of(ROWS))
    assert found["dice"] == pytest.approx(((16 / 22 + 6 / 8) / 2 + 0.5 + 0.0) / 3)
    assert found["iou"] == pytest.approx(((8 / 14 + 3 / 5) / 2 + 1 / 3 + 0.0) / 3)


def test_a_unit_empty_in_both_is_excluded_and_counted_and_one_empty_in_either_scores_zero():
    metric = metric_of(ROWS)
    scores, found = metric.scores(), values(metric)
    assert scores.excluded.tolist() == [False, False, False, True, False]
    assert math.isnan(scores.dice[3])
    assert math.isnan(scores.iou[3])
    assert scores.dice[4] == 0.0
    assert values(metric_of([(0, 0, 1, 0, 0, 0, 9)]))["dice"] == 0.0
    assert (found["n_cases"], found["n_excluded"]) == (3, 1)
    assert scores.scored_cases().tolist() == [0, 1, 3]


def test_slice_score_stands_beside_the_case_score():
    metric = metric_of(ROWS)
    slices = metric.scores().slices
    assert slices.sample_index.tolist() == [0, 1, 1, 2, 3, 4, 5]
    assert slices.label.tolist() == [1, 1, 2, 1, 1, 1, 1]
    assert slices.excluded.tolist() == [False, False, False, False, True, True, False]
    assert values(metric)["slice_dice"] == pytest.approx((16 / 18 + 0 + 6 / 8 + 0.5 + 0) / 5)


def test_only_empty_units_give_nan_and_no_case():
    found = values(metric_of([(0, 0, 1, 0, 0, 0, 0)]))
    assert math.isnan(found["dice"])
    assert math.isnan(found["slice_dice"])
    assert (found["n_cases"], found["n_excluded"]) == (0, 1)


def test_rows_seen_twice_count_once():
    metric = metric_of(ROWS)
    add(metric, ROWS[:3])
    assert values(metric) == values(metric_of(ROWS))


def test_two_objects_of_one_label_in_one_slice_are_pooled():
    scores = metric_of([(0, 0, 1, 0, 4, 0, 0), (0, 0, 1, 1, 0, 0, 4)]).scores()
    assert scores.dice.tolist() == [pytest.approx(8 / 12)]
    assert scores.n_slices.tolist() == [1]


def test_score_equals_dice_of_the_stacked_volume():
    generator = torch.Generator().manual_seed(0)
    truth, prediction = (torch.rand(5, 6, 7, generator=generator) > threshold for threshold in (0.6, 0.5))
    zeros, index = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    metric = OverlapMetric()
    metric.update(index, zeros, zeros + 1, zeros, overlap_counts(prediction, truth))
    a, b = truth.numpy().ravel(), prediction.numpy().ravel()
    assert metric.scores().dice[0] == pytest.approx(2 * np.logical_and(a, b).sum() / (a.sum() + b.sum()))


def test_reset_forgets_and_a_pickled_metric_remembers():
    metric = metric_of(ROWS)
    copy = pickle.loads(pickle.dumps(metric))
    metric.reset()
    add(metric, ROWS[3:4])
    assert values(metric)["dice"] == pytest.approx(0.5)
    assert values(copy) == values(metric_of(ROWS))


# One process has more rows than the other and repeats one of them; then one process has none.
SHARES = ((ROWS[:5], ROWS[4:] + ROWS[:1]), (ROWS, ()))


def score_in_two_processes(rank, address, found):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for share_of_rank in SHARES:
        metric = OverlapMetric()
        for row in share_of_rank[rank]:
            add(metric, [row])
        dice = metric.scores().dice.tolist()
        found.append((dice, values(metric), len(torch.cat(list(metric.rows))) - len(share_of_rank[rank])))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_what_one_process_scores(tmp_path):
    scored = noted_by_two_ranks(score_in_two_processes, tmp_path)
    alone = metric_of(ROWS)
    assert len(scored) == 2 * len(SHARES)
    for dice, found, foreign_rows_kept in scored:
        assert dice == pytest.approx(alone.scores().dice.tolist(), nan_ok=True)
        assert found == pytest.approx(values(alone))
        assert foreign_rows_kept == 0


def test_dice_of_each_object_is_kept_without_those_that_show_nothing():
    metric = OverlapMetric()
    zeros, numbers = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    metric.update(zeros, zeros, zeros + 1, numbers, torch.tensor([[4, 0, 0], [1, 1, 1], [0, 0, 0]]))
    scores = metric.scores()
    assert scores.object_dice.tolist() == [1.0, 0.5]
    assert scores.dice.tolist() == [10 / 12]
