from collections import Counter

import pytest

from medsam_tune.data import Draw, EpochSampler


def items(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [draw.item for draw in sampler]


def test_epoch_is_a_permutation_that_only_seed_and_epoch_decide():
    first = items(EpochSampler(20, seed=3), epoch=4)
    assert sorted(first) == list(range(20))
    assert first == items(EpochSampler(20, seed=3), epoch=4)
    assert first != items(EpochSampler(20, seed=3), epoch=5)
    assert first != items(EpochSampler(20, seed=4), epoch=4)


def test_without_shuffling_the_order_is_kept():
    assert list(EpochSampler(3, shuffle=False)) == [Draw(0, 0), Draw(0, 1), Draw(0, 2)]


@pytest.mark.parametrize(("n_items", "world"), [(10, 2), (7, 2), (7, 4), (3, 4), (1, 3)])
def test_ranks_get_equal_numbers_and_together_see_every_item(n_items, world):
    shares = [items(EpochSampler(n_items, seed=1, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(EpochSampler(n_items, world=world))}
    seen = Counter(item for share in shares for item in share)
    assert set(seen) == set(range(n_items))
    assert sum(seen.values()) - n_items < world


def test_ranks_interleave_the_order_of_a_single_process():
    alone = items(EpochSampler(8, seed=2))
    shares = [items(EpochSampler(8, seed=2, rank=rank, world=2)) for rank in range(2)]
    assert [item for pair in zip(*shares, strict=True) for item in pair] == alone


def test_skip_leaves_out_the_beginning_of_one_epoch_only():
    sampler = EpochSampler(6, seed=5)
    whole = items(sampler, epoch=1)
    sampler.skip(4)
    assert len(sampler) == 6
    assert items(sampler, epoch=1) == whole[4:]
    assert items(sampler, epoch=1) == whole
