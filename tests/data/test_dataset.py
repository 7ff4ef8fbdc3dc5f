from dataclasses import replace

import pytest
import torch

from medsam_tune.data import Augmentation, Draw, SegmentationDataset, Views, collate
from medsam_tune.data.dataset import DatasetSettings
from medsam_tune.errors import DataError
from medsam_tune.fusion import priors_to_input, render_priors
from medsam_tune.geometry import InputRule, image_to_input, masks_to_input
from medsam_tune.masks import ObjectMasks
from medsam_tune.types import AutomaticMasks
from tests.data.conftest import ArraySource

RULE = InputRule(side=32)
FLIP = Augmentation(horizontal_flip=0.5, brightness=0.4)


def make_dataset(source, indices=(2, 5), *, augmentation=None, **settings):
    case_index = {name: i for i, name in enumerate(sorted(set(source.case_ids())))}
    settings = {"target": "binary", "training": False, **settings}
    return SegmentationDataset(
        Views(source, augmentation, seed=1), indices, DatasetSettings(RULE, case_index=case_index, **settings)
    )


def test_item_is_the_sample_in_the_input_frame(array_source):
    source = array_source()
    item = make_dataset(source)[1]
    image, frame = image_to_input(source[5].image, RULE)
    assert torch.equal(item.image, image)
    assert item.frame == frame
    assert torch.equal(item.masks.dense(), masks_to_input(source[5].masks, frame, 32).dense())
    assert (item.sample.index, item.case_index) == (5, 2)


def test_views_cycle_over_the_epochs_and_view_0_is_the_image_as_stored(array_source):
    dataset = make_dataset(array_source(), augmentation=FLIP, training=True, n_views=3)
    images = [dataset[Draw(epoch, 0)].image for epoch in range(6)]
    assert [dataset.view_of(epoch, 0) for epoch in range(6)] == [0, 1, 2, 0, 1, 2]
    assert torch.equal(images[0], make_dataset(array_source())[0].image)
    assert torch.equal(images[1], images[4])
    assert not torch.equal(images[1], images[2])


def test_without_fixed_views_every_epoch_draws_anew_and_repeats_exactly(array_source):
    dataset = make_dataset(array_source(), augmentation=FLIP, training=True, n_views=0)
    images = [dataset[Draw(epoch, 0)].image for epoch in range(3)]
    assert not torch.equal(images[0], images[1])
    torch.manual_seed(99)
    assert torch.equal(images[2], dataset[Draw(2, 0)].image)


def test_evaluation_never_augments(array_source):
    dataset = make_dataset(array_source(), augmentation=FLIP, n_views=0)
    assert torch.equal(dataset[Draw(7, 0)].image, make_dataset(array_source())[0].image)


def test_object_limit_draws_other_objects_each_epoch_and_the_same_on_every_run(array_source):
    limited = make_dataset(array_source(pieces=3), target="per_instance", training=True, max_objects=1)
    drawn = [limited[Draw(epoch, 0)].sample.masks.dense() for epoch in range(8)]
    assert all(len(masks) == 1 for masks in drawn)
    assert len({tuple(masks.flatten().tolist()) for masks in drawn}) > 1
    assert torch.equal(drawn[3], limited[Draw(3, 0)].sample.masks.dense())
    everything = make_dataset(array_source(pieces=3), target="per_instance", max_objects=1)
    assert len(everything[0].sample.masks) == 3


def test_embeddings_are_asked_for_by_source_index_and_view(array_source):
    dataset = make_dataset(array_source(), augmentation=FLIP, training=True, n_views=2)
    dataset.embeddings = lambda index, view: torch.full((2, 1, 1), 10.0 * index + view)
    batch = collate([dataset[Draw(3, 0)], dataset[Draw(3, 1)]])
    assert batch.image_embeddings.flatten().tolist() == [21, 21, 51, 51]
    assert batch.epoch == 3


def test_batch_flattens_objects_in_the_order_of_the_images(array_source):
    dataset = make_dataset(array_source(empty=(5,), pieces=2), indices=(2, 5, 0), target="per_instance")
    batch = collate([dataset[0], dataset[1], dataset[2]])
    assert batch.image_index.tolist() == [0, 0, 2, 2]
    assert batch.labels.tolist() == [7, 7, 7, 7]
    assert [len(masks) for masks in batch.original_masks] == [2, 0, 2]
    assert batch.sample_index.tolist() == [2, 5, 0]
    assert batch.case_index.tolist() == [1, 2, 0]
    assert (batch.image_ids, batch.case_ids) == (("image_2", "image_5", "image_0"), ("case_1", "case_2", "case_0"))
    for row, image in enumerate(batch.image_index.tolist()):
        original = batch.original_masks[image][row % 2]
        assert torch.equal(batch.masks[row], masks_to_input(ObjectMasks.of(original[None]), batch.frames[image], 32).dense())
    assert batch.image_embeddings is None


def object_of(source):
    """Return a lookup that finds an image's own object, scored by its source index."""

    def look_up(index):
        masks = source[index].masks.dense()
        return AutomaticMasks(masks, torch.ones(len(masks)), torch.full((len(masks),), index / 10))

    return look_up


def with_priors(source, **settings):
    dataset = make_dataset(source, **settings)
    dataset.views = replace(dataset.views, priors=object_of(source))
    return dataset


def test_priors_are_drawn_from_the_masks_of_the_source_index(array_source):
    source = array_source()
    dataset = with_priors(source)
    batch = collate([dataset[0], dataset[1]])
    for row, index in enumerate((2, 5)):
        expected = priors_to_input(render_priors(object_of(source)(index)), batch.frames[row], 32)
        assert torch.equal(batch.priors[row], expected)
    assert batch.priors[:, 0].amax().item() == pytest.approx(0.5)


def test_priors_of_an_augmented_view_lie_where_its_masks_lie(array_source):
    move = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, translate=0.1)
    dataset = with_priors(array_source(), augmentation=move, training=True, n_views=0)
    places = set()
    for epoch in range(6):
        item = dataset[Draw(epoch, 0)]
        shown = item.priors[0] > 0.1
        overlap = (shown & item.masks.dense()[0]).sum() / (shown | item.masks.dense()[0]).sum()
        assert overlap > 0.8
        places.add(tuple(item.masks.dense()[0].nonzero()[0].tolist()))
    assert len(places) > 1


def test_without_a_lookup_there_are_no_priors(array_source):
    dataset = make_dataset(array_source())
    assert collate([dataset[0]]).priors is None


def test_masks_of_another_size_are_refused(array_source):
    dataset = make_dataset(array_source())
    wrong = AutomaticMasks(torch.zeros(1, 20, 16, dtype=torch.bool), torch.ones(1), torch.ones(1))
    dataset.views = replace(dataset.views, priors=lambda index: wrong)
    with pytest.raises(DataError, match=r"image_2: its automatic masks have the size \(20, 16\), the image has \(16, 20\)"):
        dataset[0]


class PartlyAnnotated(ArraySource):
    """The left half of each image is not annotated; the last image has no mask file."""

    def __getitem__(self, index):
        ignored = torch.zeros(16, 20, dtype=torch.bool)
        ignored[:, :10] = True
        return replace(super().__getitem__(index), ignored=None if index == 7 else ignored)


def test_unannotated_pixels_travel_to_the_batch_and_turn_with_the_image():
    batch = collate([make_dataset(PartlyAnnotated(), indices=range(8))[index] for index in (0, 7)])
    assert batch.ignored.shape == (2, 1, 32, 32)
    assert batch.ignored[0, 0, 0].tolist() == [True] * 16 + [False] * 16
    assert not batch.ignored[1].any()
    assert [int(mask.sum()) for mask in batch.original_ignored] == [160, 0]
    always = Augmentation(horizontal_flip=1.0)
    flipped = make_dataset(PartlyAnnotated(), augmentation=always, training=True, n_views=0)[Draw(0, 0)]
    assert flipped.ignored[0, 0].tolist() == [False] * 16 + [True] * 16
    assert torch.equal(flipped.sample.ignored, PartlyAnnotated()[0].ignored.flip(-1))
    assert collate([make_dataset(ArraySource())[0]]).ignored is None
