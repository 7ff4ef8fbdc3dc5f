"""An index says where samples lie: kept whole, checked against its shards, and made from headers where there is none."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from medsam_tune.data.shards import scanning
from medsam_tune.data.shards.index import INDEX_FILE, Entry, ShardIndex, load_index
from medsam_tune.data.shards.scanning import holds_shards, open_index, scan_shards
from medsam_tune.errors import DataError, DataFaults
from tests.data.shards.tar_files import pair, png, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def record(**facts):
    return json.dumps(facts).encode()


def test_an_index_reads_back_as_it_was_written(tmp_path):
    entries = [
        Entry("p/ä", "p/ä.png", "", (0, 512, 3, 0, 0, 8, 10), "p"),
        Entry("b", "b.png", "b.mask.png", (0, 0, 1, 1, 1, 0, 0)),
    ]
    index = ShardIndex.of({"s.tar": 600}, [replace(each, digests=bytes(range(16))) for each in entries], {"items": "2"})
    found = load_index(index.save(tmp_path / INDEX_FILE))
    assert (dict(found.shards), {name: [*texts] for name, texts in found.texts.items()}) == (index.shards, index.texts)
    np.testing.assert_array_equal(found.numbers, index.numbers)
    np.testing.assert_array_equal(found.digests, index.digests)
    assert found.record == {"items": "2"}


def test_indexes_of_several_shards_become_one():
    parts = [ShardIndex.of({f"{n}.tar": 600 + n}, [Entry(f"a{n}", "a.png", "", (0, 5 * n, 1, 0, 0, 8, 8))]) for n in range(3)]
    joined = ShardIndex.join(parts)
    assert joined.shards == {"0.tar": 600, "1.tar": 601, "2.tar": 602}
    assert joined.numbers[:, :2].tolist() == [[0, 0], [1, 5], [2, 10]]
    assert joined.texts["names"] == ["a0", "a1", "a2"]


def test_shards_from_elsewhere_are_listed_by_webdatasets_names(tmp_path):
    write_tar(
        tmp_path / "a.tar", [*pair("p.1/x"), ("p.1/x.json", record(case="p1", patient="A", label=3)), ("p.1/x.cls", b"3")]
    )
    write_tar(tmp_path / "b.tar", [("y.jpg", png(np.zeros((4, 4)))), ("y.seg.png", png(np.zeros((4, 4)))), ("._y.png", b"")])
    index = open_index(tmp_path)
    assert {name: list(texts) for name, texts in index.texts.items()} == {
        "names": ["p.1/x", "y"],
        "images": ["p.1/x.png", "y.jpg"],
        "masks": ["p.1/x.mask.png", "y.seg.png"],
        "cases": ["p1", ""],
        "patients": ["A", ""],
    }
    ((_, image, mask), _) = index.paths(tmp_path)
    assert [image.read_bytes(), mask.read_bytes()] == [content for _, content in pair("p.1/x")]


def test_headers_are_read_once_and_again_when_a_shard_changes(tmp_path, cache, monkeypatch):
    write_tar(tmp_path / "d" / "a.tar", pair("x"))
    read = []
    monkeypatch.setattr(scanning, "scan_shards", lambda shards: read.append(shards) or scan_shards(shards))
    assert [len(open_index(tmp_path / "d")) for _ in range(2)] == [1, 1]
    assert len(read) == 1
    assert [path.parent.name for path in cache.rglob("*.safetensors")] == ["shards"]
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a.tar"]
    write_tar(tmp_path / "d" / "b.tar", pair("y"))
    assert len(open_index(tmp_path / "d")) == 2


def test_a_damaged_index_of_the_cache_is_made_again(tmp_path, cache):
    write_tar(tmp_path / "d" / "a.tar", pair("x"))
    open_index(tmp_path / "d")
    (kept,) = cache.rglob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    assert len(open_index(tmp_path / "d")) == 1
    assert len(load_index(kept)) == 1


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([*pair("x"), ("x.jpg", b"")], r"a\.tar: member x\.jpg: its key 'x' and part have x\.png of the same file already"),
        ([*pair("x"), *pair("x")], r"a\.tar: member x\.png: its key 'x' and part have x\.png of the same file already"),
        ([("x.mask.png", b"")], r"a\.tar: member x\.mask\.png: there is no image x\.png"),
        ([*pair("x"), ("x.json", b"{")], r"a\.tar: member x\.json: is no JSON"),
        ([*pair("x"), ("x.json", record(case="a\nb"))], r"member x\.json: its case 'a\\nb' is no plain text"),
        ([*pair("x"), ("x.json", record(image="../y"))], r"member '\.\./y' has no plain name below a folder"),
        ([*pair("x"), *pair("y"), ("y.json", record(image="x"))], r"a\.tar: member .*: the image 'x' is named twice"),
    ],
)
def test_what_cannot_be_paired_is_told_with_shard_and_member(tmp_path, members, text):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=text):
        open_index(tmp_path)


def test_a_key_in_two_shards_is_told_and_all_faults_are_listed(tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", pair("x"))
    with pytest.raises(DataFaults) as caught:
        open_index(tmp_path)
    assert [fault.partition("b.tar: ")[2][:60] for fault in caught.value.faults] == [
        "member x.png: its key 'x' and part have a member of another ",
        "member x.mask.png: its key 'x' and part have a member of ano",
    ]


def sound(tmp_path):
    write_tar(tmp_path / "a.tar", pair("x"))
    return scan_shards([tmp_path / "a.tar"])


def test_an_index_of_other_shards_is_refused(tmp_path):
    index = sound(tmp_path)
    index.save(tmp_path / INDEX_FILE)
    assert len(open_index(tmp_path)) == 1
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"index\.safetensors: is not the index of the shards beside it: b\.tar is not in it"):
        open_index(tmp_path)
    (tmp_path / "b.tar").unlink()
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tar has 0 bytes, expected 10240\. Copy the folder again"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda index: replace(index, numbers=index.numbers + 2**40), "it names a shard that is none"),
        (lambda index: replace(index, numbers=index.numbers * [1, 1, 1000, 1, 1, 1, 1]), "a member lies outside of its shard"),
        (lambda index: replace(index, numbers=-index.numbers), "its numbers are none"),
        (lambda index: replace(index, numbers=index.numbers.astype(np.float32)), "its numbers are none"),
        (lambda index: replace(index, digests=np.zeros((3, 16), np.uint8)), "its checksums are none"),
        (lambda index: replace(index, shards={"../a.tar": 10240}), "its shards are none"),
        (lambda index: replace(index, texts={**index.texts, "names": ["../x"]}), "has no plain name below a folder"),
        (lambda index: replace(index, texts={**index.texts, "names": ["x", "y"]}), "2 texts for 1 samples"),
    ],
)
def test_an_index_that_says_what_cannot_be_is_refused(tmp_path, change, text):
    change(sound(tmp_path)).save(tmp_path / INDEX_FILE)
    with pytest.raises(DataError, match=rf"index\.safetensors: .*{text}.*Remove it"):
        open_index(tmp_path)


def test_an_index_that_is_cut_off_is_refused(tmp_path):
    path = sound(tmp_path).save(tmp_path / INDEX_FILE)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read as an index of shards"):
        open_index(tmp_path)


def test_archives_beside_a_data_set_make_no_folder_of_shards(tmp_path):
    write_tar(tmp_path / "a.tar", pair("x"))
    assert holds_shards(tmp_path)
    (tmp_path / "README.txt").write_text("x")
    assert holds_shards(tmp_path)
    (tmp_path / "images").mkdir()
    assert not holds_shards(tmp_path)
    sound(tmp_path).save(tmp_path / INDEX_FILE)
    assert holds_shards(tmp_path)
    assert not holds_shards(tmp_path / "images")
    assert not holds_shards(tmp_path / "gone")
