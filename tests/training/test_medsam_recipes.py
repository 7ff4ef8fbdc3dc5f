"""Both MedSAM recipes train and test through a whole run, on tiny weights: several objects an image, and images without any."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune.runs.run import run_recipe
from medsam_tune.training.cli import MedsamCLI

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = [
    "--model.backbone.weights=random_tiny",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--data.num_workers=0",
    "--data.eval_batch_size=1",
    "--run.report=false",
    "--run.baselines=false",
]


@pytest.fixture
def npy_folder(tmp_path):
    """Twelve cases of two slices; the first slice has two labels, the second none."""
    (tmp_path / "data/imgs").mkdir(parents=True)
    (tmp_path / "data/gts").mkdir()
    rng = np.random.default_rng(0)
    for case in range(12):
        for position in range(2):
            masks = np.zeros((32, 32), np.uint8)
            if position == 0:
                masks[4:14, 6:20], masks[18:28, 10:30] = 1, 2
            np.save(tmp_path / f"data/imgs/CT_{case:02d}-{position:03d}.npy", rng.random((32, 32, 3)))
            np.save(tmp_path / f"data/gts/CT_{case:02d}-{position:03d}.npy", masks)
    return tmp_path


@pytest.fixture
def words(npy_folder, monkeypatch):
    """Overrides that keep a run inside the test's folder."""
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(npy_folder / "cache"))
    return [*TINY, f"--data.root={npy_folder / 'data'}", f"--run.folder={npy_folder / 'runs'}"]


def test_paper_recipe_runs_on_medsams_folder(words, npy_folder):
    assert run_recipe(RECIPES / "paper/medsam.yaml", words) == 0
    (table,) = npy_folder.glob("runs/*/medsam/*/test_cases.csv")
    rows = table.read_text().splitlines()
    # One test case of twelve, its two labels a row each; the slice without labels adds none.
    assert len(rows) == 3


def test_paper_recipe_trains_encoder_and_decoder_on_one_object_an_image(words):
    cli = MedsamCLI(["--config", str(RECIPES / "paper/medsam.yaml"), *words], recipe_file=None, command="", run=False)
    learning = {name.split(".")[1] for name, p in cli.model.segmenter.named_parameters() if p.requires_grad}
    assert learning == {"image_encoder", "mask_decoder"}
    (batch, *_) = cli.datamodule.train_dataloader()
    # Slices without an object are not trained on.
    assert batch.training
    assert batch.image_index.tolist() == list(range(8))
    assert batch.masks.flatten(1).any(dim=1).all()
    (group,) = cli.model.configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-4, 0.01)


def test_box_recipe_runs_with_every_label_of_a_slice(words, npy_folder):
    source = "--data.source=medsam_tune.data.MedsamNpy"
    assert run_recipe(RECIPES / "medsam_box.yaml", [*words, source]) == 0
    assert len(list(npy_folder.glob("runs/*/medsam_box/*/test_cases.csv"))) == 1


def test_batches_of_evaluation_are_not_training_and_may_hold_no_object(words):
    cli = MedsamCLI(["--config", str(RECIPES / "paper/medsam.yaml"), *words], recipe_file=None, command="", run=False)
    batches = list(cli.datamodule.test_dataloader())
    assert [batch.n_objects for batch in batches] == [2, 0]
    assert not any(batch.training for batch in batches)
    cli.model.eval()
    with torch.no_grad():
        assert [len(cli.model(batch).low_res_masks) for batch in batches] == [2, 0]


def test_evaluation_box_is_set_from_the_command_line(words):
    word = "--model.prompts.eval_jitter={high: 0.1, low: 0.1, unit: fraction}"
    cli = MedsamCLI(["--config", str(RECIPES / "paper/medsam.yaml"), *words, word], recipe_file=None, command="", run=False)
    assert cli.model.segmenter.prompts.eval_jitter.high == 0.1
    assert cli.model.segmenter.prompts.jitter.high == 20
