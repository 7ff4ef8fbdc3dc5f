"""MA-SAM, SD-Trans and 3DSAM-adapter's adapter have the counts of their papers' code, and MA-SAM's decoder its shape."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.attention import AttentionKernel
from medsam_tune.errors import RecipeError
from medsam_tune.export.trained import trained_names
from medsam_tune.geometry import make_frame
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.tuners.depthwise_adapter import DepthwiseAdapter
from medsam_tune.tuners.fact import FactorTuning
from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
from medsam_tune.tuners.msa.space_depth import SpaceDepthAdapter
from medsam_tune.tuners.volume_adapter import MaSamTuner, VolumeAdapter
from medsam_tune.types import EncoderInput
from tests.class_batches import make_class_batch
from tests.tuners.shapes import trained_count, true_shape

# What no loss reaches in MA-SAM's published network: an IoU head with a number for each of 13 masks, the point embeddings and
# the convolutions of mask prompts.
IOU_HEAD, PROMPTS = 2 * (256 * 256 + 256) + 13 * 257, 6220 - 256


def test_counts_of_ma_sam_are_those_of_the_authors_code():
    assert trained_count("vit_b", VolumeAdapter(blocks=(0, 0))) == 2 * 1_034_112
    assert trained_count("vit_b", VolumeAdapter()) == 24_818_688
    assert trained_count("vit_h", VolumeAdapter(blocks=(0, 0))) == 2 * 1_428_352
    assert trained_count("vit_b", FactorTuning(32)) == 73_728
    assert trained_count("vit_b", MaSamTuner()) == 24_818_688 + 73_728


def test_all_that_ma_sam_trains_learns_and_the_rest_of_the_published_network_is_frozen():
    assert IOU_HEAD + PROMPTS == 140_889
    backbone = true_shape("vit_b")
    with torch.device("meta"):
        names = [f"class_{number}" for number in range(12)]
        for part in (backbone.mask_decoder, backbone.prompt_encoder.no_mask_embed):
            part.requires_grad_(True)
        backbone.mask_decoder.iou_prediction_head.requires_grad_(False)
        segmenter = SemanticSegmenter(SamParts(backbone, tuner=MaSamTuner()), names, upscale_stages=4)
    decoder = sum(p.numel() for p in backbone.mask_decoder.parameters() if p.requires_grad)
    trained = sum(p.numel() for p in segmenter.parameters() if p.requires_grad)
    assert decoder == 5_243_725 - IOU_HEAD
    assert trained == 30_142_361 - 140_889


@pytest.mark.parametrize("n_classes", [1, 3])
def test_decoder_with_four_stages_gives_masks_of_the_inputs_side_and_every_parameter_of_it_learns(n_classes):
    torch.manual_seed(0)
    backbone = SamBackbone("random_tiny", trainable=["mask_decoder", "prompt_encoder.no_mask_embed"])
    names = ["a", "b", "c"][:n_classes]
    before = backbone.mask_decoder.output_upscaling[0].weight.clone()
    segmenter = SemanticSegmenter(SamParts(backbone, tuner=MaSamTuner(8, rank=2)), names, upscale_stages=4)
    assert torch.equal(backbone.mask_decoder.output_upscaling[0].weight, before)
    batch = make_class_batch(n_classes)
    prediction = segmenter(batch)
    assert prediction.class_logits.shape == (batch.n_images, 1 + n_classes, 64, 64)
    prediction.class_logits.pow(2).sum().backward()
    learning = {name: p for name, p in segmenter.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in learning.values())
    assert set(segmenter.fresh_parts()) == {
        *(f"mask_decoder.output_upscaling.{place}" for place in (4, 6, 7, 9)),
        *(f"mask_decoder.output_hypernetworks_mlps.{i}.layers.2" for i in range(1 + n_classes)),
    }
    stored = trained_names(segmenter)
    assert all(any(name.startswith(f"backbone.{part}") for name in stored) for part in segmenter.fresh_parts())


def test_other_numbers_of_stages_are_refused():
    with pytest.raises(RecipeError, match=r"model\.segmenter\.upscale_stages: expected 2 \(as SAM\) or 4 \(as MA-SAM\), got 3"):
        SemanticSegmenter(SamParts(SamBackbone("random_tiny")), ["a"], upscale_stages=3)


def test_counts_of_the_other_two_adapters_are_those_of_their_code():
    one = trained_count("vit_b", BottleneckAdapter(placement=("attention",), decoder="none"))
    assert trained_count("vit_b", SpaceDepthAdapter(decoder="none")) == 3 * one == 10_651_392
    assert trained_count("vit_b", DepthwiseAdapter(blocks=(0, 0))) == 601_728


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VolumeAdapter(0), r"model\.tuner\.width: 0 is no width of a bottleneck\. Set at least 1"),
        (lambda: MaSamTuner(rank=0), r"model\.tuner\.rank: 0 is no rank"),
        (lambda: SpaceDepthAdapter(depth_positions=-1), r"model\.tuner\.depth_positions: expected 0 or more, got -1"),
        (lambda: DepthwiseAdapter(0.0), r"model\.tuner\.ratio: 0\.0 is no share of the channels"),
    ],
)
def test_widths_that_are_none_are_refused(make, said):
    with pytest.raises(RecipeError, match=said):
        make()


class PlainAttention(AttentionKernel):
    """Attention as segment_anything writes it, whose products are counted."""

    def __call__(self, q, k, v, rel_h, rel_w, *, size):
        bias = rel_h[..., :, None] + rel_w[..., None, :]
        return (q @ k.transpose(-2, -1) + bias.flatten(-2)).softmax(dim=-1) @ v


def training_flops(tuner) -> int:
    """Operations of the encoder's forward and backward pass on five slices at 1024 pixels, ViT-B, counted without computing."""
    backbone = true_shape("vit_b")
    with torch.device("meta"):
        tuner.attach(backbone)
        images = torch.zeros(5, 3, 1024, 1024)
    for block in backbone.anatomy().encoder.blocks:
        block.attention.kernel = PlainAttention()
    backbone.slices_at_once = 5
    with FlopCounterMode(display=False) as counter:
        backbone.image_encoder(images).sum().backward()
    return counter.get_total_flops()


def test_a_depth_branch_that_shares_q_k_and_v_costs_at_most_a_tenth_more_than_the_plane_alone():
    plane = training_flops(BottleneckAdapter(decoder="none"))
    depth = training_flops(SpaceDepthAdapter(decoder="none"))
    assert plane > 5 * 972e9
    assert 1.02 < depth / plane <= 1.1


def test_the_encoder_hands_over_how_many_slices_it_sees():
    backbone = SamBackbone("random_tiny")
    VolumeAdapter(4).attach(backbone)
    images = torch.zeros(2, 3, 64, 64)
    frames = tuple(make_frame((64, 64), backbone.input_rule) for _ in images)
    inputs = EncoderInput(images, frames, slice_index=torch.arange(2), chunk_index=torch.zeros(2).long(), chunk_length=3)
    assert backbone.encode(inputs).main.shape[0] == 2
    assert backbone.slices_at_once == 3
    backbone.encode(EncoderInput(images, frames))
    assert backbone.slices_at_once == 1
