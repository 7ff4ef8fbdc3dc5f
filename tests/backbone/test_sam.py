"""The backbone against segment_anything's own classes."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import Sam

from medsam_tune.backbone import Backbone, SamBackbone
from medsam_tune.backbone.input_rules import LITE_MEDSAM, SAM
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.types import ImageEmbeddings, PromptEmbeddings
from tests.factories import encode, make_batch

IMAGE_INDEX = torch.tensor([2, 0, 1, 1, 2])


def _prompts(backbone, n_tokens):
    grid, dim, n = backbone.embedding_size, backbone.embed_dim, len(IMAGE_INDEX)
    return PromptEmbeddings(torch.randn(n, n_tokens, dim), torch.randn(n, dim, grid, grid))


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("n_tokens", [0, 2])
def test_decoding_many_objects_at_once_equals_sams_decoder_object_by_object(tiny_backbone, n_tokens, multimask_output):
    image_embeddings = torch.randn(3, 32, 4, 4)
    prompts = _prompts(tiny_backbone, n_tokens)
    embeddings = ImageEmbeddings(image_embeddings)
    prediction = tiny_backbone.decode(embeddings, IMAGE_INDEX, prompts, multimask_output=multimask_output)
    for row, image in enumerate(IMAGE_INDEX.tolist()):
        masks, ious = tiny_backbone.mask_decoder(
            image_embeddings=image_embeddings[image : image + 1],
            image_pe=tiny_backbone.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts.sparse_embeddings[row : row + 1],
            dense_prompt_embeddings=prompts.dense_embeddings[row : row + 1],
            multimask_output=multimask_output,
        )
        torch.testing.assert_close(prediction.low_res_masks[row], masks[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(prediction.iou_predictions[row], ious[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("decode_every", [SamBackbone.decode_every, Backbone.decode_every], ids=["one pass", "by default"])
def test_every_mask_is_the_single_one_and_then_the_candidates_to_the_bit(tiny_backbone, decode_every):
    passes = []
    tiny_backbone.mask_decoder.output_upscaling.register_forward_hook(lambda *_: passes.append(1))
    arguments = ImageEmbeddings(torch.randn(3, 32, 4, 4)), IMAGE_INDEX, _prompts(tiny_backbone, 2)
    found = decode_every(tiny_backbone, *arguments)
    assert len(passes) == (1 if decode_every is SamBackbone.decode_every else 2)
    apart = [tiny_backbone.decode(*arguments, multimask_output=several) for several in (False, True)]
    for name in ("low_res_masks", "iou_predictions"):
        assert torch.equal(getattr(found, name), torch.cat([getattr(each, name) for each in apart], dim=1)), name


def test_no_object_gives_no_mask(tiny_backbone):
    prompts = tiny_backbone.embed_prompts(0)
    prediction = tiny_backbone.decode(ImageEmbeddings(torch.randn(1, 32, 4, 4)), torch.zeros(0, dtype=torch.int64), prompts)
    assert prediction.low_res_masks.shape == (0, 1, 16, 16)


def test_encoding_equals_sams_preprocess_and_encoder(tiny_backbone):
    batch = make_batch(sizes=((40, 64), (64, 48)))
    sam = Sam(tiny_backbone.image_encoder, tiny_backbone.prompt_encoder, tiny_backbone.mask_decoder)
    images = [image[:, : f.input_size[0], : f.input_size[1]] for image, f in zip(batch.images, batch.frames, strict=True)]
    expected = sam.image_encoder(torch.stack([sam.preprocess(image) for image in images]))
    torch.testing.assert_close(encode(tiny_backbone, batch.images, batch.frames), expected, rtol=0, atol=1e-6)


def test_the_image_is_normalised_exactly_once_and_the_padding_is_zero(tiny_backbone):
    seen = []
    tiny_backbone.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.zeros(1, 3, 64, 64)
    images[..., :20, :] = 255
    encode(tiny_backbone, images, [Frame((40, 64), (40, 64))])
    # (0 - 123.675) / 58.395 in red and (255 - 103.53) / 57.375 in blue.
    assert seen[0].min().item() == pytest.approx(-2.1179, abs=1e-4)
    assert seen[0].max().item() == pytest.approx(2.6400, abs=1e-4)
    assert not seen[0][..., 40:, :].any()


def test_everything_is_frozen_by_default_and_no_graph_is_kept(tiny_backbone):
    batch = make_batch()
    tiny_backbone.train()
    image_embeddings = encode(tiny_backbone, batch.images, batch.frames)
    prediction = tiny_backbone.decode(ImageEmbeddings(image_embeddings), batch.image_index, tiny_backbone.embed_prompts(2))
    assert not any(p.requires_grad for p in tiny_backbone.parameters())
    assert not any(m.training for m in tiny_backbone.modules())
    assert not prediction.low_res_masks.requires_grad


def test_a_gradient_reaches_the_images_through_a_frozen_encoder(tiny_backbone):
    batch = make_batch()
    images = batch.images.clone().requires_grad_()
    encode(tiny_backbone, images, batch.frames).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny_backbone.parameters())


def test_a_gradient_reaches_the_prompt_through_a_frozen_decoder(tiny_backbone):
    dense = torch.randn(1, 32, 4, 4, requires_grad=True)
    prompts = PromptEmbeddings(torch.zeros(1, 0, 32), dense)
    embeddings = ImageEmbeddings(torch.randn(1, 32, 4, 4))
    tiny_backbone.decode(embeddings, torch.zeros(1, dtype=torch.int64), prompts).low_res_masks.sum().backward()
    assert dense.grad.abs().sum() > 0


def test_frozen_batch_norm_statistics_do_not_move_in_training():
    backbone = SamBackbone("random_lite_medsam", side=32, trainable=["mask_decoder"]).train()
    before = {name: buffer.clone() for name, buffer in backbone.image_encoder.named_buffers()}
    batch = make_batch(side=32, sizes=((32, 32),), rule=backbone.input_rule)
    encode(backbone, batch.images, batch.frames)
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.image_encoder.named_buffers())
    assert backbone.mask_decoder.transformer.training


@pytest.mark.parametrize(
    ("weights", "rule", "grid"),
    [
        ("random_lite_medsam", LITE_MEDSAM, 64),
        ("random_mobile_sam", SAM, 64),
        ("random_vit_b", InputRule(1024, grid=64), 64),
    ],
)
def test_the_input_rule_and_the_grid_come_with_the_weights(weights, rule, grid):
    with torch.device("meta"):
        backbone = SamBackbone(weights)
    assert backbone.input_rule == rule
    assert backbone.embedding_size == grid


def test_another_side_changes_the_rules_side_and_grid_alone():
    rule = SamBackbone("random_tiny", side=96).input_rule
    assert rule == InputRule(96, grid=6)


def test_box_prompts_are_sams_two_corner_tokens(tiny_backbone):
    boxes = torch.tensor([[3.0, 5.0, 40.0, 60.0]])
    prompts = tiny_backbone.embed_prompts(1, boxes=boxes)
    sparse, dense = tiny_backbone.prompt_encoder(points=None, boxes=boxes, masks=None)
    assert torch.equal(prompts.sparse_embeddings, sparse)
    assert torch.equal(prompts.dense_embeddings, dense)
    assert prompts.sparse_embeddings.shape[1] == 2


@pytest.mark.parametrize(("with_box", "n_tokens"), [(False, 4), (True, 5)])
def test_points_gain_a_padding_token_only_without_a_box(tiny_backbone, with_box, n_tokens):
    points = (torch.rand(2, 3, 2) * 64, torch.tensor([[1.0, 0.0, -1.0], [1.0, 1.0, 1.0]]))
    prompts = tiny_backbone.embed_prompts(2, points=points, boxes=torch.rand(2, 4) * 64 if with_box else None)
    assert prompts.sparse_embeddings.shape == (2, n_tokens, 32)
    not_a_point = tiny_backbone.prompt_encoder.not_a_point_embed.weight[0]
    assert torch.equal(prompts.sparse_embeddings[0, 2], not_a_point)
    assert torch.equal(prompts.sparse_embeddings[1, 3], not_a_point) is not with_box


def test_nothing_as_a_prompt_is_no_token_and_the_no_mask_embedding_everywhere(tiny_backbone):
    prompts = tiny_backbone.embed_prompts(3)
    assert prompts.sparse_embeddings.shape == (3, 0, 32)
    assert torch.equal(prompts.dense_embeddings, tiny_backbone.no_mask_embedding().expand(3, -1, 4, 4))


def test_a_mask_prompt_fills_the_dense_embedding(tiny_backbone):
    mask_inputs = torch.randn(2, 1, 16, 16)
    prompts = tiny_backbone.embed_prompts(2, mask_inputs=mask_inputs)
    assert torch.equal(prompts.dense_embeddings, tiny_backbone.prompt_encoder.mask_downscaling(mask_inputs))


def test_positions_keep_full_precision_under_autocast(tiny_backbone):
    boxes = torch.tensor([[3.0, 5.0, 40.0, 60.0]])
    expected, image_pe = tiny_backbone.embed_prompts(1, boxes=boxes).sparse_embeddings, tiny_backbone.image_pe()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiny_backbone.embed_prompts(1, boxes=boxes).sparse_embeddings, expected)
        assert torch.equal(tiny_backbone.image_pe(), image_pe)


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_state(tiny_backbone):
    before = torch.get_rng_state()
    torch.rand(7)
    moved = torch.get_rng_state()
    again, other = SamBackbone("random_tiny"), SamBackbone("random_tiny", seed=1)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(before, moved)
    same = {name: torch.equal(p, again.state_dict()[name]) for name, p in tiny_backbone.state_dict().items()}
    assert all(same.values())
    assert again.weights == tiny_backbone.weights
    assert other.weights.sha256 != again.weights.sha256
    assert not torch.equal(other.image_encoder.pos_embed, again.image_encoder.pos_embed)


def test_a_file_of_ones_own_is_loaded_and_identified_by_its_content(tmp_path):
    path = tmp_path / "mine.pth"
    other = SamBackbone("random_tiny", seed=9)
    torch.save({"model": {f"module.{k}": v for k, v in other.state_dict().items()}}, path)
    backbone = SamBackbone("random_tiny", checkpoint=str(path))
    assert torch.equal(backbone.image_encoder.pos_embed, other.image_encoder.pos_embed)
    assert backbone.weights.name == "mine.pth"
    assert backbone.weights.sha256 not in (other.weights.sha256, SamBackbone("random_tiny").weights.sha256)


def test_an_absent_file_of_ones_own_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.pth: there is no such file"):
        SamBackbone("random_tiny", checkpoint=str(tmp_path / "absent.pth"))


def test_an_unknown_name_lists_released_and_random_weights():
    with pytest.raises(RecipeError, match=r"'vit_b' is unknown. Known: lite_medsam, .*random_vit_b"):
        SamBackbone("vit_b")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"boxes": torch.zeros(2, 1, 4)}, r"boxes must have shape \(N, 4\).*N = 2, got \(2, 1, 4\). Use image_index"),
        ({"boxes": torch.zeros(3, 4)}, r"N = 2, got \(3, 4\)"),
        ({"points": (torch.zeros(2, 2), torch.zeros(2))}, r"points must be coordinates \(N, P, 2\).*got \(2, 2\) and \(2,\)"),
        ({"mask_inputs": torch.zeros(2, 16, 16)}, r"mask_inputs must be logits of shape \(N, 1, 16, 16\).*got \(2, 16, 16\)"),
    ],
)
def test_a_prompt_of_another_shape_is_refused_with_both_shapes(tiny_backbone, prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny_backbone.embed_prompts(2, **prompt)


def test_images_of_another_side_and_missing_frames_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        encode(tiny_backbone, torch.zeros(1, 3, 32, 32), [Frame((32, 32), (32, 32))])
    with pytest.raises(ValueError, match="frames must be one an image, got 0 for 1 images"):
        encode(tiny_backbone, torch.zeros(1, 3, 64, 64), [])


def test_embeddings_of_another_grid_and_prompts_of_other_rows_are_refused(tiny_backbone):
    index = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"image_embeddings must have shape \(B, 32, 4, 4\), got \(1, 32, 8, 8\)"):
        tiny_backbone.decode(ImageEmbeddings(torch.zeros(1, 32, 8, 8)), index, tiny_backbone.embed_prompts(1))
    with pytest.raises(ValueError, match=r"with N = 1 as image_index, got \(2, 0, 32\)"):
        tiny_backbone.decode(ImageEmbeddings(torch.zeros(1, 32, 4, 4)), index, tiny_backbone.embed_prompts(2))
