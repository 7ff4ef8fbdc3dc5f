"""Blocks that compute again in the backward pass: the same numbers, fewer kept."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.anatomy import open_block
from medsam_tune.backbone.recomputing import RecomputingBlock, set_checkpointing
from tests.backbones import BACKBONES
from tests.conformance.steps import learning, make_segmenter, total_loss
from tests.conformance.tuner_cases import RUNS
from tests.factories import make_batch


def gradients_of(name, family, *, checkpointing):
    segmenter = make_segmenter(name, family)
    set_checkpointing(segmenter.backbone.image_encoder, checkpointing=checkpointing)
    torch.manual_seed(1)
    with torch.no_grad():
        # Zero-initialised halves would leave most gradients at zero.
        for parameter in learning(segmenter).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss = total_loss(segmenter, make_batch())
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in learning(segmenter).items()}


@pytest.mark.parametrize(("name", "family"), RUNS)
def test_loss_and_gradients_of_every_tuner_stay(name, family):
    plain, expected = gradients_of(name, family, checkpointing=False)
    again, found = gradients_of(name, family, checkpointing=True)
    assert torch.equal(plain, again)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("family", BACKBONES)
def test_only_the_inputs_of_blocks_are_kept(family):
    backbone = BACKBONES[family]()
    backbone.image_encoder.requires_grad_(True)
    images = torch.randn(1, 3, 64, 64)

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            backbone.image_encoder(images)
        return sum(sizes)

    plain = kept()
    set_checkpointing(backbone.image_encoder, checkpointing=True)
    assert kept() < 0.6 * plain


def test_the_recipe_key_reaches_every_block_and_a_fresh_copy():
    backbone = SamBackbone("random_tiny", checkpointing=True)
    for network in (backbone, backbone.fresh()):
        blocks = [module for module in network.image_encoder.modules() if isinstance(module, RecomputingBlock)]
        assert len(blocks) == 2
        assert all(block.checkpointing for block in blocks)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_block_that_is_opened_later_still_forgets(family):
    backbone = BACKBONES[family]()
    set_checkpointing(backbone.image_encoder, checkpointing=True)
    for block in backbone.anatomy().encoder.blocks:
        if block.places:
            assert open_block(backbone, block).checkpointing
