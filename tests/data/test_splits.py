import json

import pytest

from medsam_tune.data import load_splits, make_splits, save_splits
from medsam_tune.errors import DataError, RecipeError

CASES = tuple(f"case_{number:02d}" for number in range(20))


def test_parts_share_no_case_and_lose_none():
    splits = make_splits(CASES)
    assert sorted(splits.train + splits.val + splits.test) == sorted(CASES)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (13, 3, 4)


def test_items_of_one_case_count_once_and_their_order_does_not_matter():
    assert make_splits(CASES) == make_splits(tuple(reversed(CASES)) * 3)


def test_seed_decides_the_split():
    assert make_splits(CASES, seed=1) == make_splits(CASES, seed=1)
    assert make_splits(CASES, seed=1).test != make_splits(CASES, seed=2).test


def test_split_is_the_same_on_every_machine_and_version():
    assert make_splits(CASES, seed=0).test == ("case_06", "case_08", "case_15", "case_18")


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_over_the_folds_each_case_is_tested_exactly_once(folds):
    splits = [make_splits(CASES, folds=folds, fold=fold) for fold in range(folds)]
    assert sorted(case for split in splits for case in split.test) == sorted(CASES)
    for split in splits:
        assert sorted(split.train + split.val + split.test) == sorted(CASES)


def test_three_cases_are_just_enough_and_two_are_not():
    assert len(make_splits("abc").train) == 1
    with pytest.raises(DataError, match=r"2 patients \(a, b\) are too few"):
        make_splits("ab")


def test_more_folds_than_cases_are_refused():
    with pytest.raises(DataError, match=r"4 patients .* are too few"):
        make_splits("abcd", folds=5, fold=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 0.0}, "data.split.val_fraction: expected a fraction"),
        ({"test_fraction": 1.5}, "data.split.test_fraction"),
        ({"folds": 5}, "belong together"),
        ({"folds": 5, "fold": 5}, "got fold 5 of 5"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings, message):
    with pytest.raises(RecipeError, match=message):
        make_splits(CASES, **settings)


def test_saved_splits_come_back_with_how_they_were_made(tmp_path):
    splits = make_splits(CASES, folds=5, fold=3, seed=9)
    save_splits(splits, tmp_path / "run" / "splits.json")
    loaded = load_splits(tmp_path / "run" / "splits.json", CASES)
    assert (loaded.train, loaded.val, loaded.test) == (splits.train, splits.val, splits.test)
    assert loaded.how == {"seed": 9, "val_fraction": 0.15, "folds": 5, "fold": 3, "file": "splits.json"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["splits.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a", "b"], "val": ["b"], "test": ["c"]}, "1 cases stand in it twice.*: b"),
        ({"train": ["a"], "val": ["b"], "test": ["c", "d"]}, "1 cases are not in the data.*: d"),
        ({"train": ["a"], "val": ["b"], "test": []}, "test is empty"),
        ({"train": ["a"], "val": ["b"]}, "expected 'test' to be a list of case names, got None"),
        (["a"], "expected an object"),
    ],
)
def test_faults_of_a_hand_edited_file_are_named(tmp_path, content, message):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"splits\.json: .*" + message):
        load_splits(path, "abc")


def test_cases_that_a_file_forgets_are_named(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    with pytest.raises(DataError, match=r"2 cases of the data are missing.*: d, e"):
        load_splits(path, "abcde")


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        load_splits(tmp_path / "gone.json", "abc")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json: is no JSON"):
        load_splits(tmp_path / "bad.json", "abc")
