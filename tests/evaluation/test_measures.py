import numpy as np
import pytest
import torch

from medsam_tune.data.base import VoxelSize
from medsam_tune.evaluation.measures import measure_cases, summarise_distances, summarise_measures
from medsam_tune.metrics.surface import OutlineMetric, OutlinePlace


def scores_of(*cases):
    """Score cases of one label from (predicted, true) masks of one image each."""
    metric = OutlineMetric()
    for number, (predicted, true) in enumerate(cases):
        masks = [torch.tensor(mask, dtype=torch.bool) for mask in (predicted, true)]
        both, here = int((masks[0] & masks[1]).sum()), torch.tensor([number])
        counts = torch.tensor([[both, int(masks[0].sum()) - both, int(masks[1].sum()) - both]])
        metric.update(here, here, torch.tensor([1]), torch.tensor([0]), counts)
        metric.add_outlines(OutlinePlace(number, 1, number, 0), *masks)
    return metric.scores()


LEFT, RIGHT, NOTHING = [[1, 1, 0, 0]], [[0, 0, 0, 1]], [[0, 0, 0, 0]]


def test_sizes_are_in_millilitres_square_millimetres_or_pixels():
    scores = scores_of((LEFT, RIGHT), (LEFT, RIGHT), (LEFT, RIGHT))
    measures = measure_cases(scores, {0: VoxelSize(10.0, 20.0, 30.0), 1: VoxelSize(0.5, 0.25)})
    assert measures.size_unit == ("ml", "mm2", "px")
    assert measures.distance_unit == ("mm", "mm", "px")
    assert measures.predicted_size.tolist() == [pytest.approx(12.0), 0.25, 2.0]  # two voxels of 6 ml
    assert measures.true_size.tolist() == [pytest.approx(6.0), 0.125, 1.0]
    # From column 3 to column 1; back 95 % of the way from 2 to 3 columns.
    assert measures.hd95.tolist() == [pytest.approx(20 * 2.95), pytest.approx(0.25 * 2.95), pytest.approx(2.95)]


def test_mean_distance_leaves_out_what_is_infinite_and_counts_it():
    scores = scores_of((LEFT, LEFT), (LEFT, RIGHT), (NOTHING, RIGHT), (NOTHING, NOTHING))
    found = summarise_distances(scores, measure_cases(scores, {}))
    assert found == {
        "mean": pytest.approx(2.95 / 2),
        "median": pytest.approx(2.95 / 2),
        "std": pytest.approx(np.std([0, 2.95], ddof=1)),
        "n": 2,
        "n_infinite": 1,
        "unit": "px",
    }


def test_distances_in_different_units_have_no_mean():
    scores = scores_of((LEFT, LEFT), (LEFT, RIGHT))
    found = summarise_distances(scores, measure_cases(scores, {0: VoxelSize(1.0, 1.0)}))
    assert (found["mean"], found["unit"], found["n"]) == (None, None, 2)


def test_a_test_sums_up_every_figure_by_the_one_rule_for_empties():
    scores = scores_of((LEFT, LEFT), (LEFT, RIGHT), (NOTHING, RIGHT), (NOTHING, NOTHING))
    measures = measure_cases(scores, {}, tolerance=2.0)
    found = summarise_measures(scores, measures, ("a", "b", "c", "d"))
    # All surface within 2 pixels but for the pixel 3 columns away, then nothing of it, and the last has no figure.
    assert measures.nsd.tolist() == pytest.approx([1.0, 1 / 3 + 1 / 3, 0.0, np.nan], nan_ok=True)
    assert (found["nsd"]["n_cases"], found["nsd"]["tolerance"], found["nsd"]["unit"]) == (3, 2.0, "px")
    assert (found["hd"]["mean"], found["hd"]["n_infinite"]) == (pytest.approx(1.5), 1)
    assert found["size_difference"] == {"mean": pytest.approx(0.0), "mean_absolute": pytest.approx(2 / 3), "unit": "px"}
    assert "aji" not in found
    assert measures.empty_slices.tolist() == [0, 0, 0, 1]
