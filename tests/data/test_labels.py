import numpy as np
import pytest

from medsam_tune.data.labels import check_ignore_label, find_objects, name_values
from medsam_tune.errors import RecipeError


def test_values_that_no_group_names_are_background():
    shown = find_objects(np.array([[1, 5], [0, 1]]), {"only": [1]})
    assert shown.labels.tolist() == [1]
    assert shown.masks.dense().int().tolist() == [[[1, 0], [0, 1]]]
    assert shown.ignored is None


def test_labels_keep_their_number_when_an_earlier_one_is_absent():
    shown = find_objects(np.array([[4, 0]]), {"a": [1], "b": [4]})
    assert shown.labels.tolist() == [2]
    assert shown.masks.dense().int().tolist() == [[[1, 0]]]


def test_ignored_pixels_are_neither_object_nor_background():
    shown = find_objects(np.array([[0, 1, 255]]), None, ignore_label=255)
    assert shown.labels.tolist() == [1]
    assert shown.masks.dense().int().tolist() == [[[0, 1, 0]]]
    assert shown.ignored.tolist() == [[False, False, True]]
    assert name_values([np.array([0, 1]), np.array([255, 3])], 255) == {1: "label 1", 3: "label 3"}


@pytest.mark.parametrize(("value", "why"), [(0, "0 is background"), (-1, "0 is background"), (2, "a value of label b too")])
def test_ignored_value_that_means_something_else_is_refused(value, why):
    with pytest.raises(RecipeError, match=rf"data\.ignore_label: .* got {value}: .*{why}"):
        check_ignore_label(value, {"a": [1], "b": [2]})
