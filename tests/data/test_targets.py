import pytest
import torch

from medsam_tune.data import apply_target
from medsam_tune.data.targets import connected_pieces
from medsam_tune.errors import DataError
from medsam_tune.samples import Sample


def sample_of(masks, labels):
    masks = torch.tensor(masks, dtype=torch.bool)
    return Sample(torch.zeros(3, *masks.shape[1:]), masks, torch.tensor(labels), image_id="a", case_id="a")


TWO_LABELS = sample_of([[[1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]], [1, 2, 3])


def test_binary_joins_all_labels_into_one_row_with_label_1():
    joined = apply_target(TWO_LABELS, "binary")
    assert joined.masks.dense().int().tolist() == [[[1, 0, 1], [0, 0, 1]]]
    assert joined.labels.tolist() == [1]


def test_binary_keeps_exactly_one_row_where_nothing_is_shown():
    nothing = Sample(torch.zeros(3, 2, 3), torch.zeros(0, 2, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), "a", "a")
    joined = apply_target(nothing, "binary")
    assert joined.masks.dense().int().tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert joined.labels.tolist() == [1]


def test_per_label_keeps_the_labels_that_are_present():
    kept = apply_target(TWO_LABELS, "per_label")
    assert kept.labels.tolist() == [1, 2]
    assert torch.equal(kept.masks.dense(), TWO_LABELS.masks.dense()[:2])


def test_pieces_that_touch_at_a_corner_are_one_instance():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    pieces = connected_pieces(mask).dense()
    assert [int(piece.sum()) for piece in pieces] == [2, 2]
    assert torch.equal(pieces.any(dim=0), mask)


def test_instances_carry_the_label_they_come_from():
    sample = sample_of([[[1, 0, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0]]], [4, 9])
    instances = apply_target(sample, "per_instance")
    assert instances.labels.tolist() == [4, 4, 9]
    assert instances.masks.dense().sum(dim=(1, 2)).tolist() == [1, 1, 2]


def test_image_without_objects_has_no_instances():
    nothing = Sample(torch.zeros(3, 2, 3), torch.zeros(0, 2, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), "a", "a")
    assert len(apply_target(nothing, "per_instance").labels) == 0
    assert len(apply_target(TWO_LABELS, "per_instance").labels) == 2


def test_per_class_has_a_row_for_every_class_in_the_order_of_the_list():
    sample = sample_of([[[1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1]]], [2, 7])
    rows = apply_target(sample, "per_class", classes=[7, 5, 2])
    assert rows.labels.tolist() == [7, 5, 2]
    assert rows.masks.dense().int().tolist() == [[[0, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]]


def test_per_class_of_an_image_without_objects_is_all_empty():
    nothing = Sample(torch.zeros(3, 2, 3), torch.zeros(0, 2, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), "a", "a")
    rows = apply_target(nothing, "per_class", classes=[1, 2])
    assert rows.labels.tolist() == [1, 2]
    assert rows.masks.shape == (2, 2, 3)
    assert not rows.masks.dense().any()


def test_per_class_refuses_a_pixel_of_two_classes_and_a_label_outside_the_list():
    overlapping = sample_of([[[1, 1, 0]], [[0, 1, 0]]], [1, 2])
    with pytest.raises(DataError, match=r"a: a pixel belongs to two labels.*Name disjoint values in data\.source\.labels"):
        apply_target(overlapping, "per_class", classes=[1, 2])
    with pytest.raises(DataError, match=r"label 2 is none of the classes \[1\].*set data\.target: per_label"):
        apply_target(sample_of([[[1, 0, 0]], [[0, 1, 0]]], [1, 2]), "per_class", classes=[1])
