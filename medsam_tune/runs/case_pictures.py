"""The test cases of a report: what is known of each, and their slices with truth, both networks' masks, and the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medsam_tune.data.chunks import ChunkDataset, collate_chunks
from medsam_tune.evaluation.baselines import BOXES, shown_objects, untuned_networks
from medsam_tune.evaluation.kept_embeddings import KeptEmbeddings
from medsam_tune.evaluation.overlays import (
    OverlaySlice,
    PanelPrompts,
    Shape,
    draw_slice,
    joined_prompts,
    panel_image,
    panel_prompts,
    panel_shapes,
    panel_step,
)
from medsam_tune.evaluation.report_cases import CasePanel, CaseRow, ShownCase
from medsam_tune.evaluation.summary import label_name, pick_cases, pick_slices
from medsam_tune.geometry import boxes_to_original, points_to_original
from medsam_tune.inference.stitching import AskedImage, answer, asked_images, mask_chunks, true_masks
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import Queries, SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.metrics.overlap import CaseScores
    from medsam_tune.training.cli import MedsamCLI

_OPEN_FAILURES = 3
# Each is decoded once more by both networks; where the encoder learns, what the test kept no embedding of is encoded too.
_MOST_SLICES, _MOST_ENCODED = 300, 120


def case_rows(cli: MedsamCLI) -> list[CaseRow]:
    """Return what is known of each test case and label, the worst first; cases without a value last."""
    scores, measures, data = cli.results.scores, cli.results.measures, cli.datamodule
    if scores is None or measures is None:
        return []
    untuned = cli.results.untuned_dice()
    rows = []
    for row, (case, label) in enumerate(zip(scores.case_index.tolist(), scores.label.tolist(), strict=True)):
        known = [None if scores.excluded[row] else float(each[row]) for each in (scores.dice, scores.iou, measures.hd95)]
        rows.append(
            CaseRow(
                case=data.case_names[case],
                label=label_name(label, data.label_names),
                n_slices=int(scores.n_slices[row]),
                dice=known[0],
                iou=known[1],
                hd95=known[2],
                distance_unit=measures.distance_unit[row],
                true_size=float(measures.true_size[row]),
                predicted_size=float(measures.predicted_size[row]),
                size_unit=measures.size_unit[row],
                nsd=None if np.isnan(measures.nsd[row]) else float(measures.nsd[row]),
                untuned_dice=untuned.get((case, label)),
            )
        )
    return sorted(rows, key=lambda row: (row.dice is None, row.dice))


def shown_cases(cli: MedsamCLI) -> list[ShownCase]:
    """Return the scored cases, the worst first; the worst, the median and the best are open."""
    scores, names = cli.results.scores, cli.datamodule.case_names
    if scores is None:
        return []
    places = {case: place for place, case in pick_cases(scores)}
    shown = []
    for number, (case, dice) in enumerate(_worst_first(scores)):
        place = f"{places[case].capitalize()}: " if case in places else ""
        is_open = bool(place) or number < _OPEN_FAILURES
        n_slices = len(_slices_of(scores, case))
        shown.append(ShownCase(names[case], f"{place}{names[case]}, Dice {dice:.3f}", is_open, n_slices))
    return shown


def case_panels(cli: MedsamCLI, kept: KeptEmbeddings) -> Iterator[CasePanel]:
    """Yield the slices of the scored cases: those that stand for a case first, failures first, then all others.

    Args:
        cli: Whose test is over.
        kept: Embeddings of the test images from what was scored beside the test.
    """
    scores = cli.results.scores
    if scores is None:
        return
    artist, most_encoded = SliceArtist(cli, kept), kept.n_encoded + _MOST_ENCODED
    order = [case for case, _ in _worst_first(scores)]
    first = [case for _, case in pick_cases(scores)]
    first = [*order[:_OPEN_FAILURES], *(case for case in first if case not in order[:_OPEN_FAILURES])]
    later = [case for case in order if case not in first]
    picked = {case: pick_slices(scores, case) for case in order}
    wanted = [(case, index, True) for case in (*first, *later) for index in picked[case]]
    for case in order:
        wanted += [(case, index, False) for index in _slices_of(scores, case) if index not in picked[case]]
    for case, index, is_picked in wanted[:_MOST_SLICES]:
        if kept.n_encoded >= most_encoded:
            return
        overlay = artist.draw(index)
        caption = f"{overlay.title}{_dice_of(scores, index)}"
        svg = draw_slice(overlay, name=f"s{index}")
        yield CasePanel(cli.datamodule.case_names[case], svg, caption, position=index, is_picked=is_picked)


def sample_panels(data: SegmentationDataModule, images: Sequence[int]) -> list[CasePanel]:
    """Return images of the source, as they are stored, with the outlines of their masks."""
    panels = []
    for image in images:
        sample = data.stored(image)
        step = panel_step(*sample.image.shape[-2:])
        shown = OverlaySlice(
            panel_image(sample.image, step),
            truth=panel_shapes(sample.masks, step),
            title=sample.image_id,
            spacing_mm=sample.spacing_mm,
        )
        panels.append(CasePanel(sample.case_id, draw_slice(shown, name=f"d{image}"), sample.image_id))
    return panels


def given_prompts(segmenter: Segmenter, batch: SegmentationBatch) -> list[PanelPrompts]:
    """Return what a network was asked with on each row of a batch, in pixels of the whole image.

    The box of a whole image says nothing and is left out.
    """
    if segmenter.asks_user() is None:
        return [PanelPrompts()] * batch.n_images
    step = batch.at_once or batch.n_images
    found = []
    for start in range(0, batch.n_images, step):
        part = batch.part(start, start + step)
        queries = segmenter.given(part)
        found += [_prompts_of_row(queries, part, row) for row in range(part.n_images)]
    return found


@dataclass(frozen=True)
class _Drawn:
    """Hold what both networks say about one image."""

    image: AskedImage
    truth: list[Shape]
    tuned: list[Shape]
    untuned: list[Shape]
    prompts: PanelPrompts


class SliceArtist:
    """Predict the chunk or the tiles of an image once more, with both networks, and keep no more of it than panels show.

    Args:
        cli: A run with its best weights; the untuned network is the one that its summary's verdict is against.
        kept: Embeddings of the test images, where there are any.
    """

    def __init__(self, cli: MedsamCLI, kept: KeptEmbeddings | None = None) -> None:
        self._kept = KeptEmbeddings() if kept is None else kept
        self._data, self._segmenter = cli.datamodule, cli.model.segmenter.eval()
        self._untuned, self._only_shown = _untuned_network(cli)
        self._chunks = {place: chunk for chunk in self._data.chunks("test") for place in chunk}
        self._last: tuple[tuple[int, ...], dict[int, _Drawn]] | None = None

    def draw(self, index: int) -> OverlaySlice:
        """Return what a panel shows of one image.

        Args:
            index: Its place in the source.
        """
        chunk = self._chunks[self._data.positions("test", index)[0]]
        if self._last is None or self._last[0] != chunk:
            self._last = (chunk, self._draw(chunk))
        drawn = self._last[1][index]
        return OverlaySlice(
            # The batch's own images are padded and resized; the source's is what the eye should see.
            panel_image(self._data.source[index].image, panel_step(*drawn.image.size)),
            truth=drawn.truth,
            prediction=drawn.tuned,
            untuned=drawn.untuned,
            prompts=drawn.prompts,
            title=drawn.image.image_id,
            spacing_mm=drawn.image.spacing_mm,
        )

    def _draw(self, chunk: tuple[int, ...]) -> dict[int, _Drawn]:
        batch = collate_chunks([ChunkDataset(self._data.dataset("test"), [chunk])[0]])
        with torch.no_grad():
            there = batch.to(next(self._segmenter.parameters()).device)
            tuned = self._shapes("tuned", self._segmenter, there)
            untuned: dict[int, list[Shape]] = {}
            if self._untuned is not None:
                untuned = self._shapes("untuned", self._untuned, shown_objects(there) if self._only_shown else there)
            marks = given_prompts(self._segmenter, there)
        return {
            image.sample_index: _Drawn(
                image,
                panel_shapes(true_masks(batch, image), panel_step(*image.size)),
                tuned[image.sample_index],
                untuned.get(image.sample_index, []),
                joined_prompts([marks[row] for row in image.rows], panel_step(*image.size)),
            )
            for image in asked_images(batch)
        }

    def _shapes(self, network: str, segmenter: Segmenter, batch: SegmentationBatch) -> dict[int, list[Shape]]:
        """Return what a network finds on each image of a batch, by the image's place in the source."""
        prediction = answer(segmenter, self._kept.with_embeddings(network, segmenter, batch))
        side = segmenter.input_rule.side
        return {
            image.sample_index: [
                shape
                for masks in mask_chunks(prediction, batch, image, side)
                for shape in panel_shapes(masks, panel_step(*image.size))
            ]
            for image in asked_images(batch)
        }


def fullest_slices(data: SegmentationDataModule, cases: Sequence[str]) -> dict[str, int]:
    """Return, for each of several test cases, the place in the source of the slice that shows most."""
    wanted, named = set(cases), data.source.case_ids()
    found: dict[str, tuple[int, int]] = {}
    for index in data.source_images("test"):
        if named[index] in wanted:
            area = int(data.source[index].masks.areas().sum())
            found[named[index]] = max(found.get(named[index], (-1, 0)), (area, -index))
    return {case: -found[case][1] for case in cases if case in found}


def _dice_of(scores: CaseScores, index: int) -> str:
    """Return the Dice of a slice over its labels; nothing where it shows nothing and nothing was found."""
    slices = scores.slices
    rows = slices.sample_index == index
    tp, wrong = int(slices.tp[rows].sum()), int((slices.fp + slices.fn)[rows].sum())
    return f": Dice {2 * tp / (2 * tp + wrong):.3f}" if tp + wrong else ": nothing there, nothing found"


def _slices_of(scores: CaseScores, case: int) -> list[int]:
    """Return the places in the source of a case's slices that were scored."""
    found: list[int] = np.unique(scores.slices.sample_index[scores.slices.case_index == case]).tolist()
    return found


def _worst_first(scores: CaseScores) -> list[tuple[int, float]]:
    cases, dice = scores.scored_cases(), scores.case_dice()
    return [(int(cases[place]), float(dice[place])) for place in np.argsort(dice, kind="stable")]


def _untuned_network(cli: MedsamCLI) -> tuple[Segmenter | None, bool]:
    """Return the network that the verdict is against, and whether it is asked only for objects that an image shows."""
    segmenter, against = cli.model.segmenter, (cli.results.summary.get("verdict") or {}).get("against")
    if against is None or not isinstance(segmenter, SamSegmenter):
        return None, False
    only_shown = against in BOXES and cli.datamodule.target == "per_class"
    return untuned_networks(segmenter)[against].eval(), only_shown


def _prompts_of_row(queries: Queries, batch: SegmentationBatch, row: int) -> PanelPrompts:
    own, frame = (queries.image_index == row).cpu(), batch.frames[row]
    left, top = (batch.tiles[row].left, batch.tiles[row].top) if batch.tiles else (0, 0)
    boxes, points, labels = queries.boxes, queries.point_coords, queries.point_labels
    corner = torch.tensor([left, top], dtype=torch.float32)
    return panel_prompts(
        None if boxes is None else boxes_to_original(boxes.cpu()[own], frame) + corner.repeat(2),
        None if points is None else points_to_original(points.cpu()[own], frame) + corner,
        None if labels is None else labels.cpu()[own],
    )
