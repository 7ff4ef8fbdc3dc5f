import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medsam_tune.cache import cache_root, clear, entries, open_store
from medsam_tune.errors import DataError
from medsam_tune.geometry import InputRule


def filled(root, *, sha256="a" * 64, name="lite_medsam", side=16, n=3):
    store = open_store(weights_name=name, weights_sha256=sha256, rule=InputRule(side=side), root=root)
    store.put([f"image{i}" for i in range(n)], torch.ones(n, 4, 3, 3))
    return store


def test_root_follows_the_environment_and_else_the_home_folder(monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", "/some/where")
    assert cache_root() == Path("/some/where")
    monkeypatch.delenv("MEDSAM_TUNE_CACHE")
    assert cache_root() == Path.home() / ".cache" / "medsam_tune"


def test_the_same_weights_and_rule_open_the_same_store_and_others_another(tmp_path):
    assert "image0" in open_store_again(tmp_path, side=16)
    assert "image0" not in open_store_again(tmp_path, side=32)


def open_store_again(root, *, side):
    filled(root)
    return open_store(weights_name="other name", weights_sha256="a" * 64, rule=InputRule(side=side), root=root)


def test_entries_say_weights_images_and_bytes(tmp_path):
    assert entries(tmp_path) == []
    store = filled(tmp_path)
    filled(tmp_path, sha256="b" * 64, name="sam_vit_b", n=1)
    store.put(["image0"], torch.ones(1, 4, 3, 3))
    lite, vit_b = entries(tmp_path)
    assert (lite.weights, lite.images, lite.folder) == ("lite_medsam", 3, store.folder)
    assert lite.bytes == sum(path.stat().st_size for path in store.folder.iterdir())
    assert (vit_b.weights, vit_b.images) == ("sam_vit_b", 1)
    assert lite.created.endswith("+00:00")


def test_a_store_with_a_damaged_shard_or_info_is_still_listed(tmp_path):
    store = filled(tmp_path)
    (store.folder / "info.json").write_text("{")
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


def test_listing_loads_no_torch(tmp_path):
    filled(tmp_path)
    code = f"""
import sys
from pathlib import Path
from medsam_tune.cache import clear, entries
(summary,) = entries(Path({str(tmp_path)!r}))
clear(summary.folder)
sys.exit(f"torch is loaded" if "torch" in sys.modules else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
