import numpy as np

from medsam_tune.data.labels import label_rows


def test_values_that_no_group_names_are_background():
    masks, labels = label_rows(np.array([[1, 5], [0, 1]]), {"only": [1]})
    assert labels.tolist() == [1]
    assert masks.int().tolist() == [[[1, 0], [0, 1]]]


def test_labels_keep_their_number_when_an_earlier_one_is_absent():
    masks, labels = label_rows(np.array([[4, 0]]), {"a": [1], "b": [4]})
    assert labels.tolist() == [2]
    assert masks.int().tolist() == [[[1, 0]]]
