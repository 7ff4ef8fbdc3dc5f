"""The task network: what it sees, what it gives, what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.fusion import AddRgb, Concat, StackGrey
from medsam_tune.fusion.base import InputFusion
from medsam_tune.geometry import normalise
from medsam_tune.losses import BceDiceLoss
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.task import TaskSegmenter, mean_entropy, mean_probability_logits
from tests.factories import make_batch


class _Brighten(InputFusion):
    def __init__(self, channels=3):
        super().__init__()
        self.channels = channels

    def forward(self, images, priors):
        return images + priors


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return TaskSegmenter(SamParts(), encoder="resnet18", side=64)


def test_network_sees_the_image_normalised_once_with_zeros_in_the_padding(segmenter):
    seen = []
    handle = segmenter.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = make_batch(sizes=((32, 64), (64, 64)))
    batch.images[0, :, :32] = 255
    segmenter(batch)
    handle.remove()
    assert seen[0].amax().item() == pytest.approx(2.64, abs=1e-3)
    assert not seen[0][0, :, 32:].any()


def test_every_parameter_learns_and_the_logits_cover_the_input(segmenter):
    prediction = segmenter(make_batch())
    assert prediction.low_res_masks.shape == (2, 1, 64, 64)
    prediction.low_res_masks.square().mean().backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None] == []


def test_garbage_in_the_padding_changes_nothing(segmenter):
    batch = make_batch(sizes=((32, 64), (64, 64)))
    dirty = replace(batch, images=batch.images.clone())
    dirty.images[0, :, 32:] = 255
    segmenter.eval()
    with torch.no_grad():
        assert torch.equal(segmenter(batch).low_res_masks, segmenter(dirty).low_res_masks)


def test_nothing_is_frozen_and_nothing_is_cached(segmenter):
    assert segmenter.base_weights() is None
    assert all(p.requires_grad for p in segmenter.parameters())
    assert "no frozen encoder" in segmenter.not_precomputable()


def test_fusion_changes_the_input(segmenter):
    fused = TaskSegmenter(SamParts(fusion=_Brighten()), encoder="resnet18", side=64)
    fused.network.load_state_dict(segmenter.network.state_dict())
    batch = make_batch(sizes=((64, 64), (64, 64)))
    brighter = replace(batch, images=batch.images + 10)
    with torch.no_grad():
        expected = segmenter.eval()(brighter).low_res_masks
        found = fused.eval()(replace(batch, priors=torch.full_like(batch.images, 10))).low_res_masks
    torch.testing.assert_close(found, expected)


def test_encoder_weights_come_from_a_file(segmenter, tmp_path):
    torch.save(segmenter.network.encoder.state_dict(), tmp_path / "encoder.pth")
    other = TaskSegmenter(SamParts(), encoder="resnet18", side=64, encoder_weights=str(tmp_path / "encoder.pth"))
    pairs = zip(segmenter.network.encoder.parameters(), other.network.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=r"encoder\.pth: does not fit the encoder resnet18"):
        TaskSegmenter(SamParts(), encoder="resnet18", side=64, encoder_weights=str(tmp_path / "encoder.pth"))


def test_timm_encoder_learns_in_every_parameter():
    segmenter = TaskSegmenter(SamParts(), encoder="tu-resnet10t", side=32)
    segmenter(make_batch(side=32, sizes=((32, 32), (32, 32)))).low_res_masks.square().mean().backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 100}, "side: expected a multiple of 32, got 100"),
        ({"arch": "UNet3000"}, "arch: expected one of .*Unet.*, got 'UNet3000'"),
        ({"encoder": "resnet17"}, "Close names: resnet1"),
        ({"encoder": "tu-resnet17"}, "Close names: resnet1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        TaskSegmenter(SamParts(), **settings)


def test_several_objects_an_image_are_refused(segmenter):
    with pytest.raises(RecipeError, match=r"TaskSegmenter gives one mask per image.*Set data\.target: binary"):
        segmenter(make_batch(objects=(2, 1)))


def fused_segmenter(fusion=None, **settings):
    torch.manual_seed(0)
    return TaskSegmenter(SamParts(fusion=fusion or AddRgb()), encoder="resnet18", side=64, **settings)


def batch_with_priors(fill=0.5):
    batch = make_batch(sizes=((64, 64), (32, 64)))
    priors = torch.zeros(2, 2, 64, 64)
    priors[:, 0, 4:20, 4:30], priors[:, 1, 4, 4:30] = fill, 1.0
    return replace(batch, priors=priors)


def inputs_of(segmenter, action):
    seen = []
    handle = segmenter.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    action()
    handle.remove()
    (network_input,) = seen
    return network_input


def test_training_loss_is_beta_raw_plus_lambda_augmented():
    segmenter, batch, loss = fused_segmenter(raw_weight=0.5, augmented_weight=2.0).eval(), batch_with_priors(), BceDiceLoss()
    with torch.no_grad():
        terms = segmenter.training_losses(batch, loss)
        variants = segmenter.inference_variants(batch)
        expected = {f"raw_{name}": 0.5 * term for name, term in loss(variants["raw"], batch).items()}
        expected |= {f"augmented_{name}": 2.0 * term for name, term in loss(variants["augmented"], batch).items()}
    assert set(terms) == {"raw_bce", "raw_dice", "augmented_bce", "augmented_dice"}
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
    assert not torch.equal(variants["raw"].low_res_masks, variants["augmented"].low_res_masks)


def test_training_shows_raw_and_augmented_images_in_one_forward_pass():
    segmenter, batch = fused_segmenter(), batch_with_priors()
    seen = inputs_of(segmenter, lambda: segmenter.training_losses(batch, BceDiceLoss()))
    rule = segmenter.input_rule
    fused = normalise(AddRgb()(batch.images, batch.priors), batch.frames, rule)
    torch.testing.assert_close(seen, torch.cat([normalise(batch.images, batch.frames, rule), fused]))


def test_weight_of_zero_leaves_its_images_out():
    segmenter, batch = fused_segmenter(augmented_weight=0.0), replace(batch_with_priors(), priors=None)
    terms = {}
    seen = inputs_of(segmenter, lambda: terms.update(segmenter.training_losses(batch, BceDiceLoss())))
    assert set(terms) == {"raw_bce", "raw_dice"}
    assert len(seen) == 2


def test_without_fusion_the_loss_is_the_loss_of_the_prediction(segmenter):
    batch, loss = make_batch(), BceDiceLoss()
    segmenter.eval()
    with torch.no_grad():
        terms, expected = segmenter.training_losses(batch, loss), loss(segmenter(batch), batch)
    assert terms == expected
    assert segmenter.inference_variants(batch) == {}


def test_every_parameter_learns_from_raw_and_augmented_images():
    segmenter = fused_segmenter(Concat())
    torch.stack(list(segmenter.training_losses(batch_with_priors(), BceDiceLoss()).values())).sum().backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None] == []
    first = next(p for p in segmenter.network.parameters() if p.ndim == 4)
    assert first.shape[1] == 5
    assert all(first.grad[:, channel].abs().sum() > 0 for channel in range(5))


def test_raw_input_of_concat_carries_maps_of_zeros():
    segmenter, batch = fused_segmenter(Concat(), inference="raw"), batch_with_priors()
    seen = inputs_of(segmenter, lambda: segmenter(replace(batch, priors=None)))
    torch.testing.assert_close(seen[:, :3], normalise(batch.images, batch.frames, segmenter.input_rule))
    assert not seen[:, 3:].any()


def test_fusion_after_normalisation_adds_to_the_network_input():
    segmenter, batch = fused_segmenter(AddRgb(space="normalised")), batch_with_priors()
    seen = inputs_of(segmenter, lambda: segmenter(batch))
    plain = normalise(batch.images, batch.frames, segmenter.input_rule)
    torch.testing.assert_close(seen[:, 0], plain[:, 0])
    torch.testing.assert_close(seen[:, 1:], plain[:, 1:] + batch.priors)


def test_padding_stays_zero_whatever_is_fused_before_normalisation():
    batch = batch_with_priors()
    segmenter = fused_segmenter(StackGrey())
    seen = inputs_of(segmenter, lambda: segmenter(batch))
    assert not seen[1, :, 32:].any()
    # Black in a map is the normalised zero of its channel, not 0: StackGrey acts before normalisation.
    assert seen[0, 1, 63, 63].item() == pytest.approx(-116.28 / 57.12)


@pytest.mark.parametrize("inference", ["raw", "augmented", "mean", "min_entropy"])
def test_forward_gives_the_variant_that_the_recipe_names(inference):
    segmenter, batch = fused_segmenter(inference=inference).eval(), batch_with_priors()
    with torch.no_grad():
        expected = segmenter.inference_variants(batch)[inference].low_res_masks
        torch.testing.assert_close(segmenter(batch).low_res_masks, expected)


def test_mean_joins_probabilities_not_logits():
    raw, augmented = torch.tensor([4.0, -1.0, 0.3, 90.0]), torch.tensor([-1.0, -6.0, 0.2, 120.0])
    joined = mean_probability_logits(raw, augmented)
    torch.testing.assert_close(joined[:3].sigmoid(), (raw.sigmoid() + augmented.sigmoid())[:3] / 2)
    # Of two outputs the sign is that of the mean logit, the size is not.
    assert 0 < joined[0] < (raw[0] + augmented[0]) / 2
    assert torch.isfinite(joined).all()
    assert 90 < joined[3] < 91


def test_entropy_is_bernoullis_and_leaves_the_padding_out():
    logits = torch.randn(2, 1, 4, 4) * 3
    region = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    region[1, :, 2:] = False
    expected = torch.distributions.Bernoulli(logits=logits).entropy()
    found = mean_entropy(logits, region)
    torch.testing.assert_close(found, torch.stack([expected[0].mean(), expected[1, :, :2].mean()]))
    assert mean_entropy(torch.full((1, 1, 2, 2), 1e4), torch.ones(1, 1, 2, 2, dtype=torch.bool)).item() == 0.0


def test_min_entropy_takes_the_surer_output_of_each_image():
    class TwoMoods(nn.Module):
        """Be sure of dark images and unsure of bright ones."""

        def forward(self, images):
            return torch.where(images.mean(dim=(1, 2, 3), keepdim=True) > 0, 0.1, -9.0).expand(-1, 1, 64, 64)

    segmenter = fused_segmenter(inference="min_entropy")
    segmenter.network = TwoMoods()
    batch = replace(make_batch(sizes=((64, 64), (64, 64))), priors=torch.zeros(2, 2, 64, 64))
    # Image 0 is dark and stays so; image 1 is bright; its priors make image 0 bright.
    batch.images[0], batch.images[1], batch.priors[0] = 0.0, 255.0, 9.0
    variants = segmenter.inference_variants(batch)
    assert variants["raw"].low_res_masks[:, 0, 0, 0].tolist() == pytest.approx([-9.0, 0.1])
    assert variants["augmented"].low_res_masks[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.1])
    assert segmenter(batch).low_res_masks[:, 0, 0, 0].tolist() == pytest.approx([-9.0, 0.1])
    batch.images[0], batch.images[1], batch.priors[0], batch.priors[1] = 255.0, 255.0, 0.0, -9.0
    assert segmenter(batch).low_res_masks[:, 0, 0, 0].tolist() == pytest.approx([0.1, -9.0])


def test_confidence_is_not_stretched_by_the_range_of_each_map():
    # Stretched to 0..1 each, the first map would be as sure as the second.
    unsure, sure = torch.full((1, 1, 4, 4), 0.1), torch.full((1, 1, 4, 4), 6.0)
    unsure[..., 0], sure[..., 0] = -0.1, -6.0
    everywhere = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert mean_entropy(unsure, everywhere).item() == pytest.approx(0.692, abs=1e-3)
    assert mean_entropy(sure, everywhere).item() < 0.02


def test_fusion_without_priors_is_refused_by_key():
    segmenter = fused_segmenter()
    with pytest.raises(RecipeError, match=r"data\.priors: AddRgb .* this batch has none"):
        segmenter.training_losses(make_batch(sizes=((64, 64), (32, 64))), BceDiceLoss())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inference": "mean"}, "without a fusion all are raw. Set model.fusion"),
        ({"augmented_weight": 2.0}, "without a fusion all are raw"),
        ({"fusion": AddRgb(), "raw_weight": -1.0}, "raw_weight: must be 0 or more, got -1.0"),
        ({"fusion": AddRgb(), "raw_weight": 0.0, "augmented_weight": 0.0}, "both 0, so nothing is learned"),
    ],
)
def test_impossible_blending_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        TaskSegmenter(SamParts(fusion=settings.pop("fusion", None)), **settings)
