"""SAMAug from data to report on tiny images, with automatic masks made by hand and with those of a tiny network."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml

import medsam_tune
from medsam_tune.data.datamodule import SegmentationDataModule
from medsam_tune.data.dataset import collate
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.runs.run import run_recipe
from medsam_tune.training.cli import MedsamCLI
from medsam_tune.types import AutomaticMasks
from tests.training.tiny_runs import only_run, write_images

RECIPE = """\
# A tiny SAMAug.
seed_everything: 0
model:
  fusion: {class_path: medsam_tune.fusion.StackGrey}
  segmenter:
    class_path: medsam_tune.segmenters.TaskSegmenter
    init_args:
      side: 32
      arch: Linknet
      encoder: tu-mobilenetv3_small_050
      inference: min_entropy
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
  batch_size: 4
  split: {val_fraction: 0.15, test_fraction: 0.4}
  augmentation: {horizontal_flip: 0.5, degrees: 20}
  priors: {weights: random_tiny, points_per_side: 1}
  cache_embeddings: false
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


def found_by_hand(image):
    """Return the bright disc of an image (3, H, W) as its one automatic mask."""
    return AutomaticMasks(image[:1] > 100, torch.ones(1), torch.full((1,), 0.97))


def use_masks_by_hand(patch):
    """Let every data set that is opened find masks by hand, whatever a stage brings."""
    use_priors, open_data = SegmentationDataModule.use_priors, SegmentationDataModule.open

    def by_hand(data, lookup):
        use_priors(data, lambda index: found_by_hand(data.source[index].image))

    def open_with_priors(data, *arguments, **settings):
        open_data(data, *arguments, **settings)
        data.use_priors(None)

    patch.setattr(SegmentationDataModule, "use_priors", by_hand)
    patch.setattr(SegmentationDataModule, "open", open_with_priors)


@contextmanager
def workplace(folder, *, by_hand=True):
    """Hold a current folder with the recipe and its images; yield the recipe."""
    write_images(folder / "images")
    recipe = folder / "samaug.yaml"
    recipe.write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        if by_hand:
            use_masks_by_hand(patch)
        yield recipe


@pytest.fixture
def samaug(tmp_path):
    with workplace(tmp_path) as recipe:
        yield recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The recipe and the folder of one run of it, still the current folder."""
    with workplace(tmp_path_factory.mktemp("samaug")) as recipe:
        assert run_recipe(recipe, []) == 0
        yield recipe, only_run(recipe.parent / "runs")


def test_run_scores_all_kinds_of_inference_side_by_side(finished):
    _, run = finished
    summary = json.loads(run.summary.read_text())
    assert summary["inference"]["chosen"] == "min_entropy"
    scores = {name: found["dice"]["mean"] for name, found in summary["inference"]["test"].items()}
    assert list(scores) == ["raw", "augmented", "mean", "min_entropy"]
    assert scores["min_entropy"] == pytest.approx(summary["test"]["dice"]["mean"])
    assert summary["baselines"] is None
    report = (run.report / "index.html").read_text()
    assert "By kind of inference" in report
    assert "priors=found" in report
    columns = run.metrics_csv.read_text().splitlines()[0].split(",")
    assert {"train/raw_bce", "train/augmented_dice", "val/dice"} <= set(columns)


def test_exported_network_segments_with_masks_as_the_data_gives_them(finished):
    recipe, run = finished
    predictor = medsam_tune.load_export(run.export)
    assert predictor.segmenter.inference == "min_entropy"
    dataset = build(recipe).datamodule.dataset("test")
    for item in (dataset[position] for position in range(len(dataset))):
        batch = collate([item])
        with torch.no_grad():
            (expected,) = predict_masks(predictor.segmenter(batch), batch, 32)
        pixels = item.sample.image.permute(1, 2, 0).byte().numpy()
        segmented = predictor.segment(pixels, priors=found_by_hand(item.sample.image))
        assert np.array_equal(segmented, expected[0].numpy())


def test_masks_of_a_network_reach_sam_through_a_whole_run(tmp_path):
    text = yaml.safe_load(RECIPE)
    text["model"] = {
        "backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}},
        "prompt_encoder": {"class_path": "medsam_tune.prompt_encoders.EmbeddingPromptGenerator", "init_args": {"width": 8}},
        "fusion": {"class_path": "medsam_tune.fusion.AddRgb", "init_args": {"space": "normalised"}},
    }
    text["data"]["priors"] |= {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    with workplace(tmp_path, by_hand=False) as recipe:
        recipe.write_text(yaml.safe_dump(text))
        assert run_recipe(recipe, ["--run.report=false"]) == 0
        run, cli = only_run(tmp_path / "runs"), build(recipe)
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        (batch, *_) = cli.datamodule.val_dataloader()
    summary = json.loads(run.summary.read_text())
    assert "inference" not in summary
    assert list(summary["baselines"]) == ["no_prompt", "whole_image_box", "oracle_box"]
    assert "priors" in summary["seconds"]
    assert batch.priors[:, 0].amax() > 0


def test_fusion_without_priors_is_refused_before_a_folder_is_made(samaug):
    with pytest.raises(RecipeError, match=r"data\.priors: is not set, but model\.fusion .* Set data\.priors\.weights"):
        run_recipe(samaug, ["--data.priors=null"])
    assert not list(samaug.parent.glob("runs/*"))


def test_five_channels_are_refused_where_sam_takes_three(samaug):
    text = yaml.safe_load(RECIPE)
    text["model"] = {
        "backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}},
        "fusion": {"class_path": "medsam_tune.fusion.Concat"},
    }
    samaug.write_text(yaml.safe_dump(text))
    with pytest.raises(RecipeError, match=r"Concat returns 5 channels, SAM's encoder takes 3"):
        build(samaug)


def build(recipe):
    return MedsamCLI(["--config", str(recipe)], recipe_file=recipe, command="", run=False)
