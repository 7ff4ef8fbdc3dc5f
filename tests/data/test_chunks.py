"""Slices of a chunk travel, turn and are resumed together."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.data import Augmentation, NiftiVolumes, SliceRule
from medsam_tune.data.datamodule import SegmentationDataModule
from medsam_tune.data.neighbours import NeighbourSource
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.geometry import InputRule
from tests.data.conftest import ArraySource

RULE = InputRule(side=16)
FLIP = Augmentation(horizontal_flip=0.5)


class ColourSlices(ArraySource):
    """Images in colour, two slices a volume."""

    def places(self):
        return tuple((f"volume_{index // 2}", index % 2) for index in range(len(self)))


@pytest.fixture
def root(volumes):
    """Eight volumes of seven slices, brighter from slice to slice and from left to right."""
    values = np.arange(6)[:, None, None] * 10 + np.arange(7)[None, None, :] + np.zeros((6, 5, 7))
    labels = np.zeros((6, 5, 7), np.uint8)
    labels[:2, 1:3, 3] = 1
    for case in "abcdefgh":
        volumes("images", case, values.astype(np.int16))
        folder = volumes("labels", case, labels)
    return folder


def opened(root, **settings):
    source = NiftiVolumes(window=(0.0, 80.0), slices=settings.pop("slices", SliceRule()))
    data = SegmentationDataModule(source, str(root), cache_embeddings=False, **settings)
    data.open(RULE)
    return data


def test_batches_hold_whole_chunks_of_one_volume_in_order(root):
    data = opened(root, chunk=3, batch_size=2)
    seen = []
    for batch in data.train_dataloader():
        pairs = list(zip(batch.volume_index.tolist(), batch.slice_index.tolist(), strict=True))
        while pairs:
            volume, first = pairs[0]
            size = min(3, 7 - first)
            assert pairs[:size] == [(volume, first + step) for step in range(size)]
            pairs, seen = pairs[size:], [*seen, *pairs[:size]]
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 7 * len(data.splits.train)


@pytest.mark.parametrize("chunk", [1, 3])
def test_slices_share_a_chunk_index_exactly_where_they_always_travel_together(root, chunk):
    data = opened(root, chunk=chunk, batch_size=3)
    together = {}
    for batch in data.train_dataloader():
        for number, name in zip(batch.chunk_index.tolist(), batch.image_ids, strict=True):
            together.setdefault(number, []).append(name)
    names = data.source.image_ids()
    dataset = data.dataset("train")
    expected = [[names[dataset.indices[position]] for position in positions] for positions in data.chunks("train")]
    assert [together[number] for number in sorted(together)] == expected
    assert torch.equal(batch.encoder_input().chunk_index, batch.chunk_index)


def test_volume_index_is_one_number_for_a_volume_and_chunks_of_one_are_single_slices(root):
    data = opened(root, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert [data.case_names[number] for number in batch.volume_index.tolist()] == list(batch.case_ids)
    assert batch.patient_ids == batch.case_ids
    places = zip(batch.case_ids, batch.slice_index.tolist(), strict=True)
    assert [f"{case}_axial{position:03d}" for case, position in places] == list(batch.image_ids)


@pytest.mark.parametrize(("views", "chunk"), [(1, 7), (4, 3), (1, 1)])
def test_chunk_is_turned_as_a_whole(root, views, chunk):
    data = opened(root, chunk=chunk, augmentation=FLIP, views=views, batch_size=1)
    turned = []
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            row = batch.images[:, 0, batch.frames[0].input_size[0] // 2]
            flips = (row[:, 0] < row[:, batch.frames[0].input_size[1] - 1]).tolist()
            assert len(set(flips)) == 1
            turned.append(flips[0])
    assert len(set(turned)) == 2


def test_cached_views_are_those_that_batches_show(root):
    data = opened(root, chunk=3, augmentation=FLIP, views=3, batch_size=1)
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        for row, index in enumerate(batch.sample_index.tolist()):
            assert torch.equal(data.input_image(index, epoch)[0], batch.images[row])


def test_training_goes_on_with_the_chunk_that_it_would_have_seen(root):
    loader = opened(root, chunk=3, batch_size=2).train_dataloader()
    whole = [batch.image_ids for batch in loader]
    again = opened(root, chunk=3, batch_size=2).train_dataloader()
    again.load_state_dict({"epoch": 0, "batches": 2})
    assert [batch.image_ids for batch in again] == whole[2:]


def test_chosen_slices_are_neighbours_though_others_lie_between(root):
    data = opened(root, chunk=2, batch_size=1, slices=SliceRule(step=3))
    batch = next(iter(data.train_dataloader()))
    assert batch.slice_index.tolist() in ([0, 3], [6])


def test_single_images_have_no_chunks(root, volumes):
    flat = np.zeros((6, 5, 1), np.int16)
    for case in "abcdefgh":
        volumes("images", case, flat)
        volumes("labels", case, (flat + 1).astype(np.uint8))
    with pytest.raises(RecipeError, match=r"data\.chunk: 2 slices are to travel together, but every image stands alone"):
        opened(root, chunk=2)
    with pytest.raises(RecipeError, match=r"data\.chunk: expected at least 1, got 0"):
        opened(root, chunk=0)


def test_chunks_of_a_stage_are_the_positions_that_its_loader_serves(root):
    data = opened(root, chunk=3, batch_size=1)
    dataset, names = data.dataset("test"), data.source.image_ids()
    served = [batch.image_ids for batch in data.test_dataloader()]
    assert [tuple(names[dataset.indices[position]] for position in chunk) for chunk in data.chunks("test")] == served


def test_a_batch_of_evaluation_is_a_volume_that_is_answered_in_windows(root):
    data = opened(root, chunk=3, chunk_stride=2, batch_size=2)
    batches = list(data.test_dataloader())
    assert [batch.n_images for batch in batches] == [7] * len(data.splits.test)
    assert all(batch.slice_index.tolist() == list(range(7)) for batch in batches)
    assert {(batch.chunk_length, batch.window_stride) for batch in batches} == {(3, 2)}
    training = next(iter(data.train_dataloader()))
    assert (training.chunk_length, training.window_stride) == (3, 0)
    assert data.describe()["chunk"] == 3


def test_windows_that_would_miss_slices_are_refused(root):
    with pytest.raises(RecipeError, match=r"data\.chunk_stride: expected 1 to 3, the slices of a chunk.*got 4\. Lower it"):
        opened(root, chunk=3, chunk_stride=4)


def test_volumes_with_fewer_slices_than_a_chunk_are_one_chunk(root):
    data = opened(root, chunk=9, batch_size=1)
    assert next(iter(data.train_dataloader())).slice_index.tolist() == list(range(7))
    assert next(iter(data.val_dataloader())).chunk_length == 9


def test_files_of_another_orientation_give_the_same_slices_in_the_same_order(root):
    straight = [s for s in opened(root, chunk=3).source]
    for folder in ("images", "labels"):
        for path in sorted((root / folder).iterdir())[::2]:
            image = nib.load(path)
            turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "L")))
            nib.save(nib.Nifti1Image(np.asarray(turned.dataobj).copy(), turned.affine), path)
    data = opened(root, chunk=3)
    for before, after in zip(straight, data.source, strict=True):
        assert (before.image_id, before.slice_index) == (after.image_id, after.slice_index)
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.masks.dense(), after.masks.dense())


def test_the_distance_of_slices_is_recorded(root, volumes):
    for case in "abcdefgh":
        volumes("images", case, np.zeros((6, 5, 7), np.int16), np.diag([0.5, 0.5, 3.0, 1.0]))
        labels = np.zeros((6, 5, 7), np.uint8)
        labels[2:4, 2:4] = 1
        volumes("labels", case, labels, np.diag([0.5, 0.5, 3.0, 1.0]))
    assert opened(root).describe()["slice_spacing_mm"] == {"least": 3.0, "most": 3.0, "most_in_pixels": 6.0}


@pytest.mark.parametrize("chunk", [1, 3])
def test_neighbours_are_red_and_blue_whichever_slices_are_chosen(root, chunk):
    stored = {s.image_id: s.image[0] for s in opened(root).source}
    data = opened(root, chunk=chunk, channels="neighbours", slices=SliceRule(step=3), augmentation=FLIP, batch_size=1)
    names = list(stored)
    dataset = data.dataset("val")
    for position in range(len(dataset)):
        sample = dataset[position].sample
        volume, place = sample.case_id, sample.slice_index
        expected = [f"{volume}_axial{min(6, max(0, place + step)):03d}" for step in (-1, 0, 1)]
        assert set(expected) <= set(names)
        assert torch.equal(sample.image, torch.stack([stored[name] for name in expected]))
    assert data.describe()["shown"] == "neighbours"
    for batch in data.train_dataloader():
        red, green, blue = batch.images[:, 0], batch.images[:, 1], batch.images[:, 2]
        assert (red <= green).all()
        assert (green <= blue).all(), "the volume grows brighter upwards, however it is turned"


def test_neighbours_of_single_images_and_of_colours_are_refused(root, volumes, tmp_path):
    with pytest.raises(DataError, match=r"has colours, and data\.channels: neighbours would replace them"):
        NeighbourSource(ColourSlices(8))[0]
    flat = np.zeros((6, 5, 1), np.int16)
    for case in "abcdefgh":
        volumes("images", case, flat)
        volumes("labels", case, (flat + 1).astype(np.uint8))
    with pytest.raises(RecipeError, match=r"data\.channels: neighbours shows the slices above and below, but every image"):
        opened(root, channels="neighbours")
