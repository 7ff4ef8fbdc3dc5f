"""What the weights expect of an image, against the libraries that their authors resize and normalise with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

from medsam_tune.backbone.input_rules import INPUT_RULES, LITE_MEDSAM, MEDSAM, SAM
from medsam_tune.backbone.weights import WEIGHTS
from medsam_tune.geometry import Resampling, areas_covered, image_to_input, normalise, resample

AREA = Resampling("area", eight_bit=True)
# cv2.resize(..., (4, 3), interpolation=cv2.INTER_AREA) of OpenCV 5.0.0.
SEVEN_COLUMNS = [
    [168, 229, 184, 171, 238, 171, 20],
    [206, 245, 153, 204, 5, 37, 53],
    [213, 206, 192, 173, 6, 120, 63],
    [96, 236, 131, 118, 4, 87, 161],
    [124, 71, 42, 73, 237, 16, 194],
]
FOUR_COLUMNS = [[206, 184, 152, 69], [202, 178, 65, 88], [123, 90, 115, 122]]


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def channels_first(image):
    return torch.from_numpy(image).permute(2, 0, 1).float()


def test_area_of_three_pixels_in_two_is_two_thirds_and_a_third():
    image = torch.tensor([[[0.0, 9, 18], [27, 36, 45], [54, 63, 72]]])
    assert resample(image, (2, 2), AREA).tolist() == [[[12, 24], [48, 60]]]


def test_area_of_whole_factors_is_the_mean_rounded():
    image = torch.tensor([[[0.0, 1, 10, 20], [1, 1, 30, 40]]])
    assert resample(image, (1, 2), AREA).tolist() == [[[1, 25]]]  # 0.75 and 25


@pytest.mark.parametrize(("shape", "expected"), [((2, 2), 3), ((4, 1), 2)], ids=["two by two", "four by one"])
def test_a_half_is_rounded_up_in_two_by_two_pixels_and_to_even_elsewhere_as_in_opencv(shape, expected):
    image = torch.tensor([1.0, 2, 3, 4]).reshape(1, *shape)  # 2.5 on average
    assert resample(image, (1, 1), AREA).item() == expected


def test_area_resampling_is_opencvs_to_the_level():
    resized = resample(torch.tensor(SEVEN_COLUMNS).float()[None], (3, 4), AREA)
    assert resized[0].tolist() == FOUR_COLUMNS


@pytest.mark.parametrize("size", [(256, 171), (100, 256), (75, 256), (150, 256)])
def test_area_resampling_is_that_of_an_installed_opencv(size):
    cv2 = pytest.importorskip("cv2")
    image = random_image(300, 512)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    difference = (resample(channels_first(image), size, AREA) - channels_first(expected)).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-4


@pytest.mark.parametrize(("n", "to"), [(7, 4), (512, 256), (749, 256), (256, 255), (5, 1)])
def test_every_pixel_is_covered_once_and_every_area_is_as_large_as_the_others(n, to):
    covered = areas_covered(n, to)
    torch.testing.assert_close(covered.sum(dim=0), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(covered.sum(dim=1), torch.full((to,), n / to, dtype=torch.float64))


@pytest.mark.parametrize(("height", "width", "levels"), [(40, 64, 0), (90, 61, 2)], ids=["enlarged", "shrunk"])
def test_sams_images_are_resized_as_by_the_library(height, width, levels):
    image, side = random_image(height, width), 64 if height == 90 else 128
    library = ResizeLongestSide(side).apply_image(image)
    resized = resample(channels_first(image), library.shape[:2], SAM.shrink)
    assert SAM.shrink == SAM.enlarge
    # Where it shrinks, Pillow rounds its weights as well.
    assert (resized - channels_first(library)).abs().max() <= levels


def test_bicubic_is_pillows_before_it_rounds():
    image = random_image(30, 40) // 4 + 96  # far from 0 and 255, where Pillow clips after each axis
    expected = np.array(Image.fromarray(image).resize((90, 70), Image.Resampling.BICUBIC))
    resized = resample(channels_first(image), (70, 90), MEDSAM.enlarge)
    assert (resized - channels_first(expected)).abs().max() < 1.6


def test_lite_medsam_shrinks_by_area_and_enlarges_bilinearly():
    large, small = channels_first(random_image(512, 512)), channels_first(random_image(64, 64))
    torch.testing.assert_close(
        image_to_input(large, LITE_MEDSAM)[0], (torch.nn.functional.avg_pool2d(large, 2) + 0.5).floor(), rtol=0, atol=0
    )
    bilinear = torch.nn.functional.interpolate(small[None], (256, 256), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(image_to_input(small, LITE_MEDSAM)[0], bilinear)


@pytest.mark.parametrize("rule", [SAM, MEDSAM, LITE_MEDSAM], ids=["sam", "medsam", "lite_medsam"])
def test_image_of_the_input_side_is_not_touched(rule):
    image = torch.rand(3, rule.side, rule.side) * 255
    assert torch.equal(image_to_input(image, rule)[0], image)


def test_lite_medsams_input_is_the_valid_area_from_0_to_1_and_zeros():
    image, frame = image_to_input(channels_first(random_image(128, 256)) / 2 + 40, LITE_MEDSAM)
    inputs = normalise(image[None], [frame], LITE_MEDSAM)[0]
    assert inputs[:, :128].min() == 0
    assert inputs[:, :128].max() == 1
    assert not inputs[:, 128:].any()


def test_scale_brings_grey_levels_to_0_to_1_before_the_mean():
    rule = replace(SAM, side=4, scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    image, frame = image_to_input(torch.full((3, 4, 4), 255.0), rule)
    torch.testing.assert_close(normalise(image[None], [frame], rule), torch.ones(1, 3, 4, 4))


def test_every_named_weight_has_a_rule_and_no_rule_is_left_over():
    assert INPUT_RULES.keys() == WEIGHTS.keys()
