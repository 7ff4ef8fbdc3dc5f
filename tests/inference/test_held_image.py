import nibabel
import numpy as np
import pytest

from medsam_tune.data.intensity import Intensity
from medsam_tune.data.slices import slice_place, take_slice
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.held_image import check_orientation, held_image
from medsam_tune.inference.new_files import find_files
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from tests.inference.test_writers import write_volume


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("rule", [None, Intensity("window", window=(-1.0, 2.0))])
def test_an_array_in_memory_is_shown_as_the_file_that_holds_it(tmp_path, axis, rule):
    _, affine = write_volume(tmp_path)
    (file,) = find_files(tmp_path / "images")
    data = TrainedData(axis=axis, intensity=rule, of_volumes=True)
    values = np.asarray(nibabel.load(file.path).dataobj)
    orientation = "".join(nibabel.aff2axcodes(affine))
    held = SlicedFile(held_image(values, orientation=orientation, spacing_mm=np.linalg.norm(affine[:3, :3], axis=0)), data)
    read = SlicedFile(file, data)
    assert len(held) == len(read)
    assert held.spacing_mm() == pytest.approx(read.spacing_mm())
    for position in range(len(read)):
        assert np.array_equal(held.levels(position), read.levels(position))


def test_the_default_shows_a_stack_of_slices_as_it_lies():
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    slices = SlicedFile(held_image(values), TrainedData(of_volumes=True))
    for position in range(4):
        assert np.array_equal(slices.levels(position)[..., 0], values[position])


@pytest.mark.parametrize(("dtype", "colours"), [("bool", ()), ("float16", ()), (">i2", ()), ("uint8", (3,))])
def test_values_of_every_type_are_shown(dtype, colours):
    values = (np.random.default_rng(0).random((4, 5, 6, *colours)) * 200).astype(dtype)
    levels = SlicedFile(held_image(values), TrainedData(of_volumes=True)).levels(2)
    assert levels.shape == (5, 6, 3)
    assert levels.any()


@pytest.mark.parametrize(
    ("values", "spacing", "said"),
    [
        (np.zeros((4, 5)), (1, 1, 1), "must have shape"),
        (np.zeros((4, 5, 6, 2)), (1, 1, 1), "must have shape"),
        (np.zeros((0, 5, 6)), (1, 1, 1), "must have shape"),
        (np.zeros((4, 5, 6), complex), (1, 1, 1), "real numbers"),
        (np.full((4, 5, 6), np.nan), (1, 1, 1), "120 values that are NaN"),
        (np.zeros((4, 5, 6)), (1, 1), "three numbers above 0"),
        (np.zeros((4, 5, 6)), (1, 0, 1), "three numbers above 0"),
    ],
)
def test_what_is_no_image_is_refused(values, spacing, said):
    with pytest.raises(DataError, match=said):
        held_image(values, spacing_mm=spacing)


@pytest.mark.parametrize("orientation", ["", "SP", "SPLR", "SPX", "RLS", "spl"])
def test_what_is_no_orientation_is_refused(orientation):
    with pytest.raises(RecipeError, match=r"--orientation: expected one letter each.*SPL is a DICOM series"):
        check_orientation(orientation)


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
def test_a_voxel_lies_where_its_slice_shows_it(axis):
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    for voxel in np.ndindex(4, 5, 6):
        position, column, row = slice_place((4, 5, 6), axis, voxel)
        assert take_slice(volume, axis, position)[row, column] == volume[voxel]
