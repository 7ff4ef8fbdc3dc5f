import numpy as np
import pytest

from medsam_tune.metrics.structure import s_measure


def disk(centre, radius):
    rows, columns = np.mgrid[:40, :50]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def square(left):
    mask = np.zeros((4, 4), bool)
    mask[1:3, left : left + 2] = True
    return mask


# Smeasure().cal_sm of pysodmetrics 1.6.2, an independent implementation, on the same masks.
@pytest.mark.parametrize(
    ("predicted", "true", "wanted"),
    [(disk((23, 26), 11), disk((20, 22), 9), 0.7008993757024626), (square(2), square(1), 0.6257060835528309)],
)
def test_s_measure_is_that_of_pysodmetrics(predicted, true, wanted):
    assert s_measure(predicted, true) == pytest.approx(wanted, abs=1e-12)


def test_the_same_mask_scores_one():
    assert s_measure(square(1), square(1)) == pytest.approx(1.0)


def test_an_image_that_shows_nothing_scores_what_is_not_predicted():
    assert s_measure(square(1), np.zeros((4, 4), bool)) == 0.75
    assert s_measure(square(1), np.ones((4, 4), bool)) == 0.25


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        s_measure(square(1), np.zeros((4, 5), bool))
