"""Clicks: inside, of their own image, padded, and what SAM's prompt encoder receives."""

from dataclasses import replace

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.prompts import PointPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from tests.factories import embed, make_batch, one_image, with_masks


def _points(sampler, batch):
    queries = sampler.draw(batch, mask_side=16)
    return queries.point_coords, queries.point_labels


def test_points_lie_on_their_own_object():
    batch = replace(make_batch(objects=(2, 1)), training=True)
    coords, labels = _points(PointPrompt(3, 2), batch)
    for row in range(3):
        on_object = [bool(batch.masks[row, 0, int(y), int(x)]) for x, y in coords[row].tolist()]
        assert on_object == labels[row].bool().tolist() == [True] * 3 + [False] * 2


def test_batch_equals_the_loop_over_images():
    batch = replace(make_batch(objects=(2, 3)), training=True, epoch=4)
    together = _points(PointPrompt(2, 2), batch)
    alone = [_points(PointPrompt(2, 2), one_image(batch, row)) for row in (0, 1)]
    for both, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(both, torch.cat(parts))


def test_prompts_of_one_image_do_not_reach_another(tiny_backbone):
    batch = replace(make_batch(objects=(2, 2)), training=True)
    segmenter = SamSegmenter(SamParts(tiny_backbone, PointPrompt(2, 1))).eval()
    with torch.no_grad():
        together = segmenter(batch).low_res_masks
        alone = torch.cat([segmenter(one_image(batch, row)).low_res_masks for row in (0, 1)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_training_points_change_with_the_epoch_and_evaluation_points_do_not():
    batch = make_batch()
    sampler = PointPrompt(rule="random", eval_rule="random")

    def points(**changes):
        return _points(sampler, replace(batch, **changes))[0]

    assert not torch.equal(points(training=True, epoch=0), points(training=True, epoch=1))
    assert torch.equal(points(epoch=0), points(epoch=1))


def test_evaluation_takes_its_own_rule():
    # Row 8 to 28, column 8 to 28 of a square object: the farthest pixel from the background is its middle.
    batch = make_batch(sizes=((64, 64),))
    rows, columns = batch.masks[0, 0].nonzero().T
    middle = [float(columns.min() + columns.max()) / 2, float(rows.min() + rows.max()) / 2]
    assert _points(PointPrompt(eval_rule="distance"), batch)[0][0, 0].tolist() == middle


def test_object_without_foreground_gets_padding_for_its_foreground_points():
    batch = make_batch()
    empty = with_masks(batch, torch.zeros_like(batch.masks), tuple(torch.zeros_like(m.dense()) for m in batch.original_masks))
    assert _points(PointPrompt(2, 1), empty)[1].tolist() == [[0.0, -1.0, -1.0]] * 2


def test_points_reach_the_prompt_encoder(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    sampler = PointPrompt(2, 1)
    prompts = embed(sampler.draw(batch, mask_side=16), batch, tiny_backbone)
    expected = tiny_backbone.embed_prompts(3, points=_points(sampler, batch))
    assert torch.equal(prompts.sparse_embeddings, expected.sparse_embeddings)


def test_batch_without_objects_gives_no_prompt(tiny_backbone):
    batch = make_batch(objects=(0, 0))
    assert embed(PointPrompt().draw(batch, mask_side=16), batch, tiny_backbone).sparse_embeddings.shape[0] == 0


@pytest.mark.parametrize(("positives", "negatives"), [(0, 0), (-1, 2)])
def test_impossible_numbers_of_points_are_refused(positives, negatives):
    with pytest.raises(RecipeError, match=r"For no prompt leave model\.prompts out"):
        PointPrompt(positives, negatives)


def test_no_point_lies_where_nobody_annotated():
    batch = make_batch(sizes=((64, 64), (64, 64)))
    ignored = ~batch.masks.clone()
    ignored[:, :, 30:36] = False  # all background that is known
    partly = replace(batch, ignored=ignored, training=True)
    coords, labels = _points(PointPrompt(1, 4), partly)
    for row in range(2):
        for (x, y), label in zip(coords[row].tolist(), labels[row].tolist(), strict=True):
            assert not ignored[row, 0, int(y), int(x)]
            assert (30 <= y < 36) is (label == 0)
    assert labels.tolist() == [[1, 0, 0, 0, 0]] * 2
