"""What a backbone says of itself is what it does, for every family and a stranger; a new backbone belongs into ``FAMILIES``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsam_tune.backbone.anatomy import PART_NAMES, open_block
from tests.backbones import BACKBONES
from tests.conformance.test_strange_backbone import Strange

FAMILIES = {**BACKBONES, "strange": Strange}
each = pytest.mark.parametrize("family", FAMILIES)


def run_encoder(backbone):
    side = backbone.input_rule.side
    return backbone.parts()["image_encoder"](torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))


def inputs_seen(backbone, names):
    """The shape of the input that each named module gets, and of its output, in the order of the forward pass."""
    seen, handles = {}, []
    for name in names:

        def note(_, inputs, output, name=name):
            seen.setdefault(name, (tuple(inputs[0].shape), tuple(output.shape)))

        handles.append(backbone.get_submodule(name).register_forward_hook(note))
    with torch.no_grad():
        run_encoder(backbone)
    for handle in handles:
        handle.remove()
    return seen


@each
def test_blocks_are_named_in_the_order_of_the_forward_pass_and_know_their_width(family):
    backbone = FAMILIES[family]()
    blocks = backbone.anatomy().encoder.blocks
    seen = inputs_seen(backbone, [block.name for block in blocks])
    assert list(seen) == [block.name for block in blocks]
    assert all(block.width in seen[block.name][0] for block in blocks)
    assert all(backbone.get_submodule(block.name) is block.module for block in blocks)


@each
def test_every_layer_that_is_named_exists_and_runs(family):
    backbone = FAMILIES[family]()
    anatomy = backbone.anatomy()
    in_encoder = [layer for block in anatomy.encoder.blocks for layers in block.layers.values() for layer in layers]
    seen = inputs_seen(backbone, in_encoder)
    assert seen.keys() == set(in_encoder)
    elsewhere = [*anatomy.encoder.parts.values(), *anatomy.decoder.parts.values(), *anatomy.decoder.idle.values()]
    assert all(isinstance(backbone.get_submodule(name), nn.Module) for names in elsewhere for name in names)
    assert all(backbone.get_parameter(name) is not None for name in anatomy.decoder.without_effect)
    assert set(anatomy.part_names()) <= set(PART_NAMES)


@each
def test_layers_on_grids_read_four_axes_and_the_others_three(family):
    backbone = FAMILIES[family]()
    encoder = backbone.anatomy().encoder
    linear = [
        layer
        for block in encoder.blocks
        for layers in block.layers.values()
        for layer in layers
        if isinstance(backbone.get_submodule(layer), nn.Linear)
    ]
    axes = {name: len(shapes[0]) for name, shapes in inputs_seen(backbone, linear).items()}
    assert axes == {name: 4 if name in encoder.grid_layers else 3 for name in linear}


@each
def test_rows_of_q_k_and_v_share_a_projections_output_out(family):
    backbone = FAMILIES[family]()
    encoder = backbone.anatomy().encoder
    assert len(encoder.projections) == sum(block.attention is not None for block in encoder.blocks)
    for layer, rows in encoder.projections.items():
        together = torch.cat([rows[which] for which in ("q", "k", "v")])
        assert torch.equal(together.sort().values, torch.arange(backbone.get_submodule(layer).out_features))


@each
def test_the_bias_of_keys_changes_no_embedding_and_that_of_queries_and_values_does(family):
    backbone = FAMILIES[family]().eval()
    # Softmax ignores what is added to all keys alike; relative positions hang on queries alone.
    layer, rows = next(iter(backbone.anatomy().encoder.projections.items()))
    bias = backbone.get_submodule(layer).bias
    moved = {}
    with torch.no_grad():
        before = run_encoder(backbone)
        for which in ("q", "k", "v"):
            bias[rows[which]] += 1
            moved[which] = (run_encoder(backbone) - before).abs().max().item()
            bias[rows[which]] -= 1
    assert moved["k"] < 1e-4
    assert min(moved["q"], moved["v"]) > 10 * moved["k"]


@each
def test_a_token_reaches_its_window_or_the_whole_grid(family):
    backbone = FAMILIES[family]().eval()
    for block in backbone.anatomy().encoder.blocks:
        if block.attention is None:
            continue
        seen = []
        handle = block.attention.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append((inputs[0], output)))
        with torch.no_grad():
            run_encoder(backbone)
            handle.remove()
            ((tokens, attended),) = seen
            disturbed = tokens.clone()
            # The first window is never padded.
            disturbed.flatten(0, -2)[0] += torch.randn(tokens.shape[-1])
            moved = (block.attention(disturbed) != attended).any(dim=-1)
        assert int(moved.sum()) == (block.window**2 if block.window else backbone.embedding_size**2)


@each
def test_the_patch_embedding_has_a_token_for_every_stride_of_pixels(family):
    backbone = FAMILIES[family]()
    encoder = backbone.anatomy().encoder
    (inputs, output) = inputs_seen(backbone, [encoder.patch_embed])[encoder.patch_embed]
    side = backbone.input_rule.side
    assert inputs == (1, 3, side, side)
    assert list(output).count(side // encoder.patch_stride) >= 2


@each
def test_open_blocks_keep_every_name_and_the_output(family):
    backbone = FAMILIES[family]().eval()
    with torch.no_grad():
        before, names = run_encoder(backbone), list(backbone.state_dict())
        anatomy = backbone.anatomy()
        for block in (*anatomy.encoder.blocks, *anatomy.decoder.blocks):
            if block.places:
                opened = open_block(backbone, block)
                assert all(getattr(opened, place) is None for place in block.places)
                assert open_block(backbone, block) is opened
        assert list(backbone.state_dict()) == names
        torch.testing.assert_close(run_encoder(backbone), before, rtol=0, atol=1e-5)
