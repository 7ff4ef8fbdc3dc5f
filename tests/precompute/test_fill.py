import logging
import sys

import pytest
import torch

from medsam_tune.geometry import Frame, InputRule
from medsam_tune.precompute import EmbeddingPrecompute, bar, open_store
from medsam_tune.precompute.fill import fill, lookup, verify_sample

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


def precompute(encode, load=load, **changes):
    made = EmbeddingPrecompute(weights_name="x", weights_sha256="a" * 64, rule=InputRule(8), load=load, encode=encode)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def store_at(folder):
    return open_store(precompute(None), folder)


def fill_with(folder, encode, items=ITEMS, load=load, changes=None, **options):
    return fill(store_at(folder), precompute(encode, load, **(changes or {})), items, **options)


def finder(folder, filled):
    return lookup(store_at(folder), precompute(None), filled.keys)


def test_each_image_is_computed_once_and_found_by_index_and_view(tmp_path):
    encoder = Encoder()
    filled = fill_with(tmp_path, encoder)
    assert sorted(encoder.seen) == sorted(10.0 * index + view for index, view in ITEMS)
    assert filled.made == 10
    find = finder(tmp_path, filled)
    assert all(find(index, view).unique().tolist() == [10.0 * index + view] for index, view in ITEMS)


def test_a_second_run_computes_only_what_it_spot_checks(tmp_path):
    fill_with(tmp_path, Encoder(), ITEMS[:4])
    again = Encoder()
    assert fill_with(tmp_path, again, changes={"verified": 2}).made == 6
    assert len(again.seen) == 8
    untouched = Encoder()
    fill_with(tmp_path, untouched, changes={"verified": 0})
    assert untouched.seen == []


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill_with(tmp_path, Encoder(fail_at=7), changes={"flush_images": 3})
    assert fill_with(tmp_path, Encoder()).made == len(ITEMS) - 6


def test_slow_work_is_written_by_the_clock(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill_with(tmp_path, Encoder(fail_at=7), changes={"flush_seconds": 0.0})
    assert len(store_at(tmp_path)) == 7


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_the_work_without_talking(tmp_path, order):
    encoders = [Encoder() for _ in order]
    # The same picture under two items belongs to one process only.
    items = [*ITEMS, (0, 10)]
    results = [fill_with(tmp_path, encoders[rank], items, rank=rank, world=3) for rank in order]
    assert sorted(seen for encoder in encoders for seen in encoder.seen) == sorted(10.0 * i + v for i, v in ITEMS)
    assert {len(encoder.seen) for encoder in encoders} == {3, 4}
    assert results[0].keys == results[1].keys
    find = finder(tmp_path, results[0])
    assert find(0, 10).unique().tolist() == find(1, 0).unique().tolist() == [10.0]


def test_a_lookup_made_before_another_process_wrote_still_finds_its_shard(tmp_path):
    filled = fill_with(tmp_path, Encoder(), rank=0, world=2)
    find = finder(tmp_path, filled)
    fill_with(tmp_path, Encoder(), rank=1, world=2)
    assert {find(*item).unique().item() for item in ITEMS} == {10.0 * i + v for i, v in ITEMS}


def test_batches_bring_as_many_frames_as_images(tmp_path):
    encoder = Encoder()
    fill_with(tmp_path, encoder, changes={"batch_size": 4})
    assert encoder.batches == [(4, 4), (4, 4), (2, 2)]


class Small(Encoder):
    """An encoder on a device that holds ``most`` images."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def __call__(self, images, frames):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return super().__call__(images, frames)


def test_a_batch_that_does_not_fit_is_computed_in_halves_from_then_on(tmp_path, caplog):
    encoder = Small(3)
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        filled = fill_with(tmp_path, encoder, changes={"batch_size": 8})
    assert [size for size, _ in encoder.batches] == [2, 2, 2, 2, 2]
    assert [message.partition(" ")[0] for message in caplog.messages] == ["8", "4"]
    find = finder(tmp_path, filled)
    assert {find(*item).unique().item() for item in ITEMS} == {10.0 * i + v for i, v in ITEMS}


def test_where_not_one_image_fits_the_error_names_no_key_of_a_step(tmp_path):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fill_with(tmp_path, Small(0), changes={"batch_size": 2})
    (note,) = caught.value.__notes__
    assert "smaller weights" in note
    assert "batch_size" not in note


def test_another_error_of_a_batch_is_not_taken_for_memory(tmp_path):
    def fail(images, frames):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fill_with(tmp_path, fail, changes={"batch_size": 8})


def test_a_stale_store_is_noticed_and_rebuilt(tmp_path, caplog):
    fill_with(tmp_path, Encoder(), ITEMS[2:])
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        filled = fill_with(tmp_path, Encoder(scale=1.05), ITEMS[2:])
    assert filled.made == 8
    assert len(caplog.messages) == 1
    assert "relative error 0.048" in caplog.messages[0]
    assert "8 entries of this run are removed and computed again" in caplog.messages[0]
    assert finder(tmp_path, filled)(4, 0).unique().item() == pytest.approx(42.0, rel=1e-3)


def test_rounding_to_fp16_is_not_taken_for_staleness(tmp_path):
    weights = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def encode(images, frames):
        return torch.nn.functional.conv2d(images, weights).expand(-1, -1, 2, 2)

    filled, store = fill_with(tmp_path, encode, ITEMS[2:]), store_at(tmp_path)
    assert verify_sample(store, precompute(encode), filled.keys, n=8)
    assert not verify_sample(store, precompute(lambda i, f: 1.02 * encode(i, f)), filled.keys, n=1)
    assert len(store) == 0


def test_another_embedding_size_is_stale(tmp_path):
    filled = fill_with(tmp_path, Encoder())
    other = precompute(lambda images, frames: torch.ones(1, 4, 3, 3))
    assert not verify_sample(store_at(tmp_path), other, filled.keys)


def test_a_damaged_shard_is_rebuilt_with_a_notice(tmp_path, caplog):
    fill_with(tmp_path, Encoder())
    (path,) = store_at(tmp_path).folder.glob("shard-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "medsam_tune"):
        filled = fill_with(tmp_path, Encoder())
    assert filled.made == 1
    assert "checksum" in caplog.text
    find = finder(tmp_path, filled)
    assert {find(*item).unique().item() for item in ITEMS} == {10.0 * i + v for i, v in ITEMS}


def test_an_augmentation_without_a_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must return the same pixels .* item \(0, 0\)\. Seed its augmentation"):
        fill_with(tmp_path, Encoder(), load=lambda item: (torch.rand(3, 8, 8), FRAME))


def test_computing_keeps_no_graph_and_gradients_flow_through_what_is_looked_up(tmp_path):
    convolution = torch.nn.Conv2d(3, 4, 4, stride=4)
    filled = fill_with(tmp_path, lambda images, frames: convolution(images))
    head = torch.nn.Conv2d(4, 1, 1)
    head(finder(tmp_path, filled)(1, 1)[None]).sum().backward()
    assert head.weight.grad.abs().sum() > 0
    assert convolution.weight.grad is None


def test_the_bar_appears_only_when_it_takes_long_on_a_terminal_of_rank_0(tmp_path, capsys, monkeypatch):
    fill_with(tmp_path / "quick", Encoder())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(bar, "_SILENT_SECONDS", -1.0)
    fill_with(tmp_path / "one", Encoder(), rank=1, world=2)
    fill_with(tmp_path / "none", Encoder(), progress=False)
    fill_with(tmp_path / "nobody watches", Encoder())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fill_with(tmp_path / "slow", Encoder())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Encoding images" in shown.err
    assert "10/10" in shown.err
