"""Rules of selection, all on the same candidates."""

import numpy as np
import pytest

from medsam_tune.protocols.selection import Candidates, choose, join


def candidates(ious=(0.9, 0.1, 0.8, 0.3), size=4):
    masks = np.zeros((4, 1, size), bool)
    for row in range(4):
        masks[row, 0, : row + 1] = True
    return Candidates(masks, None if ious is None else np.array(ious))


def test_each_rule_takes_its_own_and_none_but_token0_takes_the_single_mask():
    # The single mask is the best and the surest of all four: no rule among the three may take it.
    scores = [1.0, 0.2, 0.1, 0.7]
    assert {rule: choose(rule, candidates(), scores) for rule in candidates().rules()} == {
        "token0": 0,
        "first": 1,
        "pred_iou": 2,
        "oracle": 3,
    }


def test_only_the_oracle_reads_the_truth():
    asked = candidates()
    for rule in ("token0", "first", "pred_iou"):
        assert choose(rule, asked, [0, 0, 0, 1]) == choose(rule, asked, [1, 1, 0, 0])
    assert choose("oracle", asked, [0, 0, 0, 1]) != choose("oracle", asked, [0, 1, 0, 0])


def test_a_network_with_one_mask_has_one_rule():
    single = Candidates(np.ones((1, 2, 2), bool), None)
    assert single.rules() == ("token0",)
    with pytest.raises(ValueError, match="rule must be one of token0, got oracle"):
        choose("oracle", single, [1.0])
    assert "pred_iou" not in candidates(None).rules()


def test_boxes_are_joined_candidate_by_candidate():
    """In mode 4 the slot is chosen after the masks of all boxes are joined."""
    first, second = candidates(), Candidates(candidates().masks[:, :, ::-1], np.array([0.1, 0.3, 0.2, 0.1]))
    joined = join([first, second])
    assert joined.masks[0, 0].tolist() == [True, False, False, True]
    assert joined.predicted_iou.tolist() == pytest.approx([0.5, 0.2, 0.5, 0.2])
    assert join([first]) is first
