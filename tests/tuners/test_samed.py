"""SAMed's update of q and v: counts, zeros that stay, and plain LoRA files."""

import warnings

import pytest
import torch
from peft import PeftModel

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.freezing import trainable_report
from medsam_tune.errors import RecipeError
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.samed import SamedTuner
from tests.tuners.test_peft_tuner import logits, make_segmenter, train


def update(backbone, layer):
    wrapped = backbone.get_submodule(layer)
    return wrapped.get_delta_weight("default").detach()


def test_vit_b_of_rank_4_has_147456_free_numbers_and_stores_294912():
    with torch.device("meta"):
        backbone = SamBackbone("random_vit_b")
        SamedTuner(rank=4).attach(backbone)
    assert trainable_report(backbone).trained == 147_456
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 294_912


def test_trained_update_is_one_of_rank_r_for_q_and_one_for_v_and_none_for_k():
    segmenter = make_segmenter(SamedTuner(rank=2))
    train(segmenter, steps=3)
    delta = update(segmenter.backbone, "image_encoder.blocks.0.attn.qkv")
    q, k, v = delta.split(32)
    assert not k.any()
    assert torch.linalg.matrix_rank(q) == torch.linalg.matrix_rank(v) == 2
    layer = segmenter.backbone.get_submodule("image_encoder.blocks.0.attn.qkv")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(q, b[:32, :2] @ a[:2])
    torch.testing.assert_close(v, b[64:, 2:] @ a[2:])


def test_alpha_over_rank_scales_the_update():
    for alpha, scale in ((6, 3.0), (None, 1.0)):
        backbone = make_segmenter(SamedTuner(rank=2, alpha=alpha)).backbone
        assert backbone.get_submodule("image_encoder.blocks.0.attn.qkv").scaling == {"default": scale}


def test_tiny_vit_leaves_the_keys_of_every_head_alone():
    backbone = SamBackbone("random_lite_medsam", side=64)
    tuner = SamedTuner(rank=2)
    tuner.attach(backbone)
    layer = "image_encoder.layers.1.blocks.0.attn.qkv"
    wrapped = backbone.get_submodule(layer)
    generator = torch.Generator().manual_seed(0)
    wrapped(torch.randn(1, 5, 128, generator=generator)).square().sum().backward()
    gradient = wrapped.lora_B["default"].weight.grad.view(4, 3, 32, 4)  # head, q k v, channel, column
    assert not gradient[:, 1].any()
    assert gradient[:, 0, :, :2].any()
    assert not gradient[:, 0, :, 2:].any()
    assert gradient[:, 2, :, 2:].any()
    assert not gradient[:, 2, :, :2].any()


def test_stock_peft_loads_and_merges_the_file_exactly(tmp_path):
    segmenter = make_segmenter(SamedTuner(rank=2))
    train(segmenter)
    trained = logits(segmenter)
    segmenter.tuner.peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    stock = SamBackbone("random_tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(stock, tmp_path)
    assert torch.equal(logits(SamSegmenter(SamParts(stock))), trained)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(SamSegmenter(SamParts(merged))), trained, atol=1e-5, rtol=0)


def test_rank_0_is_refused():
    with pytest.raises(RecipeError, match=r"model.tuner.rank: must be at least 1, got 0"):
        SamedTuner(rank=0)
