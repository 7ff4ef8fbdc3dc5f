import json

import numpy as np
import pytest
from PIL import Image

from medsam_tune import cli
from medsam_tune.cli.prepare import WINDOW_NAMES
from medsam_tune.data import ImageFolder
from medsam_tune.data.prepare import CASE_PATTERN, CT_WINDOWS
from tests.dicom_files import NAME, write_study


@pytest.fixture
def npz_folder(tmp_path, monkeypatch):
    """Four challenge volumes of three slices."""
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "npz").mkdir()
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[1, 2:5, 3:6] = 2
    for case in range(4):
        values = np.arange(192, dtype=np.int16).reshape(3, 8, 8) * 5 - 400
        np.savez(tmp_path / "npz" / f"CT_{case}.npz", imgs=values, gts=masks, spacing=(1.0, 1.0, 2.0))
    return tmp_path


def test_npz_becomes_a_folder_that_image_folder_reads(npz_folder, capsys):
    words = [str(npz_folder / "npz"), str(npz_folder / "new"), "--format=npz", "--window", "soft_tissue", "--labels", "liver=2"]
    assert cli.main(["prepare", *words, "--skip-empty"]) == 0
    shown = capsys.readouterr().out
    assert "4 images of 4 cases (8 without an object)" in shown
    assert "--data.source.labels='{liver: [1]}'" in shown
    source = ImageFolder(labels={"liver": [1]}, case_pattern=CASE_PATTERN)
    source.open(npz_folder / "new")
    record = json.loads((npz_folder / "new/prepared.json").read_text())
    assert record["source"]["intensity"]["window"] == [-160.0, 240.0]
    stored = np.arange(64, 128).reshape(8, 8) * 5.0 - 400
    expected = np.rint(np.clip((stored + 160) / 400, 0, 1) * 255)
    np.testing.assert_array_equal(np.asarray(Image.open(npz_folder / "new/images/CT_0/CT_0_axial001.png")), expected)
    assert source[0].masks.dense().sum() == 9


def test_window_names_are_those_of_the_data_room():
    assert set(WINDOW_NAMES) == set(CT_WINDOWS)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--format=npz", "--axis=axial"], "--axis: belongs to --format nifti, dicom, got npz"),
        (["--format=npy", "--window", "lung"], "--window: belongs to --format nifti, dicom, images, npz, got npy"),
        (["--mask-threshold=1"], "--mask-threshold: belongs to --format images, got nifti"),
        (["--window", "lungs"], "expected one of soft_tissue, lung, brain, or LOW HIGH"),
        (["--window", "1"], "expected one of soft_tissue, lung, brain, or LOW HIGH"),
        (["--window", "240", "-160"], "expected low < high"),
        (["--window", "lung", "--percentiles", "1", "99"], "--window: excludes --percentiles"),
        (["--labels", "liver"], "expected NAME=VALUE"),
        (["--labels", "liver=1", "liver=2"], "--labels: liver stands twice"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, words, text):
    assert cli.main(["prepare", str(tmp_path), str(tmp_path / "new"), *words]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_prepared_split_tears_no_patient(npz_folder):
    for case in range(4):
        (npz_folder / f"npz/CT_{case}.npz").rename(npz_folder / f"npz/p{case // 2}_{case}.npz")
    np.savez(npz_folder / "npz/p2_9.npz", **np.load(npz_folder / "npz/p0_0.npz"))
    words = [str(npz_folder / "npz"), str(npz_folder / "new"), "--format=npz"]
    assert cli.main(["prepare", *words, "--patient=^(p.)_"]) == 0
    splits = json.loads((npz_folder / "new/splits.json").read_text())
    parts = [sorted(case[:2] for case in splits[part]) for part in ("train", "val", "test")]
    assert sorted(parts) == [["p0"] * 2, ["p1"] * 2, ["p2"]]
    assert splits["patients"]["p1_3"] == "p1"


def test_dicom_series_and_their_segmentations_become_a_folder_without_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    labels = np.zeros((7, 6, 3), np.uint8)
    labels[1:4, 2:5, 1], labels[5:, :2, 2] = 1, 2
    for number in range(6):
        write_study(tmp_path / "dicom", f"scan{number}", rng.integers(0, 900, (7, 6, 3)), labels, number=number)
    words = ["prepare", str(tmp_path / "dicom"), str(tmp_path / "new"), "--format=dicom", "--window", "0", "900"]
    assert cli.main([*words, "--labels", "front=1", "back=2", "--patient=header", "--skip-empty"]) == 0
    assert "12 images of 6 cases (6 without an object)" in capsys.readouterr().out
    source = ImageFolder(labels={"front": [1], "back": [2]}, case_pattern=CASE_PATTERN)
    source.open(tmp_path / "new")
    sizes = sorted({int(mask.sum()) for index in range(len(source)) for mask in source[index].masks.dense()})
    assert sizes == [4, 9]
    splits = json.loads((tmp_path / "new/splits.json").read_text())
    # Two visits of one patient stay together.
    part_of = {case: part for part in ("train", "val", "test") for case in splits[part]}
    for names in (("scan0", "scan1"), ("scan2", "scan3"), ("scan4", "scan5")):
        assert len({part for case, part in part_of.items() if case.endswith(names)}) == 1
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file() and NAME.encode() in path.read_bytes()]
