import csv
from types import SimpleNamespace

from medsam_tune.training.epoch_clock import EpochClock


def rows(path):
    return [(row["epoch"], row["step"]) for row in csv.DictReader(path.read_text().splitlines())]


def train(clock, *epochs, first_batch=0, rank_zero=True):
    for epoch in epochs:
        trainer = SimpleNamespace(is_global_zero=rank_zero, current_epoch=epoch, global_step=5 * (epoch + 1))
        for batch in range(first_batch, 3):
            clock.on_train_batch_start(trainer, None, None, batch)
        clock.on_train_epoch_end(trainer, None)


def test_each_epoch_has_a_row(tmp_path):
    train(EpochClock(tmp_path / "epochs.csv"), 0, 1)
    assert rows(tmp_path / "epochs.csv") == [("0", "4"), ("1", "9")]
    assert all(float(row["seconds"]) >= 0 for row in csv.DictReader((tmp_path / "epochs.csv").read_text().splitlines()))


def test_a_continued_run_goes_on_and_writes_no_epoch_twice(tmp_path):
    train(EpochClock(tmp_path / "epochs.csv"), 0, 1, 2)
    train(EpochClock(tmp_path / "epochs.csv"), 1, 2)
    assert rows(tmp_path / "epochs.csv") == [("0", "4"), ("1", "9"), ("2", "14")]


def test_an_epoch_resumed_in_its_middle_has_no_time(tmp_path):
    clock = EpochClock(tmp_path / "epochs.csv")
    train(clock, 3, first_batch=1)
    assert not (tmp_path / "epochs.csv").exists()
    train(clock, 4)
    assert rows(tmp_path / "epochs.csv") == [("4", "24")]


def test_only_the_first_process_writes(tmp_path):
    train(EpochClock(tmp_path / "epochs.csv"), 0, rank_zero=False)
    assert not (tmp_path / "epochs.csv").exists()
