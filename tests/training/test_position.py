import copy

import pytest

from medsam_tune.training.position import cut_anew, settle, validation_pending


def counters(ready, started, processed, completed):
    return {"ready": ready, "started": started, "processed": processed, "completed": completed}


def fit_loop(epoch=(2, 2, 1, 1), batch=(4, 4, 4, 3), *, is_last_batch=False):
    """Return Lightning's counters after the fourth batch of the second epoch."""
    return {
        "state_dict": {"combined_loader": [{"epoch": 1, "batches": batch[0]}]},
        "epoch_progress": {"total": counters(*epoch), "current": counters(*epoch)},
        "epoch_loop.state_dict": {"_batches_that_stepped": 9},
        "epoch_loop.batch_progress": {
            "total": counters(*(6 + number for number in batch)),
            "current": counters(*batch),
            "is_last_batch": is_last_batch,
        },
        "epoch_loop.val_loop.batch_progress": {
            "total": counters(2, 2, 2, 2),
            "current": counters(2, 2, 2, 2),
            "is_last_batch": True,
        },
    }


@pytest.mark.parametrize("epoch", [(2, 2, 1, 1), (2, 2, 2, 1), (2, 2, 2, 2)], ids=["mid epoch", "epoch end", "training end"])
def test_moments_that_lightning_knows_are_left_alone(epoch):
    state = fit_loop(epoch)
    before = copy.deepcopy(state)
    settle(state, "hook")
    assert state == before


def test_start_of_an_epoch_is_written_as_the_end_of_the_one_before():
    state = fit_loop(epoch=(2, 1, 1, 1))
    settle(state, "hook")
    assert state["epoch_progress"] == {"total": counters(1, 1, 1, 1), "current": counters(1, 1, 1, 1)}


def test_pause_between_batches_is_written_as_the_end_of_a_batch():
    state = fit_loop(batch=(4, 4, 4, 4))
    settle(state, "between batches")
    assert state["epoch_loop.batch_progress"]["total"] == counters(10, 10, 10, 9)
    assert state["epoch_loop.batch_progress"]["current"] == counters(4, 4, 4, 3)
    assert state["epoch_loop.state_dict"] == {"_batches_that_stepped": 8}


def test_pause_after_an_epoch_stays_the_end_of_that_epoch():
    state = fit_loop(epoch=(2, 2, 2, 2), batch=(6, 6, 6, 6))
    before = copy.deepcopy(state)
    settle(state, "between batches")
    assert state == before


def test_validation_that_had_begun_is_asked_for_again():
    state = fit_loop(batch=(6, 6, 6, 6), is_last_batch=True)
    assert not validation_pending(state)
    settle(state, "in validation")
    assert validation_pending(state)


@pytest.mark.parametrize(
    ("done", "images", "n_batches", "accumulate", "expected"),
    [
        (4, (2, 2), 6, 1, 4),
        (4, (2, 4), 3, 1, 2),
        (5, (2, 4), 3, 1, 2),
        (4, (2, 1), 12, 1, 8),
        (4, (2, 2), 6, 3, 3),
        (1, (2, 8), 2, 1, 0),
        (5, (4, 2), 6, 1, 5),
        (5, (4, 2), 6, 2, 4),
    ],
    ids=["as before", "1 to 2 processes", "odd", "2 to 1", "other accumulation", "less than a batch", "fewer batches", "both"],
)
def test_position_counts_the_same_images_in_batches_of_another_size(done, images, n_batches, accumulate, expected):
    state = fit_loop(batch=(done, done, done, done - 1))
    cut_anew(state, images=images, n_batches=n_batches, accumulate=accumulate)
    assert state["epoch_loop.batch_progress"]["current"] == counters(expected, expected, expected, expected - 1)
    assert state["state_dict"]["combined_loader"][0]["batches"] == expected
    # A batch is left, after which the epoch is validated.
    assert expected < n_batches


def test_validation_at_the_end_of_an_epoch_stays_there_when_batches_change():
    state = fit_loop(batch=(6, 6, 6, 6), is_last_batch=True)
    settle(state, "in validation")
    cut_anew(state, images=(2, 4), n_batches=3, accumulate=1)
    assert state["epoch_loop.batch_progress"]["current"] == counters(3, 3, 3, 3)
    assert state["epoch_loop.batch_progress"]["is_last_batch"]


def test_finished_epoch_needs_no_new_position():
    state = fit_loop(epoch=(2, 2, 2, 2), batch=(6, 6, 6, 6), is_last_batch=True)
    before = copy.deepcopy(state)
    cut_anew(state, images=(2, 4), n_batches=3, accumulate=1)
    assert state == before
