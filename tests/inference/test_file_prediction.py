import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.backbone import SamBackbone
from medsam_tune.data.intensity import Intensity
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.file_prediction import (
    ReadingRule,
    check_asked,
    find_files,
    match_prompts,
    names_of_numbers,
    predict_files,
)
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from tests.inference.test_writers import write_volume


@pytest.fixture
def untuned():
    torch.manual_seed(0)
    return Predictor(SamBackbone("random_tiny"))


@pytest.fixture
def place(tmp_path):
    """A folder with two images, one of them in a sub-folder, and a damaged one."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(path)
    (tmp_path / "new" / "c.png").write_bytes(b"no image")
    return tmp_path / "new"


def test_a_folder_is_answered_file_by_file_and_a_damaged_one_is_an_outcome(untuned, place):
    files = find_files(place)
    assert [file.name for file in files] == ["a", "c", "sub/b"]
    outcomes = list(predict_files(untuned, files, place / "out", ReadingRule()))
    assert [outcome.written for outcome in outcomes] == [place / "out/a.png", None, place / "out/sub/b.png"]
    assert outcomes[1].fault.startswith(f"{place / 'c.png'}: cannot be read")
    mask = np.asarray(Image.open(place / "out/sub/b.png"))
    untuned.set_image(np.asarray(Image.open(place / "sub/b.png")))
    assert np.array_equal(mask == 255, untuned.predict()[0][0])
    assert set(np.unique(mask)) <= {0, 255}
    assert [file.name for file in find_files(place, without=place / "out")] == ["a", "c", "sub/b"]


def test_each_drawn_object_has_its_number_and_the_later_one_counts(untuned, place):
    files = find_files(place / "a.png")
    boxes = [(0, 0, 29, 19), (3, 4, 9, 9)]
    drawn = [DrawnObject("a.png", label=label, box=box) for label, box in zip("vu", boxes, strict=True)]
    prompts = match_prompts(files, drawn, place / "boxes.csv")
    (outcome,) = predict_files(untuned, files, place / "out", ReadingRule(), prompts)
    untuned.set_image(np.asarray(Image.open(place / "a.png")))
    first, second = (untuned.predict(box=box)[0][0] for box in boxes)
    expected = np.where(second, 1, np.where(first, 2, 0))
    assert np.array_equal(np.asarray(Image.open(outcome.written)), expected)
    assert names_of_numbers(untuned, prompts) == {1: "u", 2: "v"}


@pytest.mark.parametrize("axis", ["axial", "coronal"])
def test_every_slice_of_a_volume_is_answered_on_its_own_voxels(untuned, tmp_path, axis):
    write_volume(tmp_path)
    path = tmp_path / "images" / "case_1.nii.gz"
    rule = ReadingRule(axis, Intensity("percentile", percentiles=(1, 99)))
    (outcome,) = predict_files(untuned, find_files(path), tmp_path / "out", rule)
    written, source = nibabel.load(outcome.written), nibabel.load(path)
    assert outcome.written == tmp_path / "out" / "case_1.nii.gz"
    assert written.shape == source.shape
    assert np.allclose(written.affine, source.affine)
    turned = nibabel.as_closest_canonical(written).get_fdata()
    levels = nibabel.as_closest_canonical(source).get_fdata()
    low, high = np.percentile(source.get_fdata(), (1, 99))
    levels = np.rint(np.clip((levels - low) * 255 / (high - low), 0, 255)).astype(np.uint8)
    number = {"axial": 2, "coronal": 1}[axis]
    for position in range(levels.shape[number]):
        # Shown with the front, or the head, up and the patient's right on the left.
        shown = np.take(levels, position, axis=number).T[::-1, ::-1]
        untuned.set_image(np.ascontiguousarray(shown))
        expected = untuned.predict()[0][0]
        assert np.array_equal(np.take(turned, position, axis=number).T[::-1, ::-1] == 1, expected)


def test_a_box_of_one_slice_leaves_the_others_empty(untuned, tmp_path):
    write_volume(tmp_path)
    files = find_files(tmp_path)
    prompts = match_prompts(files, [DrawnObject("case_1", 2, box=(0, 0, 3, 3))], tmp_path)
    (outcome,) = predict_files(untuned, files, tmp_path / "out", ReadingRule(), prompts)
    voxels = nibabel.as_closest_canonical(nibabel.load(outcome.written)).get_fdata()
    assert not voxels[..., [0, 1, 3]].any()
    prompts = match_prompts(files, [DrawnObject("case_1", 99, box=(0, 0, 3, 3))], tmp_path)
    (outcome,) = predict_files(untuned, files, tmp_path / "out", ReadingRule(), prompts)
    assert "the prompts name [99]" in outcome.fault


def test_faults_of_single_files_name_them(untuned, place):
    files = [file for file in find_files(place) if file.name != "c"]
    prompts = match_prompts(files, [DrawnObject("a", box=(0, 0, 99, 9))], place)
    outcomes = list(predict_files(untuned, files, place / "out", ReadingRule(), prompts))
    assert outcomes[0].fault.startswith(f"{place / 'a.png'}: box must lie in the image of 30 x 20 pixels")
    assert outcomes[1].fault.startswith(f"{place / 'sub/b.png'}: nothing was drawn for it")


def test_names_without_a_file_or_with_two_are_refused(place):
    (place / "sub" / "a.png").write_bytes((place / "a.png").read_bytes())
    files = find_files(place)
    assert set(match_prompts(files, [DrawnObject("sub/a.png"), DrawnObject("b")], place)) == {
        place / "sub/a.png",
        place / "sub/b.png",
    }
    with pytest.raises(DataError, match=r"2 names belong to no file, or to several: a\.png, x"):
        match_prompts(files, [DrawnObject("a.png"), DrawnObject("x"), DrawnObject("b")], place)


def test_places_without_images_and_names_that_clash_are_refused(place, tmp_path):
    with pytest.raises(DataError, match=r"gone: no such file or folder"):
        find_files(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no file with one of the endings \.nii"):
        find_files(tmp_path / "empty")
    (place / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a: several files of that name"):
        find_files(place)


def test_a_model_that_needs_boxes_says_so_before_any_file(untuned, tiny_backbone):
    with pytest.raises(RecipeError, match=r"--boxes: is not given, and the model was asked with BoxPrompt"):
        check_asked(Predictor(SamSegmenter(SamParts(tiny_backbone, prompts=BoxPrompt()))), prompted=False)
    check_asked(untuned, prompted=True)


def test_the_rule_of_the_training_is_read_from_an_exports_description():
    rule = {"rule": "window", "percentiles": [0.5, 99.5], "window": [-160, 240]}
    data = {"intensity": rule, "axis": "coronal", "format": "F"}
    assert ReadingRule.of(data) == ReadingRule("coronal", Intensity("window", window=(-160, 240)), of_volumes=True)
    assert ReadingRule.of({"intensity": "8 bit as stored"}) == ReadingRule()
    with pytest.raises(DataError, match=r"export\.json: its data have no rule"):
        ReadingRule.of({"intensity": {"rule": "window"}})
