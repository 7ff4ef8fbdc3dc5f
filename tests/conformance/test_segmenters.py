"""What every segmenter promises, checked for every segmenter that exists."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

import medsam_tune.segmenters as segmenters
from medsam_tune.backbone import SamBackbone
from medsam_tune.export.trained import frozen_identities, trained_names
from medsam_tune.losses import BceDiceLoss, MaskLoss, SoftmaxDiceLoss
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import InteractiveSegmenter, SamSegmenter, Segmenter, SemanticSegmenter, TaskSegmenter
from medsam_tune.segmenters.base import SamParts
from medsam_tune.tuners import SamedTuner
from medsam_tune.types import SegmentationBatch
from tests.class_batches import make_class_batch
from tests.factories import make_batch

DECODER, NO_MASK = "mask_decoder", "prompt_encoder.no_mask_embed"
# Softmax ignores what is added to all keys alike, so the gradient of these is zero in theory.
NO_EFFECT = ".k_proj.bias"


def tiny(*trainable: str) -> SamBackbone:
    return SamBackbone("random_tiny", trainable=trainable)


@dataclass(frozen=True)
class Case:
    """One segmenter, a batch it takes, a loss on it, and how the names of its trained parameters begin."""

    make: Callable[[], Segmenter]
    learns: tuple[str, ...]
    batch: Callable[[], SegmentationBatch] = make_batch
    loss: Callable[[], MaskLoss] = BceDiceLoss


CASES = {
    "SamSegmenter": Case(lambda: SamSegmenter(SamParts(tiny(DECODER), BoxPrompt())), (f"backbone.{DECODER}.",)),
    "InteractiveSegmenter": Case(
        lambda: InteractiveSegmenter(SamParts(tiny(DECODER), BoxPrompt()), rounds=2, eval_rounds=1), (f"backbone.{DECODER}.",)
    ),
    "TaskSegmenter": Case(lambda: TaskSegmenter(SamParts(), encoder="tu-test_resnet", side=64), ("network.",)),
    "SemanticSegmenter": Case(
        lambda: SemanticSegmenter(SamParts(tiny()), ["wall", "lumen"]),
        (f"backbone.{DECODER}.mask_tokens.", f"backbone.{DECODER}.output_hypernetworks_mlps."),
        make_class_batch,
        SoftmaxDiceLoss,
    ),
    "SemanticSegmenter-samed": Case(
        lambda: SemanticSegmenter(SamParts(tiny(DECODER, NO_MASK), tuner=SamedTuner(2)), ["wall", "lumen"]),
        (f"backbone.{DECODER}.", f"backbone.{NO_MASK}.", "backbone.image_encoder.blocks."),
        make_class_batch,
        SoftmaxDiceLoss,
    ),
}
each = pytest.mark.parametrize("name", CASES)


def made(name, *, seed=0):
    torch.manual_seed(seed)
    return CASES[name].make().train()


def learning(segmenter):
    return {name: p for name, p in segmenter.named_parameters() if p.requires_grad}


def total_loss(name, segmenter, *, training=True):
    batch = replace(CASES[name].batch(), training=training)
    return torch.stack(list(segmenter.training_losses(batch, CASES[name].loss()).values())).sum()


def take_step(name, segmenter):
    optimizer = torch.optim.AdamW(learning(segmenter).values(), lr=1e-2, weight_decay=0)
    total_loss(name, segmenter).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_every_segmenter_of_the_package_is_covered():
    offered = (getattr(segmenters, name) for name in segmenters.__all__)
    concrete = {found.__name__ for found in offered if issubclass(found, Segmenter) and not inspect.isabstract(found)}
    assert {name.partition("-")[0] for name in CASES} == concrete


@each
def test_exactly_the_declared_parameters_learn_and_are_stored(name):
    segmenter, case = made(name), CASES[name]
    learns = set(learning(segmenter))
    assert learns
    assert all(key.startswith(case.learns) for key in learns)
    assert all(any(key.startswith(start) for key in learns) for start in case.learns)
    parameters = {key for key, _ in segmenter.named_parameters()}
    assert set(trained_names(segmenter)) & parameters == learns
    # What is not stored lies in the base weights, or is named by a checksum; no released part has a frozen module of its own.
    assert all(key.startswith("backbone.") for key in parameters - learns)
    assert frozen_identities(segmenter) == {}


@each
def test_every_mask_is_that_of_forward_and_then_the_candidates(name):
    segmenter, batch = made(name).eval(), CASES[name].batch()
    with torch.no_grad():
        single, several, every = segmenter(batch), segmenter.candidates(batch), segmenter.every_mask(batch)
    parts = [single] if several.low_res_masks.shape[1] == 1 else [single, several]
    assert torch.equal(every.low_res_masks, torch.cat([part.low_res_masks for part in parts], dim=1))


@each
def test_every_parameter_learns_and_no_other_moves(name):
    segmenter = made(name)
    before = {key: tensor.clone() for key, tensor in segmenter.state_dict().items()}
    total_loss(name, segmenter).backward()
    assert {key for key, p in segmenter.named_parameters() if p.grad is not None} == set(learning(segmenter))
    segmenter.zero_grad(set_to_none=True)
    for _ in range(3):
        # The last scale of timm's residual blocks starts at zero, so what lies before it waits for two steps.
        take_step(name, segmenter)
    total_loss(name, segmenter).backward()
    assert [key for key, p in learning(segmenter).items() if not p.grad.any() and not key.endswith(NO_EFFECT)] == []
    stored, after = set(trained_names(segmenter)), segmenter.state_dict()
    assert [key for key in after if key not in stored and not torch.equal(after[key], before[key])] == []


@each
def test_what_is_saved_and_loaded_without_pickles_gives_equal_logits(name):
    batch, trained = CASES[name].batch(), made(name)
    take_step(name, trained)
    file = io.BytesIO()
    torch.save({key: trained.state_dict()[key] for key in trained_names(trained)}, file)
    file.seek(0)
    fresh = made(name, seed=1).eval()
    with torch.no_grad():
        expected = trained.eval()(batch).low_res_masks
        assert not torch.equal(fresh(batch).low_res_masks, expected)
        fresh.load_state_dict(torch.load(file, weights_only=True), strict=False)
        assert torch.equal(fresh(batch).low_res_masks, expected)


@each
def test_a_step_in_bfloat16_is_finite(name):
    segmenter = made(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = total_loss(name, segmenter)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in learning(segmenter).values())


@each
def test_an_image_has_as_many_rows_as_the_segmenter_says(name):
    segmenter, batch = made(name).eval(), CASES[name].batch()
    with torch.no_grad():
        rows = segmenter(batch).low_res_masks
    assert len(rows) == batch.n_images * segmenter.masks_per_image() == batch.n_objects
