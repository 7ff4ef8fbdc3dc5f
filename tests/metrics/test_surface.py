import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from medsam_tune.metrics import OutlineMetric, OutlinePlace, OverlapMetric, case_distances, outline, overlap_counts
from medsam_tune.metrics.instances import instance_pixels
from medsam_tune.metrics.structure import s_measure
from medsam_tune.metrics.surface import case_instances, case_s_measure, case_volumes


def scores_of(*slices, metric=None):
    """Score (case, volume, slice, predicted, true), each an image with the one label 1."""
    metric = metric or OutlineMetric()
    for sample, (case, volume, position, predicted, true) in enumerate(slices):
        masks = [torch.as_tensor(mask, dtype=torch.bool) for mask in (predicted, true)]
        ids = [torch.tensor([number]) for number in (sample, case, 1, 0)]
        metric.update(*ids, overlap_counts(masks[0][None], masks[1][None]))
        metric.add_outlines(OutlinePlace(case, 1, volume, position), *masks)
    return metric.scores()


def hausdorff95(scores, voxels):
    return np.array([np.nan if one is None else one.hd95 for one in case_distances(scores, voxels)])


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


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_put_together_from_their_runs(seed):
    slices = [(blob(seed + k), blob(seed + 10 + k)) for k in range(3)]
    metric = OutlineMetric()
    scores = scores_of(*((0, 0, 2 * k, *masks) for k, masks in enumerate(slices)), metric=metric)
    (volume,) = case_volumes(scores, 0)
    predicted, true = volume.whole()
    assert volume.positions.tolist() == [0, 2, 4]
    assert all(np.array_equal(predicted[k], masks[0]) and np.array_equal(true[k], masks[1]) for k, masks in enumerate(slices))


def test_outline_is_where_runs_begin_and_how_long_they_are():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 1:4] = mask[2, 5] = True
    assert outline(mask).tolist() == [[1, 1, 3], [2, 1, 3], [2, 5, 1]]
    assert outline(np.zeros((5, 6), bool)).shape == (0, 3)


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


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
@pytest.mark.parametrize("seed", range(3))
def test_a_case_of_slices_is_measured_as_the_volume_that_they_make(seed):
    predicted, true = (np.stack([blob(seed + first + k // 2) for k in range(6)]) for first in (0, 50))
    predicted[4:] = False  # two slices were missed
    scores = scores_of(*((0, 7, k, predicted[k], true[k]) for k in range(6)))
    spacing = (4.0, 0.7, 1.3)
    (found,) = case_distances(scores, {0: spacing})
    masks = [torch.tensor(mask)[None, None] for mask in (predicted, true)]
    options = {"include_background": True, "spacing": spacing}
    assert found.hd95 == pytest.approx(compute_hausdorff_distance(*masks, percentile=95, **options).item(), rel=1e-5)
    assert found.nsd(2.0) == pytest.approx(compute_surface_dice(*masks, [2.0], **options).item(), abs=1e-6)
    both, sizes = (predicted & true).sum(), predicted.sum() + true.sum()
    assert scores.dice.tolist() == [pytest.approx(2 * both / sizes)]


def test_s_measure_is_over_images_that_show_something_and_not_over_slices():
    images = [(0, 0, 0, blob(0), blob(10)), (0, 1, 0, blob(1), blob(11)), (0, 2, 0, EMPTY, EMPTY)]
    wanted = np.mean([s_measure(blob(k), blob(10 + k)) for k in range(2)])
    assert case_s_measure(scores_of(*images), 0) == pytest.approx(wanted)
    assert np.isnan(case_s_measure(scores_of((0, 0, 0, blob(0), blob(10)), (0, 0, 1, blob(1), blob(11))), 0))


def test_instances_are_counted_over_the_images_of_a_case():
    metric = OutlineMetric()
    metric.add_instances(0, 0, 1, instance_pixels([np.array([0, 1])], [np.array([1, 2]), np.array([3])]))
    scores = scores_of((0, 0, 0, dots((0, 0)), dots((0, 0), (0, 1))), (1, 1, 0, dots((0, 0)), dots((0, 0))), metric=metric)
    aji, pixel_f = case_instances(scores)
    assert aji[0] == 1 / 4
    assert pixel_f[0] == 2 / (2 + 1 + 2)
    assert np.isnan([aji[1], pixel_f[1]]).all()


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
        next(case_volumes(OverlapMetric().scores(), 0))
