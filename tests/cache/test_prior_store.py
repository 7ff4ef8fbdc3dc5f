import json
import logging
import pickle
from dataclasses import replace

import pytest
import torch

from medsam_tune.cache import PriorOrigin, PriorSettings, PriorStore, open_prior_store, priors_folder
from medsam_tune.cache.shards import write_shard
from medsam_tune.errors import DataError
from medsam_tune.geometry import InputRule
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


def filled(root, *counts, origin=ORIGIN):
    store = open_prior_store(origin, root)
    keys = [store.key_of(image(seed)) for seed in range(len(counts))]
    store.put(keys, [some_masks(n, seed) for seed, n in enumerate(counts)])
    return store, keys


@pytest.mark.parametrize("n_masks", [0, 1, 7])
def test_masks_and_scores_come_back_bit_by_bit_in_another_process_view(tmp_path, n_masks):
    _, (key,) = filled(tmp_path, n_masks)
    again = pickle.loads(pickle.dumps(open_prior_store(ORIGIN, tmp_path)))
    assert_same(again.get(key), some_masks(n_masks))
    assert again.count(key) == n_masks


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
def test_every_setting_has_its_own_store_and_keys(tmp_path, changed):
    store, keys = filled(tmp_path, 1)
    other = open_prior_store(replace(ORIGIN, settings=replace(ORIGIN.settings, **changed)), tmp_path)
    assert other.folder != store.folder
    assert other.key_of(image(0)) != keys[0]
    assert len(other) == 0


@pytest.mark.parametrize(
    "other", [replace(ORIGIN, weights_sha256="a" * 63 + "b"), replace(ORIGIN, rule=InputRule(256))], ids=["weights", "rule"]
)
def test_other_weights_or_another_input_rule_have_another_store(tmp_path, other):
    store, keys = filled(tmp_path, 1)
    assert open_prior_store(other, tmp_path).folder != store.folder
    assert keys[0] not in open_prior_store(other, tmp_path)


def test_what_the_weights_are_called_makes_no_difference(tmp_path):
    renamed = replace(ORIGIN, settings=PriorSettings(weights="mine", checkpoint="elsewhere/mine.pth"))
    _, (key,) = filled(tmp_path, 1)
    assert key in open_prior_store(renamed, tmp_path)


def test_one_grey_level_or_another_size_is_another_image(tmp_path):
    store = open_prior_store(ORIGIN, tmp_path)
    changed = image(0)
    changed[2, 20, 33] += 1
    keys = {store.key_of(x) for x in (image(0), image(0).double(), changed, image(0).reshape(3, 34, 21))}
    assert len(keys) == 3


def test_folder_that_says_other_weights_is_refused(tmp_path):
    store, _ = filled(tmp_path, 1)
    info = json.loads((store.folder / "info.json").read_text())
    assert info["weights"] == "lite_medsam"
    (store.folder / "info.json").write_text(json.dumps(info | {"weights_sha256": "c" * 64}))
    with pytest.raises(DataError, match=r"info.json: these priors were made with weights_sha256 'cc*', expected 'aa*'.*delete"):
        open_prior_store(ORIGIN, tmp_path)


def test_folder_whose_header_is_damaged_is_refused(tmp_path):
    store, _ = filled(tmp_path, 1)
    (store.folder / "info.json").write_text("{")
    with pytest.raises(DataError, match=r"info.json: is no JSON.*Delete the folder"):
        open_prior_store(ORIGIN, tmp_path)


def test_shard_of_other_weights_in_the_folder_is_refused_by_name(tmp_path):
    store, _ = filled(tmp_path / "ours", 1)
    other, _ = filled(tmp_path / "theirs", 1, origin=replace(ORIGIN, weights_sha256="b" * 64))
    (shard,) = other.folder.glob("shard-*")
    shard.rename(store.folder / shard.name)
    with pytest.raises(DataError, match=rf"{shard.name}: holds priors made with other weights or settings \({other.identity}"):
        open_prior_store(ORIGIN, tmp_path / "ours")
    with pytest.raises(DataError, match="They are not used; delete the file"):
        store.refresh()


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def test_damaged_entry_is_named_and_removed_and_its_neighbour_kept(tmp_path, caplog):
    store, keys = filled(tmp_path, 2, 3)
    (shard,) = store.folder.glob("shard-*")
    flip_last_byte(shard)
    again = open_prior_store(ORIGIN, tmp_path)
    (damaged,) = {key for key in keys if not _reads(again, key)}
    with pytest.raises(DataError, match=rf"checksum of entry {damaged} differs.*Run the same command again"):
        again.get(damaged)
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        assert again.discard_corrupt(keys) == {damaged}
    assert "the image is segmented again" in caplog.text
    (kept,) = set(keys) - {damaged}
    assert_same(again.get(kept), some_masks(2 + keys.index(kept), keys.index(kept)))
    assert damaged not in again


def _reads(store, key):
    try:
        store.get(key)
    except DataError:
        return False
    return True


@pytest.mark.parametrize("numbers", [[2, 3, 1, 1, 0, 0, 5], [2, 3, 9, 1], [2, 3, -1]], ids=str)
def test_entry_with_a_right_checksum_and_wrong_content_is_refused(tmp_path, numbers):
    store = open_prior_store(ORIGIN, tmp_path)
    key = store.key_of(image(0))
    write_shard(store.folder, {key: torch.tensor(numbers, dtype=torch.int32)})
    store.refresh()
    with pytest.raises(DataError, match=rf"entry {key} is damaged.*Delete the folder"):
        store.get(key)


def test_scores_that_are_no_numbers_are_not_stored(tmp_path):
    store = open_prior_store(ORIGIN, tmp_path)
    found = replace(some_masks(2), predicted_iou=torch.tensor([0.5, float("nan")]))
    with pytest.raises(DataError, match=r"hold NaN or infinity. Check data\.priors\.weights"):
        store.put([store.key_of(image(0))], [found])
    assert len(store) == 0


def test_a_key_too_few_is_refused(tmp_path):
    store = open_prior_store(ORIGIN, tmp_path)
    with pytest.raises(ValueError, match="got 1 keys for 2 images"):
        store.put(["a"], [some_masks(1), some_masks(1)])


def test_stores_lie_below_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path))
    assert open_prior_store(ORIGIN).folder.parent == priors_folder() == tmp_path / "priors"
    assert isinstance(open_prior_store(ORIGIN), PriorStore)
