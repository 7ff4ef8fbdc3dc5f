import pytest

from medsam_tune.data.intensity import PERCENTILE, UNNAMED_RULE, Intensity
from medsam_tune.data.stored_images import StoredImages
from medsam_tune.errors import DataError
from medsam_tune.inference.trained_data import TrainedData, intensity_of
from medsam_tune.precompute import PriorSettings


def test_what_the_training_did_is_read_from_an_exports_description():
    data = {
        "intensity": {"rule": "window", "percentiles": [0.5, 99.5], "window": [-160, 240]},
        "axis": "coronal",
        "format": "F",
        "labels": {"a": [1, 2], "b": ["wall"]},
        "target": "binary",
        "priors": {"weights": "random_tiny", "points_per_side": 2, "box_fractions": [0.5]},
        "stored_images": {"colour": False, "low": -1000, "high": 900, "spacing_mm": [0.7, 0.7]},
    }
    assert TrainedData.of(data) == TrainedData(
        "coronal",
        Intensity("window", window=(-160, 240)),
        of_volumes=True,
        labels={"a": (1, 2), "b": ()},
        target="binary",
        priors=PriorSettings("random_tiny", points_per_side=2, box_fractions=(0.5,)),
        images=StoredImages(False, -1000, 900, (0.7, 0.7)),
    )
    assert TrainedData.of({"intensity": "8 bit as stored", "labels": "one"}) == TrainedData()


@pytest.mark.parametrize(
    "data",
    [
        {"intensity": {"rule": "window"}},
        {"axis": "up"},
        {"target": "any"},
        {"labels": {"a": 3}},
        {"mask_threshold": "high"},
        {"priors": {"points_per_side": 0}},
        {"priors": {"unknown": 0}},
        {"stored_images": {"colour": True}},
        {"stored_images": {"colour": True, "low": 0, "high": 1, "spacing_mm": [1]}},
    ],
)
def test_a_damaged_description_is_one_error(data):
    with pytest.raises(DataError, match=r"export\.json: its data cannot be read \(.+\)\. Export the run again\."):
        TrainedData.of(data)


WINDOW = {"rule": "window", "percentiles": [0.5, 99.5], "window": [-160, 240]}


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({"intensity": WINDOW, "format": "NiftiFormat"}, Intensity("window", window=(-160, 240))),
        ({"intensity": {"rule": "percentile", "percentiles": [1, 99], "window": None}}, Intensity("percentile", (1, 99))),
        ({"intensity": {"rule": "percentile"}, "format": "NiftiFormat"}, None),
        ({"intensity": UNNAMED_RULE}, PERCENTILE),
        ({"intensity": "0..1 times 255, or 8 bit as stored"}, None),
        ({}, None),
    ],
    ids=["window", "percentiles of images", "percentiles of volumes", "no rule", "another source", "nothing"],
)
def test_rule_of_one_image_is_that_of_the_training_unless_a_volume_makes_it(data, rule):
    assert intensity_of(data) == rule


def test_damaged_rule_is_one_error():
    with pytest.raises(DataError, match=r"export\.json: its data cannot be read \(.+\)\. Export the run again\."):
        intensity_of({"intensity": {"rule": "window"}})
