"""Every case is read before the first step; what was sound is remembered, what is not is listed whole."""

import gzip
import shutil

import numpy as np
import pytest
from PIL import Image

from medsam_tune.data import ImageFolder, NiftiVolumes
from medsam_tune.data.checks import check_cases, open_checked
from medsam_tune.errors import DataError

GREY = np.arange(48, dtype=np.int16).reshape(3, 4, 4)
LABELS = (GREY > 20).astype(np.uint8)


@pytest.fixture
def cases(volumes, tmp_path):
    for name in "abcd":
        volumes("images", name, GREY)
        volumes("labels", name, LABELS)
    return tmp_path


def opened(root, **settings):
    source = NiftiVolumes(**settings)
    source.open(root)
    return source


def counted(source, monkeypatch):
    """Return a list that grows by one for every case that is read."""
    read, checked = type(source).check_case, []
    monkeypatch.setattr(type(source), "check_case", lambda self, indices: (checked.append(indices), read(self, indices)))
    return checked


def test_all_faulty_cases_are_listed_each_with_its_own_message(cases, volumes, tmp_path):
    volumes("labels", "b", LABELS.astype(np.float32) * 0.5)
    path = cases / "images/c.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()))[:-8] + b"\0" * 8)
    with pytest.raises(DataError) as raised:
        check_cases(opened(cases), cache=tmp_path / "cache")
    first, *lines = str(raised.value).splitlines()
    assert first == "2 of 4 cases cannot be used:"
    assert "b.nii.gz: 27 label values are no whole" in lines[0]
    assert "c.nii.gz: cannot be read as NIfTI (CRC" in lines[1]


def test_every_faulty_image_of_a_case_is_listed(image_folder, tmp_path):
    names = ("a_0.png", "a_1.png", "b_0.png")
    root = image_folder({name: GREY[0].astype(np.uint8) for name in names}, {name: LABELS[0] for name in names})
    source = ImageFolder(case_pattern="^([^_]+)_")
    source.open(root)
    for name in names[:2]:
        path = root / "images" / name
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"1 of 2 cases cannot be used:\n.*a_0\.png: cannot.*\n.*a_1\.png: cannot be read"):
        check_cases(source, cache=tmp_path / "cache")


def test_sound_cases_are_remembered_until_size_or_date_changes(cases, volumes, tmp_path, monkeypatch):
    source = opened(cases)
    checked = counted(source, monkeypatch)
    first = check_cases(source, cache=tmp_path / "cache")
    assert len(checked) == 4
    assert check_cases(opened(cases), cache=tmp_path / "cache") == first
    assert len(checked) == 4
    volumes("labels", "b", LABELS * 2)
    second = check_cases(opened(cases), cache=tmp_path / "cache")
    assert len(checked) == 5
    assert {case for case in first if first[case] != second[case]} == {"b"}


def test_faulty_case_is_never_remembered(cases, volumes, tmp_path):
    volumes("labels", "b", LABELS.astype(np.float32) * 0.5)
    for _ in range(2):
        with pytest.raises(DataError, match=r"b\.nii\.gz: 27 label values"):
            check_cases(opened(cases), cache=tmp_path / "cache")


def test_other_rules_are_another_check(cases, tmp_path, monkeypatch):
    source = opened(cases)
    checked = counted(source, monkeypatch)
    check_cases(source, cache=tmp_path / "cache")
    check_cases(opened(cases, window=(0.0, 9.0)), cache=tmp_path / "cache")
    assert len(checked) == 8


def test_content_alone_makes_the_checksum(cases, tmp_path):
    before = check_cases(opened(cases), cache=tmp_path / "cache")
    assert len(set(before.values())) == 1
    (tmp_path / "moved").mkdir()
    for part in ("images", "labels"):
        (cases / part).rename(tmp_path / "moved" / part)
    assert check_cases(opened(tmp_path / "moved"), cache=tmp_path / "cache") == before


def test_names_are_not_kept(cases, volumes, tmp_path):
    for folder, values in (("images", GREY), ("labels", LABELS)):
        volumes(folder, "DOE^JANE", values)
    check_cases(opened(cases), cache=tmp_path / "cache")
    (store,) = (tmp_path / "cache/checked").iterdir()
    assert "DOE" not in store.read_text() + store.name


def test_every_image_of_a_case_is_read(image_folder, tmp_path):
    good, bad = np.eye(4, dtype=np.uint8), np.arange(16, dtype=np.uint8).reshape(4, 4)
    names = ("p1_1.png", "p1_2.png", "p2_1.png")
    root = image_folder(dict.fromkeys(names, bad), {**dict.fromkeys(names, good), "p1_2.png": bad})
    source = ImageFolder(case_pattern="^(p.)_")
    source.open(root)
    with pytest.raises(DataError, match=r"p1_2\.png: mask holds the values \[0, 1, 2, "):
        check_cases(source, cache=tmp_path / "cache")


def test_cache_that_cannot_be_written_or_read_stops_nothing(cases, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(check_cases(opened(cases), cache=tmp_path / "cache")) == 4
    (tmp_path / "other/checked").mkdir(parents=True)
    source = opened(cases)
    check_cases(source, cache=tmp_path / "other")
    (store,) = (tmp_path / "other/checked").iterdir()
    store.write_text("[[[")
    assert len(check_cases(source, cache=tmp_path / "other")) == 4


def test_what_headers_tell_and_what_only_the_content_tells_is_listed_together(image_folder, tmp_path):
    names = ("a.png", "b.png", "c.png", "d.png")
    masks = {name: LABELS[0] for name in names} | {"b.png": LABELS[0, :3]}
    root = image_folder({name: GREY[0].astype(np.uint8) for name in names}, masks)
    (root / "images/a.png").write_bytes(b"no picture")
    path = root / "images/c.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError) as raised:
        open_checked(ImageFolder(), root, require_masks=True, cache=tmp_path / "cache")
    first, *lines = str(raised.value).splitlines()
    assert first.endswith("3 faults in the data:")
    assert [name for name, line in zip("abc", lines, strict=True) if f"{name}.png" in line] == ["a", "b", "c"]


def test_faults_of_links_names_headers_and_content_are_listed_together(image_folder, tmp_path):
    names = ("a.png", "b.png", "c.png", "d.png")
    root = image_folder({name: GREY[0].astype(np.uint8) for name in names}, {name: LABELS[0] for name in names})
    (root / "images" / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "masks" / "a.png").rename(root / "masks" / "other.png")
    shutil.copy(root / "images" / "d.png", root / "images" / "d.bmp")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / "masks" / "b.png")
    content = (root / "images" / "c.png").read_bytes()
    (root / "images" / "c.png").write_bytes(content[:50])
    with pytest.raises(DataError) as raised:
        open_checked(ImageFolder(), root, require_masks=True, cache=tmp_path / "cache")
    first, *lines = str(raised.value).splitlines()
    assert first == f"{root}: 5 faults in the data:"
    for said in (
        "gone.png: is a broken link",
        "images and 4 masks do not pair by name; 1 images without a mask: a; 1 masks without an image: other",
        "d.png: has the same name 'd' as",
        "masks/b.png: ",
        "c.png: cannot be read",
    ):
        assert len([line for line in lines if said in line]) == 1


def test_faults_of_links_and_voxels_of_volumes_are_listed_together(cases, volumes, tmp_path):
    (cases / "labels" / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    volumes("labels", "lonely", LABELS)
    volumes("labels", "b", LABELS[:, :2])
    volumes("labels", "c", LABELS.astype(np.float32) * 0.5)
    with pytest.raises(DataError) as raised:
        open_checked(NiftiVolumes(), cases, require_masks=True, cache=tmp_path / "cache")
    first, *lines = str(raised.value).splitlines()
    assert first == f"{cases}: 4 faults in the data:"
    for said in (
        "gone.nii.gz: is a broken",
        "masks without an image: lonely",
        "labels/b.nii.gz: ",
        "c.nii.gz: 27 label values",
    ):
        assert len([line for line in lines if said in line]) == 1
