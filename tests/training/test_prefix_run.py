"""A recipe that tunes late blocks alone learns from what reaches the first of them, cached, as it does without a cache."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.precompute import cache_root, entries
from medsam_tune.training.precompute_stage import PrecomputeStage, fill_embeddings, prefix_precompute
from tests.training.tiny_runs import RECIPE, build, only_run, run, weights_of

LATE = """\
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny, trainable: [mask_decoder]}}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
  tuner: {class_path: medsam_tune.tuners.AdaptFormer, init_args: {blocks: [1, 1]}}
"""
PREFIX = "--data.cache_embeddings=prefix"
BLOCK = "image_encoder.blocks.1"


@pytest.fixture
def recipe(workplace):
    """tiny.yaml with AdaptFormer in the last of two blocks."""
    before, after = RECIPE.split("  backbone:")[0], RECIPE[RECIPE.index("data:") :]
    (workplace / "tiny.yaml").write_text(before + LATE + after)
    return workplace


def set_up(*words, stage="fit"):
    """A recipe's command line after its stores were filled for a stage."""
    cli = build(PREFIX, *words)
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, PrecomputeStage))
    cli.trainer.datamodule = cli.datamodule
    cli.trainer.strategy.connect(cli.model)
    callback.setup(cli.trainer, cli.model, stage)
    return cli


def test_a_run_ends_with_the_weights_of_one_without_a_cache_but_for_rounding(recipe, capsys):
    # AdamW would make a whole step of the rounding of a gradient that is nearly 0.
    sgd = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1")
    words = ("--trainer.max_epochs=1", "--run.report=false", "--run.baselines=false", *sgd)
    assert run(PREFIX, "--run.folder=cached", *words) == 0
    said = capsys.readouterr().out
    assert f"13 cached before {BLOCK}, 13 of them now" in said
    assert run("--data.cache_embeddings=false", "--run.folder=whole", *words) == 0
    found, expected = (weights_of(only_run(folder).last_checkpoint) for folder in ("cached", "whole"))
    assert found.keys() == expected.keys()
    assert any(name.startswith(f"segmenter.backbone.{BLOCK}.mlp_adapter") for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
    assert [(store.kind, store.images) for store in entries()] == [("prefixes", 13)]


def test_training_and_validation_read_what_reaches_the_block_and_run_no_block_before_it(recipe, monkeypatch):
    cli = set_up()
    batch = next(iter(cli.datamodule.train_dataloader()))
    segmenter = cli.model.segmenter
    with torch.no_grad():
        fresh = segmenter.encode_prefix(batch.images, batch.frames)
    assert torch.equal(batch.encoder_prefix, fresh.half().float())
    assert cli.datamodule.dataset("val")[0].encoder_prefix is not None
    blocks = segmenter.backbone.image_encoder.blocks
    ran = []
    monkeypatch.setattr(blocks[0], "mix", lambda tokens: ran.append(0))
    monkeypatch.setattr(blocks[1], "mix", lambda tokens, mix=blocks[1].mix: ran.append(1) or mix(tokens))
    terms = cli.model.task.training_losses(segmenter.train(), segmenter.drawn(batch), cli.model.loss)
    torch.stack(list(terms.values())).sum().backward()
    assert ran == [1]
    learning = {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert {name for name, p in cli.model.named_parameters() if p.grad is not None} == learning


def test_a_test_runs_the_whole_encoder_after_a_training_with_prefixes(recipe):
    cli = set_up()
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, PrecomputeStage))
    callback.setup(cli.trainer, cli.model, "test")
    assert cli.datamodule.dataset("test")[0].encoder_prefix is None
    assert cli.datamodule.dataset("train")[0].encoder_prefix is None


def test_every_view_of_an_image_is_kept(recipe):
    cli = set_up("--data.augmentation.horizontal_flip=1.0", "--data.views=2")
    filled = fill_embeddings(cli.model.segmenter, cli.datamodule, stages=("test",))
    train, val = (len(cli.datamodule.dataset(stage)) for stage in ("train", "val"))
    assert len(filled.keys) == 2 * train + val
    assert filled.made == 0


def test_entries_before_another_block_are_of_another_store(recipe):
    cli, neck = (
        set_up(),
        build(PREFIX, "--model.tuner=PartTuning", "--model.tuner.parts=[image_encoder.neck]", "--model.tuner.blocks=null"),
    )
    here, there = (prefix_precompute(c.model.segmenter, c.datamodule, device=torch.device("cpu")) for c in (cli, neck))
    assert (here.before, there.before) == (BLOCK, "image_encoder.neck")
    assert here.identity() != there.identity()
    assert here.facts()["weights_sha256"] == there.facts()["weights_sha256"]


def test_cache_build_fills_training_and_validation(recipe, capsys):
    assert main(["cache", "build", "tiny.yaml", PREFIX]) == 0
    assert "13 " in capsys.readouterr().out
    assert sorted(path.name for path in cache_root().iterdir() if path.is_dir()) == ["checked", "prefixes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.cache_embeddings=true"], rf"Set data\.cache_embeddings: prefix, which keeps what reaches {BLOCK}, or false"),
        (
            [PREFIX, "--model.tuner.blocks=[0,1]"],
            r"prefix needs fixed blocks .* image_encoder\.blocks\.0\.mlp_adapter is tuned",
        ),
        ([PREFIX, "--model.tuner=null"], r"all of this one is fixed\. Set it to true"),
        ([PREFIX, "--data.augmentation.horizontal_flip=1.0"], r"Set data\.views: K"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_to_set(recipe, words, said):
    with pytest.raises(RecipeError, match=said):
        build(*words)
