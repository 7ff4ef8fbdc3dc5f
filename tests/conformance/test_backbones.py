"""What every backbone promises, for both encoder families of the package and two strangers."""

from __future__ import annotations

import pytest
import torch

import medsam_tune.backbone
from medsam_tune.backbone.base import Backbone
from medsam_tune.prompts import BoxPrompt
from medsam_tune.types import EncoderInput
from tests.backbones import BACKBONES
from tests.conformance.discovery import concrete
from tests.conformance.test_strange_backbone import Strange
from tests.conformance.test_toy_backbone import TwoMaps
from tests.factories import embed, make_batch, one_image

FAMILIES = {**BACKBONES, "strange": Strange, "two maps": TwoMaps}
each = pytest.mark.parametrize("family", FAMILIES)


def asked(backbone, batch):
    return embed(BoxPrompt().draw(batch, mask_side=4 * backbone.embedding_size), batch, backbone)


def test_every_class_of_the_package_has_a_family_here():
    assert {type(make()) for make in BACKBONES.values()} == set(concrete(medsam_tune.backbone, Backbone).values())


@each
def test_embeddings_prompts_and_masks_have_the_stated_shapes(family):
    backbone, batch = FAMILIES[family](), make_batch(objects=(2, 1))
    channels, grid = backbone.embed_dim, backbone.embedding_size
    embeddings = backbone.encode(batch.encoder_input())
    assert embeddings.main.shape == (2, channels, grid, grid)
    assert tuple(level.shape[1:] for level in embeddings.fine) == backbone.fine_shapes
    assert backbone.image_pe().shape == (1, channels, grid, grid)
    assert backbone.no_mask_embedding().shape == (1, channels, 1, 1)
    prompts = asked(backbone, batch)
    assert prompts.sparse_embeddings.shape[::2] == (3, channels)
    assert prompts.dense_embeddings.shape == (3, channels, grid, grid)
    prediction = backbone.decode(embeddings, batch.image_index, prompts)
    assert prediction.low_res_masks.shape == (3, 1, 4 * grid, 4 * grid)
    assert prediction.iou_predictions.shape == (3, 1)


@each
def test_what_is_packed_for_a_store_comes_back_whole_row_by_row(family):
    backbone, batch = FAMILIES[family](), make_batch()
    embeddings = backbone.encode(batch.encoder_input())
    packed = backbone.pack(embeddings)
    assert len(packed) == 2
    back = backbone.unpack(torch.stack([packed[0], packed[1]]))
    assert torch.equal(back.main, embeddings.main)
    assert len(back.fine) == len(embeddings.fine)
    assert all(torch.equal(*levels) for levels in zip(back.fine, embeddings.fine, strict=True))


@each
def test_an_image_and_its_objects_are_answered_alike_in_every_batch(family):
    backbone, batch = FAMILIES[family]().eval(), make_batch(objects=(2, 1))

    def answer(part):
        embeddings = backbone.encode(part.encoder_input())
        return backbone.decode(embeddings, part.image_index, asked(backbone, part)).low_res_masks

    together = answer(batch)
    torch.testing.assert_close(torch.cat([answer(one_image(batch, row)) for row in range(2)]), together, rtol=1e-4, atol=1e-4)


@each
def test_what_encode_is_at_work_on_is_known_inside_and_forgotten_after(family):
    backbone, batch = FAMILIES[family](), make_batch()
    inputs, seen = batch.encoder_input(), []
    block = backbone.anatomy().encoder.blocks[0].module
    block.register_forward_pre_hook(lambda *_: seen.append(backbone.current_input))
    backbone.encode(inputs)
    assert seen == [inputs]
    assert backbone.current_input is None


@each
def test_all_is_frozen_and_a_fresh_network_equals_the_first(family):
    backbone = FAMILIES[family]()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert list(backbone.parts()) == ["image_encoder", "prompt_encoder", "mask_decoder"]
    if family != "tiny_vit":  # a ViT's encoder was replaced in it by hand
        other = backbone.fresh()
        assert other is not backbone
        assert other.weights == backbone.weights
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in backbone.state_dict().items())


@each
def test_images_of_another_size_are_refused(family):
    backbone = FAMILIES[family]()
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        backbone.encode(EncoderInput(torch.zeros(1, 3, 32, 32), make_batch().frames[:1]))
