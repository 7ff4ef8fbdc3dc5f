import csv
import os
import signal

import pytest
import torch

from medsam_tune import tuners
from medsam_tune.cli import main
from medsam_tune.training.callbacks import RandomState
from medsam_tune.training.module import TuningModule
from medsam_tune.tuners import PeftTuner
from medsam_tune.tuners.base import Tuner
from tests.processes import start_command, status_of
from tests.training.tiny_runs import STEPS_PER_EPOCH, only_run, run, weights_of

FAST = ("--run.baselines=false", "--run.report=false")


def die_at_a_step():
    original = TuningModule.training_step

    def training_step(self, *arguments):
        if self.global_step == STEPS_PER_EPOCH + 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    TuningModule.training_step = training_step


class PowerCut(BaseException):
    """What nothing catches."""


def cut_power(monkeypatch, *, batch):
    """Let the training step of the batch with this running number never happen."""
    original, seen = TuningModule.training_step, []

    def training_step(self, *arguments):
        seen.append(1)
        if len(seen) == batch + 1:
            raise PowerCut
        return original(self, *arguments)

    monkeypatch.setattr(TuningModule, "training_step", training_step)


def rows_of(run_folder):
    path = run_folder.metrics_csv
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def interrupted_and_resumed(monkeypatch, *overrides, batch):
    with monkeypatch.context() as patch:
        cut_power(patch, batch=batch)
        with pytest.raises(PowerCut):
            run(*overrides)
    before = rows_of(only_run())
    stopped_at = torch.load(only_run().last_checkpoint, weights_only=True)["global_step"]
    assert run(*overrides, "--ckpt_path=last") == 0
    return only_run(), before, stopped_at


@pytest.mark.parametrize(
    ("batch", "settings", "steps_saved"),
    [
        (3, ("--run.save_every_n_steps=2",), 2),
        (STEPS_PER_EPOCH, ("--run.save_every_n_steps=50",), STEPS_PER_EPOCH),
        (STEPS_PER_EPOCH + 3, ("--run.save_every_n_steps=1", "--trainer.accumulate_grad_batches=2"), 4),
    ],
    ids=["mid epoch, a step after the checkpoint", "first step of an epoch", "between two accumulated batches"],
)
def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(workplace, monkeypatch, batch, settings, steps_saved):
    augmented = ("--data.augmentation={'horizontal_flip': 0.5}", "--data.views=2", "--model.schedule=cosine")
    overrides = (*FAST, *settings, *augmented)
    assert run(*overrides, "--run.folder=whole") == 0
    resumed, _, stopped_at = interrupted_and_resumed(monkeypatch, *overrides, batch=batch)
    assert stopped_at == steps_saved
    for name in ("last.ckpt", "best.ckpt"):
        expected = weights_of(only_run("whole").checkpoints / name)
        found = weights_of(resumed.checkpoints / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    assert resumed.test_cases.read_text() == only_run("whole").test_cases.read_text()


def test_resumed_run_keeps_its_folder_its_splits_and_its_earlier_rows(workplace, monkeypatch):
    overrides = (*FAST, "--run.save_every_n_steps=2", "--trainer.log_every_n_steps=1")
    resumed, before, _ = interrupted_and_resumed(monkeypatch, *overrides, batch=STEPS_PER_EPOCH + 3)
    after = rows_of(resumed)
    assert before
    assert [row["step"] for row in after[: len(before)]] == [row["step"] for row in before]
    assert [row["epoch"] for row in after if row["val/dice"]] == ["0", "1"]


def test_each_step_stands_once_in_the_metrics_of_a_run_that_was_killed_after_its_checkpoint(workplace, monkeypatch):
    overrides = (*FAST, "--run.save_every_n_steps=2", "--trainer.log_every_n_steps=1")
    assert run(*overrides, "--run.folder=whole") == 0
    resumed, before, stopped_at = interrupted_and_resumed(monkeypatch, *overrides, batch=STEPS_PER_EPOCH + 3)
    assert max(int(row["step"]) for row in before) >= stopped_at

    def logged(run_folder):
        return [(row["step"], name) for row in rows_of(run_folder) for name, value in row.items() if value and name != "epoch"]

    assert sorted(logged(resumed)) == sorted(logged(only_run("whole")))


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_resume_with_other_batches_in_the_middle_of_an_epoch_skips_no_validation(workplace, monkeypatch, batch_size):
    with monkeypatch.context() as patch:
        cut_power(patch, batch=STEPS_PER_EPOCH - 1)
        with pytest.raises(PowerCut):
            run(*FAST, "--run.save_every_n_steps=1", "--trainer.max_epochs=1")
    assert run(*FAST, "--trainer.max_epochs=1", f"--data.batch_size={batch_size}", "--ckpt_path=last") == 0
    assert [row["epoch"] for row in rows_of(only_run()) if row["val/dice"]] == ["0"]
    # 10 of 11 images were seen in 5 steps: one batch is left whatever its size, or two where the last image stands alone.
    assert torch.load(only_run().last_checkpoint, weights_only=True)["global_step"] == 6


def test_run_that_is_further_than_asked_for_is_refused_and_left_alone(workplace, capsys):
    assert run(*FAST) == 0
    before = only_run().metrics_csv.read_bytes()
    assert run(*FAST, "--trainer.max_epochs=1", "--ckpt_path=last") == 2
    assert "trainer.max_epochs: is 1, but the run to continue has finished 2 epochs. Raise it" in capsys.readouterr().err
    assert only_run().metrics_csv.read_bytes() == before
    assert not only_run().resumes.exists()


def test_checkpoint_of_an_earlier_version_is_not_gone_on_from_but_tested(workplace, capsys):
    assert run(*FAST) == 0
    path = only_run().last_checkpoint
    old = torch.load(path, weights_only=True)
    for name in ("train_means", "images_per_batch", "tuner"):
        del old[name]
    torch.save(old, path)
    assert run(*FAST, "--trainer.max_epochs=3", "--ckpt_path=last") == 2
    assert "last.ckpt: holds no state of a training of this version" in capsys.readouterr().err
    assert main(["test", "--config=tiny.yaml", f"--ckpt_path={path}", "--run.folder=tests"]) == 0


def test_leftovers_of_a_killed_process_are_removed_on_continuing(workplace):
    assert run(*FAST) == 0
    leftovers = [only_run().checkpoints / ".partial-1", only_run().path / ".partial-2" / "export.json"]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("cut short")
    assert run(*FAST, "--ckpt_path=last") == 0
    assert not list(only_run().path.rglob(".partial*"))


def test_row_that_a_kill_cut_short_is_dropped_on_continuing(workplace):
    assert run(*FAST) == 0
    before = rows_of(only_run())
    with only_run().metrics_csv.open("a") as file:
        file.write("1,1")
    assert run(*FAST, "--ckpt_path=last") == 0
    assert rows_of(only_run()) == before


def test_finished_run_goes_on_when_more_epochs_are_asked_for(workplace):
    assert run(*FAST) == 0
    assert run(*FAST, "--trainer.max_epochs=3", "--ckpt_path=last") == 0
    assert torch.load(only_run().last_checkpoint, weights_only=True)["global_step"] == 3 * STEPS_PER_EPOCH


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_weights(workplace):
    overrides = [*FAST, "--run.save_every_n_steps=2", "--trainer.max_epochs=2"]
    killed = start_command("run", "tiny.yaml", *overrides, folder=workplace, before=die_at_a_step)
    assert status_of(killed) == -signal.SIGKILL, (workplace / "log.txt").read_text()
    assert not only_run().summary.exists()
    assert run(*overrides, "--ckpt_path=last") == 0
    resumed = only_run()
    assert run(*overrides, "--run.folder=whole") == 0
    expected = weights_of(only_run("whole").last_checkpoint)
    found = weights_of(resumed.last_checkpoint)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list(resumed.path.rglob(".partial*"))


def test_interrupt_says_how_to_go_on_and_ends_with_130(workplace, monkeypatch, capsys):
    original = TuningModule.training_step

    def training_step(self, *arguments):
        if self.global_step == STEPS_PER_EPOCH + 1:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TuningModule, "training_step", training_step)
        assert run("--data.batch_size=2", *FAST) == 130
    said = capsys.readouterr().out
    assert f"Stopped at step {STEPS_PER_EPOCH + 1}" in said
    assert "medsam-tune run tiny.yaml --data.batch_size=2 --run.baselines=false --run.report=false --ckpt_path=last" in said
    assert run(*FAST, "--ckpt_path=last") == 0


def test_interrupt_before_the_first_checkpoint_says_that_there_is_none(workplace, monkeypatch, capsys):
    def training_step(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(TuningModule, "training_step", training_step)
    assert run(*FAST) == 130
    assert "no checkpoint was written yet" in capsys.readouterr().out


def test_random_state_continues_where_the_checkpoint_was_written(tmp_path):
    import random

    state = RandomState()
    torch.rand(3)
    torch.save(state.state_dict(), tmp_path / "state")
    expected = torch.rand(2), random.random()
    torch.rand(5)
    fresh = RandomState()
    fresh.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    fresh.on_train_batch_start(None, None, None, 0)
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]
    fresh.on_train_batch_start(None, None, None, 1)
    assert not torch.equal(torch.rand(2), expected[0])


AFTER_STEP = {
    PeftTuner: (
        "--model.tuner=medsam_tune.tuners.PeftTuner",
        "--model.tuner.config=peft.AdaLoraConfig",
        "--model.tuner.config.init_r=8",
        "--model.tuner.config.target_r=3",
        "--model.tuner.config.total_step=12",
        "--model.tuner.config.tinit=2",
        "--model.tuner.config.tfinal=3",
        "--model.tuner.parts=[mask_decoder.attention]",
    )
}


def test_every_tuner_that_acts_after_a_step_is_resumed_in_a_test():
    found = [tuner for name in tuners.__all__ if isinstance(tuner := getattr(tuners, name), type) and issubclass(tuner, Tuner)]
    acting = {parent for tuner in found for parent in tuner.__mro__ if "after_step" in vars(parent)}
    assert acting - {Tuner} == set(AFTER_STEP)


@pytest.mark.parametrize("batch", [7, 9, 11], ids=["while ranks are weighed", "while they go", "after they went"])
@pytest.mark.parametrize("tuner", AFTER_STEP)
def test_interrupted_tuner_goes_on_with_what_it_kept_from_step_to_step(workplace, monkeypatch, tuner, batch):
    overrides = (*FAST, *AFTER_STEP[tuner], "--run.save_every_n_steps=1")
    assert run(*overrides, "--run.folder=whole") == 0
    resumed, _, _ = interrupted_and_resumed(monkeypatch, *overrides, batch=batch)
    expected, found = (torch.load(folder.last_checkpoint, weights_only=True) for folder in (only_run("whole"), resumed))
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(found["tuner"], expected["tuner"], rtol=0, atol=0)
    # Three of eight ranks are left a layer, wherever they are.
    ranks = [value != 0 for name, value in found["state_dict"].items() if "lora_E" in name]
    assert sum(int(kept.sum()) for kept in ranks) == 3 * len(ranks)
