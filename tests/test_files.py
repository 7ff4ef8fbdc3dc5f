"""Files are written whole or not at all, whatever fails and whoever writes; damaged ones are read without a traceback."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
import torch

from medsam_tune.errors import CheckpointError, DataError, RecipeError
from medsam_tune.files import (
    atomic_file,
    atomic_folder,
    digest_of,
    read_json,
    sha256_of,
    write_bytes,
    write_json,
    write_safetensors,
    write_text,
    write_torch,
)
from medsam_tune.weight_files import read_weights

CONTENT = {"weights": torch.arange(30_000.0), "step": 3}
TENSORS = {"weights": torch.arange(30_000.0)}
WRITERS = {
    "bytes": lambda path: write_bytes(path, b"x" * 50_000),
    "text": lambda path: write_text(path, "x" * 50_000),
    "json": lambda path: write_json(path, ["x"] * 20_000),
    "torch": lambda path: write_torch(path, CONTENT),
    "safetensors": lambda path: write_safetensors(path, TENSORS, {}),
}


class SmallDisk(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 0

    def write(self, content):
        if SmallDisk.room < len(content):
            raise OSError(errno.ENOSPC, "No space left on device")
        SmallDisk.room -= len(content)
        return super().write(content)


@pytest.fixture
def small_disk(monkeypatch):
    """Return a function that leaves so many bytes free for every file made from then on."""
    usual = Path.open

    def open_file(path, mode="r", *rest, **more):
        made = mode == "xb"
        return io.BufferedWriter(SmallDisk(path, "x"), 64) if made else usual(path, mode, *rest, **more)

    def leave(n_bytes):
        SmallDisk.room = n_bytes
        monkeypatch.setattr(Path, "open", open_file)

    return leave


@pytest.mark.parametrize("room", [0, 1, 50, 400, 20_000])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_full_disk_at_any_moment_is_one_clear_error_and_leaves_the_old_file_alone(writer, room, tmp_path, small_disk):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    small_disk(room)
    with pytest.raises((CheckpointError, DataError), match=r"kept: could not be written \(No space left.*, \d+ MB free\)"):
        writer(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"kept": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_that_fails_at_the_end_leaves_the_old_file_alone(call, tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "kept", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DataError, match=r"kept: could not be written .*Free space there"):
        write_bytes(path, b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"kept": b"old"}


def test_the_caller_chooses_the_error_and_what_to_do_about_a_full_disk(tmp_path, small_disk):
    small_disk(0)
    with pytest.raises(RecipeError, match=r"MB free\)\. Buy a disk\.$"):
        write_text(tmp_path / "a", "new", error=RecipeError, when_full="Buy a disk.")


def test_fault_of_the_disk_that_a_library_met_itself_is_the_same_error(tmp_path):
    def fail():
        with atomic_file(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"a: could not be written \(No space left"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_another_fault_inside_the_block_comes_through_and_leaves_nothing(tmp_path):
    def fail():
        with atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_and_content_is_whole(tmp_path):
    path = write_torch(tmp_path / "new" / "folder" / "a.pt", CONTENT)
    read = read_weights(path)
    assert torch.equal(read["weights"], CONTENT["weights"])
    assert read["step"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


def test_safetensors_come_back_equal_from_views_too(tmp_path):
    view = torch.arange(6.0).reshape(2, 3).T
    read = read_weights(write_safetensors(tmp_path / "a.safetensors", {"view": view}, {"made": "here"}))
    assert torch.equal(read["view"], view)


def test_name_as_long_as_a_name_can_be_is_written(tmp_path):
    path = tmp_path / ("a" * 251 + ".png")
    assert write_bytes(path, b"mask").read_bytes() == b"mask"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a" * 300, "File name too long.*Give it a shorter name"),
        ("file/below", "A file stands in the folder's place"),
        ("folder", "Is a directory.*A folder stands in the file's place"),
    ],
)
def test_path_that_cannot_be_is_named_with_its_own_remedy(path, words, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=words):
        write_text(tmp_path / path, "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_json_holds_numbers_of_torch_and_null_for_nan(tmp_path):
    data = {"mean": torch.tensor(0.5), "std": float("nan"), "cases": (1, 2), "folder": tmp_path, 3: True}
    path = write_json(tmp_path / "summary.json", data)
    assert json.loads(path.read_text()) == {"mean": 0.5, "std": None, "cases": [1, 2], "folder": str(tmp_path), "3": True}


def test_json_keeps_letters_readable_and_names_that_are_no_unicode_intact(tmp_path):
    path = write_json(tmp_path / "a.json", ["Gefäß"])
    assert "Gefäß" in path.read_text(encoding="utf-8")
    name = b"case_\xff".decode(errors="surrogateescape")
    assert read_json(write_json(path, [name]), "Go on.") == [name]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, None], ids=["cut off", "bytes", "deep", "missing"])
def test_json_that_cannot_be_read_is_one_line_with_the_remedy(content, tmp_path):
    path = tmp_path / "splits.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^\S+splits\.json: (is no JSON|cannot be read) \(.+\)\. Mend it\.$"):
        read_json(path, "Mend it.", error=CheckpointError)


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    for number in (1, 2):
        with atomic_folder(tmp_path / "export", replace=True) as folder:
            (folder / f"{number}.txt").touch()
            assert not (tmp_path / "export" / f"{number}.txt").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["export", "export/2.txt"]


def test_folder_that_fails_leaves_the_old_one_alone(tmp_path):
    with atomic_folder(tmp_path / "export") as folder:
        (folder / "old.txt").touch()

    def fail():
        with atomic_folder(tmp_path / "export", replace=True, error=CheckpointError) as folder:
            (folder / "new.txt").touch()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"export: could not be written \(No space left"):
        fail()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["export", "export/old.txt"]


def test_folder_takes_the_place_of_no_other_unless_asked(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").touch()
    with pytest.raises(DataError, match="export: could not be written"), atomic_folder(tmp_path / "export") as folder:
        (folder / "new.txt").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["export", "export/mine.txt"]


def test_checksums_are_those_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(tmp_path / "abc", "md5") == "900150983cd24fb0d6963f7d28e17f72"


def test_weights_cut_off_anywhere_are_one_line(tmp_path):
    for name, write in (("a.pt", WRITERS["torch"]), ("a.safetensors", WRITERS["safetensors"])):
        whole = write(tmp_path / name).read_bytes()
        for length in (0, 1, 7, 64, 1000, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"^\S+: cannot be read as weights \(.*Copy it again"):
                read_weights(tmp_path / name)


class Planted:
    """Run a function when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (str(Planted.folder),))


def test_planted_code_is_not_run(tmp_path):
    Planted.folder = tmp_path / "harm"
    torch.save({"weights": Planted()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="Python objects, which are never loaded"):
        read_weights(tmp_path / "a.pt")
    assert not Planted.folder.exists()


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError("Unable to allocate")]
)
def test_weights_for_which_no_memory_is_left_are_not_called_damaged(error, tmp_path, monkeypatch):
    path = write_torch(tmp_path / "a.pt", {"x": torch.zeros(3)})
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert "a.pt: does not fit into memory (" in str(caught.value)
    assert "cut off" not in str(caught.value)
