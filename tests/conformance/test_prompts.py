"""What every prompt encoder and every sampler promises, checked for every one that exists."""

from dataclasses import replace

import pytest
import torch

from tests.conformance.prompt_cases import (
    CASES,
    DRAWN,
    LEARNED,
    concrete_classes,
    loss_of,
    make_segmenter,
    take_step,
    trained,
)
from tests.factories import make_batch, one_image


def test_every_prompt_encoder_and_sampler_of_the_package_is_tested_here():
    assert {name.partition("-")[0] for name in CASES} == concrete_classes()


@pytest.mark.parametrize("name", LEARNED)
def test_every_trainable_parameter_has_a_gradient_that_is_soon_not_zero(name):
    segmenter = make_segmenter(name).train()
    assert all(key.startswith("prompt_encoder.") for key in trained(segmenter))
    take_step(segmenter, make_batch())
    assert [key for key, p in trained(segmenter).items() if p.grad is None] == []
    # Behind a head that starts at zero nothing learns in the first step, nor in the second within timm's residual blocks,
    # whose last scale starts at zero too.
    for seed in (1, 2):
        take_step(segmenter, make_batch(seed=seed))
    assert [key for key, p in trained(segmenter).items() if not p.grad.any()] == []


@pytest.mark.parametrize("name", CASES)
def test_frozen_network_gets_no_gradient_and_does_not_move(name):
    segmenter = make_segmenter(name).train()
    frozen = {key: p.detach().clone() for key, p in segmenter.backbone.state_dict().items()}
    if name in LEARNED:
        take_step(segmenter, make_batch())
    else:
        assert not trained(segmenter)
        assert not segmenter(make_batch()).low_res_masks.requires_grad
    assert all(p.grad is None for p in segmenter.backbone.parameters())
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in segmenter.backbone.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_batch_gives_what_each_image_gives_alone(name):
    segmenter = make_segmenter(name).train()
    batch = make_batch(sizes=((40, 64), (64, 48), (30, 30)))
    if name in LEARNED:
        take_step(segmenter, batch)
    with torch.no_grad():
        together = segmenter.eval()(batch).low_res_masks
        alone = torch.cat([segmenter(one_image(batch, row)).low_res_masks for row in range(3)])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LEARNED)
def test_saved_encoder_gives_equal_logits_in_a_fresh_network(name, tmp_path):
    segmenter = make_segmenter(name).train()
    take_step(segmenter, make_batch())
    torch.save(segmenter.prompt_encoder.state_dict(), tmp_path / "source.pt")
    fresh = make_segmenter(name, seed=1).eval()
    batch = make_batch(seed=5)
    with torch.no_grad():
        expected = segmenter.eval()(batch).low_res_masks
        assert not torch.equal(fresh(batch).low_res_masks, expected)
        fresh.prompt_encoder.load_state_dict(torch.load(tmp_path / "source.pt", weights_only=True))
        assert torch.equal(fresh(batch).low_res_masks, expected)


@pytest.mark.parametrize("name", CASES)
def test_step_under_bf16_autocast_is_finite(name):
    segmenter = make_segmenter(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(segmenter, make_batch())
    assert torch.isfinite(loss)
    if name in LEARNED:
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in trained(segmenter).values())


@pytest.mark.parametrize("name", CASES)
def test_prompt_fits_the_decoder_with_one_row_an_object(name):
    segmenter = make_segmenter(name).train()
    batch = make_batch()
    embeddings = segmenter.image_embeddings(batch)
    prompt = segmenter.prompt_encoder(segmenter.ask(batch), batch.encoder_input(), embeddings, segmenter.backbone)
    assert prompt.dense_embeddings.shape == (2, *embeddings.main.shape[1:])
    assert prompt.sparse_embeddings.shape[::2] == (2, embeddings.main.shape[1])


@pytest.mark.parametrize("name", [*LEARNED, "SamPromptEncoder"])
def test_encoder_answers_the_same_whatever_the_truth(name):
    segmenter = make_segmenter(name).eval()
    batch = make_batch()
    with torch.no_grad():
        known = segmenter(batch).low_res_masks
        new = segmenter(replace(batch, truth=None)).low_res_masks
    assert torch.equal(known, new)


@pytest.mark.parametrize("name", DRAWN)
def test_sampler_draws_the_same_again_and_other_prompts_under_another_seed_or_never(name):
    sampler = DRAWN[name]()
    batch = replace(make_batch(), training=True)
    drawn = [sampler.draw(replace(batch, seed=seed), mask_side=16) for seed in (0, 0, 1)]
    first, again, other = ([*map(str, (q.boxes, q.point_coords, q.mask_inputs, q.form_index))] for q in drawn)
    assert first == again
    assert (first == other) is (name in ("BoxPrompt", "BoxPrompt-whole"))


@pytest.mark.parametrize("name", DRAWN)
def test_sampler_asks_new_images_only_if_it_reads_no_truth(name):
    segmenter = make_segmenter(name).eval()
    new = replace(make_batch(), truth=None)
    if segmenter.asks_user() is None:
        assert segmenter(new).low_res_masks.shape[0] == 2
    else:
        with pytest.raises(ValueError, match=r"Give box=\(x1, y1, x2, y2\), points or a mask"):
            segmenter(new)
