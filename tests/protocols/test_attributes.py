"""Attributes of objects, against figures on paper and an independent reference."""

import numpy as np
import pytest

from medsam_tune.protocols.attributes import attributes_of, fourier_order, harmonic_curve, outline_curve, ring_contrast
from medsam_tune.protocols.correlation import partial_spearman
from tests.protocols.shapes import TROUBLESOME, c_shape, disc, rectangle


def star(points, depth):
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    rows, columns = np.mgrid[:240, :240] - 120.0
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    assert len(angles) == 2000
    return radius <= 80 * (1 + depth * np.sign(np.cos(points * angle)))


@pytest.mark.parametrize("mask", TROUBLESOME.values(), ids=TROUBLESOME.keys())
def test_every_shape_has_finite_attributes(mask):
    found = attributes_of(mask, np.random.default_rng(0).random(mask.shape, np.float32))
    assert found.area == mask.sum()
    assert 0 < found.aspect <= 1
    assert np.isfinite(found.fourier_order)
    assert np.isfinite(found.contrast) != mask.all()


def test_aspect_is_the_short_side_over_the_long_one():
    mask = rectangle(10, 10, 15, 30)
    assert attributes_of(mask, np.zeros(mask.shape, np.float32)).aspect == 5 / 20


def test_contrast_is_that_of_the_box_a_tenth_larger():
    # 20 x 20 pixels of 100; one pixel round it 40; what is farther away counts nothing.
    image = np.full((60, 60), 250, np.float32)
    image[19:41, 19:41] = 40
    image[20:40, 20:40] = 100
    assert ring_contrast(rectangle(20, 20, 40, 40), image) == pytest.approx(60)


def test_contrast_at_the_border_uses_what_there_is_of_the_ring():
    image = np.zeros((60, 60), np.float32)
    image[:20, :20] = 90
    image[20, :] = image[:, 20] = 30
    assert ring_contrast(rectangle(0, 0, 20, 20), image) == pytest.approx(60)


def test_one_harmonic_describes_an_ellipse():
    rows, columns = np.mgrid[:100, :100] - 50.0
    assert fourier_order((rows / 20) ** 2 + (columns / 40) ** 2 <= 1) < 1 + 200 * 0.03
    assert fourier_order(disc((30, 30), 20)) < fourier_order(c_shape())


def test_harmonics_of_a_polygon_come_to_its_corners():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]], float)
    drawn = harmonic_curve(square, 60, points=8)
    np.testing.assert_allclose(drawn, [[0, 0], [2, 0], [4, 0], [4, 2], [4, 4], [2, 4], [0, 4], [0, 2]], atol=0.04)
    np.testing.assert_allclose(harmonic_curve(square, 1, points=200).mean(axis=0), [2, 2], atol=1e-9)


def test_patience_goes_on_where_the_second_order_adds_nothing():
    """A star gains nothing from its second harmonic: without patience its order is a residual of the first one."""
    hasty, patient = (fourier_order(star(5, 0.3), patience=patience) for patience in (1, 4))
    assert hasty > 20
    assert patient < hasty


def test_outline_runs_round_the_outer_border_of_a_ring():
    curve = outline_curve(disc((30, 30), 20) & ~disc((30, 30), 10))
    assert np.ptp(curve, axis=0).tolist() == pytest.approx([41, 41], abs=0.1)
    assert curve[0].tolist() == curve[-1].tolist()


def by_inverse(columns):
    """The partial correlation of the first two of several columns, by the inverse of the matrix of all correlations."""
    from scipy.stats import rankdata

    precision = np.linalg.inv(np.corrcoef([rankdata(column) for column in columns]))
    return -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])


def test_partial_correlation_equals_that_of_the_inverse_matrix():
    rng = np.random.default_rng(0)
    size, other = rng.random(60), rng.random(60)
    contrast, dice = size + rng.random(60), size - other + rng.random(60)
    found = partial_spearman(contrast, dice, {"size": size, "other": other})
    assert found.rho == pytest.approx(by_inverse([contrast, dice, size, other]))
    assert found.n == 60


def test_without_others_it_is_scipys_spearman():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 9, 30), rng.integers(0, 9, 30)
    reference, found = spearmanr(x, y), partial_spearman(x, y)
    assert (found.rho, found.p) == (pytest.approx(reference.statistic), pytest.approx(reference.pvalue))


def test_what_another_quantity_explains_wholly_has_no_correlation():
    x = np.arange(10.0)
    assert np.isnan(partial_spearman(x, x**2, {"same": 2 * x}).rho)
    assert np.isnan(partial_spearman([1.0, 2.0], [2.0, 1.0]).rho)
