"""Fully sharded training: the figures of ddp, checkpoints of one whole network, and what shards cannot do."""

from types import SimpleNamespace

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.export import load_export
from medsam_tune.prompts import BoxPrompt
from medsam_tune.training.module import TuningModule
from medsam_tune.training.sharded import ShardedStrategy, check_sharded, units
from medsam_tune.tuners import DecoderTuning, FullTuning
from tests.training.tiny_runs import only_run, write_full_recipe
from tests.training.two_processes import TWO, start

QUICK = ("--run.report=false", "--run.baselines=false")
SHARDED = (*TWO[:2], "--trainer.strategy=fsdp")


def module(weights="random_tiny", tuner=None):
    return TuningModule(backbone=SamBackbone(weights), prompts=BoxPrompt(), tuner=tuner or FullTuning())


@pytest.fixture
def full_recipe(workplace):
    write_full_recipe(workplace)


def kept(folder):
    return torch.load(only_run(folder).checkpoints / "last.ckpt", weights_only=True)


def moments(checkpoint):
    return [value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()]


@pytest.mark.slow
def test_sharded_training_that_was_stopped_ends_with_the_weights_and_moments_of_ddp(full_recipe):
    start("run", "tiny.yaml", *TWO, *QUICK, "--run.folder=whole")
    start("fit", "--config=tiny.yaml", *SHARDED, *QUICK, "--trainer.max_epochs=1", "--run.folder=shards")
    start("run", "tiny.yaml", *SHARDED, *QUICK, "--run.folder=shards", "--ckpt_path=last")
    whole, sharded = kept("whole"), kept("shards")
    assert whole["state_dict"].keys() == sharded["state_dict"].keys()
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(sharded["state_dict"][name], tensor, rtol=0, atol=1e-6, msg=name)
    for mine, theirs in zip(moments(sharded), moments(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert only_run("shards").test_cases.read_text() == only_run("whole").test_cases.read_text()
    exported = load_export(only_run("shards").export).segmenter.state_dict()
    best = torch.load(only_run("shards").checkpoints / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(exported[name.removeprefix("segmenter.")], tensor) for name, tensor in best.items())


def test_every_block_is_a_unit_and_the_encoder_the_last():
    network = module()
    blocks = list(network.segmenter.backbone.image_encoder.blocks)
    assert units(network) == [*blocks, network.segmenter.backbone.image_encoder]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: module(tuner=DecoderTuning()), "saves memory where the whole image encoder learns"),
        (lambda: module("random_lite_medsam"), "TinyViT's batch norms would differ. Use ddp."),
    ],
    ids=["frozen encoder", "TinyViT"],
)
def test_encoders_that_shards_do_not_serve_are_refused(network, message):
    with pytest.raises(RecipeError, match=message):
        check_sharded({}, network())


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"gradient_clip_val": 1.0}, r"^trainer\.gradient_clip_val: needs the norm of whole gradients"),
        ({"precision": "16-mixed"}, r"^trainer\.precision: 16-mixed scales .* Use bf16-mixed\."),
    ],
)
def test_keys_that_need_whole_gradients_are_refused(trainer, message):
    check_sharded({"precision": "bf16-mixed", "gradient_clip_val": None}, module())
    with pytest.raises(RecipeError, match=message):
        check_sharded(trainer, module())


def test_averaged_weights_are_refused():
    from lightning.pytorch.callbacks import EMAWeightAveraging

    with pytest.raises(RecipeError, match=r"^trainer\.callbacks: an average of weights is kept whole"):
        check_sharded({"callbacks": EMAWeightAveraging()}, module())


def test_fused_optimizer_is_refused(monkeypatch):
    strategy = ShardedStrategy()
    network = module()
    fused = SimpleNamespace(param_groups=[{"fused": True, "params": list(network.parameters())}])
    monkeypatch.setattr(ShardedStrategy.__mro__[1], "setup_optimizers", lambda self, trainer: None)
    strategy._optimizers = [fused]
    with pytest.raises(RecipeError, match=r"^model\.optimizer\.fused: steps whole tensors"):
        strategy.setup_optimizers(None)
