import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from medsam_tune.cache import EmbeddingStore
from medsam_tune.errors import DataError


def embeddings(n, seed=0):
    return torch.randn(n, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def store_of(folder, *keys, seed=0):
    store = EmbeddingStore(folder)
    store.put(keys, embeddings(len(keys), seed))
    return store


def only_shard(folder):
    (path,) = folder.glob("shard-*.safetensors")
    return path


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def test_what_is_put_is_got_rounded_to_fp16_in_another_process_view(tmp_path):
    store_of(tmp_path, "a", "b")
    again = EmbeddingStore(tmp_path)
    assert again.keys() == {"a", "b"}
    assert torch.equal(again.get("b"), embeddings(2)[1].half().float())


def test_a_cached_embedding_takes_part_in_autograd(tmp_path):
    embedding = store_of(tmp_path, "a").get("a")
    weight = torch.ones(4, 3, 3, requires_grad=True)
    (weight * embedding).sum().backward()
    assert torch.equal(weight.grad, embedding)
    assert not embedding.is_inference()


def test_two_writers_of_one_key_do_no_harm(tmp_path):
    first, second = EmbeddingStore(tmp_path), EmbeddingStore(tmp_path)
    first.put(["a", "b"], embeddings(2))
    second.put(["b", "c"], embeddings(2))
    first.refresh()
    assert first.keys() == {"a", "b", "c"}
    assert len(list(tmp_path.glob("shard-*"))) == 2
    assert torch.equal(first.get("c"), embeddings(2)[1].half().float())


def test_a_reader_finds_a_shard_that_another_process_rewrote(tmp_path):
    reader = store_of(tmp_path, "a", "b")
    EmbeddingStore(tmp_path).discard(["a"])
    assert torch.equal(reader.get("b"), embeddings(2)[1].half().float())
    with pytest.raises(DataError, match="Run the same command again to fill the cache"):
        reader.get("a")


def test_discarding_a_key_removes_it_from_every_shard(tmp_path):
    store_of(tmp_path, "a", "b")
    store_of(tmp_path, "b", "c")
    store = EmbeddingStore(tmp_path)
    store.discard(["b"])
    assert store.keys() == {"a", "c"} == EmbeddingStore(tmp_path).keys()


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_shard_is_removed_with_a_notice_that_names_it(tmp_path, caplog, size):
    store_of(tmp_path, "a")
    path = only_shard(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        assert EmbeddingStore(tmp_path).keys() == set()
        EmbeddingStore(tmp_path)
    assert not path.exists()
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert "its images are encoded again" in caplog.messages[0]


def test_a_flipped_bit_costs_one_embedding_and_not_its_neighbours(tmp_path, caplog):
    store_of(tmp_path, "a", "b", "c")
    flip_last_byte(only_shard(tmp_path))
    store = EmbeddingStore(tmp_path)
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        (damaged,) = store.discard_corrupt(["a", "b", "c", "unknown"])
    assert store.keys() == {"a", "b", "c"} - {damaged} == EmbeddingStore(tmp_path).keys()
    assert len(caplog.messages) == 1
    assert f"entry {damaged}" in caplog.messages[0]
    rows = dict(zip("abc", embeddings(3).half().float(), strict=True))
    for key in sorted(store.keys()):
        assert torch.equal(store.get(key), rows[key])


def test_a_flipped_bit_met_in_training_says_how_to_rebuild(tmp_path):
    store_of(tmp_path, "a")
    flip_last_byte(only_shard(tmp_path))
    with pytest.raises(DataError, match=r"checksum of entry a differs.*Run the same command again"):
        EmbeddingStore(tmp_path).get("a")


def test_checksums_are_compared_once_in_a_process(tmp_path):
    store = store_of(tmp_path, "a")
    store.get("a")
    assert store.discard_corrupt(["a"]) == set()
    flip_last_byte(only_shard(tmp_path))
    store.get("a")


def test_a_full_disk_names_the_folder_and_keeps_what_was_written(tmp_path, monkeypatch):
    store = store_of(tmp_path, "a")

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DataError, match=r"could not be written \(No space.* free\).*stays usable.*MEDSAM_TUNE_CACHE") as caught:
        store.put(["b"], embeddings(1))
    assert str(caught.value).startswith(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [only_shard(tmp_path).name]
    assert store.keys() == {"a"} == EmbeddingStore(tmp_path).keys()


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    store = EmbeddingStore(tmp_path)

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(DataError, match=r"could not be written \(Permission denied\)\. Check the folder's permissions"):
        store.put(["a"], embeddings(1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose another folder"):
        EmbeddingStore(tmp_path / "file")


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_a_value_that_fp16_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    store = EmbeddingStore(tmp_path)
    with pytest.raises(DataError, match=r"Set data\.cache_embeddings: false"):
        store.put(["a"], torch.full((1, 4, 3, 3), value))
    assert list(tmp_path.iterdir()) == []


def test_keys_and_embeddings_must_be_as_many(tmp_path):
    with pytest.raises(ValueError, match="got 1 keys for 2 embeddings"):
        EmbeddingStore(tmp_path).put(["a"], embeddings(2))


def test_abandoned_temporary_files_go_and_fresh_ones_stay(tmp_path):
    old, fresh = tmp_path / ".partial-old", tmp_path / ".partial-fresh"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    EmbeddingStore(tmp_path).discard_corrupt([])
    assert [path.name for path in tmp_path.iterdir()] == [fresh.name]


def test_a_pickled_store_reads_the_same_folder(tmp_path):
    store = pickle.loads(pickle.dumps(store_of(tmp_path, "a")))
    assert torch.equal(store.get("a"), embeddings(1)[0].half().float())


WRITER = """
import sys, torch
from pathlib import Path
from medsam_tune.cache import EmbeddingStore
store = EmbeddingStore(Path(sys.argv[1]))
print("ready", flush=True)
for step in range(int(sys.argv[3])):
    store.put([f"{sys.argv[2]}{step}"], torch.full((1, 256, 16, 16), float(step)))
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_shards_beside_a_second_writer(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    endless = subprocess.Popen([*command, "killed", "1000000"], stdout=subprocess.PIPE)
    second = subprocess.Popen([*command, "kept", "20"], stdout=subprocess.PIPE)
    with endless, second:
        assert second.stdout.readline() == b"ready\n"
        assert endless.stdout.readline() == b"ready\n"
        second.wait(60)
        while not any(tmp_path.glob("shard-*")):
            time.sleep(0.01)
        endless.send_signal(signal.SIGKILL)
    store = EmbeddingStore(tmp_path)
    assert store.discard_corrupt(store.keys()) == set()
    assert {f"kept{step}" for step in range(20)} <= store.keys()
    assert store.get("kept7").unique().tolist() == [7.0]
