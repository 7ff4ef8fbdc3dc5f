"""What every loss promises, over every class of the package; a new one is found by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import medsam_tune.losses
from medsam_tune.geometry import known_region, resize_region
from medsam_tune.losses.base import MaskLoss
from medsam_tune.types import MaskPrediction
from tests.class_batches import make_class_batch
from tests.conformance.discovery import concrete

LOSSES = concrete(medsam_tune.losses, MaskLoss)
each = pytest.mark.parametrize("name", LOSSES)


def batch_with_ignored():
    """Two images of which one is padded below and one at the right; a corner of the second was never annotated."""
    batch = make_class_batch(2)
    ignored = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    ignored[1, 0, :16, :16] = True
    return replace(batch, ignored=ignored)


def prediction_of(batch, *, right):
    """Confident logits for every pixel, of objects and of classes at once; the other way round where not ``right``."""
    masks = resize_region(batch.masks, (16, 16)).float()
    rows = (masks * 16 - 8) * (1 if right else -1)
    classes = rows.view(batch.n_images, -1, 16, 16)
    logits = torch.cat([-classes.amax(dim=1, keepdim=True), classes], dim=1)
    ious = torch.ones(batch.n_objects, 1) * (1.0 if right else 0.6)
    return MaskPrediction(rows.requires_grad_(), ious, logits.detach().requires_grad_())


def total(name, prediction, batch):
    terms = LOSSES[name]()(prediction, batch)
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    return torch.stack(list(terms.values())).sum()


def with_garbage(prediction, batch):
    """The same prediction with other values wherever nothing counts."""
    region = resize_region(known_region(batch.frames, batch.ignored, 64), (16, 16))
    assert not region.all()
    masks = torch.where(region[batch.image_index], prediction.low_res_masks, torch.nan)
    classes = torch.where(region, prediction.class_logits, torch.nan)
    return replace(prediction, low_res_masks=masks, class_logits=classes)


def test_losses_were_found():
    assert {"BceDiceLoss", "SoftmaxDiceLoss", "IouHeadLoss"} <= LOSSES.keys()


@each
def test_right_masks_cost_almost_nothing_and_wrong_ones_a_lot(name):
    batch = batch_with_ignored()
    right, wrong = (total(name, prediction_of(batch, right=right), batch) for right in (True, False))
    assert 0 <= right < 0.3
    assert wrong > right + 0.5


@each
def test_neither_padding_nor_what_nobody_annotated_counts(name):
    batch = batch_with_ignored()
    clean = prediction_of(batch, right=False)
    dirty = with_garbage(clean, batch)
    torch.testing.assert_close(total(name, dirty, batch), total(name, clean, batch), rtol=0, atol=0)
    total(name, dirty, batch).backward()
    gradients = [t.grad for t in (clean.low_res_masks, clean.class_logits) if t.grad is not None]
    assert gradients != []
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@each
def test_the_gradient_of_wrong_masks_points_to_the_right_ones(name):
    batch = batch_with_ignored()
    prediction = prediction_of(batch, right=False)
    milder = replace(
        prediction,
        low_res_masks=(prediction.low_res_masks * 0.1).detach().requires_grad_(),
        class_logits=(prediction.class_logits * 0.1).detach().requires_grad_(),
    )
    before = total(name, milder, batch)
    before.backward()
    stepped = replace(
        milder,
        **{
            field: (value if value.grad is None else value - 0.1 * value.grad).detach()
            for field, value in (("low_res_masks", milder.low_res_masks), ("class_logits", milder.class_logits))
        },
    )
    assert total(name, stepped, batch) < before
