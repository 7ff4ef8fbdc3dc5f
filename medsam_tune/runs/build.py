"""From a recipe and what differs from it to module, data and trainer in a run folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsam_tune.errors import RecipeError
from medsam_tune.runs.recipe_files import name_bundled_recipes
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.training.cli import MedsamCLI

Overrides = Mapping[str, object] | Sequence[str]
"""What differs from the recipe: ``{"rank": 8, "data.root": "DIR"}``, or words such as ``--data.root=DIR``."""


def build(recipe: Path, words: Sequence[str]) -> MedsamCLI:
    """Build module, data and trainer of a recipe, with a new run folder or the one that ``--ckpt_path`` continues.

    Raises:
        MedsamTuneError: If the recipe, the data or a checkpoint cannot be used.
    """
    words = name_bundled_recipes(words)
    command = shlex.join(["medsam-tune", "run", str(recipe), *(word for word in words if "ckpt_path" not in word)])
    cli = MedsamCLI(["--config", str(recipe), *words], recipe_file=recipe, command=command, run=False)
    check_priors(cli)
    check_automatic(cli)
    check_trains(cli)
    return cli


def override_words(overrides: Overrides) -> list[str]:
    """Return overrides as the words of a command line.

    Examples:
        >>> override_words({"rank": 8, "data.patient": None, "model.backbone.trainable": ["mask_decoder"]})
        ['--rank=8', '--data.patient=null', '--model.backbone.trainable=["mask_decoder"]']
    """
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [
        f"--{key}={value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)}"
        for key, value in overrides.items()
    ]


def check_priors(cli: MedsamCLI) -> None:
    """Refuse a fusion that would find nothing to fuse, before anything is computed.

    Raises:
        RecipeError: If it would.
    """
    if cli.datamodule.priors is None and cli.model.segmenter.reads_priors():
        cli.discard_unused_folder()
        raise RecipeError(
            "data.priors: is not set, but model.fusion fuses prior maps into each image. "
            "Set data.priors.weights, or leave the fusion out."
        )


def check_trains(cli: MedsamCLI) -> None:
    """Refuse to train by the split of a test on another cohort.

    Raises:
        RecipeError: If ``data.split.file`` is such.
    """
    if cli.datamodule.split.file is not None and not cli.datamodule.splits.train:
        cli.discard_unused_folder()
        raise RecipeError(
            f"data.split.file: {cli.datamodule.split.file} is of a test on another cohort, of which nothing is trained on. "
            "Name a file with cases in train, val and test."
        )


def check_automatic(cli: MedsamCLI) -> None:
    """Refuse to compare automatic masks with what are no instances, or of a network that finds none.

    Raises:
        RecipeError: If they are, or it does.
    """
    if cli.settings.automatic is None:
        return
    faults = {
        f"its masks are compared with instances, but data.target is {cli.datamodule.target}. Set data.target: per_instance": (
            cli.datamodule.target != "per_instance"
        ),
        "masks are found in whole images, but data.tiles cuts them. Remove one of the two keys": cli.datamodule.tiles
        is not None,
        f"{type(cli.model.segmenter).__name__} answers no points and boxes. Remove the key": not (
            isinstance(cli.model.segmenter, SamSegmenter) and cli.model.segmenter.takes_prompts()
        ),
    }
    for fault, is_one in faults.items():
        if is_one:
            cli.discard_unused_folder()
            raise RecipeError(f"run.automatic: {fault}.")
