import numpy as np
import pytest
import torch

from medsam_tune import Predictor, SamBackbone
from medsam_tune.data.intensity import AS_STORED
from medsam_tune.errors import RecipeError
from medsam_tune.inference.asked_slices import EncodedSlices, answer_slice, check_label
from medsam_tune.inference.held_image import held_image
from medsam_tune.inference.slice_prompts import NO_PROMPTS
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter

BOX = (3.0, 4.0, 24.0, 15.0)
PROMPTS = NO_PROMPTS.with_box(BOX)


@pytest.fixture
def slices():
    values = np.random.default_rng(0).integers(0, 256, (6, 20, 30), dtype=np.uint8)
    return SlicedFile(held_image(values), TrainedData(of_volumes=True))


@pytest.fixture
def predictor():
    return Predictor(SamBackbone("random_tiny"))


@pytest.fixture
def encodings(monkeypatch):
    """What was encoded, in order."""
    found, own = [], Predictor.with_image

    def with_image(self, image, **more):
        found.append(image)
        return own(self, image, **more)

    monkeypatch.setattr(Predictor, "with_image", with_image)
    return found


def test_a_slice_is_encoded_at_its_first_prompt_and_kept(predictor, slices, encodings):
    kept = EncodedSlices(predictor)
    for position in (2, 2, 4, 2):
        kept.get("a", slices, position)
    assert len(encodings) == len(kept) == 2
    kept.get("another image", slices, 2)
    assert len(encodings) == 3


def test_only_the_last_slices_are_kept(predictor, slices, encodings):
    kept = EncodedSlices(predictor, most=2)
    for position in (0, 1, 0, 2, 0, 1):
        kept.get("a", slices, position)
    # 0, 1, 2 and again 1, which 2 had pushed out.
    assert len(encodings) == 4
    assert len(kept) == 2
    kept.forget("a")
    assert len(kept) == 0


def test_slices_of_one_network_are_answered_without_mixing_them(predictor, slices):
    kept = EncodedSlices(predictor)
    first, second = kept.get("a", slices, 0), kept.get("a", slices, 1)
    for position, asked in ((0, first), (1, second), (0, first)):
        predictor.set_image(slices.levels(position), intensity=AS_STORED)
        assert np.array_equal(answer_slice(asked, PROMPTS).mask, predictor.predict(box=BOX)[0][0])


def test_a_model_that_learnt_from_clicks_is_shown_its_last_answer_and_no_other_is(slices):
    for kind, shown in ((InteractiveSegmenter, True), (None, False)):
        torch.manual_seed(0)
        parts = SamParts(SamBackbone("random_tiny"), BoxPrompt())
        predictor = Predictor(SamBackbone("random_tiny") if kind is None else kind(parts))
        asked = EncodedSlices(predictor).get("a", slices, 0)
        before = answer_slice(asked, PROMPTS)
        corrected = answer_slice(asked, PROMPTS.with_point(9, 7, positive=False), before=before)
        more = {"point_coords": [(9, 7)], "point_labels": [0]} | ({"mask_input": before.low_res_masks} if shown else {})
        assert np.array_equal(corrected.low_res_masks, asked.predict(box=BOX, **more)[2])


def test_prompts_ask_only_where_something_shows_the_object():
    assert not NO_PROMPTS.asks
    assert not NO_PROMPTS.with_point(1, 2, positive=False).asks
    assert NO_PROMPTS.with_point(1, 2, positive=True).asks
    both = PROMPTS.with_point(1, 2, positive=False)
    assert both.asks
    assert both.arguments() == {"box": BOX, "point_coords": [(1, 2)], "point_labels": [0]}
    assert both.with_box((0, 0, 1, 1)).arguments()["box"] == (0, 0, 1, 1)


def test_one_class_is_shown_of_a_model_with_several(slices):
    segmenter = SemanticSegmenter(SamParts(SamBackbone("random_tiny", trainable=["mask_decoder"])), classes=["a", "b"])
    asked = EncodedSlices(Predictor(segmenter)).get("a", slices, 0)
    masks = asked.predict()[0]
    for number, name in enumerate("ab"):
        assert np.array_equal(answer_slice(asked, None, label=name).mask, masks[number])
    with pytest.raises(RecipeError, match=r"has the classes a, b, got c"):
        check_label(segmenter, "c")
