"""A table in the folder tells who is one patient: no split may cut what it joins."""

import pytest

from medsam_tune.data.fingerprint import take_fingerprint
from medsam_tune.data.layouts import detect
from medsam_tune.data.own_data import data_settings, write_needed
from medsam_tune.data.patient_tables import find_patient_table
from medsam_tune.data.patients import patients_of
from tests.data.layouts.test_layouts import write

IMAGES = ["a1", "b/a2", "a3"]


def groups(patients):
    """Return which images are one patient's, without the patients' names."""
    return sorted(sorted(image for image, other in patients.items() if other == one) for one in set(patients.values()))


@pytest.mark.parametrize(
    "table",
    [
        "image_id,age,patient_id\na1,40,P1\na2,40,P1\na3,7,P2\nz9,1,P9\n",
        "file;Patient\nx/a1.jpg;Doe\nx/a2.jpg;Doe\na3.jpg;Roe\n",
        "lesion_id\timage\nL1\ta1\nL1\ta2\nL2\ta3\n",
        "image,lesion_id,subject\na1,L1,S1\na2,L2,S1\na3,L3,S2\n",
    ],
)
def test_column_of_patients_joins_the_images_that_another_column_names(tmp_path, table):
    (tmp_path / "metadata.csv").write_text(table)
    found = find_patient_table(tmp_path, IMAGES)
    assert found is not None
    assert groups(found.patients) == [["a1", "b/a2"], ["a3"]]
    assert not set(found.patients.values()) & {"P1", "Doe", "L1", "S1"}


@pytest.mark.parametrize(
    "table",
    [
        "image,patient\na1,P1\na2,P1\n",  # an image of no patient
        "image,patient\na1,P1\na2,P1\na3,\n",
        "image,patient\na1,P1\na1,P2\na2,P1\na3,P1\n",  # two patients
        "image,patient\na1,P1\na2,P2\na3,P3\n",  # joins nothing
        "image,patient_age\na1,40\na2,40\na3,7\n",
        "patient\na1\na2\na3\n",
        "",
    ],
)
def test_table_that_does_not_tell_every_image_says_nothing(tmp_path, table):
    (tmp_path / "metadata.csv").write_text(table)
    assert find_patient_table(tmp_path, IMAGES) is None


def test_recipe_of_the_folder_reads_the_patients_of_its_table(tmp_path):
    names = [f"{place}/{number}.png{kind}" for number in range(6) for place, kind in (("images", ""), ("masks", "=m"))]
    root = write(tmp_path / "data", *names)
    (root / "metadata.csv").write_text("image,patient\n" + "".join(f"{number}.png,P{number // 2}\n" for number in range(6)))
    found = take_fingerprint(root, detect(root))
    assert found.n_patients() == 3
    settings = data_settings(found, "binary", beside=tmp_path / "mine")
    (file,) = write_needed(found, tmp_path / "mine")
    assert settings.keys["patient"] == str(file)
    read = patients_of(dict.fromkeys(map(str, range(6))), str(file))
    assert groups(read) == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert settings.why["patient"] == "as column patient of metadata.csv says, names as checksums"
