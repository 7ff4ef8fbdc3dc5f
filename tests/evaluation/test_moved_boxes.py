import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.evaluation.moved_boxes import asks_with_boxes, move_boxes, score_moved_boxes
from medsam_tune.prompts import BoxPrompt, PointPrompt
from medsam_tune.prompts.combined import CombinedPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.segmenters.sam import SamSegmenter
from tests.factories import make_batch, one_image


def segmenter_of(prompts, kind=SamSegmenter):
    return kind(SamParts(SamBackbone("random_tiny"), prompts)).eval()


def test_only_boxes_that_a_user_draws_are_moved():
    batch = make_batch()
    asked = [None, BoxPrompt("whole_image"), PointPrompt(), BoxPrompt(), CombinedPrompt([PointPrompt(), BoxPrompt()])]
    assert [asks_with_boxes(segmenter_of(prompts), batch) for prompts in asked] == [False, False, False, True, True]


def test_every_side_moves_by_the_share_of_its_box_or_ends_at_the_image():
    batch = make_batch(sizes=((64, 64), (50, 64)), objects=(3, 2))
    exact = BoxPrompt().boxes(batch)
    moved = move_boxes(segmenter_of(BoxPrompt()), batch, 0.25).queries.boxes
    sides = (exact[:, 2:] - exact[:, :2]).repeat(1, 2)
    moves = (moved - exact).abs()
    # The jitter's rule counts the pixels of a side: one more than the difference of its ends.
    free = (moved > 0) & (moved < 63)
    assert ((moves[free] - 0.25 * (sides[free] + 1)).abs() < 0.3).all()
    assert (moves > 0).any()


def test_points_beside_the_boxes_stay_where_they_are():
    batch, segmenter = make_batch(), segmenter_of(CombinedPrompt([PointPrompt(), BoxPrompt()]))
    assert torch.equal(move_boxes(segmenter, batch, 0.2).queries.point_coords, segmenter.ask(batch).point_coords)


def test_boxes_and_scores_are_the_same_in_every_batch():
    batch, segmenter = make_batch(sizes=((64, 64), (50, 64)), objects=(3, 2)), segmenter_of(BoxPrompt())
    together = move_boxes(segmenter, batch, 0.1).queries.boxes
    alone = [move_boxes(segmenter, one_image(batch, row), 0.1).queries.boxes for row in range(2)]
    assert torch.equal(together, torch.cat(alone))
    scores = [
        score_moved_boxes({"tuned": segmenter, "same": segmenter}, batches, share=0.1)
        for batches in ([batch], [one_image(batch, 0), one_image(batch, 1)])
    ]
    assert scores[0]["tuned"].dice.tolist() == scores[1]["tuned"].dice.tolist() == scores[0]["same"].dice.tolist()


def test_rounds_of_clicks_follow_a_moved_box():
    batch = make_batch()
    segmenter = segmenter_of(BoxPrompt(), InteractiveSegmenter)
    moved = move_boxes(segmenter, batch, 0.2)
    given = segmenter.given(moved)
    assert torch.equal(given.boxes, moved.queries.boxes)
    assert given.point_labels.shape[1] == segmenter.eval_rounds - 1
