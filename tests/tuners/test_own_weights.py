"""Tuners that train the network's own weights: full, decoder, parts, biases, norms."""

from __future__ import annotations

import pytest
from torch import nn

from medsam_tune.errors import RecipeError
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.bias import BiasTuning
from medsam_tune.tuners.full import DecoderTuning, FullTuning, PartTuning
from medsam_tune.tuners.norm import NormTuning
from tests.backbones import make_tiny_vit, make_vit
from tests.tuners.shapes import trained_count


def _learning(backbone):
    return {name for name, p in backbone.named_parameters() if p.requires_grad}


def test_full_tuning_of_vit_b_trains_medsams_scope_but_for_what_the_single_mask_leaves_out():
    assert trained_count("vit_b", FullTuning()) == 93_729_252 - 552_036


def test_decoder_tuning_trains_3506304_parameters_and_keeps_the_cache_valid():
    assert trained_count("vit_b", DecoderTuning()) == 4_058_340 - 552_036
    assert SamSegmenter(SamParts(make_vit(), BoxPrompt(), tuner=DecoderTuning())).not_precomputable() is None


def test_part_tuning_trains_the_attention_of_late_blocks_whole():
    backbone = make_vit()
    PartTuning(blocks=(1, 1)).attach(backbone)
    layers = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    assert _learning(backbone) == {f"image_encoder.blocks.1.attn.{layer}" for layer in layers}


def test_part_tuning_takes_maps_too():
    backbone = make_vit()
    PartTuning(("image_encoder.neck",)).attach(backbone)
    assert _learning(backbone) == {"image_encoder.neck.0.weight", "image_encoder.neck.2.weight"}


def test_biases_of_vit_b_are_102656_in_the_encoder():
    # Per block: two norms, qkv, proj, lin1, lin2; then the patch embedding and the neck's two norms.
    per_block = 768 * (1 + 1 + 3 + 1 + 4 + 1)
    assert trained_count("vit_b", BiasTuning()) == 12 * per_block + 768 + 2 * 256 == 102_656


def test_bias_tuning_leaves_out_the_biases_of_keys_and_of_what_the_single_mask_never_reaches():
    backbone = make_vit()
    BiasTuning(("mask_decoder",)).attach(backbone)
    names = _learning(backbone)
    assert names
    assert all(name.startswith("mask_decoder.") and name.endswith(".bias") for name in names)
    assert not [name for name in names if "k_proj" in name or "iou_prediction_head" in name or "mlps.1" in name]


def test_norm_tuning_finds_norms_of_tokens_and_of_maps_but_not_batch_norms():
    backbone = make_tiny_vit()
    NormTuning().attach(backbone)
    owners = {name.rpartition(".")[0] for name in _learning(backbone)}
    assert {"image_encoder.neck.1", "image_encoder.layers.1.blocks.0.attn.norm"} < owners
    assert not any(isinstance(backbone.get_submodule(owner), nn.BatchNorm2d) for owner in owners)
    assert len(owners) == 2 * 4 + 2


def test_norms_of_vit_b_are_37888_in_the_encoder():
    assert trained_count("vit_b", NormTuning()) == 12 * 2 * 2 * 768 + 2 * 2 * 256 == 37_888


@pytest.mark.parametrize("tuner", [BiasTuning, NormTuning])
def test_an_empty_scope_is_refused(tuner):
    with pytest.raises(RecipeError, match=r"model\.tuner\.scope: is empty\. Name image_encoder, mask_decoder or both"):
        tuner(())


@pytest.mark.parametrize("tuner", [BiasTuning, NormTuning])
def test_blocks_without_the_encoder_are_refused(tuner):
    with pytest.raises(RecipeError, match=r"model\.tuner\.blocks: counts encoder blocks, but scope has no image_encoder"):
        tuner(("mask_decoder",), blocks=(0, 1))


def test_blocks_leave_out_patch_embedding_and_neck():
    backbone = make_vit()
    BiasTuning(blocks=(1, 1)).attach(backbone)
    assert {name.split(".")[1:3] == ["blocks", "1"] for name in _learning(backbone)} == {True}
