"""FacT: shared factors, one core a projection, and nothing but q and v moves."""

from __future__ import annotations

import copy

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.fact import FactorTuning
from medsam_tune.tuners.parts import layer_names
from tests.backbones import BACKBONES, make_tiny_vit, make_vit
from tests.tuners.shapes import trained_count


def _filled(family, **settings):
    backbone = BACKBONES[family]()
    stock = copy.deepcopy(backbone)
    FactorTuning(2, dropout=0.0, **settings).attach(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return backbone, stock, layer_names(stock, ["image_encoder.attention.qkv"])[0]


@pytest.mark.parametrize("family", BACKBONES)
def test_the_update_is_the_product_of_three_matrices_on_the_rows_of_q_and_v(family):
    backbone, stock, layer = _filled(family, scale=0.5)
    tuned, frozen = backbone.get_submodule(layer), stock.get_submodule(layer)
    factors = backbone.image_encoder.shared_factors[str(frozen.in_features)]
    weight = frozen.weight.clone()
    for which in ("q", "v"):
        core = tuned.factor_core.cores[which].weight
        weight[stock.anatomy().encoder.rows(layer, which)] += 0.5 * factors.up_proj.weight @ core @ factors.down_proj.weight
    tokens = torch.randn(3, frozen.in_features)
    torch.testing.assert_close(tuned(tokens), tokens @ weight.T + frozen.bias, rtol=1e-4, atol=1e-5)


def test_vit_h_at_rank_32_has_two_shared_factors_and_two_cores_a_block():
    assert trained_count("vit_h", FactorTuning(32)) == 2 * 1280 * 32 + 32 * 2 * 32 * 32 == 147_456


def test_each_width_of_tiny_vit_has_its_own_factors_and_each_is_stored_once():
    backbone = make_tiny_vit()
    FactorTuning(2).attach(backbone)
    stored = [name for name in backbone.state_dict() if "shared_factors" in name]
    assert stored == [
        f"image_encoder.shared_factors.{width}.{side}_proj.weight" for width in (8, 16) for side in ("down", "up")
    ]


def test_a_copy_of_the_backbone_uses_its_own_factors():
    backbone, _, layer = _filled("vit")
    copied = copy.deepcopy(backbone)
    tokens = torch.randn(3, 32)
    before = backbone.get_submodule(layer)(tokens)
    with torch.no_grad():
        copied.image_encoder.shared_factors["32"].up_proj.weight.zero_()
    torch.testing.assert_close(backbone.get_submodule(layer)(tokens), before, rtol=0, atol=0)
    assert not torch.allclose(copied.get_submodule(layer)(tokens), before)


def test_dropout_acts_in_training_alone():
    backbone = make_vit()
    FactorTuning(2, dropout=0.5).attach(backbone)
    dropout = backbone.image_encoder.blocks[0].attn.qkv.factor_core.dropout
    backbone.train()
    assert dropout.training
    backbone.eval()
    assert not dropout.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, r"rank: 0 is no rank\. Set at least 1"), ({"projections": ()}, r"projections: is empty\. Name")],
)
def test_settings_that_tune_nothing_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        FactorTuning(**settings)
