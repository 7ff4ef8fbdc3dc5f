"""The shared first layer against segment_anything's own transformer, with gradients."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from medsam_tune.backbone import SamBackbone, shared_layer
from medsam_tune.backbone import sam as sam_module
from medsam_tune.backbone.shared_layer import shared_images
from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
from medsam_tune.tuners.peft_tuner import PeftTuner
from medsam_tune.types import ImageEmbeddings, PromptEmbeddings

# Images 1 and 3 of four, which leaves out others, and one image alone.
PLACES = {"two of four images": [3, 1, 1, 3, 1], "one image": [0, 0, 0]}


def _backbone():
    """Return a backbone in float64, where a difference is none of rounding."""
    return SamBackbone("random_tiny", trainable=["mask_decoder", "prompt_encoder.no_mask_embed"]).train().double()


def _answers(backbone, places):
    """Return masks, and the gradients of all that learns and of the image embeddings."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(4, 32, 4, 4, generator=generator).double().requires_grad_()
    sparse = torch.randn(len(places), 2, 32, generator=generator).double()
    prompts = PromptEmbeddings(sparse, backbone.no_mask_embedding().expand(len(places), -1, 4, 4))
    masks = backbone.decode(ImageEmbeddings(embeddings), torch.tensor(places), prompts).low_res_masks
    (masks * torch.randn(masks.shape, generator=generator)).sum().backward()
    learning = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    return masks.detach(), {**learning, "image_embeddings": embeddings.grad}


@pytest.fixture
def shared(monkeypatch):
    """Return a list that gets the number of images of each pass that shares them."""
    seen = []

    class Counting(shared_layer.SharedTransformer):
        def __init__(self, transformer, source, image_pe):
            seen.append(len(source))
            super().__init__(transformer, source, image_pe)

    monkeypatch.setattr(sam_module, "SharedTransformer", Counting)
    return seen


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_outputs_and_all_gradients_are_those_of_the_stock_transformer(places, shared, monkeypatch):
    backbone = _backbone()
    masks, gradients = _answers(backbone, places)
    assert shared == [len(set(places))]
    monkeypatch.setattr(sam_module, "shared_images", lambda *_: None)
    expected_masks, expected = _answers(backbone, places)
    assert len(shared) == 1
    torch.testing.assert_close(masks, expected_masks, rtol=1e-9, atol=1e-12)
    assert gradients.keys() == expected.keys() >= {"prompt_encoder.no_mask_embed.weight", "image_embeddings"}
    assert {name for name in gradients if name.startswith("mask_decoder.transformer")} == {
        f"mask_decoder.transformer.{name}" for name, _ in backbone.mask_decoder.transformer.named_parameters()
    }
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10)


def test_boxes_share_their_image_and_a_mask_prompt_is_its_objects_own(tiny_backbone, shared):
    embeddings, index = ImageEmbeddings(torch.randn(1, 32, 4, 4)), torch.zeros(2, dtype=torch.int64)
    boxes = torch.rand(2, 4) * 64
    tiny_backbone.decode(embeddings, index, tiny_backbone.embed_prompts(2, boxes=boxes))
    assert shared == [1]
    masked = tiny_backbone.embed_prompts(2, boxes=boxes, mask_inputs=torch.randn(2, 1, 16, 16))
    tiny_backbone.decode(embeddings, index, masked)
    assert shared == [1]


def _lora(part):
    return PeftTuner(peft.LoraConfig(r=2), [part])


def _hook(backbone):
    backbone.mask_decoder.transformer.layers[0].cross_attn_token_to_image.k_proj.register_forward_hook(lambda *_: None)


def _replace(backbone):
    class OwnLinear(nn.Linear):
        pass

    attention = backbone.mask_decoder.transformer.layers[0].cross_attn_image_to_token
    attention.q_proj = OwnLinear(32, 16)


CHANGES = {
    "LoRA in the decoder": lambda backbone: _lora("mask_decoder.attention").attach(backbone),
    "adapters in the decoder": lambda backbone: BottleneckAdapter(decoder="adapters").attach(backbone),
    "a hook": _hook,
    "another layer": _replace,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_the_first_layer_is_asked_for_every_object(tiny_backbone, change, shared):
    change(tiny_backbone)
    prompts = tiny_backbone.embed_prompts(2, boxes=torch.rand(2, 4) * 64)
    tiny_backbone.decode(ImageEmbeddings(torch.randn(1, 32, 4, 4)), torch.zeros(2, dtype=torch.int64), prompts)
    assert shared == []


def test_lora_in_the_encoder_leaves_the_decoder_shared(tiny_backbone, shared):
    _lora("image_encoder.attention").attach(tiny_backbone)
    prompts = tiny_backbone.embed_prompts(2, boxes=torch.rand(2, 4) * 64)
    tiny_backbone.decode(ImageEmbeddings(torch.randn(1, 32, 4, 4)), torch.zeros(2, dtype=torch.int64), prompts)
    assert shared == [1]


def test_images_are_shared_where_they_are_fewer_than_the_prompts():
    dense = torch.zeros(1, 2, 1, 1)
    images, positions = shared_images(torch.tensor([3, 1, 3]), 4, dense.expand(3, 2, 4, 4))
    assert images.tolist() == [1, 3]
    assert positions.tolist() == [1, 0, 1]
    assert shared_images(torch.tensor([0, 1, 2]), 3, dense.expand(3, 2, 4, 4)) is None
    assert shared_images(torch.tensor([0, 0]), 1, torch.zeros(2, 2, 4, 4)) is None


def test_on_a_gpu_nothing_waits_for_the_numbers_of_the_images():
    index, dense = torch.zeros(3, dtype=torch.int64, device="meta"), torch.zeros(1, 2, 1, 1)
    images, positions = shared_images(index, 2, dense.expand(3, 2, 4, 4))
    assert images.shape == (2,)
    assert positions is index
    assert shared_images(index, 3, dense.expand(3, 2, 4, 4)) is None
