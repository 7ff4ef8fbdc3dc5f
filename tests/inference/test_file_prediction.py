import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.backbone import SamBackbone
from medsam_tune.data.intensity import Intensity
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.file_prediction import Asking, answer_file, check_asked
from medsam_tune.inference.label_values import Meaning
from medsam_tune.inference.new_files import find_files
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from tests.inference.test_writers import write_volume


@pytest.fixture
def untuned():
    torch.manual_seed(0)
    return Predictor(SamBackbone("random_tiny"))


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return pixels


@pytest.fixture
def volume(tmp_path):
    write_volume(tmp_path)
    (file,) = find_files(tmp_path / "images")
    return file


UNKNOWN = TrainedData()


def answer(predictor, file, drawn=None, *, values=None, data=UNKNOWN, **more):
    return answer_file(Asking(predictor, data, values or {}, **more), file, drawn)


def test_an_image_is_255_where_the_model_says_so(untuned, image, tmp_path):
    (file,) = find_files(tmp_path)
    found = answer(untuned, file)
    untuned.set_image(image)
    masks, ious, _ = untuned.predict()
    assert np.array_equal(found.volume[0], masks[0] * 255)
    (row,) = found.figures
    assert (row.case, row.label, row.value, row.pixels) == ("a", "object", 255, masks.sum())
    assert row.predicted_iou == pytest.approx(float(ious[0]))
    # A PNG of another program states no spacing.
    assert (row.volume_ml, row.area_mm2, row.uncertainty) == (None, None, None)
    assert found.legend == {255: Meaning("object")}


def test_each_drawn_object_has_its_value_and_the_later_one_counts(untuned, image, tmp_path):
    boxes = [(0, 0, 29, 19), (3, 4, 9, 9)]
    drawn = [DrawnObject("a", label=label, box=box) for label, box in zip("vu", boxes, strict=True)]
    (file,) = find_files(tmp_path)
    found = answer(untuned, file, drawn, values={"u": 1, "v": 7}, data=TrainedData(labels={"v": (7, 8)}))
    untuned.set_image(image)
    first, second = (untuned.predict(box=box)[0][0] for box in boxes)
    assert np.array_equal(found.volume[0], np.where(second, 1, np.where(first, 7, 0)))
    assert found.legend == {1: Meaning("u"), 7: Meaning("v", (7, 8))}
    assert [row.pixels for row in found.figures] == [second.sum(), (first & ~second).sum()]


def test_many_boxes_are_answered_as_one_by_one(untuned, image, tmp_path):
    rng = np.random.default_rng(1)
    corners = np.sort(rng.integers(0, 20, (40, 2, 2)), axis=1).reshape(40, 4).tolist()
    drawn = [DrawnObject("a", label=str(number), box=tuple(box)) for number, box in enumerate(corners, start=1)]
    (file,) = find_files(tmp_path)
    found = answer(untuned, file, drawn, values={str(number): number for number in range(1, 41)})
    untuned.set_image(image)
    expected = np.zeros((20, 30), int)
    for number, box in enumerate(corners, start=1):
        expected[untuned.predict(box=box)[0][0]] = number
    assert np.array_equal(found.volume[0], expected)


@pytest.mark.parametrize("axis", ["axial", "coronal"])
def test_every_slice_of_a_volume_is_answered_on_its_own_voxels(untuned, volume, axis):
    found = answer(untuned, volume, data=TrainedData(axis, Intensity("percentile", percentiles=(1, 99)), of_volumes=True))
    source = nibabel.load(volume.path)
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(found.volume, source.affine)).get_fdata()
    levels = nibabel.as_closest_canonical(source).get_fdata()
    low, high = np.percentile(source.get_fdata(), (1, 99))
    levels = np.rint(np.clip((levels - low) * 255 / (high - low), 0, 255)).astype(np.uint8)
    number = {"axial": 2, "coronal": 1}[axis]
    weights, ious = [], []
    for position in range(levels.shape[number]):
        # Shown with the front, or the head, up and the patient's right on the left.
        shown = np.take(levels, position, axis=number).T[::-1, ::-1]
        untuned.set_image(np.ascontiguousarray(shown))
        masks, iou, _ = untuned.predict()
        assert np.array_equal(np.take(turned, position, axis=number).T[::-1, ::-1] == 1, masks[0])
        weights.append(masks.sum())
        ious.append(iou[0])
    (row,) = found.figures
    # A voxel is 1.5 x 0.5 x 2 mm.
    assert row.volume_ml == pytest.approx(sum(weights) * 1.5 / 1000)
    assert row.predicted_iou == pytest.approx(np.average(ious, weights=weights))


def test_a_box_of_one_slice_leaves_the_others_empty(untuned, volume):
    found = answer(untuned, volume, [DrawnObject("case_1", 2, box=(0, 0, 3, 3))], uncertainty=True)
    turned = found.slices.header.to_ras(found.volume)
    assert not turned[..., [0, 1, 3]].any()
    assert 0 <= found.figures[0].uncertainty <= 1
    with pytest.raises(DataError, match=r"the prompts name \[99\]"):
        answer(untuned, volume, [DrawnObject("case_1", 99, box=(0, 0, 3, 3))])


def test_nothing_to_ask_is_an_empty_mask(untuned, volume):
    found = answer(untuned, volume, [])
    assert not found.volume.any()
    assert found.volume.shape == nibabel.load(volume.path).shape
    assert [row.pixels for row in found.figures] == [0]


def test_classes_have_the_values_of_the_trainings_masks(image, tmp_path):
    torch.manual_seed(0)
    parts = SamParts(SamBackbone("random_tiny", trainable=["mask_decoder"]))
    predictor = Predictor(SemanticSegmenter(parts, classes=["a", "b", "c"]))
    data = TrainedData(labels={"a": (205,), "b": (130,), "c": (7,)})
    (file,) = find_files(tmp_path)
    found = answer(predictor, file, data=data)
    by_name = predictor.segment_classes(image)
    for name, value in (("a", 205), ("b", 130), ("c", 7)):
        assert np.array_equal(found.volume[0] == value, by_name[name])
    assert [row.value for row in found.figures] == [205, 130, 7]
    assert found.legend[130] == Meaning("b", (130,))


def test_grey_levels_are_those_of_the_training(untuned, tmp_path):
    values = (np.random.default_rng(0).random((20, 30)) * 40000).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    (file,) = find_files(tmp_path)
    exact = answer(untuned, file, data=TrainedData(intensity=Intensity("full_range"))).slices.levels(0)
    assert np.allclose(exact, values * (255 / 65535), rtol=1e-6)
    rounded = answer(untuned, file, data=TrainedData(intensity=Intensity("full_range"), of_volumes=True)).slices.levels(0)
    assert np.array_equal(rounded, np.rint(exact))


def test_models_that_miss_something_say_so_before_any_file(untuned, tiny_backbone):
    boxed = Predictor(SamSegmenter(SamParts(tiny_backbone, prompts=BoxPrompt())))
    with pytest.raises(RecipeError, match=r"--boxes: is not given, and the model was asked with BoxPrompt in training"):
        check_asked(boxed, prompted=False)
    with pytest.raises(RecipeError, match=r"--boxes: is not given, and SAM was trained with prompts"):
        check_asked(untuned, prompted=False, untuned=True)
    with pytest.raises(RecipeError, match=r"--uncertainty: moves prompts"):
        check_asked(untuned, prompted=False, uncertainty=True)
    check_asked(boxed, prompted=True, uncertainty=True)
