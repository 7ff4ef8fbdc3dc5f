import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.data import ImageFolder, NiftiVolumes
from medsam_tune.data.formats import NiftiFormat, RasterFormat
from medsam_tune.data.stored_images import StoredImages, evenly, stored_images

CT = StoredImages(colour=False, low=-1000, high=1500, spacing_mm=(0.8, 0.8))
MR = StoredImages(colour=False, low=0, high=900, spacing_mm=(1.0, 1.0))
PICTURE = StoredImages(colour=True, low=3, high=250)


def test_a_file_is_looked_at_as_it_is_stored(tmp_path):
    values = np.zeros((10, 10, 20), np.int16)
    values[..., :2], values[..., -2:] = -1000, 1200
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.5, 0.75, 3, 1])), tmp_path / "a.nii.gz")
    found = StoredImages.of(tmp_path / "a.nii.gz", NiftiFormat(), "coronal")
    assert found == StoredImages(False, -1000, 1200, (3.0, 0.5))
    grey = np.repeat(np.arange(200, dtype=np.uint8).reshape(10, 20)[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    grey[0, 0, 1] = 99
    Image.fromarray(grey).save(tmp_path / "colour.png")
    # Grey that is stored as RGB is grey.
    assert [StoredImages.of(tmp_path / f"{name}.png", RasterFormat()).colour for name in ("grey", "colour")] == [False, True]


@pytest.mark.parametrize(
    ("new", "by_percentiles", "said"),
    [
        (StoredImages(False, -990, 1400, (0.9, 0.7)), False, []),
        (StoredImages(False, -990, 1400), False, []),
        (StoredImages(False, -990, 1400, (2.0, 0.8)), False, ["their pixels are 2 x 0.8 mm, TRAINING 0.8 x 0.8 mm"]),
        (MR, True, ["their values run from 0 to 900, TRAINING from -1000 to 1500"]),
        (StoredImages(False, -0.9, 1.3), False, ["their values run from -0.9 to 1.3, TRAINING from -1000 to 1500"]),
        (StoredImages(True, -990, 1400), True, ["they are colour, TRAINING are grey"]),
    ],
)
def test_what_differs_is_said_with_both_values(new, by_percentiles, said):
    found = CT.differences(new, by_percentiles=by_percentiles)
    assert found == [words.replace("TRAINING", "those of the training") for words in said]


def test_the_range_of_mr_may_be_any_under_percentiles():
    other = StoredImages(False, 0, 9000, (1.0, 1.0))
    assert MR.differences(other, by_percentiles=True) == []
    assert len(MR.differences(other, by_percentiles=False)) == 1


def test_the_middle_of_several_is_kept_and_read_again():
    images = [CT, MR, StoredImages(True, 5, 100)]
    middle = StoredImages.joined(images)
    assert middle == StoredImages(False, 0, 900, (0.9, 0.9))
    assert StoredImages.read(middle.as_json() | {"spacing_mm": [0.9, 0.9]}) == middle
    assert StoredImages.joined([]) is None
    assert list(evenly(range(20), 8)) == [0, 3, 6, 9, 12, 15, 18]


def test_sources_of_images_and_of_volumes_are_looked_at(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((6, 7), 80, np.uint8)).save(tmp_path / folder / "a.png")
    source = ImageFolder()
    source.open(tmp_path)
    assert stored_images(source, ["a"]) == StoredImages(False, 80, 80)
    for folder in ("images", "labels"):
        (tmp_path / "volumes" / folder).mkdir(parents=True)
        volume = nibabel.Nifti1Image(np.full((4, 5, 6), 7, np.int16), np.diag([0.5, 0.75, 3, 1]))
        nibabel.save(volume, tmp_path / "volumes" / folder / "a.nii.gz")
    volumes = NiftiVolumes()
    volumes.open(tmp_path / "volumes")
    assert stored_images(volumes, ["a"]) == StoredImages(False, 7, 7, (0.75, 0.5))
