"""A data set of sixteen-pixel images, a recipe that trains on it in a second, and runs of both."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medsam_tune.cli import main
from medsam_tune.training.cli import MedsamCLI
from medsam_tune.training.run_folder import RUN_FOLDER_VARIABLE, RunFolder
from medsam_tune.training.run_place import RUNS

RECIPE = """\
# A tiny network on tiny images.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  prompt_encoder: {class_path: medsam_tune.prompt_encoders.EmbeddingPromptGenerator, init_args: {width: 8, dilations: [1]}}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
  batch_size: 2
  split: {val_fraction: 0.15, test_fraction: 0.4}
trainer: {accelerator: cpu, max_epochs: 2, enable_progress_bar: false}
"""
FULL = """\
  tuner: {class_path: medsam_tune.tuners.FullTuning}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt, init_args: {kind: tight}}
"""
# 8 cases of 2 or 3 slices; the split of seed 0 tests 3 cases (7 slices) and trains on 11 slices, 6 batches an epoch.
N_CASES = 8
TEST_CASES, TEST_SLICES, STEPS_PER_EPOCH = 3, 7, 6


def write_images(root: Path) -> None:
    """Write ``images`` and ``masks``: a bright disc on noise, 16 x 20, ``c<case>_<slice>.png``."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :20]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for case in range(N_CASES):
        for slice_ in range(2 + (case + 1) % 2):
            disc = (rows - 8) ** 2 + (columns - 8 - case % 3) ** 2 < (3 + slice_) ** 2
            pixels = random.integers(0, 60, (16, 20)) + 150 * disc
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"c{case}_{slice_}.png")
            Image.fromarray((255 * disc).astype(np.uint8)).save(root / "masks" / f"c{case}_{slice_}.png")


def write_workplace(folder: Path) -> Path:
    """Write the data and ``tiny.yaml`` into ``folder`` and return the recipe; all its paths are relative to the folder."""
    write_images(folder / "images")
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    return recipe


def write_full_recipe(folder: Path) -> Path:
    """Write ``tiny.yaml`` anew: a box prompt, and the whole encoder learns."""
    generator = next(line for line in RECIPE.splitlines(keepends=True) if "prompt_encoder" in line)
    text = RECIPE.replace(generator, FULL).replace("  batch_size: 2", "  batch_size: 2\n  cache_embeddings: false")
    recipe = folder / "tiny.yaml"
    recipe.write_text(text)
    return recipe


def run(*overrides: str) -> int:
    """Run ``tiny.yaml`` of the current folder; return the exit status."""
    return main(["run", "tiny.yaml", *overrides])


def only_run(root: str | Path = "runs") -> RunFolder:
    """Return the one run below ``root``."""
    (folder,) = Path(root).glob(RUNS)
    return RunFolder(folder)


def build(*overrides: str, recipe: str | Path = "tiny.yaml") -> MedsamCLI:
    """Build module, data and trainer without running anything."""
    return MedsamCLI(["--config", str(recipe), *overrides], recipe_file=Path(recipe), command="medsam-tune run", run=False)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the trained tensors of a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def forget_run() -> None:
    """Remove what a run leaves in the environment of its process."""
    for name in (RUN_FOLDER_VARIABLE, "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
