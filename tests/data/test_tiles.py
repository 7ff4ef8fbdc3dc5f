from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from medsam_tune.data import ImageFolder, NiftiVolumes, SegmentationDataModule, TiledSource, Tiles
from medsam_tune.data.tiles import tile_grid
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import InputRule

RULE = InputRule(side=16)


@pytest.fixture
def large_images(image_folder):
    """Six images of 20 x 40 with one object across the middle and one at the right border; the last shows nothing."""
    random = np.random.default_rng(0)
    images, masks = {}, {}
    for k in range(6):
        images[f"p{k}.png"] = random.integers(0, 255, (20, 40), dtype=np.uint8)
        values = np.zeros((20, 40), np.uint16)
        if k < 5:
            values[4:8, 10:30], values[12:18, 34:38] = 300, 4
        masks[f"p{k}.png"] = values
    return image_folder(images, masks)


def tiled(root, target="per_instance", size=16, overlap=4):
    source = ImageFolder() if target == "per_instance" else ImageFolder(labels={"a": [300], "b": [4]})
    source.target = target
    source.open(root)
    return TiledSource(source, size, overlap)


def opened(root, target="binary", **settings):
    source = ImageFolder() if target == "per_instance" else ImageFolder(labels={"a": [300], "b": [4]})
    data = SegmentationDataModule(
        source, str(root), target=target, cache_embeddings=False, tiles=Tiles(size=16, overlap=4), **settings
    )
    data.open(RULE)
    return data


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(40, 16, 4), (1280, 256, 32), (850, 256, 0), (17, 16, 15), (16, 16, 3)]
)
def test_tiles_cover_every_pixel_and_overlap_as_far_as_asked(length, size, overlap):
    grid = tile_grid((length, 9), size, overlap)
    ends = [(top, top + height) for top, _, (height, _) in grid]
    assert (ends[0][0], ends[-1][1]) == (0, length)
    assert all(before[1] - after[0] >= overlap for before, after in pairwise(ends))
    assert {shape for *_, shape in grid} == {(min(size, length), 9)}
    # One tile fewer would leave a gap or too little overlap.
    assert len(grid) == 1 or (len(grid) - 1) * size - (len(grid) - 2) * overlap < length


def test_a_tile_is_a_cut_of_its_image_with_case_labels_and_numbers(large_images):
    source = tiled(large_images)
    whole = source.source[0]
    assert len(source) == 6 * 2 * 3
    seen = {}
    for index in range(6):
        tile = source[index]
        assert torch.equal(tile.image, whole.image[:, *tile.tile.area])
        assert (tile.case_id, tile.index, tile.image.shape[-2:]) == ("p0", index, (16, 16))
        for mask, number in zip(tile.masks.dense(), tile.object_ids.tolist(), strict=True):
            assert torch.equal(mask, whole.masks.dense()[whole.object_ids.tolist().index(number)][tile.tile.area])
            seen.setdefault(number, []).append(tile.image_id)
    # The object across the middle lies on several tiles and keeps its number on each.
    assert set(seen) == {300, 4}
    assert len(seen[300]) > 1


def test_pieces_have_one_number_on_all_tiles(large_images):
    source = tiled(large_images)
    source.source.mask_threshold = 0
    assert {number for index in range(6) for number in source[index].object_ids.tolist()} == {1, 2}


def test_names_and_lists_agree_with_what_is_read(large_images):
    source = tiled(large_images)
    assert len(set(source.image_ids())) == len(source)
    for index in (0, 7, len(source) - 1):
        sample = source[index]
        assert (source.image_ids()[index], source.case_ids()[index]) == (sample.image_id, sample.case_id)
        assert source.size(index) == tuple(sample.image.shape[-2:])


def test_no_image_is_torn_apart_by_a_split_and_evaluation_takes_its_tiles_together(large_images):
    data = opened(large_images)
    of_part = {
        part: {data.images.case_ids()[index] for index in data.dataset(part).indices} for part in ("train", "val", "test")
    }
    assert sum(len(cases) for cases in of_part.values()) == len(set().union(*of_part.values())) == 6
    for batch in data.test_dataloader():
        assert (batch.n_images, len(set(batch.case_ids)), batch.at_once) == (6, 1, data.eval_batch_size)
        assert batch.chunk_index is None
    assert {batch.n_images for batch in data.train_dataloader()} <= {4, 1, 2, 3}


def test_training_keeps_as_many_empty_tiles_as_show_something_and_one_of_an_empty_image(large_images):
    source = tiled(large_images, target="binary")
    everything = list(range(len(source)))
    kept = source.select(everything, "train")
    shows = [bool(source[index].masks.dense().any()) for index in kept]
    # Of the six tiles of a full image four show an object; of the empty image one is kept.
    assert [len([k for k in kept if k // 6 == image]) for image in range(6)] == [6, 6, 6, 6, 6, 1]
    assert sum(shows) == 5 * sum(bool(source[index].masks.dense().any()) for index in range(6))
    assert source.select(everything, "evaluate") == everything
    narrow = tiled(large_images, target="binary", size=4, overlap=0)
    chosen = narrow.select(list(range(50)), "train")
    full = sum(bool(narrow[index].masks.dense().any()) for index in range(50))
    assert len(chosen) == 2 * full < 50


def test_prompted_targets_train_on_no_empty_tile(large_images):
    data = opened(large_images, target="per_instance")
    train = data.dataset("train")
    assert all(bool(train.views.source[index].masks.dense().any()) for index in train.indices)


def test_the_report_counts_images_and_tiles(large_images):
    described = opened(large_images).describe()
    assert described["tiles"] == {"size": 16, "overlap": 4, "tiles": 36}
    assert described["splits"]["test"]["tiles"] == 6 * described["splits"]["test"]["images"]


def test_auto_is_the_side_of_the_network_and_an_eighth(large_images):
    assert Tiles().in_pixels(256) == (256, 32)
    assert Tiles(size=500).in_pixels(256) == (500, 62)
    data = SegmentationDataModule(ImageFolder(labels={"a": [300], "b": [4]}), str(large_images), tiles="auto")
    data.open(RULE)
    assert (data.images.size_px, data.images.overlap_px) == (16, 2)


def test_slices_of_volumes_are_cut_too(volumes):
    for name in ("a", "b", "c"):
        volumes("images", name, np.random.default_rng(0).integers(0, 99, (12, 30, 2)).astype(np.int16))
        root = volumes("labels", name, np.ones((12, 30, 2), np.int16))
    source = NiftiVolumes()
    source.open(root)
    assert source.size(0) == tuple(source[0].image.shape[-2:]) == (30, 12)
    cut = TiledSource(source, 10, 0)
    assert len(cut) == 6 * 6
    assert cut.places()[0] == cut.places()[5] == ("a", 0)


def test_what_cannot_be_cut_is_refused(large_images):
    with pytest.raises(RecipeError, match=r"data\.tiles\.overlap: expected 0 or more and less than the size 8, got 8"):
        Tiles(size=8, overlap=8)
    with pytest.raises(RecipeError, match=r"data\.tiles\.size: expected at least 1 pixel, or auto, got 0"):
        Tiles(size=0)
    with pytest.raises(RecipeError, match=r"data\.tiles\.overlap: 64 pixels, but a tile has 32"):
        Tiles(overlap=64).in_pixels(32)
    with pytest.raises(RecipeError, match=r"data\.tiles: tiles travel alone, but data\.chunk joins 2"):
        SegmentationDataModule(ImageFolder(), "DIR", tiles="auto", chunk=2)


def test_a_part_of_a_batch_is_the_batch_of_its_images(large_images):
    data = opened(large_images, target="per_instance")
    (batch, *_) = data.test_dataloader()
    part = batch.part(2, 5)
    assert part.image_ids == batch.image_ids[2:5]
    assert part.tiles == batch.tiles[2:5]
    chosen = (batch.image_index >= 2) & (batch.image_index < 5)
    assert torch.equal(part.image_index + 2, batch.image_index[chosen])
    assert torch.equal(part.masks, batch.masks[chosen])
    assert torch.equal(part.object_ids, batch.object_ids[chosen])
    assert [len(masks) for masks in part.original_masks] == [len(masks) for masks in batch.original_masks[2:5]]
    assert replace(part, queries=batch.queries).n_objects == batch.n_objects
