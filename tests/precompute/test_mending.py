"""A cache that was damaged is mended: what is sound stays, what is not goes, and nothing else is touched."""

import os
import subprocess
import sys

import pytest
import torch

from medsam_tune.files import write_json
from medsam_tune.leftovers import temporary_name
from medsam_tune.precompute.mending import mend
from medsam_tune.precompute.store import Store

IDENTITY = "0123456789abcdef"
LEAVE = "from medsam_tune.leftovers import temporary_name as n; print(n())"


@pytest.fixture
def store(tmp_path):
    """Return a store of two shards, three entries in each."""
    folder = tmp_path / "embeddings" / f"aaaaaaaaaaaa-{IDENTITY}"
    made = Store(folder, IDENTITY)
    for shard in "ab":
        made.write({f"{IDENTITY}-{shard}{n}": torch.full((4, 3, 3), float(n)) for n in range(3)})
    write_json(folder / "info.json", {"weights": "tiny"})
    return made


def shard_of(store, key):
    return store._index[f"{IDENTITY}-{key}"]


def again(store):
    return Store(store.folder, IDENTITY)


def test_sound_cache_is_left_as_it_is(store, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert mend(tmp_path) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_damaged_entry_goes_and_those_beside_it_stay(store, tmp_path):
    path = shard_of(store, "a1")
    content = bytearray(path.read_bytes())
    at = content.find(torch.full((4, 3, 3), 1.0).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    assert mend(tmp_path) == [f"{store.folder}: 1 damaged entries and 0 unreadable shards removed; they are computed again"]
    assert again(store).keys() == {f"{IDENTITY}-{name}" for name in ("a0", "a2", "b0", "b1", "b2")}
    assert torch.equal(again(store).read(f"{IDENTITY}-a2"), torch.full((4, 3, 3), 2.0))
    assert mend(tmp_path) == []


def test_shard_that_is_cut_off_goes(store, tmp_path):
    path = shard_of(store, "b0")
    path.write_bytes(path.read_bytes()[:100])
    assert mend(tmp_path) == [f"{store.folder}: 0 damaged entries and 1 unreadable shards removed; they are computed again"]
    assert again(store).keys() == {f"{IDENTITY}-a{n}" for n in range(3)}


def test_shard_of_other_weights_and_an_info_that_is_none_go(store, tmp_path):
    other = Store(tmp_path / "other", "f" * 16)
    other.write({f"{'f' * 16}-x": torch.ones(2)})
    (foreign,) = (tmp_path / "other").glob("shard-*")
    placed = foreign.rename(store.folder / foreign.name)
    (store.folder / "info.json").write_bytes(b"\x85")
    assert mend(tmp_path) == [
        f"{placed}: removed; its values are of other origin",
        f"{store.folder / 'info.json'}: removed; it was no JSON and is written anew",
    ]
    assert len(again(store)) == 6


def test_leftovers_of_dead_processes_go_wherever_they_lie_and_of_living_ones_stay(store, tmp_path):
    dead = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "checked").mkdir()
    for folder in (store.folder, tmp_path / "checked"):
        (folder / dead).touch()
    living = store.folder / temporary_name()
    living.touch()
    assert mend(tmp_path) == [
        f"{tmp_path / 'checked'}: 1 temporary files of killed processes removed",
        f"{store.folder}: 1 temporary files of killed processes removed",
    ]
    assert living.is_file()
    os.remove(living)
