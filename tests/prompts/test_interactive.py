"""Corrective clicks: in the error, labelled with the truth, repeatable, and of their own object only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_tune.errors import RecipeError
from medsam_tune.prompt_encoders import SamPromptEncoder
from medsam_tune.prompts import BoxPrompt, OneOfPrompt, PointPrompt
from medsam_tune.prompts.interactive import Clicks, click_on_error, corrective_clicks, rounds_without_clicks
from tests.factories import make_batch, one_image, with_masks

SIDE = 24
REGION = np.zeros((SIDE, SIDE), bool)
REGION[:20] = True
RULES = ("any", "random", "centre")


def _mask(*boxes):
    mask = np.zeros((SIDE, SIDE), bool)
    for y1, x1, y2, x2 in boxes:
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def _blobs(seed):
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    return ndimage.gaussian_filter(noise, 2) > 0.02


def _click(predicted, truth, *, count=1, rule="centre", seed=0, region=REGION):
    rng = np.random.default_rng(seed)
    return click_on_error(predicted, truth, region, count=count, rule=rule, rng=rng)


def _training_batch(**settings):
    return replace(make_batch(**settings), training=True)


def _logits(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch.n_objects, 1, 16, 16, generator=generator)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 4])
def test_click_lies_in_the_error_and_says_what_is_true_there(rule, count):
    for seed in range(40):
        predicted, truth = _blobs(seed), _blobs(seed + 1000)
        points = _click(predicted, truth, count=count, rule=rule, seed=seed)
        assert len(points) == count
        for x, y, label in points:
            assert predicted[y, x] != truth[y, x]
            assert REGION[y, x]
            assert label == truth[y, x]


def test_missed_object_gets_a_positive_click_and_an_invented_one_a_negative_click():
    square = _mask((4, 6, 8, 10))
    assert _click(_mask(), square) == [(8, 6, 1)]
    assert _click(square, _mask()) == [(8, 6, 0)]


def test_any_wrong_pixel_is_clicked_under_the_rule_any():
    predicted, truth = _mask((2, 2, 2, 4)), _mask((10, 10, 10, 10))
    found = {_click(predicted, truth, rule="any", seed=seed)[0] for seed in range(100)}
    assert found == {(2, 2, 0), (3, 2, 0), (4, 2, 0), (10, 10, 1)}


def test_random_reaches_every_pixel_of_the_largest_region_and_no_other():
    truth = _mask((2, 2, 3, 4), (10, 10, 11, 11))
    found = {_click(_mask(), truth, rule="random", seed=seed)[0][:2] for seed in range(200)}
    assert found == {(x, y) for x in (2, 3, 4) for y in (2, 3)}


@pytest.mark.parametrize("seed", range(5))
def test_centre_is_farthest_from_the_border_of_the_largest_region(seed):
    predicted, truth = _mask(), _blobs(seed) & REGION
    parts, _ = ndimage.label(truth, structure=np.ones((3, 3)))
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    distance = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    ((x, y, label),) = _click(predicted, truth)
    assert distance[y, x] == distance.max()
    assert label == 1


def test_missed_and_superfluous_pixels_side_by_side_are_two_regions():
    # 3 x 3 missed pixels touch 3 x 4 superfluous ones: together the middle would lie on their border.
    predicted, truth = _mask((4, 4, 6, 7)), _mask((4, 1, 6, 3))
    ((x, y, label),) = _click(predicted, truth)
    assert label == 0
    assert (x, y) in {(5, 5), (6, 5)}


def test_further_clicks_go_to_the_next_largest_regions_and_then_round_again():
    truth = _mask((0, 0, 4, 4), (0, 10, 2, 12))
    points = _click(_mask((10, 10, 10, 10)), truth, count=5)
    assert points[:3] == [(2, 2, 1), (11, 1, 1), (10, 10, 0)]
    assert truth[:5, :5][points[3][1], points[3][0]]
    assert points[4][0] in range(10, 13)


@pytest.mark.parametrize("rule", RULES)
def test_correct_object_is_confirmed_by_a_click_on_itself(rule):
    truth = _mask((3, 3, 9, 5))
    for seed in range(20):
        for x, y, label in _click(truth, truth, count=3, rule=rule, seed=seed):
            assert truth[y, x]
            assert label == 1


@pytest.mark.parametrize("rule", RULES)
def test_correctly_empty_object_is_confirmed_by_clicks_on_the_background(rule):
    for seed in range(20):
        points = _click(_mask(), _mask(), count=3, rule=rule, seed=seed)
        assert all(label == 0 and REGION[y, x] for x, y, label in points)


def test_error_in_the_padding_is_no_error():
    truth = _mask((3, 3, 5, 5))
    assert _click(truth | _mask((21, 0, 23, 23)), truth) == [(4, 4, 1)]


def test_clicks_of_a_batch_lie_where_the_upscaled_logits_differ_from_the_truth():
    batch = _training_batch(objects=(2, 1))
    logits = _logits(batch)
    clicks = corrective_clicks(logits, batch, click_round=1, counts=(1, 3), rule="any")
    predicted = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)[:, 0] > 0
    assert clicks.coords.shape == (3, 3, 2)
    assert set((clicks.labels >= 0).sum(dim=1).tolist()) <= {1, 3}
    for row in range(3):
        for (x, y), label in zip(clicks.coords[row].long().tolist(), clicks.labels[row].tolist(), strict=True):
            if label >= 0:
                assert predicted[row, y, x] != batch.masks[row, 0, y, x]
                assert bool(label) == bool(batch.masks[row, 0, y, x])


def test_clicks_depend_on_seed_epoch_and_round_and_repeat_otherwise():
    batch = _training_batch(objects=(2, 1))
    logits = _logits(batch)

    def coords(batch=batch, seed=0, click_round=1):
        batch = replace(batch, seed=seed)
        return corrective_clicks(logits, batch, click_round=click_round, counts=(1,), rule="any").coords

    assert torch.equal(coords(), coords())
    others = [coords(seed=1), coords(click_round=2), coords(replace(batch, epoch=1))]
    assert not any(torch.equal(coords(), other) for other in others)
    evaluated = [coords(replace(batch, training=False, epoch=epoch)) for epoch in (0, 7)]
    assert torch.equal(*evaluated)


def test_clicks_of_an_image_are_the_same_in_any_batch():
    batch = _training_batch(sizes=((40, 64), (64, 48), (30, 30)))
    logits = _logits(batch)
    settings = {"click_round": 2, "counts": (1, 3, 5), "rule": "random"}
    together = corrective_clicks(logits, batch, **settings)
    for row in range(3):
        alone = corrective_clicks(logits[row : row + 1], one_image(batch, row), **settings)
        assert torch.equal(alone.coords[0], together.coords[row])
        assert torch.equal(alone.labels[0], together.labels[row])


def test_object_that_vanished_in_the_input_frame_is_still_clicked():
    batch = _training_batch(sizes=((64, 64),))
    batch = with_masks(batch, torch.zeros_like(batch.masks))
    clicks = corrective_clicks(torch.full((1, 1, 16, 16), -9.0), batch, click_round=1, counts=(1,), rule="centre")
    assert clicks.labels.tolist() == [[1.0]]


def test_objects_with_as_many_clicks_stand_together_without_filling():
    coords = torch.arange(12.0).view(2, 3, 2)
    clicks = Clicks(coords, torch.tensor([[1.0, -1, 0], [1, -1, -1]]))
    (one_rows, one), (two_rows, two) = clicks.by_count()
    assert one_rows.tolist() == [1]
    assert one.coords.tolist() == [[[6, 7]]]
    assert two_rows.tolist() == [0]
    assert two.coords.tolist() == [[[0, 1], [4, 5]]]
    assert two.labels.tolist() == [[1, 0]]


def test_withheld_clicks_are_gone_for_these_objects_only():
    clicks = Clicks(torch.zeros(2, 1, 2), torch.ones(2, 1)).withheld(torch.tensor([True, False]))
    assert [(rows.tolist(), given.labels.shape[1]) for rows, given in clicks.by_count()] == [([0], 0), ([1], 1)]


def test_sam_med2d_shows_the_mask_alone_in_the_last_round_and_in_one_between_the_second_clicks_and_the_last():
    found = set()
    for epoch in range(60):
        silent = rounds_without_clicks(replace(_training_batch(), epoch=epoch), rounds=9, count=2)
        assert silent[:, 8].all()
        assert silent.sum(dim=1).tolist() == [2, 2]
        found |= set(silent[:, :8].nonzero()[:, 1].tolist())
    # Their `randint(1, 7)` of eight iterations after the first prompt: the second to the seventh.
    assert found == {2, 3, 4, 5, 6, 7}


def test_no_round_is_silent_by_default():
    assert not rounds_without_clicks(_training_batch(), rounds=2, count=0).any()


def _embeddings(sampler, batch, backbone):
    queries, inputs = sampler.draw(batch, mask_side=16), batch.encoder_input()
    return SamPromptEncoder()(queries, inputs, backbone.encode(inputs), backbone).sparse_embeddings


def test_one_of_several_prompts_is_chosen_for_each_object_anew_in_each_epoch(tiny_backbone):
    box, point = BoxPrompt(), PointPrompt()
    chosen = set()
    for epoch in range(8):
        batch = replace(_training_batch(objects=(3, 2)), epoch=epoch)
        parts = torch.stack([_embeddings(source, batch, tiny_backbone) for source in (box, point)])
        rows = _embeddings(OneOfPrompt([box, point]), batch, tiny_backbone)
        same = (parts == rows).flatten(2).all(dim=2)
        assert same.sum(dim=0).tolist() == [1] * 5
        chosen.add(tuple(same.int().argmax(dim=0).tolist()))
    assert len(chosen) > 4


def test_evaluation_takes_the_first_of_several_prompts(tiny_backbone):
    batch = make_batch()
    source = OneOfPrompt([BoxPrompt(), PointPrompt()])
    assert torch.equal(_embeddings(source, batch, tiny_backbone), _embeddings(BoxPrompt(), batch, tiny_backbone))


def test_prompts_with_unequal_numbers_of_tokens_are_refused(tiny_backbone):
    with pytest.raises(RecipeError, match=r"A box goes with PointPrompt\(positives: 1\)"):
        _embeddings(OneOfPrompt([BoxPrompt(), PointPrompt(2)]), _training_batch(), tiny_backbone)


def test_choice_among_one_is_refused():
    with pytest.raises(RecipeError, match=r"Name the only one as model\.prompts itself"):
        OneOfPrompt([BoxPrompt()])


def test_choice_reads_the_truth_where_a_part_does():
    assert OneOfPrompt([BoxPrompt("whole_image"), PointPrompt()]).reads_truth()
    assert not OneOfPrompt([BoxPrompt("whole_image"), BoxPrompt("whole_image")]).reads_truth()
