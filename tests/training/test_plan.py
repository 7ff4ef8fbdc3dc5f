"""A training that can work, whatever the number of images."""

import math

import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.plan import (
    FEWEST_STEPS,
    MOST_VALIDATIONS,
    batches_in_epoch,
    check_warmup,
    plan_training,
    shortened_warmup,
)


@pytest.mark.parametrize(("items", "batch", "processes", "batches"), [(1, 4, 1, 1), (8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 2, 2)])
def test_last_batch_of_an_epoch_counts_though_it_is_not_full(items, batch, processes, batches):
    assert batches_in_epoch(items, batch, processes=processes) == batches


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3, 7, 56, 199, 200, 5000])
def test_no_plan_has_fewer_steps_than_the_floor_or_epochs_than_the_recipe(steps_per_epoch):
    plan = plan_training(steps_per_epoch, epochs=3, warmup_steps=20)
    assert plan.steps == plan.epochs * steps_per_epoch >= FEWEST_STEPS
    assert plan.epochs >= 3
    assert plan.warmup_steps <= plan.steps / 10
    assert math.ceil(plan.epochs / plan.validate_every) <= max(MOST_VALIDATIONS, 3)


def test_enough_images_leave_the_recipe_as_it_is():
    plan = plan_training(100, epochs=3, warmup_steps=5)
    assert (plan.epochs, plan.steps, plan.warmup_steps, plan.validate_every) == (3, 300, 5, 1)


def test_warmup_is_at_most_a_tenth_of_the_steps_and_its_own_without_an_end():
    assert [shortened_warmup(20, steps) for steps in (8, 100, 200, 1000, math.inf)] == [0, 10, 20, 20, 20]


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_training_inside_its_warmup_is_refused_with_a_number_that_works(steps):
    with pytest.raises(RecipeError, match=rf"takes {steps} optimizer steps.*or set model\.warmup_steps={steps // 10}\.$"):
        check_warmup(20, steps)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (20, 21), (20, math.inf)])
def test_training_beyond_its_warmup_is_taken(warmup, steps):
    check_warmup(warmup, steps)
