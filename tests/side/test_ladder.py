"""The ladder network: joined by a gate, without a gradient through the encoder."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.geometry import Frame
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.side import LadderNetwork
from medsam_tune.types import EncoderInput, ImageEmbeddings
from tests.backbones import make_vit
from tests.factories import make_batch


def test_the_residual_join_starts_at_sam():
    batch = make_batch()
    stock, ladder = (SamSegmenter(SamParts(make_vit(), BoxPrompt(), side=side)).eval() for side in (None, LadderNetwork()))
    with torch.no_grad():
        torch.testing.assert_close(ladder(batch).low_res_masks, stock(batch).low_res_masks, rtol=0, atol=0)


def _joined(ladder, images, embeddings):
    return ladder(EncoderInput(images, (Frame((64, 64), (64, 64)),)), ImageEmbeddings(embeddings)).main


def test_the_convex_join_starts_half_and_half():
    ladder = LadderNetwork(join="convex").eval()
    images, embeddings = torch.rand(1, 3, 64, 64) * 255, torch.randn(1, 256, 4, 4)
    mean, deviation = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]).view(2, 3, 1, 1)
    pixels = (images - mean) / deviation
    torch.testing.assert_close(_joined(ladder, images, embeddings), (embeddings + ladder.branch(pixels)) / 2)


def test_branch_and_gate_learn_and_the_encoder_keeps_no_graph():
    segmenter, batch = SamSegmenter(SamParts(make_vit(), BoxPrompt(), side=LadderNetwork())), make_batch()
    with torch.no_grad():
        segmenter.side.gate.fill_(0.1)
    segmenter(batch).low_res_masks.sum().backward()
    silent = [name for name, p in segmenter.side.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad is None for p in segmenter.backbone.parameters())
    assert segmenter.not_precomputable() is None


def test_the_branch_is_resnet_18_up_to_its_third_stage():
    whole = resnet18(weights=None)
    left_out = sum(p.numel() for part in (whole.layer4, whole.fc) for p in part.parameters())
    expected = sum(p.numel() for p in whole.parameters()) - left_out
    assert sum(p.numel() for p in LadderNetwork().parameters()) == expected + 1 == 2_782_785


def test_a_file_of_resnet_weights_is_loaded(tmp_path):
    source = resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    ladder = LadderNetwork(weights=str(tmp_path / "resnet.pth"))
    assert torch.equal(ladder.branch.layer3[1].conv2.weight, source.layer3[1].conv2.weight)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: is no ResNet-18 under torchvision's names: \d+ entries"):
        LadderNetwork(weights=str(tmp_path / "other.pth"))


def test_a_side_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(RecipeError, match=r"model\.side\.image_side: 100 is no positive multiple of 16\. Set 96"):
        LadderNetwork(image_side=100)


def test_a_smaller_image_for_the_branch_is_met_on_the_embeddings_grid():
    ladder = LadderNetwork(image_side=32).eval()
    with torch.no_grad():
        ladder.gate.fill_(1.0)
    images, embeddings = torch.rand(1, 3, 64, 64) * 255, torch.randn(1, 256, 4, 4)
    pixels = (images - ladder.mean) / ladder.deviation
    small = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    seen = torch.nn.functional.interpolate(ladder.branch(small), (4, 4), mode="bilinear")
    torch.testing.assert_close(_joined(ladder, images, embeddings), embeddings + seen)
