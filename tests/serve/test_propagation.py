"""A box or click of nnInteractive's own client, followed through the volume."""

import numpy as np
import pytest

from medsam_tune import Predictor, SamBackbone
from medsam_tune.cli import main
from medsam_tune.data.intensity import apply_intensity_8bit
from medsam_tune.errors import RecipeError
from medsam_tune.inference.propagation import PropagationRules
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.runs.asked_model import AskedModel
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.serve.served_model import ServedModel
from tests.serve.test_client import RULE, clients, show, volume

__all__ = ["volume"]
RULES = PropagationRules(least_iou=0.0, shrink=0.0, grow=1000.0)
BOX = [[2, 3], [4, 16], [3, 25]]


def expected(model, volume, position, rules=RULES, **prompts):
    levels = apply_intensity_8bit(volume, RULE, "test")
    found = model.predictor.propagate(levels, position, rules=rules, **prompts)
    return np.stack([found.masks.get(each, np.zeros(volume.shape[1:], bool)) for each in range(len(volume))])


def test_a_box_fills_the_slices_above_and_below_as_predict_does_and_undo_empties_them(model, volume):
    with clients(model, rules=RULES) as client:
        mask = show(client, volume)
        changed = client.add_bbox_interaction(BOX, True)
        found = expected(model, volume, 2, box=(3, 4, 24, 15))
        assert np.array_equal(mask, found)
        filled = np.flatnonzero(found.any((1, 2)))
        assert len(filled) > 1
        assert changed == [[filled[0], filled[-1] + 1], [0, 20], [0, 30]]
        client.undo()
        assert not mask.any()


def test_a_correction_on_another_slice_has_the_slices_that_are_nearer_to_it(model, volume):
    with clients(model, rules=RULES) as client:
        mask = show(client, volume)
        client.add_bbox_interaction([[0, 1], [4, 16], [3, 25]], True)
        first = mask.copy()
        client.add_point_interaction((4, 7, 9), True)
        corrected = mask.copy()
        near = PropagationRules(least_iou=0.0, shrink=0.0, grow=1000.0, slices=(3, 4))
        assert np.array_equal(corrected[3:], expected(model, volume, 4, near, points=[(9, 7, 1)])[3:])
        assert np.array_equal(corrected[:3], first[:3])
        client.undo()
        assert np.array_equal(mask, first)


def test_without_rules_the_other_slices_stay_as_they_are(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        client.add_bbox_interaction(BOX, True)
        assert np.flatnonzero(mask.any((1, 2))).tolist() == [2]


def test_a_model_with_classes_and_a_score_without_propagation_are_refused():
    parts = SamParts(SamBackbone("random_tiny", trainable=["mask_decoder"]))
    predictor = Predictor(SemanticSegmenter(parts, classes=["a", "b"]))
    with pytest.raises(RecipeError, match="follows no object"):
        ServedModel.of(AskedModel("m", predictor, TrainedData(), "i"), label="a", rules=RULES)


def test_the_option_without_propagate_is_refused_before_a_model_is_loaded(capsys):
    assert main(["serve", "random_tiny", "--port", "0", "--least-iou", "0.7"]) != 0
    assert "--least-iou: goes with --propagate" in capsys.readouterr().err
