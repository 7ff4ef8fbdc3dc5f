"""``medsam-tune run``: priors, cache, fit, test on the best checkpoint, score the baselines, export, report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.evaluation.comparison import verdict_of
from medsam_tune.segmenters.task import TaskSegmenter
from medsam_tune.training.cli import MedsamCLI
from medsam_tune.training.console import say
from medsam_tune.training.report_stage import export_stage, report_stage, score_baselines, score_inference


def run_recipe(recipe: Path, overrides: list[str]) -> int:
    """Run a recipe from data to report.

    Args:
        recipe: The YAML file.
        overrides: ``--key=value`` words; ``--ckpt_path=last`` continues the recipe's newest run in its folder.

    Returns:
        The exit code; 0 after a report was written.

    Raises:
        MedsamTuneError: If the recipe, the data or a checkpoint cannot be used; before training wherever that can be known.
    """
    cli = _build(recipe, overrides)
    with cli.stage():
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
        best = cli.run_folder.checkpoints / "best.ckpt"
        if not best.is_file():
            raise CheckpointError(f"{best}: training ended before a validation chose it. Raise trainer.max_epochs.")
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=str(best), weights_only=True, verbose=False)
    if not cli.trainer.is_global_zero:
        return 0
    with torch.no_grad():
        _after_test(cli)
    return 0


def build_cache(recipe: Path, overrides: list[str]) -> int:
    """Fill the embedding cache for a recipe's training, validation and test images, and do nothing else."""
    from medsam_tune.training.precompute_stage import fill_embeddings

    cli = _build(recipe, overrides)
    cli.discard_unused_folder()
    filled = fill_embeddings(cli.model.segmenter, cli.datamodule, stages=("train", "val", "test"))
    say(f"{len(filled.keys)} embeddings are in the cache ({filled.seconds:.0f} s).")
    return 0


def _build(recipe: Path, overrides: list[str]) -> MedsamCLI:
    command = shlex.join(["medsam-tune", "run", str(recipe), *(word for word in overrides if "ckpt_path" not in word)])
    cli = MedsamCLI(["--config", str(recipe), *overrides], recipe_file=recipe, command=command, run=False)
    _check_priors(cli)
    return cli


def _check_priors(cli: MedsamCLI) -> None:
    """Refuse a fusion that would find nothing to fuse, before anything is computed."""
    if cli.datamodule.priors is None and cli.model.segmenter.reads_priors():
        cli.discard_unused_folder()
        raise RecipeError(
            "data.priors: is not set, but model.fusion fuses prior maps into each image. "
            "Set data.priors.weights, or leave the fusion out."
        )


def _after_test(cli: MedsamCLI) -> None:
    cli.clock.start("baselines")
    baselines = score_baselines(cli)
    cli.clock.stop("baselines")
    cli.results.write(baselines=baselines, verdict=verdict_of(baselines or {}), **_inference(cli))
    cli.clock.start("export")
    export_stage(cli)
    cli.clock.stop("export")
    cli.clock.start("report")
    report = report_stage(cli)
    cli.clock.stop("report")
    cli.results.write()
    say(closing(cli.results.summary, cli.run_folder.path, report))


def _inference(cli: MedsamCLI) -> dict[str, Any]:
    """Return what the summary says about the kinds of inference; nothing where the network has only one."""
    segmenter = cli.model.segmenter
    if not isinstance(segmenter, TaskSegmenter) or segmenter.fusion is None:
        return {}
    cli.clock.start("inference")
    found = score_inference(cli, segmenter)
    cli.clock.stop("inference")
    return {"inference": {"chosen": segmenter.inference, "test": found}}


def closing(summary: dict[str, Any], folder: Path, report: Path | None) -> str:
    """Return the last lines of a run.

    Args:
        summary: What ``summary.json`` holds.
        folder: The run folder.
        report: The report's page, or None.
    """
    lines = ["", f"Test Dice {_figure(summary['test'])} over {summary['test']['n_cases']} cases"]
    if verdict := summary.get("verdict"):
        # What a reader must not overlook stands before the figure.
        lines.insert(2 if verdict["verdict"] == "better" else 1, verdict["text"])
    for name, values in (summary.get("baselines") or {}).items():
        lines.append(f"  untuned, {name.replace('_', ' ')}: {_figure(values)}")
    for name, values in (summary.get("inference") or {}).get("test", {}).items():
        lines.append(f"  inference {name.replace('_', ' ')}: {_figure(values)}")
    lines.append(f"Run folder  {folder}")
    if report is not None:
        lines.append(f"Report      {report}")
    return "\n".join(lines)


def _figure(values: dict[str, Any]) -> str:
    dice = values["dice"]
    if dice["mean"] is None:
        return "undefined (no case has an object or a prediction)"
    interval = "" if dice["ci95"] is None else f" (95 % interval {dice['ci95'][0]:.3f} to {dice['ci95'][1]:.3f})"
    return f"{dice['mean']:.4f}{interval}"
