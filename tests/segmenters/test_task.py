"""The task network: what it sees, what it gives, what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.segmenters.task import TaskSegmenter
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
    return TaskSegmenter(encoder="resnet18", side=64)


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
    assert segmenter.frozen_parameters() == []
    assert "no frozen encoder" in segmenter.not_cacheable()


def test_fusion_changes_the_input(segmenter):
    fused = TaskSegmenter(encoder="resnet18", side=64, fusion=_Brighten())
    fused.network.load_state_dict(segmenter.network.state_dict())
    batch = make_batch(sizes=((64, 64), (64, 64)))
    brighter = replace(batch, images=batch.images + 10)
    with torch.no_grad():
        expected = segmenter.eval()(brighter).low_res_masks
        found = fused.eval()(replace(batch, priors=torch.full_like(batch.images, 10))).low_res_masks
    torch.testing.assert_close(found, expected)


def test_encoder_weights_come_from_a_file(segmenter, tmp_path):
    torch.save(segmenter.network.encoder.state_dict(), tmp_path / "encoder.pth")
    other = TaskSegmenter(encoder="resnet18", side=64, encoder_weights=str(tmp_path / "encoder.pth"))
    pairs = zip(segmenter.network.encoder.parameters(), other.network.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=r"encoder\.pth: does not fit the encoder resnet18"):
        TaskSegmenter(encoder="resnet18", side=64, encoder_weights=str(tmp_path / "encoder.pth"))


def test_timm_encoder_learns_in_every_parameter():
    segmenter = TaskSegmenter(encoder="tu-resnet10t", side=32)
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
        TaskSegmenter(**settings)


def test_several_objects_an_image_are_refused(segmenter):
    with pytest.raises(RecipeError, match=r"TaskSegmenter gives one mask per image.*Set data\.target: binary"):
        segmenter(make_batch(objects=(2, 1)))
