from pathlib import Path

import pytest

from medsam_tune.data.names import file_name, flat_file_name

HOSTILE = [
    "../../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a//b",
    "a/../b",
    "a\\..\\b",
    "a\0b",
    "a\nb",
    "\udc80",
    "%2E%2E",
    "%00",
    "a" * 4000,
    "a" * 3999 + "b",
    "ü" * 200,
    "a/b",
    "a__b",
    "a_/b",
    "a/_b",
    "a___b",
    "a%2Fb",
    "p01_slice_3",
]


@pytest.mark.parametrize("make", [file_name, flat_file_name])
def test_no_name_leaves_its_folder_and_no_two_share_a_file(make, tmp_path):
    made = [make(name) for name in HOSTILE]
    assert len(set(made)) == len(HOSTILE)
    for name in made:
        path = Path(f"{tmp_path / name}.nii.gz")
        assert path.resolve().is_relative_to(tmp_path.resolve())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(HOSTILE)


def test_ordinary_names_stay_as_they_are():
    for name in ("p01_slice_3", "50% dose", "Müller 3", "patient_3/slice_07", "a.b-c"):
        assert file_name(name) == name
    assert flat_file_name("patient_3/slice_07") == "patient_3__slice_07"
