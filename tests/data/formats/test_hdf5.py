import h5py
import numpy as np
import pytest

from medsam_tune.data.formats import Hdf5Format
from medsam_tune.data.slices import take_slice
from medsam_tune.errors import DataError, DataWarning

IMAGE = np.random.default_rng(0).random((3, 5, 6))


def written(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def test_single_images_get_a_first_axis_and_other_names_are_settings(tmp_path):
    path = written(tmp_path / "a.h5", data=IMAGE[0], seg=(IMAGE[0] > 0.5).astype(np.uint8))
    form = Hdf5Format("data", "seg")
    np.testing.assert_array_equal(form.read_image(path), IMAGE[:1])
    np.testing.assert_array_equal(form.read_labels(path)[0], IMAGE[0] > 0.5)
    with pytest.raises(DataError, match=r"a\.h5: has no data set image; it holds \['data', 'seg'\]"):
        Hdf5Format().read_header(path)


def test_file_without_masks_or_with_others_of_another_shape(tmp_path):
    assert Hdf5Format().read_label_header(written(tmp_path / "a.h5", image=IMAGE)) is None
    with pytest.raises(DataError, match=r"b\.h5: label has shape \(5, 6\), expected \(3, 5, 6\)"):
        Hdf5Format().read_label_header(written(tmp_path / "b.h5", image=IMAGE, label=np.zeros((5, 6))))


def test_a_claim_without_content_is_refused_before_memory_is_asked_for(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (30000, 30000, 30000), "f8")
    with pytest.raises(DataError, match="image claims 216000000000000 bytes, but stores none"):
        Hdf5Format().read_image(tmp_path / "a.h5")


def test_slices_along_the_last_axis_are_suspected_aloud_and_can_be_cut(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.arange(8 * 8 * 4, dtype=np.float32).reshape(8, 8, 4)
        file["label"] = np.zeros((8, 8, 4), np.uint8)
    with pytest.warns(DataWarning, match=r"look as if slices lay along their last axis .* Set data\.source\.axis: sagittal"):
        header = Hdf5Format().read_header(tmp_path / "x.h5")
    volume = header.to_ras(Hdf5Format().read_image(tmp_path / "x.h5"))
    found = sorted(take_slice(volume, "sagittal", 0).ravel().tolist())
    assert found in [list(range(first, 8 * 8 * 4, 4)) for first in (0, 3)]
