"""Under a callback that averages weights, the average is what is validated, kept, tested and exported."""

import json

import pytest
import torch
from safetensors.torch import load_file

from medsam_tune.cli import main
from medsam_tune.training.checkpoint import CURRENT_WEIGHTS
from medsam_tune.training.module import TuningModule
from tests.training.tiny_runs import only_run, run, weights_of

pytestmark = pytest.mark.filterwarnings("default")  # Lightning says what it did

EMA = ("--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5")
FAST = ("--run.baselines=false", "--run.report=false", *EMA)


def test_average_is_tested_and_exported_and_the_weights_beneath_it_are_kept_to_go_on(workplace):
    assert run(*FAST) == 0
    folder = only_run()
    best = torch.load(folder.checkpoints / "best.ckpt", weights_only=True)
    average, beneath = best["state_dict"], best[CURRENT_WEIGHTS]
    assert average.keys() == beneath.keys()
    assert not all(torch.equal(average[name], beneath[name]) for name in average)
    exported = load_file(folder.export / "trained.safetensors")
    assert all(torch.equal(tensor, average[f"segmenter.{name}"]) for name, tensor in exported.items())
    assert main(["test", str(folder.path), "--run.baselines=false"]) == 0
    (again,) = folder.path.glob("tests/*/summary.json")
    assert json.loads(again.read_text())["test"] == json.loads(folder.summary.read_text())["test"]


def test_average_is_the_one_of_the_weights_after_every_step(workplace, monkeypatch):
    seen, step = [], TuningModule.optimizer_step

    def optimizer_step(self, *arguments, **settings):
        step(self, *arguments, **settings)
        seen.append({name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad})

    monkeypatch.setattr(TuningModule, "optimizer_step", optimizer_step)
    assert run(*FAST, "--trainer.max_epochs=1") == 0
    # The first update takes the weights as they are; each later one half of them.
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: 0.5 * expected[name] + 0.5 * weights[name] for name in weights}
    stored = weights_of(only_run().checkpoints / "best.ckpt")
    for name, weights in expected.items():
        torch.testing.assert_close(stored[name], weights)


def test_interrupted_average_goes_on_as_if_it_had_not_been(workplace, monkeypatch):
    assert run(*FAST, "--run.folder=whole") == 0
    step = TuningModule.training_step

    def interrupted(self, *arguments):
        if self.global_step == 8:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TuningModule, "training_step", interrupted)
        assert run(*FAST, "--run.save_every_n_steps=4") == 130
    assert run(*FAST, "--run.save_every_n_steps=4", "--ckpt_path=last") == 0
    for file in ("best.ckpt", "last.ckpt"):
        whole = weights_of(only_run("whole").checkpoints / file)
        assert all(torch.equal(tensor, whole[name]) for name, tensor in weights_of(only_run().checkpoints / file).items())
