import logging

import pytest
import torch

from medsam_tune.cache import EmbeddingStore
from medsam_tune.geometry import Frame
from medsam_tune.inference import embed
from medsam_tune.inference.embed import fill_store, lookup, verify_sample

ITEMS = [(index, view) for index in range(5) for view in range(2)]
FRAME = Frame(original_size=(8, 8), input_size=(8, 8))


def load(item):
    index, view = item
    return torch.full((3, 8, 8), 10.0 * index + view), FRAME


class Encoder:
    """Return the image's mean in every place, scaled, and remember which images came."""

    def __init__(self, scale=1.0, fail_at=None):
        self.scale, self.fail_at = scale, fail_at
        self.seen = []
        self.batches = []

    def __call__(self, images, frames):
        if self.fail_at is not None and len(self.seen) >= self.fail_at:
            raise KeyboardInterrupt
        self.seen += images.mean(dim=(1, 2, 3)).tolist()
        self.batches.append((len(images), len(frames)))
        return (self.scale * images.mean(dim=(1, 2, 3)))[:, None, None, None].expand(-1, 4, 2, 2)


def store_at(folder):
    return EmbeddingStore(folder)


def test_each_image_is_encoded_once_and_found_by_index_and_view(tmp_path):
    encoder = Encoder()
    filled = fill_store(store_at(tmp_path), ITEMS, load, encoder)
    assert sorted(encoder.seen) == sorted(10.0 * index + view for index, view in ITEMS)
    assert filled.encoded == 10
    find = lookup(EmbeddingStore(tmp_path), filled.keys)
    assert all(find(index, view).unique().tolist() == [10.0 * index + view] for index, view in ITEMS)


def test_a_second_run_encodes_only_what_it_spot_checks(tmp_path):
    fill_store(store_at(tmp_path), ITEMS[:4], load, Encoder())
    again = Encoder()
    assert fill_store(store_at(tmp_path), ITEMS, load, again, verify=2).encoded == 6
    assert len(again.seen) == 8
    untouched = Encoder()
    fill_store(store_at(tmp_path), ITEMS, load, untouched, verify=0)
    assert untouched.seen == []


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "FLUSH_IMAGES", 3)
    with pytest.raises(KeyboardInterrupt):
        fill_store(store_at(tmp_path), ITEMS, load, Encoder(fail_at=7))
    assert fill_store(store_at(tmp_path), ITEMS, load, Encoder()).encoded == len(ITEMS) - 6


def test_slow_encoding_is_written_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "FLUSH_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fill_store(store_at(tmp_path), ITEMS, load, Encoder(fail_at=7))
    assert len(EmbeddingStore(tmp_path)) == 7


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_the_work_without_talking(tmp_path, order):
    encoders = [Encoder() for _ in order]
    # The same picture under two items belongs to one process only.
    items = [*ITEMS, (0, 10)]
    results = [fill_store(store_at(tmp_path), items, load, encoders[rank], rank=rank, world=3) for rank in order]
    assert sorted(seen for encoder in encoders for seen in encoder.seen) == sorted(10.0 * i + v for i, v in ITEMS)
    assert {len(encoder.seen) for encoder in encoders} == {3, 4}
    find = lookup(store_at(tmp_path), results[0].keys)
    assert find(0, 10).unique().tolist() == find(1, 0).unique().tolist() == [10.0]


def test_a_lookup_made_before_another_process_wrote_still_finds_its_shard(tmp_path):
    filled = fill_store(store_at(tmp_path), ITEMS, load, Encoder(), rank=0, world=2)
    find = lookup(store_at(tmp_path), filled.keys)
    fill_store(store_at(tmp_path), ITEMS, load, Encoder(), rank=1, world=2)
    assert {find(*item).unique().item() for item in ITEMS} == {10.0 * i + v for i, v in ITEMS}


def test_batches_bring_as_many_frames_as_images(tmp_path):
    encoder = Encoder()
    fill_store(store_at(tmp_path), ITEMS, load, encoder, batch_size=4)
    assert encoder.batches == [(4, 4), (4, 4), (2, 2)]


def test_a_stale_store_is_noticed_and_rebuilt(tmp_path, caplog):
    fill_store(store_at(tmp_path), ITEMS[2:], load, Encoder())
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        filled = fill_store(store_at(tmp_path), ITEMS[2:], load, Encoder(scale=1.05))
    assert filled.encoded == 8
    assert len(caplog.messages) == 1
    assert "relative error 0.048" in caplog.messages[0]
    assert "8 entries of this run are removed and encoded again" in caplog.messages[0]
    find = lookup(store_at(tmp_path), filled.keys)
    assert find(4, 0).unique().item() == pytest.approx(42.0, rel=1e-3)


def test_rounding_to_fp16_is_not_taken_for_staleness(tmp_path):
    store = store_at(tmp_path)
    weights = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def encode(images, frames):
        return torch.nn.functional.conv2d(images, weights).expand(-1, -1, 2, 2)

    filled = fill_store(store, ITEMS[2:], load, encode)
    assert verify_sample(store, filled.keys, load, encode, n=8)
    assert not verify_sample(store, filled.keys, load, lambda i, f: 1.02 * encode(i, f), n=1)
    assert len(store) == 0


def test_another_embedding_size_is_stale(tmp_path):
    store = store_at(tmp_path)
    filled = fill_store(store, ITEMS, load, Encoder())
    assert not verify_sample(store, filled.keys, load, lambda images, frames: torch.ones(1, 4, 3, 3))


def test_a_damaged_shard_is_rebuilt_with_a_notice(tmp_path, caplog):
    fill_store(store_at(tmp_path), ITEMS, load, Encoder())
    (path,) = tmp_path.glob("shard-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        filled = fill_store(store_at(tmp_path), ITEMS, load, Encoder())
    assert filled.encoded == 1
    assert "checksum" in caplog.text
    find = lookup(store_at(tmp_path), filled.keys)
    assert {find(*item).unique().item() for item in ITEMS} == {10.0 * i + v for i, v in ITEMS}


def test_an_augmentation_without_a_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Seed its augmentation"):
        fill_store(store_at(tmp_path), ITEMS, lambda item: (torch.rand(3, 8, 8), FRAME), Encoder())


def test_encoding_keeps_no_graph_and_gradients_flow_through_what_is_looked_up(tmp_path):
    convolution = torch.nn.Conv2d(3, 4, 4, stride=4)
    filled = fill_store(store_at(tmp_path), ITEMS, load, lambda images, frames: convolution(images))
    head = torch.nn.Conv2d(4, 1, 1)
    head(lookup(store_at(tmp_path), filled.keys)(1, 1)[None]).sum().backward()
    assert head.weight.grad.abs().sum() > 0
    assert convolution.weight.grad is None


def test_the_bar_appears_only_when_it_takes_long_and_only_on_rank_0(tmp_path, capsys, monkeypatch):
    fill_store(store_at(tmp_path / "quick"), ITEMS, load, Encoder())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(embed, "_SILENT_SECONDS", -1.0)
    fill_store(store_at(tmp_path / "one"), ITEMS, load, Encoder(), rank=1, world=2)
    fill_store(store_at(tmp_path / "none"), ITEMS, load, Encoder(), progress=False)
    assert capsys.readouterr() == ("", "")
    fill_store(store_at(tmp_path / "slow"), ITEMS, load, Encoder())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Encoding images" in shown.err
    assert "10/10" in shown.err
