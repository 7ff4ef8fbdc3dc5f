"""Conv-LoRA: the chosen expert's update, the balance loss, and who gets a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medsam_tune.errors import RecipeError
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.conv_lora import ConvLora, ConvLoraTuner, NoisyGate
from tests.backbones import make_vit
from tests.factories import make_batch
from tests.tuners.shapes import trained_count


def _layer(n_experts=3):
    update = ConvLora(4, 6, rank=2, n_experts=n_experts, scale=0.5)
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.normal_()
    return update.eval()


def test_each_item_gets_the_update_of_its_own_expert():
    update = _layer()
    tokens, output = torch.randn(5, 6, 6, 4), torch.randn(5, 6, 6, 6)
    down = (tokens @ update.down_proj.weight.T).permute(0, 3, 1, 2)
    chosen = (down.mean(dim=(2, 3)) @ update.gate.choice).argmax(dim=1)
    assert len(set(chosen.tolist())) > 1, "the draw should use several experts"
    rows = []
    for item, expert in zip(down, chosen.tolist(), strict=True):
        conv = update.experts[expert]
        maps = item[None] if expert == 0 else F.interpolate(item[None], scale_factor=expert + 1, mode="bicubic")
        maps = F.gelu(F.conv2d(maps, conv.weight, conv.bias, padding=1))
        rows.append(item[None] + F.interpolate(maps, size=(6, 6), mode="bicubic") if expert else item[None] + maps)
    expected = output + 0.5 * torch.cat(rows).permute(0, 2, 3, 1) @ update.up_proj.weight.T
    torch.testing.assert_close(update(tokens, output), expected, rtol=1e-4, atol=1e-4)


def test_flat_windows_are_the_same_as_square_ones():
    update = _layer()
    tokens, output = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 6)
    flat = update(tokens.flatten(1, 2), output.flatten(1, 2))
    torch.testing.assert_close(flat, update(tokens, output).flatten(1, 2))


def test_balance_loss_is_zero_for_even_and_large_for_uneven_choices():
    gate = NoisyGate(2, 2).train()
    with torch.no_grad():
        gate.choice.copy_(torch.tensor([[10.0, 0.0], [0.0, 10.0]]))
        gate.noise.fill_(-10.0)
    features = torch.tensor([[3.0, 0.0], [0.0, 3.0]])[:, :, None, None]
    chosen, even = gate(features)
    assert chosen.tolist() == [0, 1]
    torch.testing.assert_close(even, torch.tensor(0.0), rtol=0, atol=1e-6)
    # Both items to expert 0: loads 2 and 0, variance 2, mean 1.
    _, uneven = gate(features[[0, 0]])
    torch.testing.assert_close(uneven, torch.tensor(2.0))


def test_the_gate_learns_from_the_balance_loss_alone():
    segmenter, batch = SamSegmenter(SamParts(make_vit(), BoxPrompt(), tuner=ConvLoraTuner(n_experts=3))), make_batch()
    segmenter.backbone.train()
    segmenter(batch).low_res_masks.sum().backward()
    gates = {name: p for name, p in segmenter.named_parameters() if ".gate." in name}
    assert gates
    assert all(p.grad is None or not p.grad.any() for p in gates.values())
    segmenter(batch)
    segmenter.auxiliary_losses()["tuner"].backward()
    assert all(p.grad is not None and p.grad.any() for p in gates.values())


def test_there_is_no_balance_loss_in_evaluation_nor_once_the_step_is_over():
    tuner = ConvLoraTuner(n_experts=2)
    segmenter, batch = SamSegmenter(SamParts(make_vit(), BoxPrompt(), tuner=tuner)), make_batch()
    segmenter.eval()(batch)
    assert segmenter.auxiliary_losses() == {}
    segmenter.backbone.train()
    segmenter(batch)
    assert tuner.auxiliary_loss() > 0
    tuner.after_backward(0)
    assert tuner.auxiliary_loss() == 0


def test_evaluation_is_without_noise():
    segmenter, batch = SamSegmenter(SamParts(make_vit(), BoxPrompt(), tuner=ConvLoraTuner())).eval(), make_batch()
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
        torch.testing.assert_close(segmenter(batch).low_res_masks, segmenter(batch).low_res_masks, rtol=0, atol=0)


def test_vit_b_counts():
    per_layer = 3 * 768 + 3 * 3 * 768 + 8 * (9 * 3 * 3 + 3) + 2 * 3 * 8
    assert trained_count("vit_b", ConvLoraTuner(3, n_experts=8)) == 12 * per_layer


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, r"rank: 0 is no rank"), ({"n_experts": 1}, r"n_experts: 1 leaves nothing to choose\. Set at least 2")],
)
def test_settings_too_small_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        ConvLoraTuner(**settings)
