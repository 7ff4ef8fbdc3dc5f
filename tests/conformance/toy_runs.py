"""What every class of a user's own has to go through: trained, interrupted and resumed, exported and reloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import medsam_tune
from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.inference.predictor import Predictor
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.run_place import RUNS
from tests.training.tiny_runs import weights_of


def train_resume_and_reload(recipe: str, *, exports_it: bool = True) -> tuple[RunFolder, Predictor]:
    """Run the recipe (of one epoch) here, resume it for a second one, and load its export.

    The resumed run ends with the weights of one that was never interrupted, and the export holds those that were chosen.

    Args:
        recipe: Of one epoch.
        exports_it: Whether the class is part of the export, which then is loaded as trusted only.
    """
    Path("toy.yaml").write_text(recipe)
    assert main(["run", "toy.yaml", "--run.folder=whole", "--trainer.max_epochs=2"]) == 0
    assert main(["run", "toy.yaml"]) == 0
    assert main(["run", "toy.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    (whole,), (run,) = (tuple(Path(root).glob(RUNS)) for root in ("whole", "runs"))
    expected, resumed = (weights_of(folder / "checkpoints/last.ckpt") for folder in (whole, run))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())
    if exports_it:
        with pytest.raises(RecipeError, match=r"lies outside medsam_tune.*Pass trusted=True"):
            medsam_tune.load_export(run / "export")
    predictor = medsam_tune.load_export(run / "export", trusted=exports_it)
    loaded = {f"segmenter.{name}": tensor for name, tensor in predictor.segmenter.state_dict().items()}
    chosen = {name: t for name, t in weights_of(run / "checkpoints/best.ckpt").items() if name.startswith("segmenter.")}
    assert chosen != {}
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in chosen.items())
    return RunFolder(run), predictor
