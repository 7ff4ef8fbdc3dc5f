"""Rounds of corrective clicks: what each round sees, what learns from it, and what an evaluation or a new image gets."""

from dataclasses import replace

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.losses import BceDiceLoss, IouHeadLoss
from medsam_tune.prompts import BoxPrompt, OneOfPrompt, PointPrompt
from medsam_tune.prompts.interactive import corrective_clicks, rounds_without_clicks
from medsam_tune.segmenters import InteractiveSegmenter, SamParts, SamSegmenter
from medsam_tune.types import ImageEmbeddings
from tests.factories import encode, make_batch, one_image, with_masks

BOX = BoxPrompt()
SIZES = ((40, 64), (64, 48), (30, 30))
SAM_MED2D = {
    "rounds": 9,
    "clicks": (1, 3, 5, 9),
    "rule": "any",
    "keep": "last",
    "mask_feedback": "probs",
    "mask_only_rounds": 2,
    "encoder_rounds": "first",
}


def _segmenter(prompts=BOX, *, trainable=("mask_decoder",), kind=InteractiveSegmenter, **settings):
    limit = settings.pop("objects_per_decode", 0)
    parts = SamParts(SamBackbone("random_tiny", trainable=trainable), prompts, objects_per_decode=limit)
    return kind(parts, **settings).train()


def _training_batch(**settings):
    return replace(make_batch(**settings), training=True)


def _gradients(segmenter, terms):
    segmenter.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    return {name: p.grad.clone() for name, p in segmenter.named_parameters() if p.grad is not None}


def _sum(terms):
    return torch.stack(list(terms.values())).sum()


def _hand_loop(segmenter, batch, rounds):
    """SAM's rounds written out with its own prompt encoder: all prompts of an object in one call."""
    backbone, boxes = segmenter.backbone, segmenter.prompts.boxes(batch)
    embeddings = encode(backbone, batch.images, batch.frames)
    points, predictions, mask_inputs = None, [], None
    for number in range(rounds):
        if number:
            mask_inputs = predictions[-1].low_res_masks.detach()
            new = corrective_clicks(mask_inputs, batch, click_round=number, counts=(1,), rule="random")
            given = (new.coords, new.labels)
            points = given if points is None else tuple(torch.cat(pair, dim=1) for pair in zip(points, given, strict=True))
        prompts = backbone.embed_prompts(batch.n_objects, points=points, boxes=boxes, mask_inputs=mask_inputs)
        predictions.append(backbone.decode(ImageEmbeddings(embeddings), batch.image_index, prompts))
    return predictions


def test_rounds_are_those_of_a_loop_over_sams_own_parts():
    segmenter, batch = _segmenter(rounds=4), _training_batch(objects=(2, 1))
    for got, expected in zip(segmenter.rounds_of(batch), _hand_loop(segmenter, batch, 4), strict=True):
        torch.testing.assert_close(got.low_res_masks, expected.low_res_masks, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.iou_predictions, expected.iou_predictions, atol=1e-5, rtol=1e-4)


def test_one_backward_pass_gives_the_sum_of_the_rounds_gradients():
    segmenter, batch, loss = _segmenter(rounds=3), _training_batch(), BceDiceLoss()
    got = _gradients(segmenter, segmenter.training_losses(batch, loss))
    expected: dict[str, torch.Tensor] = {}
    for prediction in _hand_loop(segmenter, batch, 3):
        # Each round alone: nothing flows from a round into the one before it, or this sum would differ.
        for name, gradient in _gradients(segmenter, {"sum": _sum(loss(prediction, batch))}).items():
            expected[name] = expected.get(name, 0) + gradient
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


def test_terms_are_the_sums_over_the_rounds():
    segmenter, batch, loss = _segmenter(rounds=3), _training_batch(), IouHeadLoss()
    terms = segmenter.training_losses(batch, loss)
    rounds = [loss(prediction, batch) for prediction in segmenter.rounds_of(batch)]
    assert set(terms) == {"bce", "dice", "iou"}
    for name, term in terms.items():
        torch.testing.assert_close(term, torch.stack([each[name] for each in rounds]).sum())


def test_one_round_is_the_ordinary_segmenter():
    batch = _training_batch(objects=(2, 1))
    ordinary = _segmenter(kind=SamSegmenter)(batch)
    interactive = _segmenter(rounds=1)(batch)
    assert torch.equal(interactive.low_res_masks, ordinary.low_res_masks)


@pytest.mark.parametrize("settings", [{"clicks": (1, 3)}, {**SAM_MED2D, "rounds": 5}, {"mask_feedback": "none"}])
def test_batch_gives_what_each_image_gives_alone(settings):
    segmenter = _segmenter(OneOfPrompt([BoxPrompt(), PointPrompt()]), **settings)
    batch = _training_batch(sizes=SIZES)
    with torch.no_grad():
        together = segmenter.rounds_of(batch)
        for row in range(3):
            for number, alone in enumerate(segmenter.rounds_of(one_image(batch, row))):
                expected = together[number].low_res_masks[row : row + 1]
                torch.testing.assert_close(alone.low_res_masks, expected, atol=1e-4, rtol=1e-4)


def test_truth_of_one_image_never_reaches_another():
    segmenter, batch = _segmenter(rounds=4, clicks=(1, 3)), _training_batch(objects=(2, 2))
    other = batch.masks.clone()
    other[2:] = other[2:].flip(-1)
    with torch.no_grad():
        before, after = segmenter(batch), segmenter(with_masks(batch, other))
    torch.testing.assert_close(before.low_res_masks[:2], after.low_res_masks[:2])
    assert not torch.allclose(before.low_res_masks[2:], after.low_res_masks[2:])


def test_objects_decoded_in_chunks_give_what_they_give_together():
    batch = _training_batch(objects=(3, 2))
    with torch.no_grad():
        together = _segmenter(clicks=(1, 2))(batch)
        chunked = _segmenter(clicks=(1, 2), objects_per_decode=2)(batch)
    torch.testing.assert_close(chunked.low_res_masks, together.low_res_masks, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(chunked.iou_predictions, together.iou_predictions, atol=1e-5, rtol=1e-4)


def test_rounds_repeat_exactly_and_move_with_the_epoch():
    segmenter, batch = _segmenter(), _training_batch()
    with torch.no_grad():
        first, again, later = (segmenter(replace(batch, epoch=epoch)).low_res_masks for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_evaluation_returns_the_last_of_its_own_rounds():
    batch = make_batch()
    segmenter = _segmenter(rounds=2, eval_rounds=5, clicks=(3,)).eval()
    with torch.no_grad():
        rounds = segmenter.rounds_of(batch)
        assert torch.equal(segmenter(batch).low_res_masks, rounds[4].low_res_masks)
        fewer = _segmenter(rounds=2, eval_rounds=3, clicks=(3,)).eval().rounds_of(batch)
    assert len(rounds) == 5
    assert all(torch.equal(a.low_res_masks, b.low_res_masks) for a, b in zip(fewer, rounds[:3], strict=True))


def test_last_clicks_alone_stand_beside_the_probabilities_of_the_mask():
    segmenter, batch = _segmenter(rounds=3, keep="last", mask_feedback="probs"), _training_batch()
    with torch.no_grad():
        _, before, got = segmenter.rounds_of(batch)
        new = corrective_clicks(before.low_res_masks, batch, click_round=2, counts=(1,), rule="random")
        prompts = segmenter.backbone.embed_prompts(
            2, points=(new.coords, new.labels), mask_inputs=before.low_res_masks.sigmoid()
        )
        embeddings = segmenter.image_embeddings(batch)
        expected = segmenter.backbone.decode(embeddings, batch.image_index, prompts)
    assert torch.equal(got.low_res_masks, expected.low_res_masks)


def test_clicks_after_no_prompt_keep_sams_padding_point():
    segmenter, batch = _segmenter(None, rounds=2), _training_batch()
    with torch.no_grad():
        before, got = segmenter.rounds_of(batch)
        new = corrective_clicks(before.low_res_masks, batch, click_round=1, counts=(1,), rule="random")
        prompts = segmenter.backbone.embed_prompts(2, points=(new.coords, new.labels), mask_inputs=before.low_res_masks)
        embeddings = segmenter.image_embeddings(batch)
        expected = segmenter.backbone.decode(embeddings, batch.image_index, prompts)
    assert torch.equal(got.low_res_masks, expected.low_res_masks)


def test_round_without_clicks_shows_the_last_mask_alone():
    segmenter, batch = _segmenter(rounds=4, mask_only_rounds=1), _training_batch()
    assert rounds_without_clicks(batch, rounds=4, count=1).tolist() == [[False, False, False, True]] * 2
    with torch.no_grad():
        *_, before, got = segmenter.rounds_of(batch)
        prompts = segmenter.backbone.embed_prompts(2, mask_inputs=before.low_res_masks)
        embeddings = segmenter.image_embeddings(batch)
        expected = segmenter.backbone.decode(embeddings, batch.image_index, prompts)
    assert torch.equal(got.low_res_masks, expected.low_res_masks)


def test_image_is_encoded_once_and_not_at_all_from_the_cache(monkeypatch):
    segmenter, batch = _segmenter(), _training_batch()
    calls = []
    encode = segmenter.backbone.encode
    monkeypatch.setattr(segmenter.backbone, "encode", lambda *args, **more: calls.append(1) or encode(*args, **more))
    with torch.no_grad():
        expected = segmenter(batch).low_res_masks
        assert len(calls) == 1
        cached = replace(batch, image_embeddings=encode(batch.encoder_input()).main)
        assert torch.equal(segmenter(cached).low_res_masks, expected)
    assert len(calls) == 1


def _neck_gradient(rounds, encoder_rounds):
    segmenter = _segmenter(trainable=("image_encoder.neck", "mask_decoder"), rounds=rounds, encoder_rounds=encoder_rounds)
    gradients = _gradients(segmenter, segmenter.training_losses(_training_batch(), BceDiceLoss()))
    return gradients["backbone.image_encoder.neck.0.weight"]


def test_encoder_learns_from_all_rounds_or_from_the_first_alone():
    first = _neck_gradient(1, "all")
    torch.testing.assert_close(_neck_gradient(3, "first"), first)
    assert not torch.allclose(_neck_gradient(3, "all"), first)


def test_every_part_of_a_learning_prompt_encoder_takes_part_in_a_step():
    source = OneOfPrompt([BoxPrompt(), PointPrompt()])
    segmenter = _segmenter(source, trainable=("mask_decoder", "prompt_encoder"), **SAM_MED2D)
    gradients = _gradients(segmenter, segmenter.training_losses(_training_batch(), BceDiceLoss()))
    assert gradients.keys() == {name for name, p in segmenter.named_parameters() if p.requires_grad}
    assert gradients["backbone.prompt_encoder.mask_downscaling.0.weight"].any()


def test_new_images_get_what_the_ordinary_segmenter_gives_them():
    batch = make_batch()
    batch = replace(batch, queries=BOX.draw(batch, mask_side=16))
    interactive, ordinary = _segmenter().eval(), _segmenter(kind=SamSegmenter).eval()
    ordinary.load_state_dict(interactive.state_dict())
    with torch.no_grad():
        assert torch.equal(interactive(replace(batch, truth=None)).low_res_masks, ordinary(batch).low_res_masks)
        assert not torch.equal(interactive(batch).low_res_masks, ordinary(batch).low_res_masks)


def test_batch_without_objects_has_as_many_empty_rounds():
    batch = make_batch()
    nothing = replace(with_masks(batch, batch.masks[:0]), queries=batch.queries.rows(torch.zeros(0, dtype=torch.int64)))
    assert [len(prediction.low_res_masks) for prediction in _segmenter(eval_rounds=3).rounds_of(nothing)] == [0, 0, 0]


def test_step_under_bf16_autocast_is_finite():
    segmenter = _segmenter(OneOfPrompt([BoxPrompt(), PointPrompt()]), **SAM_MED2D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = segmenter.training_losses(_training_batch(), IouHeadLoss())
    assert all(torch.isfinite(gradient).all() for gradient in _gradients(segmenter, terms).values())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rounds": 0}, "The first prompt is one round"),
        ({"eval_rounds": 0}, "The first prompt is one round"),
        ({"clicks": ()}, "Rounds without clicks: mask_only_rounds"),
        ({"clicks": (1, 0)}, "Rounds without clicks: mask_only_rounds"),
        ({"rounds": 4, "mask_only_rounds": 3}, "expected 0 to 2 with rounds 4, got 3"),
        ({"rounds": 1, "mask_only_rounds": 1}, "expected 0 to 0 with rounds 1"),
        ({"mask_only_rounds": 1, "mask_feedback": "none"}, "Set mask_feedback: logits, or 0 here"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        _segmenter(**settings)
