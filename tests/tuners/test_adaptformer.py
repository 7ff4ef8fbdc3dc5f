"""AdaptFormer beside the MLP."""

from __future__ import annotations

import copy

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.adaptformer import AdaptFormer
from tests.backbones import make_vit
from tests.tuners.shapes import trained_count


def test_the_bottleneck_reads_the_stream_before_the_norm_and_is_scaled():
    backbone = make_vit()
    stock = copy.deepcopy(backbone.image_encoder.blocks[1])
    AdaptFormer(3, scale=0.2).attach(backbone)
    backbone.eval()
    adapter = backbone.image_encoder.blocks[1].mlp_adapter
    with torch.no_grad():
        adapter.up_proj.weight.normal_()
        adapter.up_proj.bias.normal_()
    tokens = torch.randn(1, 4, 4, 32)
    stream = tokens + stock.attn(stock.norm1(tokens))
    update = (stream @ adapter.down_proj.weight.T).relu() @ adapter.up_proj.weight.T + adapter.up_proj.bias
    expected = stream + stock.mlp(stock.norm2(stream)) + 0.2 * update
    torch.testing.assert_close(backbone.image_encoder.blocks[1](tokens), expected)


def test_vit_b_at_rank_64_has_1189632_parameters():
    assert trained_count("vit_b", AdaptFormer(64)) == 12 * (2 * 768 * 64 + 64 + 768) == 1_189_632


def test_dropout_acts_in_training_alone():
    backbone = make_vit()
    AdaptFormer(8, dropout=0.9).attach(backbone)
    adapter = backbone.image_encoder.blocks[0].mlp_adapter
    with torch.no_grad():
        adapter.up_proj.weight.normal_()
    tokens = torch.randn(1, 4, 4, 32)
    backbone.train()
    assert not torch.equal(adapter(tokens, tokens), adapter(tokens, tokens))
    backbone.eval()
    assert torch.equal(adapter(tokens, tokens), adapter(tokens, tokens))


def test_rank_0_is_refused():
    with pytest.raises(RecipeError, match=r"model\.tuner\.rank: 0 is no width of a bottleneck"):
        AdaptFormer(0)
