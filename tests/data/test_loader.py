import pytest

from medsam_tune.data.loader import ResumableLoader
from medsam_tune.data.sampler import EpochSampler


class Names:
    """Give back what the sampler drew."""

    def __len__(self):
        return 10

    def __getitem__(self, draw):
        return tuple(draw)


def make_loader(n_items=10, **settings):
    return ResumableLoader(
        Names(), batch_size=3, sampler=EpochSampler(n_items, seed=1), collate_fn=lambda items: items, **settings
    )


def state_after(n_batches, epoch):
    loader = make_loader()
    loader.sampler.set_epoch(epoch)
    batches = iter(loader)
    for _ in range(n_batches):
        next(batches)
    return loader.state_dict()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumed_loader_goes_on_with_the_next_batch_of_that_epoch(num_workers):
    whole = make_loader()
    whole.sampler.set_epoch(4)
    expected = list(whole)
    resumed = make_loader(num_workers=num_workers)
    resumed.load_state_dict(state_after(2, epoch=4))
    assert list(resumed) == expected[2:]
    assert list(resumed) == expected


def test_loader_resumed_after_a_whole_epoch_begins_anew():
    loader = make_loader()
    loader.load_state_dict(state_after(4, epoch=4))
    assert len(list(loader)) == 4


def test_interrupted_twice_it_still_counts_from_the_beginning_of_the_epoch():
    loader = make_loader()
    loader.load_state_dict(state_after(1, epoch=2))
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"epoch": 2, "batches": 2}
