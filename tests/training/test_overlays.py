import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny_runs import only_run, run


@pytest.mark.slow
def test_offline_wandb_gets_mask_overlays_without_a_network(workplace, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(workplace))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = ("--trainer.logger=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline=true")
    assert run("--run.baselines=false", "--run.report=false", "--trainer.max_epochs=1", *logger) == 0
    images = list(Path("wandb").glob("offline-run-*/files/media/images/val/*.png"))
    masks = list(Path("wandb").glob("offline-run-*/files/media/images/mask/val/*.mask.png"))
    # The first validation is of one case with 2 slices; each has an image, its ground truth and the prediction.
    assert (len(images), len(masks)) == (2, 4)
    (case,) = json.loads(only_run().splits.read_text())["val"]
    truths = [np.asarray(Image.open(path)) > 0 for path in Path("images/masks").glob(f"{case}_*.png")]
    logged = [np.asarray(Image.open(path)) > 0 for path in masks]
    assert all(any(np.array_equal(truth, mask) for mask in logged) for truth in truths)
    assert only_run().metrics_csv.is_file()
    # A second training of the same process opens a W&B run of its own.
    assert run("--run.baselines=false", "--run.report=false", "--trainer.max_epochs=1", "--run.folder=again", *logger) == 0
    assert len(list(Path("wandb").glob("offline-run-*"))) == 2


def test_other_loggers_come_beside_the_csv_file(workplace):
    assert run("--run.baselines=false", "--run.report=false", "--trainer.max_epochs=1", "--trainer.logger=false") == 0
    assert only_run().metrics_csv.is_file()
    assert not (only_run().path / "tensorboard").exists()
    assert json.loads(only_run().summary.read_text())["steps"] == 6
