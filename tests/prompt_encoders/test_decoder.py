"""AutoSAM's decoder: its size, its arithmetic against another writing of it, and its options."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsam_tune.prompt_encoders.decoder import FeatureDecoder, PromptDecoder, make_norm


def _maps(channels, size=32, batch=2):
    return [torch.randn(batch, c, size // s, size // s) for c, s in zip(channels, (4, 8, 16, 32), strict=False)]


def test_papers_decoder_has_the_published_size_less_one_norm():
    with torch.device("meta"):
        decoder = PromptDecoder((192, 320, 720), 256, grid=64)
    # 6,169,088 in the authors' model, of which the uncalled second BatchNorm of 256 channels holds 512.
    assert sum(p.numel() for p in decoder.parameters()) == 6_169_088 - 512


def test_decoder_computes_what_the_paper_describes():
    decoder = PromptDecoder((6, 8, 10), 12, grid=8).eval()
    f4, f8, f16 = _maps((6, 8, 10))
    weights, up = decoder.state_dict(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def conv(x, name):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def norm(x, name):
        stats = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *stats)

    x = f16
    for block, skip in enumerate((f8, f4)):
        x = conv(conv(torch.cat([up(x), skip], 1), f"up.blocks.{block}.conv1"), f"up.blocks.{block}.conv2")
        x = F.leaky_relu(norm(x, f"up.blocks.{block}.norm"), 0.01)
    x = conv(F.relu(norm(conv(x, "conv1"), "norm")), "conv2").tanh()
    with torch.no_grad():
        torch.testing.assert_close(decoder([f4, f8, f16]), x)


def test_result_is_resized_corner_to_corner():
    decoder = PromptDecoder((4, 4, 4), 4, grid=5).eval()
    maps = _maps((4, 4, 4))
    with torch.no_grad():
        resized = decoder(maps)
        decoder.grid = 8
        full = decoder(maps)
    torch.testing.assert_close(resized[..., [0, 0, -1, -1], [0, -1, 0, -1]], full[..., [0, 0, -1, -1], [0, -1, 0, -1]])


def test_tanh_bounds_the_prompt_and_none_does_not():
    maps = [50 * m for m in _maps((4, 4, 4))]
    bounded = PromptDecoder((4, 4, 4), 4, grid=8, norm="group")
    free = PromptDecoder((4, 4, 4), 4, grid=8, norm="group", out_act="none")
    free.load_state_dict(bounded.state_dict())
    with torch.no_grad():
        for decoder in (bounded, free):
            decoder.conv2.weight.mul_(20)
        assert free(maps).abs().max() > 1
        torch.testing.assert_close(bounded(maps), free(maps).tanh())


def test_zero_init_gives_zero_and_a_gradient_to_the_last_convolution_only():
    decoder = PromptDecoder((4, 4, 4), 4, grid=8, zero_init=True)
    prompt = decoder(_maps((4, 4, 4)))
    assert torch.equal(prompt, torch.zeros_like(prompt))
    (prompt * torch.randn_like(prompt)).sum().backward()
    moved = {name for name, p in decoder.named_parameters() if p.grad.any()}
    assert moved == {"conv2.weight", "conv2.bias"}


@pytest.mark.parametrize("channels", [(6, 8, 10), (6, 8, 10, 12)])
def test_slim_decoder_uses_every_map(channels):
    decoder = FeatureDecoder(channels, width=4, norm="group")
    maps = [m.requires_grad_() for m in _maps(channels)]
    decoder(maps).square().sum().backward()
    assert all(m.grad.any() for m in maps)
    assert decoder.channels == 4


def test_sides_that_16_does_not_divide_work():
    maps = [torch.randn(1, 4, n, n) for n in (25, 13, 7)]
    assert PromptDecoder((4, 4, 4), 4, grid=8, norm="group")(maps).isfinite().all()


def test_group_norm_does_not_depend_on_the_other_images():
    norm, images = make_norm("group", 12), torch.randn(3, 12, 4, 4)
    torch.testing.assert_close(norm(images)[:1], norm(images[:1]))
