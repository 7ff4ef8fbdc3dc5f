"""An interactive recipe goes through a whole run: fit, test, baselines, export, report; and its export is an ordinary SAM."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import medsam_tune
from medsam_tune.errors import RecipeError
from medsam_tune.segmenters import InteractiveSegmenter, SamSegmenter
from medsam_tune.segmenters.base import SamParts
from tests.factories import with_masks
from tests.training.tiny_runs import RECIPE, build, only_run, run, weights_of

RECIPES = Path(__file__).parents[2] / "recipes"
HEAD = "mask_decoder.iou_prediction_head"
SEGMENTER = """\
  backbone:
    class_path: medsam_tune.backbone.SamBackbone
    init_args: {weights: random_tiny, trainable: [mask_decoder, mask_decoder.iou_prediction_head]}
  prompts:
    class_path: medsam_tune.prompts.OneOfPrompt
    init_args:
      samplers:
        - {class_path: medsam_tune.prompts.BoxPrompt, init_args: {jitter: {high: 2}}}
        - {class_path: medsam_tune.prompts.PointPrompt}
  tuner: {class_path: medsam_tune.tuners.NormTuning}
  segmenter:
    class_path: medsam_tune.segmenters.InteractiveSegmenter
    init_args:
      rounds: 3
      eval_rounds: 2
      clicks: [1, 2]
  loss: {class_path: medsam_tune.losses.IouHeadLoss}
"""


@pytest.fixture
def recipe(workplace):
    """tiny.yaml with rounds of clicks in place of a prompt generator."""
    before, after = RECIPE.split("  backbone:")[0], RECIPE[RECIPE.index("data:") :]
    (workplace / "tiny.yaml").write_text(before + SEGMENTER + after)
    return workplace


@pytest.fixture
def done(recipe):
    """The folder of one finished run."""
    assert run("--data.cache_embeddings=false", "--trainer.max_epochs=1") == 0
    return only_run()


@pytest.mark.slow
def test_run_scores_exports_and_reloads_as_an_ordinary_predictor(done):
    summary = json.loads(done.summary.read_text())
    assert list(summary["baselines"]) == ["same_prompts", "whole_image_box", "oracle_box"]
    assert (done.path / "report/index.html").is_file()
    trained = weights_of(done.checkpoints / "best.ckpt")
    assert any(HEAD in name for name in trained)
    predictor = medsam_tune.load_export(done.export)
    segmenter = predictor.segmenter
    assert isinstance(segmenter, InteractiveSegmenter)
    state = segmenter.state_dict()
    assert all(torch.equal(state[name.removeprefix("segmenter.")], tensor) for name, tensor in trained.items())
    ordinary = SamSegmenter(SamParts(segmenter.backbone, segmenter.prompts))
    image = np.random.default_rng(0).integers(0, 255, (16, 20), dtype=np.uint8)
    box = (3, 3, 12, 12)
    predictor.set_image(image)
    expected = medsam_tune.Predictor(ordinary)
    expected.set_image(image)
    assert np.array_equal(predictor.predict(box=box)[2], expected.predict(box=box)[2])
    with pytest.raises(ValueError, match="Give box="):
        predictor.segment(image)


def test_training_that_changes_nothing_scores_exactly_as_the_untuned_network_under_the_same_clicks(recipe):
    jitter = "--model.prompts.init_args.samplers=[{class_path: BoxPrompt, init_args: {eval_jitter: {high: 3}}}, PointPrompt]"
    words = ("--model.optimizer.lr=0", "--trainer.max_epochs=1", "--run.report=false", "--data.eval_batch_size=1")
    assert run("--data.cache_embeddings=false", "--model.optimizer=SGD", jitter, *words) == 0
    summary = json.loads(only_run().summary.read_text())
    alike = summary["baselines"]["same_prompts"]
    assert alike["dice"] == summary["test"]["dice"]
    assert alike["tuned_minus_this"]["ci95"] == [0.0, 0.0]
    assert alike["dice"] != summary["baselines"]["oracle_box"]["dice"]
    assert summary["verdict"]["text"].startswith("Not shown to be better than the untuned network under the same prompts")


def test_nested_recipe_is_built_with_all_its_settings(recipe):
    cli = build("--model.segmenter.eval_rounds=5", "--data.cache_embeddings=false")
    segmenter = cli.model.segmenter
    assert (segmenter.rounds, segmenter.eval_rounds, segmenter.clicks) == (3, 5, (1, 2))
    assert segmenter.prompts.samplers[0].jitter.high == 2
    assert type(segmenter.tuner).__name__ == "NormTuning"
    (batch, *_) = cli.datamodule.train_dataloader()
    losses = segmenter.training_losses(batch, cli.model.loss)
    assert set(losses) == {"bce", "dice", "iou"}
    torch.stack(list(losses.values())).sum().backward()
    cli.model.on_after_backward()


def test_head_that_no_loss_reaches_stops_the_first_step(recipe):
    words = "--model.loss=medsam_tune.losses.BceDiceLoss"
    cli = build(words, "--data.cache_embeddings=false")
    (batch, *_) = cli.datamodule.train_dataloader()
    torch.stack(list(cli.model.segmenter.training_losses(batch, cli.model.loss).values())).sum().backward()
    with pytest.raises(RecipeError, match=r"iou_prediction_head.*Freeze them or add a loss that uses them"):
        cli.model.on_after_backward()


def test_prediction_on_new_images_clicks_nowhere(recipe):
    cli = build("--model.prompts=null", "--data.cache_embeddings=false")
    (batch, *_) = cli.datamodule.test_dataloader()
    cli.model.eval()
    turned = with_masks(batch, ~batch.masks, tuple(~masks.dense() for masks in batch.original_masks))
    with torch.no_grad():
        assert torch.equal(cli.model.predict_step(batch, 0).low_res_masks, cli.model.predict_step(turned, 0).low_res_masks)
        assert not torch.equal(cli.model(batch).low_res_masks, cli.model(turned).low_res_masks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interactive", "paper/sam_med2d"])
def test_shipped_recipe_steps_with_a_gradient_for_every_parameter_that_learns(name, workplace):
    words = [
        "--model.backbone.weights=random_tiny",
        "--model.backbone.side=64",
        "--data.source=medsam_tune.data.ImageFolder",
        "--data.source.init_args.case_pattern=^([^_]+)_",
        "--data.source.init_args.labels={disc: [255]}",
        "--data.root=images",
        "--data.num_workers=0",
        "--data.batch_size=2",
        "--trainer.accelerator=cpu",
    ]
    cli = build(*words, recipe=RECIPES / f"{name}.yaml")
    (batch, *_) = cli.datamodule.train_dataloader()
    losses = cli.model.segmenter.training_losses(batch, cli.model.loss)
    torch.stack(list(losses.values())).sum().backward()
    cli.model.on_after_backward()
    learning = {key.split(".")[1] for key, p in cli.model.segmenter.named_parameters() if p.requires_grad}
    assert {"prompt_encoder", "mask_decoder"} <= learning
    assert ("image_encoder" in learning) is (name == "paper/sam_med2d")
