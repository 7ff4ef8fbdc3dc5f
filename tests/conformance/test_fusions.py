"""What every fusion promises, over every class of the package; a new one is found by itself."""

from __future__ import annotations

import pytest
import torch

import medsam_tune.fusion
from medsam_tune.errors import RecipeError
from medsam_tune.fusion.base import InputFusion
from tests.conformance.discovery import concrete

FUSIONS = concrete(medsam_tune.fusion, InputFusion)
each = pytest.mark.parametrize("name", FUSIONS)


def images_and_priors():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 16, 16, generator=generator) * 255, torch.rand(3, 2, 16, 16, generator=generator)


def test_fusions_were_found():
    assert {"AddRgb", "StackGrey", "Concat"} <= FUSIONS.keys()


@each
def test_fused_images_have_the_stated_channels_and_the_input_is_left_alone(name):
    fusion, (images, priors) = FUSIONS[name](), images_and_priors()
    before = images.clone(), priors.clone()
    fused = fusion(images, priors)
    assert fused.shape == (3, fusion.channels, 16, 16)
    assert fusion.without_priors(images).shape == fused.shape
    assert torch.isfinite(fused).all()
    assert torch.equal(images, before[0])
    assert torch.equal(priors, before[1])


@each
def test_an_image_is_fused_alike_in_every_batch(name):
    fusion, (images, priors) = FUSIONS[name](), images_and_priors()
    together = fusion(images, priors)
    for row in range(3):
        torch.testing.assert_close(fusion(images[row : row + 1], priors[row : row + 1]), together[row : row + 1])


@each
def test_priors_are_read_exactly_where_it_says_so(name):
    fusion, (images, priors) = FUSIONS[name](), images_and_priors()
    moved = fusion(images, 1 - priors)
    assert torch.equal(moved, fusion(images, priors)) is not fusion.reads_priors
    if fusion.reads_priors:
        with pytest.raises(RecipeError, match=r"data\.priors: .* this batch has none"):
            fusion(images, None)
