"""Boxes: tight, empty, whole image."""

import torch
from torchvision.ops import masks_to_boxes

from medsam_tune.prompts import BoxPrompt
from medsam_tune.prompts.box import tight_boxes
from tests.factories import make_batch


def test_tight_box_ends_at_the_last_column_and_row():
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:5, 1:7] = True
    assert tight_boxes(masks, torch.zeros(1, 4)).tolist() == [[1.0, 2.0, 6.0, 4.0]]


def test_tight_boxes_are_torchvisions():
    masks = torch.rand(20, 1, 16, 16) > 0.97
    masks = masks[masks.flatten(1).any(1)]
    assert torch.equal(tight_boxes(masks, torch.zeros(len(masks), 4)), masks_to_boxes(masks[:, 0]).float())


def test_whole_image_box_is_the_valid_area():
    # 40 x 64 fills the side of 64 in width; 64 x 48 in height.
    boxes = BoxPrompt("whole_image").boxes(make_batch(sizes=((40, 64), (64, 48)), objects=(2, 1)))
    assert boxes.tolist() == [[0, 0, 63, 39], [0, 0, 63, 39], [0, 0, 47, 63]]


def test_object_without_foreground_gets_the_whole_image():
    batch = make_batch(sizes=((40, 64), (64, 48)))
    batch.masks[1] = False
    boxes = BoxPrompt("tight").boxes(batch)
    assert boxes[1].tolist() == [0, 0, 47, 63]
    assert boxes[0].tolist() == masks_to_boxes(batch.masks[0]).tolist()[0]


def test_box_reaches_the_prompt_encoder(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    source = BoxPrompt()
    prompts = source(batch, torch.zeros(2, 32, 4, 4), tiny_backbone)
    expected = tiny_backbone.embed_prompts(3, boxes=source.boxes(batch))
    assert torch.equal(prompts.sparse_embeddings, expected.sparse_embeddings)
    assert torch.equal(prompts.dense_embeddings, expected.dense_embeddings)


def test_boxes_have_nothing_to_train():
    assert list(BoxPrompt().parameters()) == []
