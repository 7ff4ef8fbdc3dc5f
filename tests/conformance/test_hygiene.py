"""One step of every recipe: what learns has a gradient, what is frozen has none and is in no optimizer; half precision too."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.recipe_cases import RECIPES, batch_of, small_module

# peft says of its own default, which the parser writes out, that it is not used.
pytestmark = pytest.mark.filterwarnings("ignore:`loftq_config` specified")


def stepped(recipe, dtype=None):
    """The recipe's module and optimizer after one backward pass, and the loss."""
    module = small_module(recipe)
    optimizer = module.optimizer_factory(module.trainable_parameters())
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        terms = module.task.training_losses(module.segmenter, batch_of(recipe, seed=0), module.loss)
        terms = {**terms, **module.segmenter.auxiliary_losses()}
    loss = torch.stack([term.float() for term in terms.values()]).sum()
    loss.backward()
    module.segmenter.after_backward(0)
    return module, optimizer, loss.detach()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_gives_a_gradient_to_what_learns_and_to_nothing_else(recipe):
    module, optimizer, _ = stepped(recipe)
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert [name for name, p in module.named_parameters() if not p.requires_grad and p.grad is not None] == []
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in learning.values()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_in_half_precision_is_finite_and_keeps_float32_weights(recipe, dtype):
    module, _, loss = stepped(recipe, dtype)
    assert torch.isfinite(loss)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None or not torch.isfinite(gradient).all()] == []
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
