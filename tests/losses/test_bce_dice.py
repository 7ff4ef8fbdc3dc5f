from dataclasses import replace

import numpy as np
import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.losses import BceDiceLoss
from medsam_tune.types import MaskPrediction
from tests.factories import make_batch, with_masks, with_objects


def prediction_for(batch, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MaskPrediction(3 * torch.randn(batch.n_objects, 1, size, size, generator=generator))


def numpy_terms(logits, masks, regions, *, smooth, squared):
    """The formulas of the docstring, object by object, in float64."""
    bce, dice = [], []
    for logit, mask, region in zip(logits.double().numpy(), masks.numpy(), regions.numpy(), strict=True):
        x, t = logit[region], mask[region].astype(float)
        p = 1 / (1 + np.exp(-x))
        bce.append(np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p)))
        q = 2 if squared else 1
        dice.append(1 - (2 * (p * t).sum() + smooth) / ((p**q).sum() + (t**q).sum() + smooth))
    return np.mean(bce), np.mean(dice)


def test_half_right_prediction_costs_what_paper_and_pencil_say():
    batch = make_batch(side=4, sizes=((4, 4),))
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2] = True
    logits = torch.full((1, 1, 4, 4), -40.0)
    logits[..., 1:3] = 40.0
    terms = BceDiceLoss(smooth=0.0)(MaskPrediction(logits), with_masks(batch, masks))
    # 4 of 8 + 8 pixels agree: Dice 2 * 4 / 16; 8 of 16 pixels are wrong by 40 nats.
    assert terms["dice"].item() == pytest.approx(0.5, abs=1e-6)
    assert terms["bce"].item() == pytest.approx(20.0, abs=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_terms_equal_an_independent_formula_when_images_have_padding(squared):
    batch = make_batch(side=64, sizes=((40, 64), (64, 48)), objects=(2, 1))
    prediction = prediction_for(batch, 64)
    regions = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    regions[:2, :, :40] = True
    regions[2, :, :, :48] = True
    terms = BceDiceLoss(bce_weight=0.5, dice_weight=3.0, smooth=2.0, squared=squared)(prediction, batch)
    bce, dice = numpy_terms(prediction.low_res_masks, batch.masks, regions, smooth=2.0, squared=squared)
    assert terms["bce"].item() == pytest.approx(0.5 * bce, rel=1e-5)
    assert terms["dice"].item() == pytest.approx(3.0 * dice, rel=1e-5)


@pytest.mark.parametrize("garbage", [1e4, float("inf"), float("nan")])
def test_garbage_in_the_padding_changes_neither_loss_nor_gradient(garbage):
    batch = make_batch(side=64, sizes=((40, 64), (64, 48)))
    clean = prediction_for(batch, 16).low_res_masks
    dirty = clean.clone()
    dirty[0, :, 10:] = garbage
    dirty[1, :, :, 12:] = garbage
    dirty_masks = batch.masks.clone()
    dirty_masks[0, :, 40:] = True
    dirty_masks[1, :, :, 48:] = True
    results = []
    for logits, masks in ((clean, batch.masks), (dirty, dirty_masks)):
        leaf = logits.clone().requires_grad_()
        total = sum(BceDiceLoss(squared=True)(MaskPrediction(leaf), with_masks(batch, masks)).values())
        total.backward()
        results.append((total.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[1][1][0, :, 10:].abs().max() == 0


def test_input_resolution_compares_upsampled_logits_with_the_full_mask():
    batch = make_batch(side=64, sizes=((64, 64), (64, 64)))
    prediction = prediction_for(batch, 16)
    upsampled = torch.nn.functional.interpolate(prediction.low_res_masks, (64, 64), mode="bilinear", align_corners=False)
    everywhere = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    bce, dice = numpy_terms(upsampled, batch.masks, everywhere, smooth=1.0, squared=False)
    terms = BceDiceLoss(resolution="input")(prediction, batch)
    assert terms["bce"].item() == pytest.approx(bce, rel=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, rel=1e-5)


def test_input_resolution_reads_padding_logits_no_further_than_the_final_mask_does():
    batch = make_batch(side=64, sizes=((40, 64),))
    prediction = prediction_for(batch, 16)
    beyond_one_cell = prediction.low_res_masks.clone()
    beyond_one_cell[:, :, 11:] = float("inf")
    masks = batch.masks.clone()
    masks[:, :, 40:] = True
    loss = BceDiceLoss(resolution="input")
    first = loss(prediction, batch)
    second = loss(MaskPrediction(beyond_one_cell), with_masks(batch, masks))
    assert first == second


def test_each_object_counts_the_same_whatever_its_image_size():
    batch = make_batch(side=64, sizes=((16, 64), (64, 64)))
    prediction = prediction_for(batch, 64)
    both = BceDiceLoss()(prediction, batch)
    single = [
        BceDiceLoss()(
            MaskPrediction(prediction.low_res_masks[i : i + 1]),
            with_objects(with_masks(batch, batch.masks[i : i + 1]), torch.tensor([i])),
        )
        for i in range(2)
    ]
    for name in ("bce", "dice"):
        assert both[name].item() == pytest.approx((single[0][name] + single[1][name]).item() / 2, rel=1e-6)


def test_empty_mask_with_empty_prediction_costs_nothing():
    batch = make_batch(side=16, sizes=((16, 16),))
    batch = with_masks(batch, torch.zeros_like(batch.masks))
    terms = BceDiceLoss()(MaskPrediction(torch.full((1, 1, 4, 4), -60.0)), batch)
    assert sum(terms.values()).item() == pytest.approx(0.0, abs=1e-6)


def test_squared_denominators_have_a_finite_gradient_at_an_empty_prediction():
    batch = make_batch(side=16, sizes=((16, 16),))
    logits = torch.full((1, 1, 16, 16), -200.0, requires_grad=True)
    sum(BceDiceLoss(squared=True)(MaskPrediction(logits), batch).values()).backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_cost_the_same_as_their_float_copy():
    batch = make_batch(side=64)
    halves = prediction_for(batch, 16).low_res_masks.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = BceDiceLoss()(MaskPrediction(halves), batch)
    assert under_autocast == BceDiceLoss()(MaskPrediction(halves.float()), batch)
    assert under_autocast["bce"].dtype == torch.float32


def test_batch_without_objects_costs_zero_and_still_reaches_the_network():
    batch = make_batch(side=16, sizes=((16, 16),), objects=(0,))
    batch = with_objects(batch, torch.zeros(0, dtype=torch.int64))
    logits = torch.zeros(0, 1, 4, 4, requires_grad=True)
    total = sum(BceDiceLoss(resolution="input")(MaskPrediction(logits), batch).values())
    total.backward()
    assert total.item() == 0.0
    assert logits.grad is not None


def test_all_candidate_masks_are_compared_with_the_same_truth():
    batch = make_batch(side=64)
    one = prediction_for(batch, 16).low_res_masks
    many = BceDiceLoss()(MaskPrediction(one.expand(-1, 3, -1, -1)), batch)
    single = BceDiceLoss()(MaskPrediction(one), batch)
    assert many["dice"].item() == pytest.approx(single["dice"].item(), rel=1e-6)
    assert many["bce"].item() == pytest.approx(single["bce"].item(), rel=1e-6)


def test_a_term_of_weight_zero_is_absent():
    batch = make_batch(side=64)
    assert set(BceDiceLoss(bce_weight=0.0)(prediction_for(batch, 16), batch)) == {"dice"}
    assert set(BceDiceLoss(dice_weight=0.0)(prediction_for(batch, 16), batch)) == {"bce"}


def test_settings_that_teach_nothing_are_refused():
    with pytest.raises(RecipeError, match="Set one above 0"):
        BceDiceLoss(bce_weight=0.0, dice_weight=0.0)
    with pytest.raises(RecipeError, match=r"init_args\.smooth: must be 0 or more, got -1"):
        BceDiceLoss(smooth=-1.0)


def test_loss_of_an_image_of_one_row_is_a_number():
    batch = make_batch(sizes=((1, 64), (40, 64)))
    logits = torch.zeros(2, 1, 16, 16, requires_grad=True)
    losses = BceDiceLoss()(MaskPrediction(logits), batch)
    sum(losses.values()).backward()
    assert all(bool(value.isfinite()) for value in losses.values())
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[0, 0, 0].any()


def test_pixels_that_nobody_annotated_pull_at_nothing():
    batch = make_batch(sizes=((64, 64),))
    ignored = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    ignored[..., 32:] = True
    logits = torch.randn(1, 1, 64, 64, requires_grad=True)
    losses = BceDiceLoss()(MaskPrediction(logits), replace(batch, ignored=ignored))
    sum(losses.values()).backward()
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].all()
    # The rest costs what an image that ends there costs.
    cut = with_masks(make_batch(sizes=((64, 32),)), batch.masks & ~ignored)
    expected = BceDiceLoss()(MaskPrediction(logits.detach()), cut)
    assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )


def test_image_of_which_nothing_is_annotated_costs_nothing():
    batch = replace(make_batch(sizes=((64, 64),)), ignored=torch.ones(1, 1, 64, 64, dtype=torch.bool))
    losses = BceDiceLoss()(MaskPrediction(torch.randn(1, 1, 16, 16)), batch)
    assert {name: float(value) for name, value in losses.items()} == pytest.approx({"bce": 0.0, "dice": 0.0}, abs=1e-6)
