"""The attention of ViT against segment_anything's own: results, gradients, memory, and what a tuner puts into it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT, window_partition, window_unpartition
from torch import nn

from medsam_tune.backbone import SamBackbone, attention
from medsam_tune.backbone.attention import FoldedAttention, SamAttention, TiledAttention, works_per_token
from medsam_tune.backbone.vit import VitBlock
from tests.conformance.tuner_cases import CASES

KERNELS = {"tiled": TiledAttention, "folded": FoldedAttention}
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def stock_block(window, size=(6, 6), dim=24, heads=3, dtype=torch.float32):
    """One of segment_anything's blocks with tables that are not zero."""
    block = Block(dim, heads, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=window, input_size=size)
    for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
        nn.init.normal_(table)
    return block.to(dtype)


def ours_of(block, kernel="tiled"):
    opened = VitBlock(copy.deepcopy(block))
    opened.attn.kernel = KERNELS[kernel]()
    return opened


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def saved_bytes(module, tokens):
    seen = {}

    def note(tensor):
        seen[tensor.data_ptr(), tensor.shape] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(tokens)
    own = {p.data_ptr() for p in module.parameters()}
    return sum(size for (pointer, _), size in seen.items() if pointer not in own)


@each_kernel
@pytest.mark.parametrize("window", [0, 3, 4, 7])
@pytest.mark.parametrize("grid", [(6, 6), (5, 9)])
def test_result_and_all_gradients_equal_those_of_the_stock_block(kernel, window, grid):
    stock = stock_block(window, size=grid)
    ours = ours_of(stock, kernel)
    tokens = torch.randn(2, *grid, 24)
    theirs_in, ours_in = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    expected, found = stock(theirs_in), ours(ours_in)
    assert relative_error(found, expected) <= 1e-6
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert relative_error(ours_in.grad, theirs_in.grad) <= 1e-6
    for (name, theirs), (own_name, own) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        assert name == own_name
        # A key's bias moves all scores of a query alike: its gradient is zero but for rounding.
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=2e-5, msg=name)


def test_tiles_have_the_gradient_of_their_result(monkeypatch):
    monkeypatch.setattr(attention, "_TILE_NUMBERS", 24)
    sizes = {"q": (2, 2, 6, 3), "k": (2, 2, 6, 3), "v": (2, 2, 6, 3), "rel_h": (2, 2, 6, 2), "rel_w": (2, 2, 6, 3)}
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes.values()]
    assert torch.autograd.gradcheck(partial(TiledAttention(), size=(2, 3)), inputs)


@pytest.mark.parametrize("tile", [1, 40, 200, 10**6])
def test_the_size_of_a_tile_changes_nothing(monkeypatch, tile):
    stock = stock_block(4)
    tokens = torch.randn(2, 6, 6, 24)
    monkeypatch.setattr(attention, "_TILE_NUMBERS", tile)
    with torch.no_grad():
        assert relative_error(ours_of(stock)(tokens), stock(tokens)) <= 1e-6


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_a_window_block_of_vit_b_with_padded_windows_equals_stock(side):
    grid = side // 16
    stock = stock_block(14, dim=48, heads=2)
    tokens = torch.randn(1, grid, grid, 48)
    with torch.no_grad():
        assert relative_error(ours_of(stock)(tokens), stock(tokens)) <= 1e-6


def test_the_whole_encoder_equals_stock_with_the_same_state_dict():
    backbone = SamBackbone("random_tiny")
    stock = ImageEncoderViT(
        64, 16, 3, 32, 2, 2, out_chans=32, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=2,
        global_attn_indexes=(1,),
    )  # fmt: skip
    assert list(stock.state_dict()) == list(backbone.image_encoder.state_dict())
    stock.load_state_dict(backbone.image_encoder.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(backbone.image_encoder(images), stock(images)) <= 1e-6


def test_a_table_of_another_length_is_interpolated_as_sam_does():
    stock = stock_block(0, size=(8, 8))
    tokens = torch.randn(1, 5, 6, 24)
    with torch.no_grad():
        assert relative_error(ours_of(stock)(tokens), stock(tokens)) <= 1e-6


@pytest.mark.parametrize("kernel", ["tiled", "folded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_stock_is(kernel, dtype):
    stock = stock_block(4)
    tokens = torch.randn(1, 6, 6, 24)
    ours = ours_of(stock, kernel)
    with torch.no_grad():
        exact = stock(tokens)
        with torch.autocast("cpu", dtype):
            theirs, found = stock(tokens), ours(tokens)
    assert relative_error(found.float(), exact) <= 1.2 * relative_error(theirs.float(), exact)
    half = copy.deepcopy(ours).to(dtype)
    with torch.no_grad():
        assert relative_error(half(tokens.to(dtype)).float(), exact) <= 2e-2


def test_a_global_block_keeps_less_than_three_tenths_of_stock_for_the_backward_pass():
    # The grid of 1024 pixels and one of ViT-B's twelve heads.
    stock = stock_block(0, size=(64, 64), dim=64, heads=1).requires_grad_(False)
    tokens = torch.randn(1, 64, 64, 64, requires_grad=True)
    assert saved_bytes(ours_of(stock), tokens) <= 0.3 * saved_bytes(stock, tokens)


def test_autocast_does_not_reach_into_the_tiles():
    q, k, v, rel_h, rel_w = (torch.randn(1, 2, 6, n) for n in (4, 4, 4, 2, 3))
    attend = partial(TiledAttention(), size=(2, 3))
    expected = attend(q, k, v, rel_h, rel_w)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(q, k, v, rel_h, rel_w), expected)


def test_a_projection_that_something_may_look_at_by_windows_gets_them_whole():
    block = ours_of(stock_block(4))
    seen = []
    block.attn.qkv.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
    block(torch.randn(1, 6, 6, 24))
    assert not works_per_token(block.attn.qkv)
    assert seen == [(4, 4, 4, 24)]


def test_a_plain_projection_sees_real_tokens_and_zero_alone():
    block = ours_of(stock_block(4))
    seen = []
    block.attn.qkv.works_per_token = True
    block.attn.qkv.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
    block(torch.randn(1, 6, 6, 24))
    assert seen == [(1, 6, 6, 24), (1, 1, 1, 24)]


class StockAttention(nn.Module):
    """segment_anything's windows and formula over the layers that ``SamAttention`` holds, whatever a tuner made of them.

    Between slices it is that of ``SamAttention``: stock segment_anything has none.
    """

    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, tokens):
        window = self.attn.window_size
        if window == 0:
            return Attention.forward(self.attn, tokens)
        windows, padded = window_partition(tokens, window)
        return window_unpartition(Attention.forward(self.attn, windows), window, padded, tokens.shape[1:3])

    def with_slices(self, tokens, n_slices, bias):
        return self(tokens), self.attn.with_slices(tokens, n_slices, bias)[1]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "vit" in case.families])
def test_with_every_tuner_a_padded_window_gives_what_stock_attention_gives(name):
    backbone = SamBackbone("random_tiny", side=48)
    CASES[name].make().attach(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    backbone.eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        found = backbone.image_encoder(images)
        stock = copy.deepcopy(backbone.image_encoder)
        for block in stock.blocks:
            home = block if isinstance(block.attn, SamAttention) else block.base_layer
            home.attn = StockAttention(home.attn)
        torch.manual_seed(0)
        assert relative_error(stock(images), found) <= 2e-6
