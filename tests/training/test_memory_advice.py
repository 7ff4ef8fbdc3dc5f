"""A step that runs out of memory says what would have fitted, as tried on the batch that did not."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.losses import BceDiceLoss
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamSegmenter
from medsam_tune.training.memory_advice import advice, scoring_advice
from medsam_tune.training.module import TuningModule
from tests.factories import make_batch
from tests.training.tiny_runs import run

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has a total capacity of 4 GiB")


@pytest.fixture
def roomy(monkeypatch):
    """Let a step of at most ``most`` images fit; return what each step that was tried had."""
    tried, honest = [], SamSegmenter.training_losses

    def training_losses(self, batch, loss):
        tried.append(batch.n_images)
        made = honest(self, batch, loss)
        if batch.n_images > most[0]:
            raise FULL.with_traceback(None)
        return made

    most = [1]
    monkeypatch.setattr(SamSegmenter, "training_losses", training_losses)
    return most, tried


@pytest.fixture
def module():
    return TuningModule(
        backbone=SamBackbone("random_tiny", trainable=["mask_decoder"]), prompts=BoxPrompt(), loss=BceDiceLoss()
    )


def batch_of(n_images):
    return make_batch(sizes=((40, 64),) * n_images)


@pytest.mark.parametrize(("most", "tried", "images"), [(8, [4], 4), (2, [4, 2], 2), (1, [4, 2, 1], 1)])
def test_the_largest_half_that_fits_is_named(module, roomy, most, tried, images):
    roomy[0][0] = most
    said = advice(module, batch_of(8))
    assert said.startswith(
        f"{images} of this batch's 8 images fit, as was tried: set data.batch_size={images}, and data.global_batch=8"
    )
    assert roomy[1] == tried


def test_where_not_one_image_fits_other_keys_are_named(module, roomy):
    roomy[0][0] = 0
    assert "checkpointing=true" in advice(module, batch_of(2))
    assert roomy[1] == [1]


def test_trying_leaves_no_gradient_and_moves_no_weight(module, roomy):
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    advice(module, batch_of(2), stepped=False)
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())
    assert all(weight.grad is None for weight in module.parameters())


def test_another_error_while_trying_is_not_taken_for_memory(module, monkeypatch):
    monkeypatch.setattr(TuningModule, "training_loss", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        advice(module, batch_of(2))


@pytest.mark.parametrize("other", [RuntimeError("shapes differ"), ValueError("one value a channel"), KeyError("term")])
def test_what_else_fails_while_trying_does_not_stand_in_for_the_error(workplace, monkeypatch, capsys, other):
    errors = [FULL.with_traceback(None), other]
    monkeypatch.setattr(SamSegmenter, "training_losses", lambda *_: (_ for _ in ()).throw(errors.pop(0)))
    assert run("epochs=1") == 1
    assert "out of memory (CUDA out of memory. Tried to allocate 2 GiB.). Lower data.batch_size" in capsys.readouterr().err
    assert errors == []


def test_what_the_failed_step_had_made_is_let_go_before_the_next_is_tried(module, monkeypatch):
    made = []

    def training_loss(self, batch):
        gc.collect()
        alive = [each() for each in made if each() is not None]
        activations = torch.ones(8)
        made.append(weakref.ref(activations))
        assert not alive
        raise FULL.with_traceback(None)

    monkeypatch.setattr(TuningModule, "training_loss", training_loss)
    advice(module, batch_of(4))
    assert len(made) == 2


def test_a_run_that_is_out_of_memory_says_so_in_one_line(workplace, roomy, capsys):
    assert run("epochs=1") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert "1 of this batch's 2 images fit, as was tried: set data.batch_size=1, and data.global_batch=2 to keep" in line
    assert roomy[1] == [2, 1]
    assert run("epochs=1", "--data.batch_size=1", "--data.global_batch=2", "--run.report=false", "--run.name=smaller") == 0


@pytest.fixture
def small(monkeypatch):
    """Let a prediction of at most ``most`` images fit; return what each that was tried had."""
    tried, honest, most = [], SamSegmenter.forward, [1]

    def forward(self, batch):
        tried.append(batch.n_images)
        if batch.n_images > most[0]:
            raise FULL.with_traceback(None)
        return honest(self, batch)

    monkeypatch.setattr(SamSegmenter, "forward", forward)
    return most, tried


@pytest.mark.parametrize(
    ("most", "tried", "said"), [(4, [4], "4 of this batch's 8 images fit"), (0, [4, 2, 1], "Not even one")]
)
def test_scoring_a_batch_names_the_key_of_scoring(module, small, most, tried, said):
    small[0][0] = most
    found = scoring_advice(module, batch_of(8))
    assert found.startswith(said)
    assert ("data.eval_batch_size=4" in found) == (most == 4)
    assert small[1] == tried


def test_a_validation_that_is_out_of_memory_says_what_would_have_fitted(workplace, small, capsys):
    assert run("epochs=1", "--data.eval_batch_size=2") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert "1 of this batch's 2 images fit, as was tried: set data.eval_batch_size=1." in line
    assert small[1] == [2, 1]
