"""A task without labels is one class in one file: it trains an encoder on images alone, which is then exported as any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsam_tune.errors import DataError
from medsam_tune.tasks import Task
from tests.conformance.toy_runs import train_resume_and_reload
from tests.training.tiny_runs import build, weights_of, write_images

RECIPE = """\
# LoRA learns to tell the colour of cells that were hidden; nobody labelled the images.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  tuner:
    class_path: medsam_tune.tuners.PeftTuner
    init_args: {config: {class_path: peft.LoraConfig, init_args: {r: 2}}, parts: [image_encoder.attention.qkv]}
  task: {class_path: tests.conformance.test_toy_task.HiddenCells, init_args: {share: 0.5}}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
  batch_size: 2
  cache_embeddings: false
  split: {val_fraction: 0.25, test_fraction: 0.15}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


class HiddenCells(Task):
    """Hide cells of the grid and tell their mean colour from the embedding.

    Args:
        share: Of the cells that are hidden.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def attach(self, segmenter):
        self.grid = segmenter.backbone.embedding_size
        self.head = nn.Conv2d(segmenter.backbone.embed_dim, 3, 1)

    def training_losses(self, segmenter, batch, loss):
        assert batch.truth is None
        generator = torch.Generator().manual_seed(batch.seed + 1000 * batch.epoch + int(batch.sample_index[0]))
        hidden = torch.rand(batch.n_images, 1, self.grid, self.grid, generator=generator) < self.share
        pixels = F.interpolate(hidden.float(), batch.images.shape[-2:])
        seen = replace(batch.encoder_input(), images=batch.images * (1 - pixels))
        told = self.head(segmenter.backbone.encode(seen).main)
        wanted = F.adaptive_avg_pool2d(batch.images / 255, self.grid)
        return {"colour": ((told - wanted).square() * hidden).sum() / (3 * hidden.sum()).clamp(min=1)}


@pytest.mark.slow
def test_task_without_labels_trains_resumes_exports_and_reloads(toy_place):
    write_images(toy_place / "images")
    shutil.rmtree(toy_place / "images/masks")
    run, predictor = train_resume_and_reload(RECIPE, exports_it=False)
    summary = json.loads(run.summary.read_text())
    assert summary["validation"].keys() == {"val/loss"}
    assert not {"test", "baselines"} & summary.keys()
    assert summary["parameters"]["trained"] == 2 * 2 * (32 + 96) + 3 * 33
    rows = run.metrics_csv.read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    losses = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert min(losses) == pytest.approx(summary["validation"]["val/loss"])
    # The head is needed to go on, and is no part of a network that segments.
    assert "task.head.weight" in weights_of(run.checkpoints / "last.ckpt")
    stored = json.loads((run.export / "export.json").read_text())
    assert all("lora_" in name for name in stored["parameters"])
    assert predictor.segment(np.zeros((16, 20), np.uint8), box=(4, 3, 12, 11)).shape == (16, 20)


def test_segmentation_still_refuses_images_without_masks(toy_place):
    write_images(toy_place / "images")
    shutil.rmtree(toy_place / "images/masks")
    lines = [line for line in RECIPE.splitlines() if "task:" not in line]
    (toy_place / "toy.yaml").write_text("\n".join([*lines, ""]))
    with pytest.raises(DataError, match="masks"):
        build(recipe="toy.yaml")
