"""What every tuner promises, checked for every tuner that exists, on both encoder families."""

from __future__ import annotations

import io

import pytest
import torch

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export.trained import trained_names
from medsam_tune.geometry import normalise
from medsam_tune.prompts import BoxPrompt
from tests.backbones import BACKBONES
from tests.conformance.steps import learning, make_segmenter, run_rank, take_step, total_loss
from tests.conformance.tuner_cases import CASES, RUNS, concrete_tuners, has_defaults
from tests.factories import make_batch
from tests.processes import noted_by_two_ranks

each = pytest.mark.parametrize(("name", "family"), RUNS, ids=lambda value: value)

# Softmax ignores what is added to all keys alike, so the gradient of these is zero in theory.
NO_EFFECT = ".k_proj.bias"


def _stock_logits(family, batch):
    """Logits (N, 1, 4g, 4g) by segment_anything's own encoder, prompt encoder and decoder, one object at a time."""
    sam = BACKBONES[family]().eval()
    boxes = BoxPrompt().boxes(batch)
    rows = []
    with torch.no_grad():
        embeddings = sam.image_encoder(normalise(batch.images, batch.frames, sam.input_rule))
        for box, image in zip(boxes, batch.image_index, strict=True):
            sparse, dense = sam.prompt_encoder(points=None, boxes=box[None], masks=None)
            masks, _ = sam.mask_decoder(
                image_embeddings=embeddings[image][None],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            rows.append(masks)
    return torch.cat(rows)


def test_every_tuner_of_the_package_is_covered():
    built = {type(case.make()) for case in CASES.values()}
    missing = [name for name, tuner in concrete_tuners().items() if tuner not in built]
    assert not missing, f"no case for {missing}; those with required arguments need one in tuner_cases or peft_cases"
    assert all(has_defaults(tuner) or tuner in built for tuner in concrete_tuners().values())


@each
def test_before_training_the_logits_are_those_of_segment_anything(name, family):
    batch = make_batch(objects=(2, 1))
    segmenter = make_segmenter(name, family).eval()
    with torch.no_grad():
        gap = (segmenter(batch).low_res_masks - _stock_logits(family, batch)).abs().max()
    if segmenter.tuner.declares_identity:
        assert gap < 1e-5
        assert segmenter.tuner.identity_note == ""
    else:
        assert gap > 1e-5, "declares to be no identity, but is one"
        assert len(segmenter.tuner.identity_note) > 10


@each
def test_exactly_the_tuners_parameters_learn(name, family):
    segmenter = make_segmenter(name, family)
    backbone = segmenter.backbone
    owned = {key for key, _ in backbone.named_parameters() if segmenter.tuner.is_tuned(key)}
    assert set(learning(backbone)) == owned
    assert owned
    assert not segmenter.tuner.is_tuned("image_encoder")
    assert segmenter.tuner.changes_encoder() == any(key.startswith("image_encoder.") for key in owned)


@each
def test_every_parameter_learns_and_no_other_moves(name, family):
    segmenter, batch = make_segmenter(name, family), make_batch(objects=(2, 1))
    before = {key: tensor.clone() for key, tensor in segmenter.state_dict().items()}
    total_loss(segmenter, batch).backward()
    parameters = dict(segmenter.named_parameters())
    with_gradient = {key for key, p in parameters.items() if p.grad is not None}
    assert with_gradient == set(learning(segmenter))
    segmenter.zero_grad(set_to_none=True)
    take_step(segmenter, batch)
    total_loss(segmenter, batch).backward()
    still = [key for key, p in learning(segmenter).items() if not p.grad.any() and not key.endswith(NO_EFFECT)]
    resting = CASES[name].resting
    assert [key for key in still if resting is None or resting not in key] == []
    stored = set(trained_names(segmenter))
    after = segmenter.state_dict()
    assert [key for key in after if key not in stored and not torch.equal(after[key], before[key])] == []


@each
def test_what_is_saved_and_loaded_without_pickles_gives_equal_logits(name, family):
    batch = make_batch(objects=(2, 1))
    trained = make_segmenter(name, family)
    take_step(trained, batch)
    file = io.BytesIO()
    torch.save({key: trained.state_dict()[key] for key in trained_names(trained)}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    fresh = make_segmenter(name, family)
    with torch.no_grad():
        untrained = fresh.eval()(batch).low_res_masks
        result = fresh.load_state_dict(stored, strict=False)
        assert result.unexpected_keys == []
        assert not set(result.missing_keys) & set(trained_names(fresh))
        expected = trained.eval()(batch).low_res_masks
        torch.testing.assert_close(fresh(batch).low_res_masks, expected, rtol=0, atol=0)
    assert not torch.equal(untrained, expected)


@each
def test_what_can_be_merged_gives_the_same_logits_under_the_networks_own_names_and_the_rest_says_why_not(name, family):
    batch = make_batch(objects=(2, 1))
    segmenter = make_segmenter(name, family)
    take_step(segmenter, batch)
    if not CASES[name].merges:
        with pytest.raises(CheckpointError, match=r"cannot be merged.*Export the"):
            segmenter.tuner.merge()
        return
    with torch.no_grad():
        expected = segmenter.eval()(batch).low_res_masks
        segmenter.tuner.merge()
        torch.testing.assert_close(segmenter(batch).low_res_masks, expected, rtol=1e-4, atol=1e-4)
    assert segmenter.backbone.state_dict().keys() == BACKBONES[family]().state_dict().keys()


@each
def test_a_second_tuner_and_a_second_backbone_are_refused(name, family):
    segmenter = make_segmenter(name, family)
    with pytest.raises(RecipeError, match=r"is attached already\. Build a fresh backbone and a fresh tuner"):
        CASES[name].make().attach(segmenter.backbone)
    with pytest.raises(RecipeError, match=r"is attached already\. Build a fresh backbone and a fresh tuner"):
        segmenter.tuner.attach(BACKBONES[family]())


@each
def test_a_step_in_bfloat16_is_finite(name, family):
    segmenter, batch = make_segmenter(name, family), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = total_loss(segmenter, batch)
    loss.backward()
    segmenter.after_backward(0)
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learning(segmenter).values())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.families) == 1])
def test_a_tuner_for_one_encoder_family_refuses_the_other_by_name(name):
    (other,) = set(BACKBONES) - set(CASES[name].families)
    with pytest.raises(RecipeError, match=r"^model\.tuner.*(TinyViT|SAM's ViT)"):
        CASES[name].make().attach(BACKBONES[other]())


@pytest.mark.slow
def test_two_processes_under_plain_ddp_agree_with_the_mean_gradient(tmp_path):
    assert noted_by_two_ranks(run_rank, tmp_path) == []
