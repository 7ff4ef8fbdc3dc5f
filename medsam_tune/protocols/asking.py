"""Ask a network about one image: one pass of its encoder, whatever the number of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune.data.base import VoxelSize
from medsam_tune.errors import RecipeError
from medsam_tune.inference.automatic import CPU_PROMPTS_PER_BATCH, GPU_PROMPTS_PER_BATCH, AutomaticMaskGenerator
from medsam_tune.inference.predictor import Predictor
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.prompts.sampling import Mask
from medsam_tune.protocols.questions import Box, Point, Question
from medsam_tune.protocols.selection import Candidates, join
from medsam_tune.samples import Sample
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import AutomaticMasks

FindPriors = Callable[[torch.Tensor], AutomaticMasks]


@dataclass(frozen=True)
class AskableModel:
    """Hold a network that is asked.

    Attributes:
        name: What tables call it.
        predictor: On the device it works on.
        find_priors: Finds the automatic masks of an image where the network fuses them; None elsewhere.
        batch_size: Prompts decoded at once; 0 takes 4 on a CPU and 64 elsewhere. It changes no mask.
        is_untuned: Whether these are released weights, which need a prompt.
    """

    name: str
    predictor: Predictor
    find_priors: FindPriors | None = None
    batch_size: int = 0
    is_untuned: bool = False

    def takes_prompts(self) -> bool:
        """Tell whether it answers points and boxes."""
        return self.predictor.segmenter.takes_prompts()

    def prompts_at_once(self) -> int:
        """Return how many prompts are decoded at once."""
        on_cpu = next(self.predictor.segmenter.parameters()).device.type == "cpu"
        return self.batch_size or (CPU_PROMPTS_PER_BATCH if on_cpu else GPU_PROMPTS_PER_BATCH)


@dataclass(frozen=True)
class StudiedImage:
    """Hold an image with the objects that are asked for.

    Attributes:
        sample: After the target was applied.
        case: What the image is a part of.
        patient: The unit of an interval.
        label_names: Name of each label.
        voxel: Size of its pixels, where its file states one.
    """

    sample: Sample
    case: str
    patient: str
    label_names: dict[int, str]
    voxel: VoxelSize | None = None

    def known(self) -> Mask | None:
        """Return the pixels (H, W) that somebody annotated; None for all."""
        return None if self.sample.ignored is None else ~self.sample.ignored.numpy()

    def objects(self) -> Iterator[StudiedObject]:
        """Yield each object that shows a pixel."""
        known = self.known()
        rows = zip(self.sample.masks, self.sample.labels.tolist(), strict=True)
        for row, (plane, label) in enumerate(rows):
            mask: Mask = plane.numpy() if known is None else plane.numpy() & known
            if mask.any():
                yield StudiedObject(mask, self.label_names.get(label, f"label {label}"), f"{label}/{row}", known)


@dataclass(frozen=True, eq=False)
class StudiedObject:
    """Hold one object.

    Attributes:
        mask: (H, W) bool, without what nobody annotated.
        label: Name of its label.
        name: What tells it from the others of its image.
        known: (H, W) bool, what somebody annotated; None for all.
    """

    mask: Mask
    label: str
    name: str
    known: Mask | None = None

    def overlap(self, predicted: Mask) -> tuple[float, float]:
        """Return Dice and IoU of a predicted mask (H, W); what nobody annotated does not count."""
        predicted = predicted if self.known is None else predicted & self.known
        both = int((predicted & self.mask).sum())
        joined = int(predicted.sum()) + int(self.mask.sum()) - both
        return 2 * both / (joined + both), both / joined


class AskedImage:
    """Hold an image that a network has encoded.

    Args:
        model: The network.
        sample: The image.
    """

    def __init__(self, model: AskableModel, sample: Sample) -> None:
        self._model, self._sample = model, sample
        priors = None if model.find_priors is None else model.find_priors(sample.image)
        model.predictor.set_image(_pixels(sample), intensity=(0.0, 255.0), priors=priors)

    def answers(self, questions: Sequence[Question], *, name: str) -> list[Candidates]:
        """Return the candidates for each question.

        Args:
            questions: Each with a point or a box.
            name: Of what is asked for, for a network that is asked by names.
        """
        parts: list[list[Candidates | None]] = [[None] * max(1, len(each.boxes)) for each in questions]
        alike: dict[tuple[int, bool], list[tuple[int, int]]] = {}
        for place, question in enumerate(questions):
            for number in range(len(parts[place])):
                alike.setdefault((len(question.points), bool(question.boxes)), []).append((place, number))
        step = self._model.prompts_at_once()
        for places in alike.values():
            for start in range(0, len(places), step):
                chunk = places[start : start + step]
                prompts = [(questions[place].points, _box(questions[place], number)) for place, number in chunk]
                for (place, number), answer in zip(chunk, self._ask(prompts, name), strict=True):
                    parts[place][number] = answer
        return [join([each for each in found if each is not None]) for found in parts]

    def everything(self, points_per_side: int) -> AutomaticMasks:
        """Return what a grid of points finds under segment-anything's own thresholds, by falling predicted IoU.

        Raises:
            RecipeError: If the network is no plain SAM.
        """
        segmenter = self._model.predictor.segmenter
        if not isinstance(segmenter, SamSegmenter) or segmenter.not_mergeable() or self._model.predictor.tiles:
            raise RecipeError(
                f"{self._model.name}: everything mode asks a plain SAM, tuned or not. Leave S1 out of --strategies."
            )
        settings = PriorSettings(points_per_side=points_per_side, pred_iou_thresh=0.88, box_nms_thresh=0.7)
        generator = AutomaticMaskGenerator(segmenter.backbone, settings, prompts_per_batch=self._model.prompts_at_once())
        return generator.generate(self._sample.image, segmenter.backbone.unpack(self._model.predictor.features))

    def unprompted(self) -> NDArray[np.bool_]:
        """Return what a network that needs no prompt answers: one mask (1, H, W), or one a class (K, H, W)."""
        masks: NDArray[np.bool_] = self._model.predictor.predict()[0].astype(bool)
        return masks

    def _ask(self, prompts: Sequence[tuple[tuple[Point, ...], Box | None]], name: str) -> Iterator[Candidates]:
        predictor = self._model.predictor
        points, boxes = [points for points, _ in prompts], [box for _, box in prompts]
        coords = np.array([[point[:2] for point in row] for row in points], np.float32) if points[0] else None
        labels = np.array([[point[2] for point in row] for row in points], np.float32) if points[0] else None
        given = np.array(boxes, np.float32) if boxes[0] is not None else None
        names = (name,) * len(prompts) if predictor.segmenter.reads_names() else ()
        # Images in tiles are answered by one mask an object.
        several = predictor.tiles is None
        masks, ious, _ = predictor.predict_many(
            point_coords=coords,
            point_labels=labels,
            boxes=given,
            names=names,
            multimask_output=several,
            single_mask_too=several,
        )
        for row in range(len(prompts)):
            yield Candidates(masks[row].astype(bool), None if ious is None else ious[row].astype(np.float64))


def _box(question: Question, number: int) -> Box | None:
    return question.boxes[number] if question.boxes else None


def _pixels(sample: Sample) -> NDArray[np.generic]:
    """Return the image (H, W, 3); as bytes where its values are whole, so that nothing is scaled."""
    pixels = sample.image.permute(1, 2, 0).numpy()
    whole = np.rint(pixels)
    return whole.astype(np.uint8) if np.array_equal(whole, pixels) else pixels
