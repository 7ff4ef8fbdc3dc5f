"""What is scored beside the test: the untuned network, bad boxes, whole images without a prompt, kinds of inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.data.chunks import ChunkDataset, collate_chunks
from medsam_tune.evaluation.baselines import BOXES, evaluate_inference, evaluate_segmenters, untuned_networks
from medsam_tune.evaluation.calibration import Certainty, score_certainty, summarise_certainty, write_certainty
from medsam_tune.evaluation.comparison import paired_difference
from medsam_tune.evaluation.instances import score_automatic, summarise_instances
from medsam_tune.evaluation.kept_embeddings import KeptEmbeddings
from medsam_tune.evaluation.moved_boxes import asks_with_boxes, score_moved_boxes
from medsam_tune.evaluation.summary import summarise
from medsam_tune.evaluation.survey import spread
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

if TYPE_CHECKING:
    from medsam_tune.metrics.overlap import CaseScores
    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.types import SegmentationBatch


def score_baselines(cli: MedsamCLI, kept: KeptEmbeddings) -> dict[str, Any] | None:
    """Score the untuned network on the test cases: asked as the tuned one is, with the whole-image box and with the true box.

    Where the network labels pixels, only the classes that an image shows get a box.

    Args:
        cli: Whose test is over.
        kept: Embeddings of the test images, shared with the other scores.

    Returns:
        A summary by way of asking, each with how much better the tuned network is by case (``tuned_minus_this``), or None where
        the recipe asks for none or has no promptable network.
    """
    segmenter, tuned = cli.model.segmenter, cli.results.scores
    if not cli.settings.baselines or tuned is None or not isinstance(segmenter, SamSegmenter):
        return None
    data, only_shown = cli.datamodule, BOXES if cli.datamodule.target == "per_class" else ()
    networks = untuned_networks(segmenter)
    batches = _encoded(cli, kept, {"untuned": next(iter(networks.values()))})
    scores = evaluate_segmenters(networks, batches, only_shown=only_shown)
    cli.results.baseline_scores = scores
    return {
        name: {
            **_summary(cli, found),
            "tuned_minus_this": paired_difference(tuned, found, data.case_patients),
        }
        for name, found in scores.items()
    }


def score_boxes(cli: MedsamCLI, kept: KeptEmbeddings) -> dict[str, Any] | None:
    """Score the tuned network, and the untuned one where that was scored, with every box moved by ``run.box_jitter``.

    Args:
        cli: Whose test is over.
        kept: Embeddings of the test images, shared with the other scores.

    Returns:
        ``share``; by network ``dice`` as ``summarise`` returns it, and the paired difference ``minus_exact`` to the boxes as
        they are drawn. None where the recipe asks for none, or no user has to draw a box.
    """
    segmenter, tuned, share = cli.model.segmenter, cli.results.scores, cli.settings.box_jitter
    first = next(scored_batches(cli), None)
    if not share or tuned is None or first is None or not isinstance(segmenter, SamSegmenter):
        return None
    if not asks_with_boxes(segmenter, first.to(next(segmenter.parameters()).device)):
        return None
    cli.clock.start("moved_boxes")
    exact, networks = {"tuned": tuned}, [{"tuned": segmenter}]
    alike = untuned_networks(segmenter).get("same_prompts") if "same_prompts" in cli.results.baseline_scores else None
    if isinstance(alike, SamSegmenter):
        exact["untuned"] = cli.results.baseline_scores["same_prompts"]
        if segmenter.not_precomputable() is None:
            networks[0]["untuned"] = alike
        else:
            networks.append({"untuned": alike})
    moved = {
        name: scores
        for together in networks
        for name, scores in score_moved_boxes(together, _encoded(cli, kept, together), share=share).items()
    }
    cli.clock.stop("moved_boxes")
    return {
        "share": share,
        "dice": {name: _summary(cli, found)["dice"] for name, found in moved.items()},
        "minus_exact": {
            name: paired_difference(found, exact[name], cli.datamodule.case_patients) for name, found in moved.items()
        },
    }


def score_calibration(cli: MedsamCLI, kept: KeptEmbeddings) -> dict[str, Any]:
    """Hold what the tuned network says of its own answers against their errors, and write both by case.

    Args:
        cli: Whose test is over.
        kept: Embeddings of the test images, shared with the other scores.

    Returns:
        ``calibration`` as ``summarise_certainty`` returns it, with the same of the ``untuned`` network where that is asked
        alike; empty where the recipe asks for none.
    """
    tested, data = cli.results.scores, cli.datamodule
    if not cli.settings.calibration or tested is None:
        return {}
    cli.clock.start("calibration")
    segmenter = cli.model.segmenter
    certainty = score_certainty(segmenter, _encoded(cli, kept, {"tuned": segmenter}))
    untuned = _untuned_certainty(cli, kept)
    cli.clock.stop("calibration")
    dice = _dice_by_case(tested)
    write_certainty(cli.run_folder.certainty, certainty, dice, data.case_names, untuned=untuned)
    said = None if untuned is None else summarise_certainty(*untuned, data.case_patients)
    return {"calibration": {**summarise_certainty(certainty, dice, data.case_patients), "untuned": said}}


def _untuned_certainty(cli: MedsamCLI, kept: KeptEmbeddings) -> tuple[Certainty, dict[int, float]] | None:
    """Return what the untuned network says of its answers to the same queries, and its Dice; None where it was not scored."""
    segmenter = cli.model.segmenter
    if not isinstance(segmenter, SamSegmenter):
        return None
    name, network = next(iter(untuned_networks(segmenter).items()))
    scores = cli.results.baseline_scores.get(name)
    if scores is None or name in BOXES:
        return None
    return score_certainty(network, _encoded(cli, kept, {"untuned": network})), _dice_by_case(scores)


def _dice_by_case(scores: CaseScores) -> dict[int, float]:
    return dict(zip(scores.scored_cases().tolist(), scores.case_dice().tolist(), strict=True))


def score_instances(cli: MedsamCLI) -> dict[str, Any]:
    """Score the masks that the tuned and the untuned network find in the test images without a prompt.

    Returns:
        ``automatic``: a summary of each and the settings; empty where the recipe asks for none.
    """
    settings, segmenter, data, tested = cli.settings.automatic, cli.model.segmenter, cli.datamodule, cli.results.scores
    if settings is None or tested is None or not isinstance(segmenter, SamSegmenter):
        return {}
    images = np.unique(tested.slices.sample_index).tolist()
    networks = {"tuned": segmenter.backbone, "untuned": segmenter.backbone.fresh().to(next(segmenter.parameters()).device)}
    cli.clock.start("automatic")
    scored = {
        name: summarise_instances(score_automatic(network, (data.source[index] for index in images), settings), data.patients)
        for name, network in networks.items()
    }
    cli.clock.stop("automatic")
    return {"automatic": {**scored, "settings": asdict(settings)}}


def score_inference(cli: MedsamCLI, segmenter: Segmenter) -> dict[str, Any]:
    """Score the trained network on the test cases with raw images, with augmented ones, and with both ways to join the two.

    Returns:
        A summary by kind of inference; empty where the network has no fusion.
    """
    scores = evaluate_inference(segmenter, scored_batches(cli))
    return {name: _summary(cli, found) for name, found in scores.items()}


def score_others(cli: MedsamCLI, networks: Mapping[str, Segmenter], *, most: int) -> dict[str, dict[str, Any]]:
    """Score networks on up to ``most`` chunks of the test cases, each with its own encoder.

    Returns:
        A summary by name.
    """
    data = cli.datamodule
    chunks = data.chunks("test")
    items = ChunkDataset(data.dataset("test"), [chunks[place] for place in spread(len(chunks), most)])
    found = {}
    for name, network in networks.items():
        batches = (collate_chunks([items[number]]) for number in range(len(items)))
        found[name] = _summary(cli, evaluate_segmenters({name: network}, batches)[name])
    return found


def _encoded(cli: MedsamCLI, kept: KeptEmbeddings, networks: Mapping[str, Segmenter]) -> Iterator[SegmentationBatch]:
    """Yield the tested images with the embeddings of the first of these networks, made once as far as they are kept."""
    name, first = next(iter(networks.items()))
    return kept.encoded(name, first, scored_batches(cli))


def scored_batches(cli: MedsamCLI) -> Iterator[SegmentationBatch]:
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


def _summary(cli: MedsamCLI, scores: CaseScores) -> dict[str, Any]:
    data = cli.datamodule
    return summarise(scores, data.case_names, data.label_names, data.case_patients)
