"""Runs that are killed with SIGKILL, at named and at random moments, and end as the run that nobody killed."""

import random
import shutil
import signal

import pytest
import torch

from tests.training.deadly import Deadly
from tests.training.killed import differences, go_on, killed_at_the_disk, newest, recorded
from tests.training.tiny_runs import write_workplace

pytestmark = pytest.mark.slow

KILLED = -signal.SIGKILL
# 6 batches an epoch, so 3 optimizer steps; checkpoints at steps 2 and 4, after each validation and at each epoch's end.
SETTINGS = (
    "--run.baselines=false",
    "--run.report=false",
    "--run.calibration=false",
    "--run.save_every_n_steps=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accumulate_grad_batches=2",
    "--data.augmentation={'horizontal_flip': 0.5}",
    "--data.views=2",
    "--model.schedule=cosine",
)
MODULE = "medsam_tune.training.module:TuningModule"
SAVING = "medsam_tune.training.saving"
NAMED = {
    "first batch, no checkpoint yet": (f"{MODULE}.training_step", 1),
    "second half of an accumulation": (f"{MODULE}.training_step", 10),
    "optimizer step": (f"{MODULE}.optimizer_step", 5),
    "writing the first checkpoint": ("medsam_tune.training.checkpoint:AtomicCheckpointIO.save_checkpoint", 1),
    "renaming the first checkpoint": ("medsam_tune.files:os.replace", 4),
    "renaming the first best checkpoint": ("medsam_tune.files:os.replace", 6),
    "validation before the start": (f"{MODULE}.validation_step", 1),
    "first validation": (f"{MODULE}.validation_step", 2),
    "last validation": (f"{MODULE}.validation_step", 3),
    "between validation and best": (f"{SAVING}:BestCheckpoint.on_validation_end", 2),
    "between best and last": (f"{SAVING}:LastCheckpoint.on_validation_end", 2),
    "between best and last of the last epoch": (f"{SAVING}:LastCheckpoint.on_train_end", 1),
    "adding a column to metrics.csv": ("medsam_tune.training.loggers:_write_rows", 1),
    "renaming metrics.csv": ("medsam_tune.files:os.replace", 5),
    "row of the epoch's means": ("medsam_tune.training.callbacks:TrainingRows.on_train_epoch_end", 1),
    "test": (f"{MODULE}.test_step", 2),
    "export": ("medsam_tune.runs.run:export_stage", 1),
    "end": ("medsam_tune.runs.run:closing", 1),
}


# Every validation counts as one without progress, so the rate falls after each epoch but the first.
PLATEAU = (
    "--model.schedule=constant",
    "--model.scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
    "--model.scheduler.monitor=val/dice",
    "--model.scheduler.mode=max",
    "--model.scheduler.patience=0",
    "--model.scheduler.threshold=9",
    "--trainer.max_epochs=3",
)


@pytest.fixture(scope="module")
def deadly():
    process = Deadly()
    yield process
    process.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory, deadly):
    """Return a workplace with one run that nobody killed, and the number of calls in its training."""
    folder = tmp_path_factory.mktemp("kills")
    write_workplace(folder)
    assert deadly.run(*SETTINGS, "--run.folder=warm", folder=folder, at="warm") == 0
    assert deadly.run(*SETTINGS, "--run.folder=whole", folder=folder, at="any", call=-1) == 0
    return folder, int((folder / "calls.txt").read_text())


def assert_same(found, expected):
    for name in ("rows", "schedulers", "test", "leftovers"):
        assert found[name] == expected[name], name
    for name in ("best", "last", "export"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def fresh(place):
    """Return the workplace and an empty folder of runs in it."""
    root = place[0] / "killed"
    shutil.rmtree(root, ignore_errors=True)
    return place[0], root


@pytest.mark.parametrize("moment", NAMED)
def test_run_killed_at_a_named_moment_ends_as_the_one_that_was_not(fresh, deadly, moment):
    folder, root = fresh
    at, call = NAMED[moment]
    assert go_on(deadly, folder, root, *SETTINGS, at=at, call=call) == KILLED
    assert go_on(deadly, folder, root, *SETTINGS) == 0
    assert_same(recorded(newest(root)), recorded(newest(folder / "whole")))


def test_run_killed_twice_in_the_middle_of_an_accumulation_ends_as_the_one_that_was_not(fresh, deadly):
    folder, root = fresh
    for batch in (10, 2, 1):
        assert go_on(deadly, folder, root, *SETTINGS, at=f"{MODULE}.training_step", call=batch) == KILLED
    assert go_on(deadly, folder, root, *SETTINGS) == 0
    assert_same(recorded(newest(root)), recorded(newest(folder / "whole")))


@pytest.mark.parametrize("number", range(10))
def test_run_killed_at_a_random_moment_ends_as_the_one_that_was_not(fresh, place, deadly, number):
    folder, root = fresh
    draw = random.Random(number)
    assert go_on(deadly, folder, root, *SETTINGS, at="any", call=draw.randint(1, place[1])) == KILLED
    if number % 4 == 0:
        # The second kill comes at once, so that it falls into what the first one left to do.
        assert go_on(deadly, folder, root, *SETTINGS, at="any", call=draw.randint(1, 2000)) in {KILLED, 0}
    assert go_on(deadly, folder, root, *SETTINGS) == 0
    assert_same(recorded(newest(root)), recorded(newest(folder / "whole")))


@pytest.fixture(scope="module")
def changes(place, deadly):
    """Return how often a run with an empty cache changes the disk."""
    folder, root = place[0], place[0] / "counted"
    shutil.rmtree(folder / "cache")
    assert go_on(deadly, folder, root, *SETTINGS, at="disk", call=-1) == 0
    return int((folder / "calls.txt").read_text())


@pytest.mark.parametrize("number", range(20))
def test_run_killed_before_a_random_change_of_the_disk_loses_nothing_and_leaves_nothing(fresh, changes, deadly, number):
    folder, root = fresh
    call = random.Random(number).randint(1, changes)
    statuses, run, left = killed_at_the_disk(deadly, folder, root, SETTINGS, call)
    assert statuses == (KILLED, 0)
    assert left == []
    assert differences(recorded(run), recorded(newest(folder / "whole"))) == []


@pytest.mark.parametrize(
    ("settings", "at", "call"),
    [
        (("--trainer.max_epochs=1",), f"{MODULE}.validation_step", 2),
        (("--trainer.val_check_interval=3",), f"{MODULE}.training_step", 6),
        (("--trainer.val_check_interval=2", "--run.save_every_n_steps=1"), f"{SAVING}:LastCheckpoint.on_validation_end", 2),
        (("--trainer.max_steps=4",), f"{MODULE}.validation_step", 3),
        (("--trainer.max_steps=4", "--trainer.max_epochs=20"), f"{MODULE}.test_step", 1),
        (("--trainer.max_steps=6", "--trainer.max_epochs=20"), "medsam_tune.training.callbacks:_log", 4),
        (("--trainer.check_val_every_n_epoch=3",), f"{MODULE}.validation_step", 2),
        (("--run.early_stopping_patience=1", "--trainer.max_epochs=9"), f"{MODULE}.test_step", 1),
        (PLATEAU, f"{MODULE}.training_step", 12),
    ],
    ids=[
        "the only validation",
        "after a validation in the middle of an accumulation",
        "at a validation within an epoch",
        "in the validation at the last step",
        "after the last step, in the middle of an epoch",
        "with steps to go, at the end of an epoch",
        "in the validation at the end of a training without another",
        "after it stopped early",
        "in an epoch after which the learning rate falls",
    ],
)
def test_killed_run_ends_as_the_one_that_was_not_whatever_ends_it(fresh, deadly, settings, at, call):
    folder, root = fresh
    shutil.rmtree(folder / "other", ignore_errors=True)
    words = (*SETTINGS, *settings)
    assert go_on(deadly, folder, folder / "other", *words) == 0
    assert go_on(deadly, folder, root, *words, at=at, call=call) == KILLED
    assert go_on(deadly, folder, root, *words) == 0
    assert_same(recorded(newest(root)), recorded(newest(folder / "other")))


@pytest.mark.parametrize(
    ("at", "call", "steps"),
    [("training_step", 9, 5), ("training_step", 10, 5), ("validation_step", 2, 3), ("on_validation_epoch_end", 2, 3)],
    ids=["first half of an accumulation", "second half", "validation", "end of a validation"],
)
def test_sigterm_ends_training_with_a_checkpoint_and_143(fresh, deadly, at, call, steps):
    folder, root = fresh
    words = (*SETTINGS, "--run.save_every_n_steps=1000")
    assert go_on(deadly, folder, root, *words, at=f"{MODULE}.{at}", call=call, by=signal.SIGTERM) == 143
    assert torch.load(newest(root).last_checkpoint, weights_only=True)["global_step"] == steps
    assert (folder / "log.txt").read_text().split("Stopped at step")[-1].count("--ckpt_path=last") == 1
    assert not newest(root).summary.exists()
    assert go_on(deadly, folder, root, *words) == 0
    assert_same(recorded(newest(root)), recorded(newest(folder / "whole")))


def test_sigterm_in_the_test_ends_it_with_143(fresh, deadly):
    folder, root = fresh
    assert go_on(deadly, folder, root, *SETTINGS, at=f"{MODULE}.test_step", by=signal.SIGTERM) == 143
    assert not newest(root).summary.exists()
