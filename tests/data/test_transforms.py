from dataclasses import replace

import pytest
import torch

from medsam_tune.data import Augmentation, augment, view_seed
from medsam_tune.errors import RecipeError
from medsam_tune.samples import Sample

STRONG = Augmentation(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    degrees=30,
    scale=(0.8, 1.2),
    translate=0.1,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
)


def sample_with(mask, image=None):
    image = torch.rand(3, *mask.shape, generator=torch.Generator().manual_seed(3)) * 255 if image is None else image
    return Sample(image, mask[None], torch.ones(1, dtype=torch.int64), image_id="a", case_id="a")


def disc(height=40, width=48, row=14, column=30, radius=7):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_settings_that_change_nothing_change_nothing():
    sample = sample_with(disc())
    same = augment(sample, Augmentation(), seed=1)
    assert torch.allclose(same.image, sample.image, atol=1e-3)
    assert torch.equal(same.masks.dense(), sample.masks.dense())


def test_flip_is_exact_and_joint():
    sample = sample_with(disc())
    flipped = augment(sample, Augmentation(horizontal_flip=1.0), seed=1)
    assert torch.allclose(flipped.image, sample.image.flip(-1), atol=1e-3)
    assert torch.equal(flipped.masks.dense(), sample.masks.dense().flip(-1))


@pytest.mark.parametrize("seed", range(6))
def test_image_and_masks_move_together(seed):
    mask = disc()
    geometry = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, degrees=40, scale=(0.7, 1.3), translate=0.2)
    moved = augment(sample_with(mask, image=mask.float().expand(3, -1, -1) * 255), geometry, seed=seed)
    shown = moved.image[0] > 127
    overlap = (shown & moved.masks.dense()[0]).sum() / (shown | moved.masks.dense()[0]).sum()
    assert overlap > 0.93
    assert not torch.equal(moved.masks.dense()[0], mask)


def test_seed_alone_decides_and_the_global_random_state_is_left_alone():
    sample = sample_with(disc())
    torch.manual_seed(1)
    first = augment(sample, STRONG, seed=5)
    after_augmenting = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after_augmenting, torch.rand(1))
    second = augment(sample, STRONG, seed=5)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.masks.dense(), second.masks.dense())
    assert not torch.equal(first.image, augment(sample, STRONG, seed=6).image)


def test_generators_of_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    augment(sample_with(disc()), STRONG, seed=5)


def test_grey_levels_stay_in_range_and_colour_changes_leave_masks_alone():
    sample = sample_with(disc())
    jittered = augment(sample, Augmentation(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5), seed=2)
    assert jittered.image.min() >= 0
    assert jittered.image.max() <= 255
    assert not torch.allclose(jittered.image, sample.image, atol=5)
    assert torch.equal(jittered.masks.dense(), sample.masks.dense())


def test_brightness_scales_grey_levels_as_on_paper():
    grey = torch.full((3, 4, 4), 100.0)
    mask = torch.ones(4, 4, dtype=torch.bool)
    levels = {
        round(float(augment(sample_with(mask, grey), Augmentation(brightness=0.5), seed=s).image[0, 0, 0])) for s in range(8)
    }
    assert len(levels) > 4
    assert min(levels) >= 50
    assert max(levels) <= 150


def test_object_is_never_pushed_out_of_the_image():
    corner = torch.zeros(40, 48, dtype=torch.bool)
    corner[:2, :2] = True
    shifting = Augmentation(translate=0.9)
    assert all(augment(sample_with(corner), shifting, seed=seed).masks.dense().any() for seed in range(20))


def test_image_without_objects_is_augmented_too():
    sample = Sample(torch.rand(3, 8, 8) * 255, torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0), "a", "a")
    flipped = augment(sample, Augmentation(vertical_flip=1.0), seed=0)
    assert torch.allclose(flipped.image, sample.image.flip(-2), atol=1e-3)
    assert flipped.masks.shape == (0, 8, 8)


def test_view_seeds_are_stable_across_processes_and_distinct():
    assert view_seed(0, "image_1", 2) == 5041380168156318756
    seeds = {view_seed(seed, name, view) for seed in range(3) for name in ("a", "b") for view in range(4)}
    assert len(seeds) == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizontal_flip": 1.5}, "data.augmentation.horizontal_flip: expected a value from 0 to 1.0, got 1.5"),
        ({"hue": 0.7}, "data.augmentation.hue"),
        ({"brightness": -0.1}, "data.augmentation.brightness"),
        ({"scale": (1.2, 0.8)}, "data.augmentation.scale: expected 0 < low <= high"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings, message):
    with pytest.raises(RecipeError, match=message):
        Augmentation(**settings)


def sample_with_priors():
    mask = disc()
    sample = sample_with(mask, image=mask.float().expand(3, -1, -1) * 255)
    edge = disc(radius=8) & ~disc(radius=6)
    return replace(sample, priors=torch.stack([2 * mask.float(), edge.float()]))


@pytest.mark.parametrize("seed", range(6))
def test_priors_move_with_image_and_masks(seed):
    geometry = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, degrees=40, scale=(0.7, 1.3), translate=0.2)
    moved = augment(sample_with_priors(), geometry, seed=seed)
    # The segmentation prior shows what the image shows, resampled alike, and keeps its scale.
    torch.testing.assert_close(moved.priors[0] / 2, moved.image[0] / 255)
    assert set(moved.priors[1].unique().tolist()) == {0.0, 1.0}
    edge_as_mask = replace(sample_with_priors(), masks=sample_with_priors().priors[1:].bool(), priors=None)
    assert torch.equal(moved.priors[1].bool(), augment(edge_as_mask, geometry, seed=seed).masks.dense()[0])


def test_flip_of_priors_is_exact():
    sample = sample_with_priors()
    flipped = augment(sample, Augmentation(vertical_flip=1.0), seed=3)
    torch.testing.assert_close(flipped.priors, sample.priors.flip(-2), atol=1e-5, rtol=0)
    assert torch.equal(flipped.priors[1], sample.priors[1].flip(-2))


def test_priors_change_neither_the_random_draw_nor_their_values_under_colour():
    sample = sample_with_priors()
    with_priors = augment(sample, STRONG, seed=5)
    assert torch.equal(with_priors.image, augment(replace(sample, priors=None), STRONG, seed=5).image)
    jittered = augment(sample, Augmentation(brightness=0.9, contrast=0.9), seed=2)
    torch.testing.assert_close(jittered.priors, sample.priors, atol=1e-5, rtol=0)
    assert not torch.allclose(jittered.image, sample.image, atol=5)
