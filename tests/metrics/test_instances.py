import contextlib
import io
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medsam_tune.metrics.instances import (
    THRESHOLDS,
    accuracy,
    aggregated_jaccard,
    coco_average_precision,
    f1,
    match_instances,
    panoptic_quality,
)


def strips(*spans, length=20):
    """Masks of one row that run from a column to before another."""
    masks = torch.zeros(len(spans), 1, length, dtype=torch.bool)
    for row, (start, stop) in enumerate(spans):
        masks[row, 0, start:stop] = True
    return masks


TRUE = strips((0, 4), (5, 10), (12, 16))
# IoU 3/4 and 3/5 with the first two, nothing with the third; one mask of 3 pixels where nothing is.
FOUND = strips((0, 3), (5, 8), (17, 20))


def test_hand_computed_figures():
    matches = [match_instances(FOUND, TRUE)]
    # 0.75 counts up to the threshold 0.75, 0.6 up to 0.6.
    assert matches[0].n_matched.tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0, 0]
    # TP 2, FP 1, FN 1 at 0.5; TP 1, FP 2, FN 2 at 0.7.
    assert accuracy(matches)[[0, 4]] == pytest.approx([2 / 4, 1 / 5])
    assert f1(matches)[[0, 4]] == pytest.approx([4 / 6, 2 / 6])
    assert panoptic_quality(matches) == pytest.approx((0.75 + 0.6) / 3)
    # Shared 3 + 3; joined 4 + 5, the third object's 4 pixels and the last mask's 3.
    assert aggregated_jaccard(matches) == pytest.approx(6 / 16)


def test_figures_of_several_images_come_from_their_counts_together():
    empty = match_instances(strips(), strips())
    missed = match_instances(strips(), strips((0, 5)))
    invented = match_instances(strips((0, 5)), strips())
    matches = [match_instances(FOUND, TRUE), empty, missed, invented]
    assert accuracy(matches)[0] == pytest.approx(2 / (4 + 4 - 2))
    assert panoptic_quality(matches) == pytest.approx(1.35 / 4)
    assert aggregated_jaccard(matches) == pytest.approx(6 / 26)
    assert np.isnan([accuracy([empty])[0], f1([empty])[0], panoptic_quality([empty]), aggregated_jaccard([empty])]).all()
    assert np.isnan(coco_average_precision([invented])).all()


def test_panoptic_quality_asks_for_more_than_half_and_the_others_for_half():
    matches = [match_instances(strips((0, 2)), strips((0, 4)))]
    assert f1(matches)[0] == 1
    assert panoptic_quality(matches) == 0


def test_an_overlapping_mask_is_matched_once():
    twice = match_instances(strips((0, 4), (0, 4)), strips((0, 4), (10, 14)))
    assert twice.n_matched.tolist() == [1] * 10
    assert twice.hits.sum(axis=0).tolist() == [1] * 10


def test_the_order_of_scores_changes_coco_average_precision_and_nothing_else():
    sure, unsure = (match_instances(FOUND, TRUE, torch.tensor(scores)) for scores in ([0.9, 0.8, 0.1], [0.1, 0.2, 0.9]))
    # Precision 1, 1, 2/3 at recalls 1/3, 2/3: 67 of 101 recalls are reached with precision 1.
    assert coco_average_precision([sure])[0] == pytest.approx(67 / 101)
    # The wrong mask first: best precision 2/3 up to recall 2/3.
    assert coco_average_precision([unsure])[0] == pytest.approx(67 / 101 * 2 / 3)
    assert accuracy([sure]).tolist() == accuracy([unsure]).tolist()


@pytest.fixture(scope="module")
def images():
    """Eight images of up to six rectangles, and up to seven moved ones with scores."""
    random = np.random.default_rng(3)

    def boxes(n):
        return [(*random.integers(0, 20, 2), *random.integers(4, 12, 2)) for _ in range(n)]

    def drawn(places):
        masks = torch.zeros(len(places), 32, 32, dtype=torch.bool)
        for row, (top, left, height, width) in enumerate(places):
            masks[row, top : top + height, left : left + width] = True
        return masks

    found = []
    for _ in range(8):
        true = boxes(random.integers(1, 7))
        moved = [(top + random.integers(-1, 2), left + random.integers(-1, 2), h, w) for top, left, h, w in true[1:]]
        moved = [(max(0, top), max(0, left), h, w) for top, left, h, w in moved] + boxes(random.integers(0, 3))
        found.append((drawn(moved), drawn(true), torch.from_numpy(random.random(len(moved)))))
    return found


def test_coco_average_precision_is_that_of_the_official_evaluation(images):
    def runs(mask):
        return coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    truth, answers = [], []
    for number, (found, true, scores) in enumerate(images):
        for mask in true:
            area = int(mask.sum())
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": area,
                    "segmentation": runs(mask),
                }
            )
        answers += [
            {"image_id": number, "category_id": 1, "score": float(score), "segmentation": runs(mask)}
            for mask, score in zip(found, scores, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": number, "height": 32, "width": 32} for number in range(len(images))],
            "annotations": truth,
            "categories": [{"id": 1, "name": "object"}],
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(answers), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    expected = evaluation.eval["precision"][:, :, 0, 0, 2].mean(axis=1)
    matches = [match_instances(found, true, scores) for found, true, scores in images]
    assert coco_average_precision(matches) == pytest.approx(expected)


def test_counts_are_those_of_trying_every_matching(images):
    for found, true, _ in images:
        iou = np.array([[float((p & t).sum() / (p | t).sum()) for t in true] for p in found]).reshape(len(found), len(true))
        matches = match_instances(found, true)
        for threshold, n_matched in zip(THRESHOLDS, matches.n_matched, strict=True):
            assert n_matched == most_pairs(iou >= threshold - 1e-9)


def most_pairs(allowed):
    n_rows, n_columns = allowed.shape
    for size in range(min(allowed.shape), 0, -1):
        for rows in combinations(range(n_rows), size):
            for columns in permutations(range(n_columns), size):
                if all(allowed[row, column] for row, column in zip(rows, columns, strict=True)):
                    return size
    return 0


def test_aggregated_jaccard_is_the_papers_loop(images):
    shared = joined = 0
    for found, true, _ in images:
        used = set()
        for t in true:
            overlaps = [int((p & t).sum()) / int((p | t).sum()) for p in found]
            best = int(np.argmax(overlaps)) if overlaps and max(overlaps) > 0 else None
            if best is None:
                joined += int(t.sum())
                continue
            used.add(best)
            shared += int((found[best] & t).sum())
            joined += int((found[best] | t).sum())
        joined += sum(int(p.sum()) for number, p in enumerate(found) if number not in used)
    matches = [match_instances(found, true) for found, true, _ in images]
    assert aggregated_jaccard(matches) == pytest.approx(shared / joined)


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"masks must have one size, got \(1, 20\) and \(1, 9\)"):
        match_instances(strips((0, 3)), strips((0, 3), length=9))
