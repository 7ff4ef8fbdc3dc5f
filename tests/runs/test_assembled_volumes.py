"""A test on volumes reports what MONAI measures on the files that a prediction writes, at their anisotropic spacing."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from medsam_tune.cli import main
from tests.training.tiny_runs import forget_run

RECIPE = """\
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  prompt_encoder: {class_path: medsam_tune.prompt_encoders.EmbeddingPromptGenerator, init_args: {width: 16, dilations: [1]}}
  optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
data:
  root: data
  source: NiftiVolumes
  batch_size: 8
  split: {val_fraction: 0.15, test_fraction: 0.4}
run: {baselines: false, report: false, calibration: false}
trainer: {accelerator: cpu, max_epochs: 8, enable_progress_bar: false}
"""
SPACING = (0.7, 1.3, 4.0)


def write_volumes(root):
    """Write eight balls on noise, 20 x 24 x 6 voxels."""
    random, affine = np.random.default_rng(0), np.diag([*SPACING, 1.0])
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(24), np.arange(6), indexing="ij"), axis=-1)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case in range(8):
        ball = (((grid - [10, 11 + case % 3, 2.5]) * [1, 1, 2]) ** 2).sum(axis=-1) < (5 + case % 3) ** 2
        image = (random.integers(0, 60, ball.shape) + 150 * ball).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), root / "images" / f"p{case}.nii.gz")
        nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), root / "labels" / f"p{case}.nii.gz")


def read(path):
    return torch.tensor(np.asarray(nib.load(path).dataobj) > 0)[None, None]


@pytest.mark.slow  # a training on volumes, and their prediction
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
def test_figures_are_those_of_the_assembled_volume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    write_volumes(tmp_path / "data")
    (tmp_path / "vol.yaml").write_text(RECIPE)
    assert main(["run", "vol.yaml"]) == 0
    forget_run()
    (run,) = (tmp_path / "runs").glob("*/vol/*")
    assert main(["predict", str(run), "data/images", "-o", "out"]) == 0
    rows = list(csv.DictReader((run / "test_cases.csv").read_text().splitlines()))
    assert len(rows) == 3
    for row in rows:
        masks = (
            read(next((tmp_path / "out").rglob(f"{row['case']}*.nii*"))),
            read(tmp_path / f"data/labels/{row['case']}.nii.gz"),
        )
        options = {"include_background": True, "spacing": SPACING}
        # A voxel on the threshold may fall to either side in other batches.
        near = {"rel": 0.02, "abs": 0.01}
        assert float(row["asd"]) == pytest.approx(
            compute_average_surface_distance(*masks, symmetric=True, **options).item(), **near
        )
        assert float(row["hd95"]) == pytest.approx(compute_hausdorff_distance(*masks, percentile=95, **options).item(), **near)
        assert float(row["nsd"]) == pytest.approx(compute_surface_dice(*masks, [2.0], **options).item(), **near)
        difference = (masks[0].sum() - masks[1].sum()).item() * np.prod(SPACING) / 1000
        assert float(row["size_difference"]) == pytest.approx(difference, abs=0.01)
        assert (row["hd95_unit"], row["size_unit"]) == ("mm", "ml")
