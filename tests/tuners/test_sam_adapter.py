"""SAM-Adapter: prompts from high frequencies, added before each block."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.sam_adapter import SamAdapter, TaskPrompts, high_frequencies
from tests.backbones import make_tiny_vit, make_vit
from tests.tuners.shapes import trained_count


def test_high_frequencies_agree_with_numpy():
    image = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    spectrum = np.fft.fftshift(np.fft.fft2(image), axes=(-2, -1))
    # A quarter of 16 x 16 is 8 x 8 round the centre.
    spectrum[:, 4:12, 4:12] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real)
    ours = high_frequencies(torch.from_numpy(image)[None], rate=0.25)[0]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_flat_image_has_no_high_frequencies_and_a_chequerboard_has_nothing_else():
    chequers = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    images = torch.stack([torch.full((16, 16), 5.0), chequers])[:, None].expand(2, 3, 16, 16)
    flat, board = high_frequencies(images, rate=0.25)
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-5)
    torch.testing.assert_close(board, torch.ones_like(board))


def test_a_prompt_is_added_before_every_block():
    backbone = make_vit()
    stock = copy.deepcopy(backbone.image_encoder)
    SamAdapter(8, init="repo").attach(backbone)
    encoder = backbone.image_encoder
    images = torch.randn(1, 3, 64, 64)
    tokens = stock.patch_embed(images)
    prompts = encoder.task_prompts(images, tokens)
    tokens = tokens + stock.pos_embed
    for block, prompt in zip(stock.blocks, prompts, strict=True):
        tokens = block(tokens + prompt)
    torch.testing.assert_close(encoder(images), stock.neck(tokens.permute(0, 3, 1, 2)))
    assert not torch.allclose(prompts[0], prompts[1])


def test_frozen_weights_keep_their_names_and_order():
    backbone = make_vit()
    before = set(backbone.state_dict())
    SamAdapter(8).attach(backbone)
    assert {name for name in backbone.state_dict() if ".task_prompts." not in name} == before


def test_vit_b_counts():
    width = 768 // 32
    embeddings = 768 * width + width + 3 * 16 * 16 * width + width
    assert trained_count("vit_b", SamAdapter()) == embeddings + 12 * (width**2 + width) + width * 768 + 768


def test_a_late_image_of_the_batch_does_not_reach_an_early_one():
    backbone = make_vit()
    SamAdapter(8, init="repo").attach(backbone)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.image_encoder(images)[:1], backbone.image_encoder(images[:1]), rtol=1e-4, atol=1e-5)


def test_tiny_vit_is_refused_with_what_to_choose():
    with pytest.raises(RecipeError, match=r"TinyViT's differ\. Choose weights of SAM's ViT such as sam_vit_b"):
        SamAdapter().attach(make_tiny_vit())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"scale_factor": 0}, r"scale_factor: 0 divides no channels"), ({"rate": 1.0}, r"rate: 1\.0 is no share of the spectrum")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        SamAdapter(**settings)


def test_a_scale_factor_that_leaves_no_channel_is_refused():
    with pytest.raises(RecipeError, match=r"scale_factor: 64 leaves none of the 32 channels\. Set 32 or less"):
        SamAdapter(64).attach(make_vit())


@pytest.mark.parametrize("init", ["identity", "repo"])
def test_the_authors_initialisation_of_what_reads_the_frequencies(init):
    prompts = TaskPrompts(64, 32, n_blocks=1, patch=8, rate=0.25, init=init)
    weight, bias = prompts.frequency_embed.weight, prompts.frequency_embed.bias
    assert weight.std().item() == pytest.approx((2 / (8 * 8 * 32)) ** 0.5, rel=0.1)
    assert not bias.any()
    assert prompts.embedding_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
