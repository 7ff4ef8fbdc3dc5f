import numpy as np
import pytest

from medsam_tune.metrics.interval import FEWEST_RESAMPLED, Interval, mean_interval


def coverage(samples, truth, **more):
    """Share of the rows whose interval holds the true mean."""
    intervals = [mean_interval(row, **more) for row in samples]
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


def percentile_coverage(samples, truth, random):
    """The same for the percentile bootstrap, written here."""
    n_samples, n_cases = samples.shape
    means = samples[np.arange(n_samples)[:, None, None], random.integers(0, n_cases, (n_samples, 300, n_cases))].mean(axis=2)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(("n_cases", "percentile"), [(4, 0.81), (8, 0.88)])
def test_interval_over_few_cases_covers_what_it_says_and_the_percentile_bootstrap_does_not(n_cases, percentile):
    random = np.random.default_rng(0)
    samples = random.normal(0.85, 0.05, (700, n_cases))
    assert coverage(samples, 0.85) == pytest.approx(0.95, abs=0.02)
    assert percentile_coverage(samples, 0.85, random) == pytest.approx(percentile, abs=0.04)


def test_interval_over_few_skewed_cases_covers_more_than_nine_in_ten():
    samples = np.random.default_rng(0).beta(9, 1.5, (1500, 8))
    assert coverage(samples, 9 / 10.5, bounds=(0, 1)) > 0.90


def test_resampled_interval_over_skewed_cases_covers_what_it_says():
    samples = np.random.default_rng(0).beta(9, 1.5, (150, 40))
    assert coverage(samples, 9 / 10.5, resamples=199) == pytest.approx(0.94, abs=0.04)


def test_interval_over_four_cases_is_that_of_the_table_of_t():
    # Mean 5, standard deviation 2, t of 3 degrees of freedom 3.182: 5 +- 3.182 * 2 / sqrt(4).
    interval = mean_interval([5 - 3**0.5, 5 - 3**0.5, 5 + 3**0.5, 5 + 3**0.5])
    assert (interval.low, interval.high) == pytest.approx((5 - 3.182, 5 + 3.182), abs=1e-3)


def test_interval_over_patients_of_several_cases_is_that_of_the_ratio_of_their_sums():
    # Mean 0.7; residuals by patient 0.2, -0.2 and 0: error sqrt(3 / 2 * 0.08) / 5 = 0.06928, t of two 4.303.
    interval = mean_interval([0.9, 0.7, 0.5, 0.6, 0.8], groups=["a", "a", "b", "c", "c"])
    assert (interval.low, interval.high) == pytest.approx((0.7 - 0.2981, 0.7 + 0.2981), abs=2e-4)
    assert mean_interval([0.9, 0.8], groups=["a", "a"]) is None


@pytest.mark.parametrize("n_patients", [8, 40])
def test_interval_over_patients_covers_what_it_says_where_cases_of_one_are_alike(n_patients):
    random = np.random.default_rng(0)
    samples = np.repeat(random.normal(0.85, 0.05, (150, n_patients)), 4, axis=1)
    groups = np.repeat(np.arange(n_patients), 4).tolist()
    assert coverage(samples, 0.85, groups=groups, resamples=199) > 0.9
    assert coverage(samples, 0.85, resamples=199) < 0.8


def test_groups_of_one_change_nothing():
    for size in (5, 40):
        values = np.random.default_rng(1).beta(9, 1.5, size)
        assert mean_interval(values, groups=list(range(size))) == mean_interval(values)


def test_method_changes_at_thirty_cases_and_is_named():
    values = np.random.default_rng(0).uniform(0.5, 1.0, FEWEST_RESAMPLED)
    assert mean_interval(values[:-1]).method == "t"
    assert mean_interval(values).method == "bca"


def test_resampled_interval_equals_scipys_and_leans_to_the_long_tail():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).beta(9, 1.5, 40)
    expected = bootstrap((values,), np.mean, method="BCa", random_state=np.random.default_rng(7)).confidence_interval
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert values.mean() - interval.low > interval.high - values.mean()


def test_interval_is_cut_off_at_what_the_mean_cannot_leave():
    assert mean_interval([0.8, 1.0, 1.0], bounds=(0, 1)).high == 1.0
    assert mean_interval([0.8, 1.0, 1.0]).high > 1.0
    assert mean_interval([0.0, 0.0, 0.2], bounds=(0, 1)).low == 0.0


def test_fewer_than_two_cases_have_no_interval():
    assert mean_interval([]) is None
    assert mean_interval([0.9]) is None


def test_equal_values_give_a_point_without_warning():
    assert mean_interval([0.7] * 5) == Interval(0.7, 0.7, "t")
    assert mean_interval([0.7] * 50) == Interval(0.7, 0.7, "bca")


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.linspace(0.1, 0.9, 32)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3, resamples=99) != mean_interval(values, seed=4, resamples=99)


@pytest.mark.parametrize("n_cases", [12, 40])
def test_a_higher_level_gives_a_wider_interval(n_cases):
    wide, narrow = (mean_interval(np.linspace(0.1, 0.9, n_cases), level=level) for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_nan_is_refused():
    with pytest.raises(ValueError, match="Leave excluded cases out"):
        mean_interval([0.5, float("nan")])
