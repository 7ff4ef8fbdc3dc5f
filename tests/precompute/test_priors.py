import pickle
from dataclasses import replace

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.geometry import InputRule
from medsam_tune.precompute import PriorOrigin, PriorPrecompute, PriorSettings, count_masks, open_store
from medsam_tune.precompute.fill import fill, lookup
from medsam_tune.types import AutomaticMasks

ORIGIN = PriorOrigin(PriorSettings(), "a" * 64, InputRule(256, min_max=True))


def some_masks(n, seed=0, size=(21, 34)):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, *size, generator=generator) < 0.4
    return AutomaticMasks(masks, torch.rand(n, generator=generator), torch.rand(n, generator=generator))


def assert_same(found, expected):
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.predicted_iou, expected.predicted_iou)
    assert torch.equal(found.stability_score, expected.stability_score)
    assert (found.masks.dtype, found.predicted_iou.dtype) == (torch.bool, torch.float32)


def image(seed):
    return torch.rand(3, 21, 34, generator=torch.Generator().manual_seed(seed)) * 255


def precompute(origin=ORIGIN, found=(), build=None):
    """Return the mechanism over ``image``; ``found`` holds the number of masks of each."""
    return PriorPrecompute(origin, lambda item: image(item[0]), build or (lambda: Finder(found)))


class Finder:
    """Find as many masks as it was told, and remember the images."""

    def __init__(self, counts):
        self.counts, self.seen = counts, []

    def __call__(self, pixels):
        (seed,) = [seed for seed in range(len(self.counts)) if torch.equal(image(seed), pixels)]
        self.seen.append(seed)
        return some_masks(self.counts[seed], seed)


def filled(root, *counts, origin=ORIGIN):
    made = precompute(origin, counts)
    store = open_store(made, root)
    return store, fill(store, made, [(seed,) for seed in range(len(counts))])


@pytest.mark.parametrize("n_masks", [0, 1, 7])
def test_masks_and_scores_come_back_bit_by_bit_in_another_process_view(tmp_path, n_masks):
    store, done = filled(tmp_path, n_masks)
    find = pickle.loads(pickle.dumps(lookup(store, precompute(), done.keys)))
    assert_same(find(0), some_masks(n_masks))
    assert count_masks(store, done.keys.values()).masks == n_masks


def test_full_store_builds_no_network(tmp_path):
    filled(tmp_path, 1, 2)

    def build():
        raise AssertionError("built")

    made = precompute(build=build)
    assert fill(open_store(made, tmp_path), made, [(0,), (1,)]).made == 0


def test_generator_is_built_once(tmp_path):
    built = []

    def build():
        built.append(1)
        return Finder((1, 2, 0))

    made = precompute(build=build)
    assert fill(open_store(made, tmp_path), made, [(0,), (1,), (2,)]).made == 3
    assert built == [1]


@pytest.mark.parametrize(
    "changed",
    [
        {"points_per_side": 8},
        {"pred_iou_thresh": 0.6},
        {"stability_score_thresh": 0.9},
        {"stability_score_offset": 0.5},
        {"box_nms_thresh": 0.7},
        {"low_res_stability": True},
        {"box_fractions": (0.5,)},
    ],
    ids=str,
)
def test_every_setting_has_its_own_identity(changed):
    other = precompute(replace(ORIGIN, settings=replace(ORIGIN.settings, **changed)))
    assert other.identity() != precompute().identity()
    assert other.key(image(0)) != precompute().key(image(0))


@pytest.mark.parametrize(
    "other", [replace(ORIGIN, weights_sha256="a" * 63 + "b"), replace(ORIGIN, rule=InputRule(256))], ids=["weights", "rule"]
)
def test_other_weights_or_another_input_rule_have_another_identity(other):
    assert precompute(other).identity() != precompute().identity()


def test_what_the_weights_are_called_makes_no_difference():
    renamed = replace(ORIGIN, settings=PriorSettings(weights="mine", checkpoint="elsewhere/mine.pth"))
    assert precompute(renamed).identity() == precompute().identity()


def test_one_grey_level_or_another_size_is_another_image():
    changed = image(0)
    changed[2, 20, 33] += 1
    keys = {precompute().key(x) for x in (image(0), image(0).double(), changed, image(0).reshape(3, 34, 21))}
    assert len(keys) == 3


@pytest.mark.parametrize("numbers", [[2, 3, 1, 1, 0, 0, 5], [2, 3, 9, 1], [2, 3, -1]], ids=str)
def test_entry_with_a_right_checksum_and_wrong_content_is_refused(tmp_path, numbers):
    made = precompute()
    store, key = open_store(made, tmp_path), made.key(image(0))
    store.write({key: torch.tensor(numbers, dtype=torch.int32)})
    with pytest.raises(DataError, match=rf"entry {key} is damaged.*Delete the folder"):
        lookup(store, made, {(0,): key})(0)


def test_scores_that_are_no_numbers_are_not_stored():
    found = replace(some_masks(2), predicted_iou=torch.tensor([0.5, float("nan")]))
    with pytest.raises(DataError, match=r"hold NaN or infinity. Check data\.priors\.weights"):
        precompute().pack(found)


def test_images_without_a_mask_are_counted(tmp_path):
    store, done = filled(tmp_path, 3, 1, 0, 1)
    counts = count_masks(store, done.keys.values())
    assert (counts.images, counts.masks, counts.empty) == (4, 5, 1)
    assert str(counts) == "4 images, 1.2 masks an image, 1 images without a mask"
