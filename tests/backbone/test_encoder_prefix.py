"""The first blocks of an encoder and the rest: together they are the encoder, and only what a tuning leaves alone is kept."""

from __future__ import annotations

import peft
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.encoder_prefix import encode_prefix, encode_rest, first_tuned
from medsam_tune.backbone.freezing import set_trainable
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.adaptformer import AdaptFormer
from medsam_tune.tuners.fact import FactorTuning
from medsam_tune.tuners.full import PartTuning
from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
from medsam_tune.tuners.msa.space_depth import SpaceDepthAdapter
from medsam_tune.tuners.norm import NormTuning
from medsam_tune.tuners.peft_tuner import PeftTuner
from tests.backbones import BACKBONES
from tests.factories import encode, make_batch


def lora(blocks=None):
    return PeftTuner(peft.LoraConfig(r=2, init_lora_weights=False), ["image_encoder.attention.qkv"], blocks=blocks)


def learn(name):
    return lambda backbone: set_trainable(backbone, [name])


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_cut_and_the_rest_are_the_whole_encoder(kind):
    backbone, batch = BACKBONES[kind](), make_batch()
    lora().attach(backbone)
    expected = encode(backbone, batch.images, batch.frames)
    links = list(backbone.encoder_chain())
    assert links[0] == "image_encoder.patch_embed"
    assert links[-1] == "image_encoder.neck"
    for link in links:
        prefix = encode_prefix(backbone, batch.encoder_input(), link)
        assert torch.equal(encode_rest(backbone, batch.encoder_input(), prefix, link).main, expected)


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_links_hold_every_block_and_every_parameter_of_the_encoder(kind):
    backbone = BACKBONES[kind]()
    links = list(backbone.encoder_chain())
    blocks = [block.name for block in backbone.anatomy().encoder.blocks]
    assert [link for link in links if link in blocks] == blocks
    names = [f"image_encoder.{name}" for name, _ in backbone.image_encoder.named_parameters()]
    outside = [name for name in names if not any(name.startswith(f"{link}.") for link in links)]
    assert outside == (["image_encoder.pos_embed"] if kind == "vit" else [])


LATE = {
    "LoRA": ("vit", "image_encoder.blocks.1", lora([1, 1]).attach),
    "adapters beside the MLP": ("vit", "image_encoder.blocks.1", AdaptFormer(blocks=(1, 1)).attach),
    "adapters": ("vit", "image_encoder.blocks.1", BottleneckAdapter(blocks=(1, 1)).attach),
    "norms": ("vit", "image_encoder.blocks.1", NormTuning(blocks=(1, 1)).attach),
    "factors kept beside the blocks": ("vit", "image_encoder.blocks.1", FactorTuning(blocks=(1, 1)).attach),
    "the neck": ("vit", "image_encoder.neck", PartTuning(["image_encoder.neck"]).attach),
    "LoRA on TinyViT": ("tiny_vit", "image_encoder.layers.2.blocks.1", lora([4, 5]).attach),
    "adapters on TinyViT": ("tiny_vit", "image_encoder.layers.2.blocks.1", BottleneckAdapter(blocks=(4, 5)).attach),
    "a merging": ("tiny_vit", "image_encoder.layers.2.downsample", learn("image_encoder.layers.2.downsample")),
}


@pytest.mark.parametrize(("kind", "link", "tune"), LATE.values(), ids=LATE)
def test_the_first_tuned_block_is_found(kind, link, tune):
    backbone = BACKBONES[kind]()
    tune(backbone)
    assert first_tuned(backbone) == link


def test_gradients_reach_the_tuned_block_and_end_at_the_prefix():
    backbone, batch = SamBackbone("random_tiny"), make_batch()
    lora([1, 1]).attach(backbone)
    with torch.no_grad():
        prefix = encode_prefix(backbone, batch.encoder_input(), "image_encoder.blocks.1")
    expected = encode(backbone, batch.images, batch.frames).square().sum()
    expected.backward()
    whole = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    encode_rest(backbone, batch.encoder_input(), prefix, "image_encoder.blocks.1").main.square().sum().backward()
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    assert found.keys() == whole.keys()
    assert all(name.startswith("image_encoder.blocks.1.attn.qkv.lora") for name in found)
    assert all(torch.equal(gradient, whole[name]) for name, gradient in found.items())


def _hook_first(backbone):
    backbone.image_encoder.blocks[0].register_forward_hook(lambda *_: None)


REFUSED = {
    "the first block": (lora().attach, r"^data\.cache_embeddings: prefix needs fixed blocks .*\.blocks\.0.* is tuned"),
    "an adapter in it": (AdaptFormer().attach, r"image_encoder\.blocks\.0\.mlp_adapter is tuned\. Tune late blocks alone"),
    "a hook on it": (_hook_first, r"image_encoder\.blocks\.0 is tuned"),
    "the patch embedding": (PartTuning(["image_encoder.patch_embed"]).attach, r"image_encoder\.patch_embed.* is tuned"),
    "the positions": (learn("image_encoder.pos_embed"), r"image_encoder\.pos_embed is tuned"),
    "nothing": (lambda backbone: None, r"all of this one is fixed\. Set it to true"),
    "slices": (SpaceDepthAdapter(blocks=(1, 1)).attach, r"SpaceDepthAdapter lets the slices of a chunk see each other"),
}


@pytest.mark.parametrize(("tune", "said"), REFUSED.values(), ids=REFUSED)
def test_what_leaves_nothing_fixed_is_refused_by_name(tiny_backbone, tune, said):
    tune(tiny_backbone)
    with pytest.raises(RecipeError, match=said):
        first_tuned(tiny_backbone)


def test_a_network_that_names_no_blocks_is_refused(tiny_backbone, monkeypatch):
    monkeypatch.setattr(SamBackbone, "encoder_chain", lambda self: {})
    with pytest.raises(RecipeError, match=r"SamBackbone names none\. Set it to false"):
        first_tuned(tiny_backbone)
