"""An optimizer step is made of as many images as ``data.global_batch`` says, whatever the number of processes."""

import json
from pathlib import Path

import pytest

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.training.global_batch import accumulated, set_global_batch, step_line
from medsam_tune.training.schedule import planned_steps
from tests.training.test_ddp import TWO, rows_of, start
from tests.training.tiny_runs import RECIPE, build, only_run, run, weights_of

# No batch norm, and one object an image: the mean over a step's images is the same however they are cut into batches.
_GENERATOR = next(line.strip() for line in RECIPE.splitlines() if "prompt_encoder" in line)
DECODER = RECIPE.replace(_GENERATOR, "prompts: {class_path: medsam_tune.prompts.BoxPrompt}").replace(
    "{weights: random_tiny}", "{weights: random_tiny, trainable: [mask_decoder]}"
)
EIGHT = {"train": ["c0", "c1", "c2"], "val": ["c3", "c4"], "test": ["c5", "c6", "c7"]}
QUICK = ("--run.baselines=false", "--run.report=false", "--data.batch_size=1", "--data.global_batch=4")
# AdamW makes whole steps of gradients that are rounding alone.
SGD = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1")


@pytest.mark.parametrize(("world", "expected"), [(1, 16), (4, 4), (16, 1)])
def test_batches_of_a_step_are_those_of_the_table(world, expected):
    assert accumulated(32, 2, world) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            (30, 2, 4),
            r"30 images a step cannot be made of batches of 2 on 4 processes, 8 at a time. Set data.global_batch: 24 or 32\.$",
        ),
        ((12, 8, 1), r"batches of 8 on 1 process, 8 at a time. Set data.global_batch: 8 or 16, or data.batch_size: 6\.$"),
        ((3, 2, 3), r"Set data.global_batch: 6, or data.batch_size: 1\.$"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest_numbers(words, text):
    with pytest.raises(RecipeError, match=text):
        accumulated(*words)


def test_another_number_of_accumulated_batches_is_refused_and_the_same_is_not():
    assert accumulated(32, 2, 4, stated=4) == 4
    with pytest.raises(
        RecipeError, match=r"accumulate_grad_batches: is 2, but data\.global_batch 32 takes 4 batches of 2 on 4 proc"
    ):
        accumulated(32, 2, 4, stated=2)


def test_the_trainer_accumulates_and_the_plan_says_so(workplace):
    built = build("--data.global_batch=6")
    assert built.trainer.accumulate_grad_batches == 3
    assert step_line(built.trainer, built.datamodule) == "6 images a step (2 a batch x 3 accumulated x 1 process)"
    # 6 batches an epoch are 2 steps.
    assert planned_steps(built.trainer, built.datamodule) == 4


def test_without_a_global_batch_the_recipe_counts(workplace):
    built = build("--trainer.accumulate_grad_batches=2")
    set_global_batch(built.trainer, built.datamodule)
    assert built.trainer.accumulate_grad_batches == 2
    assert step_line(built.trainer, built.datamodule) is None


def test_it_is_refused_before_the_data_are_opened(workplace, capsys, monkeypatch):
    monkeypatch.setattr("medsam_tune.data.datamodule.SegmentationDataModule.open", lambda *_, **__: pytest.fail("opened"))
    assert run("--data.global_batch=9") == 2
    assert "data.global_batch: 9 images a step cannot be made of batches of 2 on 1 process" in capsys.readouterr().err
    finder = "--trainer.callbacks={class_path: lightning.pytorch.callbacks.BatchSizeFinder}"
    assert run("--data.global_batch=8", finder) == 2
    assert "data.global_batch: a BatchSizeFinder changes" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one_and_go_on_with_what_one_began(workplace):
    Path("tiny.yaml").write_text(DECODER)
    Path("eight.json").write_text(json.dumps(EIGHT))
    words = ("run", "tiny.yaml", "--data.split.file=eight.json", "--trainer.log_every_n_steps=1", *QUICK, *SGD)
    assert main([*words, "--run.folder=one"]) == 0
    start(*words, *TWO, "--run.folder=two")
    assert main([*words, "--run.folder=begun", "--trainer.max_epochs=1"]) == 0
    start(*words, *TWO, "--run.folder=begun", "--ckpt_path=last")
    one, *others = (only_run(name) for name in ("one", "two", "begun"))
    expected = weights_of(one.last_checkpoint)
    assert json.loads(one.summary.read_text())["steps"] == 4
    for other in others:
        found = weights_of(other.last_checkpoint)
        assert found.keys() == expected.keys()
        assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-6
        assert json.loads(other.summary.read_text())["steps"] == 4
    assert [row["step"] for row in rows_of(others[1].metrics_csv) if row["train/loss_step"]] == ["0", "1", "2", "3"]
