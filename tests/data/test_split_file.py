import json

import pytest

from medsam_tune.data import Splits, load_splits, make_splits, save_splits
from medsam_tune.data.split_file import read_splits, split_differences
from medsam_tune.errors import DataError

PATIENTS = {f"p{number}_{frame}": f"p{number}" for number in range(100) for frame in "ab"}


def test_no_patient_stands_in_two_parts_and_fractions_count_patients():
    splits = make_splits(PATIENTS, patients=PATIENTS)
    parts = [{PATIENTS[case] for case in part} for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [65, 15, 20]
    assert len(set.union(*parts)) == 100
    assert splits.cases() == tuple(sorted(PATIENTS))


def test_cases_of_their_own_are_split_as_patients_of_the_same_names():
    alone = make_splits("abcdefgh", seed=3)
    assert make_splits("abcdefgh", seed=3, patients={case: case for case in "abcdefgh"}).test == alone.test


def test_patients_and_checksums_survive_the_file(tmp_path):
    splits = Splits(("a",), ("b",), ("c",), {"seed": 1}, {"a": "x", "b": "y", "c": "z"}, {"a": "01", "b": "02", "c": "03"})
    save_splits(splits, tmp_path / "splits.json")
    assert read_splits(tmp_path / "splits.json") == splits
    save_splits(Splits(("a",), ("b",), ("c",)), tmp_path / "plain.json")
    assert sorted(json.loads((tmp_path / "plain.json").read_text())) == ["how", "test", "train", "val"]


def test_stored_patients_are_checked_too(tmp_path):
    save_splits(Splits(("a1",), ("b1",), ("a2",), {}, {"a1": "a", "a2": "a", "b1": "b"}), tmp_path / "splits.json")
    for patients in (None, {"a1": "a", "a2": "a", "b1": "b"}):
        with pytest.raises(DataError, match=r"splits\.json: 1 patients stand in two parts: a\. Move their cases together"):
            load_splits(tmp_path / "splits.json", ["a1", "a2", "b1"], patients=patients)
    assert load_splits(tmp_path / "splits.json", ["a1", "a2", "b1"], patients={"a1": "x", "a2": "y", "b1": "z"}).test == ("a2",)


@pytest.mark.parametrize("value", [[1], "abc", {"a": 3}])
def test_patients_of_another_form_are_refused(tmp_path, value):
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"], "patients": value}))
    with pytest.raises(DataError, match=r"splits\.json: expected 'patients' to be an object"):
        read_splits(tmp_path / "splits.json")


def test_differences_name_what_is_gone_new_changed_and_regrouped():
    stored = Splits(("a", "b"), ("c",), ("d",), {}, {"a": "x", "b": "x", "c": "c", "d": "d"}, {"a": "1", "c": "3"})
    found = split_differences(
        stored, ["a", "b", "c", "e"], patients={"a": "x", "b": "y", "c": "c", "e": "e"}, files={"a": "1", "b": "2", "c": "4"}
    )
    assert (found.gone, found.new, found.changed, found.regrouped) == (("d",), ("e",), ("c",), ("b",))
    assert found.message() == (
        "1 cases are gone (d); 1 cases are new (e); 1 cases have other files (c); 1 cases belong to another patient (b)"
    )


def test_same_data_differ_in_nothing():
    stored = Splits(("a",), ("b",), ("c",), {}, {}, {"a": "1"})
    assert not split_differences(stored, "cba", patients={case: case for case in "abc"}, files={"a": "1", "b": "2"})
