import numpy as np
import pytest

from medsam_tune.data.intensity import Intensity, apply_intensity, apply_intensity_8bit, to_grey_levels
from medsam_tune.errors import DataError, RecipeError


def test_constant_image_becomes_zeros_and_never_nan():
    assert to_grey_levels(np.full((2, 2), 7.0), 7.0, 7.0).tolist() == [[0, 0], [0, 0]]
    assert not np.isnan(apply_intensity(np.full((2, 2), 9, np.uint16), Intensity("percentile"), "a.png")).any()


def test_window_limits_and_not_the_values_present_decide_the_grey_level():
    window = Intensity("window", window=(-100.0, 100.0))
    alone = apply_intensity(np.array([0.0]), window, "a.tif")
    among_others = apply_intensity(np.array([0.0, 50.0, 900.0]), window, "b.tif")
    assert alone[0] == among_others[0] == 127.5


def test_percentile_rule_agrees_with_numpy():
    values = np.random.default_rng(0).integers(0, 60000, (20, 30)).astype(np.uint16)
    low, high = np.percentile(values, [0.5, 99.5])
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    assert np.allclose(apply_intensity(values, Intensity("percentile"), "a"), expected, atol=1e-3)


def test_as_stored_refuses_values_that_are_no_grey_levels():
    with pytest.raises(DataError, match=r"a\.png: values 0 to 300 .* Set data\.source\.intensity\.rule"):
        apply_intensity(np.array([0, 300], np.uint16), Intensity("as_stored"), "a.png")


def test_full_range_refuses_a_type_without_a_range():
    with pytest.raises(DataError, match=r"stores float32, which has no full range"):
        apply_intensity(np.zeros(3, np.float32), Intensity("full_range"), "a.tif")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "window"}, "Give both rule: window and window"),
        ({"window": (0.0, 1.0)}, "Give both rule: window and window"),
        ({"rule": "window", "window": (5.0, 5.0)}, "expected low < high, got 5.0, 5.0"),
        ({"percentiles": (50.0, 101.0)}, "expected 0 <= low < high <= 100"),
    ],
)
def test_contradicting_settings_are_refused_by_key(settings, message):
    with pytest.raises(RecipeError, match=message):
        Intensity(**settings)


def test_sparse_signal_keeps_its_contrast():
    values = np.zeros(10_000, np.float32)
    values[:36] = np.linspace(50, 80, 36)
    levels = apply_intensity(values, Intensity("percentile"), "pet.nii.gz")
    assert (levels[36:] == 0).all()
    assert 150 < levels[0] < 165
    assert levels[35] == 255
    # A bright background with a few dark pixels is the same the other way round.
    inverted = apply_intensity(100 - values, Intensity("percentile"), "pet.nii.gz")
    assert (inverted[36:] == 255).all()
    assert inverted[35] == 0


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rule", [Intensity("percentile"), Intensity("window", window=(3.0, 40.0)), Intensity("as_stored")])
def test_whole_levels_are_the_rounded_ones(order, rule):
    values = np.asarray(np.arange(60).reshape(3, 4, 5), dtype=np.int16, order=order)
    whole = apply_intensity_8bit(values, rule, "a.nii.gz")
    np.testing.assert_array_equal(whole, np.rint(apply_intensity(values, rule, "a.nii.gz")))
    assert whole.dtype == np.uint8
