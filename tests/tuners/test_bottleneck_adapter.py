"""Medical SAM Adapter: where the adapters sit, how many parameters they have, and that an untrained one changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medsam_tune.backbone.anatomy import open_block
from medsam_tune.backbone.mask_decoder import OpenTwoWayBlock
from medsam_tune.errors import RecipeError
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
from medsam_tune.tuners.parts import encoder_blocks
from tests.backbones import BACKBONES, make_tiny_vit, make_vit
from tests.factories import make_batch
from tests.tuners.shapes import trained_count


def _trained_count(name, **settings):
    return trained_count(name, BottleneckAdapter(**settings))


def _randomised(module, seed=3):
    """Fill every parameter that learns with random numbers, so that no zero hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def _linear(x, layer):
    return x @ layer.weight.T + layer.bias


def test_vit_b_at_ratio_a_quarter_has_7100928_encoder_adapter_parameters():
    assert _trained_count("vit_b", ratio=0.25, decoder="none") == 7_100_928


def test_vit_h_at_ratio_a_sixteenth_has_the_papers_13194240_encoder_adapter_parameters():
    assert _trained_count("vit_h", ratio=1 / 16, decoder="none") == 13_194_240


@pytest.mark.parametrize(("ratio", "millions"), [(0.25, 25.2), (0.125, 12.6), (0.0625, 6.3)])
def test_vit_l_counts_follow_the_ratio(ratio, millions):
    assert round(_trained_count("vit_l", ratio=ratio, decoder="none") / 1e6, 1) == millions


def test_rank_wins_over_ratio():
    # Two adapters in twelve blocks, each 768 x 8 down and back with biases.
    assert _trained_count("vit_b", ratio=0.25, rank=8, decoder="none") == 24 * (2 * 768 * 8 + 8 + 768)


def test_decoder_adapters_are_three_in_each_of_two_blocks():
    assert _trained_count("vit_b", rank=16, placement=(), decoder="adapters") == 6 * (2 * 256 * 16 + 16 + 256)


def test_hyper_prompting_adds_the_network_that_writes_the_matrix_and_a_norm():
    width = 16
    plain = _trained_count("vit_b", rank=width, placement=(), decoder="adapters")
    writer = 256 * width + width + width * width**2 + width**2 + 2 * width
    assert _trained_count("vit_b", rank=width, placement=(), decoder="hyper") == plain + 2 * writer


def test_training_the_mask_decoder_too_adds_what_the_single_mask_reaches():
    adapters = _trained_count("vit_b", decoder="none")
    assert _trained_count("vit_b", decoder="none", train_mask_decoder=True) == adapters + 4_058_340 - 552_036


@pytest.mark.parametrize("family", BACKBONES)
def test_open_blocks_with_empty_places_give_the_same_output_and_the_same_keys(family):
    backbone, batch = BACKBONES[family](), make_batch()
    stock = copy.deepcopy(backbone)
    for block in (*encoder_blocks(backbone).values(), *backbone.anatomy().decoder.blocks):
        open_block(backbone, block)
    assert list(backbone.state_dict()) == list(stock.state_dict())
    ours, theirs = (SamSegmenter(SamParts(b, BoxPrompt()))(batch).low_res_masks for b in (backbone, stock))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def _adapter(place):
    return place.bottleneck_adapters["default"]


@pytest.mark.parametrize("block", [0, 1])
def test_vit_block_follows_the_formula(block):
    """a' = a + Up(act(Down(a))); y = h + MLP(LN2(h)) + s * Up(act(Down(LN2(h)))), written out with plain matrices."""
    backbone = make_vit()
    stock = copy.deepcopy(backbone.image_encoder.blocks[block])
    BottleneckAdapter(rank=3, mlp_scale=0.7, decoder="none").attach(backbone)
    _randomised(backbone)
    tuned = backbone.image_encoder.blocks[block]
    # Grid 5 in windows of 2 leaves a padded last window.
    tokens = torch.randn(1, 5, 5, 32)
    attended = _attention_alone(stock, tokens)
    first, second = _adapter(tuned.attention_adapter), _adapter(tuned.mlp_adapter)
    h = tokens + attended + _linear(_linear(attended, first.down_proj).relu(), first.up_proj)
    normed = stock.norm2(h)
    expected = h + stock.mlp(normed) + 0.7 * _linear(_linear(normed, second.down_proj).relu(), second.up_proj)
    torch.testing.assert_close(tuned(tokens), expected)


def _attention_alone(stock_block, tokens):
    """The block's attention without residual and MLP, by the stock block itself with its MLP silenced."""
    block = copy.deepcopy(stock_block)
    with torch.no_grad():
        block.mlp.lin2.weight.zero_()
        block.mlp.lin2.bias.zero_()
    return block(tokens) - tokens


def test_the_adapter_beside_the_mlp_may_read_the_stream_before_its_norm():
    settings = {"rank": 3, "decoder": "none", "placement": ("mlp",)}
    normed, residual = make_vit(), make_vit()
    BottleneckAdapter(**settings).attach(normed)
    BottleneckAdapter(**settings, mlp_input="residual").attach(residual)
    for backbone in (normed, residual):
        _randomised(backbone)
        with torch.no_grad():
            # A norm that hands on zeros: what reads the stream still sees it, what reads the norm's output sees none.
            backbone.image_encoder.blocks[0].norm2.weight.zero_()
            backbone.image_encoder.blocks[0].norm2.bias.zero_()
    tokens = torch.randn(1, 4, 4, 32)
    ours, other = normed.image_encoder.blocks[0], residual.image_encoder.blocks[0]
    adapter = _adapter(other.mlp_adapter)
    h = tokens + _attention_alone(make_vit().image_encoder.blocks[0], tokens)
    zero = _linear(adapter.down_proj.bias.relu(), adapter.up_proj)
    moved = _linear(_linear(h, adapter.down_proj).relu(), adapter.up_proj)
    torch.testing.assert_close(other(tokens) - ours(tokens), 0.5 * (moved - zero).expand_as(h), rtol=1e-4, atol=1e-5)


def test_decoder_block_puts_each_adapter_into_its_place():
    backbone = make_vit()
    stock = copy.deepcopy(backbone.mask_decoder.transformer.layers[1])
    BottleneckAdapter(rank=3, placement=(), decoder="adapters").attach(backbone)
    _randomised(backbone)
    tuned = backbone.mask_decoder.transformer.layers[1]
    queries, keys, pe, key_pe = (torch.randn(2, n, 32) for n in (7, 16, 7, 16))
    tokens, image = tuned(queries=queries, keys=keys, query_pe=pe, key_pe=key_pe)
    q = stock.norm1(queries + stock.self_attn(q=queries + pe, k=queries + pe, v=queries))
    q = stock.norm2(q + tuned.token_adapter(stock.cross_attn_token_to_image(q=q + pe, k=keys + key_pe, v=keys)))
    q = stock.norm3(q + stock.mlp(q) + 0.5 * _adapter(tuned.mlp_adapter).update(q))
    k = keys + stock.cross_attn_image_to_token(q=keys + key_pe, k=q + pe, v=q)
    torch.testing.assert_close(tokens, q)
    torch.testing.assert_close(image, stock.norm4(tuned.image_adapter(k)))


def test_only_prompt_tokens_reach_the_hyper_prompt():
    seen = []

    class Spy(nn.Module):
        def forward(self, attended, prompt_tokens):
            seen.append(prompt_tokens)
            return attended

    backbone, batch = make_vit(), make_batch()
    segmenter = SamSegmenter(SamParts(backbone, BoxPrompt(), tuner=BottleneckAdapter()))
    for module in backbone.modules():
        if isinstance(module, OpenTwoWayBlock):
            module.token_adapter = Spy()
    segmenter(batch)
    corners = backbone.embed_prompts(2, boxes=BoxPrompt().boxes(batch)).sparse_embeddings
    assert len(seen) == 2
    assert all(torch.equal(tokens, corners) for tokens in seen)


def test_another_box_steers_the_adapter_of_an_object_and_of_no_other():
    backbone = make_vit()
    BottleneckAdapter(rank=4, placement=(), decoder="hyper").attach(backbone)
    _randomised(backbone)
    adapter = _adapter(backbone.mask_decoder.transformer.layers[0].token_adapter)
    tokens, prompts = torch.randn(2, 7, 32), torch.randn(2, 2, 32)
    other = prompts.clone()
    other[0] += 1
    before, after = adapter(tokens, prompts), adapter(tokens, other)
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


def test_without_prompts_the_hyper_adapter_is_the_plain_one():
    backbone = make_vit()
    BottleneckAdapter(rank=4, placement=(), decoder="hyper").attach(backbone)
    _randomised(backbone)
    adapter = _adapter(backbone.mask_decoder.transformer.layers[0].token_adapter)
    tokens = torch.randn(2, 5, 32)
    expected = tokens + _linear(_linear(tokens, adapter.down_proj).relu(), adapter.up_proj)
    torch.testing.assert_close(adapter(tokens, torch.empty(2, 0, 32)), expected)


def test_hyper_mixing_follows_the_papers_formula():
    backbone = make_vit()
    BottleneckAdapter(rank=4, placement=(), decoder="hyper").attach(backbone)
    _randomised(backbone)
    adapter = _adapter(backbone.mask_decoder.transformer.layers[0].token_adapter)
    mixing = adapter.mixings[0]
    tokens, prompts = torch.randn(1, 6, 32), torch.randn(1, 3, 32)
    matrix = _linear(_linear(prompts[0].mean(0), mixing.hidden_proj).relu(), mixing.matrix_proj).reshape(4, 4)
    mixed = _linear(tokens[0], adapter.down_proj).relu() @ matrix
    mixed = (mixed - mixed.mean()) / (mixed.var(unbiased=False) + 1e-5).sqrt()
    mixed = (mixed * mixing.norm.weight + mixing.norm.bias).relu()
    torch.testing.assert_close(adapter(tokens, prompts)[0], tokens[0] + _linear(mixed, adapter.up_proj))


def test_late_blocks_only_leave_the_early_ones_untouched_and_end_the_backward_pass_early():
    backbone, batch = make_vit(), make_batch()
    segmenter = SamSegmenter(SamParts(backbone, BoxPrompt(), tuner=BottleneckAdapter(blocks=(1, 1), decoder="none")))
    grown = []
    backbone.image_encoder.blocks[0].register_forward_hook(lambda _m, _i, output: grown.append(output.requires_grad))
    segmenter(batch).low_res_masks.sum().backward()
    assert grown == [False]
    assert {name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad} == {"1"}


def test_tiny_vit_gets_adapters_in_its_attention_blocks_only():
    backbone = make_tiny_vit()
    BottleneckAdapter(decoder="none").attach(backbone)
    homes = {name.partition("_adapter.")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert homes == {f"{block.name}.{place}" for block in encoder_blocks(backbone).values() for place in ("attention", "mlp")}


def test_repo_init_moves_the_output_and_is_declared_not_to_be_an_identity():
    batch = make_batch()
    tuner = BottleneckAdapter(init="repo")
    stock, moved = (SamSegmenter(SamParts(make_vit(), BoxPrompt(), tuner=t))(batch).low_res_masks for t in (None, tuner))
    assert not tuner.declares_identity
    assert "up-projections" in tuner.identity_note
    assert (stock - moved).abs().max() > 1e-3


def test_hyper_prompting_without_prompts_leaves_its_writer_without_a_gradient():
    backbone, batch = make_vit(), make_batch()
    SamSegmenter(SamParts(backbone, tuner=BottleneckAdapter()))(batch).low_res_masks.sum().backward()
    silent = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert silent
    assert all(".token_adapter." in name and ".mixings." in name for name in silent)


def test_decoder_adapters_alone_keep_the_embedding_cache_valid():
    segmenter = SamSegmenter(SamParts(make_vit(), BoxPrompt(), tuner=BottleneckAdapter(placement=(), decoder="hyper")))
    assert segmenter.not_precomputable() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"model\.tuner\.rank: 0 is no width of a bottleneck\. Set at least 1"),
        ({"ratio": 0.0}, r"model\.tuner\.ratio: 0\.0 is no share of the channels\. Set more than 0"),
        ({"placement": (), "decoder": "none"}, r"model\.tuner\.placement: is empty and decoder is none"),
    ],
)
def test_settings_that_place_nothing_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        BottleneckAdapter(**settings)


def test_a_ratio_too_small_for_the_channels_is_refused():
    with pytest.raises(RecipeError, match=r"0\.01 of 32 channels is less than one\. Set a larger ratio"):
        BottleneckAdapter(ratio=0.01).attach(make_vit())


def test_zero_hyper_layers_are_refused():
    with pytest.raises(RecipeError, match=r"hyper_layers: 0 is no number of layers\. Set 1, or decoder: adapters"):
        BottleneckAdapter(hyper_layers=0).attach(make_vit())
