"""The two prior maps and the three ways to fuse them."""

import pytest
import torch
from scipy import ndimage

from medsam_tune.errors import RecipeError
from medsam_tune.fusion import AddRgb, Concat, StackGrey, priors_to_input, render_priors
from medsam_tune.geometry import InputRule, image_to_input, make_frame
from medsam_tune.types import AutomaticMasks

CROSS = ndimage.generate_binary_structure(2, 1)


def found(masks, scores):
    masks = torch.as_tensor(masks, dtype=torch.bool)
    return AutomaticMasks(masks, torch.ones(len(masks)), torch.as_tensor(scores, dtype=torch.float32))


def square(size=40, top=10, side=16):
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, top : top + side, top : top + side] = True
    return mask


def blobs(n=5, height=24, width=31, seed=0):
    noise = torch.rand(n, height, width, generator=torch.Generator().manual_seed(seed)).numpy()
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2)) > 0.5)


def some_priors():
    priors = torch.zeros(1, 2, 4, 4)
    priors[0, 0, 1, 1], priors[0, 0, 2, 2], priors[0, 1, 1, 2] = 0.5, 2.0, 1.0
    return priors


def test_segmentation_prior_sums_the_scores_where_masks_overlap():
    masks = torch.tensor([[[1, 1, 0], [1, 1, 0]], [[0, 1, 1], [0, 0, 0]]])
    priors = render_priors(found(masks, [0.9, 0.96]))
    torch.testing.assert_close(priors[0], torch.tensor([[0.9, 1.86, 0.96], [0.9, 0.9, 0.0]]))


def test_order_of_the_masks_does_not_matter():
    masks, scores = blobs(), torch.linspace(0.9, 1, 5)
    torch.testing.assert_close(render_priors(found(masks, scores)), render_priors(found(masks.flip(0), scores.flip(0))))


@pytest.mark.parametrize("seed", range(3))
def test_boundary_is_where_dilation_and_erosion_differ_for_any_mask(seed):
    masks = blobs(seed=seed)
    expected = torch.zeros(masks.shape[1:], dtype=torch.bool)
    for mask in masks.numpy():
        # Outside the image counts as background when growing and as foreground when shrinking, as scikit-image has it.
        grown, shrunk = ndimage.binary_dilation(mask, CROSS), ndimage.binary_erosion(mask, CROSS, border_value=1)
        expected |= torch.from_numpy(grown != shrunk)
    boundary = render_priors(found(masks, [0.95] * 5))[1]
    assert torch.equal(boundary, expected.float())
    assert 0 < expected.sum() < expected.numel()


def test_boundary_of_a_square_is_sixty_pixels_inside_and_sixty_four_outside():
    mask = square()
    boundary = render_priors(found(mask, [1.0]))[1].bool()
    assert (boundary & mask[0]).sum() == 60
    assert (boundary & ~mask[0]).sum() == 64


def test_border_of_the_image_is_no_boundary():
    assert render_priors(found(torch.ones(1, 6, 8), [1.0]))[1].sum() == 0
    half = torch.zeros(1, 6, 8)
    half[:, :, :4] = 1
    assert render_priors(found(half, [1.0]))[1].sum(0).tolist() == [0, 0, 0, 6, 6, 0, 0, 0]


def test_no_mask_gives_empty_maps_and_add_rgb_gives_the_image_back():
    priors = render_priors(found(torch.zeros(0, 8, 8), []))
    images = torch.rand(1, 3, 8, 8) * 255
    assert not priors.any()
    assert torch.equal(AddRgb()(images, priors[None]), images)
    assert torch.equal(AddRgb(prior_norm="max")(images, priors[None]), images)


def test_add_rgb_raises_green_by_the_masks_and_blue_by_their_edges():
    images = torch.full((1, 3, 4, 4), 100.0)
    fused = AddRgb()(images, some_priors())
    assert torch.equal(fused[:, 0], images[:, 0])
    assert (fused[0, 1, 1, 1], fused[0, 1, 2, 2], fused[0, 1, 0, 0]) == (227.5, 610.0, 100.0)
    assert (fused[0, 2, 1, 2], fused[0, 2, 0, 0]) == (355.0, 100.0)


def test_after_normalisation_the_maps_are_added_as_they_are():
    images = torch.zeros(1, 3, 4, 4)
    fused = AddRgb(space="normalised")(images, some_priors())
    assert torch.equal(fused[:, 1:], some_priors())


@pytest.mark.parametrize(("norm", "low", "high"), [("none", 0.5, 2.0), ("clip", 0.5, 1.0), ("max", 0.25, 1.0)])
def test_norm_concerns_the_segmentation_prior_alone(norm, low, high):
    fused = AddRgb(prior_norm=norm, space="normalised")(torch.zeros(1, 3, 4, 4), some_priors())
    assert (fused[0, 1, 1, 1], fused[0, 1, 2, 2]) == (low, high)
    assert torch.equal(fused[:, 2], some_priors()[:, 1])


def test_clipping_cuts_the_fused_image_at_white():
    fused = AddRgb(clip=True)(torch.full((1, 3, 4, 4), 100.0), some_priors())
    assert (fused[0, 1, 1, 1], fused[0, 1, 2, 2], fused[0, 2, 1, 2]) == (227.5, 255.0, 255.0)


@pytest.mark.parametrize("fusion", [AddRgb(), AddRgb(prior_norm="max", clip=True), StackGrey(), Concat(prior_norm="clip")])
def test_fusion_leaves_image_and_priors_as_they_were(fusion):
    images, priors = torch.rand(1, 3, 4, 4) * 255, some_priors()
    before = images.clone()
    fusion(images, priors)
    fusion.without_priors(images)
    assert torch.equal(images, before)
    assert torch.equal(priors, some_priors())


def test_grey_image_is_stacked_with_both_maps():
    grey = torch.rand(1, 1, 4, 4) * 255
    fused = StackGrey()(grey.expand(-1, 3, -1, -1), some_priors())
    torch.testing.assert_close(fused[:, :1], grey)
    torch.testing.assert_close(fused[:, 1:], 255 * some_priors())


def test_colours_are_weighed_as_the_eye_does():
    colours = torch.tensor([100.0, 200.0, 50.0])[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(StackGrey()(colours, some_priors())[:, 0], torch.full((1, 4, 4), 29.9 + 117.4 + 5.7))


def test_concat_appends_the_maps_and_its_raw_input_carries_empty_ones():
    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(Concat()(images, some_priors()), torch.cat([images, some_priors()], dim=1))
    assert torch.equal(Concat().without_priors(images), Concat()(images, torch.zeros(1, 2, 4, 4)))
    assert Concat().channels == 5


@pytest.mark.parametrize("fusion", [AddRgb(), StackGrey(), Concat()])
def test_missing_priors_are_named_by_their_key(fusion):
    with pytest.raises(RecipeError, match=rf"data\.priors: {type(fusion).__name__} .* this batch has none\. Set data\.priors"):
        fusion(torch.zeros(1, 3, 4, 4), None)
    with pytest.raises(RecipeError, match="this batch has 3"):
        fusion(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("kind", [AddRgb, StackGrey])
def test_clipping_after_normalisation_is_refused(kind):
    with pytest.raises(RecipeError, match=r"model\.fusion\.clip: .*Set space: image, or clip: false"):
        kind(space="normalised", clip=True)


def test_priors_lie_in_the_input_frame_where_image_and_masks_lie():
    rule, mask = InputRule(side=64), square(size=32, top=8)
    priors = render_priors(found(mask, [1.0]))
    placed = priors_to_input(priors[:, :24], make_frame((24, 32), rule), 64)
    shown, _ = image_to_input(mask[:, :24].float().expand(3, -1, -1) * 255, rule)
    torch.testing.assert_close(placed[0] * 255, shown[0])
    assert set(placed[1].unique().tolist()) == {0.0, 1.0}
    assert not placed[:, 48:].any()


def test_priors_of_the_input_size_stay_exactly_as_they_are():
    priors = render_priors(found(square(size=32, top=8), [0.97]))
    assert torch.equal(priors_to_input(priors, make_frame((32, 32), InputRule(side=32)), 32), priors)
