import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import SliceRule, UnlabelledFolder
from medsam_tune.errors import DataError, RecipeError
from tests.dicom_files import write_series
from tests.inference.test_writers import write_volume


@pytest.fixture
def folder(tmp_path):
    """A picture in a folder of its own, a NIfTI volume, a DICOM series, and notes."""
    (tmp_path / "a").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a" / "photo.png")
    write_volume(tmp_path)
    (tmp_path / "images" / "case_1.nii.gz").rename(tmp_path / "mr.nii.gz")
    for name in ("images", "labels"):
        for path in (tmp_path / name).iterdir():
            path.unlink()
        (tmp_path / name).rmdir()
    write_series(tmp_path / "ct", np.arange(240, dtype=np.int16).reshape(4, 6, 10))
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def opened(folder, **settings):
    source = UnlabelledFolder(**settings)
    source.open(folder, require_masks=False)
    return source


def test_pictures_volumes_and_series_are_served_together(folder):
    source = opened(folder)
    lengths = {case: source.case_ids().count(case) for case in source.case_ids()}
    assert lengths["a/photo"] == 1
    assert lengths["mr"] == 5  # 0.5 x 2 x 1.5 mm: no axis is longest by half of the next, so axial
    assert sum(lengths.values()) == len(source) == 1 + 5 + 4
    picture = source[source.case_ids().index("a/photo")]
    stored = np.array(Image.open(folder / "a" / "photo.png"))
    assert torch.equal(picture.image, torch.from_numpy(stored).permute(2, 0, 1).float())
    assert all(len(source[index].masks) == 0 and source[index].index == index for index in range(len(source)))
    assert len(set(source.image_ids())) == len(source)
    assert source.size(source.case_ids().index("mr")) == tuple(source[source.case_ids().index("mr")].image.shape[-2:])
    series = next(index for index, case in enumerate(source.case_ids()) if case not in ("mr", "a/photo"))
    assert len(source.files(series)) == 4
    source.check_case(range(len(source)))


def test_slices_and_axis_are_chosen_as_said(folder):
    source = opened(folder, axis="coronal", slices=SliceRule(count=2), train_slices=SliceRule(count=1))
    names = source.image_ids()
    chosen = [names[index] for index in source.select(range(len(source)), "evaluate") if names[index].startswith("mr")]
    assert len(chosen) == 2
    assert all("coronal" in name for name in chosen)
    trained = source.select(range(len(source)), "train")
    assert sum(names[index].startswith("mr") for index in trained) == 1
    assert source.case_ids().index("a/photo") in trained


def test_of_a_labelled_folder_the_images_alone_are_read(tmp_path):
    write_volume(tmp_path)
    assert set(opened(tmp_path).case_ids()) == {"case_1"}
    assert opened(tmp_path).files(0) == (tmp_path / "images" / "case_1.nii.gz",)


def test_what_cannot_be_used_is_said(folder, tmp_path):
    with pytest.raises(DataError, match="reads no masks, so nothing can be segmented"):
        UnlabelledFolder().open(folder)
    with pytest.raises(RecipeError, match="expected auto or one of"):
        UnlabelledFolder(axis="across")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image with one of the endings"):
        opened(empty)
    Image.new("L", (4, 4)).save(folder / "a" / "photo.jpg")
    with pytest.raises(DataError, match=r"has the name of .*photo.* a/photo. Rename one of them"):
        opened(folder)
    assert "a/photo" not in opened(folder, exclude=["a/*", "mr"]).case_ids()
