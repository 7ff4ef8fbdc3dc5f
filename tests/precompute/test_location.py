import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.geometry import InputRule
from medsam_tune.precompute import (
    EmbeddingPrecompute,
    PriorOrigin,
    PriorPrecompute,
    PriorSettings,
    cache_root,
    clear,
    entries,
    open_store,
)
from medsam_tune.precompute.shards import write_shard


def embeddings(*, sha256="a" * 64, name="lite_medsam", side=16):
    return EmbeddingPrecompute(weights_name=name, weights_sha256=sha256, rule=InputRule(side=side), load=None, encode=None)


def priors(**settings):
    return PriorPrecompute(PriorOrigin(PriorSettings(**settings), "a" * 64, InputRule(16)), None, None)


def filled(root, precompute=None, n=3):
    store = open_store(precompute or embeddings(), root)
    store.write({f"{store.identity}-image{i}": torch.ones(4, 3, 3) for i in range(n)})
    return store


def test_root_follows_the_environment_and_else_the_home_folder(monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", "/some/where")
    assert cache_root() == Path("/some/where")
    monkeypatch.delenv("MEDSAM_TUNE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "medsam_tune"


def test_the_same_facts_open_the_same_store_and_others_another(tmp_path):
    store = filled(tmp_path)
    assert open_store(embeddings(name="other name"), tmp_path).keys() == store.keys()
    others = [embeddings(side=32), embeddings(sha256="b" * 64), priors(), priors(points_per_side=3)]
    folders = {open_store(other, tmp_path).folder for other in others}
    assert len(folders) == 4
    assert store.folder not in folders
    assert all(len(open_store(other, tmp_path)) == 0 for other in others)


def test_entries_say_kind_weights_images_and_bytes(tmp_path):
    assert entries(tmp_path) == []
    store = filled(tmp_path)
    filled(tmp_path, embeddings(sha256="b" * 64, name="sam_vit_b"), n=1)
    filled(tmp_path, priors(weights="mine"), n=2)
    store.write({f"{store.identity}-image0": torch.ones(4, 3, 3)})
    lite, vit_b, masks = entries(tmp_path)
    assert (lite.kind, lite.weights, lite.images, lite.folder) == ("embeddings", "lite_medsam", 3, store.folder)
    assert lite.bytes == sum(path.stat().st_size for path in store.folder.iterdir())
    assert (vit_b.kind, vit_b.weights, vit_b.images) == ("embeddings", "sam_vit_b", 1)
    assert (masks.kind, masks.weights, masks.images) == ("priors", "mine", 2)
    assert lite.created.endswith("+00:00")


def test_store_that_an_earlier_version_wrote_is_listed_and_cleared(tmp_path):
    old = tmp_path / "embeddings" / "aaaaaaaaaaaa-0123abcd-fp16"
    old.mkdir(parents=True)
    write_shard(old, {"0123": torch.ones(2)})
    (old / "info.json").write_text('{"weights": "lite_medsam", "created": "2026-01-31T12:00:00+00:00"}')
    (summary,) = entries(tmp_path)
    assert (summary.name, summary.images, summary.weights) == (old.name, 1, "lite_medsam")
    assert len(open_store(embeddings(), tmp_path)) == 0
    assert clear(old) == summary.bytes
    assert not old.exists()


def test_folder_that_says_other_weights_is_refused(tmp_path):
    path = filled(tmp_path).folder / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "c" * 64}))
    with pytest.raises(DataError, match=r"info.json: these values were made with weights_sha256 'cc*', expected 'aa*'.*delete"):
        open_store(embeddings(), tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"info.json: is no JSON.*Delete the folder"):
        open_store(embeddings(), tmp_path)


def test_a_store_with_a_damaged_shard_or_info_is_still_listed(tmp_path):
    store = filled(tmp_path)
    (store.folder / "info.json").write_bytes(b"\x85{")
    (store.folder / "shard-0.safetensors").write_bytes(b"half")
    (summary,) = entries(tmp_path)
    assert (summary.weights, summary.images) == ("unknown", 3)


def test_clear_removes_the_store_and_says_how_much_it_freed(tmp_path):
    store = filled(tmp_path)
    (summary,) = entries(tmp_path)
    assert clear(store.folder) == summary.bytes
    assert not store.folder.exists()


def test_clear_leaves_foreign_files_alone(tmp_path):
    store = filled(tmp_path)
    (store.folder / "thesis.txt").write_text("mine")
    clear(store.folder)
    assert [path.name for path in store.folder.iterdir()] == ["thesis.txt"]


def test_clear_refuses_a_folder_that_is_no_store(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(DataError, match="nothing was removed"):
        clear(tmp_path)


def test_store_that_may_not_be_changed_is_named(tmp_path, monkeypatch):
    store = filled(tmp_path)

    def denied(path, *, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(DataError, match=r"cannot be cleared \(Permission denied\)\. Check the folder.* 0 bytes of it"):
        clear(store.folder)


def test_folder_that_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    filled(tmp_path)
    filled(tmp_path, priors())
    usual = Path.iterdir

    def closed(path):
        if path.name == "priors":
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    assert [summary.kind for summary in entries(tmp_path)] == ["embeddings"]


def test_listing_loads_no_torch(tmp_path):
    filled(tmp_path)
    code = f"""
import sys
from pathlib import Path
from medsam_tune.precompute import clear, entries
(summary,) = entries(Path({str(tmp_path)!r}))
clear(summary.folder)
sys.exit(f"torch is loaded" if "torch" in sys.modules else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
