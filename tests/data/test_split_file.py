import json

import pytest

from medsam_tune.data import Splits, load_splits, make_splits, save_splits
from medsam_tune.data.split_file import read_splits, split_differences
from medsam_tune.data.splits import SplitSettings
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


def folds_file(folder, folds):
    path = folder / "splits_final.json"
    path.write_text(json.dumps(folds))
    return path


def test_fold_of_nnunet_tests_its_val_cases_and_chooses_by_some_that_it_trains_on(tmp_path):
    cases = [f"liver_{number:03}" for number in range(10)]
    path = folds_file(tmp_path, [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:8], "val": cases[8:]}])
    splits = load_splits(path, cases, settings=SplitSettings(fold=1, val_fraction=0.25))
    assert splits.test == ("liver_008", "liver_009")
    assert (len(splits.train), len(splits.val)) == (6, 2)
    assert sorted(splits.train + splits.val) == cases[:8]
    assert splits.how["fold"] == 1


def test_slices_of_a_patient_stay_together_when_validation_is_drawn_from_a_fold(tmp_path):
    cases = [f"p{patient}_{number}" for patient in range(5) for number in range(2)]
    patients = {case: case[:2] for case in cases}
    path = folds_file(tmp_path, [{"train": cases[2:], "val": cases[:2]}])
    splits = load_splits(path, cases, patients=patients, settings=SplitSettings(fold=0, val_fraction=0.25))
    assert {patients[case] for case in splits.val}.isdisjoint(patients[case] for case in splits.train)
    assert len(splits.val) == 2


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        ([{"train": ["a", "b"], "val": ["c"]}], None, "holds nnU-Net's 1 folds. Say which with data.split.fold, 0 to 0"),
        ([{"train": ["a", "b"], "val": ["c"]}], 1, "Say which with data.split.fold"),
        ([{"train": ["a", "b"], "val": ["c"]}, ["a"]], 1, "expected fold 1 to be an object with train and val, got list"),
        ([{"train": ["a", "b"]}], 0, "expected 'val' to be a list of case names, got None"),
        ([{"train": ["a"], "val": ["c"]}], 0, "1 cases in train and 1 in val, too few for three parts"),
        ([{"train": ["a", "b"], "val": ["d"]}], 0, "1 cases are not in the data"),
    ],
)
def test_fold_that_does_not_fit_is_refused(tmp_path, folds, fold, message):
    with pytest.raises(DataError, match=message):
        load_splits(folds_file(tmp_path, folds), ["a", "b", "c"], settings=SplitSettings(fold=fold))


def test_the_split_of_a_test_on_another_cohort_is_read_though_it_trains_nothing(tmp_path):
    path = tmp_path / "splits.json"
    save_splits(Splits((), (), ("a", "b"), {"cohort": "all cases are tested"}), path)
    assert read_splits(path).test == ("a", "b")
    path.write_text(path.read_text().replace("cohort", "seed"))
    with pytest.raises(DataError, match="train and val is empty"):
        read_splits(path)
