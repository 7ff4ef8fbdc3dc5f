"""Temporary files go when their process is gone, and stay while it lives."""

import os
import re
import subprocess
import sys
import time

import pytest

from medsam_tune.files import atomic_file, atomic_folder
from medsam_tune.leftovers import TEMPORARY_PREFIX, abandoned_in, remove_abandoned, remove_abandoned_below, temporary_name

LEAVE = "from medsam_tune.leftovers import temporary_name as n; import sys; print(n())"


@pytest.fixture
def dead_name():
    """Return the name that a process which has ended gave to its temporary file."""
    return subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, check=True).stdout.strip()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_name_tells_its_process_and_is_never_given_twice():
    first, second = temporary_name(), temporary_name()
    assert first != second
    assert first.startswith(TEMPORARY_PREFIX)
    assert f"-{os.getpid()}-" in first


def test_files_and_folders_of_a_dead_process_go_at_once_and_those_of_a_living_one_stay(tmp_path, dead_name):
    living = temporary_name()
    (tmp_path / dead_name).write_bytes(b"half")
    (tmp_path / f"{dead_name}0" / "below").mkdir(parents=True)
    (tmp_path / living).write_bytes(b"half")
    (tmp_path / "mine.txt").touch()
    assert [path.name for path in abandoned_in(tmp_path)] == [dead_name, f"{dead_name}0"]
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted([living, "mine.txt"])


def test_what_lies_further_below_goes_too_where_that_is_asked_for(tmp_path, dead_name):
    living = temporary_name()
    for folder in ("a", "a/b"):
        (tmp_path / folder).mkdir()
        for name in (dead_name, living, "mine.txt"):
            (tmp_path / folder / name).write_bytes(b"half")
    remove_abandoned_below(tmp_path)
    assert names(tmp_path / "a") == sorted(["b", living, "mine.txt"])
    assert names(tmp_path / "a" / "b") == sorted([living, "mine.txt"])
    remove_abandoned_below(tmp_path / "gone")


def test_number_that_another_process_has_now_is_no_sign_of_life(tmp_path):
    reused = re.sub(rf"-{os.getpid()}-\d+-", f"-{os.getpid()}-1-", temporary_name())
    (tmp_path / reused).touch()
    remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_file_of_another_machine_goes_after_an_hour_and_its_folder_never(tmp_path):
    for name in ("old", "fresh"):
        (tmp_path / f"{TEMPORARY_PREFIX}{name}").write_bytes(b"half")
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
    for name in ("old", "folder"):
        os.utime(tmp_path / f"{TEMPORARY_PREFIX}{name}", (time.time() - 7200,) * 2)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [f"{TEMPORARY_PREFIX}folder", f"{TEMPORARY_PREFIX}fresh"]


def test_next_writer_into_a_folder_removes_what_was_left_there(tmp_path, dead_name):
    (tmp_path / dead_name).write_bytes(b"half")
    with atomic_file(tmp_path / "a.txt") as file:
        file.write(b"whole")
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / dead_name).mkdir()
    with atomic_folder(tmp_path / "deeper" / "export") as folder:
        (folder / "new.txt").touch()
    assert names(tmp_path / "deeper") == ["export"]
