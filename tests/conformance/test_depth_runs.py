"""A recipe of chunks is trained, stopped in the middle of an epoch, resumed, reloaded and asked about a new volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import medsam_tune
from medsam_tune.cli import main
from medsam_tune.data import NiftiVolumes, SegmentationDataModule
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.export.forms.write import check_form
from medsam_tune.inference.stitching import answer
from medsam_tune.training.module import TuningModule
from medsam_tune.training.run_place import RUNS
from medsam_tune.tuners.volume_adapter import MaSamTuner
from tests.backbones import make_vit
from tests.training.test_resume import PowerCut, cut_power
from tests.training.tiny_runs import weights_of

RECIPE = """\
# Chunks of three slices of small volumes.
seed_everything: 0
model:
  backbone: {{class_path: medsam_tune.backbone.SamBackbone, init_args: {{weights: random_tiny, trainable: [mask_decoder]}}}}
  tuner: {{class_path: medsam_tune.tuners.{tuner}}}
  segmenter: {{class_path: medsam_tune.segmenters.SemanticSegmenter, init_args: {{classes: [disc]}}}}
  loss: {{class_path: medsam_tune.losses.SoftmaxDiceLoss}}
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.03}}}}
data:
  root: scans
  source: {{class_path: medsam_tune.data.NiftiVolumes, init_args: {{axis: axial, labels: {{disc: [1]}}}}}}
  target: per_class
  chunk: 3
  channels: {channels}
  batch_size: 2
  cache_embeddings: false
  split: {{val_fraction: 0.2, test_fraction: 0.2}}
run: {{baselines: false, report: false}}
trainer: {{accelerator: cpu, max_epochs: 2, enable_progress_bar: false}}
"""


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Ten volumes of five slices in which a disc moves, and one of a single slice."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
    for number, case in enumerate("abcdefghijk"):
        labels = np.zeros((16, 14, 1 if number == 10 else 5), np.uint8)
        for position in range(labels.shape[2]):
            labels[2 + position : 9 + position, 3:9, position] = 1
        grey = labels * 150 + rng.integers(0, 60, labels.shape)
        nib.save(nib.Nifti1Image(grey.astype(np.int16), np.eye(4)), tmp_path / "scans/images" / f"{case}.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "scans/labels" / f"{case}.nii.gz")
    return tmp_path


def only_run(root: str) -> Path:
    (run,) = Path(root).glob(RUNS)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuner", "channels"), [("MaSamTuner", "stored"), ("SpaceDepthAdapter, init_args: {decoder: none}", "neighbours")]
)
def test_a_run_of_chunks_is_resumed_exactly_and_predicts_a_new_volume_as_it_was_tested(scans, monkeypatch, tuner, channels):
    Path("recipe.yaml").write_text(RECIPE.format(tuner=tuner, channels=channels))
    assert main(["run", "recipe.yaml", "--run.folder=whole"]) == 0
    saved = "--run.save_every_n_steps=2"
    with monkeypatch.context() as patch:
        cut_power(patch, batch=3)
        with pytest.raises(PowerCut):
            main(["run", "recipe.yaml", "--run.folder=stopped", saved])
    assert torch.load(only_run("stopped") / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert main(["run", "recipe.yaml", "--run.folder=stopped", saved, "--ckpt_path=last"]) == 0
    whole, stopped = only_run("whole"), only_run("stopped")
    expected, found = (weights_of(run / "checkpoints/last.ckpt") for run in (whole, stopped))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())

    predictor = medsam_tune.load_export(whole / "export")
    data = SegmentationDataModule(
        NiftiVolumes(axis="axial", labels={"disc": [1]}),
        "scans",
        "per_class",
        chunk=3,
        channels=channels,
        cache_embeddings=False,
    )
    data.open(predictor.segmenter.input_rule)
    tested = {}
    for batch in data.predict_dataloader():
        with torch.no_grad():
            masks = predict_masks(answer(predictor.segmenter, batch), batch, 64)
        for row, name in enumerate(batch.image_ids):
            tested[name] = masks[row][0].numpy()
    assert main(["predict", str(whole), "scans/images", "-o", "out"]) == 0
    for case in "aek":
        volume = np.asarray(nib.load(f"out/{case}.nii.gz").dataobj)
        for position in range(volume.shape[2]):
            shown = tested[f"{case}_axial{position:03d}"][::-1, ::-1].T
            assert np.array_equal(volume[..., position] > 0, shown), (case, position)


def test_forms_for_one_image_are_refused_with_what_is_left():
    segmenter = TuningModule(backbone=make_vit(), tuner=MaSamTuner(4)).segmenter
    for form in ("sam", "transformers", "onnx", "bundle"):
        with pytest.raises(CheckpointError, match=r"adapters mix the slices of a chunk.*What this model can be written as: "):
            check_form(segmenter, form)


def test_flipped_views_of_slices_that_see_each_other_are_refused():
    with pytest.raises(RecipeError, match=r"model\.views_at_test: mirror flips single images.*data\.chunk_stride averages"):
        TuningModule(backbone=make_vit(), tuner=MaSamTuner(4), views_at_test="mirror")


def test_a_tuner_without_slices_to_mix_is_said_aloud(scans):
    segmenter = TuningModule(backbone=make_vit(), tuner=MaSamTuner(4)).segmenter
    data = SegmentationDataModule(NiftiVolumes(axis="axial", labels={"disc": [1]}), "scans", cache_embeddings=False)
    with pytest.warns(UserWarning, match=r"data\.chunk: is 1, so MaSamTuner sees each slice alone\. Set data\.chunk=5"):
        segmenter.check_data(data)
