"""A tuner that mixes neighbouring slices of a chunk is one class in one file: it trains, resumes, exports and reloads.

It reads which slices belong together from what the backbone is at work on; no other part of the package knows of it.
"""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.data import NiftiVolumes, SegmentationDataModule
from medsam_tune.geometry import make_frame
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.types import EncoderInput
from tests.conformance.toy_runs import train_resume_and_reload

RECIPE = """\
# Chunks of three slices, whose tokens are mixed along the volume before every block.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  tuner: {class_path: tests.conformance.test_toy_slice_tuner.SliceMixing}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.1}}
data:
  root: scans
  source: {class_path: medsam_tune.data.NiftiVolumes, init_args: {axis: axial}}
  chunk: 3
  batch_size: 2
  cache_embeddings: false
  split: {val_fraction: 0.2, test_fraction: 0.2}
run: {baselines: false, report: false}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


class Mixing(nn.Module):
    """Add to the tokens of a slice a projection of the mean of its neighbours' tokens."""

    def __init__(self, channels, backbone):
        super().__init__()
        self.up_proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.up_proj.weight)
        nn.init.zeros_(self.up_proj.bias)
        # In a tuple the backbone is no child.
        self._backbone = (backbone,)

    def before(self, block, inputs):
        seen = self._backbone[0].current_input
        if seen is None or seen.chunk_index is None:
            return inputs
        tokens = inputs[0]
        apart = (seen.slice_index[:, None] - seen.slice_index).abs()
        beside = ((seen.chunk_index[:, None] == seen.chunk_index) & (apart == 1)).to(tokens)
        weights = beside / beside.sum(dim=1, keepdim=True).clamp(min=1)
        return (tokens + self.up_proj(torch.einsum("bn,n...->b...", weights, tokens)), *inputs[1:])


class SliceMixing(InsertingTuner):
    """Mix the slices of a chunk before every block of the encoder."""

    def insert(self, backbone):
        names = []
        for block in backbone.anatomy().encoder.blocks:
            mixing = Mixing(block.width, backbone)
            block.module.add_module("slice_mixing", mixing)
            block.module.register_forward_pre_hook(mixing.before)
            names.append(f"{block.name}.slice_mixing")
        return names_below(backbone, names)


def embeddings_of(backbone, images, chunks, slices):
    frames = tuple(make_frame((64, 64), backbone.input_rule) for _ in images)
    with torch.no_grad():
        inputs = EncoderInput(images, frames, slice_index=torch.tensor(slices), chunk_index=torch.tensor(chunks))
        return backbone.encode(inputs).main


def test_a_slice_sees_its_neighbours_and_nothing_of_other_chunks():
    backbone = SamBackbone("random_tiny")
    SliceMixing().attach(backbone)
    images = torch.rand(4, 3, 64, 64) * 255
    untouched = embeddings_of(SamBackbone("random_tiny"), images, [0, 0, 0, 1], [4, 5, 9, 5])
    torch.testing.assert_close(embeddings_of(backbone, images, [0, 0, 0, 1], [4, 5, 9, 5]), untouched)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "slice_mixing" in name:
                parameter.normal_()
    before = embeddings_of(backbone, images, [0, 0, 0, 1], [4, 5, 9, 5])
    images[0] = 255 - images[0]
    moved = (embeddings_of(backbone, images, [0, 0, 0, 1], [4, 5, 9, 5]) - before).flatten(1).abs().amax(dim=1) > 0
    assert moved.tolist() == [True, True, False, False]


@pytest.mark.slow
def test_tuner_in_a_users_file_trains_resumes_exports_and_reloads(toy_place):
    rng = np.random.default_rng(0)
    labels = np.zeros((16, 14, 4), np.uint8)
    labels[4:11, 3:9] = 1
    for folder in ("images", "labels"):
        (toy_place / "scans" / folder).mkdir(parents=True)
        for case in "abcdefghij":
            values = labels if folder == "labels" else labels * 150 + rng.integers(0, 60, labels.shape)
            nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), toy_place / "scans" / folder / f"{case}.nii.gz")
    run, predictor = train_resume_and_reload(RECIPE)
    assert json.loads(run.summary.read_text())["parameters"]["trained"] == 2 * (32 * 32 + 32)
    learned = [p for name, p in predictor.segmenter.backbone.named_parameters() if "slice_mixing" in name]
    assert len(learned) == 4
    assert all(p.any() for p in learned)
    alone, together = (answers(predictor.segmenter, eval_batch_size=size) for size in (1, 4))
    assert alone.keys() == together.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-4)


def answers(segmenter, *, eval_batch_size):
    """The logits of every test slice, by its name."""
    data = SegmentationDataModule(
        NiftiVolumes(axis="axial"), "scans", eval_batch_size=eval_batch_size, cache_embeddings=False, chunk=3
    )
    data.open(segmenter.input_rule)
    found = {}
    for batch in data.test_dataloader():
        with torch.no_grad():
            logits = segmenter(batch).low_res_masks
        found |= {batch.image_ids[row]: logits[n] for n, row in enumerate(batch.image_index.tolist())}
    assert len(found) == 8
    return found
