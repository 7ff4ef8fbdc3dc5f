"""What follows the test: the export and the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.backbone.freezing import trainable_report
from medsam_tune.data.splits import PARTS
from medsam_tune.data.stored_images import stored_images
from medsam_tune.evaluation.calibration import read_certainty
from medsam_tune.evaluation.curves import draw_curves
from medsam_tune.evaluation.kept_embeddings import KeptEmbeddings
from medsam_tune.evaluation.report import DataContent, ReportContent, write_report
from medsam_tune.evaluation.survey import draw_histogram, spread, survey
from medsam_tune.export.build import names_own_file
from medsam_tune.export.folder import save_export
from medsam_tune.inference.usage import predict_command, prediction_code
from medsam_tune.runs.case_pictures import case_panels, case_rows, sample_panels, shown_cases
from medsam_tune.runs.report_facts import (
    attribution,
    citations,
    data_facts,
    data_name,
    described_parts,
    installed_packages,
    run_facts,
    run_files,
    training_settings,
)
from medsam_tune.training.pretrained import write_pretrained
from medsam_tune.training.recipe_paths import shareable

if TYPE_CHECKING:
    from medsam_tune.training.cli import MedsamCLI

RELOAD_CODE = """import medsam_tune

predictor = medsam_tune.load_export("{folder}"{checkpoint})
"""
_SURVEYED, _SAMPLES = 300, 6


def export_stage(cli: MedsamCLI) -> Path:
    """Write what was trained, reloadable in one line; of a pretraining also the weights that others start from."""
    folder, segmenter, config = cli.run_folder.export, cli.model.segmenter, model_config(cli)
    metrics, data = cli.results.summary.get("test", {}), cli.datamodule.describe()
    if (images := stored_images(cli.datamodule.source, cli.datamodule.splits.train)) is not None:
        data["stored_images"] = images.as_json()
    save_export(folder, segmenter=segmenter, model_config=config, metrics=metrics, data_description=data)
    write_pretrained(cli)
    return folder


def report_stage(cli: MedsamCLI, kept: KeptEmbeddings) -> Path | None:
    """Write ``report/index.html``; None where the recipe asks for none.

    Args:
        cli: Whose test is over.
        kept: Embeddings of the test images from what was scored beside the test.
    """
    if not cli.settings.report:
        return None
    summary, folder = cli.results.summary, cli.run_folder
    content = ReportContent(
        title=cli.recipe,
        data_name=data_name(cli.datamodule),
        description=described_parts(cli),
        trained=trainable_report(cli.model.segmenter).rows,
        data=_data_content(cli),
        test=summary["test"],
        baselines=summary.get("baselines") or {},
        verdict=summary.get("verdict") or {},
        moved_boxes=summary.get("moved_boxes") or {},
        calibration=summary.get("calibration") or {},
        doubts=read_certainty(folder.certainty),
        untuned_doubts=read_certainty(folder.certainty, untuned=True),
        inference=(summary.get("inference") or {}).get("test", {}),
        curves=draw_curves(folder.metrics_csv, folder.epochs_csv),
        cases=case_rows(cli),
        shown=shown_cases(cli),
        panels=case_panels(cli, kept),
        settings=training_settings(cli),
        reload_code=reload_code(folder.export, model_config(cli)) + prediction_code(cli.model.segmenter),
        predict_command=predict_command(cli.model.segmenter, str(folder.path)),
        run_command=shareable(cli.command, cli.datamodule.root),
        config=folder.config.read_text(encoding="utf-8"),
        facts=run_facts(cli),
        files=run_files(folder),
        packages=installed_packages(),
        citations=citations(cli),
    )
    return write_report(folder.report, content)


def reload_code(export: Path, config: Mapping[str, Any]) -> str:
    """Return the lines of Python that reload an export of a model with this ``model`` section."""
    return RELOAD_CODE.format(folder=export, checkpoint=', checkpoint="FILE"' if names_own_file(config) else "")


def model_config(cli: MedsamCLI) -> dict[str, Any]:
    """Return the recipe's resolved ``model`` section as plain values."""
    config: dict[str, Any] = cli.recipe_values()["model"]
    return config


def _data_content(cli: MedsamCLI) -> DataContent:
    """Measure up to ``_SURVEYED`` images, evenly spread over the training set, and show some of them."""
    data = cli.datamodule
    images, described = data.source_images("train"), data.describe()
    measured = [images[place] for place in spread(len(images), _SURVEYED)]
    found = survey(((data.stored(image), data.source.voxel_size(image)) for image in measured), data.label_names)
    shown = [images[place] for place in spread(len(images), _SAMPLES)]
    counts: Any = described["splits"]
    return DataContent(
        facts={**found.facts, "measured over": f"{found.n_images} training images", **data_facts(described)},
        splits={part: counts[part] for part in PARTS},
        labels=found.labels,
        size_unit=found.size_unit.replace("mm2", "mm²"),
        histogram=draw_histogram(found.sizes, found.size_unit),
        samples=sample_panels(data, shown),
        attribution=attribution(data.root),
    )
