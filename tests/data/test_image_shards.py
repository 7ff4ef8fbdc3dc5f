"""A folder of shards shows what a folder of the same files shows, and is a data set to every command that looks at one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from medsam_tune.data import ImageFolder, ImageShards, SegmentationSource
from medsam_tune.data.checks import check_cases, open_checked
from medsam_tune.data.fingerprint import take_fingerprint
from medsam_tune.data.layouts import detect
from medsam_tune.data.own_data import data_settings
from medsam_tune.data.shards.index import INDEX_FILE
from medsam_tune.data.shards.scanning import scan_shards
from medsam_tune.errors import DataError
from medsam_tune.inference.new_files import find_files, masks_in
from tests.data.shards.tar_files import pair, png, write_tar


def write_both(root):
    """Write six images of three cases as files and as two shards."""
    rng = np.random.default_rng(0)
    members = []
    for number in range(6):
        name, size = f"p{number % 3}/s{number}", (8 + number, 10)
        mask = np.zeros(size, np.uint8)
        mask[2:5, 1 : 3 + number] = 1
        mask[5:7, 1:3] = 2
        image = rng.integers(0, 255, (*size, 3) if number else size, dtype=np.uint8)
        for folder, values in (("images", image), ("masks", mask)):
            path = root / "flat" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
        record = json.dumps({"case": f"p{number % 3}", "patient": f"P{number % 3 % 2}"}).encode()
        members += [(f"{name}.png", png(image)), (f"{name}.mask.png", png(mask)), (f"{name}.json", record)]
    write_tar(root / "sharded" / "a.tar", members[9:])
    write_tar(root / "sharded" / "b.tar", members[:9])
    return root / "flat", root / "sharded"


def opened(source: SegmentationSource, root, **settings):
    source.open(root, **settings)
    return source


@pytest.fixture
def both(tmp_path):
    flat, sharded = write_both(tmp_path)
    labels = {"a": [1], "b": [2]}
    folder = opened(ImageFolder(labels=labels, case_pattern="^([^/]+)/"), flat)
    return folder, opened(ImageShards(labels=labels), sharded)


def test_items_cases_and_sizes_are_those_of_the_files(both):
    folder, shards = both
    assert shards.image_ids() == folder.image_ids()
    assert shards.case_ids() == folder.case_ids() == ("p0", "p0", "p1", "p1", "p2", "p2")
    for index in range(6):
        found, expected = shards[index], folder[index]
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.masks.dense(), expected.masks.dense())
        assert torch.equal(found.labels, expected.labels)
        assert shards.size(index) == folder.size(index) == found.image.shape[-2:]
    assert list(check_cases(shards)) == list(check_cases(folder)) == ["p0", "p1", "p2"]
    assert shards.patient_ids() == ("P0", "P0", "P1", "P1", "P0", "P0")
    assert shards.describe()["shards"] == 2


@pytest.mark.slow
def test_workers_read_what_the_process_reads(both):
    _, shards = both
    loader = DataLoader(shards, batch_size=None, num_workers=2, collate_fn=lambda sample: sample.image)
    assert all(torch.equal(image, shards[index].image) for index, image in enumerate(loader))


def test_sizes_of_an_index_stand_for_the_headers(both, tmp_path, monkeypatch):
    sharded = tmp_path / "sharded"
    index = scan_shards(sorted(sharded.glob("*.tar")))
    index.numbers[:, 5:] = [5, 7]
    index.save(sharded / INDEX_FILE)
    source = opened(ImageShards(), sharded)
    assert [source.size(index) for index in range(6)] == [(5, 7)] * 6


def test_excluded_members_are_left_out(tmp_path):
    _, sharded = write_both(tmp_path)
    source = opened(ImageShards(labels={"all": [1, 2]}, exclude=["p0/*", "p1/s4.png", "p2/s5.mask"]), sharded)
    assert source.image_ids() == ("p1/s1", "p2/s2")


def test_case_pattern_counts_before_records(tmp_path):
    _, sharded = write_both(tmp_path)
    assert set(opened(ImageShards(case_pattern="/(.+)$"), sharded).case_ids()) == {f"s{number}" for number in range(6)}


def test_a_missing_mask_is_told_with_its_member_and_left_out_for_prediction(tmp_path):
    write_tar(tmp_path / "a.tar", [*pair("x"), pair("y")[0]])
    with pytest.raises(DataError, match=r"a\.tar/y\.png: has no mask y\.mask\.png in its shard\. Add the masks"):
        ImageShards().open(tmp_path)
    source = opened(ImageShards(), tmp_path, require_masks=False)
    assert [len(source[index].masks) for index in range(2)] == [1, 0]


def test_a_changed_byte_is_found_before_training(tmp_path):
    write_tar(tmp_path / "a.tar", pair("x"))
    index = scan_shards([tmp_path / "a.tar"])
    written = type(index)(index.shards, index.texts, index.numbers, np.zeros((1, 16), np.uint8))
    written.save(tmp_path / INDEX_FILE)
    with pytest.raises(DataError, match=r"a\.tar/x\.png: is not what was written \(its checksum differs\)"):
        open_checked(ImageShards(), tmp_path, require_masks=True)


def test_masks_of_another_size_are_told_from_headers(tmp_path):
    write_tar(tmp_path / "a.tar", [pair("x", size=(8, 9))[0], pair("x")[1]])
    with pytest.raises(DataError, match=r"x\.mask\.png: mask is 8 x 10 \(H x W\), its image is 8 x 9"):
        ImageShards().open(tmp_path)


def test_a_folder_without_shards_is_told(tmp_path):
    with pytest.raises(DataError, match="holds no shard"):
        ImageShards().open(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        ImageShards().open(tmp_path / "gone")


def test_a_folder_of_shards_is_a_layout_with_cases_and_patients(tmp_path):
    _, sharded = write_both(tmp_path)
    found = take_fingerprint(sharded, detect(sharded))
    assert found.rule.labels == {"label_1": [1], "label_2": [2]}
    assert (found.patient, found.n_patients()) == ("header", 2)
    settings = data_settings(found, "per_class")
    assert settings.class_path == "medsam_tune.data.ImageShards"
    assert settings.init_args == {"labels": {"label_1": [1], "label_2": [2]}}


def test_records_that_name_cases_alone_make_each_case_a_patient(tmp_path):
    members = [
        member for n in range(4) for member in [*pair(f"p{n // 2}/{n}"), (f"p{n // 2}/{n}.json", b'{"case": "p%d"}' % (n // 2))]
    ]
    write_tar(tmp_path / "a.tar", members)
    found = take_fingerprint(tmp_path, detect(tmp_path))
    assert (found.patient, found.n_patients()) == (None, 2)


def test_archives_of_another_layout_are_told(tmp_path):
    write_tar(tmp_path / "a.tar", [("imagesTr/p1.nii.gz", b"x"), ("imagesTr/p1.png", b"x")])
    with pytest.raises(DataError, match=r"its tar files hold no image with a mask\. Expected a\.png and a\.mask\.png"):
        detect(tmp_path)


def test_images_to_predict_are_named_by_their_samples(tmp_path):
    _, sharded = write_both(tmp_path)
    found = find_files(sharded)
    assert [file.name for file in found] == ["p0/s0", "p0/s3", "p1/s1", "p1/s4", "p2/s2", "p2/s5"]
    assert found[0].written(tmp_path / "out") == tmp_path / "out/p0/s0.png"
    assert masks_in(sharded) == frozenset()
