import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.export.build import build_segmenter
from medsam_tune.prompts import BoxJitter
from medsam_tune.prompts.none import NoPrompt
from medsam_tune.segmenters.sam import SamSegmenter
from tests.factories import make_batch

BACKBONE = {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}}
NO_PROMPT = {"class_path": "medsam_tune.prompts.NoPrompt"}


def test_built_network_equals_the_one_made_by_hand():
    built = build_segmenter({"backbone": BACKBONE, "prompt_source": NO_PROMPT, "objects_per_decode": 2})
    by_hand = SamSegmenter(SamBackbone("random_tiny"), NoPrompt(), objects_per_decode=2)
    batch = make_batch(objects=(2, 1))
    with torch.no_grad():
        assert torch.equal(built.eval()(batch).low_res_masks, by_hand.eval()(batch).low_res_masks)
    assert built.objects_per_decode == 2


def test_segmenter_key_stands_alone_and_nested_parts_are_built():
    nested = {
        "class_path": "medsam_tune.segmenters.sam.SamSegmenter",
        "init_args": {"backbone": BACKBONE, "prompt_source": NO_PROMPT},
    }
    segmenter = build_segmenter({"segmenter": nested, "backbone": None})
    assert isinstance(segmenter.prompt_source, NoPrompt)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("os.system", "os.system lies outside medsam_tune, .* Pass trusted=True"),
        ("medsam_tune.prompts.NoSuch", "cannot be imported"),
        ("medsam_tune.prompts.no_module.NoSuch", "cannot be imported"),
        ("medsam_tune.prompts.box.whole_image_boxes", "is no class, got function"),
        ("medsam_tune.NoTuner", r"model\.prompt_source: medsam_tune.NoTuner cannot be imported"),
        ("medsam_tune.SamBackbone", r"model\.prompt_source: expected a class_path of a PromptSource, got SamBackbone"),
        ("medsam_tune.prompts.base.PromptSource", r"expected a class_path of a PromptSource, got PromptSource"),
        ("medsam_tune.tuners.NoTuner", r"a PromptSource, which lie in medsam_tune\.prompts, got medsam_tune\.tuners\.NoTuner"),
    ],
)
def test_unfit_class_path_is_refused(part, message):
    with pytest.raises(RecipeError, match=message):
        build_segmenter({"backbone": BACKBONE, "prompt_source": {"class_path": part}})


def test_missing_part_and_unknown_argument_are_named():
    with pytest.raises(RecipeError, match=r"model\.prompt_source: missing; expected a class_path of a PromptSource"):
        build_segmenter({"backbone": BACKBONE})
    with pytest.raises(RecipeError, match=r"prompt_source\.knd: BoxPrompt does not take .* It takes: kind, jitter"):
        build_segmenter(
            {"backbone": BACKBONE, "prompt_source": {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {"knd": 1}}}
        )


def test_settings_of_a_part_become_its_dataclass_again():
    jitter = {"high": 0.1, "unit": "fraction"}
    source = {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {"kind": "tight", "jitter": jitter}}
    assert build_segmenter({"backbone": BACKBONE, "prompt_source": source}).prompt_source.jitter == BoxJitter(
        0.1, unit="fraction"
    )
    with pytest.raises(RecipeError, match=r"prompt_source\.jitter\.hgh: BoxJitter does not take these init_args"):
        build_segmenter({"backbone": BACKBONE, "prompt_source": {**source, "init_args": {"jitter": {"hgh": 1}}}})
