"""SAM-Med2D's adapter."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.sam_med2d import ChannelSpatialAdapter, SamMed2DAdapter
from tests.tuners.shapes import trained_count


def test_vit_b_has_180504576_parameters():
    per_block = 2 * 768 * 192 + (9 + 16) * 768**2 + 2 * 768
    assert trained_count("vit_b", SamMed2DAdapter()) == 12 * per_block == 180_504_576


def test_the_gate_sees_the_whole_map_and_weighs_each_channel():
    adapter = ChannelSpatialAdapter(4, 2, init="repo")
    normed = torch.randn(1, 6, 6, 4)
    squeeze, _, excite, _ = adapter.gate
    share = torch.sigmoid((normed.mean(dim=(1, 2)) @ squeeze.weight.T).relu() @ excite.weight.T)
    gated = (normed * share[:, None, None]).permute(0, 3, 1, 2)
    down, _, up, _ = adapter.spatial
    spatial = torch.nn.functional.conv2d(gated, down.weight, stride=2, padding=1).relu()
    spatial = torch.nn.functional.conv_transpose2d(spatial, up.weight, stride=2, padding=1).relu()
    total = normed + spatial.permute(0, 2, 3, 1)
    expected = (total - total.mean(-1, keepdim=True)) / (total.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(adapter(normed, normed), expected, rtol=1e-4, atol=1e-5)


def test_an_odd_grid_keeps_its_size_and_its_even_part_its_place():
    adapter = ChannelSpatialAdapter(4, 2, init="repo")
    with torch.no_grad():
        # Without the gate's view of the whole map a pixel far from the border is the same on both grids.
        adapter.gate[2].weight.zero_()
    odd = torch.randn(1, 7, 7, 4)
    torch.testing.assert_close(adapter(odd, odd)[:, :4, :4], adapter(odd[:, :6, :6], odd[:, :6, :6])[:, :4, :4])
    assert adapter(odd, odd).shape == odd.shape


def test_a_ratio_of_0_is_refused():
    with pytest.raises(RecipeError, match=r"model\.tuner\.ratio: 0\.0 is no share of the channels"):
        SamMed2DAdapter(0.0)


def test_the_authors_initialisation_is_kaimings_by_the_outputs():
    adapter = ChannelSpatialAdapter(64, 16, init="repo")
    convolution, _, transposed, _ = adapter.spatial
    squeeze, _, excite, _ = adapter.gate
    # Outputs that one input reaches: 64 x 9, 64 x 16, 16, 64; for 768 channels the first is 0.0170, PyTorch's own 0.0069.
    expected = [(2 / n) ** 0.5 for n in (64 * 9, 64 * 16, 16, 64)]
    found = [layer.weight.std().item() for layer in (convolution, transposed, squeeze, excite)]
    assert found == pytest.approx(expected, rel=0.1)
    assert adapter.norm.weight.eq(1).all()
