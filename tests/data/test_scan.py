import os

import numpy as np
import pytest
from PIL import Image

from medsam_tune.data import ImageFolder
from medsam_tune.data.scan import scan_folder
from medsam_tune.errors import DataError

GREY = np.zeros((4, 4), np.uint8)


def names(root):
    return [path.relative_to(root).as_posix() for path in scan_folder(root, (".png",)).files]


def test_files_behind_a_linked_folder_are_found(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.png").touch()
    (tmp_path / "root/patient_2").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "root") == ["a.png", "patient_2/b.png"]


def test_all_that_cannot_be_followed_is_named_at_once(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone_folder").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError) as raised:
        scan_folder(tmp_path, (".png",))
    said = str(raised.value)
    assert "loop: is a link to a folder that it stands in" in said
    assert f"gone.png: is a broken link to {tmp_path}/nowhere" in said
    assert "gone_folder: is a broken link" in said
    assert "pipe.png: has the name of an image but is no file" in said


def test_folder_without_read_permission_is_named(tmp_path, monkeypatch):
    (tmp_path / "p1").mkdir()
    listed = os.listdir

    def refuse(folder):
        if str(folder).endswith("p1"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(DataError, match=r"p1: cannot be read \(Permission denied\), so its files would be missing"):
        scan_folder(tmp_path, (".png",))


def test_name_that_is_no_text_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(DataError, match=r"caf.\.png: its name is not UTF-8 text"):
        scan_folder(tmp_path, (".png",))


def test_pair_of_another_ending_is_named_and_a_lone_other_file_is_not(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(GREY).save(tmp_path / folder / "a.png")
    (tmp_path / "images/notes.txt").touch()
    source = ImageFolder()
    source.open(tmp_path)
    assert (len(source), source.describe()["other_files"]) == (1, 1)
    for folder in ("images", "masks"):
        Image.fromarray(GREY).save(tmp_path / folder / "b.jp2", format="PNG")
    with pytest.raises(DataError, match=r"b\.jp2: pairs with b\.jp2, but only \.png, .* are read \(1 such pairs: b\.jp2\)"):
        ImageFolder().open(tmp_path)
