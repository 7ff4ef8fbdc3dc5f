"""Make the first recipe of a folder, prove that it builds, and time it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medsam_tune.backbone.input_rules import INPUT_RULES
from medsam_tune.data.fingerprint import Fingerprint
from medsam_tune.data.folder_parts import split_by_folders
from medsam_tune.data.own_data import Prompt, data_settings, target_of, write_needed
from medsam_tune.data.split_file import NNUNET_SPLITS, save_splits
from medsam_tune.runs.build import build
from medsam_tune.runs.first_recipe.cost import Cost, measure_cost
from medsam_tune.runs.first_recipe.length import plan_again, plan_length
from medsam_tune.runs.first_recipe.method import Means, choose_method
from medsam_tune.runs.first_recipe.text import RecipeParts, bundled_lines, recipe_text

if TYPE_CHECKING:
    from medsam_tune.training.cli import MedsamCLI


@dataclass(frozen=True)
class FirstRecipe:
    """Hold a recipe that was built once.

    Attributes:
        text: The YAML.
        parts: What it says.
        cost: What was timed, or None.
        cli: Module and data, built from it.
    """

    text: str
    parts: RecipeParts
    cost: Cost | None
    cli: MedsamCLI


def make_first_recipe(
    found: Fingerprint, file: Path, *, prompt: Prompt, timed: bool, say: Callable[[str], None]
) -> FirstRecipe:
    """Choose method and length, write the recipe, build it on the real data, and time a few passes.

    Args:
        found: The fingerprint.
        file: Where the recipe will be written, for its text; nothing is written there yet.
        prompt: What is at hand when the model is used.
        timed: Whether passes are timed.
        say: Is told what takes time.

    Raises:
        MedsamTuneError: If the data cannot be used, such as too few patients for a split.
    """
    gpu = torch.cuda.is_available()
    side = INPUT_RULES["lite_medsam"].side
    beside = file.with_suffix("")
    data = data_settings(found, target := target_of(found, prompt), side=side, beside=beside)
    classes = len(found.rule.labels) if target == "per_class" else 1
    method = choose_method(Means(prompt, classes, found.n_patients(), gpu))
    length = plan_length(found, data, gpu=gpu, augments=bool(bundled_lines(method.recipe, "augmentation")))
    parts = RecipeParts(found.root.name, found, method, data, length, side)
    if of_folders := found.parts():
        split_file = file.absolute().with_suffix(".splits.json")
        save_splits(split_by_folders(of_folders, found.patients()), split_file)
        parts = replace(parts, split_file=split_file)
    elif (folds := found.root / NNUNET_SPLITS).is_file():
        parts = replace(parts, split_file=folds)
    start = shlex.join(["medsam-tune", "run", str(file)])
    write_needed(found, beside)
    say("Building the network ...")
    cli = _built(recipe_text(parts, start=start, cost=None))
    trained = len(cli.datamodule.chunks("train"))
    if trained != length.images:
        parts = replace(parts, length=plan_again(length, trained, gpu=gpu))
        if parts.length.batch != length.batch:
            cli = _built(recipe_text(parts, start=start, cost=None))
    cost = None
    if timed:
        say("Timing a few passes ...")
        cost = measure_cost(cli, parts.length)
    return FirstRecipe(recipe_text(parts, start=start, cost=cost.told() if cost else None), parts, cost, cli)


def _built(text: str) -> MedsamCLI:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "first.yaml"
        recipe.write_text(text, encoding="utf-8")
        # Every file was read for the fingerprint a moment ago.
        cli = build(recipe, [f"--run.folder={folder}", "--data.read_first=false"])
        cli.discard_unused_folder()
        return cli
