"""Ask a tuned model, or an untuned network, about one image, with segment-anything's ``SamPredictor`` as the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.geometry import to_original
from medsam_tune.inference.current_images import CurrentImages
from medsam_tune.inference.new_images import GreyLevels, image_tensor, new_batch, with_priors
from medsam_tune.inference.propagation import Propagated, PropagationRules, Step, check_propagation, check_range, propagate
from medsam_tune.inference.slice_prompts import SliceAnswer, SlicePrompts
from medsam_tune.inference.small_parts import thresholded
from medsam_tune.inference.stitching import answer, embedded
from medsam_tune.inference.tiled_prediction import answer_tiles, tiled_batch, with_prompts
from medsam_tune.inference.user_prompts import user_queries
from medsam_tune.inference.windows import mean_prediction
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import class_margins
from medsam_tune.types import AutomaticMasks, MaskPrediction, Queries, SegmentationBatch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from medsam_tune.inference.slice_context import SliceContext

_Which = Literal["single", "candidates", "every"]
Answer = tuple["NDArray[np.generic]", "NDArray[np.float32] | None", "NDArray[np.float32]"]


class Predictor:
    """Hold a segmenter in eval mode and one current image for each thread, so that threads never mix theirs.

    The network answers one thread at a time. Who hands an image from thread to thread, as a server does, uses ``with_image``.
    The image must be on the grey scale the model was trained on: 0..255 after the data source's window or percentile
    rule. ``uint8`` is taken as it is; any other type needs ``intensity``.

    Args:
        segmenter: A trained segmenter, or a bare backbone: the untuned network. It runs on the device its parameters lie on.
        intensity: How stored values become 0..255 where ``set_image`` is not told: a rule, or the (low, high) that become 0
            and 255. ``uint8`` images are taken as they are either way.
        tiles: Size and overlap in pixels of the tiles that images are cut into; their answers are joined. An export knows those
            of its training. None leaves images whole.

    Examples:
        >>> from medsam_tune import Predictor, SamBackbone
        >>> predictor = Predictor(SamBackbone("random_tiny"))
        >>> predictor.set_image(np.zeros((40, 30), dtype=np.uint8))
        >>> masks, iou_predictions, low_res_masks = predictor.predict(box=(3, 4, 20, 30))
        >>> masks.shape, low_res_masks.shape
        ((1, 40, 30), (1, 16, 16))
        >>> masks, *_ = predictor.predict(point_coords=[[9, 9]], point_labels=[1], mask_input=low_res_masks)
    """

    def __init__(
        self, segmenter: Segmenter | Backbone, *, intensity: GreyLevels = None, tiles: tuple[int, int] | None = None
    ) -> None:
        if isinstance(segmenter, Backbone):
            segmenter = SamSegmenter(SamParts(segmenter))
        self.segmenter: Segmenter = segmenter.eval()
        self.intensity, self.tiles = intensity, tiles
        self._images = CurrentImages()

    def set_image(
        self, image: NDArray[np.generic], *, intensity: GreyLevels = None, priors: AutomaticMasks | None = None
    ) -> None:
        """Make ``image`` the current one of this thread and encode it, so that several prompts cost one encoder pass.

        Args:
            image: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, whose alpha is dropped.
            intensity: The (low, high) that become 0 and 255, or a rule, for any type but uint8.
            priors: The automatic masks of this image, where the model fuses them into it (SAMAug).

        Raises:
            ValueError: If the shape, type or values do not fit, or the automatic masks have another size than the image.
        """
        self._images.set(self._encoded(image, intensity, priors))

    def with_image(
        self, image: NDArray[np.generic], *, intensity: GreyLevels = None, priors: AutomaticMasks | None = None
    ) -> Predictor:
        """Return a predictor of the same network that has this image in every thread; arguments as in ``set_image``.

        Raises:
            ValueError: As ``set_image``.
        """
        predictor = Predictor(self.segmenter, intensity=self.intensity, tiles=self.tiles)
        predictor._images = CurrentImages(self._encoded(image, intensity, priors), self._images.lock)
        return predictor

    def set_slice(self, context: SliceContext, position: int) -> None:
        """Make a slice of a volume the current image of this thread, for a network that looks at its neighbours.

        ``predict`` then averages the probabilities of all windows that hold the slice, as a test does.

        Args:
            context: Of ``slice_context.context_of``.
            position: Along the axis, from 0.

        Raises:
            DataError: If a slice cannot be read.
        """
        with self._images.lock:
            self._images.set(context.batch(position))

    def with_slice(self, context: SliceContext, position: int) -> Predictor:
        """Return a predictor of the same network that has this slice in every thread; arguments as in ``set_slice``.

        Raises:
            DataError: As ``set_slice``.
        """
        predictor = Predictor(self.segmenter, intensity=self.intensity, tiles=self.tiles)
        with self._images.lock:
            predictor._images = CurrentImages(context.batch(position), self._images.lock)
        return predictor

    def reset_image(self) -> None:
        """Forget the current image of every thread, as after the network's weights have changed."""
        self._images.reset()

    @property
    def features(self) -> Tensor:
        """Return the embedding (1, C, g, g) of the current image.

        Raises:
            RuntimeError: If no image is set, or the network has no such embedding.
        """
        embeddings = self._current().image_embeddings
        if embeddings is None:
            raise RuntimeError(f"{type(self.segmenter).__name__} makes no image embedding.")
        return embeddings

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
        *,
        name: str | None = None,
    ) -> Answer:
        """Segment one object of the current image, or all its classes.

        Without any prompt the model answers as it was trained to: by its own prompt generator, the box of the whole image, or
        nothing at all.

        Args:
            point_coords: (P, 2) in (x, y) pixels of the original image.
            point_labels: (P,): 1 foreground, 0 background.
            box: (4,) XYXY pixels of the original image, the last column and row included.
            mask_input: (1, 4g, 4g) logits that an earlier call returned.
            multimask_output: Return SAM's three candidates; tuning trains the single mask, so these are the released ones' kin.
            return_logits: Return logits of the original size in place of bool masks.
            name: What to find, for a model whose prompt encoder reads names.

        Returns:
            Masks (M, H, W) at the original size, predicted IoU (M,) or None where the network has no such head, and
            logits (M, h, w) of the padded input frame, of the original size where images are cut into tiles. A network that
            labels pixels returns its classes in their order, M = K, and each pixel belongs to one of them at most.

        Raises:
            RuntimeError: If no image is set.
            ValueError: If a prompt does not fit, the model needs one and none is given, or takes none.
        """
        masks, ious, low_res = self.predict_many(
            point_coords=_one(point_coords),
            point_labels=_one(point_labels),
            boxes=None if box is None else np.asarray(box, dtype=np.float32).reshape(1, -1),
            mask_inputs=_one(mask_input),
            multimask_output=multimask_output,
            return_logits=return_logits,
            names=() if name is None else (name,),
        )
        if self.segmenter.classes():
            return masks[:, 0], None, low_res[:, 0]
        return masks[0], None if ious is None else ious[0], low_res[0]

    def predict_many(
        self,
        *,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_inputs: ArrayLike | None = None,
        multimask_output: bool = False,
        single_mask_too: bool = False,
        return_logits: bool = False,
        names: Sequence[str] = (),
    ) -> Answer:
        """Segment N objects of the current image in one decoder pass; arguments as in ``predict``, one row an object.

        Args:
            point_coords: (N, P, 2); rows with fewer points are filled up with label -1.
            point_labels: (N, P): 1 foreground, 0 background, -1 padding.
            boxes: (N, 4).
            mask_inputs: (N, 1, 4g, 4g).
            multimask_output: As in ``predict``.
            single_mask_too: With ``multimask_output``, and prompts, put the mask that is returned without it before the
                candidates, M = 4, at no cost: the decoder makes all in one pass.
            return_logits: As in ``predict``.
            names: N names.

        Returns:
            Masks (N, M, H, W), predicted IoU (N, M) or None, logits (N, M, h, w).

        Raises:
            RuntimeError: If no image is set.
            ValueError: As in ``predict``.
        """
        batch = self._current()
        given = {"points": point_coords, "boxes": boxes, "mask_inputs": mask_inputs}
        sizes = [len(np.asarray(value)) for value in given.values() if value is not None]
        if sizes and not self.segmenter.takes_prompts():
            raise ValueError(f"{type(self.segmenter).__name__} takes no prompt. Call predict() without one.")
        if batch.tiles:
            prompts = {"point_coords": point_coords, "point_labels": point_labels, "boxes": boxes, "mask_inputs": mask_inputs}
            return self._answer_tiles(batch, max(sizes, default=0), prompts, names, multimask_output, return_logits)
        queries = self._asked(batch.queries, max(sizes, default=len(names) or 1), tuple(names))
        queries = user_queries(
            queries,
            batch.frames[0],
            point_coords=self._shared(point_coords),
            point_labels=self._shared(point_labels),
            boxes=self._shared(boxes),
            mask_inputs=self._shared(mask_inputs),
        )
        which: _Which = ("every" if single_mask_too else "candidates") if multimask_output else "single"
        return self._answer(replace(batch, queries=queries), which, return_logits)

    def segment(
        self,
        image: NDArray[np.generic],
        *,
        box: ArrayLike | None = None,
        intensity: GreyLevels = None,
        priors: AutomaticMasks | None = None,
    ) -> NDArray[np.bool_]:
        """Return the mask (H, W) bool of one image; arguments as in ``set_image`` and ``predict``.

        Raises:
            ValueError: As there, or if the model has several classes: then call ``segment_classes``.
        """
        self._refuse_classes("segment")
        self.set_image(image, intensity=intensity, priors=priors)
        mask: NDArray[np.bool_] = self.predict(box=box)[0][0].astype(bool)
        return mask

    def segment_classes(
        self, image: NDArray[np.generic], *, box: ArrayLike | None = None, intensity: GreyLevels = None
    ) -> dict[str, NDArray[np.bool_]]:
        """Return the mask (H, W) bool of each class by its name; arguments as in ``set_image`` and ``predict``.

        Each pixel belongs to one class at most; the masks of classes that the image does not show are all False.

        Raises:
            ValueError: As there, or if the model has no classes: then call ``segment``.
        """
        if not self.segmenter.classes():
            raise ValueError(f"{type(self.segmenter).__name__} predicts one object, no classes. Call segment(image).")
        self.set_image(image, intensity=intensity)
        masks = self.predict(box=box)[0].astype(bool)
        return dict(zip(self.segmenter.classes(), masks, strict=True))

    def segment_many(
        self, images: Sequence[NDArray[np.generic]], *, batch_size: int = 4, intensity: GreyLevels = None
    ) -> list[NDArray[np.bool_]]:
        """Return one mask (H, W) bool per image, ``batch_size`` images at a time; sizes may differ.

        Raises:
            ValueError: If an image does not fit, or the model has several classes: then call ``segment_classes``.
        """
        self._refuse_classes("segment_many")
        if self.tiles is not None:
            return [self.segment(image, intensity=intensity) for image in images]
        masks: list[NDArray[np.bool_]] = []
        for start in range(0, len(images), batch_size):
            tensors = [self._tensor(image, intensity) for image in images[start : start + batch_size]]
            masks += self._masks(self._batch_of(tensors))
        return masks

    def propagate(
        self,
        slices: Sequence[NDArray[np.generic]],
        position: int,
        *,
        box: ArrayLike | None = None,
        points: Sequence[tuple[float, float, int]] = (),
        rules: PropagationRules | None = None,
        intensity: GreyLevels = None,
    ) -> Propagated:
        """Follow one object up and down through a volume, from a box or clicks on one slice; the current image stays.

        Args:
            slices: D images of one size as ``set_image`` takes them, or an array (D, H, W): slices as they lay in training.
            position: The slice that was drawn on.
            box: (4,) XYXY pixels of the slice, the last column and row included.
            points: (x, y, 1 object or 0 background) each.
            rules: How the box travels and where it stops; None takes the defaults of ``PropagationRules``.
            intensity: As in ``set_image``.

        Returns:
            Its mask on each slice that holds it (``masks``), with the reasons why it was not followed further.

        Raises:
            DataError: If slice or range lie outside the volume, or the first mask is empty.
            RecipeError: If the model takes no prompts or predicts classes.
            ValueError: If a prompt does not fit.

        Examples:
            >>> from medsam_tune import Predictor, SamBackbone
            >>> volume = np.zeros((3, 40, 30), dtype=np.uint8)
            >>> found = Predictor(SamBackbone("random_tiny")).propagate(volume, 1, box=(3, 4, 20, 30))
            >>> found.masks[1].shape
            (40, 30)
        """
        check_propagation(self.segmenter)
        rules = rules or PropagationRules()
        check_range(position, len(slices), rules)

        def ask(where: int, prompts: SlicePrompts) -> SliceAnswer:
            masks, ious, low_res = self.with_image(slices[where], intensity=intensity).predict(**prompts.arguments())
            return SliceAnswer(masks[0].astype(bool), None if ious is None else float(ious[0]), low_res)

        corners = None if box is None else tuple(np.asarray(box, np.float32).ravel().tolist())
        prompts = SlicePrompts(tuple(points), cast("tuple[float, float, float, float] | None", corners))
        return propagate(ask, len(slices), Step(position, prompts, ask(position, prompts)), rules)

    def _asked(self, queries: Queries, n_objects: int, names: tuple[str, ...]) -> Queries:
        """Return the rows that are asked for: a row for each class, or N objects on the one image."""
        if bool(names) != self.segmenter.reads_names() or len(names) not in (0, n_objects):
            wanted = f"a name for each of {n_objects} objects" if self.segmenter.reads_names() else "no names: it reads none"
            raise ValueError(f"name must fit the model, which takes {wanted}; got {list(names)}.")
        if self.segmenter.classes():
            if n_objects > 1:
                raise ValueError(f"a network with classes is asked once an image, got {n_objects} prompts. Call it for each.")
            return queries
        return replace(queries.rows(torch.zeros(n_objects, dtype=torch.int64)), names=names)

    def _shared(self, prompt: ArrayLike | None) -> NDArray[np.generic] | None:
        """Return the prompt for every row: a network with classes has several on the one image."""
        if prompt is None:
            return None
        rows: NDArray[np.generic] = np.asarray(prompt)
        return np.repeat(rows, self.segmenter.masks_per_image(), axis=0) if self.segmenter.classes() else rows

    def _answer(self, batch: SegmentationBatch, which: _Which, return_logits: bool) -> Answer:
        network = self.segmenter
        with self._images.lock, torch.no_grad():
            asks: dict[_Which, Callable[[SegmentationBatch], MaskPrediction]] = {
                "single": partial(answer, network),
                "candidates": network.candidates,
                "every": network.every_mask,
            }
            prediction = mean_prediction([asks[which](window) for window in _windows(batch)])
        logits, ious = self._original(prediction, batch), prediction.iou_predictions
        if return_logits:
            masks = logits
        elif which == "every":
            masks = torch.cat([thresholded(logits[:, :1], network.smallest_part), thresholded(logits[:, 1:])], dim=1)
        else:
            masks = thresholded(logits, prediction.smallest_part)
        scores = None if ious is None else ious.float().cpu().numpy()
        return masks.cpu().numpy(), scores, prediction.low_res_masks.float().cpu().numpy()

    def _answer_tiles(
        self,
        batch: SegmentationBatch,
        n_prompted: int,
        prompts: Mapping[str, ArrayLike | None],
        names: Sequence[str],
        multimask_output: bool,
        return_logits: bool,
    ) -> Answer:
        if multimask_output or names or (n_prompted and self.segmenter.classes()):
            raise ValueError("an image in tiles is asked for one mask an object, by boxes and points or by nothing.")
        asked = with_prompts(batch, n_prompted, prompts) if n_prompted else batch
        with self._images.lock:
            logits, ious = answer_tiles(self.segmenter, asked)
        masks = logits if return_logits else thresholded(logits, self.segmenter.smallest_part)
        return masks.cpu().numpy(), None if ious is None else ious.float().cpu().numpy(), logits.cpu().numpy()

    def _original(self, prediction: MaskPrediction, batch: SegmentationBatch) -> Tensor:
        """Return logits (N, M, H, W); of classes (K, 1, H, W), above 0 where a class has the largest score."""
        frame, side = batch.frames[0], self.segmenter.input_rule.side
        if prediction.class_logits is not None:
            return class_margins(to_original(prediction.class_logits.float(), frame, side))[0, 1:, None]
        return to_original(prediction.low_res_masks.float(), frame, side)

    def _masks(self, batch: SegmentationBatch) -> list[NDArray[np.bool_]]:
        with self._images.lock, torch.no_grad():
            low_res_masks = answer(self.segmenter, batch).low_res_masks[:, :1].float()
        side, smallest = self.segmenter.input_rule.side, self.segmenter.smallest_part
        return [
            thresholded(to_original(low_res_masks[row : row + 1], frame, side)[0, 0], smallest).cpu().numpy()
            for row, frame in enumerate(batch.frames)
        ]

    def _refuse_classes(self, method: str) -> None:
        if len(self.segmenter.classes()) > 1:
            raise ValueError(
                f"{method} returns one mask an image, but this model has the classes {', '.join(self.segmenter.classes())}. "
                "Call segment_classes(image)."
            )

    def _current(self) -> SegmentationBatch:
        batch = self._images.find()
        if batch is None:
            raise RuntimeError("no image is set in this thread. Call set_image(image) first, or use with_image(image).")
        return batch

    def _encoded(self, image: NDArray[np.generic], intensity: GreyLevels, priors: AutomaticMasks | None) -> SegmentationBatch:
        pixels = self._tensor(image, intensity)
        if self.tiles is not None and priors is not None:
            raise ValueError("priors are of the whole image, but this model cuts images into tiles. Leave one of them out.")
        batch = self._batch_of([pixels]) if self.tiles is None else self._tiles_of(pixels)
        with self._images.lock, torch.no_grad():
            return embedded(self.segmenter, batch if priors is None else with_priors(batch, priors))

    def _tensor(self, image: NDArray[np.generic], intensity: GreyLevels) -> Tensor:
        rule = intensity if intensity is not None or image.dtype == np.uint8 else self.intensity
        return image_tensor(image, intensity=rule)

    def _tiles_of(self, image: Tensor) -> SegmentationBatch:
        size, overlap = cast(tuple[int, int], self.tiles)
        return tiled_batch(image, self.segmenter, size, overlap).to(next(self.segmenter.parameters()).device)

    def _batch_of(self, images: Sequence[Tensor]) -> SegmentationBatch:
        device = next(self.segmenter.parameters()).device
        return new_batch(images, self.segmenter).to(device)


def _windows(batch: SegmentationBatch) -> Iterator[SegmentationBatch]:
    """Yield the one image of a batch with each of its embeddings: a slice of a volume has one in every window that holds it."""
    embeddings = batch.image_embeddings
    for row in range(1 if embeddings is None else len(embeddings)):
        yield batch if embeddings is None else replace(batch, image_embeddings=embeddings[row : row + 1])


def _one(prompt: ArrayLike | None) -> NDArray[np.generic] | None:
    return None if prompt is None else np.asarray(prompt)[None]
