import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.training.finite import STEPS_BETWEEN_LOOKS, FiniteLosses

GPU = torch.device("cuda")


def test_every_loss_is_looked_at_at_once_on_a_cpu():
    losses = FiniteLosses(torch.device("cpu"))
    assert losses.add(torch.tensor(1.0), 0, ("a",))
    with pytest.raises(RecipeError, match=r"loss is inf at step 1 on images b, c\. Lower the learning rate"):
        losses.add(torch.tensor(torch.inf), 1, ("b", "c"))


def test_losses_of_a_gpu_are_looked_at_together_and_the_first_that_failed_is_named():
    losses = FiniteLosses(GPU)
    looked = [losses.add(torch.tensor(float(step)), step, (str(step),)) for step in range(STEPS_BETWEEN_LOOKS)]
    assert looked == [False] * (STEPS_BETWEEN_LOOKS - 1) + [True]
    for step in range(STEPS_BETWEEN_LOOKS - 1):
        losses.add(torch.tensor(torch.nan if step >= 3 else 0.0), step, (f"image_{step}",))
    with pytest.raises(RecipeError, match="loss is nan at step 3 on images image_3"):
        losses.add(torch.tensor(0.0), 99, ("z",))


def test_loss_that_failed_refuses_every_later_checkpoint():
    losses = FiniteLosses(GPU)
    losses.add(torch.tensor(torch.nan), 7, ("a",))
    for _ in range(2):
        with pytest.raises(RecipeError, match="at step 7"):
            losses.look()


def test_no_step_is_nothing_to_look_at():
    FiniteLosses(GPU).look()


def test_loss_keeps_no_graph_until_it_is_looked_at():
    weight = torch.ones((), requires_grad=True)
    losses = FiniteLosses(GPU)
    losses.add(weight * 2, 0, ("a",))
    assert not losses._losses[0].requires_grad
