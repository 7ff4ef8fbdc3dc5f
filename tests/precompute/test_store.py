import errno
import logging
import os
import pickle
import signal
import time

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.precompute import Store
from tests.processes import warm


def at(folder):
    return Store(folder, "t")


def embeddings(n, seed=0):
    return torch.randn(n, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def store_of(folder, *keys, seed=0):
    store = at(folder)
    store.write(entries(*keys, seed=seed))
    return store


def entries(*keys, seed=0):
    """Return one tensor for each key; keys of this store begin with t-."""
    return dict(zip(keys, embeddings(len(keys), seed), strict=True))


def only_shard(folder):
    (path,) = folder.glob("shard-*.safetensors")
    return path


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def test_what_is_written_is_read_in_another_process_view(tmp_path):
    store_of(tmp_path, "t-a", "t-b")
    again = at(tmp_path)
    assert again.keys() == {"t-a", "t-b"}
    assert torch.equal(again.read("t-b"), embeddings(2)[1])


def test_a_kept_tensor_takes_part_in_autograd(tmp_path):
    kept = store_of(tmp_path, "t-a").read("t-a")
    weight = torch.ones(4, 3, 3, requires_grad=True)
    (weight * kept).sum().backward()
    assert torch.equal(weight.grad, kept)
    assert not kept.is_inference()


def test_two_writers_of_one_key_do_no_harm(tmp_path):
    first, second = at(tmp_path), at(tmp_path)
    first.write(entries("t-a", "t-b"))
    second.write(entries("t-b", "t-c"))
    first.refresh()
    assert first.keys() == {"t-a", "t-b", "t-c"}
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert torch.equal(first.read("t-c"), embeddings(2)[1])


def test_a_reader_finds_a_shard_that_another_process_rewrote(tmp_path):
    reader = store_of(tmp_path, "t-a", "t-b")
    at(tmp_path).discard(["t-a"])
    assert torch.equal(reader.read("t-b"), embeddings(2)[1])
    with pytest.raises(DataError, match="Run the same command again to fill the cache"):
        reader.read("t-a")


def test_discarding_a_key_removes_it_from_every_shard(tmp_path):
    store_of(tmp_path, "t-a", "t-b")
    store_of(tmp_path, "t-b", "t-c")
    store = at(tmp_path)
    store.discard(["t-b"])
    assert store.keys() == {"t-a", "t-c"} == at(tmp_path).keys()


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_shard_is_removed_with_a_notice_that_names_it(tmp_path, caplog, size):
    store_of(tmp_path, "t-a")
    path = only_shard(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        assert at(tmp_path).keys() == set()
        at(tmp_path)
    assert not path.exists()
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert "its images are computed again" in caplog.messages[0]


def test_a_flipped_bit_costs_one_entry_and_not_its_neighbours(tmp_path, caplog):
    store_of(tmp_path, "t-a", "t-b", "t-c")
    flip_last_byte(only_shard(tmp_path))
    store = at(tmp_path)
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        (damaged,) = store.discard_corrupt(["t-a", "t-b", "t-c", "t-unknown"])
    assert store.keys() == {"t-a", "t-b", "t-c"} - {damaged} == at(tmp_path).keys()
    assert len(caplog.messages) == 1
    assert f"entry {damaged}" in caplog.messages[0]
    rows = dict(zip(("t-a", "t-b", "t-c"), embeddings(3), strict=True))
    for key in sorted(store.keys()):
        assert torch.equal(store.read(key), rows[key])


def test_a_flipped_bit_met_in_training_says_how_to_rebuild(tmp_path):
    store_of(tmp_path, "t-a")
    flip_last_byte(only_shard(tmp_path))
    with pytest.raises(DataError, match=r"checksum of entry t-a differs.*Run the same command again"):
        at(tmp_path).read("t-a")


def test_nan_under_a_sound_checksum_is_damage_too(tmp_path):
    at(tmp_path).write({"t-a": torch.tensor([1.0, float("nan")]), "t-b": torch.tensor([3])})
    store = at(tmp_path)
    with pytest.raises(DataError, match=r"entry t-a holds NaN or infinity.*Run the same command again"):
        store.read("t-a")
    assert store.discard_corrupt(store.keys()) == {"t-a"}
    assert store.read("t-b").item() == 3


def test_shard_of_other_origin_is_refused_by_name(tmp_path):
    Store(tmp_path, "other").write({"other-a": torch.ones(1)})
    with pytest.raises(DataError, match=r"safetensors: holds values made with other weights or settings \(other, expected t\)"):
        at(tmp_path)


def test_shard_that_may_not_be_read_stays_and_is_named(tmp_path, monkeypatch):
    path = only_shard(store_of(tmp_path, "t-a").folder)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match=rf"{path.name}: may not be read\. Change its permissions"):
        at(tmp_path)
    assert path.exists()


def refuse(path, framework):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_checksums_are_compared_once_in_a_process(tmp_path):
    store = store_of(tmp_path, "t-a")
    store.read("t-a")
    assert store.discard_corrupt(["t-a"]) == set()
    flip_last_byte(only_shard(tmp_path))
    store.read("t-a")


def test_a_full_disk_names_the_folder_and_keeps_what_was_written(tmp_path, monkeypatch):
    store = store_of(tmp_path, "t-a")

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DataError, match=r"could not be written \(No space.* free\).*stays usable.*MEDSAM_TUNE_CACHE") as caught:
        store.write(entries("t-b"))
    assert str(caught.value).startswith(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [only_shard(tmp_path).name]
    assert store.keys() == {"t-a"} == at(tmp_path).keys()


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    store = at(tmp_path)

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(DataError, match=r"could not be written \(Permission denied\)\. Check the folder's permissions"):
        store.write(entries("t-a"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        at(tmp_path / "file")


def test_abandoned_temporary_files_go_and_fresh_ones_stay(tmp_path):
    old, fresh = tmp_path / ".partial-old", tmp_path / ".partial-fresh"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    at(tmp_path).discard_corrupt([])
    assert [path.name for path in tmp_path.iterdir()] == [fresh.name]


def test_a_pickled_store_reads_the_same_folder(tmp_path):
    store = pickle.loads(pickle.dumps(store_of(tmp_path, "t-a")))
    assert torch.equal(store.read("t-a"), embeddings(1)[0])


def write_many(folder, name, n_writes):
    store = Store(folder, "t")
    for step in range(n_writes):
        store.write({f"t-{name}{step}": torch.full((256, 16, 16), float(step))})


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_shards_beside_a_second_writer(tmp_path):
    endless = warm().Process(target=write_many, args=(tmp_path, "killed", 1_000_000))
    second = warm().Process(target=write_many, args=(tmp_path, "kept", 20))
    endless.start()
    while endless.is_alive() and not any(tmp_path.glob("shard-*")):
        time.sleep(0.01)
    second.start()
    second.join(300)
    endless.kill()
    endless.join(300)
    assert (second.exitcode, endless.exitcode) == (0, -signal.SIGKILL)
    store = at(tmp_path)
    assert store.discard_corrupt(store.keys()) == set()
    assert {f"t-kept{step}" for step in range(20)} <= store.keys()
    assert store.read("t-kept7").unique().tolist() == [7.0]
