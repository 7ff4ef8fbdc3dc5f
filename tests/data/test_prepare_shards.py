"""Shards hold what a prepared folder holds; a killed preparation goes on, and other data are not mixed into it."""

import io
import json
import tarfile

import pytest

from medsam_tune.data import ImageFolder, ImageShards
from medsam_tune.data import prepare_shards as module
from medsam_tune.data.checks import check_cases
from medsam_tune.data.prepare import CASE_PATTERN, prepare_folder
from medsam_tune.data.prepare_shards import prepare_shards
from medsam_tune.data.shards.index import load_index
from medsam_tune.data.shards.scanning import scan_shards
from medsam_tune.data.shards.writing import PackedSample, ShardContent, ShardLimit, key_of, packed_size
from medsam_tune.data.split_file import load_splits
from medsam_tune.data.splits import make_splits
from medsam_tune.errors import DataError, RecipeError
from tests.data.test_image_shards import write_both


def prepare(flat, out, limit="2", **settings):
    source = ImageFolder(labels={"a": [1], "b": [2]}, case_pattern="^([^/]+)/")
    source.open(flat)
    patients = {"p0": "A", "p1": "B", "p2": "A"} if settings.pop("patients", False) else None
    splits = (
        make_splits(source.case_ids(), val_fraction=0.3, test_fraction=0.3, patients=patients) if patients is None else None
    )
    splits = splits or make_splits(["p0", "p1", "p2", "p3", "p4"], patients=patients)
    if limit is None:
        return prepare_folder(source, out, splits=splits)
    checksums = check_cases(source)
    return prepare_shards(source, out, limit=ShardLimit.of(limit), splits=splits, checksums=checksums, **settings)


@pytest.fixture
def flat(tmp_path):
    return write_both(tmp_path)[0]


def below(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_files_of_a_prepared_folder(flat, tmp_path):
    done, plain = prepare(flat, tmp_path / "s"), prepare(flat, tmp_path / "f", None)
    assert (done.images, done.cases, done.labels, done.shards) == (plain.images, plain.cases, plain.labels, 3)
    shards, folder = ImageShards(), ImageFolder(case_pattern=CASE_PATTERN)
    shards.open(done.folder)
    folder.open(plain.folder)
    assert (shards.image_ids(), shards.case_ids()) == (folder.image_ids(), folder.case_ids())
    for index in range(6):
        ours, theirs = shards.files(index), folder.files(index)
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    assert load_splits(done.folder / "splits.json", shards.case_ids()) == load_splits(
        plain.folder / "splits.json", folder.case_ids()
    )
    names = ["index.safetensors", "prepared.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar", "splits.json"]
    assert sorted(below(done.folder)) == names


def test_tarfile_reads_samples_by_webdatasets_names(flat, tmp_path):
    done = prepare(flat, tmp_path / "s", patients=True)
    with tarfile.open(done.folder / "shard-000000.tar") as tar:
        assert [info.name for info in tar][:3] == ["p0/p0__s0.png", "p0/p0__s0.mask.png", "p0/p0__s0.json"]
        record = json.load(tar.extractfile("p0/p0__s0.json"))
    assert record == {"image": "p0/p0__s0", "case": "p0", "spacing_mm": [1.0, 1.0], "patient": "A"}
    shards = ImageShards()
    shards.open(done.folder)
    assert set(shards.patient_ids()) == {"A", "B"}


def test_an_index_made_from_the_headers_says_the_same(flat, tmp_path):
    folder = prepare(flat, tmp_path / "s").folder
    ours, made = load_index(folder / "index.safetensors"), scan_shards(sorted(folder.glob("*.tar")))
    assert ours.shards == made.shards
    assert {name: list(texts) for name, texts in ours.texts.items()} == made.texts
    assert (ours.numbers[:, :5] == made.numbers[:, :5]).all()
    assert ours.numbers[:, 5:].tolist() == [[8, 10], [11, 10], [9, 10], [12, 10], [10, 10], [13, 10]]


@pytest.mark.parametrize("stop", range(1, 4))
def test_a_preparation_that_was_killed_goes_on_with_equal_bytes(flat, tmp_path, monkeypatch, stop):
    whole = prepare(flat, tmp_path / "whole")
    written, write = [], module._write_one

    def write_some(content, folder, number, **facts):
        if number == stop:
            raise KeyboardInterrupt
        written.append(number)
        return write(content, folder, number, **facts)

    monkeypatch.setattr(module, "_write_one", write_some)
    if stop < 3:
        with pytest.raises(KeyboardInterrupt):
            prepare(flat, tmp_path / "s")
        assert not (tmp_path / "s").exists()
    stop = 9
    done = prepare(flat, tmp_path / "s")
    assert written == [0, 1, 2]
    assert below(done.folder) == below(whole.folder)
    assert not (tmp_path / "s.unfinished").exists()


def test_a_shard_that_was_cut_after_a_kill_is_written_again(flat, tmp_path, monkeypatch):
    whole = prepare(flat, tmp_path / "whole")
    monkeypatch.setattr(module, "_close", lambda *_: None)
    prepare(flat, tmp_path / "s")
    monkeypatch.undo()
    shard = tmp_path / "s.unfinished" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    assert below(prepare(flat, tmp_path / "s").folder) == below(whole.folder)


def test_an_unfinished_preparation_of_other_data_is_not_gone_on_with(flat, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_close", lambda *_: None)
    prepare(flat, tmp_path / "s")
    with pytest.raises(DataError, match=r"s\.unfinished: is an unfinished preparation of other data or settings"):
        prepare(flat, tmp_path / "s", "3")
    with pytest.raises(DataError, match=r"s\.unfinished: is an unfinished preparation"):
        prepare(write_other(flat), tmp_path / "s")


def write_other(flat):
    (flat / "masks/p0/s0.png").write_bytes((flat / "masks/p0/s0.png").read_bytes() + b"\0")
    return flat


def test_a_folder_that_is_there_is_not_written_over(flat, tmp_path):
    (tmp_path / "s").mkdir()
    with pytest.raises(DataError, match="exists already"):
        prepare(flat, tmp_path / "s")


def test_limits_are_images_or_bytes():
    assert ShardLimit.of("1000") == ShardLimit(images=1000)
    assert [ShardLimit.of(text).bytes for text in ("500MB", "2 GiB", "1kb")] == [500_000_000, 1 << 31, 1000]
    for text in ("0", "x", "1.5GB", "-3", "MB"):
        with pytest.raises(RecipeError, match="--shards: expected images a shard"):
            ShardLimit.of(text)


def test_a_shard_stays_below_its_size_unless_a_single_sample_is_larger():
    limit = ShardLimit.of("10KB")
    assert [limit.is_full(n, size, more) for n, size, more in ((0, 0, 20_000), (1, 6000, 4000), (1, 6000, 4001))] == [
        False,
        False,
        True,
    ]
    sample, content = PackedSample("p/a", b"x" * 600, b"y", (1, 1), {"case": "ä" * 60}), ShardContent()
    content.add(sample)
    assert content.size == packed_size(sample) == 512 * (1 + 2 + 1 + 1 + 1 + 1)


def test_keys_hold_no_dot_and_two_names_never_give_one():
    names = ["a.b", "a%2Eb", "a%252Eb", "a%25b", "a%b", "p.1/a"]
    assert [key_of(name) for name in names] == ["a%2Eb", "a%252Eb", "a%25252Eb", "a%2525b", "a%b", "p.1/a"]


def test_members_say_nothing_of_machine_user_or_time(tmp_path):
    content = ShardContent()
    content.add(PackedSample("p/" + "n" * 150, b"x", b"y", (1, 1), {}))
    content.write(tmp_path / "s.tar", {})
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "s.tar").read_bytes())) as tar:
        found = [(info.name[-9:], info.mtime, info.uid, info.uname) for info in tar]
    assert found == [("nnnnn.png", 0, 0, ""), ("n.mask.png"[-9:], 0, 0, ""), ("nnnn.json", 0, 0, "")]
