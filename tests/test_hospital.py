"""The page that walks from a DICOM folder to SEG files, with its commands as they stand there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medsam_tune.cli import main
from medsam_tune.data.formats import DicomFormat, NiftiFormat
from medsam_tune.data.sample import sample_folder
from tests.dicom_files import NAME, write_study

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "hospital.md").read_text(encoding="utf-8")


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    nifti, sample = NiftiFormat(), sample_folder("hippocampus")
    for number, path in enumerate(sorted((sample / "images").iterdir())[:6]):
        header = nifti.read_header(path)
        image, labels = nifti.read_image(path), nifti.read_labels(sample / "labels" / path.name)
        image, labels = (header.to_ras(values)[12:20] for values in (image, labels))
        write_study(tmp_path / "DIR", f"p{number:02d}", image, labels, number=number)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    # A network that trains in a second, from weights that need no download.
    quick = recipe.replace("lite_medsam", "random_tiny").replace("max_epochs: 20", "max_epochs: 1, accelerator: cpu")
    (tmp_path / "hippocampus.yaml").write_text(quick)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs_and_leaves_what_it_says(hospital):
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    assert main(shlex.split(commands[0])[1:]) == 0
    (run,) = (hospital / "runs").glob("*/hippocampus/*")
    for command in commands[1:]:
        assert main(shlex.split(command.replace("predict RUN", f"predict {run}"))[1:]) == 0
    form = DicomFormat()
    header = form.read_header(hospital / "DIR/images/p01")
    assert form.check_labels(hospital / "answers/p01.dcm", header)
    assert form.read_label_names(hospital / "answers/p01.dcm") == {1: "hippocampus"}
    answers = form.read_labels_on(hospital / "answers/p01.dcm", header)
    np.testing.assert_array_equal(form.read_labels_on(hospital / "contours/p01.dcm", header), answers)
    np.testing.assert_array_equal(NiftiFormat().read_labels_on(hospital / "volumes/p01.nii.gz", header), answers)
    assert dcmread(hospital / "archive/p01.dcm").PatientName == NAME
    for folder in ("runs", "answers", "contours", "volumes", "cache"):
        for path in (hospital / folder).rglob("*"):
            assert not path.is_file() or NAME.encode() not in path.read_bytes(), path
