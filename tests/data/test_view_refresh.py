"""A view that is drawn anew is another fixed view: chosen by seed, image and epoch, and known before the training."""

import pytest

from medsam_tune.data.dataset import DatasetSettings, SegmentationDataset, Views
from medsam_tune.data.sampler import Draw
from medsam_tune.data.setting_checks import check_refresh
from medsam_tune.data.transforms import Augmentation
from medsam_tune.data.view_refresh import is_refreshed, shown_view, shown_views
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import InputRule

EPOCHS = 40


def schedule(name, share, seed=0, n_views=4):
    return [shown_view(seed, name, epoch, n_views=n_views, share=share) for epoch in range(EPOCHS)]


def test_no_share_is_the_plain_cycle_and_the_whole_share_never_repeats_but_view_0():
    assert schedule("a", 0.0) == [epoch % 4 for epoch in range(EPOCHS)]
    assert schedule("a", 1.0) == [0 if epoch % 4 == 0 else epoch for epoch in range(EPOCHS)]


def test_a_view_stays_until_it_is_drawn_anew_and_its_place_in_the_cycle_stays_too():
    for name in "abcdef":
        views = schedule(name, 0.3)
        for epoch in range(4, EPOCHS):
            again = epoch % 4 != 0 and is_refreshed(0, name, epoch, 0.3)
            assert views[epoch] == views[epoch - 4] + 4 * again
            assert views[epoch] % 4 == epoch % 4


def test_the_share_of_images_is_drawn_anew_and_others_by_another_seed_or_epoch():
    drawn = {
        (seed, epoch): {n for n in range(4000) if is_refreshed(seed, f"i{n}", epoch, 0.25)}
        for seed in (0, 1)
        for epoch in (5, 6)
    }
    # Four standard deviations of 4000 draws are 110.
    assert all(abs(len(names) - 1000) < 110 for names in drawn.values())
    assert len({frozenset(names) for names in drawn.values()}) == 4


def test_views_of_a_training_are_known_beforehand_each_once():
    for name in "abc":
        known = list(shown_views(0, name, EPOCHS, n_views=4, share=0.3))
        assert len(known) == len(set(known))
        assert set(known) == set(schedule(name, 0.3))


def test_a_longer_training_adds_views_and_changes_none():
    short, long = (list(shown_views(0, "a", epochs, n_views=4, share=0.5)) for epochs in (10, 30))
    assert long[: len(short)] == short
    assert len(long) > len(short)


@pytest.mark.parametrize(
    ("share", "views", "text"), [(1.5, 4, "from 0 to 1, got 1.5"), (-0.1, 4, "got -0.1"), (0.5, 1, "needs data.views above 1")]
)
def test_shares_that_are_none_are_refused(share, views, text):
    with pytest.raises(RecipeError, match=f"data.views_refresh: .*{text}"):
        check_refresh(share, views)


def dataset_of(source, **settings):
    source.open(None)
    names = {name: number for number, name in enumerate(sorted(set(source.case_ids())))}
    augmentation = Augmentation(horizontal_flip=0.5, degrees=20.0)
    shown = DatasetSettings(InputRule(side=32), "binary", names, training=True, n_views=3, **settings)
    return SegmentationDataset(Views(source, augmentation, seed=1), range(len(source)), shown)


def test_items_show_the_view_of_the_schedule_and_ask_the_cache_for_it(array_source):
    dataset = dataset_of(array_source(4), views_refresh=0.6)
    dataset.embeddings = lambda index, view: (index, view)
    names = array_source(4).image_ids()
    for epoch in range(9):
        for index in range(4):
            item = dataset[Draw(epoch, index)]
            assert item.image_embeddings == (index, item.sample.view)
            assert item.sample.view == shown_view(1, names[index], epoch, n_views=3, share=0.6)


def test_slices_of_a_chunk_are_drawn_anew_together(array_source):
    dataset = dataset_of(array_source(4), views_refresh=0.5)
    dataset.views = Views(dataset.views.source, dataset.views.augmentation, 1, moving_with={0: "first", 1: "first"})
    assert [dataset.view_of(epoch, 0) for epoch in range(30)] == [dataset.view_of(epoch, 1) for epoch in range(30)]
    assert [dataset.view_of(epoch, 0) for epoch in range(30)] != [dataset.view_of(epoch, 2) for epoch in range(30)]


def test_a_training_of_unknown_length_is_refused(array_source):
    dataset = dataset_of(array_source(4), views_refresh=0.5)
    with pytest.raises(RecipeError, match=r"data.views_refresh: .* Set trainer.max_epochs or trainer.max_steps"):
        next(dataset.views_until(None, 0))
    assert list(dataset_of(array_source(4)).views_until(None, 0)) == [0, 1, 2]
