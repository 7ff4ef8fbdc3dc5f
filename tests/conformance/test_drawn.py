"""Prompts drawn before a batch moves are those that would have been drawn after it."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.losses import BceDiceLoss, SoftmaxDiceLoss
from medsam_tune.prompts import BoxJitter, BoxPrompt
from medsam_tune.segmenters import InteractiveSegmenter, SamParts, SamSegmenter, SemanticSegmenter
from tests.class_batches import make_class_batch
from tests.conformance.prompt_cases import DRAWN
from tests.factories import make_batch

SEGMENTERS = {"plain": SamSegmenter, "clicks": partial(InteractiveSegmenter, rounds=3, mask_feedback="probs")}


def losses(segmenter, batch, loss):
    with torch.no_grad():
        return {name: term.item() for name, term in segmenter.training_losses(batch, loss).items()}


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("name", DRAWN)
def test_step_has_the_same_losses_whenever_its_prompts_are_drawn(name, kind):
    segmenter = SEGMENTERS[kind](SamParts(SamBackbone("random_tiny"), DRAWN[name]()))
    batch = replace(make_batch(objects=(2, 1)), training=True, epoch=3)
    drawn = segmenter.drawn(batch)
    assert losses(segmenter, drawn, BceDiceLoss()) == losses(segmenter, batch, BceDiceLoss())
    if "Mask" not in name:
        assert drawn.queries.kinds()
        assert segmenter.ask(drawn) is drawn.queries


def test_network_with_classes_still_asks_once_an_image():
    prompts = BoxPrompt(jitter=BoxJitter(low=2, high=9))
    segmenter = SemanticSegmenter(SamParts(SamBackbone("random_tiny"), prompts), ["wall", "lumen"])
    batch = replace(make_class_batch(2), training=True)
    assert losses(segmenter, segmenter.drawn(batch), SoftmaxDiceLoss()) == losses(segmenter, batch, SoftmaxDiceLoss())
