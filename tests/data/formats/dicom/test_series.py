import shutil

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from medsam_tune.data.formats import DicomFormat
from medsam_tune.data.formats.dicom import slices
from medsam_tune.data.formats.dicom.reading import read_dataset
from medsam_tune.errors import DataError, RecipeError
from tests.dicom_files import AXIAL, NAME, plane, save, write_multiframe, write_series

VOLUME = np.random.default_rng(0).integers(0, 1000, (4, 5, 6), dtype=np.int16)
PATHS = [(-10, 20, 30 + 3 * number) for number in range(4)]


def read(path, **settings):
    form = DicomFormat(**settings)
    return form.read_header(path), form.read_image(path)


def test_slices_are_stacked_by_their_place_whatever_their_names_say(tmp_path):
    header, values = read(write_series(tmp_path / "c1", VOLUME))
    np.testing.assert_array_equal(values, VOLUME)
    # By hand: slices go up 3 mm, rows go back 0.7 mm, columns go left 0.5 mm; RAS turns the first two signs of (-10, 20, 30).
    expected = [[0, 0, -0.5, 10], [0, -0.7, 0, -20], [3, 0, 0, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(header.affine, expected)
    assert header.stored_shape == (4, 5, 6)
    assert header.voxel_mm == pytest.approx((0.5, 0.7, 3.0))


def test_another_order_of_files_gives_the_same_volume(tmp_path):
    write_series(tmp_path / "c1", VOLUME)
    files = sorted((tmp_path / "c1").iterdir())
    for name, file in zip("qzax", files, strict=True):
        (tmp_path / "c2").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "c2" / name)
    (first, values), (second, shuffled) = read(tmp_path / "c1"), read(tmp_path / "c2")
    np.testing.assert_array_equal(values, shuffled)
    np.testing.assert_array_equal(first.affine, second.affine)


def test_a_header_is_read_anew_only_where_its_file_was_written_anew(tmp_path, monkeypatch):
    path, asked = write_series(tmp_path / "c1", VOLUME), []

    def noted(file, **settings):
        asked.append(file)
        return read_dataset(file, **settings)

    monkeypatch.setattr(slices, "read_dataset", noted)
    first, second = (DicomFormat().read_header(path) for _ in range(2))
    assert first.voxel_mm == second.voxel_mm == pytest.approx((0.5, 0.7, 3.0))
    assert sorted(asked) == sorted(path.iterdir())
    for file in path.iterdir():
        dataset = dcmread(file)
        dataset.PixelSpacing = [0.9, 0.5]
        dataset.save_as(file)
    assert DicomFormat().read_header(path).voxel_mm == pytest.approx((0.5, 0.9, 3.0))
    assert len(asked) == 2 * len(list(path.iterdir()))


def test_oblique_slices_lie_where_their_vectors_say(tmp_path):
    columns, rows = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.0, -1.0])
    normal = np.cross(columns, rows)
    positions = [tuple(np.array([1.0, 2.0, 3.0]) + 2.5 * number * normal) for number in range(4)]
    header, _ = read(write_series(tmp_path / "c1", VOLUME, positions=positions, ImageOrientationPatient=[*columns, *rows]))
    corner = np.array([1.0, 2.0, 3.0]) + 2 * 2.5 * normal + 3 * 0.7 * rows + 4 * 0.5 * columns
    np.testing.assert_allclose((header.affine @ [2, 3, 4, 1])[:3], corner * [-1, -1, 1], atol=1e-9)


def test_each_slice_has_its_own_rescale(tmp_path):
    path = write_series(tmp_path / "c1", VOLUME, RescaleSlope=(1, 2, 3, 0.5), RescaleIntercept=(0, -5, 0, 1))
    expected = np.stack([VOLUME[0], 2 * VOLUME[1] - 5, 3 * VOLUME[2], 0.5 * VOLUME[3] + 1])
    np.testing.assert_allclose(read(path)[1], expected)


def test_whole_units_stay_whole_numbers(tmp_path):
    values = read(write_series(tmp_path / "c1", VOLUME, RescaleSlope=1, RescaleIntercept=-1024))[1]
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, VOLUME - 1024)


def test_low_values_that_are_shown_bright_are_turned_over(tmp_path):
    upright = VOLUME.astype(np.uint16)
    turned = write_series(tmp_path / "c1", 4095 - upright, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(turned)[1], upright)


def test_header_window_becomes_grey_levels(tmp_path):
    # PS3.3 C.11.2.1.2.1: centre 100 and width 201 run from -0.5 to 199.5.
    path = write_series(tmp_path / "c1", VOLUME, WindowCenter=100, WindowWidth=201)
    expected = np.rint(np.clip((VOLUME + 0.5) / 200 * 255, 0, 255))
    values = read(path, values="window")[1]
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, expected)


def test_windows_that_differ_are_refused(tmp_path):
    path = write_series(tmp_path / "c1", VOLUME, WindowCenter=(1, 1, 2, 1), WindowWidth=50)
    with pytest.raises(DataError, match=r"00[23]\.dcm: states the window .* one volume needs one"):
        read(path, values="window")


def test_frames_of_one_file_are_a_volume_with_a_rescale_each(tmp_path):
    path = write_multiframe(tmp_path / "mf", VOLUME, [2, 0, 3, 1], [1, 2, 3, 4])
    header, values = read(path)
    np.testing.assert_allclose(values, VOLUME * np.array([1, 2, 3, 4])[:, None, None])
    series, _ = read(write_series(tmp_path / "c1", VOLUME))
    np.testing.assert_allclose(header.affine, series.affine)


def test_packed_slices_give_the_same_values(tmp_path):
    path = write_series(tmp_path / "c1", VOLUME)
    for file in list(path.iterdir()):
        dataset = dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    np.testing.assert_array_equal(read(path)[1], VOLUME)


def test_colours_and_single_pictures(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    lost = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    save(tmp_path / "a", plane(colours, **lost))
    save(tmp_path / "b", plane(VOLUME[0], **lost))
    assert DicomFormat().find(tmp_path).files == [tmp_path / "a", tmp_path / "b"]
    header, values = read(tmp_path / "a")
    assert (header.is_volume, header.stored_shape, header.voxel_mm[:2]) == (False, (1, 5, 6), (0.5, 0.7))
    np.testing.assert_array_equal(values[0], colours)


def test_patient_is_told_and_files_are_named(tmp_path):
    header, _ = read(write_series(tmp_path / "c1", VOLUME))
    assert header.patient_id == NAME
    assert [path.name for path in header.files] == ["004.dcm", "003.dcm", "002.dcm", "001.dcm"]


def moved(number, **by):
    axis = {"x": 0, "y": 1, "z": 2}
    positions = [list(position) for position in PATHS]
    for name, millimetres in by.items():
        positions[number][axis[name]] += millimetres
    return positions


@pytest.mark.parametrize(
    ("positions", "attributes", "message"),
    [
        (
            [*PATHS[:2], (-10, 20, 39), (-10, 20, 42)],
            {},
            r"from 003.dcm to 002.dcm are 6 mm, .*: 1 slice is missing there",
        ),
        (moved(3, z=1), {}, r"from 002.dcm to 001.dcm are 4 mm, .* unevenly spaced"),
        (moved(1, z=3), {}, r"00[23]\.dcm: lies at the same place as 00[23]\.dcm \(1 slices"),
        ([PATHS[0]] * 4, {}, "all 4 slices lie at one place"),
        ([PATHS[0], PATHS[0], PATHS[1], PATHS[1]], {}, "holds 2 slices at each of 2 places .*time points, echoes or copies"),
        ([(-10, 20 + number, 30 + 3 * number) for number in range(4)], {}, r"gantry tilt of 18\.4 degrees"),
        (moved(2, x=2), {}, r"002\.dcm: is shifted sideways by 2 mm"),
        (PATHS, {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}, r"\.dcm: is a mosaic"),
        (PATHS, {"ImageOrientationPatient": (AXIAL, AXIAL, AXIAL, (0, 1, 0, 0, 0, 1))}, r"lies in another plane than"),
        (PATHS, {"PixelSpacing": ([1, 1], [1, 1], [1, 1], [2, 2])}, r"states PixelSpacing \(\d.*of the same series"),
        (PATHS, {"PixelSpacing": None}, r"states PixelSpacing None"),
        (PATHS, {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no two unit vectors at right angles"),
        (PATHS, {"ImagePositionPatient": ([0, 0, "1E400"], *PATHS[1:])}, r"ImagePositionPatient is \[0.0, 0.0, inf\]"),
        (PATHS, {"Rows": 60000, "Columns": 60000}, r"claims 7200000000 bytes of pixels, but the file has"),
    ],
)
def test_what_is_no_even_stack_is_refused_by_name(tmp_path, positions, attributes, message):
    attributes = {word: tuple(map(list, value)) if isinstance(value, tuple) else value for word, value in attributes.items()}
    path = write_series(tmp_path / "c1", VOLUME, positions=positions, **attributes)
    with pytest.raises(DataError, match=message) as raised:
        read(path)
    assert str(raised.value).startswith(str(path))
    assert NAME not in str(raised.value)


def test_a_copy_of_a_slice_is_named(tmp_path):
    path = write_series(tmp_path / "c1", VOLUME)
    shutil.copy(path / "002.dcm", path / "copy.dcm")
    with pytest.raises(DataError, match=r"(copy|002)\.dcm: is a copy of (copy|002)\.dcm"):
        read(path)


def test_several_series_are_listed_and_one_is_chosen(tmp_path):
    write_series(tmp_path / "c1", VOLUME)
    for number, values in enumerate(VOLUME[:2]):
        other = plane(values, SeriesInstanceUID="1.9", SeriesNumber=11, SeriesDescription="T2 tra")
        save(tmp_path / "c1" / f"other{number}", other)
    with pytest.raises(DataError, match=r"holds 2 series.* number 7 \(CT, 4 slices of 5 x 6, .* number 11 .*init_args\.series"):
        DicomFormat().find(tmp_path)
    assert DicomFormat(series=7).read_header(tmp_path / "c1").stored_shape == (4, 5, 6)
    assert len(DicomFormat(series="^T2").find(tmp_path).files) == 1
    with pytest.raises(DataError, match="lie at one place"):
        DicomFormat(series="^T2").read_header(tmp_path / "c1")
    with pytest.raises(DataError, match="of which series 8 chooses 0"):
        DicomFormat(series=8).read_header(tmp_path / "c1")


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="no number and no regular expression"):
        DicomFormat(series="(")
    with pytest.raises(RecipeError, match="values rescaled or window"):
        DicomFormat(values="hu")


def test_a_name_of_a_dicom_file_without_its_content_is_refused(tmp_path):
    write_series(tmp_path / "c1", VOLUME)
    (tmp_path / "c1" / "x.dcm").write_bytes(b"no")
    (tmp_path / "c1" / "notes.txt").write_text("left alone")
    with pytest.raises(DataError, match=r"x\.dcm: is no DICOM file"):
        DicomFormat().find(tmp_path)
    (tmp_path / "c1" / "x.dcm").unlink()
    found = DicomFormat().find(tmp_path)
    assert (found.files, found.others) == ([tmp_path / "c1"], [tmp_path / "c1" / "notes.txt"])


def test_frames_without_a_place_are_refused(tmp_path):
    film = plane(VOLUME.reshape(-1, 6), NumberOfFrames=4, Rows=5, ImagePositionPatient=None, ImageOrientationPatient=None)
    with pytest.raises(DataError, match="4 frames without a place in space, such as a film"):
        read(save(tmp_path / "film.dcm", film))


def test_pixels_of_a_deflated_file_may_be_more_than_its_bytes(tmp_path):
    dataset = plane(np.full((64, 64), 7, np.uint16))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(tmp_path / "x.dcm", dataset)
    assert path.stat().st_size < 64 * 64
    assert (read(path)[1] == 7).all()


def test_two_pixels_may_share_their_colours(tmp_path):
    path = save(tmp_path / "x.dcm", plane(np.zeros((64, 64, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422"))
    dataset = dcmread(path)
    dataset.PixelData = bytes([90, 90, 128, 128]) * 2048  # Y Y Cb Cr of 64 x 64 grey pixels
    dataset.save_as(path)
    assert path.stat().st_size < 64 * 64 * 3
    assert (read(path)[1] == 90).all()


def test_a_picture_of_no_series_is_refused_by_what_it_lacks(tmp_path):
    path = save(tmp_path / "x.dcm", plane(VOLUME[0], SeriesInstanceUID=None))
    with pytest.raises(DataError, match=r"x\.dcm: states no SeriesInstanceUID"):
        read(path)


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_slice_that_states_no_place_is_named_and_never_left_out(tmp_path, lost):
    for number, values in enumerate(VOLUME):
        place = None if number == lost else list(PATHS[number])
        save(tmp_path / "c1" / f"{number}.dcm", plane(values, ImagePositionPatient=place))
    said = rf"{lost}\.dcm: states no position or orientation, but is of the series of 3 slices"
    with pytest.raises(DataError, match=said):
        DicomFormat().read_header(tmp_path / "c1")
    assert DicomFormat().find(tmp_path).files == [tmp_path / "c1"]


def test_a_picture_of_another_series_may_lie_beside_slices(tmp_path):
    write_series(tmp_path / "c1", VOLUME)
    save(tmp_path / "c1" / "dose", plane(VOLUME[0], ImagePositionPatient=None, SeriesInstanceUID="9.9"))
    assert DicomFormat().read_header(tmp_path / "c1").stored_shape == VOLUME.shape
