"""Shards hold what a prepared folder holds; a killed preparation goes on, and other data are not mixed into it."""

import errno
import gc
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import ImageFolder, ImageShards
from medsam_tune.data import prepare_shards as module
from medsam_tune.data.checks import check_cases
from medsam_tune.data.prepare import CASE_PATTERN, prepare_folder
from medsam_tune.data.prepare_shards import prepare_shards
from medsam_tune.data.shards.index import load_index
from medsam_tune.data.shards.scanning import scan_shards
from medsam_tune.data.shards.writing import PackedSample, ShardLimit, ShardWriter, key_of, packed_size
from medsam_tune.data.split_file import load_splits
from medsam_tune.data.splits import Splits, make_splits
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.samples import Sample
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


def test_cases_have_the_checksums_of_the_prepared_folder_whatever_their_images_are_called(flat, tmp_path):
    for name in ("s", "s-1", "s.1", "s_2", "S", "s!"):
        for part in ("images", "masks"):
            content = np.full((8, 9), 1 + len(name) + ord(name[-1]) % 2 * (part == "images"), np.uint8)
            Image.fromarray(content % 3).save(flat / part / "p0" / f"{name}.png")
    labels = {"a": [1], "b": [2]}
    shards, folder = ImageShards(labels=labels), ImageFolder(case_pattern=CASE_PATTERN, labels=labels)
    shards.open(prepare(flat, tmp_path / "s").folder)
    folder.open(prepare(flat, tmp_path / "f", None).folder)
    assert len(shards) == len(folder) == 12
    assert check_cases(shards, cache=tmp_path / "a") == check_cases(folder, cache=tmp_path / "b")


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
    written, write = [], module._recorded

    def write_some(shard, before):
        if len(written) == stop:
            raise KeyboardInterrupt
        written.append(shard.path.name)
        return write(shard, before)

    monkeypatch.setattr(module, "_recorded", write_some)
    if stop < 3:
        with pytest.raises(KeyboardInterrupt):
            prepare(flat, tmp_path / "s")
        assert not (tmp_path / "s").exists()
    stop = 9
    done = prepare(flat, tmp_path / "s")
    assert written == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
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


def test_a_shard_has_the_bytes_that_tarfile_writes(flat, tmp_path):
    ours = (prepare(flat, tmp_path / "s", "6").folder / "shard-000000.tar").read_bytes()
    with (
        tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.PAX_FORMAT) as tar,
        tarfile.open(tmp_path / "s" / "shard-000000.tar") as read,
    ):
        for member in read:
            info = tarfile.TarInfo(member.name)
            info.size, info.mode = member.size, 0o644
            tar.addfile(info, read.extractfile(member))
    theirs = (tmp_path / "theirs.tar").read_bytes()
    # It fills up the last record of 20 blocks.
    assert theirs == ours + bytes(len(theirs) - len(ours))
    assert len(ours) > 6 * 6 * 512


class Noise(ImageFolder):
    """A folder of so many images of 256 x 256 noise, which no PNG makes smaller."""

    def __init__(self, n_images):
        super().__init__()
        self.n_images = n_images

    def __len__(self):
        return self.n_images

    def image_ids(self):
        return tuple(f"i{index}" for index in range(self.n_images))

    case_ids = image_ids

    def voxel_size(self, index):
        return None

    def __getitem__(self, index):
        values = np.random.default_rng(index).integers(0, 256, (3, 256, 256), dtype=np.uint8)
        name, mask = f"i{index}", torch.ones(1, 256, 256, dtype=torch.bool)
        return Sample(torch.from_numpy(values).float(), mask, torch.ones(1, dtype=torch.long), image_id=name, case_id=name)


def test_writing_a_shard_holds_one_image_however_many_it_takes(tmp_path):
    peaks = []
    for n_images in (4, 24):
        gc.collect()
        tracemalloc.start()
        done = prepare_shards(
            Noise(n_images), tmp_path / str(n_images), limit=ShardLimit.of("1GB"), splits=Splits((), (), ()), checksums={}
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.shards == 1
    assert (tmp_path / "24" / "shard-000000.tar").stat().st_size > 24 * 3 * 256 * 256
    assert peaks[1] - peaks[0] < 3 * 256 * 256


def test_what_stops_within_a_shard_leaves_no_part_of_it_and_a_missing_file_is_told(flat, tmp_path):
    gone = flat / "images/p1/s4.png"
    content = gone.read_bytes()
    whole = prepare(flat, tmp_path / "whole", "4")
    source = ImageFolder(labels={"a": [1], "b": [2]}, case_pattern="^([^/]+)/")
    source.open(flat)
    arguments = {"limit": ShardLimit(4), "splits": make_splits(source.case_ids()), "checksums": check_cases(source)}
    gone.unlink()
    with pytest.raises(DataError, match=r"p1/s4\.png"):
        prepare_shards(source, tmp_path / "s", **arguments)
    assert sorted(path.name for path in (tmp_path / "s.unfinished").iterdir()) == ["plan.txt"]
    gone.write_bytes(content)
    assert below(prepare_shards(source, tmp_path / "s", **arguments).folder).keys() == below(whole.folder).keys()


def test_a_full_disk_ends_a_shard_at_once(tmp_path, monkeypatch):
    made = []

    class Disk(io.BytesIO):
        def write(self, content):
            if made:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    usual = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *rest, **more: Disk() if mode == "xb" else usual(path, mode, *rest, **more)
    )
    sample = PackedSample("p/a", b"x", b"y", (1, 1), {})

    def fill():
        with ShardWriter(tmp_path / "s.tar") as shard:
            shard.add(sample)
            made.append(1)
            shard.add(sample)
            made.append(2)

    with pytest.raises(DataError, match=r"s\.tar: could not be written \(No space left on device"):
        fill()
    assert made == [1]


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


def test_a_shard_stays_below_its_size_unless_a_single_sample_is_larger(tmp_path):
    limit = ShardLimit.of("10KB")
    assert [limit.is_full(n, size, more) for n, size, more in ((0, 0, 20_000), (1, 6000, 4000), (1, 6000, 4001))] == [
        False,
        False,
        True,
    ]
    sample = PackedSample("p/a", b"x" * 600, b"y", (1, 1), {"case": "ä" * 60})
    with ShardWriter(tmp_path / "s.tar") as shard:
        shard.add(sample)
        assert shard.size == packed_size(sample) == 512 * (1 + 2 + 1 + 1 + 1 + 1)


def test_keys_hold_no_dot_and_two_names_never_give_one():
    names = ["a.b", "a%2Eb", "a%252Eb", "a%25b", "a%b", "p.1/a"]
    assert [key_of(name) for name in names] == ["a%2Eb", "a%252Eb", "a%25252Eb", "a%2525b", "a%b", "p.1/a"]


def test_members_say_nothing_of_machine_user_or_time(tmp_path):
    with ShardWriter(tmp_path / "s.tar") as shard:
        shard.add(PackedSample("p/" + "n" * 150, b"x", b"y", (1, 1), {}))
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "s.tar").read_bytes())) as tar:
        found = [(info.name[-9:], info.mtime, info.uid, info.uname) for info in tar]
    assert found == [("nnnnn.png", 0, 0, ""), ("n.mask.png"[-9:], 0, 0, ""), ("nnnn.json", 0, 0, "")]
