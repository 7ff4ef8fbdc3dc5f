"""What follows the test: baselines of the untuned network, the kinds of inference, the export, the HTML report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from medsam_tune.backbone.freezing import trainable_report
from medsam_tune.data.chunks import ChunkDataset, collate_chunks
from medsam_tune.data.splits import PARTS
from medsam_tune.evaluation.baselines import BOXES, evaluate_inference, evaluate_segmenters, untuned_networks
from medsam_tune.evaluation.comparison import paired_difference
from medsam_tune.evaluation.curves import draw_curves
from medsam_tune.evaluation.overlays import OverlaySlice, draw_overlays, panel_image, panel_shapes, panel_step
from medsam_tune.evaluation.report import CaseFigure, ReportContent, write_report
from medsam_tune.evaluation.summary import pick_cases, pick_slices, summarise
from medsam_tune.export.build import names_own_file
from medsam_tune.export.folder import save_export
from medsam_tune.inference.stitching import AskedImage, asked_images, mask_chunks, true_masks
from medsam_tune.inference.usage import prediction_code
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.training.recipe_paths import shareable
from medsam_tune.yaml_files import opening_comment

if TYPE_CHECKING:
    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.types import SegmentationBatch


RELOAD_CODE = """import medsam_tune

predictor = medsam_tune.load_export("{folder}"{checkpoint})
"""


def score_baselines(cli: MedsamCLI) -> dict[str, Any] | None:
    """Score the untuned network on the test cases: asked as the tuned one is, with the whole-image box and with the true box.

    Where the network labels pixels, only the classes that an image shows get a box.

    Returns:
        A summary by way of asking, each with how much better the tuned network is by case (``tuned_minus_this``), or None where
        the recipe asks for none or has no promptable network.
    """
    segmenter, tuned = cli.model.segmenter, cli.results.scores
    if not cli.settings.baselines or tuned is None or not isinstance(segmenter, SamSegmenter):
        return None
    data, only_shown = cli.datamodule, BOXES if cli.datamodule.target == "per_class" else ()
    scores = evaluate_segmenters(untuned_networks(segmenter), _test_batches(cli), only_shown=only_shown)
    return {
        name: {
            **summarise(found, data.case_names, data.label_names, data.case_patients),
            "tuned_minus_this": paired_difference(tuned, found, data.case_patients),
        }
        for name, found in scores.items()
    }


def score_inference(cli: MedsamCLI, segmenter: Segmenter) -> dict[str, Any]:
    """Score the trained network on the test cases with raw images, with augmented ones, and with both ways to join the two.

    Returns:
        A summary by kind of inference; empty where the network has no fusion.
    """
    data = cli.datamodule
    scores = evaluate_inference(segmenter, _test_batches(cli))
    return {name: summarise(found, data.case_names, data.label_names, data.case_patients) for name, found in scores.items()}


def export_stage(cli: MedsamCLI) -> Path:
    """Write what was trained, reloadable in one line."""
    folder, segmenter, config = cli.run_folder.export, cli.model.segmenter, model_config(cli)
    metrics, data = cli.results.summary.get("test", {}), cli.datamodule.describe()
    save_export(folder, segmenter=segmenter, model_config=config, metrics=metrics, data_description=data)
    return folder


def report_stage(cli: MedsamCLI) -> Path | None:
    """Write ``report/index.html``; None where the recipe asks for none."""
    if not cli.settings.report:
        return None
    summary = cli.results.summary
    weights = summary["base_weights"] or {"name": "none", "sha256": ""}
    described: dict[str, Any] = cli.datamodule.describe()
    inference = {"inference": summary["inference"]["chosen"]} if summary.get("inference") else {}
    content = ReportContent(
        title=cli.recipe,
        description=opening_comment(cli.recipe_file),
        trained=trainable_report(cli.model.segmenter).rows,
        data={name: value for name, value in described.items() if name != "splits"},
        splits={part: described["splits"][part] for part in PARTS},
        test=summary["test"],
        baselines=summary["baselines"] or {},
        verdict=(summary.get("verdict") or {}).get("text", ""),
        inference=(summary.get("inference") or {}).get("test", {}),
        curves=draw_curves(cli.run_folder.metrics_csv),
        cases=_case_figures(cli),
        reload_code=_reload_code(cli) + prediction_code(cli.model.segmenter),
        run_command=shareable(cli.command, cli.datamodule.root),
        versions=summary["versions"],
        seconds=cli.clock.seconds,
        more={
            "base weights": f"{weights['name']} {weights['sha256'][:12]}",
            "optimizer steps": summary["steps"],
            "peak memory": f"{summary['peak_memory_gb']} GB",
            **inference,
        },
    )
    return write_report(cli.run_folder.report, content)


def _reload_code(cli: MedsamCLI) -> str:
    checkpoint = ', checkpoint="FILE"' if names_own_file(model_config(cli)) else ""
    return RELOAD_CODE.format(folder=cli.run_folder.export, checkpoint=checkpoint)


def model_config(cli: MedsamCLI) -> dict[str, Any]:
    """Return the recipe's resolved ``model`` section as plain values."""
    config: dict[str, Any] = yaml.safe_load(cli.dump())["model"]
    return config


def _test_batches(cli: MedsamCLI) -> Iterator[SegmentationBatch]:
    """Yield the images that the test has scored, under ``trainer.limit_test_batches`` fewer than the split holds."""
    data = cli.datamodule
    chunks, size = data.chunks("test"), data.chunks_per_batch("test")
    limit = cli.trainer.limit_test_batches
    if isinstance(limit, int) or limit < 1:  # a whole 1 is one batch
        scored = [] if cli.results.scores is None else np.unique(cli.results.scores.slices.sample_index).tolist()
        places = {place for image in scored for place in data.positions("test", image)}
        # A chunk is tested whole, and an image without a row, which shows nothing, moves no figure.
        chunks = [chunk for chunk in chunks if not places.isdisjoint(chunk)]
    items = ChunkDataset(data.dataset("test"), chunks)
    for start in range(0, len(items), size):
        yield collate_chunks([items[number] for number in range(start, min(start + size, len(items)))])


def _case_figures(cli: MedsamCLI) -> list[CaseFigure]:
    scores = cli.results.scores
    if scores is None:
        return []
    dice = dict(zip(scores.scored_cases().tolist(), scores.case_dice().tolist(), strict=True))
    figures = []
    for place, number in pick_cases(scores):
        name = cli.datamodule.case_names[number]
        png = draw_overlays([_overlay_slice(cli, index) for index in pick_slices(scores, number)])
        figures.append(CaseFigure(f"{place.capitalize()}: {name}", f"Dice {dice[number]:.3f}", png))
    return figures


def _overlay_slice(cli: MedsamCLI, index: int) -> OverlaySlice:
    """Predict image ``index`` of the source once more, in its chunk or its tiles, and keep no more of it than a panel shows."""
    module, data = cli.model.eval(), cli.datamodule
    batch, asked = _batch_showing(cli, index)
    step = panel_step(*asked.size)
    # The batch's own images are padded and resized; the source's is what the eye should see.
    image = panel_image(data.source[index].image, step)
    with torch.no_grad():
        prediction = module(batch.to(next(module.parameters()).device))
    return OverlaySlice(
        image,
        truth=panel_shapes(true_masks(batch, asked), step),
        prediction=[
            shape for masks in mask_chunks(prediction, batch, asked, module.side_px) for shape in panel_shapes(masks, step)
        ],
        title=asked.image_id,
        spacing_mm=asked.spacing_mm,
    )


def _batch_showing(cli: MedsamCLI, index: int) -> tuple[SegmentationBatch, AskedImage]:
    """Return the chunk of the test that shows image ``index`` of the source, and that image in it."""
    data = cli.datamodule
    first = data.positions("test", index)[0]
    chunk = next(chunk for chunk in data.chunks("test") if first in chunk)
    batch = collate_chunks([ChunkDataset(data.dataset("test"), [chunk])[0]])
    return batch, next(image for image in asked_images(batch) if image.sample_index == index)
