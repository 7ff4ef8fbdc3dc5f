"""Scale and shift act behind each layer, and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.ssf import ScaleShiftTuning
from tests.backbones import make_vit
from tests.tuners.shapes import trained_count


def test_a_layer_is_scaled_and_shifted_channel_by_channel():
    backbone = make_vit()
    stock = copy.deepcopy(backbone.image_encoder.blocks[0].mlp.lin1)
    ScaleShiftTuning().attach(backbone)
    layer = backbone.image_encoder.blocks[0].mlp.lin1
    with torch.no_grad():
        layer.scale_shift.scale.copy_(torch.arange(128.0))
        layer.scale_shift.shift.fill_(-3.0)
    tokens = torch.randn(2, 32)
    torch.testing.assert_close(layer(tokens), stock(tokens) * torch.arange(128.0) - 3)


def test_frozen_weights_keep_their_names():
    backbone = make_vit()
    before = set(backbone.state_dict())
    ScaleShiftTuning().attach(backbone)
    assert before < set(backbone.state_dict())
    assert all(".scale_shift." in name for name in set(backbone.state_dict()) - before)


def test_vit_b_has_two_numbers_for_each_channel_behind_six_layers_a_block():
    # norm1, qkv, proj, norm2, lin1, lin2
    assert trained_count("vit_b", ScaleShiftTuning()) == 12 * 2 * (768 + 3 * 768 + 768 + 768 + 4 * 768 + 768)


def test_a_part_without_such_layers_is_refused():
    with pytest.raises(RecipeError, match=r"'image_encoder\.neck' holds no Linear or LayerNorm layer"):
        ScaleShiftTuning(("image_encoder.neck",)).attach(make_vit())
