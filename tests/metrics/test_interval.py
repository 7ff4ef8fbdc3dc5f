import numpy as np
import pytest

from medsam_tune.metrics import bootstrap_interval


def test_fewer_than_two_cases_have_no_interval():
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.9]) is None


def test_equal_values_give_a_point_without_warning():
    assert bootstrap_interval([0.7] * 5) == (0.7, 0.7)


def test_interval_equals_percentiles_of_means_resampled_by_hand():
    values = np.random.default_rng(1).uniform(0.5, 1.0, 25)
    means = np.random.default_rng(2).choice(values, (40_000, 25)).mean(axis=1)
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.003)


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.linspace(0.1, 0.9, 12)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3, resamples=99) != bootstrap_interval(values, seed=4, resamples=99)


def test_a_higher_level_gives_a_wider_interval():
    values = np.linspace(0.1, 0.9, 12)
    low95, high95 = bootstrap_interval(values)
    low50, high50 = bootstrap_interval(values, level=0.5)
    assert low95 < low50 < high50 < high95


def test_nan_is_refused():
    with pytest.raises(ValueError, match="Leave excluded cases out"):
        bootstrap_interval([0.5, float("nan")])
