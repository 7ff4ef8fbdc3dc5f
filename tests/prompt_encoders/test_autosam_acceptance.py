"""AutoSAM whole, on a tiny backbone: what the authors' repository gets wrong must not happen here."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

from medsam_tune.backbone import SamBackbone
from medsam_tune.geometry import to_original
from medsam_tune.losses import BceDiceLoss
from medsam_tune.prompt_encoders import EmbeddingPromptGenerator, FusedPromptGenerator, HarDNetPromptGenerator
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from tests.factories import make_batch, one_image, with_masks

SIZES = ((40, 64), (64, 48), (64, 64))


def _generator(name):
    if name == "image":
        return HarDNetPromptGenerator("39ds", gen_size=64, width=8)
    if name == "paper":
        return HarDNetPromptGenerator("39ds", gen_size=64)
    return EmbeddingPromptGenerator(8) if name == "embedding" else FusedPromptGenerator(gen_size=64, width=8)


def _segmenter(name="image"):
    return SamSegmenter(SamParts(SamBackbone("random_tiny"), prompt_encoder=_generator(name)))


def _with_garbage_in_the_padding(batch):
    images, masks = batch.images.clone(), batch.masks.clone()
    for row, frame in enumerate(batch.frames):
        height, width = frame.input_size
        for tensor, garbage in ((images, 255.0), (masks, True)):
            tensor[row, :, height:], tensor[row, :, :, width:] = garbage, garbage
    return replace(with_masks(batch, masks), images=images)


@pytest.mark.parametrize("name", ["image", "paper", "embedding", "fused"])
def test_every_generator_parameter_has_a_gradient_and_no_sam_parameter_has_one(name):
    segmenter, batch = _segmenter(name), make_batch(sizes=SIZES)
    sum(BceDiceLoss()(segmenter(batch), batch).values()).backward()
    assert [n for n, p in segmenter.prompt_encoder.named_parameters() if p.grad is None] == []
    assert [n for n, p in segmenter.backbone.named_parameters() if p.grad is not None] == []


def test_image_is_normalised_exactly_once_before_sams_encoder():
    segmenter, seen = _segmenter("embedding"), []
    segmenter.backbone.image_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = make_batch(sizes=((64, 64),))
    batch.images[:, :, :32], batch.images[:, :, 32:] = 0, 255
    segmenter(batch)
    assert seen[0].amin().item() == pytest.approx(-2.1179, abs=1e-3)
    assert seen[0].amax().item() == pytest.approx(2.6400, abs=1e-3)


def test_image_is_normalised_exactly_once_before_the_generator():
    segmenter, seen = _segmenter(), []
    segmenter.prompt_encoder.features.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = make_batch(sizes=((64, 64),))
    batch.images[:, :, :32], batch.images[:, :, 32:] = 0, 255
    segmenter(batch)
    assert seen[0].amin().item() == pytest.approx(-2.1179, abs=1e-3)
    assert seen[0].amax().item() == pytest.approx(2.6400, abs=1e-3)


def test_negative_logits_everywhere_give_an_empty_mask():
    # The authors stretch each prediction to 0..1 before the threshold, so no image can be predicted empty.
    logits = torch.linspace(-13, -11, 256).reshape(1, 1, 16, 16)
    frame = make_batch(sizes=((40, 64),)).frames[0]
    assert not (to_original(logits, frame, 64) > 0).any()


@pytest.mark.parametrize("name", ["image", "embedding", "fused"])
def test_garbage_in_the_padding_changes_neither_prediction_nor_loss(name):
    segmenter, batch = _segmenter(name).eval(), make_batch(sizes=SIZES)
    dirty = _with_garbage_in_the_padding(batch)
    with torch.no_grad():
        clean_prediction, dirty_prediction = segmenter(batch), segmenter(dirty)
    assert torch.equal(clean_prediction.low_res_masks, dirty_prediction.low_res_masks)
    clean_loss, dirty_loss = (BceDiceLoss()(clean_prediction, b) for b in (batch, dirty))
    assert clean_loss.keys() == dirty_loss.keys()
    assert all(torch.equal(clean_loss[term], dirty_loss[term]) for term in clean_loss)


@pytest.mark.parametrize("name", ["image", "embedding", "fused"])
def test_batch_of_three_equals_the_loop_over_images(name):
    segmenter = _segmenter(name)
    for p in segmenter.prompt_encoder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    segmenter.eval()
    with torch.no_grad():
        together = segmenter(make_batch(sizes=SIZES)).low_res_masks
        batch = make_batch(sizes=SIZES)
        for row in range(3):
            torch.testing.assert_close(segmenter(one_image(batch, row)).low_res_masks[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["image", "embedding", "fused"])
def test_state_dict_survives_a_weights_only_round_trip(name, tmp_path):
    trained, batch = _segmenter(name), make_batch(sizes=SIZES)
    optimizer = torch.optim.Adam(trained.prompt_encoder.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        masks = trained(batch).low_res_masks
        mse_loss(masks, torch.ones_like(masks)).backward()
        optimizer.step()
    torch.save(trained.prompt_encoder.state_dict(), tmp_path / "generator.pt")
    fresh = _segmenter(name)
    with torch.no_grad():
        expected = trained.eval()(batch).low_res_masks
        assert not torch.equal(fresh.eval()(batch).low_res_masks, expected)
        fresh.prompt_encoder.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True))
        assert torch.equal(fresh(batch).low_res_masks, expected)


@pytest.mark.parametrize("name", ["embedding", "fused"])
def test_training_lowers_the_loss(name):
    segmenter, batch = _segmenter(name), make_batch(sizes=SIZES)
    loss_function = BceDiceLoss()
    optimizer = torch.optim.Adam(segmenter.prompt_encoder.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = sum(loss_function(segmenter(batch), batch).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The tiny random decoder answers weakly to its prompt; eight steps lower the loss by 0.017.
    assert losses[-1] < losses[0] - 0.01
