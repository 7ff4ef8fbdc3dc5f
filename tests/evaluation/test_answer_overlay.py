import io

import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.formats import NpzFormat
from medsam_tune.evaluation.answer_overlay import COLOURS, draw_answer, shown_slices
from medsam_tune.inference.file_prediction import Answer
from medsam_tune.inference.label_values import Meaning
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData


def answer_of(tmp_path, images, masks, *, spacing=(1.0, 1.0, 1.0)):
    path = tmp_path / "a.npz"
    np.savez(path, imgs=images, spacing=spacing)
    slices = SlicedFile(NewFile(path, "a", NpzFormat()), TrainedData())
    values = sorted(set(np.unique(masks).tolist()) - {0})
    return Answer(slices, masks if masks.ndim == 3 else masks[None], [], {value: Meaning(str(value)) for value in values})


def drawn(answer):
    return np.asarray(Image.open(io.BytesIO(draw_answer(answer))))


def test_each_label_has_a_rim_of_its_colour_where_it_lies(tmp_path):
    masks = np.zeros((64, 64), np.uint8)
    masks[8:24, 8:24], masks[40:56, 32:60] = 3, 9
    picture = drawn(answer_of(tmp_path, np.full((64, 64), 100, np.uint8), masks))
    scale = picture.shape[0] / 64
    assert picture.shape[0] == picture.shape[1]
    for (rows, columns), colour in (((8, 23), (8, 23)), COLOURS[0]), (((40, 55), (32, 59)), COLOURS[1]):
        found = np.argwhere((picture == colour).all(axis=-1)) / scale
        assert np.floor(found.min(axis=0)).tolist() == [rows[0], columns[0]]
        assert np.floor(found.max(axis=0)).tolist() == [rows[1], columns[1]]
    assert (picture[0, 0] == 100).all()


def test_nine_slices_that_show_something_are_drawn_or_the_middle_one(tmp_path):
    masks = np.zeros((30, 6, 8), np.uint8)
    masks[5:25, 2, 3] = 1
    answer = answer_of(tmp_path, np.zeros((30, 6, 8), np.uint8), masks)
    assert shown_slices(answer) == [6, 8, 10, 12, 15, 17, 19, 21, 23]
    assert shown_slices(Answer(answer.slices, masks * 0, [], {})) == [15]


@pytest.mark.parametrize(("spacing", "proportion"), [((1, 1, 1), 20 / 10), ((0.5, 2, 1), 20 * 0.5 / (10 * 2))])
def test_a_slice_keeps_its_proportions_in_millimetres(tmp_path, spacing, proportion):
    masks = np.zeros((1, 10, 20), np.uint8)
    height, width, _ = drawn(answer_of(tmp_path, np.zeros((1, 10, 20), np.uint8), masks, spacing=spacing)).shape
    assert width / height == pytest.approx(proportion, rel=0.02)


def test_large_images_are_reduced(tmp_path):
    height, width, _ = drawn(answer_of(tmp_path, np.zeros((1500, 3000), np.uint8), np.zeros((1500, 3000), np.uint8))).shape
    assert (height, width) == (512, 1024)
