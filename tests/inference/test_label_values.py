import pytest

from medsam_tune.inference.label_values import Meaning, class_values, drawn_values, meaning_of_whole, whole_value


def test_classes_keep_the_values_of_the_trainings_masks():
    assert class_values(["a", "b", "c"], {"a": [205], "b": [130], "c": [7]}) == {"a": 205, "b": 130, "c": 7}


@pytest.mark.parametrize("groups", [{}, {"a": [3], "b": [3, 4]}, {"a": [3], "b": [70000]}])
def test_classes_are_counted_where_a_value_is_missing_shared_or_too_large(groups):
    assert class_values(["a", "b"], groups) == {"a": 1, "b": 2}


def test_drawn_numbers_stay_known_names_have_their_value_others_the_next_free_one():
    assert drawn_values([""], {}) == drawn_values([], {}) == {}
    assert drawn_values(["9", "3"], {}) == {"3": 3, "9": 9}
    assert drawn_values(["b", "1", "new"], {"b": [2]}) == {"1": 1, "b": 2, "new": 3}
    assert drawn_values(["70000"], {}) == {"70000": 1}


def test_one_kind_of_object_has_its_only_value_or_the_usual_one():
    assert [whole_value({"a": [4]}, is_volume=volume) for volume in (True, False)] == [4, 4]
    assert [whole_value({"a": [4, 5]}, is_volume=volume) for volume in (True, False)] == [1, 255]
    assert meaning_of_whole({"a": [4], "b": [1]}) == Meaning("a + b", (1, 4))
    assert meaning_of_whole({}).as_json() == {"name": "object"}
