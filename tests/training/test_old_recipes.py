"""Recipes of earlier versions are recognised and brought to the form of today."""

import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.old_recipes import old_key, upgrade_model


def part(path, **init_args):
    return {"class_path": path, **({"init_args": init_args} if init_args else {})}


BACKBONE = part("medsam_tune.backbone.SamBackbone", weights="lite_medsam", seed=3)
BOX = part("medsam_tune.prompts.BoxPrompt", jitter={"high": 5})
LOSS = part("medsam_tune.losses.BceDiceLoss")


def test_form_of_today_has_no_old_key():
    model = {"backbone": BACKBONE, "prompts": BOX, "segmenter": part("medsam_tune.segmenters.InteractiveSegmenter", rounds=4)}
    assert old_key({"model": model}) is None
    assert old_key({"model": {"segmenter": part("medsam_tune.segmenters.TaskSegmenter", side=256)}}) is None
    assert old_key({"data": {}}) is None
    assert old_key({"model": None}) is None


def test_first_old_key_is_named():
    assert old_key({"model": {"prompt_source": BOX}}) == "model.prompt_source"
    inside = part("medsam_tune.segmenters.SemanticSegmenter", classes=["a"], backbone=BACKBONE)
    assert old_key({"model": {"segmenter": inside}}) == "model.segmenter.init_args.backbone"


def test_drawn_prompt_is_prompts_and_the_rest_stays():
    upgraded = upgrade_model({"backbone": BACKBONE, "prompt_source": BOX, "loss": LOSS})
    assert upgraded.model == {"backbone": BACKBONE, "prompts": BOX, "loss": LOSS}
    assert upgraded.names_only


@pytest.mark.parametrize("name", ["HarDNetPromptGenerator", "TimmPromptGenerator", "FusedPromptGenerator"])
def test_generator_is_the_prompt_encoder_of_its_new_room(name):
    upgraded = upgrade_model({"prompt_source": part(f"medsam_tune.prompts.generator.{name}", width=8)})
    assert upgraded.model == {"prompt_encoder": part(f"medsam_tune.prompt_encoders.{name}", width=8)}


@pytest.mark.parametrize("source", [None, part("medsam_tune.prompts.NoPrompt"), "NoPrompt"])
def test_no_prompt_is_no_key(source):
    upgraded = upgrade_model({"backbone": BACKBONE, "prompt_source": source})
    assert upgraded.model == {"backbone": BACKBONE}
    assert not upgraded.names_only


def test_joint_prompts_hold_samplers_at_every_depth():
    old = part("medsam_tune.prompts.OneOfPrompt", sources=[part("medsam_tune.prompts.CombinedPrompt", sources=[BOX]), BOX])
    new = part("medsam_tune.prompts.OneOfPrompt", samplers=[part("medsam_tune.prompts.CombinedPrompt", samplers=[BOX]), BOX])
    assert upgrade_model({"prompt_source": old}).model == {"prompts": new}


def test_segmenter_gives_up_the_parts_and_keeps_its_own():
    inside = part(
        "medsam_tune.segmenters.InteractiveSegmenter",
        rounds=4,
        backbone=BACKBONE,
        prompt_source=BOX,
        objects_per_decode=2,
        fusion=None,
    )
    upgraded = upgrade_model({"segmenter": inside, "loss": LOSS})
    assert upgraded.model == {
        "backbone": BACKBONE,
        "prompts": BOX,
        "fusion": None,
        "objects_per_decode": 2,
        "segmenter": part("medsam_tune.segmenters.InteractiveSegmenter", rounds=4),
        "loss": LOSS,
    }
    assert list(upgraded.model) == ["backbone", "prompts", "fusion", "objects_per_decode", "segmenter", "loss"]
    assert "model.segmenter.objects_per_decode: moved to model" in upgraded.changes


def test_sam_segmenter_that_says_nothing_more_goes_and_another_stays():
    assert upgrade_model({"segmenter": part("medsam_tune.segmenters.SamSegmenter", backbone=BACKBONE)}).model == {
        "backbone": BACKBONE
    }
    kept = upgrade_model({"segmenter": part("mine.Segmenter", backbone=BACKBONE)}).model
    assert kept == {"backbone": BACKBONE, "segmenter": part("mine.Segmenter")}


def test_side_of_a_task_network_is_a_number_of_its_own():
    task = part("medsam_tune.segmenters.TaskSegmenter", side=128, fusion=part("medsam_tune.fusion.StackGrey"))
    assert upgrade_model({"segmenter": task}).model == {
        "fusion": part("medsam_tune.fusion.StackGrey"),
        "segmenter": part("medsam_tune.segmenters.TaskSegmenter", side=128),
    }


def test_seeds_of_prompts_and_clicks_go_and_the_backbones_stays():
    box = part("BoxPrompt", seed=2)
    inside = part("medsam_tune.segmenters.InteractiveSegmenter", seed=1, backbone=BACKBONE, prompt_source=box)
    upgraded = upgrade_model({"segmenter": inside})
    assert upgraded.model == {
        "backbone": BACKBONE,
        "prompts": {"class_path": "BoxPrompt", "init_args": {}},
        "segmenter": {"class_path": "medsam_tune.segmenters.InteractiveSegmenter", "init_args": {}},
    }
    assert any("seed_everything reaches every random choice" in change for change in upgraded.changes)


def test_class_of_the_users_own_needs_a_word():
    with pytest.raises(RecipeError, match=r"model\.prompt_source: mine\.Prompt is no class of medsam_tune\. Name it"):
        upgrade_model({"prompt_source": part("mine.Prompt")})


def test_part_that_stands_twice_is_refused():
    inside = part("medsam_tune.segmenters.SamSegmenter", backbone=BACKBONE)
    with pytest.raises(RecipeError, match=r"^model\.backbone: stands twice"):
        upgrade_model({"backbone": BACKBONE, "segmenter": inside})
