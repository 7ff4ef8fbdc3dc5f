import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.precompute import PriorSettings


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("weights", "", "must name weights"),
        ("points_per_side", 0, "must be at least 1, got 0"),
        ("pred_iou_thresh", 1.5, "must be between 0 and 1, got 1.5"),
        ("stability_score_thresh", float("nan"), "must be between 0 and 1, got nan"),
        ("box_nms_thresh", -0.1, "must be between 0 and 1, got -0.1"),
        ("stability_score_offset", -1.0, "must be finite and not negative, got -1.0"),
        ("stability_score_offset", float("inf"), "must be finite and not negative, got inf"),
        ("box_fractions", (0.5, 0.0), r"must be above 0 and at most 1, got \[0.5, 0.0\]"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(key, value, rule):
    with pytest.raises(RecipeError, match=rf"^data\.priors\.{key}: {rule}"):
        PriorSettings(**{key: value})


def test_defaults_are_those_of_samaugs_released_generator():
    settings = PriorSettings()
    assert (settings.points_per_side, settings.pred_iou_thresh, settings.box_nms_thresh) == (32, 0.5, 0.5)
    assert (settings.stability_score_thresh, settings.stability_score_offset) == (0.95, 1.0)
    assert (settings.low_res_stability, settings.box_fractions) == (False, ())
