import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from skimage.metrics import hausdorff_distance

from medsam_tune.metrics.distances import surface, surface_distances

# MONAI 1.5 sets an argument of its own that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")


def blob(seed, size):
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
    centre = np.array([random.uniform(n / 3, 2 * n / 3) for n in size]).reshape(-1, *[1] * len(size))
    radius = random.uniform(0.2, 0.35) * min(size)
    return (((grid - centre) ** 2).sum(axis=0) < radius**2) ^ (random.random(size) < 0.01)


SHAPES = [((24, 30), (0.7, 1.3)), ((9, 20, 22), (3.0, 0.6, 0.8))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "spacing"), SHAPES)
def test_every_distance_is_monais(size, spacing, seed):
    predicted, true = blob(seed, size), blob(seed + 100, size)
    found = surface_distances(predicted, true, spacing)
    masks = [torch.tensor(mask)[None, None] for mask in (predicted, true)]
    options = {"include_background": True, "spacing": spacing}
    assert found.hd == pytest.approx(compute_hausdorff_distance(*masks, **options).item(), rel=1e-5)
    assert found.hd95 == pytest.approx(compute_hausdorff_distance(*masks, percentile=95, **options).item(), rel=1e-5)
    assert found.asd == pytest.approx(compute_average_surface_distance(*masks, symmetric=True, **options).item(), rel=1e-5)
    for tolerance in (0.5, 2.0):
        wanted = compute_surface_dice(*masks, [tolerance], **options).item()
        assert found.nsd(tolerance) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_distance_of_surfaces_is_scikit_images(seed):
    predicted, true = blob(seed, (9, 20, 22)), blob(seed + 100, (9, 20, 22))
    wanted = hausdorff_distance(surface(predicted), surface(true))
    assert surface_distances(predicted, true, (1, 1, 1)).hd == pytest.approx(wanted)


def test_four_by_four_by_hand():
    true, found = np.zeros((2, 4, 4), bool)
    true[1, 0] = true[1, 1] = True
    found[1, 1] = found[1, 3] = True
    # From the truth 1 and 0 columns, from the prediction 0 and 2.
    distances = surface_distances(found, true, (1.0, 2.0))
    assert (distances.hd, distances.asd) == (4.0, (2 + 0 + 0 + 4) / 4)
    assert distances.hd95 == pytest.approx(0.95 * 4)
    assert (distances.nsd(0), distances.nsd(2), distances.nsd(4)) == (0.5, 0.75, 1.0)


def test_nothing_found_is_infinitely_far_and_nothing_at_all_has_no_figure():
    nothing, something = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    for masks in ((nothing, something), (something, nothing)):
        distances = surface_distances(*masks, (1, 1))
        assert (distances.hd, distances.hd95, distances.asd, distances.nsd(100)) == (np.inf, np.inf, np.inf, 0.0)
    empty = surface_distances(nothing, nothing, (1, 1))
    assert np.isnan([empty.hd, empty.hd95, empty.asd, empty.nsd(1)]).all()


def test_between_slices_that_are_no_neighbours_nothing_is_surface():
    block = np.zeros((4, 5, 5), bool)
    block[:, 1:4, 1:4] = True
    inner = surface(block)[:, 2, 2]
    assert inner.tolist() == [True, False, False, True]
    apart = surface(block, np.array([0, 1, 5, 6]))[:, 2, 2]
    assert apart.tolist() == [True, False, False, True]
    block[1] = False
    assert surface(block)[:, 2, 2].tolist() == [True, False, True, True]
    assert surface(block, np.array([0, 5, 6, 7]))[:, 2, 2].tolist() == [True, False, True, True]
    assert surface(block, np.array([0, 1, 6, 7]))[:, 2, 2].tolist() == [True, False, False, True]


def test_slices_left_out_keep_their_distance():
    one, other = np.zeros((2, 2, 3, 3), bool)
    one[0, 1, 1] = other[1, 1, 1] = True
    assert surface_distances(one, other, (2.0, 1, 1)).hd == 2.0
    assert surface_distances(one, other, (2.0, 1, 1), positions=np.array([3, 8])).hd == 10.0


def test_a_spacing_for_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="a spacing for each axis"):
        surface_distances(np.ones((4, 4), bool), np.ones((4, 4), bool), (1, 1, 1))
