import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance

from medsam_tune.metrics import OutlineMetric, OutlinePlace, OverlapMetric, hausdorff95, outline, overlap_counts


def scores_of(*slices, metric=None):
    """Score (case, volume, slice, predicted, true), each an image with the one label 1."""
    metric = metric or OutlineMetric()
    for sample, (case, volume, position, predicted, true) in enumerate(slices):
        masks = [torch.as_tensor(mask, dtype=torch.bool) for mask in (predicted, true)]
        ids = [torch.tensor([number]) for number in (sample, case, 1, 0)]
        metric.update(*ids, overlap_counts(masks[0][None], masks[1][None]))
        metric.add_outlines(OutlinePlace(case, 1, volume, position), *masks)
    return metric.scores()


def dots(*places, size=(12, 14)):
    mask = np.zeros(size, bool)
    for row, column in places:
        mask[row, column] = True
    return mask


def blob(seed, size=(24, 30)):
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    centre, radius = random.uniform(8, 16, 2), random.uniform(4, 8)
    return ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2) ^ (random.random(size) < 0.02)


EMPTY = dots()


def test_outline_is_what_touches_the_background_or_the_border():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:4] = True
    assert outline(mask).tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 3], [3, 1], [3, 2], [3, 3]]
    assert outline(np.zeros((5, 6), bool)).shape == (0, 2)


def test_distance_by_hand_in_pixels_and_in_millimetres():
    scores = scores_of((0, 0, 0, dots((2, 3)), dots((5, 7))))
    assert hausdorff95(scores, {}).tolist() == [5.0]  # 3 rows, 4 columns
    assert hausdorff95(scores, {0: (1.0, 2.0, 0.5)}).tolist() == [pytest.approx((6**2 + 2**2) ** 0.5)]


# MONAI 1.5 sets an argument of its own that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
@pytest.mark.parametrize("seed", range(6))
def test_distance_of_an_image_is_monais(seed):
    predicted, true = blob(seed), blob(seed + 100)
    masks = [torch.tensor(mask)[None, None] for mask in (predicted, true)]
    wanted = compute_hausdorff_distance(*masks, percentile=95, include_background=True, spacing=(0.7, 1.3))
    found = hausdorff95(scores_of((0, 0, 0, predicted, true)), {0: (1.0, 0.7, 1.3)})
    assert found[0] == pytest.approx(wanted.item(), rel=1e-5)


def test_a_missed_slice_is_as_far_as_the_next_slice_of_its_volume():
    spot = dots((4, 4))
    slices = [(0, 0, position, spot if position < 2 else EMPTY, spot) for position in range(3)]
    assert hausdorff95(scores_of(*slices), {0: (3.0, 1.0, 1.0)})[0] == pytest.approx(0.9 * 3.0)  # rank 1.9 of 0, 0, 3
    alone = [(0, position, 0, predicted, true) for _, _, position, predicted, true in slices]
    assert hausdorff95(scores_of(*alone), {})[0] == np.inf


@pytest.mark.parametrize(("predicted", "true"), [(EMPTY, dots((2, 2))), (dots((2, 2)), EMPTY)])
def test_one_empty_mask_is_infinitely_far_and_two_have_no_distance(predicted, true):
    assert hausdorff95(scores_of((0, 0, 0, predicted, true)), {}).tolist() == [np.inf]
    assert np.isnan(hausdorff95(scores_of((0, 0, 0, EMPTY, EMPTY)), {})).all()


def test_few_pixels_without_a_counterpart_do_not_make_a_case_infinite():
    line = dots(*((0, column) for column in range(14)))
    images = [(0, volume, 0, line, line) for volume in range(3)]
    assert hausdorff95(scores_of(*images, (0, 3, 0, dots((3, 3)), EMPTY)), {}).tolist() == [0.0]  # 1 of 43


def test_an_image_seen_twice_counts_once():
    one, other = (0, 0, 0, dots((2, 3)), dots((5, 7))), (0, 1, 0, dots((1, 1)), dots((1, 2)))
    metric = OutlineMetric()
    once = scores_of(one, other, metric=metric).outlines
    again = scores_of(one, other, one, metric=metric).outlines
    assert np.array_equal(once, again)


def test_scores_without_outlines_are_refused():
    with pytest.raises(ValueError, match="Gather them with an OutlineMetric"):
        hausdorff95(OverlapMetric().scores(), {})
