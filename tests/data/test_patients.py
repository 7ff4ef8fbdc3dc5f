import pytest

from medsam_tune.data.patients import likely_patients, patients_of
from medsam_tune.data.sample import sample_folder
from medsam_tune.errors import DataError, RecipeError

FRAMES = [f"patient{number:03d}_frame{frame:02d}" for number in range(100) for frame in (1, 12)]


def test_without_a_rule_every_case_is_a_patient():
    assert patients_of({"a_1": "x", "a_2": "x"}, None) == {"a_1": "a_1", "a_2": "a_2"}


def test_pattern_takes_its_first_group():
    assert patients_of(dict.fromkeys(["p1_a", "p1_b", "p2_a"]), "^([^_]+)_") == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"}


def test_table_names_patients_and_may_know_more_cases(tmp_path):
    path = tmp_path / "who.csv"
    path.write_text("﻿patient,case,age\nx,a,3\nx,b,3\ny,c,4\n", encoding="utf-8")
    assert patients_of(dict.fromkeys("ab"), str(path)) == {"a": "x", "b": "x"}


def test_header_groups_cases_without_showing_the_name():
    found = patients_of({"a": "DOE^JANE", "b": "DOE^JANE ", "c": "ROE"}, "header")
    assert found["a"] == found["b"] != found["c"]
    assert "DOE" not in str(found)


@pytest.mark.parametrize(
    ("cases", "rule", "message"),
    [
        ({"a": None, "b": "x"}, "header", r"1 cases have no patient \(a\): their files name none"),
        ({"a": None, "b_1": None}, "^(.+)_", r"1 cases have no patient \(a\): data\.patient '\^\(\.\+\)_' does not match"),
    ],
)
def test_cases_without_a_patient_are_named(cases, rule, message):
    with pytest.raises(DataError, match=message):
        patients_of(cases, rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,person\na,x\n", r"expected a first line with the columns case, patient, got \['case', 'person'\]"),
        ("", r"got \[\]"),
        ("case,patient\na,x\na,y\n", "case 'a' has two patients"),
        ("case,patient\nb,x\n", r"1 cases have no patient \(a\): .*has no row"),
        ("case,patient\na,\n", r"1 cases have no patient"),
    ],
)
def test_table_that_does_not_fit_is_refused(tmp_path, text, message):
    (tmp_path / "who.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        patients_of({"a": None}, str(tmp_path / "who.csv"))
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read"):
        patients_of({"a": None}, str(tmp_path / "gone.csv"))


def test_rule_that_is_no_pattern_is_refused():
    with pytest.raises(RecipeError, match=r"data\.patient: '\(\[' is no regular expression"):
        patients_of({"a": None}, "([")
    with pytest.raises(RecipeError, match=r"data\.patient: '\^p' has no group"):
        patients_of({"a": None}, "^p")


def carotid():
    return [path.stem for path in (sample_folder("carotid") / "images").iterdir()]


@pytest.mark.parametrize(
    ("cases", "n_patients", "pattern"),
    [
        (FRAMES, 100, r"^(.+)_frame\d+$"),
        (carotid(), 8, r"^(.+)_slice_\d+$"),
        (["p1/1", "p1/2", "p2/1"], 2, r"^(.+)/\d+$"),
        (["s1-0", "s1-1", "s2"], 2, r"^(.+?)(?:\-\d+)?$"),
    ],
)
def test_files_of_one_patient_are_seen_and_the_pattern_groups_them(cases, n_patients, pattern):
    likely = likely_patients(cases)
    assert (likely.pattern, likely.n_patients) == (pattern, n_patients)
    assert len(set(patients_of(dict.fromkeys(cases), pattern).values())) == n_patients
    assert f"Set data.patient: '{pattern}'" in likely.message()


@pytest.mark.parametrize(
    "cases",
    [
        [f"hippocampus_{number:03d}" for number in range(40)],
        [f"ISIC2018_{number:07d}" for number in range(40)],
        [f"{number:03d}" for number in range(40)],
        ["benign/1", "benign/2", "malignant/1"],
        ["p1", "p2", "p3"],
        [f"sub-{number:02d}_T1w" for number in range(9)],
        [],
    ],
)
def test_numbered_patients_of_one_data_set_are_no_files_of_one_patient(cases):
    assert likely_patients(cases) is None
