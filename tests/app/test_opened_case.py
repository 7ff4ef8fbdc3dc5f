import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune import Predictor, SamBackbone
from medsam_tune.app.models import Models, apart
from medsam_tune.app.opened_case import open_case
from medsam_tune.data.intensity import AS_STORED
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.runs.asked_model import AskedModel, open_model
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.semantic import SemanticSegmenter
from tests.app.conftest import AFFINE, SHAPE
from tests.dicom_files import write_series

BOX = (3.0, 4.0, 24.0, 15.0)


@pytest.fixture
def case(models, volume):
    return open_case([volume], models)


def said(predictor, case, position, **prompts):
    predictor.set_image(case.slices.levels(position), intensity=AS_STORED)
    return predictor.predict(**prompts)


def test_a_box_and_a_correction_are_answered_by_both_networks(case, models):
    case.box(2, (24.0, 15.0, 3.0, 4.0))
    before = Predictor(models.segmenter.untuned())
    for predictor, found in ((models.tuned.predictor, case.state(2).answer), (before, case.state(2).untuned)):
        masks, ious, _ = said(predictor, case, 2, box=BOX)
        assert np.array_equal(found.mask, masks[0])
        assert found.predicted_iou == pytest.approx(float(ious[0]))
    assert not np.array_equal(case.state(2).answer.low_res_masks, case.state(2).untuned.low_res_masks)
    case.click(2, 9, 7, positive=False)
    expected = said(models.tuned.predictor, case, 2, box=BOX, point_coords=[(9, 7)], point_labels=[0])[0][0]
    assert np.array_equal(case.state(2).mask, expected)
    assert case.answered() == [2]


def test_a_click_that_is_no_object_waits_for_one_that_is(case, models):
    case.click(1, 2, 3, positive=False)
    assert case.state(1).mask is None
    case.click(1, 9, 7, positive=True)
    expected = said(models.tuned.predictor, case, 1, point_coords=[(2, 3), (9, 7)], point_labels=[0, 1])[0][0]
    assert np.array_equal(case.state(1).mask, expected)


def test_the_brush_adds_and_takes_away_and_each_step_can_be_undone(case):
    case.paint(0, [(5.5, 5.5)], radius_px=1.0, adds=True)
    cross = np.zeros(SHAPE[1::-1], bool)
    cross[5, 4:7] = cross[4:7, 5] = True
    assert np.array_equal(case.state(0).mask, cross)
    case.paint(0, [(5.5, 4.5), (5.5, 5.5)], radius_px=0.4, adds=False)
    cross[4:6, 5] = False
    assert np.array_equal(case.state(0).mask, cross)
    assert case.state(0).corrected
    assert case.undo(0)
    assert case.state(0).mask.sum() == 5
    assert case.undo(0)
    assert case.state(0).mask is None
    assert not case.undo(0)


def test_clear_forgets_a_slice_and_can_be_undone(case):
    case.box(2, BOX)
    mask = case.state(2).mask
    case.clear(2)
    assert case.answered() == []
    case.undo(2)
    assert np.array_equal(case.state(2).mask, mask)


def test_the_mask_is_written_on_the_voxels_of_the_file(case, tmp_path):
    with pytest.raises(DataError, match="no slice has a mask yet"):
        case.write_mask(tmp_path / "out")
    case.box(2, BOX)
    case.box(4, BOX)
    path = case.write_mask(tmp_path / "out")
    assert path.name == "p01.nii.gz"
    found = nibabel.load(path)
    assert np.array_equal(found.affine, AFFINE)
    expected = np.zeros(SHAPE, np.uint8)
    for position in (2, 4):
        # Stored from right to left and from front to back, so rows and columns lie as they are shown.
        expected[:, :, position] = case.state(position).mask.T
    assert np.array_equal(np.asarray(found.dataobj), expected)


def test_a_model_that_finds_its_object_alone_answers_every_slice(volume):
    predictor = Predictor(SamBackbone("random_tiny"))
    models = Models.of(AskedModel("tiny", predictor, TrainedData(of_volumes=True), "identity"))
    assert models.finds_alone
    case, parts = open_case([volume], models), []
    case.paint(3, [(5, 5)], radius_px=2, adds=True)
    painted = case.state(3).mask
    case.automatic_everywhere(parts.append)
    assert parts[-1] == 1
    assert case.answered() == list(range(5))
    assert np.array_equal(case.state(3).mask, painted)
    assert np.array_equal(case.state(1).mask, said(predictor, case, 1)[0][0])


def test_candidates_are_picked_by_clicks_the_smallest_first(case, monkeypatch):
    found = np.zeros((2, *SHAPE[1::-1]), bool)
    found[0, 2:12, 2:12] = found[1, 4:6, 4:6] = True
    monkeypatch.setattr(Models, "candidates", lambda *_: found)
    case.automatic(2)
    assert not case.state(2).mask.any()
    case.click(2, 5, 5, positive=True)
    assert np.array_equal(case.state(2).mask, found[1])
    case.click(2, 10, 10, positive=True)
    assert np.array_equal(case.state(2).mask, found[0])
    case.click(2, 5, 5, positive=False)
    assert np.array_equal(case.state(2).mask, found[0] & ~found[1])
    case.click(2, 25, 15, positive=True)  # there is none
    assert np.array_equal(case.state(2).mask, found[0] & ~found[1])
    case.box(2, BOX)
    assert case.state(2).candidates is None


def test_candidates_are_what_the_tuned_network_sees(case, models):
    assert models.finds_candidates()
    found = models.candidates(case.slices, 2)
    assert found.dtype == bool
    assert found.shape[1:] == (20, 30)


def test_candidates_that_share_much_are_shown_once():
    masks = np.zeros((4, 10, 10), bool)
    masks[0, :4, :4] = masks[1, :5, :4] = masks[2, 6:, 6:] = masks[3, 4:7, 4:7] = True
    # The second holds the first; the last shares 1 pixel of its 9 with the third and none with the first.
    assert np.array_equal(apart(masks), masks[[0, 2, 3]])
    assert np.array_equal(apart(masks, shared=0.1), masks[[0, 2]])
    assert np.array_equal(apart(masks, most=2), masks[[0, 2]])
    assert apart(masks[:0]).shape == (0, 10, 10)


def test_a_model_of_classes_shows_the_one_that_is_named(volume, tmp_path):
    parts = SamParts(SamBackbone("random_tiny", trainable=["mask_decoder"]))
    segmenter = SemanticSegmenter(parts, classes=["a", "b"])
    model = AskedModel("tiny", Predictor(segmenter), TrainedData(labels={"a": (3,), "b": (7,)}), "identity")
    with pytest.raises(RecipeError, match="--label: the model has the classes a, b"):
        Models.of(model)
    models = Models.of(model, label="b")
    case = open_case([volume], models)
    case.automatic(2)
    assert np.array_equal(case.state(2).mask, said(model.predictor, case, 2)[0][1])
    values = np.unique(np.asarray(nibabel.load(case.write_mask(tmp_path)).dataobj))
    assert set(values) <= {0, 7}


def test_the_files_of_a_series_are_one_case_and_several_images_are_none(models, tmp_path):
    write_series(tmp_path / "series", np.random.default_rng(0).integers(0, 900, (4, 20, 30)).astype(np.int16))
    case = open_case(sorted((tmp_path / "series").iterdir()), models)
    assert len(case.slices) == 4
    (tmp_path / "two").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "two" / f"{name}.png")
    with pytest.raises(DataError, match=r"2 images came at once \(a, b, ...\)"):
        open_case(sorted((tmp_path / "two").iterdir()), models)


def test_untuned_weights_have_nothing_beside_them():
    models = Models.of(open_model("random_tiny"))
    assert models.untuned is None
    assert not models.finds_alone
    assert models.takes_prompts()


def test_a_closed_case_leaves_no_encoded_slice(case, models):
    case.box(2, BOX)
    assert (len(models.tuned), len(models.untuned)) == (1, 1)
    case.close()
    assert (len(models.tuned), len(models.untuned)) == (0, 0)


def test_what_cannot_be_read_is_refused_when_it_is_opened(models, tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"broken\.nii\.gz"):
        open_case([tmp_path / "broken.nii.gz"], models)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="holds no file"):
        open_case([tmp_path / "notes.txt"], models)
