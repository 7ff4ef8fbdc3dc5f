"""Boxes: tight, empty, whole image."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import masks_to_boxes

from medsam_tune.errors import RecipeError
from medsam_tune.masks import ObjectMasks
from medsam_tune.prompts import BoxJitter, BoxPrompt
from medsam_tune.prompts.sampling import tight_boxes
from tests.factories import embed, make_batch, with_masks


def test_tight_box_ends_at_the_last_column_and_row():
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:5, 1:7] = True
    assert tight_boxes(ObjectMasks.of(masks[:, 0]), torch.zeros(1, 4)).tolist() == [[1.0, 2.0, 6.0, 4.0]]


def test_tight_boxes_are_torchvisions():
    masks = torch.rand(20, 1, 16, 16) > 0.97
    masks = masks[masks.flatten(1).any(1)]
    assert torch.equal(
        tight_boxes(ObjectMasks.of(masks[:, 0]), torch.zeros(len(masks), 4)), masks_to_boxes(masks[:, 0]).float()
    )


def test_whole_image_box_is_the_valid_area():
    # 40 x 64 fills the side of 64 in width; 64 x 48 in height.
    boxes = BoxPrompt("whole_image").boxes(make_batch(sizes=((40, 64), (64, 48)), objects=(2, 1)))
    assert boxes.tolist() == [[0, 0, 63, 39], [0, 0, 63, 39], [0, 0, 47, 63]]


def test_object_without_foreground_gets_the_whole_image():
    batch = make_batch(sizes=((40, 64), (64, 48)))
    first, second = batch.original_masks
    none = torch.zeros_like(second.dense())
    batch = with_masks(batch, torch.stack([batch.masks[0], torch.zeros_like(batch.masks[1])]), (first, none))
    boxes = BoxPrompt("tight").boxes(batch)
    assert boxes[1].tolist() == [0, 0, 47, 63]
    assert boxes[0].tolist() == masks_to_boxes(batch.masks[0]).tolist()[0]


def test_box_reaches_the_prompt_encoder(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    source = BoxPrompt()
    prompts = embed(source.draw(batch, mask_side=16), batch, tiny_backbone)
    expected = tiny_backbone.embed_prompts(3, boxes=source.boxes(batch))
    assert torch.equal(prompts.sparse_embeddings, expected.sparse_embeddings)
    assert torch.equal(prompts.dense_embeddings, expected.dense_embeddings)


def test_box_moves_in_training_and_is_tight_in_evaluation():
    batch = make_batch(objects=(2, 1))
    source = BoxPrompt(jitter=BoxJitter(20, low=1))
    tight = masks_to_boxes(batch.masks[:, 0]).float()
    assert torch.equal(source.boxes(batch), tight)
    moved = source.boxes(replace(batch, training=True))
    assert (moved[:, :2] < tight[:, :2]).all()
    assert (moved[:, 2:] > tight[:, 2:]).any()


def test_box_stays_in_the_valid_area():
    batch = replace(make_batch(sizes=((40, 64), (64, 48)), objects=(3, 3)), training=True)
    boxes = BoxPrompt(jitter=BoxJitter(60, low=60)).boxes(batch)
    assert boxes.tolist() == [[0, 0, 63, 39]] * 3 + [[0, 0, 47, 63]] * 3


def test_training_boxes_change_with_the_epoch_and_evaluation_boxes_do_not():
    batch = make_batch()
    source = BoxPrompt(jitter=BoxJitter(20), eval_jitter=BoxJitter(0.2, unit="fraction", signed=True))
    first, second = (source.boxes(replace(batch, epoch=epoch)) for epoch in (0, 1))
    assert torch.equal(first, second)
    first, second = (source.boxes(replace(batch, epoch=epoch, training=True)) for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_one_pixel_object_has_a_box_of_one_pixel():
    batch = make_batch(sizes=((64, 64),))
    masks = torch.zeros_like(batch.masks)
    masks[0, 0, 5, 9] = True
    assert BoxPrompt().boxes(with_masks(batch, masks)).tolist() == [[9, 5, 9, 5]]


def test_jitter_of_the_whole_image_is_refused():
    with pytest.raises(RecipeError, match="set kind: tight"):
        BoxPrompt("whole_image", jitter=BoxJitter(5))
