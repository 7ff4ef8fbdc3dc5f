import json

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.prior_network import build_prior_network
from medsam_tune.precompute import PriorSettings, cache_root
from medsam_tune.training import precompute_stage
from medsam_tune.training.precompute_stage import fill_priors
from tests.training.tiny_runs import build

# A tiny random network's scores are near 0; without thresholds every mask that has a pixel is kept.
WORDS = {
    "weights": "random_tiny",
    "points_per_side": 2,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}
PRIORS = [f"--data.priors.{name}={value}" for name, value in WORDS.items()]


def stores():
    return list(cache_root().glob("priors/*"))


def test_masks_are_made_before_training_and_reach_the_data(workplace, monkeypatch):
    cli = build(*PRIORS, "--data.cache_embeddings=false")
    looked_up = {}
    monkeypatch.setattr(cli.datamodule, "use_priors", lambda lookup: looked_up.setdefault("lookup", lookup))
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, precompute_stage.PrecomputeStage))
    cli.trainer.datamodule = cli.datamodule
    callback.setup(cli.trainer, cli.model, "fit")
    settings = PriorSettings(**WORDS)
    generator = AutomaticMaskGenerator(build_prior_network(settings), settings)
    indices = [*cli.datamodule.dataset("train").indices, *cli.datamodule.dataset("val").indices]
    assert set(looked_up["lookup"].keys) == {(index,) for index in indices}
    for index in indices[:2]:
        expected = generator.generate(cli.datamodule.source[index].image)
        found = looked_up["lookup"](index)
        assert len(expected.masks) >= 6
        assert torch.equal(found.masks, expected.masks)
        assert torch.equal(found.stability_score, expected.stability_score)
    assert cli.clock.seconds["priors"] >= 0
    (store,) = stores()
    assert json.loads((store / "info.json").read_text())["settings"]["points_per_side"] == 2


def test_second_start_does_not_build_the_network_again(workplace, monkeypatch):
    cli = build(*PRIORS, "--data.cache_embeddings=false")
    filled, counts, folder = fill_priors(cli.datamodule, stages=("train", "val", "test"))
    assert filled.made == counts.images == 20
    assert counts.masks > 6 * counts.images
    assert [folder] == stores()
    monkeypatch.setattr(precompute_stage, "build_prior_network", None)
    again, _, _ = fill_priors(cli.datamodule, stages=("train", "val", "test"))
    assert again.made == 0


def test_masks_of_other_weights_are_not_used(workplace):
    cli = build(*PRIORS, "--data.cache_embeddings=false")
    first, _, folder = fill_priors(cli.datamodule, stages=("val",))
    torch.save(SamBackbone("random_tiny", seed=1).state_dict(), "mine.pth")
    cli.datamodule.priors = PriorSettings(**WORDS, checkpoint="mine.pth")
    second, _, other_folder = fill_priors(cli.datamodule, stages=("val",))
    assert second.made == first.made > 0
    assert {folder, other_folder} == set(stores())
    assert not set(first.keys.values()) & set(second.keys.values())


def test_recipe_without_priors_makes_none(workplace):
    cli = build()
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, precompute_stage.PrecomputeStage))
    cli.trainer.datamodule = cli.datamodule
    callback.setup(cli.trainer, cli.model, "fit")
    assert stores() == []
    assert "priors" not in cli.clock.seconds
    with pytest.raises(RecipeError, match=r"data\.priors: is null in this recipe"):
        fill_priors(cli.datamodule, stages=("val",))


def test_workers_find_room_in_a_later_stage_whose_embeddings_are_not_there_yet(workplace):
    cli = build("--data.num_workers=1")
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, precompute_stage.PrecomputeStage))
    cli.trainer.datamodule = cli.datamodule
    cli.trainer.strategy.connect(cli.model)
    for stage in ("fit", "test"):
        callback.setup(cli.trainer, cli.model, stage)
    test = cli.datamodule.dataset("test")
    assert test[0].image_embeddings is not None
