"""Part names become layers; what cannot be is refused with what exists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsam_tune.backbone.anatomy import PART_NAMES
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.parts import encoder_blocks, layer_names
from tests.backbones import BACKBONES, make_tiny_vit, make_vit


def test_attention_and_mlp_of_the_vit():
    assert layer_names(make_vit(), ["image_encoder.mlp", "image_encoder.attention"]) == [
        f"image_encoder.blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
    ]


def test_tiny_vit_blocks_are_numbered_flat_and_the_first_two_have_no_attention():
    assert {number: block.name for number, block in encoder_blocks(make_tiny_vit()).items()} == {
        2: "image_encoder.layers.1.blocks.0",
        3: "image_encoder.layers.2.blocks.0",
        4: "image_encoder.layers.2.blocks.1",
        5: "image_encoder.layers.3.blocks.0",
    }


def test_a_range_takes_both_its_ends():
    names = layer_names(make_tiny_vit(), ["image_encoder.attention.qkv"], blocks=(3, 4))
    assert names == [f"image_encoder.layers.2.blocks.{i}.attn.qkv" for i in (0, 1)]


def test_decoder_attention_has_four_projections_in_each_of_seven_attentions():
    names = layer_names(make_vit(), ["mask_decoder.attention"])
    assert len(names) == 28
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    finer = ("self", "cross", "q", "k", "v", "out")
    split = {part: set(layer_names(make_vit(), [f"mask_decoder.attention.{part}"])) for part in finer}
    assert split["self"] | split["cross"] == split["q"] | split["k"] | split["v"] | split["out"] == set(names)
    assert not split["self"] & split["cross"]


def test_norms_of_the_encoder_are_found_by_kind():
    assert layer_names(make_vit(), ["image_encoder.norm"], kinds=(nn.LayerNorm,)) == [
        f"image_encoder.blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2)
    ]
    assert len(layer_names(make_tiny_vit(), ["image_encoder.norm"], kinds=(nn.LayerNorm,))) == 8


@pytest.mark.parametrize("family", BACKBONES)
def test_every_known_part_exists_on_both_encoders(family):
    every_kind = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm)
    backbone = BACKBONES[family]()
    assert all(layer_names(backbone, [part], kinds=every_kind) for part in PART_NAMES)


def test_an_unknown_part_is_refused_with_those_that_exist():
    with pytest.raises(RecipeError, match=r"tuner\.parts: 'encoder' is unknown\. Known parts: image_encoder\.attention, "):
        layer_names(make_vit(), ["encoder"])


def test_no_part_is_refused():
    with pytest.raises(RecipeError, match=r"is empty\. Name at least one of"):
        layer_names(make_vit(), [])


def test_a_range_outside_the_encoder_is_refused():
    with pytest.raises(RecipeError, match=r"model\.tuner\.blocks: \[1, 2\] is no range of this encoder's 2 blocks"):
        layer_names(make_vit(), ["image_encoder.mlp"], blocks=(1, 2))


def test_attention_on_convolutional_blocks_is_refused_with_the_range_that_works():
    with pytest.raises(RecipeError, match=r"\[0, 3\] includes block 0, which is convolutional.*write \[2, 3\]"):
        layer_names(make_tiny_vit(), ["image_encoder.attention"], blocks=(0, 3))


def test_a_range_without_an_encoder_part_is_refused():
    with pytest.raises(RecipeError, match=r"mask_decoder\.mlp have no encoder blocks, so blocks \[0, 1\] means nothing"):
        layer_names(make_vit(), ["mask_decoder.mlp"], blocks=(0, 1))


def test_a_part_without_the_wanted_kind_of_layer_is_refused():
    with pytest.raises(RecipeError, match=r"'image_encoder\.neck' holds no Linear layer in this backbone\. Leave it out"):
        layer_names(make_vit(), ["image_encoder.neck"])


@pytest.mark.parametrize("family", BACKBONES)
def test_value_rows_alone_decide_what_attention_hands_on(family):
    backbone = BACKBONES[family]()
    layer = layer_names(backbone, ["image_encoder.attention.qkv"])[0]
    attention = backbone.get_submodule(layer.removesuffix(".qkv"))
    width = attention.qkv.in_features
    tokens = torch.randn((1, 2, 2, width) if family == "vit" else (1, 4, width))
    rows = backbone.anatomy().encoder.rows(layer, "v")
    assert len(rows) == width
    with torch.no_grad():
        attention.qkv.weight[rows] = 0
        attention.qkv.bias[rows] = 0
        torch.testing.assert_close(attention(tokens), attention.proj.bias.expand_as(tokens))


@pytest.mark.parametrize("family", BACKBONES)
def test_without_keys_queries_change_nothing(family):
    backbone = BACKBONES[family]()
    layer = layer_names(backbone, ["image_encoder.attention.qkv"])[0]
    attention = backbone.get_submodule(layer.removesuffix(".qkv"))
    tokens = torch.randn((1, 2, 2, 32) if family == "vit" else (1, 4, 8))
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if name.startswith("rel_pos"):
                parameter.zero_()
        attention.qkv.weight[backbone.anatomy().encoder.rows(layer, "k")] = 0
        attention.qkv.bias[backbone.anatomy().encoder.rows(layer, "k")] = 0
        before = attention(tokens)
        attention.qkv.weight[backbone.anatomy().encoder.rows(layer, "q")] += 1
        torch.testing.assert_close(attention(tokens), before)


def test_rows_of_another_layer_are_refused():
    with pytest.raises(ValueError, match=r"makes q \(image_encoder\.blocks\.0\.attn\.qkv, .*got 'mask_decoder'"):
        make_vit().anatomy().encoder.rows("mask_decoder", "q")
