"""What every side network promises, over every class of the package; a new one is found by itself."""

from __future__ import annotations

import pytest
import torch

import medsam_tune.side
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.side.base import SideNetwork
from tests.backbones import make_vit
from tests.conformance.discovery import concrete
from tests.conformance.test_toy_backbone import TwoMaps
from tests.factories import make_batch, one_image

SIDES = concrete(medsam_tune.side, SideNetwork)
BACKBONES = {"vit": make_vit, "two maps": TwoMaps}
each = pytest.mark.parametrize(("name", "family"), [(name, family) for name in SIDES for family in BACKBONES])


def segmenter_with(name, family):
    torch.manual_seed(0)
    return SamSegmenter(SamParts(BACKBONES[family](), BoxPrompt(), side=SIDES[name]()))


def moved(segmenter):
    """The same network with every parameter of its side network off its start."""
    with torch.no_grad():
        for parameter in segmenter.side.parameters():
            parameter.add_(0.01)
    return segmenter


def test_side_networks_were_found():
    assert "LadderNetwork" in SIDES


@each
def test_embeddings_keep_their_shapes_and_what_was_precomputed_stays_valid(name, family):
    segmenter, batch = moved(segmenter_with(name, family)).eval(), make_batch()
    plain = segmenter.backbone.encode(batch.encoder_input())
    refined = segmenter.side(batch.encoder_input(), plain)
    assert refined.main.shape == plain.main.shape
    assert [level.shape for level in refined.fine] == [level.shape for level in plain.fine]
    assert segmenter.not_precomputable() is None
    kept = segmenter.embedded(batch)
    torch.testing.assert_close(segmenter(kept).low_res_masks, segmenter(batch).low_res_masks)


@each
def test_an_image_is_refined_alike_in_every_batch(name, family):
    segmenter, batch = moved(segmenter_with(name, family)).eval(), make_batch()
    together = segmenter.image_embeddings(batch).main
    for row in range(2):
        alone = segmenter.image_embeddings(one_image(batch, row)).main
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-4)


@each
def test_every_parameter_that_learns_gets_a_gradient_and_the_backbone_none(name, family):
    segmenter = segmenter_with(name, family).train()
    segmenter(make_batch()).low_res_masks.square().mean().backward()
    assert [key for key, p in segmenter.side.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in segmenter.backbone.parameters())
