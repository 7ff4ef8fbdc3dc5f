import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.image_folder import ImageFolder
from medsam_tune.data.medsam_files import MedsamNpz
from medsam_tune.data.nifti_volumes import NiftiVolumes
from medsam_tune.data.slices import SliceRule
from medsam_tune.errors import DataError
from medsam_tune.inference.writers import PngWriter, VolumeWriter, mask_writer


def write_volume(folder, name="case_1", *, flipped=True):
    """A volume stored left-to-right reversed and with its axes permuted, with a label map that has no symmetry."""
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0, 2.0, 5], [-1.5 if flipped else 1.5, 0, 0, 7], [0, 0.5, 0, -3], [0, 0, 0, 1]])
    labels = (rng.random((6, 5, 4)) > 0.6).astype(np.uint8)
    image = nibabel.Nifti1Image(rng.normal(size=labels.shape).astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    for part, content in (("images", image), ("labels", nibabel.Nifti1Image(labels, affine))):
        (folder / part).mkdir(exist_ok=True)
        nibabel.save(content, folder / part / f"{name}.nii.gz")
    return labels, affine


def add_all(writer, source, indices):
    for index in indices:
        sample = source[index]
        writer.add(sample.image_id, sample.case_id, sample.masks.dense().any(0).numpy())


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
def test_slices_of_the_truth_give_back_the_label_file(tmp_path, axis):
    labels, affine = write_volume(tmp_path)
    source = NiftiVolumes(axis=axis)
    source.open(tmp_path)
    writer = mask_writer(source, tmp_path / "predicted")
    add_all(writer, source, range(len(source)))
    (path,) = writer.finish()
    found = nibabel.load(path)
    assert path.name == "case_1.nii.gz"
    np.testing.assert_array_equal(np.asarray(found.dataobj), labels)
    np.testing.assert_array_equal(found.affine, affine)
    assert found.get_data_dtype() == np.uint8
    assert found.header.get_xyzt_units()[0] == "mm"


def test_numbers_of_classes_are_written_as_they_are(tmp_path):
    labels, _ = write_volume(tmp_path)
    source = NiftiVolumes()
    source.open(tmp_path)
    volumes, images = mask_writer(source, tmp_path / "predicted"), PngWriter(tmp_path / "png")
    for index in range(len(source)):
        sample = source[index]
        classes = sample.masks.dense().any(0).numpy() * np.uint8(2)
        volumes.add(sample.image_id, sample.case_id, classes)
        images.add(sample.image_id, sample.case_id, classes)
    (path,) = volumes.finish()
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), 2 * labels)
    assert {int(value) for file in images.finish() for value in np.unique(np.asarray(Image.open(file)))} == {0, 2}


def test_volume_is_written_once_its_last_slice_has_come(tmp_path):
    write_volume(tmp_path)
    source = NiftiVolumes()
    source.open(tmp_path)
    writer = VolumeWriter(tmp_path / "predicted", source)
    add_all(writer, source, range(len(source) - 1))
    assert not (tmp_path / "predicted").exists()
    add_all(writer, source, [len(source) - 1])
    assert (tmp_path / "predicted" / "case_1.nii.gz").is_file()
    assert len(writer.finish()) == 1


def test_slices_that_were_not_predicted_stay_empty(tmp_path):
    labels, _ = write_volume(tmp_path)
    source = NiftiVolumes(slices=SliceRule(step=2), train_slices=SliceRule())
    source.open(tmp_path)
    writer = VolumeWriter(tmp_path / "predicted", source)
    evaluated = source.select(range(len(source)), "evaluate")
    add_all(writer, source, evaluated)
    (path,) = writer.finish()
    volume = np.asarray(nibabel.load(path).dataobj)
    kept = [source.position(index)[1] for index in evaluated]
    # The second stored axis of the file runs upwards, so it holds the axial slices in RAS order.
    np.testing.assert_array_equal(volume[:, kept], labels[:, kept])
    assert not np.delete(volume, kept, axis=1).any()


def test_no_name_of_an_image_or_a_case_leaves_the_folder(tmp_path):
    mask = np.ones((2, 2), bool)
    folder = tmp_path / "a" / "predicted"
    writer = PngWriter(folder)
    for name in ("../../x", "/x", "..", "p1/s2", "x"):
        writer.add(name, name, mask)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(set(writer.finish())) == len(files) == 5
    assert all(path.is_relative_to(folder) for path in files)
    assert folder / "p1" / "s2.png" in files


def test_volume_in_a_sub_folder_is_written_to_one(tmp_path):
    write_volume(tmp_path)
    for part in ("images", "labels"):
        (tmp_path / part / "p1").mkdir()
        (tmp_path / part / "case_1.nii.gz").rename(tmp_path / part / "p1" / "t1.nii.gz")
    source = NiftiVolumes()
    source.open(tmp_path)
    writer = mask_writer(source, tmp_path / "predicted")
    add_all(writer, source, range(len(source)))
    assert writer.finish() == [tmp_path / "predicted" / "p1" / "t1.nii.gz"]


def test_npz_volumes_come_back_as_one_file_each(tmp_path):
    labels = (np.random.default_rng(0).random((3, 5, 4)) > 0.6).astype(np.uint8)
    np.savez(tmp_path / "CT_1.npz", imgs=labels * 9, gts=labels, spacing=(0.5, 0.7, 3.0))
    np.savez(tmp_path / "photo.npz", imgs=np.zeros((5, 4, 3), np.uint8), gts=labels[1])
    source = MedsamNpz()
    source.open(tmp_path)
    writer = mask_writer(source, tmp_path / "predicted")
    add_all(writer, source, range(len(source)))
    volume, photo = (np.load(path) for path in writer.finish())
    np.testing.assert_array_equal(volume["segs"], labels)
    assert volume["spacing"].tolist() == [0.5, 0.7, 3.0]
    np.testing.assert_array_equal(photo["segs"], labels[1])


def test_more_classes_than_a_byte_holds_keep_their_numbers(tmp_path):
    write_volume(tmp_path)
    source = NiftiVolumes()
    source.open(tmp_path)
    volumes, images = mask_writer(source, tmp_path / "predicted"), PngWriter(tmp_path / "png")
    for index in range(len(source)):
        sample = source[index]
        classes = np.full(sample.image.shape[1:], 250 + 10 * index, np.int32)
        volumes.add(sample.image_id, sample.case_id, classes)
        images.add(sample.image_id, sample.case_id, classes)
    (path,) = volumes.finish()
    numbers = {250, 260, 270, 280, 290}
    assert {int(value) for file in images.finish() for value in np.unique(np.asarray(Image.open(file)))} == numbers
    assert set(np.unique(np.asarray(nibabel.load(path).dataobj))) == numbers


def test_slice_of_another_source_is_refused(tmp_path):
    write_volume(tmp_path)
    source = NiftiVolumes()
    source.open(tmp_path)
    with pytest.raises(DataError, match="Give the writer the source that was predicted"):
        VolumeWriter(tmp_path, source).add("case_9_axial000", "case_9", np.zeros((2, 2), bool))


def test_png_holds_0_and_255_at_the_image_size(tmp_path):
    mask = np.array([[True, False, True], [False, False, True]])
    writer = mask_writer(ImageFolder(), tmp_path / "masks")
    assert isinstance(writer, PngWriter)
    writer.add("image_1", "case_1", mask)
    assert writer.finish() == [tmp_path / "masks" / "image_1.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "image_1.png")), mask * np.uint8(255))
