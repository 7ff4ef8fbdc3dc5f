import csv
import json
import math

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau

from medsam_tune.errors import RecipeError
from medsam_tune.training.module import TuningModule
from medsam_tune.training.schedule import learning_rate_factor, planned_steps, scheduler_config, step_schedule
from tests.training.tiny_runs import STEPS_PER_EPOCH, build, only_run, run


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "constant", 0.25),  # the first of four warm-up steps
        (3, "constant", 1.0),
        (100, "constant", 1.0),
        (4, "cosine", 1.0),
        (8, "cosine", 0.5 * (1 + math.sqrt(0.5))),  # a quarter of the 16 steps after warm-up: cos 45 degrees
        (12, "cosine", 0.5),
        (20, "cosine", 0.0),
    ],
)
def test_factor_follows_the_curve(step, schedule, expected):
    assert learning_rate_factor(step, schedule, warmup_steps=4, total_steps=20) == pytest.approx(expected, abs=1e-7)


def test_poly_is_the_learning_rate_that_samed_trains_with():
    """The loop of hitachinsk/SAMed @ e351840, trainer.py, with the rate that the optimizer has in each step noted down."""
    base, period, iterations = 0.005, 5, 84
    rate, used = base / period, []
    for iteration in range(iterations):
        used.append(rate)
        if iteration < period:
            rate = base * (iteration + 1) / period
        else:
            rate = base * (1.0 - (iteration - period) / iterations) ** 0.9
    ours = [base * learning_rate_factor(step, "poly", warmup_steps=period, total_steps=iterations) for step in range(84)]
    assert ours == pytest.approx(used)
    assert [rate / base for rate in ours[:7]] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert ours[-1] / base == pytest.approx((7 / 84) ** 0.9)


def test_poly_without_warm_up_starts_at_the_peak_and_never_turns_negative():
    factors = [learning_rate_factor(step, "poly", warmup_steps=0, total_steps=4) for step in (0, 1, 2, 9)]
    assert factors == pytest.approx([1.0, 1.0, 0.75**0.9, 0.0])


def test_schedule_moves_the_optimizers_learning_rate_and_ends_at_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = step_schedule(optimizer, "cosine", warmup_steps=2, total_steps=6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.2, 0.2, 0.2 * 0.853553391, 0.1, 0.2 * 0.146446609, 0.0])


def test_decay_without_an_end_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    with pytest.raises(RecipeError, match=r"model.schedule: cosine needs trainer.max_epochs or trainer.max_steps"):
        step_schedule(optimizer, "cosine", warmup_steps=0, total_steps=math.inf)
    step_schedule(optimizer, "constant", warmup_steps=3, total_steps=math.inf)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 2 * STEPS_PER_EPOCH),
        (["--trainer.accumulate_grad_batches=4"], 2 * 2),  # 6 batches make 2 steps, the second of 2 batches
        (["--trainer.limit_train_batches=0.5"], 2 * 3),
        (["--trainer.limit_train_batches=2"], 2 * 2),
        (["--trainer.max_steps=5"], 5),
        (["--trainer.max_epochs=-1"], math.inf),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=7"], 7),
    ],
)
def test_planned_steps_count_what_the_trainer_will_take(workplace, overrides, expected):
    cli = build(*overrides)
    cli.trainer.datamodule = cli.datamodule
    assert planned_steps(cli.trainer) == expected


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_schedulers_that_count_steps_are_stepped_by_them_and_plateau_schedulers_get_their_figure():
    scheduler = torch.optim.lr_scheduler
    assert scheduler_config(scheduler.OneCycleLR(optimizer(), max_lr=1.0, total_steps=5))["interval"] == "step"
    assert scheduler_config(scheduler.CyclicLR(optimizer(), 0.1, 1.0))["interval"] == "step"
    assert scheduler_config(scheduler.StepLR(optimizer(), 2))["interval"] == "epoch"
    plateau = scheduler_config(scheduler.ReduceLROnPlateau(optimizer(), mode="max"))
    assert (plateau["interval"], plateau["monitor"]) == ("epoch", "val/dice")
    lightnings = scheduler_config(ReduceLROnPlateau(optimizer(), monitor="train/loss"))
    assert lightnings["monitor"] == "train/loss"


def test_plateau_scheduler_that_waits_for_the_dice_to_fall_is_refused_before_a_folder_is_made(workplace):
    with pytest.raises(RecipeError, match=r"model\.scheduler\.mode: is min, but val/dice .* rises\. Set mode: max"):
        build("--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau")
    assert not (workplace / "runs").exists()


def test_one_cycle_that_ends_before_the_training_is_refused(workplace, capsys):
    cycle = ("--model.scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.scheduler.max_lr=0.01")
    assert run(*cycle, "--model.scheduler.total_steps=5") == 2
    said = "model.scheduler.total_steps: is 5, but the training takes 12 optimizer steps. Set it to 12."
    assert said in capsys.readouterr().err


def test_few_batches_learned_by_heart_are_the_same_in_every_epoch(workplace, monkeypatch):
    seen, step = [], TuningModule.training_step

    def training_step(self, batch, batch_idx):
        seen.append(batch.image_ids)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TuningModule, "training_step", training_step)
    assert run("--run.baselines=false", "--run.report=false", "--trainer.overfit_batches=2") == 0
    assert len(seen) == 4
    assert seen[:2] == seen[2:]


def test_one_cycle_reaches_its_peak_within_the_run(workplace):
    cycle = ("--model.scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.scheduler.max_lr=0.01")
    monitor = "--trainer.callbacks=lightning.pytorch.callbacks.LearningRateMonitor"
    steps = f"--model.scheduler.total_steps={2 * STEPS_PER_EPOCH}"
    words = ("--run.baselines=false", "--run.report=false", "--trainer.log_every_n_steps=1")
    assert run(*words, *cycle, steps, monitor) == 0
    rows = csv.DictReader(only_run().metrics_csv.read_text().splitlines())
    rates = [float(row["lr-AdamW"]) for row in rows if row["lr-AdamW"]]
    assert len(rates) == 2 * STEPS_PER_EPOCH
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[-1] < 0.0005


@pytest.mark.parametrize(
    ("settings", "steps", "validated"),
    [
        (("--trainer.max_steps=2",), 2, [1]),
        (("--trainer.max_steps=8", "--trainer.max_epochs=9"), 8, [5, 7]),
        (("--trainer.check_val_every_n_epoch=5",), 12, [11]),
        (("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=4"), 6, [3, 5]),
        (("--trainer.max_steps=2", "--trainer.min_epochs=2"), 2, [1]),
    ],
    ids=["within the first epoch", "within the second", "rare validations", "by steps", "a minimum beyond the limit"],
)
def test_what_is_tested_was_validated_wherever_the_training_ends(workplace, settings, steps, validated):
    assert run("--run.baselines=false", "--run.report=false", *settings) == 0
    rows = csv.DictReader(only_run().metrics_csv.read_text().splitlines())
    assert [int(row["step"]) for row in rows if row["val/dice"]] == validated
    assert torch.load(only_run().last_checkpoint, weights_only=True)["global_step"] == steps
    assert json.loads(only_run().summary.read_text())["steps"] == steps
    assert only_run().export.is_dir()
