"""What every tuner that mixes slices promises: the contract for stacks of slices, rule by rule, on both encoder families."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.anatomy import open_block
from medsam_tune.evaluation.predict import predict_masks, update_metric
from medsam_tune.geometry import make_frame
from medsam_tune.inference.stitching import answer
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.tuners.base import Tuner
from medsam_tune.tuners.depthwise_adapter import DepthwiseBottleneck
from medsam_tune.tuners.msa.space_depth import DepthAdapter
from medsam_tune.tuners.volume_adapter import DepthBottleneck
from medsam_tune.types import EncoderInput, SegmentationBatch
from tests.backbones import BACKBONES
from tests.conformance.recipe_cases import batch_of, small_module
from tests.conformance.steps import make_segmenter, take_step
from tests.conformance.tuner_cases import CASES
from tests.factories import make_batch, one_image, with_masks

RUNS = [(name, family) for name, case in CASES.items() if case.make().mixes_slices for family in case.families]
each = pytest.mark.parametrize(("name", "family"), RUNS, ids=lambda value: value)


def trained(name: str, family: str) -> SamBackbone:
    """A backbone in eval mode whose tuner has weights of its own everywhere."""
    segmenter = make_segmenter(name, family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in segmenter.backbone.named_parameters():
            if segmenter.tuner.is_tuned(key):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return segmenter.backbone.eval()


def encode(backbone: SamBackbone, images: torch.Tensor, chunks: list[int], slices: list[int], length: int) -> torch.Tensor:
    frames = tuple(make_frame((64, 64), backbone.input_rule) for _ in images)
    inputs = EncoderInput(
        images, frames, slice_index=torch.tensor(slices), chunk_index=torch.tensor(chunks), chunk_length=length
    )
    with torch.no_grad():
        return backbone.encode(inputs).main


def stack(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 255


def volume_batch(n: int) -> SegmentationBatch:
    """The slices of one volume, to be answered in windows of three."""
    batch = make_batch(sizes=((40, 64),) * n)
    zeros = torch.zeros(n, dtype=torch.int64)
    return replace(
        batch,
        slice_index=torch.arange(n),
        chunk_length=3,
        window_stride=1,
        chunk_index=zeros,
        case_index=zeros,
        volume_index=zeros,
    )


def test_all_three_published_adapters_are_covered():
    found = {type(CASES[name].make()).__name__ for name, _ in RUNS}
    assert found == {"VolumeAdapter", "MaSamTuner", "SpaceDepthAdapter", "DepthwiseAdapter"}
    assert {family for _, family in RUNS} == {"vit", "tiny_vit"}
    assert not Tuner.mixes_slices


@each
def test_rule_1_a_change_in_one_volume_changes_no_output_of_another(name, family):
    backbone, images = trained(name, family), stack(6)
    before = encode(backbone, images, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], 3)
    images[0] = 255 - images[0]
    after = encode(backbone, images, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], 3)
    moved = (after - before).flatten(1).abs().amax(dim=1)
    assert (moved[:3] > 0).all(), "the slices of one chunk see each other"
    assert (moved[3:] == 0).all()


@each
def test_rule_4_one_slice_alone_is_a_chunk_of_one(name, family):
    backbone, images = trained(name, family), stack(2)
    alone = encode(backbone, images, [0, 1], [4, 9], 1)
    for row in range(2):
        torch.testing.assert_close(encode(backbone, images[row : row + 1], [7], [0], 1), alone[row : row + 1])
    frames = tuple(make_frame((64, 64), backbone.input_rule) for _ in images)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode(EncoderInput(images, frames)).main, alone, rtol=0, atol=0)


@each
def test_rule_5_any_number_of_slices_works_and_a_short_chunk_is_filled_with_its_last_slice(name, family):
    backbone, images = trained(name, family), stack(5)
    short = encode(backbone, images[:2], [0, 0], [0, 1], 5)
    filled = torch.cat([images[:2], images[1:2], images[1:2], images[1:2]])
    torch.testing.assert_close(short, encode(backbone, filled, [0] * 5, list(range(5)), 5)[:2], rtol=1e-5, atol=1e-5)
    widths = [encode(backbone, images[:n], [0] * n, list(range(n)), n)[0] for n in (1, 2, 5)]
    assert all(not torch.equal(first, second) for first, second in pairwise(widths))
    with pytest.raises(ValueError, match=r"chunk 0 has 5 slices, but chunk_length is 3\. Cut it"):
        encode(backbone, images, [0] * 5, list(range(5)), 3)


@each
def test_rule_6_slices_are_put_in_the_order_of_their_positions(name, family):
    backbone, images = trained(name, family), stack(3)
    ordered = encode(backbone, images, [0, 0, 0], [0, 1, 2], 3)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(encode(backbone, images[order], [0, 0, 0], order.tolist(), 3), ordered[order])


@each
def test_the_encoding_of_a_chunk_does_not_depend_on_the_batch_it_travels_in(name, family):
    backbone, images = trained(name, family), stack(8)
    alone = encode(backbone, images[:2], [5, 5], [3, 4], 3)
    chunks, slices = [5, 5, 0, 0, 0, 1, 1, 1], [3, 4, 0, 1, 2, 0, 1, 2]
    together = encode(backbone, images, chunks, slices, 3)
    torch.testing.assert_close(together[:2], alone, rtol=0, atol=1e-5)
    mixed = torch.tensor([3, 0, 6, 1, 2, 4, 5, 7])
    shuffled = encode(backbone, images[mixed], [chunks[i] for i in mixed], [slices[i] for i in mixed], 3)
    torch.testing.assert_close(shuffled[[1, 3]], alone, rtol=0, atol=1e-5)


@each
@pytest.mark.parametrize("length", [1, 5])
def test_before_training_a_chunk_is_encoded_as_segment_anything_does(name, family, length):
    segmenter = make_segmenter(name, family).eval()
    images = stack(5)
    chunks = [0] * 5 if length == 5 else list(range(5))
    found = encode(segmenter.backbone, images, chunks, list(range(5)), length)
    gap = (found - encode(BACKBONES[family]().eval(), images, chunks, list(range(5)), length)).abs().max()
    assert (gap < 1e-5) == segmenter.tuner.declares_identity


@pytest.mark.parametrize("name", [name for name, family in RUNS if family == "vit"])
def test_blocks_that_are_computed_again_give_the_same_gradients(name):
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone = SamBackbone("random_tiny", checkpointing=again)
        CASES[name].make().attach(backbone)
        for key, parameter in backbone.named_parameters():
            if parameter.requires_grad and "mask_decoder" not in key:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(key)))
        frames = tuple(make_frame((64, 64), backbone.input_rule) for _ in range(3))
        inputs = EncoderInput(stack(3), frames, slice_index=torch.arange(3), chunk_index=torch.zeros(3).long(), chunk_length=3)
        backbone.eval().encode(inputs).main.pow(2).sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def open_places(family: str, n_slices: int) -> tuple[SamBackbone, torch.nn.Module]:
    """A backbone that has D slices before it, and its first block that attends in windows, opened."""
    backbone = BACKBONES[family]().eval()
    backbone.slices_at_once = n_slices
    block = next(block for block in backbone.anatomy().encoder.blocks if block.window)
    return backbone, open_block(backbone, block, "depth_adapter")


def moved_places(module, tokens: torch.Tensor, row: int, place: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Where the output of a module changes when one slice changes at one token."""
    with torch.no_grad():
        before = module(tokens)
        changed = tokens.clone()
        changed[row, place[0], place[1]] *= -1
        gap = (module(changed) - before).abs().amax(dim=-1)
    return sorted((int(r), int(h), int(w)) for r, h, w in (gap > 1e-7).nonzero())


@pytest.mark.parametrize("family", list(BACKBONES))
def test_rule_2_and_3_the_depth_branch_moves_one_token_in_all_slices_of_its_chunk_and_knows_no_windows(family):
    backbone, block = open_places(family, 3)
    width = backbone.anatomy().encoder.blocks[2 if family == "tiny_vit" else 0].width
    attention = block._slice_attention() if family == "tiny_vit" else block.attn
    tokens = torch.randn(6, 5, 5, width, generator=torch.Generator().manual_seed(0))
    branch = moved_places(lambda given: attention.with_slices(given, 3)[1], tokens, 1, (2, 3))
    assert branch == [(row, 2, 3) for row in range(3)]
    plane = moved_places(lambda given: attention.with_slices(given, 3)[0], tokens, 1, (2, 3))
    assert {row for row, _, _ in plane} == {1}
    in_plane, across = attention.with_slices(tokens, 3)
    torch.testing.assert_close(in_plane, attention(tokens))
    assert across.shape == tokens.shape


@pytest.mark.parametrize("family", list(BACKBONES))
def test_depth_attention_is_that_of_the_same_layers_written_out(family):
    backbone, block = open_places(family, 4)
    attention = block.attn
    tokens = torch.randn(4, 1, 1, attention.proj.weight.shape[0], generator=torch.Generator().manual_seed(0))
    outer = block._slice_attention() if family == "tiny_vit" else attention
    with torch.no_grad():
        across = outer.with_slices(tokens, 4)[1][:, 0, 0]
        flat = tokens[:, 0, 0]
        projected = attention.qkv(attention.norm(flat) if family == "tiny_vit" else flat)
        layer = next(b for b in backbone.anatomy().encoder.blocks if b.window).layers["attention.qkv"][0]
        rows = {which: backbone.anatomy().encoder.rows(layer, which) for which in ("q", "k", "v")}
        heads = []
        for part in range(attention.num_heads):
            size = len(rows["q"]) // attention.num_heads
            q, k, v = (projected[:, rows[which][part * size : (part + 1) * size]] for which in ("q", "k", "v"))
            heads.append(torch.softmax(q @ k.T / size**0.5, dim=-1) @ v)
        expected = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(across, expected, rtol=1e-5, atol=1e-5)
    one = outer.with_slices(tokens[:1], 1)[1][0, 0, 0]
    torch.testing.assert_close(one, attention.proj(projected[0, rows["v"]]), rtol=1e-5, atol=1e-6)


def test_learned_places_tell_slices_apart_and_start_at_nothing():
    backbone = BACKBONES["vit"]()
    backbone.slices_at_once = 5
    adapter = DepthAdapter(32, 8, backbone, activation="relu", init="identity", heads=2, positions=3)
    assert adapter.bias(5).shape == (2, 5, 5)
    assert not adapter.bias(5).any()
    with torch.no_grad():
        adapter.places.copy_(torch.arange(5.0).expand(2, 5))
    assert adapter.bias(4)[0].tolist() == [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]]


@pytest.mark.parametrize("n_slices", [1, 2, 4])
@pytest.mark.parametrize("kind", [DepthBottleneck, DepthwiseBottleneck])
def test_sums_over_neighbours_are_a_conv3d(kind, n_slices):
    backbone = BACKBONES["vit"]()
    backbone.slices_at_once = n_slices
    torch.manual_seed(0)
    adapter = kind(6, 4, backbone, init="repo")
    tokens = torch.randn(2 * n_slices, 3, 5, 6)
    with torch.no_grad():
        normed = kind is DepthBottleneck
        hidden = adapter.down_proj(adapter.norm(tokens)) if normed else adapter.down_proj(tokens).relu()
        volume = hidden.view(2, n_slices, 3, 5, 4).permute(0, 4, 1, 2, 3)
        expected = adapter.conv(volume).permute(0, 2, 3, 4, 1).reshape(2 * n_slices, 3, 5, 4)
        if kind is DepthBottleneck:
            expected = tokens + adapter.up_proj(torch.nn.functional.gelu(expected))
        else:
            expected = tokens + adapter.up_proj(expected.relu()).relu()
        torch.testing.assert_close(adapter(tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_over_slices_reaches_one_slice_each_way_at_the_same_token():
    backbone = BACKBONES["vit"]()
    backbone.slices_at_once = 5
    torch.manual_seed(0)
    adapter = DepthBottleneck(8, 4, backbone, init="repo")
    assert moved_places(adapter, torch.randn(10, 4, 4, 8), 1, (2, 0)) == [(0, 2, 0), (1, 2, 0), (2, 2, 0)]


@each
def test_windows_over_a_volume_average_what_each_of_them_answers(name, family):
    segmenter = make_segmenter(name, family)
    take_step(segmenter, make_batch())
    segmenter.eval()
    whole = volume_batch(4)
    with torch.no_grad():
        found = answer(segmenter, whole).low_res_masks.sigmoid()
        parts = [replace(whole.part(s, s + 3), window_stride=0) for s in (0, 1)]
        first, second = (segmenter(part).low_res_masks.sigmoid() for part in parts)
        expected = torch.stack([first[0], (first[1] + second[0]) / 2, (first[2] + second[1]) / 2, second[2]])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        short = answer(segmenter, replace(whole.part(0, 2), chunk_length=3, window_stride=1))
        torch.testing.assert_close(
            short.low_res_masks, segmenter(replace(whole.part(0, 2), window_stride=0)).low_res_masks, rtol=0, atol=0
        )
        single = replace(one_image(whole, 0), chunk_length=3, window_stride=1)
        assert torch.isfinite(answer(segmenter, single).low_res_masks).all()


@each
def test_rule_7_dice_is_that_of_the_volume_and_a_volume_empty_in_both_counts_for_nothing(name, family):
    segmenter = make_segmenter(name, family).eval()
    volume = volume_batch(4)
    truth = volume.masks.clone()
    truth[1:3] = False
    original = tuple(mask.dense() & (row not in (1, 2)) for row, mask in enumerate(volume.original_masks))
    volume = with_masks(volume, truth, original)
    with torch.no_grad():
        prediction = answer(segmenter, volume)
    masks = [found[0] for found in predict_masks(prediction, volume, 64)]
    both = sum(int((found & true[0]).sum()) for found, true in zip(masks, original, strict=True))
    areas = sum(int(found.sum() + true.sum()) for found, true in zip(masks, original, strict=True))
    metric = OverlapMetric()
    update_metric(metric, volume, prediction, 64)
    torch.testing.assert_close(float(metric.compute()["dice"]), 2 * both / areas)
    empty = with_masks(
        replace(volume, case_index=volume.case_index + 1, sample_index=volume.sample_index + 4),
        truth & False,
        tuple(mask & False for mask in original),
    )
    nothing = replace(prediction, low_res_masks=torch.full_like(prediction.low_res_masks, -9.0))
    update_metric(metric, empty, nothing, 64)
    torch.testing.assert_close(float(metric.compute()["dice"]), 2 * both / areas)


def test_clicks_of_the_3d_adapters_recipe_lie_where_their_label_says():
    segmenter = small_module("sam3d_adapter.yaml").segmenter
    for seed in range(8):
        batch = batch_of("sam3d_adapter.yaml", seed=seed)
        queries = segmenter.ask(batch)
        assert queries.point_labels.tolist() == [[1, 0]] * batch.n_objects
        for mask, points in zip(batch.masks[:, 0], queries.point_coords.long().tolist(), strict=True):
            (x_on, y_on), (x_off, y_off) = points
            assert mask[y_on, x_on]
            assert not mask[y_off, x_off]
