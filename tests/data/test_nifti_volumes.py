import nibabel
import numpy as np
import pytest
import torch

from medsam_tune.data import NiftiVolumes, SliceRule
from medsam_tune.data.base import VoxelSize
from medsam_tune.errors import DataError, RecipeError

GREY = np.random.default_rng(0).integers(0, 1000, (6, 7, 8)).astype(np.float32)
LABELS = np.zeros((6, 7, 8), np.uint8)
LABELS[1:4, 2:5, 3:6] = 1
LABELS[2, 3, 3:6] = 2
ANISOTROPIC = np.diag([1.0, 2.0, 3.0, 1.0])
SHIFTED = ANISOTROPIC.copy()
SHIFTED[0, 3] = 4.0


def opened(root, **settings):
    source = NiftiVolumes(**settings)
    source.open(root)
    return source


@pytest.fixture
def one_case(volumes):
    volumes("images", "c1", GREY, ANISOTROPIC)
    return volumes("labels", "c1", LABELS, ANISOTROPIC)


def test_every_slice_of_the_axis_is_an_item_with_its_spacing(one_case):
    source = opened(one_case, axis="coronal", window=(0.0, 1000.0))
    sample = source[3]
    assert (len(source), sample.image_id, sample.case_id) == (7, "c1_coronal003", "c1")
    assert sample.spacing_mm == (3.0, 1.0)
    expected = np.rint(GREY[::-1, 3, ::-1].T * 0.255)
    assert torch.equal(sample.image, torch.from_numpy(expected).float().expand(3, 8, 6))
    assert torch.equal(sample.masks.dense()[1], torch.from_numpy((LABELS[::-1, 3, ::-1].T == 2).copy()))


@pytest.mark.parametrize(
    ("axis", "size"), [("sagittal", (3.0, 2.0, 1.0)), ("coronal", (3.0, 1.0, 2.0)), ("axial", (2.0, 1.0, 3.0))]
)
def test_a_voxel_has_the_distances_of_rows_columns_and_slices(one_case, axis, size):
    assert opened(one_case, axis=axis).voxel_size(0) == VoxelSize(*size)


def test_stored_orientation_does_not_change_what_is_seen(volumes):
    # The same patient stored as L, P, S with the axes in another order: (z, x, y) with x and y running backwards.
    turned = np.transpose(GREY[::-1, ::-1], (2, 0, 1))
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0] = -1.0, -2.0, 3.0
    affine[:, 3] = [5.0, 12.0, 0.0, 1.0]
    for folder in ("images", "labels"):
        volumes(folder, "a_ras", GREY if folder == "images" else LABELS, ANISOTROPIC)
    volumes("images", "b_turned", np.ascontiguousarray(turned), affine)
    root = volumes("labels", "b_turned", np.ascontiguousarray(np.transpose(LABELS[::-1, ::-1], (2, 0, 1))), affine)
    source = opened(root, axis="sagittal")
    for position in range(6):
        plain, other = source[position], source[6 + position]
        assert torch.equal(plain.image, other.image)
        assert torch.equal(plain.masks.dense(), other.masks.dense())
        assert plain.spacing_mm == other.spacing_mm == (3.0, 2.0)


def test_assembled_slices_lie_on_the_voxels_of_the_stored_file(volumes):
    stored = np.ascontiguousarray(np.transpose(LABELS[::-1], (2, 0, 1)))
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = -1.0, 1.0, 1.0, 1.0
    volumes("images", "c1", stored.astype(np.float32), affine)
    source = opened(volumes("labels", "c1", stored, affine), axis="axial")
    slices = {source.position(i)[1]: source[i].masks.dense().any(dim=0).numpy() for i in range(len(source))}
    assert np.array_equal(source.assemble("c1", slices), stored > 0)
    assert np.allclose(source.header("c1").affine, affine)


def test_window_is_the_same_for_every_volume(volumes):
    for name, top in (("a", 100.0), ("b", 900.0)):
        grey = np.zeros((2, 2, 2), np.float32)
        grey[0, 0, 0], grey[1, 1, 1] = 50.0, top
        volumes("images", name, grey)
        root = volumes("labels", name, np.zeros((2, 2, 2), np.uint8))
    source = opened(root, window=(0.0, 100.0))
    assert [float(source[index].image[0, 1, 1]) for index in (0, 2)] == [128.0, 128.0]


def test_percentiles_of_the_whole_volume_are_the_limits(one_case):
    source = opened(one_case, percentiles=(10.0, 90.0))
    low, high = np.percentile(GREY, [10, 90])
    expected = np.rint(np.clip((GREY[::-1, ::-1, 4].T - low) / (high - low), 0, 1) * 255)
    assert np.abs(source[4].image[0].numpy() - expected).max() <= 1


def test_labels_are_grouped_and_selected_by_name(one_case):
    source = opened(one_case, labels={"all": [1, 2], "core": [2]})
    sample = source[4]
    assert source.label_names() == {1: "all", 2: "core"}
    assert sample.masks.dense().sum(dim=(1, 2)).tolist() == [9, 1]


def test_without_names_every_value_is_a_label(one_case):
    source = opened(one_case)
    assert source.label_names() == {1: "label 1", 2: "label 2"}
    assert source[4].labels.tolist() == [1, 2]


def test_training_and_evaluation_choose_their_own_slices(one_case):
    source = opened(one_case, axis="axial", slices=SliceRule(step=3), train_slices=SliceRule(count=2))
    everything = range(len(source))
    positions = [source.position(index)[1] for index in everything]
    assert [positions[i] for i in source.select(everything, "train")] == [2, 6]
    assert [positions[i] for i in source.select(everything, "evaluate")] == [0, 3, 6]
    assert [positions[i] for i in source.select(everything, "predict")] == list(range(8))


def test_slices_are_chosen_without_looking_at_labels(one_case):
    with_masks = opened(one_case, slices=SliceRule(count=3)).image_ids()
    (one_case / "labels" / "c1.nii.gz").unlink()
    source = NiftiVolumes(slices=SliceRule(count=3))
    source.open(one_case, require_masks=False)
    assert source.image_ids() == with_masks
    assert len(source[0].labels) == 0


def test_decathlon_and_nnunet_names_pair(volumes):
    volumes("imagesTr", "case_0000", GREY)
    root = volumes("labelsTr", "case", LABELS)
    assert set(opened(root, images="imagesTr", masks="labelsTr").case_ids()) == {"case"}


def test_volume_without_a_mask_is_named(one_case, volumes):
    volumes("images", "c2", GREY)
    with pytest.raises(DataError, match="1 images without a mask: c2"):
        opened(one_case)


@pytest.mark.parametrize(
    ("labels", "affine", "message"),
    [
        (LABELS[:5], ANISOTROPIC, r"mask shape \(5, 7, 8\) differs from image shape \(6, 7, 8\)\. Resample"),
        (LABELS, np.eye(4), r"mask spacing \(1\.0, 1\.0, 1\.0\) mm differs from image spacing \(1\.0, 2\.0, 3\.0\) mm"),
        (LABELS, SHIFTED, r"mask affine differs from the image's by 4 mm"),
        (LABELS[::-1].copy(), np.diag([-1.0, 2.0, 3.0, 1.0]), "mask affine differs"),
    ],
)
def test_mask_on_another_grid_is_refused_when_opening(volumes, labels, affine, message):
    volumes("images", "c1", GREY, ANISOTROPIC)
    with pytest.raises(DataError, match=r"c1\.nii\.gz: .*" + message):
        opened(volumes("labels", "c1", labels, affine))


def test_nan_and_infinite_voxels_are_counted_and_refused(volumes):
    broken = GREY.copy()
    broken[0, 0, 0], broken[1, 1, 1] = np.nan, np.inf
    volumes("images", "c1", broken)
    with pytest.raises(DataError, match=r"c1\.nii\.gz: 2 of 336 values are NaN or infinite"):
        opened(volumes("labels", "c1", LABELS))[0]


def test_interpolated_labels_are_refused(volumes):
    volumes("images", "c1", GREY)
    smoothed = LABELS.astype(np.float32)
    smoothed[0, 0, :5] = 0.25
    with pytest.raises(DataError, match=r"c1\.nii\.gz: 5 label values are no whole numbers .* such as \[0\.25\]"):
        opened(volumes("labels", "c1", smoothed))[0]


def test_time_series_are_refused_and_a_trailing_axis_of_one_is_dropped(volumes, one_case):
    volumes("images", "c1", GREY[..., None], ANISOTROPIC)
    assert len(opened(one_case)) == 8
    volumes("images", "c1", np.stack([GREY, GREY], axis=-1), ANISOTROPIC)
    with pytest.raises(DataError, match=r"has shape \(6, 7, 8, 2\), expected a volume of 3 axes"):
        opened(one_case)


def test_truncated_volume_is_refused_with_its_path(one_case):
    path = one_case / "images" / "c1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"c1\.nii\.gz: cannot be read as NIfTI"):
        opened(one_case)[0]
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"c1\.nii\.gz: cannot be read as NIfTI"):
        opened(one_case)


def test_spacing_stored_in_metres_is_millimetres(volumes):
    for folder, values in (("images", GREY), ("labels", LABELS)):
        image = nibabel.Nifti1Image(values, np.diag([0.001, 0.002, 0.003, 1.0]))
        image.header.set_xyzt_units("meter")
        root = volumes(folder, "c1", values)
        nibabel.save(image, root / folder / "c1.nii.gz")
    assert opened(root, axis="axial")[0].spacing_mm == pytest.approx((2.0, 1.0))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match=r"data\.source\.window: expected low < high"):
        NiftiVolumes(window=(10.0, 0.0))
    with pytest.raises(RecipeError, match=r"data\.source\.axis"):
        NiftiVolumes(axis="oblique")


def test_unannotated_voxels_may_be_255_with_and_without_names(volumes):
    labels = LABELS.copy()
    labels[0] = 255
    volumes("images", "c1", GREY)
    root = volumes("labels", "c1", labels)
    for names in (None, {"a": [1], "b": [2]}):
        source = NiftiVolumes(labels=names)
        source.ignore_label = 255
        source.open(root)
        assert set(source.label_names()) == {1, 2}
        sample = source[4]
        assert sample.labels.tolist() == [1, 2]
        # The patient's right is on the left: RAS column 0 is shown last.
        assert torch.equal(sample.ignored, torch.arange(6).expand(7, 6) == 5)
