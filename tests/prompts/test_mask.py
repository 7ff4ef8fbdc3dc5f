"""Masks as prompts: coverage as logits, moves, and empty objects."""

from dataclasses import replace

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.prompts import MaskPrompt
from medsam_tune.prompts.mask import shift
from tests.factories import embed, make_batch, with_masks


def test_logits_tell_how_much_of_a_pixel_is_covered():
    batch = make_batch(sizes=((64, 64),))
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    # Rows 8 to 15 and columns 4 to 9: with 4 x 4 pixels each, columns 8 and 9 cover half of the third.
    masks[..., 8:16, 4:10] = True
    logits = MaskPrompt(8.0).draw(with_masks(batch, masks), mask_side=16).mask_inputs[0, 0]
    assert logits[2].tolist() == [-8.0, 8.0, 0.0] + [-8.0] * 13
    assert logits[1].tolist() == [-8.0] * 16


def test_mask_moves_in_training_only_and_by_whole_pixels():
    batch = make_batch(sizes=((64, 64),), objects=(3,))
    source = MaskPrompt(shift_px=8)

    def drawn(**changes):
        return source.draw(replace(batch, **changes), mask_side=64).mask_inputs > 0

    assert torch.equal(drawn(), batch.masks)
    moved = drawn(training=True)
    for row in range(3):
        assert moved[row].sum() == batch.masks[row].sum()
        travel = moved[row, 0].nonzero().amin(0) - batch.masks[row, 0].nonzero().amin(0)
        assert torch.equal(moved[row], shift(batch.masks[row], int(travel[1]), int(travel[0])))
        assert travel.abs().max() <= 8
    assert not torch.equal(moved, drawn(training=True, epoch=1))


@pytest.mark.parametrize(("dx", "dy"), [(3, -2), (-3, 2), (0, 0), (90, 1)])
def test_shift_fills_with_background(dx, dy):
    mask = torch.rand(1, 8, 8) > 0.5
    expected = torch.zeros_like(mask)
    for y, x in mask[0].nonzero().tolist():
        if 0 <= y + dy < 8 and 0 <= x + dx < 8:
            expected[0, y + dy, x + dx] = True
    assert torch.equal(shift(mask, dx, dy), expected)


def test_mask_reaches_the_prompt_encoder(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    source = MaskPrompt()
    prompts = embed(source.draw(batch, mask_side=16), batch, tiny_backbone)
    expected = tiny_backbone.embed_prompts(3, mask_inputs=source.draw(batch, mask_side=16).mask_inputs)
    assert torch.equal(prompts.dense_embeddings, expected.dense_embeddings)
    assert prompts.sparse_embeddings.shape == (3, 0, 32)


def test_batch_without_objects_gives_no_prompt(tiny_backbone):
    batch = make_batch(objects=(0, 0))
    prompts = embed(MaskPrompt(shift_px=2).draw(batch, mask_side=16), batch, tiny_backbone)
    assert prompts.dense_embeddings.shape[0] == 0


@pytest.mark.parametrize("settings", [{"logit": 0.0}, {"shift_px": -1}, {"eval_shift_px": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(RecipeError, match="expected logit above 0"):
        MaskPrompt(**settings)
