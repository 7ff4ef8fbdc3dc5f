import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.export.build import build_segmenter
from medsam_tune.prompts import BoxJitter
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from tests.factories import make_batch

BACKBONE = {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}}


def test_built_network_equals_the_one_made_by_hand():
    built = build_segmenter({"backbone": BACKBONE, "objects_per_decode": 2})
    by_hand = SamSegmenter(SamParts(SamBackbone("random_tiny"), objects_per_decode=2))
    batch = make_batch(objects=(2, 1))
    with torch.no_grad():
        assert torch.equal(built.eval()(batch).low_res_masks, by_hand.eval()(batch).low_res_masks)
    assert built.objects_per_decode == 2


def test_segmenter_gets_the_parts_and_its_own_arguments():
    own = {"class_path": "medsam_tune.segmenters.InteractiveSegmenter", "init_args": {"rounds": 2}}
    segmenter = build_segmenter({"segmenter": own, "backbone": BACKBONE, "objects_per_decode": 3})
    assert (segmenter.rounds, segmenter.objects_per_decode) == (2, 3)
    assert segmenter.backbone.weights.name == "random_tiny"


def test_segmenter_cannot_bring_parts_of_its_own():
    own = {"class_path": "medsam_tune.segmenters.SamSegmenter", "init_args": {"parts": {"backbone": BACKBONE}}}
    with pytest.raises(RecipeError, match=r"model\.segmenter\.parts: SamSegmenter does not take these init_args"):
        build_segmenter({"segmenter": own})


def test_model_of_the_older_form_is_refused_with_the_way_out():
    with pytest.raises(RecipeError, match=r"model\.prompt_source: is the form of an older version.*recipes upgrade FILE"):
        build_segmenter({"backbone": BACKBONE, "prompt_source": {"class_path": "medsam_tune.prompts.BoxPrompt"}})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("os.system", "os.system lies outside medsam_tune, .* Pass trusted=True"),
        ("medsam_tune.prompts.NoSuch", "cannot be imported"),
        ("medsam_tune.prompts.no_module.NoSuch", "cannot be imported"),
        ("medsam_tune.prompts.box.whole_image_boxes", "is no class, got function"),
        ("medsam_tune.NoTuner", r"model\.prompts: medsam_tune.NoTuner cannot be imported"),
        ("medsam_tune.SamBackbone", r"model\.prompts: expected a class_path of a PromptSampler, got SamBackbone"),
        ("medsam_tune.prompts.base.PromptSampler", r"expected a class_path of a PromptSampler, got PromptSampler"),
        ("medsam_tune.tuners.NoTuner", r"a PromptSampler, which lie in medsam_tune\.prompts, got medsam_tune\.tuners\.NoTuner"),
    ],
)
def test_unfit_class_path_is_refused(part, message):
    with pytest.raises(RecipeError, match=message):
        build_segmenter({"backbone": BACKBONE, "prompts": {"class_path": part}})


def test_missing_part_and_unknown_argument_are_named():
    with pytest.raises(RecipeError, match=r"model\.backbone: is missing\. Name one"):
        build_segmenter({"prompts": None})
    with pytest.raises(RecipeError, match=r"prompts\.knd: BoxPrompt does not take .* It takes: kind, jitter"):
        build_segmenter(
            {"backbone": BACKBONE, "prompts": {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {"knd": 1}}}
        )


def test_settings_of_a_part_become_its_dataclass_again():
    jitter = {"high": 0.1, "unit": "fraction"}
    source = {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {"kind": "tight", "jitter": jitter}}
    assert build_segmenter({"backbone": BACKBONE, "prompts": source}).prompts.jitter == BoxJitter(0.1, unit="fraction")
    with pytest.raises(RecipeError, match=r"prompts\.jitter\.hgh: BoxJitter does not take these init_args"):
        build_segmenter({"backbone": BACKBONE, "prompts": {**source, "init_args": {"jitter": {"hgh": 1}}}})
