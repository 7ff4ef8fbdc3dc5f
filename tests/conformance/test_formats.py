"""What every file format must keep, whatever its files look like."""

import gzip
import zipfile

import numpy as np
import pytest

from medsam_tune.data import VolumeSource
from medsam_tune.errors import DataError
from medsam_tune.inference.writers import mask_writer
from tests.conformance.format_cases import FORMATS, NAME


@pytest.fixture(params=FORMATS, ids=[case.name for case in FORMATS])
def case(request):
    return request.param


@pytest.fixture
def written(case, tmp_path):
    """Return (format, image path, labels path, image, labels) of random content without symmetry."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, case.shape, dtype=np.uint8)
    labels = rng.integers(0, 4, case.shape, dtype=np.uint8)
    return (case.format, *case.write(tmp_path, image, labels), image, labels)


def unpacked(path):
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return b"".join([path.read_bytes(), *(archive.read(name) for name in archive.namelist())])
    return path.read_bytes()


def test_header_image_and_labels_agree_on_the_shape_and_hold_what_was_stored(written):
    form, image_path, labels_path, image, labels = written
    header = form.read_header(image_path)
    np.testing.assert_array_equal(form.read_image(image_path).reshape(image.shape), image)
    np.testing.assert_array_equal(form.read_labels(labels_path).reshape(labels.shape), labels)
    assert form.read_image(image_path).shape == form.read_labels(labels_path).shape == header.stored_shape
    assert form.read_label_header(labels_path).stored_shape == header.stored_shape
    assert form.read_labels(labels_path).dtype == np.int32


def test_files_without_a_spacing_say_so_and_files_without_boxes_too(written, case):
    form, image_path, *_ = written
    header = form.read_header(image_path)
    assert header.states_spacing is (case.name not in ("npy", "hdf5"))
    assert not form.holds_boxes(image_path)
    with pytest.raises(DataError, match="no boxes"):
        form.read_boxes(image_path, header)


def test_ras_order_and_back_is_the_stored_order(written):
    form, image_path, *_ = written
    header, values = form.read_header(image_path), form.read_image(image_path)
    assert header.to_ras(values).shape == header.shape
    np.testing.assert_array_equal(header.to_stored(header.to_ras(values)), values)
    assert sorted(header.voxel_mm) == pytest.approx(sorted(np.linalg.norm(header.affine[:3, :3], axis=0)))


def test_written_labels_lie_where_the_image_lies_and_hold_no_word_of_it(written, tmp_path, case):
    form, image_path, _, image, _ = written
    header = form.read_header(image_path)
    labels = (image.astype(np.uint8).reshape(header.stored_shape)) % 7
    path = form.write_labels(tmp_path / "sub" / "out", labels, header)
    assert path == form.written_as(tmp_path / "sub" / "out") == tmp_path / "sub" / f"out{form.endings[0]}"
    assert NAME.encode() not in unpacked(path)
    if not form.holds_labels:
        np.testing.assert_array_equal(form.read_labels(path), labels)
        found = form.read_label_header(path)
        np.testing.assert_array_equal(found.affine, header.affine)
        assert (found.stored_shape, found.is_volume) == (header.stored_shape, header.is_volume)


def test_many_labels_are_written_with_their_numbers_or_refused(written, tmp_path, case):
    form, image_path, *_ = written
    header = form.read_header(image_path)
    labels = np.arange(np.prod(header.stored_shape), dtype=np.uint16).reshape(header.stored_shape) * 500
    if not case.any_number:
        with pytest.raises(DataError, match="Number the labels so"):
            form.write_labels(tmp_path / "out", labels, header)
        return
    path = form.write_labels(tmp_path / "out", labels, header)
    if not form.holds_labels:
        np.testing.assert_array_equal(form.read_labels(path), labels)


@pytest.mark.parametrize("kept", [0, 3, 0.3, 0.7])
def test_truncated_file_is_one_error_that_begins_with_its_path(written, kept):
    form, image_path, labels_path, *_ = written
    for path, read in ((image_path, form.read_image), (labels_path, form.read_labels)):
        file = min(path.iterdir()) if path.is_dir() else path
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
        with pytest.raises(DataError) as raised:
            read(path)
        assert str(raised.value).startswith(f"{file}: ")
        file.write_bytes(content)


def test_missing_file_is_one_error(case, tmp_path):
    path = tmp_path / f"gone{case.format.endings[0]}"
    with pytest.raises(DataError, match="gone"):
        case.format.read_header(path)


def test_name_is_the_path_without_the_longest_ending(case, tmp_path):
    for ending in case.format.endings:
        assert case.format.name_of(tmp_path / "p1" / f"a.b{ending.upper()}", tmp_path) == "p1/a.b"


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
def test_slices_of_the_truth_give_back_the_truth(written, tmp_path, axis, case):
    form, image_path, labels_path, _, labels = written
    root = tmp_path / "root"
    folders = {"images": "images"} if form.holds_labels else {"images": "images", "masks": "labels"}
    for part, path in zip(folders.values(), (image_path, labels_path), strict=False):
        (root / part).mkdir(parents=True)
        path.rename(root / part / f"c1{form.endings[0]}")
    source = VolumeSource(form, axis=axis, **folders)
    source.open(root)
    writer = mask_writer(source, tmp_path / "predicted")
    for index in range(len(source)):
        sample = source[index]
        values = (sample.masks.dense() * sample.labels[:, None, None]).sum(0) if len(sample.labels) else sample.image[0] * 0
        writer.add(sample.image_id, sample.case_id, values.numpy().astype(np.int32))
    (path,) = writer.finish()
    found = form.read_labels(path) if case.read_written is None else case.read_written(path)
    np.testing.assert_array_equal(found.reshape(labels.shape), labels)
