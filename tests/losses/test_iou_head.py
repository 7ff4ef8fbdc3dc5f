from dataclasses import replace

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.losses import BceDiceLoss, IouHeadLoss
from medsam_tune.losses.iou_head import true_iou
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamSegmenter
from medsam_tune.segmenters.base import SamParts
from medsam_tune.types import MaskPrediction
from tests.factories import make_batch, with_masks

HEAD = "mask_decoder.iou_prediction_head"


def _half_right(scores, *, side=4):
    """Four of eight plus eight pixels agree: an IoU of 4 / 12."""
    masks = torch.zeros(1, 1, side, side, dtype=torch.bool)
    masks[..., :2] = True
    logits = torch.full((1, 1, side, side), -40.0)
    logits[..., 1:3] = 40.0
    batch = with_masks(make_batch(side=side, sizes=((side, side),)), masks)
    return MaskPrediction(logits, torch.tensor([scores])), batch


def test_error_of_a_half_right_mask_is_what_paper_and_pencil_say():
    prediction, batch = _half_right([0.75])
    terms = IouHeadLoss(weight=2.0)(prediction, batch)
    assert terms["iou"].item() == pytest.approx(2 * (0.75 - 1 / 3) ** 2)


def test_terms_of_the_mask_loss_stay_as_they_are():
    prediction, batch = _half_right([0.75])
    mask_loss = BceDiceLoss(bce_weight=0.5, squared=True)
    terms = IouHeadLoss(mask_loss)(prediction, batch)
    alone = mask_loss(prediction, batch)
    assert set(terms) == {"bce", "dice", "iou"}
    assert all(torch.equal(terms[name], alone[name]) for name in alone)


def test_each_of_several_masks_is_compared_with_its_own_prediction():
    prediction, batch = _half_right([0.0])
    logits = torch.cat([prediction.low_res_masks, 2 * batch.masks.float() - 1], dim=1)
    scores = torch.tensor([[1 / 3, 0.5]])
    terms = IouHeadLoss()(MaskPrediction(logits, scores), batch)
    assert terms["iou"].item() == pytest.approx((0 + 0.25) / 2)


def test_empty_mask_of_an_empty_object_has_iou_1_and_any_other_mask_0():
    batch = make_batch(sizes=((64, 64), (64, 64)))
    batch = with_masks(batch, torch.zeros_like(batch.masks))
    logits = torch.full((2, 1, 16, 16), -1.0)
    logits[1, 0, 3, 3] = 1.0
    assert true_iou(MaskPrediction(logits), batch).tolist() == [[1.0], [0.0]]


def test_padding_does_not_count():
    batch = make_batch(sizes=((32, 64),))
    logits = torch.where(batch.masks, 5.0, -5.0)
    logits[:, :, 32:] = 5.0
    assert true_iou(MaskPrediction(logits), batch).item() == 1.0


def test_no_gradient_flows_through_the_true_iou():
    prediction, batch = _half_right([0.75])
    logits = prediction.low_res_masks.requires_grad_()
    IouHeadLoss()(MaskPrediction(logits, prediction.iou_predictions.requires_grad_()), batch)["iou"].backward()
    assert logits.grad is None
    assert prediction.iou_predictions.grad.item() == pytest.approx(2 * (0.75 - 1 / 3))


def _segmenter(*trainable):
    return SamSegmenter(SamParts(SamBackbone("random_tiny", trainable=trainable), BoxPrompt()))


def _backward(segmenter, loss):
    torch.stack(list(loss(segmenter(make_batch()), make_batch()).values())).sum().backward()
    return {name.removeprefix("backbone."): p for name, p in segmenter.named_parameters() if p.requires_grad}


def test_head_learns_with_this_loss_and_with_no_other():
    with_loss = _backward(_segmenter("mask_decoder", HEAD), IouHeadLoss())
    assert all(p.grad is not None for p in with_loss.values())
    assert any(p.grad.any() for name, p in with_loss.items() if name.startswith(HEAD))
    without = _backward(_segmenter("mask_decoder", HEAD), BceDiceLoss())
    assert {name for name, p in without.items() if p.grad is None} == {name for name in without if name.startswith(HEAD)}


def test_head_stays_frozen_where_the_recipe_names_the_decoder_alone():
    learning = _backward(_segmenter("mask_decoder"), IouHeadLoss())
    assert not [name for name in learning if name.startswith(HEAD)]


def test_batch_without_objects_costs_nothing():
    batch = make_batch()
    nothing = replace(with_masks(batch, batch.masks[:0]), queries=batch.queries.rows(torch.zeros(0, dtype=torch.int64)))
    scores = torch.zeros(0, 1, requires_grad=True)
    terms = IouHeadLoss()(MaskPrediction(torch.zeros(0, 1, 16, 16), scores), nothing)
    assert terms["iou"].item() == 0


def test_network_without_an_iou_head_is_refused():
    prediction, batch = _half_right([0.0])
    with pytest.raises(RecipeError, match="needs a network that predicts an IoU"):
        IouHeadLoss()(replace(prediction, iou_predictions=None), batch)


def test_weight_of_zero_is_refused():
    with pytest.raises(RecipeError, match=r"Without this loss set model\.loss: BceDiceLoss"):
        IouHeadLoss(weight=0)
