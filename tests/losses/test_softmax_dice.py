import numpy as np
import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.losses import SoftmaxDiceLoss
from medsam_tune.losses.softmax_dice import class_map
from medsam_tune.types import MaskPrediction
from tests.class_batches import make_class_batch
from tests.factories import with_masks


def prediction_of(class_logits):
    return MaskPrediction(class_logits[:, 1:].flatten(0, 1)[:, None], class_logits=class_logits)


def random_prediction(n_classes, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return prediction_of(3 * torch.randn(2, 1 + n_classes, size, size, generator=generator))


def authors_terms(scores, labels):
    """calc_loss of SAMed @ e351840 in float64 numpy, for scores (P, 1 + K) and labels (P,) of the valid pixels."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    probs = exponents / exponents.sum(axis=1, keepdims=True)
    entropy = -np.log(probs[np.arange(len(labels)), labels]).mean()
    dice = 0.0
    for number in range(scores.shape[1]):
        score, target = probs[:, number], (labels == number).astype(float)
        dice += 1 - (2 * (score * target).sum() + 1e-5) / ((score * score).sum() + (target * target).sum() + 1e-5)
    return 0.2 * entropy, 0.8 * dice / scores.shape[1]


def test_half_right_labels_cost_what_paper_and_pencil_say():
    batch = make_class_batch(1, side=4, sizes=((4, 4),))
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2] = True
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 1, :, 1:3] = 40.0
    logits[:, 0, :, [0, 3]] = 40.0
    terms = SoftmaxDiceLoss(smooth=0.0)(prediction_of(logits), with_masks(batch, masks))
    # 8 of 16 pixels are wrong by 40 nats; for both classes 4 of 8 + 8 pixels agree: Dice 1/2.
    assert terms["ce"].item() == pytest.approx(0.2 * 20.0, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(0.8 * 0.5, abs=1e-6)


def test_terms_equal_the_authors_formula_over_the_pixels_of_the_images():
    batch, prediction = make_class_batch(3), random_prediction(3, 64)
    rows = batch.masks.view(2, 3, 64, 64)
    labels = (rows * torch.arange(1, 4)[:, None, None]).sum(dim=1)
    valid = torch.zeros(2, 64, 64, dtype=torch.bool)
    valid[0, :40], valid[1, :, :48] = True, True
    scores = prediction.class_logits.movedim(1, -1)[valid].double().numpy()
    entropy, dice = authors_terms(scores, labels[valid].numpy())
    terms = SoftmaxDiceLoss()(prediction, batch)
    assert terms["ce"].item() == pytest.approx(entropy, rel=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, rel=1e-5)


def test_class_map_numbers_the_rows_of_each_image_and_leaves_the_rest_to_the_background():
    batch = make_class_batch(2)
    classes, region = class_map(random_prediction(2, 64), batch)
    assert torch.equal(classes == 1, batch.masks[[0, 2], 0])
    assert torch.equal(classes == 2, batch.masks[[1, 3], 0])
    assert region.sum(dim=(1, 2, 3)).tolist() == [40 * 64, 64 * 48]


@pytest.mark.parametrize("garbage", [1e4, float("nan")])
def test_garbage_in_the_padding_changes_neither_loss_nor_gradient(garbage):
    batch = make_class_batch(2)
    results = []
    for dirty in (False, True):
        leaf = random_prediction(2, 16).class_logits.clone()
        if dirty:
            leaf[0, :, 10:], leaf[1, ..., 12:] = garbage, garbage
        leaf.requires_grad_()
        total = sum(SoftmaxDiceLoss()(prediction_of(leaf), batch).values())
        total.backward()
        results.append((total.detach(), leaf.grad))
    (clean, gradient), (same, other) = results
    assert torch.equal(clean, same)
    assert torch.equal(gradient, other)
    assert gradient[0, :, :10].any()


def test_perfect_labels_cost_nothing_although_a_class_is_absent():
    batch = make_class_batch(2)
    classes, _ = class_map(random_prediction(2, 64), batch)
    logits = 100.0 * torch.nn.functional.one_hot(classes, 3).movedim(-1, 1)
    assert sum(SoftmaxDiceLoss()(prediction_of(logits), batch).values()).item() == pytest.approx(0.0, abs=1e-6)


def test_a_term_of_weight_zero_is_absent():
    batch, prediction = make_class_batch(2), random_prediction(2, 16)
    assert list(SoftmaxDiceLoss(dice_weight=0)(prediction, batch)) == ["ce"]
    assert list(SoftmaxDiceLoss(ce_weight=0)(prediction, batch)) == ["dice"]


def test_objects_predicted_alone_are_refused_with_what_to_set():
    prediction = MaskPrediction(torch.zeros(4, 1, 16, 16))
    with pytest.raises(RecipeError, match=r"predicts each object alone\. Set model\.segmenter: .*SemanticSegmenter"):
        SoftmaxDiceLoss()(prediction, make_class_batch(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ce_weight": -1.0}, r"model\.loss\.init_args\.ce_weight: must be 0 or more, got -1\.0"),
        ({"ce_weight": 0, "dice_weight": 0}, r"both 0, so nothing is learned"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        SoftmaxDiceLoss(**settings)
